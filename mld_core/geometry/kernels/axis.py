"""Axis-aligned boxes: the formulas for numpy and torch, and the numpy engine's in-place matrix.

Which boxes overlap at all is found by bit sets: far cheaper than computing the IoU of every pair.
"""

from typing import Any, NamedTuple

import numpy as np

from mld_core.geometry.kernels.arrays import FloatArray, Mode
from mld_core.geometry.kernels.circles import Circles, row_and_column

Array = Any
WORST = {"iou": 0.0, "giou": -1.0, "diou": -1.0, "ioa": 0.0}
CHUNK = 1 << 15  # matrix entries worked on at once
ROWS = 8  # and so many times more where only pairs that overlap are computed
PAIRS = 1 << 13  # pairs computed at once
SMALL = 1 << 14  # entries up to which finding those pairs costs more than it saves
CROWDED = 0.12  # and the share of them from which on it does, too
WIDTH = 4096  # boxes per table: four tables of WIDTH^2 bits, 8 MiB in all


class Corners(NamedTuple):
    """Boxes as columns x1, y1, x2, y2 and area, and which rows are boxes; the others are points at 0."""

    x1: Array
    y1: Array
    x2: Array
    y2: Array
    area: Array
    valid: Array

    def rows(self, part: Any) -> "Corners":
        """A slice of the rows, or a reshaping index such as [:, None]."""
        return Corners(*(column[part] for column in self))


def valid_corners(xp: Any, boxes: Any) -> Any:
    """Rows [x1, y1, x2, y2] that are finite with x2 >= x1 and y2 >= y1, bool (N,)."""
    return xp.isfinite(boxes).all(-1) & (boxes[:, 2:] >= boxes[:, :2]).all(-1)


def as_corners(xp: Any, boxes: Any) -> Corners:
    """Split (N, 4) xyxy rows into columns; rows that are not boxes become points at the origin."""
    valid = valid_corners(xp, boxes)
    boxes = xp.where(valid[:, None], boxes, xp.zeros_like(boxes))
    columns = [boxes[:, k] for k in range(4)]
    if xp.__name__ == "numpy":
        columns = [np.ascontiguousarray(c) for c in columns]
    x1, y1, x2, y2 = columns
    return Corners(x1, y1, x2, y2, (x2 - x1) * (y2 - y1), valid)


def _ratio(xp: Any, part: Array, whole: Array) -> Array:
    """Divide part by whole, 0 where whole is 0 (both finite, also in the gradient)."""
    none = whole <= 0
    return xp.where(none, xp.zeros_like(part), part / xp.where(none, xp.ones_like(whole), whole))


def box_values(xp: Any, mode: Mode, a: Corners, b: Corners) -> Array:
    """The quantity `mode` of boxes that broadcast against each other; invalid rows give `WORST[mode]`."""
    width = (xp.minimum(a.x2, b.x2) - xp.maximum(a.x1, b.x1)).clip(0, None)
    height = (xp.minimum(a.y2, b.y2) - xp.maximum(a.y1, b.y1)).clip(0, None)
    inter = width * height
    union = a.area + b.area - inter
    value = _ratio(xp, inter, (a.area + 0 * inter) if mode == "ioa" else union)
    if mode in {"giou", "diou"}:
        span_x = xp.maximum(a.x2, b.x2) - xp.minimum(a.x1, b.x1)
        span_y = xp.maximum(a.y2, b.y2) - xp.minimum(a.y1, b.y1)
        if mode == "giou":
            value = value - _ratio(xp, span_x * span_y - union, span_x * span_y)
        else:  # twice the centre offset, from differences: exact far from the origin
            dx, dy = (b.x1 - a.x1) + (b.x2 - a.x2), (b.y1 - a.y1) + (b.y2 - a.y2)
            value = value - _ratio(xp, (dx * dx + dy * dy) / 4, span_x * span_x + span_y * span_y)
    return xp.where(a.valid & b.valid, value, xp.full_like(value, WORST[mode]))


def box_pairwise(boxes_a: FloatArray, boxes_b: FloatArray, mode: Mode) -> FloatArray:
    """Matrix (N, M) of `mode` in the boxes' dtype, in chunks of rows."""
    a, b = as_corners(np, boxes_a), as_corners(np, boxes_b)
    out = np.empty((len(boxes_a), len(boxes_b)), boxes_a.dtype)
    step = max(1, CHUNK // max(len(boxes_b), 1))
    if mode == "iou":
        _iou_matrix(a, b, out)
        return out
    other = b.rows(np.s_[None, :])
    for start in range(0, len(out), step):
        out[start : start + step] = box_values(np, mode, a.rows(np.s_[start : start + step, None]), other)
    return out


def _iou_matrix(a: Corners, b: Corners, out: FloatArray) -> None:
    """Fill `out` with the IoU matrix: all pairs or, where few overlap, just those; the bits are the same."""
    a, b = a._replace(area=solid_areas(a)), b._replace(area=solid_areas(b))
    for first in range(0, out.shape[1], WIDTH):
        columns = np.s_[first : first + WIDTH]
        _iou_columns(a, b.rows(columns), out[:, columns])


def _iou_columns(a: Corners, b: Corners, out: FloatArray) -> None:
    """As `_iou_matrix`, for a slice of its columns."""
    table = OverlapTable(b.x1, b.y1, b.x2, b.y2) if out.size > SMALL else None
    step = max(1, CHUNK // max(out.shape[1], 1))
    buffers = np.empty((2, min(step, len(out)), out.shape[1]), out.dtype)
    start = 0
    while start < len(out):
        part = np.s_[start : start + (step if table is None else ROWS * step)]
        own, block = a.rows(part), out[part]
        start += len(block)
        if table is None:
            iou_block(own.rows(np.s_[:, None]), b, block, buffers[:, : len(block)])
            continue
        found = table.pairs(own.x1, own.y1, own.x2, own.y2)
        if len(found) > CROWDED * block.size:
            table, start = None, part.start
            continue
        values = np.zeros(block.size, out.dtype)
        for at in range(0, len(found), PAIRS):
            flat = found[at : at + PAIRS]
            i, j = row_and_column(flat, out.shape[1])
            values[flat] = iou_of_pairs(own, i, b, j)
        block[:] = values.reshape(block.shape)


def iou_block(a: Corners, b: Corners, out: FloatArray, buffers: FloatArray) -> None:
    """IoU of a block of rows (as columns) with all of b into `out`; areas solid, two buffers of its shape."""
    height, spare = buffers
    _span(a.x1, a.x2, b.x1, b.x2, out, spare)
    _span(a.y1, a.y2, b.y1, b.y2, height, spare)
    np.multiply(out, height, out=out)
    np.add(a.area, b.area, out=spare)
    np.subtract(spare, out, out=spare)
    np.divide(out, spare, out=out)


def _span(lo_a: Any, hi_a: Any, lo_b: Any, hi_b: Any, out: FloatArray, spare: FloatArray) -> None:
    """Shared length of intervals into `out`, 0 where they are apart."""
    np.minimum(hi_a, hi_b, out=out)
    np.maximum(lo_a, lo_b, out=spare)
    np.maximum(out, spare, out=out)  # not maximum(difference, 0): against a scalar it is not vectorised
    np.subtract(out, spare, out=out)


def solid_areas(c: Corners) -> FloatArray:
    """Areas, 1 for boxes without: they overlap nothing, so their IoU stays 0 and 0 / 0 cannot arise."""
    return np.where(c.area > 0, c.area, 1).astype(c.area.dtype)


def circles_of(c: Corners) -> Circles:
    """The bounding circles of boxes."""
    x1, y1, x2, y2 = (column.astype(np.float64, copy=False) for column in c[:4])
    return Circles((x1 + x2) / 2, (y1 + y2) / 2, np.hypot(x2 - x1, y2 - y1) / 2, c.valid)


def iou_of_pairs(a: Corners, i: FloatArray, b: Corners, j: FloatArray) -> FloatArray:
    """IoU of rows i of `a` with rows j of `b`, areas solid; operation by operation as `iou_block`."""
    width = np.minimum(a.x2[i], b.x2[j]) - np.maximum(a.x1[i], b.x1[j])
    height = np.minimum(a.y2[i], b.y2[j]) - np.maximum(a.y1[i], b.y1[j])
    inter = width * (width > 0) * (height * (height > 0))
    return np.asarray(inter / (a.area[i] + b.area[j] - inter))


def box_aligned(boxes_a: FloatArray, boxes_b: FloatArray, mode: Mode) -> FloatArray:
    """`mode` (N,) of row k of one with row k of the other."""
    value: FloatArray = box_values(np, mode, as_corners(np, boxes_a), as_corners(np, boxes_b))
    return value


class OverlapTable:
    """Overlap queries against boxes given as columns (M,), M <= WIDTH.

    For each of x1, x2, y1, y2 there is a table whose row k marks, one bit per box, the k boxes with the
    smallest values. The boxes that overlap a given one then are an AND of four rows: those whose x1 is below
    its x2, whose x2 is not at or below its x1, and so for y.
    """

    def __init__(self, x1: FloatArray, y1: FloatArray, x2: FloatArray, y2: FloatArray) -> None:
        self._count = len(x1)
        self._sides = [_prefixes(values) for values in (x1, y1, x2, y2)]

    def pairs(self, x1: FloatArray, y1: FloatArray, x2: FloatArray, y2: FloatArray) -> FloatArray:
        """Flat positions, in the (queries, M) matrix, of the pairs that share area."""
        limits = (x2, "left"), (y2, "left"), (x1, "right"), (y1, "right")
        rows = [
            table[values.searchsorted(limit, "left" if side == "left" else "right")]
            for (values, table), (limit, side) in zip(self._sides, limits, strict=True)
        ]
        bits = rows[0] & rows[1] & ~(rows[2] | rows[3])
        return np.flatnonzero(np.unpackbits(bits.view(np.uint8), axis=1, count=self._count).view(bool))


def _prefixes(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values in order, and the table (M + 1, words) whose row k marks the first k of that order."""
    order = np.argsort(values)
    marks = np.zeros((len(order) + 1, (len(order) + 63) // 64 * 8), np.uint8)
    marks[np.arange(1, len(order) + 1), order >> 3] = np.left_shift(1, 7 - (order & 7))
    words = marks.view(np.uint64)
    return values[order], np.bitwise_or.accumulate(words, axis=0)
