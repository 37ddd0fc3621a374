"""Bases of the classification tracers."""
