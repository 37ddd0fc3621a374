"""Ultralytics' rotated boxes (OBB): recorded as its validator's metric sees them, evaluated by rotated overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shapely.geometry import Polygon

from ml_debugger.evaluator import Evaluator
from ml_debugger.records import load
from ml_debugger.training import ObjectDetectionTracer
from mld_core.evaluation.metrics.boxes import Predictions, Truths, image_pairs

ultralytics = pytest.importorskip("ultralytics", reason="a test dependency: see the Makefile")
cv2 = pytest.importorskip("cv2")

QUIET = {"imgsz": 64, "device": "cpu", "workers": 0, "plots": False, "verbose": False}
IMAGES = 4


def corners(box: Any) -> Any:
    """(4, 2) of one box cx, cy, w, h and the angle of w."""
    cx, cy, w, h, angle = (float(value) for value in box)
    along = np.array([np.cos(angle), np.sin(angle)]) * w / 2
    across = np.array([-np.sin(angle), np.cos(angle)]) * h / 2
    offsets = np.stack([along + across, along - across, -along - across, -along + across])
    return offsets + np.array([cx, cy])


def test_overlaps_are_those_of_the_turned_rectangles() -> None:
    rng = np.random.default_rng(0)

    def some(count: int) -> Any:
        return np.column_stack(
            [rng.uniform(20, 44, (count, 2)), rng.uniform(4, 40, (count, 2)), rng.uniform(-1, 3, count)]
        )

    left, right = some(12), some(9)
    around = [np.stack([np.r_[corners(b).min(0), corners(b).max(0)] for b in part]) for part in (left, right)]
    zero = [np.zeros(len(part), np.int64) for part in (left, right)]
    off = np.zeros(len(right), np.bool_)
    found = Predictions(zero[0], zero[0], np.zeros(len(left)), around[0], left)
    pairs = image_pairs(found, zero[0], Truths(zero[1], zero[1], around[1], off, off, right), zero[1], 0.0)
    shapes = [[Polygon(corners(box)) for box in part] for part in (left, right)]
    expected = np.array([[a.intersection(b).area / a.union(b).area for b in shapes[1]] for a in shapes[0]])
    made = np.zeros_like(expected)
    made[pairs.left, pairs.right] = pairs.value
    np.testing.assert_allclose(made, expected, atol=1e-9)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A network with random weights, and images whose true boxes are every other one of those it predicts."""
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    torch.manual_seed(0)
    model = ultralytics.YOLO("yolov8n-obb.yaml")
    model.model = type(model.model)({**model.model.yaml, "nc": 2}, verbose=False)
    model.model.args = {"conf": None, "iou": 0.7, "max_det": 300, "task": "obb"}
    model.model.names = {0: "a", 1: "b"}
    head = model.model.model[-1]
    with torch.no_grad():
        for branch in (*head.cv3, *head.cv4):
            branch[-1].weight.normal_(std=0.02)
        for branch in head.cv3:
            branch[-1].bias.fill_(-1.0)
        for branch in head.cv2:
            branch[-1].weight.normal_(std=0.005)
            branch[-1].bias.copy_(-0.8 * torch.arange(16).repeat(4))
        for module in model.model.train().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model.model(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    model.model.eval()
    for folder in ("images", "labels"):
        (tmp_path / folder / "val").mkdir(parents=True)
    for index in range(IMAGES):
        picture = np.random.default_rng(index).integers(0, 255, (64, 64, 3), np.uint8)
        path = tmp_path / "images" / "val" / f"{index}.png"
        cv2.imwrite(str(path), picture)
        (result,) = model.predict(str(path), conf=0.01, save=False, **QUIET)
        found = [(int(c), corners(b) / 64) for c, b in zip(result.obb.cls, result.obb.xywhr, strict=True)]
        inside = [(c, box) for c, box in found if box.min() > 0 and box.max() < 1][:12:2]
        lines = [f"{c} " + " ".join(f"{v:.6f}" for v in box.ravel()) for c, box in inside]
        (tmp_path / "labels" / "val" / f"{index}.txt").write_text("\n".join(lines))
    model.predictor = None
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {tmp_path}\ntrain: images/val\nval: images/val\nnames: [a, b]\n")
    return model, data


def by_their_overlap(validator: Any) -> float:
    """mAP of what is recorded, paired and interpolated by the library."""
    from ultralytics.utils.metrics import ap_per_class, batch_probiou

    tables = [load("net", "v", family, "val").to_pandas() for family in ("detections", "truths")]
    hits = []
    for unit in sorted(set(tables[0]["unit"])):
        found, true = (table[table["unit"] == unit] for table in tables)
        overlap = batch_probiou(*(torch.tensor(np.stack(part["rotated"])) for part in (true, found)))
        classes = (torch.tensor(part["label"].to_numpy()) for part in (found, true))
        hits.append(validator.match_predictions(*classes, overlap).numpy())
    columns = tables[0]["score"].to_numpy(), tables[0]["label"].to_numpy(), tables[1]["label"].to_numpy()
    return float(ap_per_class(np.concatenate(hits), *columns)[5].mean())


def test_a_validation_is_recorded_as_its_metric_sees_it(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    from ml_debugger.ultralytics import attach

    model, data = made
    attach(model, "net", "v")
    seen: list[Any] = []
    validators: list[Any] = []

    def watch(validator: Any) -> None:
        validators.append(validator)
        inner = validator.update_metrics

        def update(preds: Any, batch: Any) -> Any:
            seen.extend({key: value.clone() for key, value in pred.items()} for pred in preds)
            return inner(preds, batch)

        validator.update_metrics = update

    model.add_callback("on_val_start", watch)
    metrics = model.val(data=str(data), batch=2, conf=0.01, rect=False, **QUIET)

    found, true = load("net", "v", "detections", "val"), load("net", "v", "truths", "val").to_pydict()
    expected = torch.cat([pred["bboxes"] for pred in seen]).numpy()
    np.testing.assert_array_equal(np.stack(found["rotated"].to_pylist()).astype(np.float32), expected)
    assert found["score"].to_pylist() == torch.cat([pred["conf"] for pred in seen]).tolist()
    np.testing.assert_allclose(
        np.stack(found["box"].to_pylist()),
        [np.r_[corners(box).min(0), corners(box).max(0)] for box in expected],
        atol=1e-3,
    )
    assert len(true["rotated"]) > IMAGES
    result = Evaluator("net", "v").request_evaluation(n_epoch=None, options={"progress": False})
    ours = result.metrics_summary(full=True).iloc[0]
    # Theirs goes by the overlap of two Gaussians (ProbIoU), ours by that of the rectangles.
    assert 0 < ours["auprc"] < 1
    assert ours["auprc"] == pytest.approx(metrics.box.map, abs=0.002)
    assert by_their_overlap(validators[0]) == pytest.approx(metrics.box.map, abs=1e-6)
    assert ours["map_50"] == pytest.approx(metrics.box.map50, abs=0.05)
    assert "nothing of it is recorded" not in caplog.text


def test_what_predict_answers_is_recorded(made: Any, tmp_path: Path) -> None:
    from ml_debugger.ultralytics import attach

    model, data = made
    attach(model, "net", "v")
    results = model.predict(str(tmp_path / "images" / "val"), conf=0.01, save=False, **QUIET)
    model.val(data=str(data), **QUIET)  # ends the pass
    found = load("net", "v", "detections", "predict")
    expected = torch.cat([result.obb.xywhr for result in results]).numpy()
    np.testing.assert_allclose(np.stack(found["rotated"].to_pylist()), expected, atol=1e-5)


def test_a_call_of_the_network_is_recorded_as_the_library_would_suppress_it(made: Any) -> None:
    from ultralytics.utils.nms import non_max_suppression

    model, _ = made
    net = model.model.eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    tracer = ObjectDetectionTracer(
        net, "bare", "v", score_thresh=0.01, iou_thresh=0.3, max_detections_per_image=90
    )
    with torch.no_grad():
        output = tracer(images, None, ["a", "b"], "val", 0)
    tracer.wait_for_save(0)
    rows, anchors = non_max_suppression(
        output[0].clone(), 0.01, 0.3, max_det=90, nc=2, rotated=True, return_idxs=True
    )
    found = load("bare", "v", "detections", "val").to_pandas()
    logits = np.stack(load("bare", "v", "vectors", "val").to_pandas()["logits"])
    expected = torch.cat(rows)
    assert found["input_id"].value_counts().to_dict() == {n: len(r) for n, r in zip("ab", rows, strict=True)}
    assert 20 < len(found) < output[0].shape[-1]
    np.testing.assert_allclose(np.stack(found["rotated"]), expected[:, [0, 1, 2, 3, 6]], atol=1e-5)
    np.testing.assert_allclose(found["score"], expected[:, 4], atol=1e-7)
    assert found["label"].tolist() == expected[:, 5].int().tolist()
    assert found["source_index"].tolist() == torch.cat(anchors).tolist()
    own = 1 / (1 + np.exp(-logits[np.arange(len(found)), found["label"]].astype(float)))
    np.testing.assert_allclose(own, found["score"], atol=2e-3)


def test_a_training_is_recorded_with_the_boxes_that_its_own_validation_would_show(
    made: Any, tmp_path: Path
) -> None:
    """In training the head decodes nothing: here its distances and angles are, to what it decodes in evaluation."""
    from mld_core.adapters.registry import find_adapter

    model, _ = made
    net = model.model.eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    head = net.model[-1]
    adapter = find_adapter(net)
    with torch.no_grad():
        decoded, raw = net(images)
    both = [adapter._read(one, head) for one in ((decoded, raw), raw)]
    for image in range(2):
        np.testing.assert_allclose(both[1].rotated(image), both[0].rotated(image), atol=2e-4)
        np.testing.assert_allclose(both[1].scores(image), both[0].scores(image), atol=1e-6)


def test_both_splits_of_a_training_hold_rotated_boxes(made: Any, tmp_path: Path) -> None:
    from ml_debugger.ultralytics import attach

    model, data = made
    attach(model, "net", "v", score_thresh=0.0, max_detections=30)
    options = {
        **QUIET,
        "amp": False,
        "mosaic": 0.0,
        "epochs": 1,
        "batch": 2,
        "warmup_epochs": 0,
        "conf": 1e-5,
    }
    model.train(data=str(data), project=str(tmp_path), name="run", exist_ok=True, pretrained=False, **options)
    for split in ("train", "val"):
        found, true = (load("net", "v", family, split) for family in ("detections", "truths"))
        assert len(found) > 0, split
        turned = np.stack(found["rotated"].to_pylist())
        boxes = np.stack([np.r_[corners(box).min(0), corners(box).max(0)] for box in turned])
        np.testing.assert_allclose(np.stack(found["box"].to_pylist()), boxes, atol=1e-3)
        assert np.abs(turned[:, 4]).max() > 0.01
        assert true["rotated"].null_count == 0, split
