"""Tracers for training loops written by hand, and the dataset wrapper that gives samples their ids."""

from mld_core.tracing.base import TrainingTracer
from mld_core.tracing.classification import ClassificationTracer
from mld_core.tracing.identity import WithInputId

__all__ = ["ClassificationTracer", "TrainingTracer", "WithInputId"]
