"""Greedy NMS in numpy: blocks of score order, each cut by what was kept before, then settled within.

A block is settled by fixed-point iteration over its "i suppresses j" edges: keep = no kept box suppresses me,
until nothing changes. Edges run from higher to lower score: after k rounds the first k links of every
chain are right and the result is exactly the greedy one. Memory is bounded by the block, not by the
square of the number of boxes.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from mld_core.geometry.kernels.arrays import FloatArray, Mode, NmsMode
from mld_core.geometry.kernels.axis import (
    Corners,
    as_corners,
    circles_of,
    iou_block,
    iou_of_pairs,
    solid_areas,
)
from mld_core.geometry.kernels.circles import CircleTest, circle_test, row_and_column
from mld_core.geometry.kernels.engine_numpy import circles, footprint, table
from mld_core.geometry.kernels.pairs import pair_values, valid_rows

BLOCK = 512
ENTRIES = 1 << 16  # matrix entries tested at once
CROWDED = 0.15  # share of pairs that can overlap from which on all are computed

Hits = Iterator[tuple[FloatArray, FloatArray]]


class Rows(NamedTuple):
    """Rows in score order: class codes (empty: one class) and each row's own threshold."""

    codes: FloatArray
    limits: FloatArray

    def same(self, i: FloatArray, j: FloatArray) -> Any:
        """Whether rows i and j are of one class (broadcasting)."""
        return self.codes[i] == self.codes[j] if len(self.codes) else True


class Suppression(Protocol):
    """Which rows suppress which."""

    def hits(self, i: FloatArray, j: FloatArray, *, upper: bool) -> Hits:
        """Positions (p, q) with row i[p] suppressing row j[q], in blocks; `upper`: only p < q."""


def keep(boxes: FloatArray, codes: FloatArray, limits: FloatArray, most: int, mode: NmsMode) -> FloatArray:
    """Rows kept of boxes in score order, ascending, at most `most`; thresholds and class codes by row."""
    rule: Suppression
    if mode == "iou":
        rule = BoxRule(boxes, Rows(codes, limits.astype(boxes.dtype)))
    elif mode == "circle":
        rule = CircleRule(boxes, Rows(codes, limits**2))
    else:
        rule = RotatedRule(boxes, Rows(codes, limits), mode)
    return greedy(len(boxes), rule, most)


def greedy(count: int, rule: Suppression, most: int) -> FloatArray:
    """Rows kept, ascending; `count` rows in score order, at most `most` of them."""
    kept = np.empty(0, np.int64)
    for start in range(0, count, BLOCK):
        block = np.arange(start, min(start + BLOCK, count))
        alive = np.ones(len(block), bool)
        for _, q in rule.hits(kept, block, upper=False):
            alive[q] = False
        block = block[alive]
        edges = list(rule.hits(block, block, upper=True))
        if edges:
            block = block[_settle(len(block), *(np.concatenate(parts) for parts in zip(*edges, strict=True)))]
        kept = np.concatenate([kept, block])
        if len(kept) >= most:
            break
    return kept[:most]


def _settle(count: int, i: FloatArray, j: FloatArray) -> FloatArray:
    """Which of `count` rows survive the edges i -> j (i < j)."""
    keep = np.ones(count, bool)
    while True:
        after = np.ones(count, bool)
        after[j[keep[i]]] = False
        if np.array_equal(after, keep):
            return keep
        keep = after


def _row_chunks(i: FloatArray, j: FloatArray) -> Iterator[tuple[int, FloatArray]]:
    step = max(1, ENTRIES // max(len(j), 1))
    for start in range(0, len(i), step):
        yield start, i[start : start + step]


def _touching(test: CircleTest, i: FloatArray, j: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.flatnonzero(test.left[i] @ test.right[:, j] <= test.margin)


def _pairs(flat: FloatArray, width: int, start: int, upper: bool) -> tuple[FloatArray, FloatArray]:
    """Flat positions in a chunk that begins at row `start` as (p, q); `upper`: only p < q."""
    p, q = row_and_column(flat, width)
    p = p + start
    later = p < q if upper else slice(None)
    return p[later], q[later]


class BoxRule:
    """Axis-aligned boxes: IoU above the row's threshold, compared in the boxes' dtype."""

    def __init__(self, boxes: FloatArray, rows: Rows) -> None:
        corners = as_corners(np, boxes)
        self._boxes: Corners = corners._replace(area=solid_areas(corners))
        own = circles_of(corners)
        self._rows, self._test = rows, circle_test(own, own)

    def hits(self, i: FloatArray, j: FloatArray, *, upper: bool) -> Hits:
        """See `Suppression.hits`."""
        if not len(self._test.left):
            return
        b = self._boxes.rows(j)
        for start, part in _row_chunks(i, j):
            found = _touching(self._test, part, j)
            if len(found) > CROWDED * len(part) * len(j):
                matrix = np.empty((len(part), len(j)), b.x1.dtype)
                iou_block(self._boxes.rows((part, None)), b, matrix, np.empty((2, *matrix.shape), b.x1.dtype))
                over = matrix > self._rows.limits[part, None]
                over &= self._rows.same(part[:, None], j)
                yield _pairs(np.flatnonzero(over), len(j), start, upper)
                continue
            p, q = _pairs(found, len(j), start, upper)
            over = iou_of_pairs(self._boxes, i[p], self._boxes, j[q]) > self._rows.limits[i[p]]
            over &= self._rows.same(i[p], j[q])
            yield p[over], q[over]


class RotatedRule:
    """Rotated footprints ("bev") or upright volumes ("3d"): IoU in float64 above the row's threshold."""

    def __init__(self, boxes: FloatArray, rows: Rows, mode: Mode) -> None:
        valid = valid_rows(np, boxes)
        self._table = table(boxes, valid)
        own = circles(self._table, valid)
        self._rows, self._mode, self._test = rows, mode, circle_test(own, own)
        t = self._table
        self._size = t.l * t.w if mode == "bev" else t.l * t.w * t.h

    def hits(self, i: FloatArray, j: FloatArray, *, upper: bool) -> Hits:
        """See `Suppression.hits`."""
        if not len(self._test.left):
            return
        waiting: list[tuple[FloatArray, FloatArray]] = []
        count = 0
        for start, part in _row_chunks(i, j):
            p, q = _pairs(_touching(self._test, part, j), len(j), start, upper)
            near = self._possible(i[p], j[q])
            waiting.append((p[near], q[near]))
            count += len(waiting[-1][0])
            if count >= ENTRIES or start + len(part) == len(i):
                p, q = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
                waiting, count = [], 0
                yield from self._exact(i, j, p, q)

    def _possible(self, a: FloatArray, b: FloatArray) -> FloatArray:
        """The smaller over the larger size bounds the IoU; 1e-9 covers its rounding."""
        size_a, size_b = self._size[a], self._size[b]
        near = np.minimum(size_a, size_b) > (self._rows.limits[a] - 1e-9) * np.maximum(size_a, size_b)
        near &= self._rows.same(a, b)
        return np.asarray(near)

    def _exact(self, i: FloatArray, j: FloatArray, p: FloatArray, q: FloatArray) -> Hits:
        for at in range(0, len(p), 1 << 13):
            pp, qq = p[at : at + (1 << 13)], q[at : at + (1 << 13)]
            rows = i[pp]
            value = pair_values(np, self._mode, self._table.take(rows), self._table.take(j[qq]), footprint)
            over = value > self._rows.limits[rows]
            yield pp[over], qq[over]


class CircleRule:
    """Centres at most the row's (squared) distance apart."""

    def __init__(self, boxes: FloatArray, rows: Rows) -> None:
        self._x, self._y = np.ascontiguousarray(boxes[:, :2].T, np.float64)
        self._rows = rows

    def hits(self, i: FloatArray, j: FloatArray, *, upper: bool) -> Hits:
        """See `Suppression.hits`."""
        x, y = self._x[j], self._y[j]
        for start, part in _row_chunks(i, j):
            dx, dy = self._x[part, None] - x, self._y[part, None] - y
            dx *= dx
            dy *= dy
            dx += dy
            near = dx <= self._rows.limits[part, None]
            near &= self._rows.same(part[:, None], j)
            yield _pairs(np.flatnonzero(near), len(j), start, upper)
