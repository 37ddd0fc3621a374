"""The 3D detection tracer for PyTorch training loops."""

from mld_core.tracing.tracers.detection3d import ObjectDetection3DTrainingTorchTracer

__all__ = ["ObjectDetection3DTrainingTorchTracer"]
