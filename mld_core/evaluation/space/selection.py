"""The nearest of a set of points for a block of queries: exactly, and without sorting what is far away.

Distances to a sample of the points give each query a limit that its `k` nearest almost surely lie within.
Blocks of distances are compared with it, and only what passes is sorted, as integers that order as (distance,
column) do. A query whose limit let through too few, or far too many, is looked at in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import hash_order

ROWS = 256
"""Queries of a block: what a caller cuts its queries into."""

_COLUMNS = 8_192
_SAMPLED = 16
_ROOM = 8
_CELLS = 2**20
_PAIRS = 64
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_SIGN = np.uint32(0x80000000)


@dataclass(frozen=True)
class Points:
    """Points that queries are compared with.

    Attributes:
        points: (m, D) float32 coordinates.
        norms: (m,) float32 squared lengths.
        sample: (s,) rising places of about every 16th of them, at least one, at random.
        near: (s, D) and
        near_norms: (s,) those again.
    """

    points: NDArray[np.float32]
    norms: NDArray[np.float32]
    sample: NDArray[np.int64]
    near: NDArray[np.float32]
    near_norms: NDArray[np.float32]

    @classmethod
    def of(cls, points: NDArray[np.float32], norms: NDArray[np.float32]) -> Points:
        """Draw the sample."""
        sample = np.sort(hash_order(len(points), 13)[: max(1, len(points) // _SAMPLED)])
        return cls(points, norms, sample, points[sample], norms[sample])


@dataclass(frozen=True)
class LeftOut:
    """Pairs of a query and a column that do not count, because both are of one group.

    Attributes:
        rows: (P,) queries and
        columns: (P,) columns of the pairs, by rising column.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def drop(self, distance: NDArray[np.float32], columns: slice) -> None:
        """Set them to infinity in the (q, c) distances to some columns."""
        first, last = np.searchsorted(self.columns, (columns.start, columns.stop))
        distance[self.rows[first:last], self.columns[first:last] - columns.start] = np.inf

    def among(self, sample: NDArray[np.int64]) -> LeftOut:
        """The pairs as columns of a sample."""
        place = np.searchsorted(sample, self.columns)
        there = place < len(sample)
        there[there] = sample[place[there]] == self.columns[there]
        return LeftOut(self.rows[there], place[there])


@dataclass(frozen=True)
class Coded:
    """The same by codes, for groups so large that their pairs would not fit in memory.

    Attributes:
        groups: (q,) codes of the queries.
        codes: (m,) codes of the points.
    """

    groups: NDArray[np.int64]
    codes: NDArray[np.int64]

    def drop(self, distance: NDArray[np.float32], columns: slice) -> None:
        """See `LeftOut.drop`."""
        distance[self.groups[:, None] == self.codes[None, columns]] = np.inf

    def among(self, sample: NDArray[np.int64]) -> Coded:
        """See `LeftOut.among`."""
        return Coded(self.groups, self.codes[sample])


@dataclass(frozen=True)
class Members:
    """Who is of which group.

    Attributes:
        codes: (M,) group of every base row.
        order: (M,) base rows by rising code.
        ordered: (M,) codes in that order.
    """

    codes: NDArray[np.int64]
    order: NDArray[np.int64]
    ordered: NDArray[np.int64]

    @classmethod
    def of(cls, codes: NDArray[np.int64]) -> Members:
        """Sort the codes."""
        order = np.argsort(codes, kind="stable")
        return cls(codes, order, codes[order])

    def left_out(self, groups: NDArray[np.int64], base_rows: NDArray[np.int64] | None) -> LeftOut | Coded:
        """Whom of some base rows (rising; None = all) queries of these groups do not see."""
        first, last = (np.searchsorted(self.ordered, groups, side=side) for side in ("left", "right"))
        count = last - first
        width = len(self.codes) if base_rows is None else len(base_rows)
        if count.sum() * _PAIRS > max(len(groups) * width, _CELLS):
            return Coded(groups, self.codes if base_rows is None else self.codes[base_rows])
        rows = np.repeat(np.arange(len(groups)), count)
        column = self.order[np.arange(len(rows)) + np.repeat(first - np.cumsum(count) + count, count)]
        order = np.argsort(column, kind="stable")
        everyone = LeftOut(rows[order], column[order])
        return everyone if base_rows is None else everyone.among(base_rows)


Dropped = LeftOut | Coded | None


def select(
    queries: NDArray[np.float32], points: Points, k: int, dropped: Dropped = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` nearest points of every query, by rising distance, then column.

    Args:
        queries: (q, D) float32 coordinates, at most a few hundred.
        points: What they are compared with.
        k: How many.
        dropped: Pairs that do not count.

    Returns:
        (q, k) columns, -1 = none, and their squared distances, infinite where there is none.
    """
    turned = queries * np.float32(-2)
    width = len(points.points)
    room = min(_ROOM * k, width)
    keys = np.full((len(queries), room), ~np.uint64(0))
    held = np.zeros(len(queries), np.int64)
    limit = _limits(turned, points, k, dropped) if room < width else np.full(len(queries), np.inf, np.float32)
    # Memory that is written again and again: pages that are new each time cost as much as a pass over them.
    spare = np.empty(len(queries) * min(_COLUMNS, width), np.float32)
    passed = np.empty(len(spare), bool)
    for columns in spans(width, _COLUMNS):
        distance = _distances(turned, points, columns, dropped, spare)
        flat = np.flatnonzero(np.less_equal(distance, limit[:, None], out=_shaped(passed, distance.shape)))
        starts = np.searchsorted(flat, np.arange(len(queries) + 1) * distance.shape[1])
        count = np.diff(starts)
        rows = np.repeat(np.arange(len(queries)), count)
        place = np.arange(len(flat)) + np.repeat(held - starts[:-1], count)
        fits = place < room
        if not fits.all():
            flat, rows, place = flat[fits], rows[fits], place[fits]
        keys[rows, place] = _keys(distance.ravel()[flat], flat - rows * distance.shape[1] + columns.start)
        held += count
        limit[held > room] = -np.inf
    odd = np.flatnonzero((held > room) | (held < min(k, width)))
    keys = np.sort(keys[:, : max(int(held.max(initial=0)), 1)], axis=1)[:, :k]
    if keys.shape[1] < k:
        keys = np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=~np.uint64(0))
    for span in spans(len(odd), max(1, _CELLS // max(width, 1))):
        keys[odd[span]] = _in_full(turned, points, k, dropped, odd[span])
    return _answers(keys, queries)


def _shaped(spare: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return spare[: shape[0] * shape[1]].reshape(shape)


def _distances(
    turned: NDArray[np.float32], points: Points, columns: slice, dropped: Dropped, spare: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Squared distances less the queries' own squared lengths."""
    some = points.points[columns]
    distance = np.matmul(turned, some.T, out=_shaped(spare, (len(turned), len(some))))
    distance += points.norms[columns]
    if dropped is not None:
        dropped.drop(distance, columns)
    return distance


def _limits(turned: NDArray[np.float32], points: Points, k: int, dropped: Dropped) -> NDArray[np.float32]:
    """(q,) a distance that more than `k` points are almost surely within: three standard deviations."""
    distance: NDArray[np.float32] = turned @ points.near.T
    distance += points.near_norms
    if dropped is not None:
        dropped.among(points.sample).drop(distance, slice(0, len(points.sample)))
    expected = k / _SAMPLED
    place = min(int(expected + 3 * np.sqrt(expected) + 3), distance.shape[1] - 1)
    return np.partition(distance, place, axis=1)[:, place]


def _in_full(
    turned: NDArray[np.float32], points: Points, k: int, dropped: Dropped, rows: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """(len(rows), k) keys of the nearest of some queries, from all their distances."""
    everything = slice(0, len(points.points))
    own = np.full(len(turned), -1, np.int64)
    own[rows] = np.arange(len(rows))
    some: Dropped = None
    if isinstance(dropped, LeftOut):
        there = own[dropped.rows] >= 0
        some = LeftOut(own[dropped.rows[there]], dropped.columns[there])
    elif dropped is not None:
        some = Coded(dropped.groups[rows], dropped.codes)
    spare = np.empty(len(rows) * len(points.points), np.float32)
    distance = _distances(turned[rows], points, everything, some, spare)
    keys = _keys(distance, np.arange(distance.shape[1]))
    if k < keys.shape[1]:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys = np.sort(keys, axis=1)
    return np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=~np.uint64(0))


def _keys(values: NDArray[np.float32], columns: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Integers that order as (value, column) do: a float's bits, all of them turned where it is negative."""
    bits = (values + np.float32(0)).view(np.uint32)
    upper = bits ^ np.where(bits & _SIGN, np.uint32(0xFFFFFFFF), _SIGN)
    return (upper.astype(np.uint64) << _SHIFT) | columns.astype(np.uint64)


def _answers(
    keys: NDArray[np.uint64], queries: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    upper = (keys >> _SHIFT).astype(np.uint32)
    values = (upper ^ np.where(upper & _SIGN, _SIGN, np.uint32(0xFFFFFFFF))).view(np.float32)
    values = values + np.asarray(np.einsum("ij,ij->i", queries, queries), np.float32)[:, None]
    there = np.isfinite(values)
    values = np.where(there, np.maximum(values, 0), np.float32(np.inf))
    return np.where(there, (keys & _LOW).astype(np.int64), -1), values
