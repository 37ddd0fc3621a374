"""KerasCV's and KerasHub's detectors with random weights, models exported by TensorFlow, one's own models, the callback.

Runs in .venv-keras (`.ci/keras-env` builds it; there is no PyTorch) and is skipped elsewhere.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pytest

pytest.importorskip("keras_cv", reason="KerasCV is not installed: run this in .venv-keras")

import keras
import tensorflow as tf
from keras_parts import CLASSES, FORMATS, SIDE, detector, images_of

from ml_debugger.keras import MLDebuggerCallback, ObjectDetectionTracer
from ml_debugger.records import load
from ml_debugger.training import ObjectDetectionTracer as FromTraining
from mld_core.adapters.base import ModelCall, Thresholds
from mld_core.adapters.keras.detectors import KerasDetectorAdapter, TensorFlowDetectionAdapter
from mld_core.adapters.outputs import DetectionOutput
from mld_core.adapters.registry import find_adapter
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select


@pytest.fixture
def build() -> Any:
    """One model per family."""
    return detector


def _truth(box_format: str) -> dict[str, np.ndarray]:
    boxes = np.full((2, 2, 4), -1, "float32")
    boxes[0, 0] = {"xyxy": [4, 8, 24, 40], "yxyx": [8, 4, 40, 24], "xywh": [4, 8, 20, 32]}[box_format]
    classes = np.full((2, 2), -1, "float32")
    classes[0, 0] = 3
    return {"boxes": boxes, "classes": classes}


def test_there_is_no_torch_here() -> None:
    assert find_spec("torch") is None
    assert FromTraining is ObjectDetectionTracer


@pytest.mark.parametrize("name", FORMATS)
def test_detections_are_the_models_own(name: str, build: Any) -> None:
    model = build(name)
    adapter = find_adapter(model)
    assert isinstance(adapter, KerasDetectorAdapter)
    assert adapter.n_class() == CLASSES
    images = images_of()
    raw = model(images, training=False)
    own = model.decode_predictions(raw, images)
    decoder = model.prediction_decoder
    parsed = adapter.parse(ModelCall((images,), {}, raw), Thresholds())
    assert parsed is not None
    assert model.prediction_decoder is decoder
    assert parsed.thresholds == adapter.thresholds()
    assert parsed.activation == "sigmoid"
    low = adapter.parse(ModelCall((images,), {}, raw), Thresholds(0.01, 0.5, 20))
    assert low is not None
    assert sum(map(len, low.output.scores)) > 4
    for i in range(len(images)):
        count = int(own["num_detections"][i])
        np.testing.assert_array_equal(parsed.output.scores[i], np.asarray(own["confidence"])[i][:count])
        boxes = np.asarray(own["boxes"])[i][:count]
        if FORMATS[name] == "xywh":
            boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        elif FORMATS[name] == "yxyx":
            boxes = boxes[:, [1, 0, 3, 2]]
        np.testing.assert_allclose(parsed.output.boxes[i], boxes, atol=1e-4)
        rows = low.output.source_index[i]
        assert (rows >= 0).all()
        logits = low.output.logits[i]
        scores = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(scores.max(1), low.output.scores[i], atol=1e-5)
        np.testing.assert_array_equal(logits.argmax(1), low.output.labels[i])
        assert np.isfinite(low.output.features[i]).all()
        assert low.geometry[i].height == SIDE
        assert len(set(rows.tolist())) == len(rows)


@pytest.mark.parametrize("name", FORMATS)
def test_features_are_what_the_class_layer_sees(name: str, build: Any) -> None:
    model = build(name)
    images = images_of()
    parsed = find_adapter(model).parse(
        ModelCall((images,), {}, model(images, training=False)), Thresholds(0.01, 0.5, 20)
    )
    if name == "yolo":
        layers = [model.get_layer(f"yolo_v8_head_{i}_class_3_conv") for i in (1, 2, 3)]
        kernels = [np.asarray(layer.kernel)[0, 0] for layer in layers]
        biases = [np.asarray(layer.bias) for layer in layers]
        cells = np.cumsum([(SIDE // s) ** 2 for s in (8, 16, 32)])
        rows, features = parsed.output.source_index[0], parsed.output.features[0]
        level = np.searchsorted(cells, rows, side="right")
        again = np.stack([f @ kernels[k] + biases[k] for f, k in zip(features, level, strict=True)])
        np.testing.assert_allclose(again, parsed.output.logits[0], atol=1e-2)
    elif name == "dfine":
        queries = np.asarray(model.backbone(images)["last_hidden_state"])
        for of_image, found, rows in zip(
            queries, parsed.output.features, parsed.output.source_index, strict=True
        ):
            np.testing.assert_allclose(of_image[rows], found, atol=1e-4)
    else:
        assert parsed.output.features[0].shape[1] == 256


def test_caps_and_nothing_found(build: Any) -> None:
    model = build("retinanet")
    images = images_of()
    call = ModelCall((images,), {}, model(images, training=False))
    few = find_adapter(model).parse(call, Thresholds(0.0, 0.9, 3))
    assert few.cap_hit == [True, True]
    assert [len(s) for s in few.output.scores] == [3, 3]
    none = find_adapter(model).parse(call, Thresholds(0.999999))
    assert [b.shape for b in none.output.boxes] == [(0, 4)] * 2
    assert none.cap_hit == [False, False]


@pytest.mark.parametrize("name", FORMATS)
def test_true_boxes(name: str, build: Any) -> None:
    model = build(name)
    call = ModelCall((images_of(),), {}, None)
    truth = _truth(FORMATS[name])
    ragged = {
        "boxes": tf.RaggedTensor.from_tensor(truth["boxes"], lengths=[1, 0]),
        "classes": tf.RaggedTensor.from_tensor(truth["classes"], lengths=[1, 0]),
    }
    hub = {"boxes": truth["boxes"], "labels": truth["classes"]}  # as KerasHub names them
    for given in (truth, ragged, hub):
        found = find_adapter(model).truths(call, given)
        np.testing.assert_allclose(found[0].boxes, [[4, 8, 24, 40]])
        assert found[0].labels.tolist() == [3]
        assert len(found[1].labels) == 0


class Detections(tf.Module):
    """What the Object Detection API exports: images of uint8 in, its names out; classes from 1, background first.

    Two boxes in fixed places, scored by the colours of the image.
    """

    PLACES = ((0.1, 0.2, 0.5, 0.6), (0.0, 0.0, 1.0, 1.0))

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8)])
    def __call__(self, images: Any) -> dict[str, Any]:
        colour = tf.reduce_mean(tf.cast(images, tf.float32) / 255, axis=[1, 2])
        logits = tf.stack([colour * [1.0, 8.0, 1.0], colour[:, ::-1]], axis=1)
        table = tf.nn.softmax(logits)
        scores = tf.reduce_max(table[..., 1:], axis=-1)
        order = tf.argsort(scores, direction="DESCENDING")
        places = tf.gather(tf.constant(self.PLACES)[None], order, batch_dims=1)
        classes = tf.gather(tf.argmax(table[..., 1:], axis=-1), order, batch_dims=1) + 1
        return {
            "detection_boxes": places,
            "detection_scores": tf.gather(scores, order, batch_dims=1),
            "detection_classes": tf.cast(classes, tf.float32),
            "detection_multiclass_scores": tf.gather(table, order, batch_dims=1),
            "detection_anchor_indices": tf.cast(order * 4 + 5, tf.float32),
            "num_detections": tf.constant([2.0]),
        }


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Written and read by TensorFlow."""
    folder = str(tmp_path_factory.mktemp("exported") / "saved_model")
    module = Detections()
    tf.saved_model.save(module, folder, signatures=module.__call__)
    return tf.saved_model.load(folder)


def _pictures(count: int) -> Any:
    rng = np.random.default_rng(2)
    return rng.integers(0, 255, (count, 1, 10, 20, 3)) * [0.3, 1, 0.5] // 1


def test_exported_models_of_the_object_detection_api(exported: Any) -> None:
    adapter = find_adapter(exported)
    assert isinstance(adapter, TensorFlowDetectionAdapter)
    assert adapter.n_class() == 2
    images = _pictures(1)[0].astype("uint8")
    answer = {
        name: value.numpy()[0] for name, value in exported(tf.constant(images)).items() if value.ndim > 1
    }
    parsed = adapter.parse(ModelCall((images,), {}, exported(tf.constant(images))), Thresholds(0.2))
    high, wide = 10, 20
    expected = [[x0 * wide, y0 * high, x1 * wide, y1 * high] for y0, x0, y1, x1 in answer["detection_boxes"]]
    np.testing.assert_allclose(parsed.output.boxes[0], expected, rtol=1e-6)
    np.testing.assert_allclose(parsed.output.scores[0], answer["detection_scores"])
    assert parsed.output.labels[0].tolist() == [int(c) - 1 for c in answer["detection_classes"]]
    assert (parsed.activation, parsed.background) == ("softmax", 0)
    np.testing.assert_allclose(
        np.exp(parsed.output.logits[0]), answer["detection_multiclass_scores"], rtol=1e-5
    )
    assert parsed.output.source_index[0].tolist() == answer["detection_anchor_indices"].tolist()
    truth = {
        "groundtruth_boxes": np.array([[[0.1, 0.2, 0.5, 0.6], [0, 0, 0, 0]]]),
        "groundtruth_classes": np.array([[[0, 1], [0, 0]]]),
    }
    found = adapter.truths(ModelCall((images,), {}, None), truth)
    np.testing.assert_allclose(found[0].boxes, [[4, 1, 12, 5]], rtol=1e-6)
    assert found[0].labels.tolist() == [1]


class Centers(tf.Module):
    """What the API exports of CenterNet: no background, no anchors; classes from 1. One place, of any colour."""

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8)])
    def __call__(self, images: Any) -> dict[str, Any]:
        table = tf.reduce_mean(tf.cast(images, tf.float32) / 255, axis=[1, 2])[:, None]
        return {
            "detection_boxes": tf.constant([[[0.1, 0.2, 0.5, 0.6]]]),
            "detection_boxes_strided": tf.constant([[[1.0, 2.0, 5.0, 6.0]]]),
            "detection_scores": tf.reduce_max(table, axis=-1),
            "detection_classes": tf.cast(tf.argmax(table, axis=-1) + 1, tf.float32),
            "detection_multiclass_scores": table,
            "num_detections": tf.constant([1.0]),
        }


def test_an_exported_center_net_has_no_background(tmp_path: Path) -> None:
    module = Centers()
    tf.saved_model.save(module, str(tmp_path), signatures=module.__call__)
    model = tf.saved_model.load(str(tmp_path))
    adapter = find_adapter(model)
    assert adapter.n_class() == 3
    images = np.zeros((1, 10, 20, 3), "uint8")
    images[..., 2] = 4
    answer = model(tf.constant(images))
    parsed = adapter.parse(ModelCall((images,), {}, answer), Thresholds())
    assert parsed.output.labels[0].tolist() == [2]
    # Below any fall-back: what the API's own evaluators see is recorded.
    np.testing.assert_allclose(parsed.output.scores[0], [4 / 255], rtol=1e-6)
    assert (parsed.activation, parsed.background) == ("sigmoid", None)
    np.testing.assert_allclose(1 / (1 + np.exp(-parsed.output.logits[0][0, 2])), 4 / 255, rtol=1e-5)


def test_true_boxes_of_the_object_detection_api_may_be_numbered(exported: Any) -> None:
    images = _pictures(1)[0].astype("uint8")
    truth = {
        "groundtruth_boxes": np.array([[[0.1, 0.2, 0.5, 0.6], [0, 0, 0.5, 0.5], [0, 0, 0, 0]]]),
        "groundtruth_classes": np.array([[2, 1, 0]]),
        "groundtruth_is_crowd": np.array([[0, 1, 0]]),
        "groundtruth_area": np.array([[20.0, 30.0, 0.0]]),
    }
    found = find_adapter(exported).truths(ModelCall((images,), {}, None), truth)
    assert found[0].labels.tolist() == [1, 0]
    assert found[0].columns["crowd"].tolist() == [False, True]
    assert found[0].columns["area"].tolist() == [20, 30]


def test_an_image_without_a_detection_says_nothing_of_the_scores(exported: Any) -> None:
    images = _pictures(1)[0].astype("uint8")
    adapter = find_adapter(exported)
    answer = {name: value.numpy() for name, value in exported(tf.constant(images)).items()}
    table = answer["detection_multiclass_scores"]
    sigmoids = {**answer, "detection_multiclass_scores": np.full_like(table, 0.9)}
    nothing = {**answer, "detection_multiclass_scores": 0 * table, "num_detections": np.zeros(1, "float32")}
    seen = [
        adapter.parse(ModelCall((images,), {}, given), Thresholds()).activation
        for given in (sigmoids, nothing)
    ]
    assert seen == ["sigmoid", "sigmoid"]


def test_an_exported_model_is_recorded_by_hand(
    exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    tracer = FromTraining(exported, "exported", "v1", score_thresh=0.0)
    said = []
    for number, image in enumerate(_pictures(3).astype("uint8")):
        truth = {
            "groundtruth_boxes": np.array([[[0.1, 0.2, 0.5, 0.6]]]),
            "groundtruth_classes": np.array([[[0, 1]]]),
        }
        answer = tracer(tf.constant(image), truth, np.array([number]), "val")
        said += answer["detection_scores"].numpy()[0].tolist()
    tracer.wait_for_save(timeout=30)
    rows, truths = load("exported", "v1", "detections", "val"), load("exported", "v1", "truths", "val")
    np.testing.assert_allclose(rows["score"].to_pylist(), said, rtol=1e-6)
    assert len(set(said)) == 6
    assert truths["label"].to_pylist() == [1, 1, 1]
    np.testing.assert_allclose(truths["box"].to_pylist(), [[4, 1, 12, 5]] * 3, rtol=1e-6)


def test_callback_records_every_epoch(build: Any, tmp_path: Path) -> None:
    model = build("yolo")
    named = [{"images": images_of(), "bounding_boxes": _truth("xyxy"), "image_id": np.array([70, 71])}]
    callback = MLDebuggerCallback(
        "shelf", "v1", data={"val": named}, score_thresh=0.001, max_detections=10, store=tmp_path
    )
    callback.set_model(model)
    callback.on_train_begin()
    for epoch in range(2):
        callback.on_epoch_end(epoch)
    callback.on_train_end()
    store = Store(tmp_path)
    samples = load("shelf", "v1", store=store)
    assert samples.column("n_epoch").to_pylist() == [0, 0, 1, 1]
    assert samples.column("input_id").to_pylist() == ["70", "71"] * 2
    assert samples.column("n_truths").to_pylist() == [1, 0] * 2
    detections = load("shelf", "v1", table="detections", store=store)
    vectors = load("shelf", "v1", table="vectors", store=store)
    assert len(detections) == sum(samples.column("n_detections").to_pylist()) == len(vectors) > 0
    logits = np.array(vectors.column("logits").to_pylist())
    np.testing.assert_array_equal(logits.argmax(1), detections.column("label").to_numpy())
    truths = load("shelf", "v1", table="truths", store=store)
    assert truths.column("box").to_pylist() == [[4, 8, 24, 40]] * 2
    passes = select(store, RunKey("shelf", "v1"), n_epoch=None)
    assert all(item.sealed for item in passes)
    assert passes[0].meta["activation"] == "sigmoid"
    assert store.run_info(RunKey("shelf", "v1"))["n_class"] == CLASSES


def _own_model() -> Any:
    inputs = keras.Input((SIDE, SIDE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, keras.layers.Dense(5 * (4 + 3))(pooled))


def _parse(output: Any, sizes: Any) -> DetectionOutput:
    rows = np.asarray(output).reshape(len(sizes), 5, 7)
    boxes = np.tile(np.array([0, 0, 8, 8], "float32"), (len(sizes), 5, 1))
    probabilities = 1 / (1 + np.exp(-rows[..., 4:]))
    return DetectionOutput(
        boxes=list(boxes),
        scores=list(probabilities.max(-1)),
        labels=list(probabilities.argmax(-1)),
        logits=list(rows[..., 4:]),
    )


def test_fit_of_a_model_of_ones_own(tmp_path: Path) -> None:
    model = _own_model()
    model.compile(optimizer="sgd", loss="mse")
    truth = [{"boxes": [[0, 0, 8, 8]], "labels": [2]}, None]
    callback = MLDebuggerCallback(
        "own", data={"val": [(images_of(), truth)]}, parse_fn=_parse, n_class=3, store=tmp_path
    )
    model.fit(images_of(4), np.zeros((4, 35)), batch_size=2, epochs=2, callbacks=[callback], verbose=0)
    samples = load("own", "v1", store=Store(tmp_path))
    assert samples.column("n_epoch").to_pylist() == [0, 0, 1, 1]
    assert samples.column("global_step").to_pylist() == [2, 2, 4, 4]
    assert samples.column("labelled").to_pylist() == [True, False] * 2
    assert samples.column("id_source").to_pylist() == ["content_hash"] * 4
    assert len(set(samples.column("input_id").to_pylist())) == 2
    assert load("own", "v1", table="vectors", store=Store(tmp_path)).num_rows == 20


def test_a_model_of_ones_own_by_hand(tmp_path: Path) -> None:
    model = _own_model()
    tracer = ObjectDetectionTracer(model, "own", "v1", n_class=3, parse_fn=_parse, store=tmp_path)
    truth = [{"boxes": [[0, 0, 8, 8]], "labels": [2]}, {"boxes": np.zeros((0, 4)), "labels": []}]
    raw = tracer(images_of(), truth, ["a", "b"], "val", 0)
    assert raw.shape == (2, 35)
    tracer.wait_for_save(0, timeout=30)
    samples = load("own", "v1", store=Store(tmp_path))
    assert samples.column("input_id").to_pylist() == ["a", "b"]
    assert samples.column("n_detections").to_pylist() == [5, 5]
    assert samples.column("input_hash").null_count == 0
    assert tracer.export(tmp_path / "out.zip").exists()
    with pytest.raises(KeyError):
        tracer.get_hooked_features("backbone")


def test_tracer_reads_kerascv_by_hand(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    tracer = FromTraining(build("yolo"), "hand", "v1", score_thresh=0.001)
    raw = tracer(images_of(), _truth("xyxy"), np.array([5, 6]), "test")
    assert set(raw) == {"boxes", "classes"}
    assert tracer.get_hooked_features("features")[0].ndim == 2
    tracer.wait_for_save(timeout=30)
    samples = load("hand", "v1")
    assert samples.column("input_id").to_pylist() == ["5", "6"]
    assert samples.column("n_truths").to_pylist() == [1, 0]


def test_a_problem_never_reaches_the_training(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(optimizer="sgd", loss="mse")
    callback = MLDebuggerCallback("odd", "v1", data={"val": [object()]}, store=tmp_path)
    model.fit(np.zeros((4, 4)), np.zeros((4, 2)), epochs=1, callbacks=[callback], verbose=0)
    assert callback.recorder.guard.problems
