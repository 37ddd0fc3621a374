"""Which pairs of boxes can overlap at all: bounding circles, tested by one matrix product."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mld_core.geometry.kernels.arrays import FloatArray

MATRIX_CHUNK = 1 << 16  # entries of the test matrix held at once


class Circles(NamedTuple):
    """Bounding circles as columns (N,): centre, radius, and which rows count."""

    x: FloatArray
    y: FloatArray
    r: FloatArray
    rows: FloatArray


class CircleTest(NamedTuple):
    """d^2 - (ra + rb)^2 of all pairs is `left @ right`; pairs with an entry <= `margin` touch."""

    left: FloatArray
    right: FloatArray
    margin: float

    def blocks(self) -> Iterator[tuple[int, int, FloatArray]]:
        """Blocks of rows (start, stop) and the flat positions of touching pairs within each block."""
        step = max(1, MATRIX_CHUNK // max(self.right.shape[1], 1))
        for start in range(0, len(self.left), step):
            part = self.left[start : start + step]
            with np.errstate(invalid="ignore", over="ignore"):  # rows that do not count are NaN: never touch
                yield start, start + len(part), np.flatnonzero(part @ self.right <= self.margin)


def row_and_column(flat: FloatArray, width: int) -> tuple[FloatArray, FloatArray]:
    """Split ascending flat positions of a matrix with `width` columns (a division per entry costs more)."""
    if not len(flat):
        return flat, flat
    edges = np.arange(int(flat[-1]) // width + 2) * width
    row = np.repeat(np.arange(len(edges) - 1), np.diff(np.searchsorted(flat, edges)))
    return row, flat - row * width


def circle_test(a: Circles, b: Circles) -> CircleTest:
    """Factor the test |a|^2 - ra^2 + |b|^2 - rb^2 - 2 (a.b + ra rb) <= 0, about the middle of b.

    The product rounds by at most a few eps times the scene's reach squared; the margin is above that, so no
    touching pair is lost. float32 where the margin stays small beside the boxes, float64 otherwise.
    """
    if not (a.rows.any() and b.rows.any()):
        return CircleTest(np.empty((0, 5)), np.empty((5, len(b.x))), 0.0)
    origin_x = (b.x[b.rows].min() + b.x[b.rows].max()) / 2
    origin_y = (b.y[b.rows].min() + b.y[b.rows].max()) / 2
    parts = []
    for c in (a, b):
        x, y = np.where(c.rows, c.x - origin_x, np.nan), c.y - origin_y
        parts.append((x, y, c.r, x * x + y * y - c.r * c.r))
    reach = max(float(np.nanmax(np.hypot(x, y) + r)) for x, y, r, _ in parts)
    radius = float(np.mean(b.r[b.rows]))
    margins = {dtype: 64 * float(np.finfo(dtype).eps) * reach * reach for dtype in (np.float32, np.float64)}
    dtype: Any = np.float32 if margins[np.float32] < 0.1 * radius * radius else np.float64
    (ax, ay, ar, aq), (bx, by, br, bq) = parts
    left = np.stack([-2 * ax, -2 * ay, -2 * ar, aq, np.ones(len(ax))], 1).astype(dtype)
    right = np.stack([bx, by, br, np.ones(len(bx)), bq], 0).astype(dtype)
    return CircleTest(left, right, margins[dtype])
