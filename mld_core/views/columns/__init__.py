"""Whole columns of a pass: as bytes, and as points of a map."""
