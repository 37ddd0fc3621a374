"""What a traced call returns is what is recorded, with and without each threshold, for every 2D family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml_debugger.records import load

pytest.importorskip("torchvision")

THRESHOLDS: list[dict[str, Any]] = [
    {},
    {"score_thresh": 0.4},
    {"iou_thresh": 0.3},
    {"max_detections_per_image": 5},
    {"score_thresh": 0.2, "iou_thresh": 0.6, "max_detections_per_image": 20},
]


def torchvision_model(name: str) -> Any:
    from torchvision.models import detection

    torch.manual_seed(0)
    makers = {
        "rcnn": lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=4,
            min_size=96,
            max_size=128,
            box_score_thresh=0.1,
        ),
        "retinanet": lambda: detection.retinanet_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=128, score_thresh=0.005
        ),
        "fcos": lambda: detection.fcos_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=128, score_thresh=0.05
        ),
        "ssd": lambda: detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4, score_thresh=0.2
        ),
    }
    return makers[name]().eval()


def ultralytics_model(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("YOLO_OFFLINE", "True")
    ultralytics = pytest.importorskip("ultralytics", reason="a test dependency: see the Makefile")
    torch.manual_seed(0)
    model = (ultralytics.RTDETR if name.startswith("rtdetr") else ultralytics.YOLO)(name)
    head = model.model.model[-1]
    with torch.no_grad():  # every score is there, and boxes overlap
        for layer in getattr(head, "dec_score_head", ()):
            layer.bias.uniform_(-1.5, 1.5)
        for layer in getattr(head, "dec_bbox_head", ()):
            layer.layers[-1].bias[2:] = 1.0  # large
        for branches in ("cv3", "one2one_cv3"):
            for branch in getattr(head, branches, None) or ():
                branch[-1].weight.normal_(std=2.0)
                branch[-1].bias.uniform_(-2.0, 0.5)
    return model


@pytest.fixture(params=["rcnn", "retinanet", "fcos", "ssd", "yolov8n.yaml", "yolov10n.yaml", "rtdetr-l.yaml"])
def model(request: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    name = request.param
    return ultralytics_model(name, monkeypatch) if name.endswith(".yaml") else torchvision_model(name)


def returned(output: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes and scores of each image."""
    if isinstance(output[0], dict):
        return [(one["boxes"].detach().numpy(), one["scores"].detach().numpy()) for one in output]
    return [(one.boxes.xyxy.numpy(), one.boxes.conf.numpy()) for one in output]


@pytest.mark.slow
def test_what_a_traced_call_returns_is_what_is_recorded(model: Any) -> None:
    from ml_debugger.training import ObjectDetectionTracer

    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    counts = []
    for number, limits in enumerate(THRESHOLDS):
        tracer = ObjectDetectionTracer(model, "net", f"v{number}", **limits)
        with torch.no_grad():
            inputs = images if not hasattr(model, "predictor") else images[:, :, :96, :96]
            output = tracer(
                inputs if hasattr(model, "predictor") else list(inputs), None, ["a", "b"], "val", 0
            )
        tracer.wait_for_save(0)
        own = returned(output)
        samples = load("net", f"v{number}").to_pandas()
        found = load("net", f"v{number}", "detections").to_pandas()
        assert samples.n_detections.tolist() == [len(scores) for _, scores in own], limits
        np.testing.assert_array_equal(found.score, np.concatenate([scores for _, scores in own]))
        boxes = np.stack(list(found.box)) if len(found) else np.zeros((0, 4))
        np.testing.assert_allclose(boxes, np.concatenate([box for box, _ in own]), atol=1e-4)
        counts.append(len(found))
    assert counts[0] > 10, "the thresholds have something to cut"
