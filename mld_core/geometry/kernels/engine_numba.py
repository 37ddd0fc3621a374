"""Compiled kernels (numba, the `fast` extra): axis-aligned IoU, NMS, circle NMS.

Only `backend.py` and the engines import this module, and only where numba was asked for or is ready.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mld_core.geometry.kernels.arrays import FloatArray
from mld_core.geometry.kernels.axis import AXIS_MODES, WORST, AxisMode, Corners, as_corners

try:
    import numba
except ImportError as error:
    raise ImportError(
        "backend 'numba' needs numba; install it with: pip install 'ml-debugger[fast]'"
    ) from error

Kernel = Callable[..., Any]


def compiled(function: Kernel) -> Kernel:
    """Compile on first call, without fast-math (NaN rules hold), cached on disk where that can be written."""
    try:
        result: Kernel = numba.njit(function, cache=True, nogil=True, error_model="numpy")
    except RuntimeError:  # neither the package's folder nor the user's cache folder is writable
        result = numba.njit(function, nogil=True, error_model="numpy")
    return result


@compiled
def _columns(boxes: Any) -> Any:
    """Box columns and areas; rows that are no boxes become points at 0, areas of 0 become 1 (0 / 1 is 0)."""
    n = len(boxes)
    columns, area = np.zeros((4, n), boxes.dtype), np.ones(n, boxes.dtype)
    for i in range(n):
        x1, y1, x2, y2 = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
        # Any NaN or infinity makes the sum of the differences from themselves NaN.
        if x2 >= x1 and y2 >= y1 and (x1 - x1) + (y1 - y1) + (x2 - x2) + (y2 - y2) == 0:
            columns[0, i], columns[1, i], columns[2, i], columns[3, i] = x1, y1, x2, y2
            size = (x2 - x1) * (y2 - y1)
            if size > 0:
                area[i] = size
    return columns, area


@compiled
def _iou_matrix(boxes_a: Any, boxes_b: Any, out: Any) -> None:
    zero = out.dtype.type(0)
    a, area_a = _columns(boxes_a)
    b, area_b = _columns(boxes_b)
    for i in range(out.shape[0]):
        ax1, ay1, ax2, ay2, area = a[0, i], a[1, i], a[2, i], a[3, i], area_a[i]
        for j in range(out.shape[1]):
            w = min(ax2, b[2, j]) - max(ax1, b[0, j])
            h = min(ay2, b[3, j]) - max(ay1, b[1, j])
            inter = max(w, zero) * max(h, zero)
            out[i, j] = inter / (area + area_b[j] - inter)


@compiled
def _box_value(
    mode: int, ax1: Any, ay1: Any, ax2: Any, ay2: Any, bx1: Any, by1: Any, bx2: Any, by2: Any
) -> Any:
    area_a, area_b = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
    inter = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = area_a + area_b - inter
    if mode == 3:
        return inter / area_a if area_a > 0 else 0 * inter
    value = inter / union if union > 0 else 0 * inter
    span_x, span_y = max(ax2, bx2) - min(ax1, bx1), max(ay2, by2) - min(ay1, by1)
    if mode == 1 and span_x * span_y > 0:
        value -= (span_x * span_y - union) / (span_x * span_y)
    if mode == 2 and span_x * span_x + span_y * span_y > 0:
        dx, dy = (bx1 - ax1) + (bx2 - ax2), (by1 - ay1) + (by2 - ay2)
        value -= (dx * dx + dy * dy) / 4 / (span_x * span_x + span_y * span_y)
    return value


@compiled
def _value_matrix(mode: int, a: Any, valid_a: Any, b: Any, valid_b: Any, worst: float, out: Any) -> None:
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            if valid_a[i] and valid_b[j]:
                out[i, j] = _box_value(
                    mode, a[0, i], a[1, i], a[2, i], a[3, i], b[0, j], b[1, j], b[2, j], b[3, j]
                )
            else:
                out[i, j] = worst


def box_pairwise(boxes_a: FloatArray, boxes_b: FloatArray, mode: AxisMode) -> FloatArray:
    """As `_axis.box_pairwise`."""
    out = np.empty((len(boxes_a), len(boxes_b)), boxes_a.dtype)
    if mode == "iou":
        _iou_matrix(boxes_a, boxes_b, out)
        return out
    a, b = as_corners(np, boxes_a), as_corners(np, boxes_b)
    _value_matrix(AXIS_MODES.index(mode), _stacked(a), a.valid, _stacked(b), b.valid, WORST[mode], out)
    return out


def _stacked(corners: Corners) -> FloatArray:
    return np.stack(corners[:4])


@compiled
def greedy_boxes(boxes: Any, labels: Any, limits: Any, most: int, kept: Any) -> int:
    """Greedy NMS over boxes in score order; fills `kept`, returns how many."""
    b, area = _columns(boxes)
    n = b.shape[1]
    zero = b.dtype.type(0)
    gone = np.zeros(n, np.int32)
    count = 0
    for i in range(n):
        if gone[i]:
            continue
        kept[count] = i
        count += 1
        if count == most:
            break
        x1, y1, x2, y2, size, limit = b[0, i], b[1, i], b[2, i], b[3, i], area[i], limits[i]
        # Every later box is tested, gone or not: over slices and without branches the loop is vectorised.
        later, ar = gone[i + 1 :], area[i + 1 :]
        lx1, ly1, lx2, ly2 = b[0, i + 1 :], b[1, i + 1 :], b[2, i + 1 :], b[3, i + 1 :]
        if labels.size:
            label, ll = labels[i], labels[i + 1 :]
            for j in range(len(later)):
                inter = max(min(x2, lx2[j]) - max(x1, lx1[j]), zero) * max(
                    min(y2, ly2[j]) - max(y1, ly1[j]), zero
                )
                later[j] |= (inter / (size + ar[j] - inter) > limit) & (ll[j] == label)
        else:
            for j in range(len(later)):
                inter = max(min(x2, lx2[j]) - max(x1, lx1[j]), zero) * max(
                    min(y2, ly2[j]) - max(y1, ly1[j]), zero
                )
                later[j] |= inter / (size + ar[j] - inter) > limit
    return count


@compiled
def greedy_circles(x: Any, y: Any, labels: Any, limits: Any, most: int, kept: Any) -> int:
    """Greedy NMS by centre distance (`limits` are squared), rows in score order; as `greedy_boxes`."""
    n = len(x)
    gone = np.zeros(n, np.int32)
    count = 0
    for i in range(n):
        if gone[i]:
            continue
        kept[count] = i
        count += 1
        if count == most:
            break
        xi, yi, limit = x[i], y[i], limits[i]
        later, lx, ly = gone[i + 1 :], x[i + 1 :], y[i + 1 :]
        if labels.size:
            label, ll = labels[i], labels[i + 1 :]
            for j in range(len(later)):
                dx, dy = lx[j] - xi, ly[j] - yi
                later[j] |= (dx * dx + dy * dy <= limit) & (ll[j] == label)
        else:
            for j in range(len(later)):
                dx, dy = lx[j] - xi, ly[j] - yi
                later[j] |= dx * dx + dy * dy <= limit
    return count


def nms_boxes(boxes: FloatArray, codes: FloatArray, limits: FloatArray, most: int) -> FloatArray:
    """Rows kept of boxes in score order, ascending."""
    kept = np.empty(len(boxes), np.int64)
    return kept[: greedy_boxes(boxes, codes, limits, most, kept) if most else 0]


def nms_circles(x: FloatArray, y: FloatArray, codes: FloatArray, limits: FloatArray, most: int) -> FloatArray:
    """Rows kept of centres in score order, ascending; `limits` are squared distances."""
    kept = np.empty(len(x), np.int64)
    return kept[: greedy_circles(x, y, codes, limits, most, kept) if most else 0]
