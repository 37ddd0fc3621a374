"""The MMEngine hook on mmdet's own RetinaNet in a real Runner, on one and two ranks: trained, recorded, evaluated.

Runs in .venv-mmdet3d (`.ci/mmdet3d-env` builds it) and is skipped elsewhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import TRAININGS

pytest.importorskip("mmdet", reason="mmdet is not installed: run this in .venv-mmdet3d")

from mmdet_pictures import Pictures, make_runner

from ml_debugger.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select


def check_records(pictures: int, ranks: set[int]) -> None:
    """Both passes of both epochs hold every picture once with its truth and a logit row per box."""
    found = select(Store(), RunKey("pictures", "v1"), n_epoch=None, passes="all")
    assert {(s.key.dataset_type, s.key.n_epoch): s.sealed for s in found} == {
        (split, epoch): True for split in ("train", "val") for epoch in (0, 1)
    }
    for selection in found:
        samples = selection.table("samples").to_pandas()
        if selection.key.dataset_type == "val":
            assert sorted(samples.input_id) == [str(100 + i) for i in range(pictures)]
        else:  # as drawn: the sampler repeats a picture where the ranks do not share evenly
            assert set(samples.input_id) == {str(100 + i) for i in range(pictures)}
            assert len(samples) == -(-pictures // len(ranks)) * len(ranks)
        assert set(samples.rank_) == ranks
        assert (samples.n_truths == 2).all()
        assert (samples.n_detections > 0).all()
        truths = selection.table("truths").to_pandas().groupby(["rank_", "unit", "input_id"])
        for (_, _, name), rows in truths:
            own = Pictures(pictures)[int(name) - 100]["data_samples"].gt_instances
            assert np.allclose(np.stack(rows.box), own.bboxes.numpy())
            assert rows.label.tolist() == own.labels.tolist()
        assert selection.table("vectors").num_rows == samples.n_detections.sum()


def test_mmdet_in_a_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    make_runner(tmp_path / "work", pictures=6, batch_size=2).train()
    check_records(6, {0})
    result = Evaluator("pictures", "v1").request_evaluation()
    metrics = result.metrics_summary().set_index("dataset")
    assert metrics.counts.to_dict() == {"train": 6, "val": 6}


@pytest.mark.processes
def test_mmdet_on_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    script = str(TRAININGS / "mmdet_pictures.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, script, str(tmp_path / "work")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    check_records(5, {0, 1})
