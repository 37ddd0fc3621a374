"""Tracers for training loops written by hand, and the dataset wrapper that gives samples their ids.

Without PyTorch there is the tracer of Keras models only.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ml_debugger import _service  # noqa: F401 - wires the upload

if TYPE_CHECKING or find_spec("torch") is not None:
    from mld_core.tracing.batch.identity import WithInputId
    from mld_core.tracing.tracers.base import TrainingTracer
    from mld_core.tracing.tracers.classification import ClassificationTracer
    from mld_core.tracing.tracers.detection3d import ObjectDetection3DTracer
    from mld_core.tracing.tracers.object_detection import ObjectDetectionTracer

    __all__ = [
        "ClassificationTracer",
        "ObjectDetection3DTracer",
        "ObjectDetectionTracer",
        "TrainingTracer",
        "WithInputId",
    ]
else:
    from mld_core.tracing.tracers.keras_object_detection import (
        ObjectDetectionTrainingKerasTracer as ObjectDetectionTracer,
    )

    __all__ = ["ObjectDetectionTracer"]
