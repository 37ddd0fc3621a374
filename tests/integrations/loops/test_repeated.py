"""Samplers repeat samples to make ranks even: each counts once in an evaluation, whatever its id and its content say."""

import pytest
from loops_run import installed, loops, passes
from repeated import SIZE, WAYS

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]

OF = {
    "lightning": "lightning",
    "transformers": "huggingface",
    "accelerate": "accelerate",
    "mmengine": "mmengine",
}


@pytest.mark.parametrize("package", [name for name in WAYS if OF.get(name, "torch") in installed()])
def test_each_sample_counts_once(package: str) -> None:
    """The user's own ids, and sequences that are padded to the longest of their batch, without a mask."""
    for way in WAYS[package]:
        [one] = passes(loops(2), f"repeated {way}")
        samples = one.table("samples").to_pandas()
        assert sorted(samples.label) == sorted(i % 3 for i in range(SIZE)), way
        if set(samples.id_source) != {"content_hash"}:
            assert sorted(samples.input_id) == [str(i) for i in range(SIZE)], way
        assert one.report.non_unique_ids == 0, way
        repeats = 0 if way == "predicting" else 1  # Lightning deals out what is predicted unevenly
        assert one.report.duplicates_dropped == repeats, way
        assert one.report.rows_read == SIZE + repeats, "what was dropped stays on disk"
