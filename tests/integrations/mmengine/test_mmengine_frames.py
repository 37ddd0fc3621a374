"""Frames of a 3D detector under a real Runner, in the containers MMDetection3D uses (tests/mmdet3d has the real one)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmengine")

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData
from mmengine_parts import loader, passes, runner, summary
from torch.utils.data import Dataset

from ml_debugger.mmengine import MLDebuggerHook
from ml_debugger.records import load


def pack_samples(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """Points as a list of clouds of different sizes, samples as a list."""
    return {
        "inputs": {"points": [sample["points"] for sample in batch]},
        "data_samples": [sample["sample"] for sample in batch],
    }


class Clouds(Dataset[dict[str, Any]]):
    """Frame i has 5 + i points and i true boxes; frame 2 is labelled "don't care"."""

    def __init__(self, size: int, *, labelled: bool = True) -> None:
        self.size, self.labelled = size, labelled

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = BaseDataElement(metainfo={"lidar_path": f"velodyne/{index:06d}.bin", "sample_idx": index})
        if self.labelled:
            labels = np.full(index, -1 if index == 2 else 1)
            sample.eval_ann_info = {
                "gt_bboxes_3d": LiDARBoxes(torch.full((index, 7), float(index))),
                "gt_labels_3d": labels,
            }
        return {"points": torch.full((5 + index, 4), float(index)), "sample": sample}


class LiDARBoxes:
    """A box class as of MMDetection3D 1.x: l before w, bottom centre."""

    YAW_AXIS = 2

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)


class Detector(BaseModel):
    """Gives 3 - i boxes for frame i, with velocities if asked to; one score of frame 0 is NaN."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.voxel_encoder = torch.nn.Identity()
        self.width = width
        self.num_classes = 3

    def loss(self, inputs: Any, data_samples: Any) -> Any:
        return {"loss": self.weight * sum(cloud.mean() for cloud in inputs["points"])}

    def _forward(self, inputs: Any, data_samples: Any) -> Any:
        return [cloud * self.weight for cloud in inputs["points"]]

    def predict(self, inputs: Any, data_samples: Any) -> Any:
        for cloud, sample in zip(inputs["points"], data_samples, strict=True):
            index = len(cloud) - 5
            n = max(3 - index, 0)
            score = torch.arange(1, n + 1) / 10 + 0.1
            if index == 0:
                score[-1] = torch.nan
            box = LiDARBoxes(torch.arange(self.width).repeat(n, 1) + 10.0 * index)
            sample.pred_instances_3d = InstanceData(bboxes_3d=box, scores_3d=score, labels_3d=torch.arange(n))
        return data_samples

    def forward(self, inputs: Any, data_samples: Any, mode: str = "tensor") -> Any:
        return {"loss": self.loss, "predict": self.predict, "tensor": self._forward}[mode](
            inputs, data_samples
        )


def run_test_loop(work_dir: Path, model: Detector, data: Clouds, **options: Any) -> None:
    config = {**loader(data, batch_size=3), "collate_fn": pack_samples}
    runner(
        work_dir,
        MLDebuggerHook(task="detection3d", **{"score_thresh": 0.0, **options}),
        model=model,
        test_dataloader=config,
    ).test()


@pytest.mark.parametrize("width", [7, 9])
def test_frames_with_counts_boxes_and_truths(store: Path, tmp_path: Path, width: int) -> None:
    run_test_loop(tmp_path, Detector(width), Clouds(5))
    (selection,) = passes(store, "Detector")
    assert (selection.task, selection.sealed, selection.n_rows) == ("detection3d", True, 5)
    samples = load("Detector", "v1", "samples").to_pylist()
    assert [row["input_id"] for row in samples] == [f"velodyne/{i:06d}.bin" for i in range(5)]
    assert [row["n_detections"] for row in samples] == [3, 2, 1, 0, 0]
    assert [row["n_truths"] for row in samples] == [0, 1, 2, 3, 4]
    assert [row["nonfinite"] for row in samples] == [True, False, False, False, False]
    assert len({row["input_hash"] for row in samples}) == 5
    assert [(row["batch_idx"], row["row"]) for row in samples] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]

    found = load("Detector", "v1", "detections").to_pylist()
    assert [row["unit"] for row in found] == [0, 0, 0, 1, 1, 2]
    assert [row["det_idx"] for row in found] == [row["label"] for row in found] == [0, 1, 2, 0, 1, 0]
    assert [row["box"][0] for row in found] == [0, 0, 0, 10, 10, 20]
    assert [len(row["box"]) for row in found] == [7] * 6
    assert found[0].get("velocity") == ([7, 8] if width == 9 else None)

    truths = load("Detector", "v1", "truths").to_pylist()
    assert [(row["unit"], row["gt_idx"]) for row in truths] == [(i, j) for i in range(5) for j in range(i)]
    assert [row["ignore"] for row in truths] == [row["unit"] == 2 for row in truths]


def test_frames_without_truths(store: Path, tmp_path: Path) -> None:
    run_test_loop(tmp_path, Detector(), Clouds(4, labelled=False))
    samples = load("Detector", "v1", "samples").to_pylist()
    assert [(row["labelled"], row["n_truths"]) for row in samples] == [(False, None)] * 4
    assert load("Detector", "v1", "truths").num_rows == 0


def test_users_ids_and_fields(store: Path, tmp_path: Path) -> None:
    run_test_loop(
        tmp_path,
        Detector(),
        Clouds(4),
        id_fn=lambda batch: [f"frame-{s.sample_idx}" for s in batch["data_samples"]],
        fields_fn=lambda batch: {"points": [len(cloud) for cloud in batch["inputs"]["points"]]},
        additional_fields=[{"name": "points", "type": "int"}],
    )
    samples = load("Detector", "v1", "samples").to_pylist()
    assert [(row["input_id"], row["points"]) for row in samples] == [(f"frame-{i}", 5 + i) for i in range(4)]


def test_training_gives_losses_only_and_that_is_said_once(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {**loader(Clouds(4), batch_size=2), "collate_fn": pack_samples}
    options = {"train_dataloader": config, "val_dataloader": config}
    runner(tmp_path, MLDebuggerHook(task="detection3d"), model=Detector(), **options).train()
    assert summary(store, "Detector") == [("val", 0, 0, 4), ("val", 1, 0, 4)]
    told = [r.getMessage() for r in caplog.records if "losses only" in r.getMessage()]
    assert len(told) == 1
