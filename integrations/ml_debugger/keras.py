"""Keras, without PyTorch: `MLDebuggerCallback` for `model.fit`, `ObjectDetectionTracer` for one's own loops.

    model.fit(train, epochs=10, callbacks=[MLDebuggerCallback("shelf", data={"val": val_dataset})])

A Keras callback sees neither inputs nor outputs, so after each epoch the callback runs the model over the
data sets given to it, in inference mode, and records every final detection with its class logits. They yield
batches (images, truth), (images, truth, ids), or dicts with "images", "bounding_boxes" and, if there are any,
"image_id". KerasCV's, KerasHub's and TensorFlow Object Detection API models are read as they are; for another
model give `parse_fn(output, image_sizes)` that returns a `DetectionOutput`, and `n_class`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

try:
    import keras
except ImportError as error:
    raise ImportError("ml_debugger.keras needs Keras 3: pip install 'ml-debugger[keras]'") from error

from ml_debugger import _service  # noqa: F401 - wires the upload
from mld_core.adapters.outputs import DetectionOutput
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.run.options import RecorderOptions
from mld_core.tracing.tracers.keras_object_detection import (
    ObjectDetectionTrainingKerasTracer as ObjectDetectionTracer,
)
from mld_core.tracing.tracers.keras_tracer import KerasRecorder, ParseFn

__all__ = ["DetectionOutput", "MLDebuggerCallback", "ObjectDetectionTracer"]


@dataclass(frozen=True)
class _Data:
    _: KW_ONLY
    data: Mapping[str, Any]
    parse_fn: ParseFn | None = None
    max_batches: int | None = None


@dataclass(frozen=True)
class CallbackArguments(RecorderOptions, _Data):
    """The arguments of the callback."""

    task: str | None = field(default="detection", init=False)


class MLDebuggerCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Records a detector over the given data sets after each epoch.

    Args:
        model_name: None: the class name of the model.
        version_name: None: the next free `v<k>`.
        data: split -> data set: anything that yields batches anew each time it is iterated.
        parse_fn: for models of one's own (see the module).
        max_batches: most batches of a data set that are recorded each epoch, None: all.
        ...: as of every wrapper (docs/usage.md).
    """

    @arguments_of(CallbackArguments)
    def __init__(self, given: CallbackArguments) -> None:
        super().__init__()
        self.data = dict(given.data)
        self.max_batches = given.max_batches
        self.recorder = KerasRecorder(**given.less("data", "max_batches"))
        self.seconds = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the store."""
        self.recorder.start(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Runs the model over the data sets."""
        started = time.perf_counter()
        for split in self.data:
            if self.recorder.options.records_split(split) and self.recorder.options.records_epoch(epoch):
                self.run_split(split, epoch)
        self.seconds += time.perf_counter() - started

    def on_train_end(self, logs: Any = None) -> None:
        """Flushes and closes."""
        self.recorder.finish()

    def run_split(self, split: str, n_epoch: int | None) -> None:
        """One pass over one of the data sets; also callable by hand after the training of an epoch."""
        recorder = self.recorder
        if not recorder.enabled:
            return
        with recorder.guard.catch(f"running the model over {split!r}", lost="that pass") as caught:
            recorder.begin_pass(split, n_epoch)
            for number, batch in enumerate(self.data[split]):
                if self.max_batches is not None and number >= self.max_batches:
                    break
                self._record(split, batch)
            recorder.end_pass(split)
        if caught.failed:
            recorder.abort_pass(split, "the walk over the data failed")

    def _record(self, split: str, batch: Any) -> None:
        options = self.recorder.options
        images, truth, ids = unpack(batch)
        if options.input_fn is not None:
            images = options.input_fn(batch)
        if options.label_fn is not None:
            truth = options.label_fn(batch)
        source, optimizer = "image_id", getattr(self.model, "optimizer", None)
        if options.id_fn is not None:
            ids, source = options.id_fn(batch), "id_fn"
        self.recorder.record(
            split,
            images,
            self.recorder.model(images, training=False),
            truth=truth,
            ids=ids,
            id_source=source,
            user=options.fields_fn(batch) if options.fields_fn is not None else None,
            # int() refuses a variable of Keras 3.0 to 3.3.
            global_step=None if optimizer is None else int(keras.ops.convert_to_numpy(optimizer.iterations)),
        )


def unpack(batch: Any) -> tuple[Any, Any, Any]:
    """Images, truth and ids of a batch: (x, y), (x, y, ids), or KerasCV's dict.

    >>> unpack(("x", "y"))
    ('x', 'y', None)
    """
    if isinstance(batch, Mapping):
        truth = batch.get("bounding_boxes", batch.get("labels"))
        return batch["images"], truth, batch.get("image_id", batch.get("input_id"))
    if isinstance(batch, (tuple, list)):
        images, truth, ids = [*batch, None, None][:3]
        return images, truth, ids
    return batch, None, None
