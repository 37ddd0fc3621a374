"""What the hand-called tracers of detectors have in common, in 2D and 3D."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mld_core.adapters.base import Adapter, Thresholds
from mld_core.adapters.outputs import Detection3DOutput, DetectionOutput
from mld_core.adapters.registry import UnknownDetectorError, families
from mld_core.tracing.batch.truths import as_frames, count_frames, find_images
from mld_core.tracing.capture.detectors import DetectorCapture, find_detector, has_detector
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.run.detection import DetectionSession, image_sizes
from mld_core.tracing.tracers.arguments import DetectionArguments, DetectorArguments, TracerArguments
from mld_core.tracing.tracers.base import TorchTracer, TrainingTracer

Output = DetectionOutput | Detection3DOutput


class DetectionTorchTracer(TorchTracer):
    """A detector under observation.

    A family of your own: subclass the task's tracer and define `detect(model)` (a static method) and
    `_parse_model_output(model_output, img_sizes)`; `_get_n_class`, `_register_model_hooks` and
    `_apply_nms_config` where the defaults do not fit. Once defined, the factory finds the subclass.

    Attributes:
        task: "detection" or "detection3d".
        adapter: of the detector; None where the subclass reads the model's output itself.
    """

    task: ClassVar[str] = "detection"

    @arguments_of(DetectionArguments)
    def __init__(self, given: DetectionArguments) -> None:
        self._begin(given)

    def _begin(self, given: TracerArguments) -> None:
        self.adapter = self._find_adapter(given.model)
        assert isinstance(given, DetectorArguments)
        if given.n_class is None:
            given = replace(given, n_class=self._get_n_class(given.model))
        super()._begin(given)
        self.recorder.kind = DetectionSession
        if self._capture is None and not self.recorder.disabled:  # a subclass that sets hooks of its own
            self._capture = DetectorCapture(self.adapter, self.options.target_layers, model=self.model)

    @classmethod
    def _reads_output(cls) -> bool:
        """Whether a subclass reads the model's output itself."""
        return cls._parse_model_output is not DetectionTorchTracer._parse_model_output

    @classmethod
    def _claims(cls) -> bool:
        """Whether a subclass of the user's says which models it is for."""
        return not cls.detect.__module__.startswith(__package__)

    @classmethod
    def _sets_thresholds(cls) -> bool:
        """Whether a subclass sets the thresholds on the model itself."""
        return cls._apply_nms_config is not DetectionTorchTracer._apply_nms_config

    def _find_adapter(self, model: Any) -> Adapter | None:
        if not has_detector(model, self.task):
            if self._reads_output():
                return None
            if self._claims():
                raise TypeError(
                    f"{type(self).__name__} claims the model with detect(), but no family knows how to read "
                    f"{type(model).__name__}: define _parse_model_output too (docs/usage.md, own detectors)."
                )
        return find_detector(model, self.task)

    # -- for subclasses --------------------------------------------------------------------------------------

    @staticmethod
    def detect(model: Any) -> bool:
        """Whether this tracer is for `model`; what the factory asks, subclasses defined last first."""
        return has_detector(model)

    def _get_n_class(self, model: Any) -> int | None:  # noqa: ARG002 - a subclass looks at it
        """The number of foreground classes, None if the model does not tell."""
        try:
            return None if self.adapter is None else self.adapter.n_class()
        except ValueError:
            return None

    def _register_model_hooks(self, model: Any) -> None:
        """Sets the hooks at once: a compiled model takes none after its first run."""
        self._capture = DetectorCapture(self.adapter, self.options.target_layers, model=model)

    def _parse_model_output(
        self,
        model_output: Any,  # noqa: ARG002 - a subclass reads it
        img_sizes: Sequence[tuple[int, int]] | None = None,  # noqa: ARG002 - a subclass may need them
    ) -> Output:
        """The final detections of the call just made, as the model's family reads them.

        Args:
            model_output: what the model returned.
            img_sizes: (height, width) of each image, None in 3D or where the input does not tell.

        Returns:
            One entry per image or frame in each list. A subclass's own is filtered by the thresholds.

        Raises:
            ValueError: the call made no detections (losses only).
        """
        held = None if self._capture is None else self._capture.take()
        parsed = None
        if self.adapter is not None and held is not None:
            session = self.recorder.session
            assert isinstance(session, DetectionSession)
            with torch.no_grad():
                parsed = self.adapter.parse(held.call, session.limits_of(held.call))
        if parsed is None:
            raise ValueError(
                "the call made no detections: the model was not called, or it returned losses only"
            )
        return parsed.output

    def _apply_nms_config(self, model: Any, nms_config: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Sets thresholds on the model for one call; a subclass whose model has its own attributes does that.

        Args:
            model: the model.
            nms_config: those of "score_thresh", "iou_thresh" and "max_detections" that were given.

        Returns:
            What was set before, under the same keys: it is applied again after the call. None: nothing is.
        """
        del model, nms_config
        return None

    def _keep_features(self, captured: Any) -> None:
        """The target layers' outputs of the latest call, as the layers gave them."""
        if not isinstance(captured, DetectorCapture):
            return
        self._features = {}
        held = captured.take()
        for alias, output in ({} if held is None else held.layers).items():
            parts = output if isinstance(output, (tuple, list)) else [output]
            tensor = next((part for part in parts if isinstance(part, Tensor)), None)
            if tensor is not None:
                self._features[alias] = tensor.detach()


class DetectionTrainingTracer(TrainingTracer, DetectionTorchTracer):
    """A detector under observation, called by hand."""

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """Within it the model works with the thresholds that were given; afterwards with its own again."""
        options = self.options
        given = {
            "score_thresh": options.score_thresh,
            "iou_thresh": options.iou_thresh,
            "max_detections": options.max_detections,
        }
        config = {name: value for name, value in given.items() if value is not None}
        stack = contextlib.ExitStack()
        if config:
            with self.guard.catch("applying the thresholds", lost="nothing; detections are filtered later"):
                if self._sets_thresholds():
                    before = self._apply_nms_config(self.model, config)
                    if before is not None:
                        stack.callback(self._apply_nms_config, self.model, before)
                elif self.adapter is not None:
                    limits = Thresholds(options.score_thresh, options.iou_thresh, options.max_detections)
                    stack.enter_context(self.adapter.applied(limits))
        try:
            yield
        finally:
            with self.guard.catch("restoring the thresholds", lost="nothing; the model keeps those given"):
                stack.close()

    def _run_model(self, model_input: Any, ground_truth: Any) -> Any:
        with self._limited():
            if self.model.training and ground_truth is not None and _wants_targets(self.model):
                n = count_frames(None, ground_truth, model_input)
                return self.model(model_input, as_frames(ground_truth, n or 0))
            output = super()._run_model(model_input, ground_truth)
            if self._capture is not None:  # here, as long as the model says which limits it worked with
                self._capture.note((model_input,), output)
        return output

    def _inputs(self, model_input: Any) -> Any:
        return find_images(model_input) if isinstance(model_input, Mapping) else model_input

    def _parse_and_save_io_data(
        self, model_input: Any, model_output: Any, ground_truth: Any, **kwargs: Any
    ) -> None:
        """Records one batch; what a fully custom tracer overrides (`save_batch` takes a `DetectionOutput`).

        Args:
            model_input: as given to the call.
            model_output: the model's output.
            ground_truth: as given to the call.
            **kwargs: input_ids, dataset_type, n_epoch, and the values of additional fields.
        """
        input_ids, dataset_type, n_epoch = (kwargs.pop(k) for k in ("input_ids", "dataset_type", "n_epoch"))
        outputs = None
        if self._reads_output():
            # Now, on this thread: what the subclass's own hooks kept is gone with the next call.
            with torch.no_grad():
                outputs = self._parse(model_output, model_input)
        self.save_batch(model_input, outputs, ground_truth, input_ids, dataset_type, n_epoch, kwargs)

    def _parse(self, model_output: Any, model_input: Any) -> Output:
        parameters = inspect.signature(self._parse_model_output).parameters
        if len(parameters) < 2:  # the 3D form
            return self._parse_model_output(model_output)
        return self._parse_model_output(model_output, image_sizes(self._inputs(model_input)))


def _wants_targets(model: nn.Module) -> bool:
    """Whether the model's training forward takes the targets beside the images (torchvision's do)."""
    return "targets" in inspect.signature(getattr(model, "_orig_mod", model).forward).parameters


def tracer_class(base: type[DetectionTrainingTracer], model: Any) -> type[DetectionTrainingTracer]:
    """The tracer for a model: subclasses with a `detect` of their own, those defined last first, then `base`.

    Raises:
        UnknownDetectorError: none of them is for it; the message says how to add one.
    """
    below = [kind for kind in _below(base) if kind.detect is not base.detect]
    kinds: list[type[DetectionTrainingTracer]] = [*below, base]
    for kind in kinds:
        if kind.detect(model):
            return kind
    names = ", ".join(family.family for family in families(base.task)) or "none"
    own = ", ".join(kind.__name__ for kind in below)
    shown = f"{type(model).__module__}.{type(model).__qualname__}"
    raise UnknownDetectorError(
        f"{shown} is not a detector of a known family. Asked: {names}{'; tracers: ' + own if own else ''}. "
        f"Subclass {base.__name__} with detect(model) and _parse_model_output(...), or register an "
        "mld_core.adapters.base.Adapter with mld_core.adapters.registry.register."
    )


def _below(base: type[Any]) -> list[Any]:
    """Every subclass, those defined last first."""
    found: list[Any] = []
    for kind in base.__subclasses__():
        found = [*_below(kind), kind, *found]
    return found
