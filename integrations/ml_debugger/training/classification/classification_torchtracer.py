"""The classification tracer for PyTorch training loops."""

from mld_core.tracing.tracers.classification import ClassificationTrainingTorchTracer

__all__ = ["ClassificationTrainingTorchTracer"]
