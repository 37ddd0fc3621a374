"""The 2D detection tracer for PyTorch training loops."""

from mld_core.tracing.tracers.object_detection import ObjectDetectionTrainingTorchTracer

__all__ = ["ObjectDetectionTrainingTorchTracer"]
