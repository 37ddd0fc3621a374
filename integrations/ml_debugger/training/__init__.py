"""Tracers for training loops written by hand, and the dataset wrapper that gives samples their ids."""

from ml_debugger import _service  # noqa: F401 - wires the upload
from mld_core.tracing.base import TrainingTracer
from mld_core.tracing.classification import ClassificationTracer
from mld_core.tracing.detection3d import ObjectDetection3DTracer
from mld_core.tracing.identity import WithInputId
from mld_core.tracing.object_detection import ObjectDetectionTracer

__all__ = [
    "ClassificationTracer",
    "ObjectDetection3DTracer",
    "ObjectDetectionTracer",
    "TrainingTracer",
    "WithInputId",
]
