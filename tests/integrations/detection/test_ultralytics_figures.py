"""Ultralytics' own figures are ours: what its validator's metric sees is what is recorded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ml_debugger.records import load
from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.coco import CocoState, coco_metrics, match_coco

np_options = np.get_printoptions()
ultralytics = pytest.importorskip("ultralytics", reason="a test dependency: see the Makefile")
cv2 = pytest.importorskip("cv2")
compute_ap = pytest.importorskip("ultralytics.utils.metrics").compute_ap
np.set_printoptions(**np_options)  # the package sets its own, and doctests of ours come after
torch.set_printoptions(profile="default")

QUIET = {
    "device": "cpu",
    "plots": False,
    "verbose": False,
    "workers": 0,
    "exist_ok": True,
    "imgsz": 64,
    "rect": False,
}
IMAGES = 6


def table(family: str, **which: Any) -> pd.DataFrame:
    return load("net", "v", family, **which).to_pandas()


def spread(net: Any) -> None:
    """Random weights whose scores spread over (0, 1) and differ between images and from one another."""
    head = net.model[-1]
    with torch.no_grad():
        for branch in head.cv3:
            branch[-1].weight.normal_(std=0.005)
            branch[-1].bias.fill_(-1.0)
        for branch in head.cv2:  # short distances: boxes that lie in the image
            branch[-1].weight.normal_(std=0.005)
            branch[-1].bias.copy_(-0.8 * torch.arange(16).repeat(4))
        for module in net.train().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        net(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    net.eval()


def label(task: str, box: Any) -> list[float]:
    """A true box as the task's label files have it: with an outline, or with keypoints."""
    x, y, w, h = box.tolist()
    if task == "segment":
        left, right, top, bottom = x - w / 2, x + w / 2, y - h / 2, y + h / 2
        return [left, top, right, top, right, bottom, left, bottom]
    return [x, y, w, h, *([x, y, 2.0] * 17 if task == "pose" else [])]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model, and a data set whose true boxes are some of its own predictions: its mAP is neither 0 nor 1."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("YOLO_OFFLINE", "true")

    def run(name: str, kind: str = "YOLO") -> tuple[Any, Path]:
        torch.manual_seed(0)
        model = getattr(ultralytics, kind)(name)
        config = {**model.model.yaml, "nc": 3}
        model.model = type(model.model)(config, verbose=False)
        model.model.args = {"conf": None, "iou": 0.7, "max_det": 300, "task": model.task}
        model.model.names = {0: "a", 1: "b", 2: "c"}
        if kind == "YOLO":
            spread(model.model)
        for split in ("train", "val"):
            for folder in ("images", "labels"):
                (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
            for index in range(IMAGES):
                picture = np.random.default_rng(index).integers(0, 255, (64, 64, 3), np.uint8)
                cv2.imwrite(str(tmp_path / "images" / split / f"{index}.png"), picture)
        found = ultralytics.YOLO.predict if kind == "YOLO" else ultralytics.RTDETR.predict
        for index in range(IMAGES):
            path = tmp_path / "images" / "val" / f"{index}.png"
            (result,) = found(model, str(path), conf=0.0, save=False, **QUIET)
            inside = ((result.boxes.xyxy > 0.5) & (result.boxes.xyxy < 63.5)).all(1)
            picked = result.boxes[inside][::2] if kind == "YOLO" else result.boxes[:4]
            rows = [
                f"{int(c)} " + " ".join(f"{v:.5f}" for v in label(model.task, box))
                for c, box in zip(picked.cls, picked.xywhn, strict=True)
            ]
            for split in ("train", "val"):
                (tmp_path / "labels" / split / f"{index}.txt").write_text("\n".join(rows))
        model.predictor = None
        data = tmp_path / "data.yaml"
        data.write_text(
            f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: [a, b, c]\nkpt_shape: [17, 3]\n"
        )
        return model, data

    return run


def seen_by_the_metric(model: Any) -> list[dict[str, Any]]:
    """Fills with what the validator's metric is given, image by image."""
    seen: list[dict[str, Any]] = []

    def watch(validator: Any) -> None:
        inner = validator.update_metrics

        def update(preds: Any, batch: Any) -> Any:
            seen.extend({key: value.clone() for key, value in pred.items()} for pred in preds)
            return inner(preds, batch)

        validator.update_metrics = update

    model.add_callback("on_val_start", watch)
    return seen


def our_map(n_class: int = 3) -> tuple[float, list[float]]:
    """mAP of what is recorded as COCO takes it, and the least and the most that it can be as Ultralytics does."""
    found, true = table("detections").sort_values("unit"), table("truths").sort_values("unit")

    def boxes(frame: pd.DataFrame) -> Any:
        return np.stack(list(frame.box)).astype(np.float64)

    off = np.zeros(len(true), bool)
    predictions = Predictions(
        found.unit.to_numpy(), found.label.to_numpy(), found.score.to_numpy(), boxes(found)
    )
    truths = Truths(true.unit.to_numpy(), true.label.to_numpy(), boxes(true), off, off)
    state = match_coco(predictions, truths, n_class)
    figure = coco_metrics(state).summary()["map"]
    assert figure is not None
    assert max(found.groupby(["unit", "label"]).size()) <= 100, "COCO counts no more of an image and class"
    return figure, [interpolated(state, n_class, ties) for ties in (1, -1)]


def interpolated(state: CocoState, n_class: int, ties: int) -> float:
    """Mean over classes and thresholds of the area under precision, straight between recalls.

    Args:
        state: Our pairs of boxes.
        n_class: Number of classes.
        ties: Of equal scores, whose order Ultralytics leaves to its sorting: 1 = the wrong ones first, -1 = last.
    """
    precisions = []
    for label in range(n_class):
        own = np.flatnonzero(state.label == label)
        for threshold in range(10):
            right = ((state.right[own] >> np.uint64(4 * threshold)) & np.uint64(1)).astype(int)
            order = np.lexsort((ties * right, -state.score[own]))
            hits = np.cumsum(right[order])
            recall, precision = hits / state.truths[label, 0], hits / np.arange(1, len(own) + 1)
            precisions.append(compute_ap(recall, precision)[0])
    return float(np.mean(precisions))


def check_recorded(seen: list[dict[str, Any]]) -> None:
    """Box by box, score by score what the metric was given, each with the logits that make its score."""
    samples, found = table("samples"), table("detections")
    assert samples.n_detections.tolist() == [len(pred["conf"]) for pred in seen]
    assert found.score.tolist() == torch.cat([pred["conf"] for pred in seen]).tolist()
    assert found.label.tolist() == torch.cat([pred["cls"] for pred in seen]).int().tolist()
    np.testing.assert_array_equal(np.stack(list(found.box)), torch.cat([pred["bboxes"] for pred in seen]))
    logits = torch.tensor(np.stack(list(table("vectors").logits)), dtype=torch.float32)
    scores = logits.sigmoid()[torch.arange(len(found)), torch.tensor(found.label.to_numpy())]
    np.testing.assert_allclose(found.score, scores, rtol=2e-3)  # logits are stored as float16


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("YOLO", "yolov8n.yaml"),
        ("YOLO", "yolov8n-seg.yaml"),
        ("YOLO", "yolov8n-pose.yaml"),
        ("RTDETR", "rtdetr-l.yaml"),
    ],
)
def test_val_by_hand_records_what_its_metric_sees(
    store: Path, made: Any, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    from ml_debugger.ultralytics import attach

    model, data = made(name, kind)
    attach(model, "net", "v")
    seen = seen_by_the_metric(model)
    metrics = model.val(data=str(data), batch=2, conf=0.01 if kind == "YOLO" else None, **QUIET)
    check_recorded(seen)
    samples = table("samples")
    # The same on another machine; where it lies on this one stands beside it.
    assert samples.input_id.tolist() == [f"images/val/{i}.png" for i in range(IMAGES)]
    assert [str(data.parent / name) for name in samples.input_id] == samples.media_path.tolist()
    assert set(samples.dataset_type) == {"val"}
    assert samples.n_epoch.isna().all()
    assert set(samples.score_thresh) == {np.float32(0.01 if kind == "YOLO" else 0.001)}
    assert set(samples.max_detections) == {300}
    if kind == "YOLO":
        assert 0.02 < metrics.box.map < 0.98, len(table("truths"))
        # The pairs are the same. Ultralytics interpolates precision at 101 recalls, COCO takes the next one
        # reached; equal scores stand in any order.
        ours, (least, most) = our_map()
        assert least - 1e-6 <= metrics.box.map <= most + 1e-6
        assert most - least < 0.001
        assert ours == pytest.approx(metrics.box.map, abs=0.002)
    left_out = {"seg": "masks", "pose": "keypoints"}.get(name.removesuffix(".yaml").split("-")[-1])
    assert ("nothing is recorded" in caplog.text) == (left_out is not None)
    assert left_out is None or f"this model's {left_out}" in caplog.text


def test_a_validation_within_a_training_records_what_its_metric_sees(
    store: Path, made: Any, tmp_path: Path
) -> None:
    from ml_debugger.ultralytics import attach

    model, data = made("yolov8n.yaml")
    attach(model, "net", "v", splits=["val"])
    model.add_callback("on_pretrain_routine_end", lambda trainer: setattr(trainer, "read_results_csv", dict))
    seen = seen_by_the_metric(model)
    model.train(
        data=str(data), epochs=1, batch=2, amp=False, mosaic=0.0, project=str(tmp_path), name="t", **QUIET
    )
    check_recorded(seen[:IMAGES])  # behind them are those of the best weights
    samples = table("samples")
    assert set(samples.score_thresh) == {np.float32(0.001)}
    assert samples.n_epoch.tolist() == [0] * IMAGES
    assert samples.affine.notna().all()


def test_what_is_recorded_on_moved_data_pairs_with_what_was_before(
    store: Path, made: Any, tmp_path: Path
) -> None:
    from ml_debugger.evaluator import Evaluator
    from ml_debugger.ultralytics import attach

    model, data = made("yolov8n.yaml")
    results = []
    for version, place in (("here", tmp_path), ("there", tmp_path / "other" / "disk")):
        if place != tmp_path:
            place.mkdir(parents=True)
            for folder in ("images", "labels"):
                shutil.move(tmp_path / folder, place / folder)
            data.write_text(data.read_text().replace(f"path: {tmp_path}", f"path: {place}"))
        attach(model, "net", version)
        model.val(data=str(data), batch=2, conf=0.01, **QUIET)
        options = {"progress": False, "repeats": 1}
        results.append(Evaluator("net", version).request_evaluation(options=options))
    pairs = results[0].compare(results[1]).units.iloc[0]
    assert pairs.n_paired > IMAGES
    assert not pairs[["n_only_a", "n_only_b", "n_fixed", "n_regressed"]].any()


def test_the_users_threshold_wins_and_is_recorded(store: Path, made: Any) -> None:
    from ml_debugger.ultralytics import attach

    model, data = made("yolov8n.yaml")
    attach(model, "net", "v", score_thresh=0.3, max_detections=4)
    model.val(data=str(data), batch=2, **QUIET)
    samples, found = table("samples"), table("detections")
    assert found.score.min() >= 0.3
    assert samples.n_detections.max() == 4
    assert set(samples.score_thresh) == {np.float32(0.3)}
    assert set(samples.max_detections) == {4}
    assert samples.cap_hit.any()


def test_predict_by_hand_is_one_pass_of_what_it_answers(store: Path, made: Any, tmp_path: Path) -> None:
    from ml_debugger import ultralytics as wrapper

    model, data = made("yolov8n.yaml")
    wrapper.attach(model, "net", "v")
    files = [str(tmp_path / "images" / "val" / f"{index}.png") for index in range(3)]
    answers = [result for file in files for result in model.predict(file, save=False, **QUIET)]
    picture = cv2.imread(files[0])
    answers += model.predict(picture, save=False, **QUIET)
    model.val(data=str(data), batch=2, **QUIET)  # ends the pass
    samples, found = table("samples", dataset_type="predict"), table("detections", dataset_type="predict")
    assert samples.input_id.tolist()[:3] == files
    assert samples.n_detections.tolist() == [len(answer.boxes) for answer in answers]
    assert set(samples.pass_no) == {0}
    assert set(samples.score_thresh) == {np.float32(0.25)}
    assert not samples.labelled.any()
    boxes = torch.cat([answer.boxes.xyxy for answer in answers])
    np.testing.assert_array_equal(np.stack(list(found.box)), boxes)
    assert len(table("samples", dataset_type="val")) == IMAGES
