"""2D detection tracer of Keras and TensorFlow models: called by hand, one batch at a time; no PyTorch."""

from __future__ import annotations

import atexit
import weakref
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from mld_core.adapters.keras.detectors import KerasDetectorAdapter, TensorFlowDetectionAdapter
from mld_core.adapters.registry import type_names
from mld_core.records.store.export import export_run
from mld_core.tracing.guard import disabled
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.tracers.arguments import DetectionArguments
from mld_core.tracing.tracers.keras_tracer import KerasRecorder, ParseFn

_PACKAGES: Final = ("keras.", "keras_cv.", "keras_hub.", "tf_keras.", "tensorflow.")


def is_keras(model: Any) -> bool:
    """Whether a model is Keras' or TensorFlow's, by its classes' modules and its parts.

    >>> is_keras(object())
    False
    """
    if KerasDetectorAdapter.detect(model) or TensorFlowDetectionAdapter.detect(model):
        return True
    return any(module.startswith(_PACKAGES) for module, _ in type_names(model))


def _finish(reference: weakref.ref[KerasRecorder]) -> None:
    recorder = reference()
    if recorder is not None:
        recorder.finish()


@dataclass(frozen=True)
class KerasArguments(DetectionArguments):
    """What the Keras tracer takes beside what every 2D one takes (`DetectionArguments`).

    Args:
        parse_fn: for models of one's own (see `ml_debugger.keras`).
        store: folder of the records.
    """

    _: KW_ONLY
    parse_fn: ParseFn | None = None
    store: Any = None


class ObjectDetectionTrainingKerasTracer:
    """Records a Keras or TensorFlow detector, called by hand with the images and `training=False`."""

    @arguments_of(KerasArguments)
    def __init__(self, given: KerasArguments) -> None:
        self.recorder = KerasRecorder(task="detection", **given.for_recorder())
        atexit.register(_finish, weakref.ref(self.recorder))
        self.model = given.model
        # An exported function takes the images alone.
        alone = TensorFlowDetectionAdapter.detect(given.model) and not hasattr(given.model, "call")
        self._mode = {} if alone else {"training": False}
        self.recorder.start(given.model)

    def __call__(
        self,
        model_input: Any,
        ground_truth: Any,
        input_ids: Any,
        dataset_type: str = "train",
        n_epoch: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the model in inference mode on images (B, H, W, C), records, returns its raw output."""
        output = self.model(model_input, **self._mode)
        recorder = self.recorder
        with recorder.guard.catch("beginning a pass", lost="the records of that pass"):
            if not recorder.is_open(dataset_type) or recorder.open_epoch(dataset_type) != n_epoch:
                recorder.begin_pass(dataset_type, n_epoch)
        recorder.record(dataset_type, model_input, output, truth=ground_truth, ids=input_ids, user=kwargs)
        return output

    def get_hooked_features(self, layer_name: str) -> Any:
        """The features of the latest call's detections, per image (N, D).

        Raises:
            KeyError: another name than "features", or none were found.
        """
        if layer_name != "features" or self.recorder.last_features is None:
            raise KeyError(f"{layer_name!r}: Keras models have the alias 'features', after a call")
        return self.recorder.last_features

    def wait_for_save(self, n_epoch: int | None = None, *, timeout: float | None = None) -> None:
        """Seals that epoch's passes (None: every pass) and waits until they are on disk, and uploaded.

        Raises:
            ValueError, TimeoutError, RuntimeError: see `KerasRecorder.wait_for_save`.
        """
        self.recorder.wait_for_save(n_epoch, timeout)

    def export(self, output_path: Any = None, n_epoch: int | None = None) -> Any:
        """A ZIP of what was recorded; its path, None where recording is disabled."""
        if disabled():
            return None
        store, run = self.recorder.store_and_run()
        return export_run(store, run, output_path, n_epoch)
