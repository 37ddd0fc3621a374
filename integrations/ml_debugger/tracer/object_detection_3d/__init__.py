"""Bases of the 3D detection tracers."""
