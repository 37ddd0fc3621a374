"""mAP of a recorded run of Keras' detectors against KerasCV's own metric on what the models predict.

Real models with random weights; the true boxes are some of their own predictions, moved about. KerasHub brings
no metric of detection: theirs is KerasCV's too, which is pycocotools.
Runs in .venv-keras (`.ci/keras-env` builds it) and is skipped elsewhere.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pytest

pytest.importorskip("keras_cv", reason="KerasCV is not installed: run this in .venv-keras")
pytest.importorskip("pycocotools", reason="pycocotools is not installed: run this in .venv-keras")

import keras_cv
from keras_parts import FORMATS, detector, images_of

from ml_debugger.evaluator import Evaluator
from ml_debugger.keras import MLDebuggerCallback

IMAGES = 8
HUB = ("hub", "dfine")
"""KerasHub's."""


def low(name: str) -> Any:
    """What lets the boxes of an untrained model through, more than a figure counts: all of a class."""
    layers = sys.modules["keras_hub"].layers if name in HUB else keras_cv.layers
    return layers.NonMaxSuppression(
        bounding_box_format=FORMATS[name],
        from_logits=name != "yolo",
        iou_threshold=0.5,
        confidence_threshold=0.001,
        max_detections=60,
    )


def moved(answer: dict[str, np.ndarray], rng: Any) -> dict[str, np.ndarray]:
    """Some of a model's own boxes, moved about and of a class that is now and then another; -1 fills up."""
    boxes, classes = np.full((IMAGES, 4, 4), -1, "float32"), np.full((IMAGES, 4), -1, "float32")
    for image in range(IMAGES):
        sides = answer["sides"][image]
        rows = np.flatnonzero(sides > 4)[::3][:4]
        shift = rng.normal(0, 0.06, (len(rows), 4)) * sides[rows, None]
        boxes[image, : len(rows)] = answer["boxes"][image][rows] + shift
        other = rng.random(len(rows)) < 0.2
        classes[image, : len(rows)] = np.where(other, 0, answer["classes"][image][rows])
    return {"boxes": boxes, "classes": classes}


def predicted(model: Any, images: np.ndarray, box_format: str) -> dict[str, np.ndarray]:
    """`model.predict`, by KerasCV's names."""
    found = {name: np.asarray(value) for name, value in model.predict(images, verbose=0).items()}
    if "labels" in found:  # KerasHub
        found["classes"] = found.pop("labels")
    size = found["boxes"][..., 2:] - (0 if box_format == "xywh" else found["boxes"][..., :2])
    count = np.arange(size.shape[1]) < found["num_detections"][:, None]
    return {**found, "sides": np.where(count, size.min(-1), 0)}


@pytest.mark.parametrize("name", FORMATS)
def test_map_is_that_of_keras_cvs_own_metric(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    model, images = detector(name), images_of(IMAGES)
    monkeypatch.setattr(model, "prediction_decoder" if name in HUB else "_prediction_decoder", low(name))
    model.make_predict_function(force=True)
    answer = predicted(model, images, FORMATS[name])
    true = moved(answer, np.random.default_rng(0))
    metric = keras_cv.metrics.BoxCOCOMetrics(FORMATS[name], evaluate_freq=10)
    metric.update_state(true, {key: answer[key] for key in ("boxes", "classes", "confidence")})
    theirs = {key: float(value) for key, value in metric.result(force=True).items()}

    batches = [{"images": images, "bounding_boxes": true, "image_id": np.arange(IMAGES)}]
    callback = MLDebuggerCallback("net", "v1", data={"val": batches})
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_end(0)
    callback.on_train_end()
    model.make_predict_function(force=True)  # with its own decoder again
    result = Evaluator("net", "v1").request_evaluation(options={"progress": False})
    ours = result.metrics_summary(full=True).iloc[0]
    print(f"| {name} | {theirs['MaP']:.4f} | {ours['auprc']:.4f} |")
    assert 0.02 < theirs["MaP"] < 0.9
    names = {"auprc": "MaP", "map_50": "MaP@[IoU=50]", "map_75": "MaP@[IoU=75]"}
    names["ar_100"] = "Recall@[max_detections=100]"
    for own, other in names.items():
        assert ours[own] == pytest.approx(theirs[other], abs=1e-4), (own, theirs)
