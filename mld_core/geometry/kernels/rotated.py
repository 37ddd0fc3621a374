"""The rotated-rectangle kernel: overlap area and hull area of pairs of rectangles, by Green's theorem.

One set of formulas for numpy and torch (`xp` is the module); `_numba.py` holds the same as a scalar loop.

The area of the intersection of two convex regions is half the sum, over the eight edges, of (signed distance
of the edge's line from an origin) x (length of the edge inside the other rectangle): Green's theorem, no
vertex list and no sort. Every edge is cut by the other rectangle's two slabs (Liang and Barsky, 1984).

What makes it exact where edges coincide: each of the 16 crossings of an edge line of A with an edge line of B
is computed once, as a position along A's edge, and its position along B's edge is *derived from that one*. If
two edges are nearly parallel their crossing is badly placed, but both edges are cut at the same place, so
what one edge loses the other gains, and the error in the area is the error times the (vanishing) gap between
the lines. No edge has to be grown or nudged, and slivers need no special case.

Everything happens in A's frame, in which A is axis-aligned at the origin (so positions far from the world
origin cost nothing), mirrored where needed so that B's angle lies in [0, 90] degrees.
"""

from typing import Any, NamedTuple

Array = Any  # numpy array or torch tensor, all of one kind, shape (P,)

# How one rectangle is handed over: centre x, centre y, half length, half width, cos(yaw), sin(yaw).
Columns = tuple[Array, Array, Array, Array, Array, Array]

# A sine or cosine below this is zero: crossings go to +-1e100 and clip away; 1e5 m / 1e-100 stays finite.
_FLOOR = {8: 1e-100, 4: 1e-15}


class Pose(NamedTuple):
    """B seen from A: all arrays (P,), lengths in metres.

    (x, y) is B's centre in A's (mirrored) frame, (u, v) the vector from A's centre to B's along B's own axes,
    (cos, sin) B's heading, both >= 0; `mirror` is -1 where y was mirrored; half lengths and half widths
    follow.
    """

    x: Array
    y: Array
    u: Array
    v: Array
    cos: Array
    sin: Array
    mirror: Array
    al: Array
    aw: Array
    bl: Array
    bw: Array


class Spans(NamedTuple):
    """The part of each edge inside the other rectangle, as (start, end) with start <= end.

    `ax`: A's edges at x = +al, x = -al, positions along y; `ay`: A's at y = +aw, y = -aw, along x;
    `bu`: B's edges across its heading (front, back), along v; `bv`: B's edges along it (left, right), along
    u.
    """

    ax: tuple[tuple[Array, Array], tuple[Array, Array]]
    ay: tuple[tuple[Array, Array], tuple[Array, Array]]
    bu: tuple[tuple[Array, Array], tuple[Array, Array]]
    bv: tuple[tuple[Array, Array], tuple[Array, Array]]


def relative_pose(xp: Any, a: Columns, b: Columns) -> Pose:
    """Place B in A's frame, mirrored so that B's heading lies in the first quadrant."""
    ax, ay, al, aw, ac, as_ = a
    bx, by, bl, bw, bc, bs = b
    dx, dy = bx - ax, by - ay
    x, y = ac * dx + as_ * dy, ac * dy - as_ * dx
    cos, sin = ac * bc + as_ * bs, ac * bs - as_ * bc
    mirror = 1.0 - 2.0 * (cos * sin < 0)
    y, cos, sin = y * mirror, xp.abs(cos), xp.abs(sin)
    return Pose(x, y, cos * x + sin * y, cos * y - sin * x, cos, sin, mirror, al, aw, bl, bw)


def may_overlap(xp: Any, p: Pose) -> Array:
    """Whether the rectangles overlap or touch, bool (P,): the separating-axis test on the edge normals."""
    apart = xp.abs(p.x) > p.al + p.cos * p.bl + p.sin * p.bw
    apart |= xp.abs(p.y) > p.aw + p.sin * p.bl + p.cos * p.bw
    apart |= xp.abs(p.u) > p.bl + p.cos * p.al + p.sin * p.aw
    apart |= xp.abs(p.v) > p.bw + p.sin * p.al + p.cos * p.aw
    return ~apart


def _cut(xp: Any, half: Array, lo1: Array, lo2: Array, hi1: Array, hi2: Array) -> tuple[Array, Array]:
    """The span of an edge of half length `half` between two lower and two upper cuts, empty spans closed."""
    lo = xp.maximum(xp.maximum(lo1, lo2), -half)
    return lo, xp.maximum(xp.minimum(xp.minimum(hi1, hi2), half), lo)


def edge_spans(xp: Any, p: Pose) -> Spans:
    """Cut all eight edges by the other rectangle's slabs (see the module's text for the one idea)."""
    floor = _FLOOR[p.x.dtype.itemsize]
    by_sin, by_cos = (
        1.0 / xp.maximum(p.sin, _like(xp, p.sin, floor)),
        1.0 / xp.maximum(p.cos, _like(xp, p.cos, floor)),
    )
    c_al, s_al, c_aw, s_aw = p.cos * p.al, p.sin * p.al, p.cos * p.aw, p.sin * p.aw
    front, back, left, right = p.u + p.bl, p.u - p.bl, p.v + p.bw, p.v - p.bw
    ax, ay, su, sv = [], [], [], []
    for ca, sa in ((c_al, s_al), (-c_al, -s_al)):  # A's edges x = +al, x = -al; t runs along y
        t_f, t_b = (front - ca) * by_sin, (back - ca) * by_sin
        t_l, t_r = (left + sa) * by_cos, (right + sa) * by_cos
        ax.append(_cut(xp, p.aw, t_b, t_r, t_f, t_l))
        at_v, at_u = sa + p.v, ca - p.u
        su.append(
            (p.cos * t_f - at_v, p.cos * t_b - at_v)
        )  # the same crossings, along B's front and back edge
        sv.append((p.sin * t_l + at_u, p.sin * t_r + at_u))  # and along its left and right edge
    for ca, sa in ((c_aw, s_aw), (-c_aw, -s_aw)):  # A's edges y = +aw, y = -aw; t runs along x
        t_f, t_b = (front - sa) * by_cos, (back - sa) * by_cos
        t_l, t_r = (ca - left) * by_sin, (ca - right) * by_sin
        ay.append(_cut(xp, p.aw * 0 + p.al, t_b, t_l, t_f, t_r))
        at_v, at_u = ca - p.v, sa - p.u
        su.append((at_v - p.sin * t_f, at_v - p.sin * t_b))
        sv.append((p.cos * t_l + at_u, p.cos * t_r + at_u))
    # Along B's front and back edge x falls and y grows; along its left and right edge both grow.
    bu = tuple(_cut(xp, p.bw, su[0][k], su[3][k], su[1][k], su[2][k]) for k in (0, 1))
    bv = tuple(_cut(xp, p.bl, sv[1][k], sv[3][k], sv[0][k], sv[2][k]) for k in (0, 1))
    return Spans((ax[0], ax[1]), (ay[0], ay[1]), (bu[0], bu[1]), (bv[0], bv[1]))


def _like(xp: Any, reference: Array, value: float) -> Any:
    """A number that xp.maximum takes beside `reference`."""
    return value if xp.__name__ == "numpy" else reference.new_tensor(value)


def overlap_area(xp: Any, p: Pose, s: Spans) -> Array:
    """Area of the intersection, (P,), in square metres; never negative."""
    (x1, x2), (y1, y2), (u1, u2), (v1, v2) = (tuple(hi - lo for lo, hi in pair) for pair in s)
    twice = p.al * (x1 + x2) + p.aw * (y1 + y2)
    twice = twice + (p.bl + p.u) * u1 + (p.bl - p.u) * u2 + (p.bw + p.v) * v1 + (p.bw - p.v) * v2
    return xp.maximum(0.5 * twice, _like(xp, twice, 0.0))


def hull_area(p: Pose) -> Array:
    """Area of the convex hull of both rectangles, (P,), in square metres.

    Walks the eight edge normals: in each direction the hull's support is A's or B's, whichever reaches
    further, and between two neighbouring normals each rectangle has one supporting corner. Half the sum of
    the cross products of the supporting corners, in turn, is the area (the shoelace formula).
    """
    c_bl, s_bl, c_bw, s_bw = p.cos * p.bl, p.sin * p.bl, p.cos * p.bw, p.sin * p.bw
    reach_x, reach_y = c_bl + s_bw, s_bl + c_bw
    reach_u, reach_v = p.cos * p.al + p.sin * p.aw, p.sin * p.al + p.cos * p.aw
    # By direction (0, d, 90, 90+d, ... with d = B's angle): does A reach at least as far as B?
    ahead = [p.al >= p.x + reach_x, reach_u >= p.u + p.bl, p.aw >= p.y + reach_y, reach_v >= p.v + p.bw]
    ahead += [p.al >= reach_x - p.x, reach_u >= p.bl - p.u, p.aw >= reach_y - p.y, reach_v >= p.bw - p.v]
    bits = [1.0 * bit for bit in ahead]
    a_step, b_across, b_along = 2 * p.al * p.aw, 2 * p.bw, 2 * p.bl
    twice = (bits[0] + bits[2] + bits[4] + bits[6]) * a_step
    twice = twice + ((1 - bits[1]) * (p.bl + p.u) + (1 - bits[5]) * (p.bl - p.u)) * b_across
    twice = twice + ((1 - bits[3]) * (p.bw + p.v) + (1 - bits[7]) * (p.bw - p.v)) * b_along
    # B's corners, as offsets from its centre: u+v-, u+v+, u-v+, u-v-.
    (px, py), (qx, qy) = (c_bl + s_bw, s_bl - c_bw), (c_bl - s_bw, s_bl + c_bw)
    corners = ((px, py), (qx, qy), (-px, -py), (-qx, -qy))
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    for k in range(8):  # the interval from direction k to k + 1
        (sx, sy), (ox, oy) = signs[k // 2], corners[(k + 1) // 2 % 4]
        cross = sx * p.al * (p.y + oy) - sy * p.aw * (p.x + ox)
        twice = twice + (bits[k] - bits[(k + 1) % 8]) * cross
    return 0.5 * twice
