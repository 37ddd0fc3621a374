"""The Keras tracer around a model of plain NumPy: passes, waiting, errors; no Keras is needed for that."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mld_core.adapters.outputs import DetectionOutput
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import load, select
from mld_core.tracing.batch.hashing import input_hash_of, to_hex
from mld_core.tracing.tracers.keras_object_detection import ObjectDetectionTrainingKerasTracer
from mld_core.tracing.tracers.keras_tracer import KerasRecorder


def model(images: Any, training: bool = False) -> Any:
    """One box per image, of class 1 of 2."""
    return np.asarray(images).mean((1, 2, 3))


def parse(output: Any, sizes: Any) -> DetectionOutput:
    n = len(sizes)
    return DetectionOutput([[[0, 0, 4, 4]]] * n, [[0.9]] * n, [[1]] * n, logits=[[[-1.0, 2.0]]] * n)


def made(root: Path, **options: Any) -> ObjectDetectionTrainingKerasTracer:
    given = {"n_class": 2, "parse_fn": parse, "store": root, **options}
    return ObjectDetectionTrainingKerasTracer(model, "net", "v", **given)


def images(n: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 8, 8, 3), np.float32)


def sealed(root: Path) -> list[tuple[str, int | None, bool]]:
    found = select(Store(root), RunKey("net", "v"), n_epoch=None, passes="all")
    return sorted((s.key.dataset_type, s.key.n_epoch, s.sealed) for s in found)


def test_waiting_without_an_epoch_seals_every_pass(tmp_path: Path) -> None:
    tracer = made(tmp_path)
    tracer(images(), None, ["a", "b"], "train", 0)
    tracer(images(), None, ["a", "b"], "val", 0)
    tracer.wait_for_save(timeout=30)
    assert sealed(tmp_path) == [("train", 0, True), ("val", 0, True)]


def test_waiting_for_an_epoch_never_traced(tmp_path: Path) -> None:
    tracer = made(tmp_path)
    tracer(images(), None, ["a", "b"], "val", 3)
    with pytest.raises(ValueError, match=r"epoch 4 was never traced; traced epochs: \[3\]"):
        tracer.wait_for_save(4)


def test_what_is_open_at_the_end_stays_partial(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracer = made(tmp_path)
    tracer(images(), None, ["a", "b"], "val", 0)
    tracer.recorder.finish()
    assert sealed(tmp_path) == [("val", 0, False)]
    assert any("unsealed passes (val)" in record.message for record in caplog.records)


def test_images_of_another_form_never_reach_the_caller(tmp_path: Path) -> None:
    tracer = made(tmp_path)
    output = tracer(images().tolist(), None, ["a", "b"], "val", 0)
    assert output.shape == (2,)
    assert tracer.recorder.guard.problems == {"recording a batch": 1}


def test_options_without_effect_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path, target_layers={"a": "b"})
    assert any("target_layers have no effect" in record.message for record in caplog.records)


def test_a_second_training_is_a_run_of_its_own(tmp_path: Path) -> None:
    recorder = KerasRecorder(
        parse_fn=parse, model_name="net", n_class=2, store=str(tmp_path), task="detection"
    )
    for _ in range(2):
        recorder.start(model)
        recorder.begin_pass("val", 0)
        recorder.record("val", images(), model(images()), ids=["a", "b"])
        recorder.end_pass("val")
        recorder.finish()
    for version in ("v1", "v2"):
        (one,) = select(Store(tmp_path), RunKey("net", version), n_epoch=None, passes="all")
        assert (one.key.pass_no, one.sealed) == (0, True)
        assert Store(tmp_path).run_info(RunKey("net", version))["activation"] == "sigmoid"


def test_nothing_keeps_a_tracer_alive(tmp_path: Path) -> None:
    tracer = made(tmp_path)
    reference = weakref.ref(tracer.recorder)
    tracer.recorder.finish()
    del tracer
    gc.collect()
    assert reference() is None


def test_labels_of_no_class_are_flagged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracer = made(tmp_path)
    truth = [{"boxes": [[0, 0, 4, 4]] * 2, "labels": [1, 2]}, {"boxes": [[0, 0, 4, 4]], "labels": [0]}]
    tracer(images(), truth, ["a", "b"], "val", 0)
    tracer.wait_for_save(0)
    assert load("net", "v", "truths", store=Store(tmp_path))["ignore"].to_pylist() == [False, True, False]
    assert any("labels of no class" in record.message for record in caplog.records)


def test_the_input_hash_is_that_of_the_same_bytes_in_pytorch(tmp_path: Path) -> None:
    tracer = made(tmp_path)
    batch = images(3)
    tracer(batch, None, None, "val", 0)
    tracer.wait_for_save(0)
    samples = load("net", "v", store=Store(tmp_path))
    expected = to_hex(input_hash_of(torch.from_numpy(batch), 3))
    assert samples["input_hash"].to_pylist() == expected == samples["input_id"].to_pylist()
