"""Tracers for training loops written by hand."""

from mld_core.tracing.base import TrainingTracer
from mld_core.tracing.classification import ClassificationTracer

__all__ = ["ClassificationTracer", "TrainingTracer"]
