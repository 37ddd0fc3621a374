"""Points of a frame from the reader's files: where they lie, what a file holds, and what of it is sent.

Begin with `points.py`, which the routes ask; `formats.py` reads files and asks nothing of anybody.
"""
