"""What 2D detection tracers of PyTorch models have in common."""

from mld_core.tracing.tracers.object_detection import ObjectDetectionTorchTracer

__all__ = ["ObjectDetectionTorchTracer"]
