"""3D detection tracers: called by hand, one batch of frames at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mld_core.adapters.detection3d.families import Detector3D
from mld_core.tracing.batch.modalities import modalities
from mld_core.tracing.batch.truths import as_frames, find_truth
from mld_core.tracing.capture.detectors import has_detector, point_range
from mld_core.tracing.capture.holding import Holder
from mld_core.tracing.guard import ConfigurationProblem
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.tracers.arguments import Detection3DArguments, TracerArguments
from mld_core.tracing.tracers.base import TrainingTracer
from mld_core.tracing.tracers.detection_tracer import (
    DetectionTorchTracer,
    DetectionTrainingTracer,
    tracer_class,
)


class ObjectDetection3DTorchTracer(DetectionTorchTracer):
    """What 3D detection tracers of PyTorch models have in common."""

    task: ClassVar[str] = "detection3d"

    @arguments_of(Detection3DArguments)
    def __init__(self, given: Detection3DArguments) -> None:
        self._begin(given)

    @staticmethod
    def detect(model: Any) -> bool:
        """Whether an adapter of a 3D family knows the model."""
        return has_detector(model, "detection3d")


class ObjectDetection3DTrainingTorchTracer(
    DetectionTrainingTracer, TrainingTracer, ObjectDetection3DTorchTracer
):
    """Records a 3D detector's final boxes, logits, features and the true boxes, in one's own loop.

    `model_input` of a call: a cloud (N, 4+), a list or a tensor (B, N, 4+) of them,
    `{"points", "img"?, "img_metas"?}`, or the framework's own batch (then its true boxes are read where
    `ground_truth` is None). Ground truth: a list of `{"boxes_3d", "labels_3d", "velocities"?}`, a dict of
    such lists, or the framework's own form.

    Every frame is run once, in the order given: detectors with a memory stay right. Detectors that take one
    frame at a time (MIT BEVFusion, StreamPETR, BEVFormer) get the clouds of a list one by one.
    """

    _native_truth: Any = None

    def _begin(self, given: TracerArguments) -> None:
        super()._begin(given)
        if not self._reads_output():
            point_range(self.adapter, self.options.pc_range)

    def __call__(
        self,
        model_input: Any,
        ground_truth: Any,
        input_ids: Any,
        dataset_type: str = "train",
        n_epoch: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As of `TrainingTracer`; several clouds for a model of one frame at a time are run one by one.

        Returns:
            The model's own output, untouched; for frames run one by one a list of their outputs, joined.
        """
        clouds = _clouds(model_input)
        one = isinstance(self.adapter, Detector3D) and self.adapter.one_frame
        if not one or clouds is None or len(clouds) < 2:
            return super().__call__(model_input, ground_truth, input_ids, dataset_type, n_epoch, **kwargs)
        truths = ground_truth
        with self.guard.catch("dividing the true boxes among frames", lost="the labels of that batch"):
            truths = as_frames(ground_truth, len(clouds))
        outputs: list[Any] = []
        for i, part in enumerate(_frame_inputs(model_input, len(clouds))):
            truth = _part(truths, i)
            ids = _part(input_ids, i)
            fields = {name: _part(values, i) for name, values in kwargs.items()}
            output = super().__call__(part, truth, ids, dataset_type, n_epoch, **fields)
            outputs += output if isinstance(output, (list, tuple)) else [output]
        return outputs

    def _run_model(self, model_input: Any, ground_truth: Any) -> Any:
        if ground_truth is None:
            # Before the call: a training writes to the targets of its batch.
            with self.guard.catch("reading the true boxes", lost="the labels of that batch"):
                self._native_truth = Holder().keep(find_truth(model_input), own=True)
        arguments = self._arguments(model_input)
        if arguments is None:
            return super()._run_model(model_input, ground_truth)
        args, kwargs = arguments
        with self._limited():
            output = self.model(*args, **kwargs)
            if self._capture is not None:
                self._capture.note(args, output)
        return output

    def _arguments(self, model_input: Any) -> Any:
        """(args, kwargs) of the model's call; None: as any model is called."""
        if not isinstance(self.adapter, Detector3D) or self._reads_output():
            return None
        clouds = _clouds(model_input)
        if clouds is None:
            batch = model_input if isinstance(model_input, Mapping) else None
            return None if batch is None else self.adapter.native(batch, self.model.training)
        if self.model.training:
            raise ConfigurationProblem(
                "bare points were given to a model in training mode, whose losses need the framework's own "
                "batch; give that, or call model.eval() first."
            )
        return self.adapter.arguments(clouds, model_input if isinstance(model_input, Mapping) else {})

    def _parse_and_save_io_data(
        self, model_input: Any, model_output: Any, ground_truth: Any, **kwargs: Any
    ) -> None:
        """As of `DetectionTrainingTracer`; without ground truth that of the framework's own batch counts."""
        if ground_truth is None and isinstance(model_input, Mapping) and _clouds(model_input) is None:
            ground_truth = self._native_truth
        self._native_truth = None
        super()._parse_and_save_io_data(model_input, model_output, ground_truth, **kwargs)

    def _inputs(self, model_input: Any) -> Any:
        return modalities(_clouds(model_input) if isinstance(model_input, Tensor) else model_input)


def _clouds(model_input: Any) -> list[Tensor] | None:
    """The clouds of bare input, one per frame; None where it is a framework's own batch."""
    if isinstance(model_input, Tensor):
        return {2: [model_input], 3: list(model_input)}.get(model_input.ndim)
    if isinstance(model_input, Mapping):
        known = set(model_input) <= {"points", "img", "img_metas"} and "points" in model_input
        # OpenMMLab's own batch has an outer list round the metas, or DataContainers.
        metas = model_input.get("img_metas")
        plain = metas is None or all(isinstance(meta, Mapping) for meta in metas)
        return _clouds(model_input["points"]) if known and plain else None
    if isinstance(model_input, (list, tuple)) and model_input:
        whole = all(isinstance(cloud, Tensor) and cloud.ndim == 2 for cloud in model_input)
        return list(model_input) if whole else None
    return None


def _part(values: Any, i: int) -> Any:
    """What belongs to frame `i`; a single value belongs to every frame."""
    divisible = isinstance(values, (list, tuple)) or getattr(values, "ndim", 0) > 0
    return values[i : i + 1] if divisible else values


def _frame_inputs(model_input: Any, n: int) -> list[Any]:
    """Bare input of `n` frames, frame by frame."""
    if not isinstance(model_input, Mapping):
        return [[cloud] for cloud in model_input]
    return [{key: value[i : i + 1] for key, value in model_input.items()} for i in range(n)]


@arguments_of(Detection3DArguments)
def ObjectDetection3DTracer(given: Detection3DArguments) -> ObjectDetection3DTrainingTorchTracer:  # noqa: N802 - the public name
    """The 3D tracer that knows the model; arguments as of `ObjectDetection3DTrainingTorchTracer`.

    Raises:
        UnknownDetectorError: no tracer and no adapter knows the model; the message says how to add one.
    """
    kind: Any = tracer_class(ObjectDetection3DTrainingTorchTracer, given.model)
    made: ObjectDetection3DTrainingTorchTracer = kind(**vars(given))
    return made
