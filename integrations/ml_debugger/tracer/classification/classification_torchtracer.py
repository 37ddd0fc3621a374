"""What classification tracers of PyTorch models have in common."""

from mld_core.tracing.tracers.classification import ClassificationTorchTracer

__all__ = ["ClassificationTorchTracer"]
