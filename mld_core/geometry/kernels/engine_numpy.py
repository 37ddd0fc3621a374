"""The numpy engine: pairwise and aligned quantities in bounded memory, structure of arrays."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from mld_core.geometry.kernels.arrays import AXIS_MODES, FloatArray, Mode
from mld_core.geometry.kernels.axis import box_aligned, box_pairwise
from mld_core.geometry.kernels.circles import Circles, circle_test, row_and_column
from mld_core.geometry.kernels.pairs import (
    Table,
    as_table,
    height_overlap,
    pair_values,
    pose_of,
    valid_rows,
)
from mld_core.geometry.kernels.rotated import edge_spans, may_overlap, overlap_area

PAIR_CHUNK = 1 << 13  # pairs per call of the kernel: columns of 64 KiB


def footprint(a: Table, b: Table) -> FloatArray:
    """Overlap area of footprints; pairs the separating-axis test rules out never reach the edge kernel."""
    pose = pose_of(np, a, b)
    near = np.flatnonzero(may_overlap(np, pose))
    if 4 * len(near) > 3 * len(a.x):
        return np.asarray(overlap_area(np, pose, edge_spans(np, pose)))
    area = np.zeros(len(a.x), a.x.dtype)
    pose = type(pose)(*(column[near] for column in pose))
    area[near] = overlap_area(np, pose, edge_spans(np, pose))
    return area


def table(boxes: FloatArray, valid: FloatArray) -> Table:
    """Columns in float64; rows that do not count are zero."""
    return as_table(np, np.where(valid[:, None], boxes, 0).astype(np.float64, copy=False))


def circles(t: Table, rows: FloatArray) -> Circles:
    """The bounding circles of footprints."""
    return Circles(t.x, t.y, np.hypot(t.l, t.w), rows)


def candidate_pairs(a: Table, b: Table, rows_a: FloatArray, rows_b: FloatArray) -> Iterator[tuple[Any, Any]]:
    """Index pairs (i, j) whose bounding circles touch, row-major, at most `PAIR_CHUNK` at a time.

    `rows_a`, `rows_b` are bool masks of the boxes that count.
    """
    pending: list[tuple[FloatArray, FloatArray]] = []
    count = 0
    for start, stop, found in circle_test(circles(a, rows_a), circles(b, rows_b)).blocks():
        row, column = row_and_column(found, len(b.x))
        pending.append((row + start, column))
        count += len(found)
        if count >= PAIR_CHUNK or stop == len(a.x):
            i, j = (np.concatenate(parts) for parts in zip(*pending, strict=True))
            pending, count = [], 0
            for at in range(0, len(i), PAIR_CHUNK):
                yield i[at : at + PAIR_CHUNK], j[at : at + PAIR_CHUNK]


def pairwise(boxes_a: FloatArray, boxes_b: FloatArray, mode: Mode) -> FloatArray:
    """Matrix (N, M) of `mode` in the boxes' dtype; pairs of rotated boxes are computed in float64."""
    if mode in AXIS_MODES:
        return box_pairwise(boxes_a, boxes_b, mode)
    valid_a, valid_b = valid_rows(np, boxes_a), valid_rows(np, boxes_b)
    a, b = table(boxes_a, valid_a), table(boxes_b, valid_b)
    if mode == "giou_3d":
        return _generalised(a, b, valid_a, valid_b, boxes_a.dtype)
    out = np.zeros((len(boxes_a), len(boxes_b)), boxes_a.dtype)
    solid_a, solid_b = valid_a & (a.l * a.w > 0), valid_b & (b.l * b.w > 0)
    flat = out.reshape(-1)
    for i, j in candidate_pairs(a, b, solid_a, solid_b):
        ta, tb = a.take(i), b.take(j)
        if mode == "3d":
            level = np.flatnonzero(height_overlap(np, ta, tb) > 0)
            i, j, ta, tb = i[level], j[level], ta.take(level), tb.take(level)  # noqa: PLW2901
        flat[i * len(boxes_b) + j] = pair_values(np, mode, ta, tb, footprint)
    return out


def _generalised(a: Table, b: Table, valid_a: FloatArray, valid_b: FloatArray, dtype: Any) -> FloatArray:
    """Generalised 3D IoU of all pairs: every pair needs its hull, so there is no prefilter."""
    n, m = len(a.x), len(b.x)
    out = np.full(n * m, -1.0, dtype)
    for start in range(0, n * m, PAIR_CHUNK):
        i, j = np.divmod(np.arange(start, min(start + PAIR_CHUNK, n * m)), m)
        keep = np.flatnonzero(valid_a[i] & valid_b[j])
        out[start + keep] = pair_values(np, "giou_3d", a.take(i[keep]), b.take(j[keep]), footprint)
    return out.reshape(n, m)


def aligned(boxes_a: FloatArray, boxes_b: FloatArray, mode: Mode) -> FloatArray:
    """`mode` (N,) of row k of one with row k of the other, in the boxes' dtype."""
    if mode in AXIS_MODES:
        return box_aligned(boxes_a, boxes_b, mode)
    out = np.full(len(boxes_a), -1.0 if mode == "giou_3d" else 0.0, boxes_a.dtype)
    for start in range(0, len(out), PAIR_CHUNK):
        part_a, part_b = boxes_a[start : start + PAIR_CHUNK], boxes_b[start : start + PAIR_CHUNK]
        keep = np.flatnonzero(valid_rows(np, part_a) & valid_rows(np, part_b))
        ta, tb = (as_table(np, part[keep].astype(np.float64)) for part in (part_a, part_b))
        out[start + keep] = pair_values(np, mode, ta, tb, footprint)
    return out
