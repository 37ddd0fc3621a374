"""The kernels behind `iou` and `nms`: one file per engine (numpy, torch, numba) and what they share.

Nothing outside `mld_core.geometry` imports from here. Open `arrays` first, then `axis` (axis-aligned boxes)
and `rotated` (clipping of rotated ones).
"""
