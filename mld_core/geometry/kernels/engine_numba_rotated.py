"""Compiled kernels (numba, the `fast` extra) for rotated boxes: `_rotated.py` as scalar loops.

Boxes arrive as float64 columns: x, y, half length, half width, cos(yaw), sin(yaw), z, half height, circle
radius (negative where the row does not count).
"""

from typing import Any

import numpy as np

from mld_core.geometry.kernels.arrays import FloatArray
from mld_core.geometry.kernels.engine_numba import compiled
from mld_core.geometry.kernels.pairs import Mode, as_table, valid_rows

MODES: tuple[Mode, ...] = ("bev", "3d", "giou_3d")
FLOOR = 1e-100  # as in _rotated


@compiled
def _length(half: float, lo1: float, lo2: float, hi1: float, hi2: float) -> float:
    return max(min(hi1, hi2, half) - max(lo1, lo2, -half), 0.0)


@compiled
def _pose(a: Any, i: int, b: Any, j: int) -> Any:
    dx, dy = b[0, j] - a[0, i], b[1, j] - a[1, i]
    ac, as_, bc, bs = a[4, i], a[5, i], b[4, j], b[5, j]
    x, y = ac * dx + as_ * dy, ac * dy - as_ * dx
    cos, sin = ac * bc + as_ * bs, ac * bs - as_ * bc
    if cos * sin < 0:
        y = -y
    cos, sin = abs(cos), abs(sin)
    return x, y, cos * x + sin * y, cos * y - sin * x, cos, sin


@compiled
def _overlap(a: Any, i: int, b: Any, j: int) -> Any:
    x, y, u, v, cos, sin = _pose(a, i, b, j)
    al, aw, bl, bw = a[2, i], a[3, i], b[2, j], b[3, j]
    c_al, s_al, c_aw, s_aw = cos * al, sin * al, cos * aw, sin * aw
    if abs(x) > al + cos * bl + sin * bw or abs(y) > aw + sin * bl + cos * bw:
        return 0.0
    if abs(u) > bl + c_al + s_aw or abs(v) > bw + s_al + c_aw:
        return 0.0
    by_sin, by_cos = 1.0 / max(sin, FLOOR), 1.0 / max(cos, FLOOR)
    front, back, left, right = u + bl, u - bl, v + bw, v - bw
    # A's edges x = +al (1) and x = -al (2): crossings with B's front, back, left and right edge, along y.
    f1, b1, l1, r1 = (
        (front - c_al) * by_sin,
        (back - c_al) * by_sin,
        (left + s_al) * by_cos,
        (right + s_al) * by_cos,
    )
    f2, b2, l2, r2 = (
        (front + c_al) * by_sin,
        (back + c_al) * by_sin,
        (left - s_al) * by_cos,
        (right - s_al) * by_cos,
    )
    # A's edges y = +aw (3) and y = -aw (4), along x.
    f3, b3, l3, r3 = (
        (front - s_aw) * by_cos,
        (back - s_aw) * by_cos,
        (c_aw - left) * by_sin,
        (c_aw - right) * by_sin,
    )
    f4, b4, l4, r4 = (
        (front + s_aw) * by_cos,
        (back + s_aw) * by_cos,
        (-c_aw - left) * by_sin,
        (-c_aw - right) * by_sin,
    )
    twice = al * (_length(aw, b1, r1, f1, l1) + _length(aw, b2, r2, f2, l2))
    twice += aw * (_length(al, b3, l3, f3, r3) + _length(al, b4, l4, f4, r4))
    # The same crossings along B's edges: front and back along v, left and right along u.
    v1, v2, v3, v4 = s_al + v, v - s_al, c_aw - v, -c_aw - v
    u1, u2, u3, u4 = c_al - u, -c_al - u, s_aw - u, -s_aw - u
    twice += (bl + u) * _length(bw, cos * f1 - v1, v4 - sin * f4, cos * f2 - v2, v3 - sin * f3)
    twice += (bl - u) * _length(bw, cos * b1 - v1, v4 - sin * b4, cos * b2 - v2, v3 - sin * b3)
    twice += (bw + v) * _length(bl, sin * l2 + u2, cos * l4 + u4, sin * l1 + u1, cos * l3 + u3)
    twice += (bw - v) * _length(bl, sin * r2 + u2, cos * r4 + u4, sin * r1 + u1, cos * r3 + u3)
    return max(0.5 * twice, 0.0)


@compiled
def _hull(a: Any, i: int, b: Any, j: int) -> Any:
    x, y, u, v, cos, sin = _pose(a, i, b, j)
    al, aw, bl, bw = a[2, i], a[3, i], b[2, j], b[3, j]
    reach_x, reach_y = cos * bl + sin * bw, sin * bl + cos * bw
    reach_u, reach_v = cos * al + sin * aw, sin * al + cos * aw
    n0, n2, n4, n6 = al >= x + reach_x, aw >= y + reach_y, al >= reach_x - x, aw >= reach_y - y
    n1, n3, n5, n7 = reach_u >= u + bl, reach_v >= v + bw, reach_u >= bl - u, reach_v >= bw - v
    twice = (int(n0) + int(n2) + int(n4) + int(n6)) * 2 * al * aw
    twice += ((not n1) * (bl + u) + (not n5) * (bl - u)) * 2 * bw
    twice += ((not n3) * (bw + v) + (not n7) * (bw - v)) * 2 * bl
    p, q, s, t = cos * bl + sin * bw, sin * bl - cos * bw, cos * bl - sin * bw, sin * bl + cos * bw
    twice += (int(n0) - int(n1)) * (al * (y + q) - aw * (x + p))
    twice += (int(n1) - int(n2)) * (al * (y + t) - aw * (x + s))
    twice += (int(n2) - int(n3)) * (-al * (y + t) - aw * (x + s))
    twice += (int(n3) - int(n4)) * (-al * (y - q) - aw * (x - p))
    twice += (int(n4) - int(n5)) * (-al * (y - q) + aw * (x - p))
    twice += (int(n5) - int(n6)) * (-al * (y - t) + aw * (x - s))
    twice += (int(n6) - int(n7)) * (al * (y - t) + aw * (x - s))
    twice += (int(n7) - int(n0)) * (al * (y + q) + aw * (x + p))
    return 0.5 * twice


@compiled
def _value(mode: int, a: Any, i: int, b: Any, j: int) -> Any:
    size_a, size_b, shared = 4 * a[2, i] * a[3, i], 4 * b[2, j] * b[3, j], 1.0
    dz, ah, bh = b[6, j] - a[6, i], a[7, i], b[7, j]
    if mode > 0:
        shared = max(min(ah, dz + bh) - max(-ah, dz - bh), 0.0)
        size_a, size_b = size_a * 2 * ah, size_b * 2 * bh
    inter = _overlap(a, i, b, j) * shared if shared > 0 else 0.0
    union = size_a + size_b - inter
    iou = min(inter / union, 1.0) if size_a > 0 and size_b > 0 else 0.0
    if mode < 2:
        return iou
    hull = _hull(a, i, b, j) * (max(ah, dz + bh) - min(-ah, dz - bh))
    return iou - max((hull - union) / hull, 0.0) if hull > 0 else iou


@compiled
def _pairwise(mode: int, a: Any, b: Any, order: Any, out: Any) -> None:
    """IoU of pairs whose circles touch; `order` sorts b by x, so each row of a meets one run of it."""
    widest = 0.0
    for j in range(b.shape[1]):
        widest = max(widest, b[8, j])
    xs = b[0][order]
    bx, by, br = b[0][order], b[1][order], b[8][order]
    for i in range(a.shape[1]):
        x, y, r = a[0, i], a[1, i], a[8, i]
        if r < 0:
            continue
        for k in range(
            np.searchsorted(xs, x - r - widest), np.searchsorted(xs, x + r + widest, side="right")
        ):
            dx, dy, reach = bx[k] - x, by[k] - y, r + br[k]
            if br[k] >= 0 and dx * dx + dy * dy <= reach * reach:
                out[i, order[k]] = _value(mode, a, i, b, order[k])


@compiled
def _all_pairs(mode: int, a: Any, b: Any, out: Any) -> None:
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            out[i, j] = _value(mode, a, i, b, j) if a[8, i] >= 0 and b[8, j] >= 0 else -1.0


@compiled
def _aligned(mode: int, a: Any, b: Any, worst: float, out: Any) -> None:
    for i in range(a.shape[1]):
        out[i] = _value(mode, a, i, b, i) if a[8, i] >= 0 and b[8, i] >= 0 else worst


@compiled
def greedy_rotated(mode: int, b: Any, order: Any, labels: Any, limits: Any, most: int, kept: Any) -> int:
    """Greedy NMS over rows in score order; `order` sorts them by x. Fills `kept`, returns how many."""
    n = b.shape[1]
    gone = np.zeros(n, np.bool_)
    bx, by, br = b[0][order], b[1][order], b[8][order]
    widest = max(br.max(), 0.0)
    count = 0
    for i in range(n):
        if gone[i]:
            continue
        kept[count] = i
        count += 1
        if count == most:
            break
        x, y, r = b[0, i], b[1, i], b[8, i]
        if r < 0:
            continue
        size = b[2, i] * b[3, i] * (b[7, i] if mode > 0 else 1.0)
        for k in range(
            np.searchsorted(bx, x - r - widest), np.searchsorted(bx, x + r + widest, side="right")
        ):
            j = order[k]
            dx, dy, reach = bx[k] - x, by[k] - y, r + br[k]
            if j <= i or gone[j] or br[k] < 0 or dx * dx + dy * dy > reach * reach:
                continue
            if labels.size and labels[i] != labels[j]:
                continue
            other = b[2, j] * b[3, j] * (b[7, j] if mode > 0 else 1.0)
            # The smaller over the larger size bounds the IoU (1e-9: rounding).
            if (
                min(size, other) > (limits[i] - 1e-9) * max(size, other)
                and _value(mode, b, i, b, j) > limits[i]
            ):
                gone[j] = True
    return count


def columns(boxes: FloatArray) -> FloatArray:
    """Rows (N, 5) or (N, 7) as the kernels' float64 columns (9, N)."""
    valid = valid_rows(np, boxes)
    t = as_table(np, np.where(valid[:, None], boxes, 0).astype(np.float64))
    flat = np.zeros(len(boxes))
    radius = np.where(valid, np.hypot(t.l, t.w) * (1 + 1e-12), -1.0)
    high = (flat, flat) if t.z is None else (t.z, t.h)
    return np.stack([t.x, t.y, t.l, t.w, t.cos, t.sin, *high, radius])


def rotated_pairwise(boxes_a: FloatArray, boxes_b: FloatArray, mode: Mode) -> FloatArray:
    """As `_numpy.rotated_pairwise`."""
    a, b = columns(boxes_a), columns(boxes_b)
    if mode == "giou_3d":
        out = np.empty((len(boxes_a), len(boxes_b)), boxes_a.dtype)
        _all_pairs(2, a, b, out)
    else:
        out = np.zeros((len(boxes_a), len(boxes_b)), boxes_a.dtype)
        _pairwise(MODES.index(mode), a, b, np.argsort(b[0]), out)
    return out


def rotated_aligned(boxes_a: FloatArray, boxes_b: FloatArray, mode: Mode) -> FloatArray:
    """As `_numpy.rotated_aligned`."""
    out = np.empty(len(boxes_a), boxes_a.dtype)
    _aligned(MODES.index(mode), columns(boxes_a), columns(boxes_b), -1.0 if mode == "giou_3d" else 0.0, out)
    return out


def nms_rotated(
    boxes: FloatArray, codes: FloatArray, limits: FloatArray, most: int, mode: Mode
) -> FloatArray:
    """Rows kept of boxes in score order, ascending."""
    b = columns(boxes)
    kept = np.empty(len(boxes), np.int64)
    count = greedy_rotated(MODES.index(mode), b, np.argsort(b[0]), codes, limits, most, kept) if most else 0
    return kept[:count]
