"""Bases of all tracers, and the containers an adapter returns."""

from mld_core.adapters.outputs import Detection3DOutput, DetectionOutput

__all__ = ["Detection3DOutput", "DetectionOutput"]
