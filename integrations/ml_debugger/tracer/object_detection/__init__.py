"""Bases of the 2D detection tracers."""
