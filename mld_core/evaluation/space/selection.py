"""The nearest of a set of points for a block of queries: exactly, and without sorting what is far away.

Distances to a sample of the points give each query a limit that its `k` nearest almost surely lie within.
Blocks of distances are compared with it, and only what passes is sorted, as integers that order as (distance,
column) do. Where a limit lets through far too many, the nearest so far give a better one; a query whose limit
let through too few is looked at in full.
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
SAMPLED = 16
WORD = 8
_ROOM = 8
_CELLS = 2**20
_PAIRS = 64
_NONE = ~np.uint64(0)
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
        sample = np.sort(hash_order(len(points), 13)[: max(1, len(points) // SAMPLED)])
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


def squared_norms(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) squared lengths of the rows."""
    return np.asarray(np.einsum("ij,ij->i", points, points), dtype=np.float32)


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
    limit = np.full(len(queries), np.inf, np.float32)
    if _ROOM * k < width:
        among = None if dropped is None else dropped.among(points.sample)
        limit = within_sample(turned, points.near, points.near_norms, k, among)
    passed = Passed.none(len(queries), limit, k, width)
    # Memory that is written again and again: pages that are new each time cost as much as a pass over them.
    spare = np.empty(len(queries) * min(_COLUMNS, width), np.float32)
    for columns in spans(width, _COLUMNS):
        distance = _distances(turned, points, columns, dropped, spare)
        passed.add(distance, np.arange(columns.start, columns.stop))
    few = passed.few(width)
    keys = passed.nearest()
    for span in spans(len(few), max(1, _CELLS // max(width, 1))):
        keys[few[span]] = _in_full(turned, points, k, dropped, few[span])
    return answers(keys, queries)


@dataclass
class Passed:
    """What passed the limits of some queries so far.

    Attributes:
        k: How many are wanted.
        limit: (q,) distances beyond which nothing is kept, or None.
        keys: (q, room) integers that order as (distance, name) do; all bits set = none.
        held: (q,) how many there are.
        spare: What comparisons are written to.
    """

    k: int
    limit: NDArray[np.float32] | None
    keys: NDArray[np.uint64]
    held: NDArray[np.int64]
    spare: NDArray[np.bool_]

    @classmethod
    def none(cls, queries: int, limit: NDArray[np.float32] | None, k: int, width: int) -> Passed:
        """Nothing yet, of `width` points."""
        keys = np.full((queries, min(_ROOM * k, width)), _NONE)
        return cls(k, limit, keys, np.zeros(queries, np.int64), np.empty(0, np.bool_))

    def add(self, distance: NDArray[np.float32], names: NDArray[np.int64]) -> None:
        """Keep what is within the limits.

        Args:
            distance: (q, c) squared distances less the queries' own squared lengths.
            names: (c,) of the points.
        """
        assert self.limit is not None
        if self.spare.size < distance.size:
            self.spare = np.empty(distance.size, np.bool_)
        out = _shaped(self.spare, distance.shape)
        flat, width = np.flatnonzero(np.less_equal(distance, self.limit[:, None], out=out)), distance.shape[1]
        row = flat // width
        self.keep(row, keys_of(distance.ravel()[flat], names[flat - row * width]))

    def keep(self, row: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
        """Keep some (n,) keys of (n,) rising rows."""
        count, room = np.bincount(row, minlength=len(self.held)), self.keys.shape[1]
        stops, held = np.cumsum(count), self.held.copy()
        # Where each goes in the keys of all queries, one after the other.
        place = np.arange(len(row)) + (np.arange(len(held)) * room + held - stops + count)[row]
        over = held + count > room
        self.held += count
        if over.any():
            fits = ~over[row]
            for one in np.flatnonzero(over):
                self._squeeze(int(one), int(held[one]), keys[stops[one] - count[one] : stops[one]])
            keys, place = keys[fits], place[fits]
        self.keys.reshape(-1)[place] = keys

    def _squeeze(self, query: int, held: int, more: NDArray[np.uint64]) -> None:
        """Keep only the nearest of one query: the last of them is its limit from here on, if it has one."""
        own = self.keys[query]
        best = np.partition(np.concatenate([own[:held], more]), self.k - 1)[: self.k] if self.k else more[:0]
        own[: self.k], own[self.k :] = best, _NONE
        self.held[query] = self.k
        if self.limit is not None:
            self.limit[query] = _values(best.max())[()] if self.k else -np.inf

    def few(self, width: int) -> NDArray[np.int64]:
        """Queries whose limit let through too few of `width` points."""
        return np.flatnonzero(self.held < min(self.k, width))

    def nearest(self) -> NDArray[np.uint64]:
        """(q, k) least keys, rising; all bits set = none."""
        return nearest_keys(self.keys[:, : max(int(self.held.max(initial=0)), 1)], self.k)


def nearest_keys(keys: NDArray[np.uint64], k: int) -> NDArray[np.uint64]:
    """(q, k) least keys, rising; all bits set = none."""
    if k < keys.shape[1]:
        keys = np.partition(keys, k, axis=1)[:, :k]
    keys = np.sort(keys, axis=1)
    return np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=_NONE)


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


def within_sample(
    turned: NDArray[np.float32],
    sample: NDArray[np.float32],
    norms: NDArray[np.float32],
    k: int,
    dropped: Dropped,
) -> NDArray[np.float32]:
    """(q,) a distance that more than `k` points are almost surely within: three standard deviations.

    Args:
        turned: (q, D) queries times -2.
        sample: (s, D) about every 16th point, at least one, and
        norms: (s,) their squared lengths.
        k: How many.
        dropped: Pairs of the sample that do not count.
    """
    distance: NDArray[np.float32] = turned @ sample.T
    distance += norms
    if dropped is not None:
        dropped.drop(distance, slice(0, len(sample)))
    place = place_within(k, distance.shape[1])
    return np.partition(distance, place, axis=1)[:, place]


def place_within(k: int, sampled: int) -> int:
    """Which of rising distances to so many sampled points more than `k` points are almost surely within."""
    expected = k / SAMPLED
    return min(int(expected + 3 * np.sqrt(expected) + 3), sampled - 1)


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
    return nearest_keys(keys_of(distance, np.arange(distance.shape[1])), k)


def at_most(values: NDArray[np.float32], limit: float, spare: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where values are at most so large, rising; few are, so words of eight are looked through first.

    `spare` has room for the values and a word more.
    """
    stop = -(-len(values) // WORD) * WORD
    np.less_equal(values, limit, out=spare[: len(values)])
    spare[len(values) : stop] = False
    words = np.flatnonzero(spare[:stop].view(np.uint64) != 0)
    inner = np.flatnonzero(spare[:stop].reshape(-1, WORD)[words])
    return words[inner // WORD] * WORD + inner % WORD


def keys_of(values: NDArray[np.float32], columns: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Integers that order as (value, column) do: a float's bits, all of them turned where it is negative."""
    bits = (values + np.float32(0)).view(np.uint32)
    # Shifted by 31 places a negative number is all ones, as an integer with a sign.
    upper = bits ^ ((bits.view(np.int32) >> 31).view(np.uint32) | _SIGN)
    return (upper.astype(np.uint64) << _SHIFT) | columns.astype(np.uint64)


def _values(keys: NDArray[np.uint64]) -> NDArray[np.float32]:
    upper = np.asarray(keys >> _SHIFT).astype(np.uint32)
    return np.asarray(upper ^ np.where(upper & _SIGN, _SIGN, np.uint32(0xFFFFFFFF))).view(np.float32)


def answers(
    keys: NDArray[np.uint64], queries: NDArray[np.float32], limit: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Names, -1 = none, and squared distances of keys; (q,) `limit` where distances were less that."""
    own = squared_norms(queries)
    values = _values(keys) + (own if limit is None else own + limit)[:, None]
    there = np.isfinite(values)
    values = np.where(there, np.maximum(values, 0), np.float32(np.inf))
    return np.where(there, (keys & _LOW).astype(np.int64), -1), values
