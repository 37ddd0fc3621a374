"""Axis-aligned boxes: the formulas for numpy and torch, and the numpy engine's in-place matrix."""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from mld_core.geometry._arrays import FloatArray
from mld_core.geometry._circles import Circles

Array = Any
AxisMode: TypeAlias = Literal["iou", "giou", "diou", "ioa"]
AXIS_MODES: tuple[AxisMode, ...] = ("iou", "giou", "diou", "ioa")
WORST: dict[AxisMode, float] = {"iou": 0.0, "giou": -1.0, "diou": -1.0, "ioa": 0.0}
CHUNK = 1 << 15  # matrix entries worked on at once


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
    boxes = xp.where(valid[:, None], boxes, 0 * _zeros(xp, boxes))
    columns = [boxes[:, k] for k in range(4)]
    if xp.__name__ == "numpy":
        columns = [np.ascontiguousarray(c) for c in columns]
    x1, y1, x2, y2 = columns
    return Corners(x1, y1, x2, y2, (x2 - x1) * (y2 - y1), valid)


def _zeros(xp: Any, like: Any) -> Any:
    return xp.zeros_like(like)


def _ratio(xp: Any, part: Array, whole: Array) -> Array:
    """Divide part by whole, 0 where whole is 0 (both finite, also in the gradient)."""
    none = whole <= 0
    return xp.where(none, _zeros(xp, part), part / xp.where(none, xp.ones_like(whole), whole))


def box_values(xp: Any, mode: AxisMode, a: Corners, b: Corners) -> Array:
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


def box_pairwise(boxes_a: FloatArray, boxes_b: FloatArray, mode: AxisMode) -> FloatArray:
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
    """Fill `out` with the IoU matrix, in blocks of rows that fit the second-level cache."""
    a, b = a._replace(area=solid_areas(a)), b._replace(area=solid_areas(b))
    step = max(1, CHUNK // max(out.shape[1], 1))
    buffers = np.empty((2, min(step, len(out)), out.shape[1]), out.dtype)
    for start in range(0, len(out), step):
        block = out[start : start + step]
        iou_block(a.rows(np.s_[start : start + step, None]), b, block, buffers[:, : len(block)])


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


def box_aligned(boxes_a: FloatArray, boxes_b: FloatArray, mode: AxisMode) -> FloatArray:
    """`mode` (N,) of row k of one with row k of the other."""
    value: FloatArray = box_values(np, mode, as_corners(np, boxes_a), as_corners(np, boxes_b))
    return value
