"""Target layers of detectors: which cell of which map belongs to which box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_openpcdet as pcd
import numpy as np
import pytest
import torch
from fake_parts3d import HEIGHT, RANGE, WIDTH, clouds
from torch import Tensor, nn

from ml_debugger.records import load
from ml_debugger.tracer import Detection3DOutput
from ml_debugger.training import ObjectDetection3DTracer, TrainingTracer
from ml_debugger.training.object_detection.object_detection_torchtracer import (
    ObjectDetectionTrainingTorchTracer,
)
from ml_debugger.training.object_detection_3d.object_detection_3d_torchtracer import (
    ObjectDetection3DTrainingTorchTracer,
)
from mld_core.tracing.tables.layers import Ground, layer_features

GROUND = Ground((RANGE[0], RANGE[1]), (RANGE[3], RANGE[4]))


def boxes(*centres: tuple[float, float]) -> Detection3DOutput:
    rows = np.array([[x, y, 0, 2, 4, 1.5, 0] for x, y in centres], np.float32)
    return Detection3DOutput(
        boxes=[rows], scores=[np.ones(len(rows), np.float32)], labels=[np.zeros(len(rows), np.int64)]
    )


def places() -> Tensor:
    """(1, 2, HEIGHT, WIDTH): of each cell its row and its column."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([rows, columns])[None].float()


def test_a_birds_eye_map_is_read_under_the_centre_of_each_box() -> None:
    found = boxes((-4.9, -3.9), (4.9, -3.9), (0.1, 3.9), (99.0, -99.0))  # the last outside: the nearest cell
    rows = layer_features(places(), found, [None], GROUND)
    assert rows is not None
    assert rows.tolist() == [[0, 0], [0, WIDTH - 1], [HEIGHT - 1, WIDTH // 2], [0, WIDTH - 1]]


def test_a_map_with_x_first_is_read_with_x_first() -> None:
    turned = Ground(GROUND.low, GROUND.high, turned=True)
    rows = layer_features(places().transpose(2, 3), boxes((4.9, -3.9)), [None], turned)
    assert rows is not None
    assert rows.tolist() == [[0, WIDTH - 1]]


@pytest.mark.parametrize("ground", [None, GROUND])
def test_a_map_of_other_proportions_is_no_birds_eye_map(ground: Ground | None) -> None:
    picture = torch.zeros(1, 2, 20, 60)
    assert layer_features(picture, boxes((0, 0)), [None], ground) is None


class Neck(nn.Module):
    """Writes its map into the batch and returns the batch, as OpenPCDet's modules do."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        for name in self.names:
            batch[name] = places().repeat(batch["batch_size"], 1, 1, 1)
        return batch


class Template(pcd.FakeTemplate):
    def __init__(self, neck: Neck) -> None:
        super().__init__(pcd.FakeCenterHead())
        self.neck = neck

    def forward(self, batch: dict[str, Any]) -> Any:
        return super().forward(self.neck(batch))


def test_a_module_that_returns_the_batch_gives_the_map_that_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    torch.manual_seed(0)
    tracer = ObjectDetection3DTracer(
        Template(Neck("spatial_features")).eval(), "net", "v", target_layers={"bev": "neck"}
    )
    tracer(pcd.batch_of(clouds(2)), None, ["a", "b"], "val", 0)
    assert tracer.get_hooked_features("bev").shape == (2, 2, HEIGHT, WIDTH)
    tracer.wait_for_save(0)
    table = load("net", "v", "detections").to_pandas()
    vectors = load("net", "v", "vectors").to_pandas()
    assert len(table) == len(vectors) > 0
    rows = np.stack(vectors.bev.to_numpy()).astype(np.float32)
    x, y = np.stack(table.box.to_numpy())[:, :2].T
    columns = np.clip(np.floor(x - RANGE[0]), 0, WIDTH - 1)
    lines = np.clip(np.floor(y - RANGE[1]), 0, HEIGHT - 1)
    np.testing.assert_array_equal(rows, np.stack([lines, columns], 1))


def test_two_maps_of_one_module_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    torch.manual_seed(0)
    tracer = ObjectDetection3DTracer(
        Template(Neck("low", "high")).eval(), "net", "v", target_layers={"bev": "neck"}
    )
    tracer(pcd.batch_of(clouds(2)), None, ["a", "b"], "val", 0)
    tracer.wait_for_save(0)
    (told,) = [r.message for r in caplog.records if "target_layers" in r.message]
    assert "'bev' (it writes high, low)" in told
    assert "10 x 8 m along x and y, maps (y, x)" in told


def test_the_training_tracer_is_a_direct_base() -> None:
    for kind in (ObjectDetectionTrainingTorchTracer, ObjectDetection3DTrainingTorchTracer):
        assert TrainingTracer in kind.__bases__
