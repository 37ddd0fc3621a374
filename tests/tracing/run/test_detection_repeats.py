"""Detectors on two ranks: images that a sampler repeats count once, though a batch pads them otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detection_parts import CornerAdapter, CornerNet, image, registered, run, truth
from torch.utils.data import DataLoader, DistributedSampler

from mld_core.tracing.run.recorder import Recorder

SIZE = 5


class Images(torch.utils.data.Dataset[Any]):
    """Image i is 8 * (i + 1) pixels high, and named in its target."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        target = {**truth((0, 0, 4, 5)), "image_id": torch.tensor([100 + index])}
        return image(1 + index % 2, 8 * (index + 1)), target


def padded(samples: list[Any]) -> Any:
    """Images as high as the highest of the batch."""
    most = max(picture.shape[1] for picture, _ in samples)
    pictures = [
        torch.nn.functional.pad(p, (0, 0, 0, most - p.shape[1]), value=float(p[0, 0, 0])) for p, _ in samples
    ]
    return torch.stack(pictures), [target for _, target in samples]


def test_images_that_a_sampler_repeats_count_once(tmp_path: Path) -> None:
    with registered(CornerAdapter):
        names: dict[str, str] = {}
        for rank in (0, 1):
            model = CornerNet().eval()
            made = Recorder(model_name="net", version_name="v", store=str(tmp_path))
            names = names or made.resolve_names(model)
            made.start(model, names, rank=rank, world_size=2, framework="")
            sampler = DistributedSampler(Images(), 2, rank, shuffle=False)
            loader = DataLoader(Images(), 2, sampler=sampler, collate_fn=padded)
            made.begin_pass("val", 0, mode="eval", loader=loader)
            for index, batch in enumerate(loader):
                made.begin_batch(batch)
                made.record(batch, model(batch[0]), batch_idx=index)
            made.end_pass()
            assert made.finish().rows_written == 3
    selection = run(tmp_path)
    assert selection.sealed
    samples = selection.table("samples").to_pandas()
    assert sorted(samples.input_id) == [str(100 + i) for i in range(SIZE)]
    assert set(samples.id_source) == {"image_id"}
    assert selection.report.duplicates_dropped == 1
    boxes = selection.table("detections").to_pandas()
    assert boxes.groupby("input_id").size().to_dict() == {str(100 + i): 1 + i % 2 for i in range(SIZE)}
    assert selection.table("truths").num_rows == SIZE, "the repeat's true boxes are left out with it"


def test_a_batch_without_a_forward_has_its_place_before_the_repeats(tmp_path: Path) -> None:
    """Also where the order of the loader is not followed, as batches name their samples."""
    with registered(CornerAdapter):
        model = CornerNet().eval()
        made = Recorder(model_name="net", version_name="v", store=str(tmp_path))
        made.start(model, made.resolve_names(model), rank=1, world_size=2, framework="")
        loader = DataLoader(
            Images(), 2, sampler=DistributedSampler(Images(), 2, 1, shuffle=False), collate_fn=padded
        )
        made.begin_pass("val", 0, mode="eval", source=loader)
        own, repeated = loader
        made.begin_batch(own)
        made.skip_batch(own)
        made.begin_batch(repeated)
        made.record(repeated, model(repeated[0]), batch_idx=1)
        made.end_pass()
        assert made.finish().rows_written == 1
    assert run(tmp_path).table("samples").num_rows == 0
