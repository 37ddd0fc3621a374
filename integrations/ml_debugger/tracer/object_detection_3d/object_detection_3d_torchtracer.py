"""What 3D detection tracers of PyTorch models have in common."""

from mld_core.tracing.tracers.detection3d import ObjectDetection3DTorchTracer

__all__ = ["ObjectDetection3DTorchTracer"]
