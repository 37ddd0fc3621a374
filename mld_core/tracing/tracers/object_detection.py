"""2D detection tracers: called by hand, one batch at a time."""

from __future__ import annotations

from typing import Any, ClassVar

from mld_core.tracing.capture.detectors import has_detector
from mld_core.tracing.run.arguments import arguments_of
from mld_core.tracing.tracers.arguments import DetectionArguments
from mld_core.tracing.tracers.base import TrainingTracer
from mld_core.tracing.tracers.detection_tracer import (
    DetectionTorchTracer,
    DetectionTrainingTracer,
    tracer_class,
)
from mld_core.tracing.tracers.keras_object_detection import ObjectDetectionTrainingKerasTracer, is_keras


class ObjectDetectionTorchTracer(DetectionTorchTracer):
    """What 2D detection tracers of PyTorch models have in common."""

    task: ClassVar[str] = "detection"

    @staticmethod
    def detect(model: Any) -> bool:
        """Whether an adapter of a 2D family knows the model."""
        return has_detector(model, "detection")


class ObjectDetectionTrainingTorchTracer(DetectionTrainingTracer, TrainingTracer, ObjectDetectionTorchTracer):
    """Records a detector's final boxes, logits, features and the true boxes, in one's own loop.

    `model` is the detector, or a module that holds exactly one.

    Raises:
        UnknownDetectorError: no family knows the model. ConfigurationProblem: a wrong option, or several
            detectors in the model.
    """


@arguments_of(DetectionArguments)
def ObjectDetectionTracer(  # noqa: N802 - the public name of the factory
    given: DetectionArguments,
) -> ObjectDetectionTrainingTorchTracer | ObjectDetectionTrainingKerasTracer:
    """The 2D tracer that knows the model; arguments as of `ObjectDetectionTrainingTorchTracer`.

    Keras and TensorFlow models get an `ObjectDetectionTrainingKerasTracer`.

    Raises:
        UnknownDetectorError: no tracer and no adapter knows the model; the message says how to add one.
    """
    if is_keras(given.model):
        return ObjectDetectionTrainingKerasTracer(**vars(given))
    kind: Any = tracer_class(ObjectDetectionTrainingTorchTracer, given.model)
    made: ObjectDetectionTrainingTorchTracer = kind(**vars(given))
    return made
