"""The compiled engine (numba, the `fast` extra): axis-aligned boxes first, then rotated ones.

Only `iou`, `nms` and `backend` import this module, and only where numba was asked for or is ready. Rotated
boxes are `rotated.py` as scalar loops over float64 columns: x, y, half length, half width, cos(yaw),
sin(yaw), z, half height, circle radius (negative where the row does not count).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mld_core.geometry.kernels.arrays import AXIS_MODES, FloatArray, Mode, NmsMode
from mld_core.geometry.kernels.axis import WORST, as_corners, box_aligned
from mld_core.geometry.kernels.pairs import as_table, valid_rows

try:
    import numba
except ImportError as error:
    raise ImportError(
        "backend 'numba' needs numba; install it with: pip install 'ml-debugger[fast]'"
    ) from error

Kernel = Callable[..., Any]
MODES: tuple[Mode, ...] = ("bev", "3d", "giou_3d")
FLOOR = 1e-100  # as in rotated.py


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
                w, h = min(x2, lx2[j]) - max(x1, lx1[j]), min(y2, ly2[j]) - max(y1, ly1[j])
                inter = max(w, zero) * max(h, zero)
                later[j] |= (inter / (size + ar[j] - inter) > limit) & (ll[j] == label)
        else:
            for j in range(len(later)):
                w, h = min(x2, lx2[j]) - max(x1, lx1[j]), min(y2, ly2[j]) - max(y1, ly1[j])
                inter = max(w, zero) * max(h, zero)
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


@compiled
def _length(half: float, lo1: float, lo2: float, hi1: float, hi2: float) -> float:
    return max(min(hi1, hi2, half) - max(lo1, lo2, -half), 0.0)


@compiled
def _cuts(sides: Any, ahead: float, aside: float, along: float, across: float) -> Any:
    front, back, left, right = sides
    return (front - ahead) * along, (back - ahead) * along, (left - aside) * across, (right - aside) * across


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
    sides = u + bl, u - bl, v + bw, v - bw
    # A's edges x = +al (1) and x = -al (2): crossings with B's front, back, left and right edge, along y.
    f1, b1, l1, r1 = _cuts(sides, c_al, -s_al, by_sin, by_cos)
    f2, b2, l2, r2 = _cuts(sides, -c_al, s_al, by_sin, by_cos)
    # A's edges y = +aw (3) and y = -aw (4), along x.
    f3, b3, l3, r3 = _cuts(sides, s_aw, c_aw, by_cos, -by_sin)
    f4, b4, l4, r4 = _cuts(sides, -s_aw, -c_aw, by_cos, -by_sin)
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
    bx, by, br = b[0][order], b[1][order], b[8][order]
    for i in range(a.shape[1]):
        x, y, r = a[0, i], a[1, i], a[8, i]
        if r < 0:
            continue
        first, end = np.searchsorted(bx, x - r - widest), np.searchsorted(bx, x + r + widest, side="right")
        for k in range(first, end):
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
        first, end = np.searchsorted(bx, x - r - widest), np.searchsorted(bx, x + r + widest, side="right")
        for k in range(first, end):
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


def pairwise(boxes_a: FloatArray, boxes_b: FloatArray, mode: Mode) -> FloatArray:
    """As `engine_numpy.pairwise`."""
    out = np.zeros((len(boxes_a), len(boxes_b)), boxes_a.dtype)
    if mode == "iou":
        _iou_matrix(boxes_a, boxes_b, out)
    elif mode in AXIS_MODES:
        a, b = as_corners(np, boxes_a), as_corners(np, boxes_b)
        flat_a, flat_b = np.stack(a[:4]), np.stack(b[:4])
        _value_matrix(AXIS_MODES.index(mode), flat_a, a.valid, flat_b, b.valid, WORST[mode], out)
    elif mode == "giou_3d":
        _all_pairs(2, columns(boxes_a), columns(boxes_b), out)
    else:
        other = columns(boxes_b)
        _pairwise(MODES.index(mode), columns(boxes_a), other, np.argsort(other[0]), out)
    return out


def aligned(boxes_a: FloatArray, boxes_b: FloatArray, mode: Mode) -> FloatArray:
    """As `engine_numpy.aligned`."""
    if mode in AXIS_MODES:  # linear work, nothing to win
        return box_aligned(boxes_a, boxes_b, mode)
    out = np.empty(len(boxes_a), boxes_a.dtype)
    _aligned(MODES.index(mode), columns(boxes_a), columns(boxes_b), -1.0 if mode == "giou_3d" else 0.0, out)
    return out


def keep(boxes: FloatArray, codes: FloatArray, limits: FloatArray, most: int, mode: NmsMode) -> FloatArray:
    """As `nms_numpy.keep`."""
    kept = np.empty(len(boxes), np.int64)
    if not most:
        return kept[:0]
    if mode == "iou":
        return kept[: greedy_boxes(boxes, codes, limits.astype(boxes.dtype), most, kept)]
    if mode == "circle":
        x, y = np.ascontiguousarray(boxes[:, :2].T, np.float64)
        return kept[: greedy_circles(x, y, codes, limits**2, most, kept)]
    b = columns(boxes)
    return kept[: greedy_rotated(MODES.index(mode), b, np.argsort(b[0]), codes, limits, most, kept)]
