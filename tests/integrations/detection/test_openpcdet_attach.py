"""OpenPCDet's train and eval loops, with stand-ins for its detectors (CUDA only)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_openpcdet as pcd
import numpy as np
import pytest
import torch
from fake_parts3d import clouds
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ml_debugger.openpcdet import Recording, attach
from ml_debugger.records import load
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select


class Frames(Dataset[dict[str, Any]]):
    """Frame i holds i + 1 cars."""

    def __init__(self, size: int, first: int = 0) -> None:
        self.size, self.first = size, first

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        boxes = torch.tensor([[3.0 + k, 1, 0, 4.2, 1.7, 1.5, 0.1, 1 + k % 3] for k in range(index + 1)])
        return {
            "points": clouds(1, self.first + index)[0],
            "boxes": boxes,
            "name": f"{self.first + index:06d}",
        }

    @staticmethod
    def collate_batch(items: list[dict[str, Any]]) -> dict[str, Any]:
        """As DatasetTemplate: numpy, true boxes padded with rows of zeros."""
        most = max(len(item["boxes"]) for item in items)
        padded = torch.stack(
            [nn.functional.pad(item["boxes"], (0, 0, 0, most - len(item["boxes"]))) for item in items]
        )
        batch = pcd.batch_of([item["points"] for item in items], padded)
        batch["frame_id"] = [item["name"] for item in items]
        return {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def loader(size: int, first: int = 0) -> DataLoader[dict[str, Any]]:
    return DataLoader(Frames(size, first), batch_size=2, collate_fn=Frames.collate_batch)


def load_data_to_gpu(batch: dict[str, Any]) -> None:
    for key, value in batch.items():
        if key != "frame_id" and hasattr(value, "dtype"):
            batch[key] = torch.from_numpy(value).float()


def train(model: nn.Module, epochs: int, data: Any) -> None:
    """train_utils.train_model: one iterator, pulled across epochs."""
    iterator = iter(data)
    for _ in range(epochs):
        model.train()
        for _ in range(len(data)):
            try:
                batch = next(iterator)
            except StopIteration:
                iterator = iter(data)
                batch = next(iterator)
            load_data_to_gpu(batch)
            loss, _, _ = model(batch)
            assert float(loss["loss"]) == 0


def evaluate(model: nn.Module, data: Any) -> None:
    """eval_utils.eval_one_epoch."""
    model.eval()
    for batch in data:
        load_data_to_gpu(batch)
        with torch.no_grad():
            predictions, _ = model(batch)
        assert len(predictions) == batch["batch_size"]


@pytest.fixture
def attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    torch.manual_seed(0)
    recordings: list[Recording] = []

    def make(model: nn.Module, *args: Any, **kwargs: Any) -> Recording:
        recordings.append(attach(model, *args, **kwargs))
        return recordings[-1]

    yield make
    for recording in recordings:
        recording.finish()


def passes(name: str = "FakeTemplate") -> list[tuple[str, int | None, int, int]]:
    found = select(Store(), RunKey(name, "v1"), n_epoch=None, passes="all")
    assert all(p.sealed for p in found)
    return sorted((p.key.dataset_type, p.key.n_epoch, p.key.pass_no, p.n_rows) for p in found)


def test_epochs_are_told_apart_and_evaluations_belong_to_them(attached: Any) -> None:
    model = pcd.FakeTemplate(pcd.FakeCenterHead())
    train_data, test_data = loader(5), loader(3, 10)
    recording = attached(model, train_data, test_data, replay_train=True)
    train(model, 2, train_data)
    evaluate(model, test_data)
    evaluate(model, test_data)
    recording.epoch = 0
    evaluate(model, test_data)
    recording.finish()
    found = passes()
    assert [key[:2] + key[3:] for key in found if key[0] == "train"] == [("train", 0, 5), ("train", 1, 5)]
    assert [key for key in found if key[0] == "val"] == [("val", 0, 0, 3), ("val", 1, 0, 3), ("val", 1, 1, 3)]
    samples = load("FakeTemplate", "v1", "samples", "train", 1).to_pandas().set_index("input_id")
    assert samples.n_truths.to_dict() == {f"{i:06d}": i + 1 for i in range(5)}
    assert set(samples["mode"]) == {"eval"}
    truths = load("FakeTemplate", "v1", "truths", "val", 1).to_pandas()
    assert truths[(truths.input_id == "000012") & (truths.pass_no == 1)].label.tolist() == [0, 1, 2]
    assert truths.n_points.notna().all()
    info = Store().run_info(RunKey("FakeTemplate", "v1"))
    assert (info["family"], info["layout"], info["class_names"]) == ("CenterPoint", "openpcdet", pcd.CLASSES)
    assert not model.training
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_training_alone_says_once_that_it_gives_losses(
    attached: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = pcd.FakeTemplate(pcd.FakeAnchorHead())
    data = loader(4)
    recording = attached(model, data)
    train(model, 2, data)
    evaluate(model, loader(2, 10))  # a loader it does not know: the end of the script closes the pass
    recording.finish()
    assert passes() == [("val", 1, 0, 2)]
    assert sum("losses only" in record.message for record in caplog.records) == 1


def test_an_evaluation_alone_has_no_epoch(attached: Any) -> None:
    model = pcd.FakeTemplate(pcd.FakeAnchorHead(), roi=True)
    data = loader(3)
    recording = attached(model, None, data, "voxel-rcnn", "v1")
    evaluate(model, data)
    evaluate(model, data)
    recording.finish()
    found = select(Store(), RunKey("voxel-rcnn", "v1"), n_epoch=None, passes="all")
    assert {p.key.n_epoch for p in found} == {None}


class Kitti(Frames):
    """With the infos of KITTI, which say of boxes what the batch does not."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.kitti_infos = [
            {
                "point_cloud": {"lidar_idx": f"{index:06d}"},
                "annos": {
                    "name": np.array([pcd.CLASSES[k % 3] for k in range(index + 1)] + ["DontCare"]),
                    "dimensions": np.array([[4.2, 1.5, 1.7]] * (index + 1) + [[-1.0] * 3]),
                    "difficulty": np.array([*[k % 2 for k in range(index + 1)], -1]),
                    "occluded": np.array([*[2.0] * (index + 1), -1]),
                    "truncated": np.array([*[0.25] * (index + 1), -1]),
                    "bbox": np.array([[0.0, 0, 10 + k, 40] for k in range(index + 2)]),
                },
            }
            for index in range(size)
        ]


def test_what_kittis_infos_say_of_true_boxes_is_recorded(attached: Any) -> None:
    model = pcd.FakeTemplate(pcd.FakeCenterHead())
    model.class_names = pcd.CLASSES
    data = DataLoader(Kitti(3), batch_size=2, collate_fn=Frames.collate_batch)
    recording = attached(model, None, data)
    evaluate(model, data)
    recording.finish()
    truths = load("FakeTemplate", "v1", "truths", "val").to_pydict()
    assert truths["difficulty"] == [0, 0, 1, 0, 1, 0]
    assert truths["occlusion"] == [2.0] * 6
    assert truths["truncation"] == [0.25] * 6
    assert [box[2] for box in truths["image_box"]] == [10, 10, 11, 10, 11, 12]
