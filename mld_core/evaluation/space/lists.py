"""An inverted file (Jegou, Douze and Schmid, 2011): points cut into cells, of which a query looks into a few.

Into which is decided for every query: those whose centroids are within a multiple of the distance that its
neighbours lie within, which a sample of the points around tells, and not much farther than that of its own
cell. Which multiple holds enough of the neighbours of exactly searched queries is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.selection import (
    ROWS,
    SAMPLED,
    WORD,
    Members,
    Points,
    answers,
    at_most,
    keys_of,
    nearest_keys,
    place_within,
    select,
    squared_norms,
)
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import hash_order, hash_uniform
from mld_core.evaluation.statistics.kmeans import assign, fit_centroids
from mld_core.evaluation.statistics.significance import NORMAL_95

RECALL = 0.98
PROBE_QUERIES = 500
POINTS_PER_CENTROID = 48
CELLS_PER_ROOT = 1
ITERATIONS = 5
ENOUGH = 4
"""Units that every query is compared with, in multiples of the neighbours wanted."""

KNOWN = 128
"""Units of the cells whose sample limits what passes: the farthest of a few lets very many through."""

BLOCK = 2_048
"""Queries that are looked at together, whatever their cells: each call compares more of them."""

CLOSE = 0.95
"""Share of the neighbours in the cells whose sample tells how far they are."""

_APART = 0.998

_LEAST = np.float32(1e-12)
_SLACK = np.float32(2e-6)
_STREAM = 23
_AT_ONCE = 2**20
_HITS = 2**17
_KEPT = 2**20
_SIZE = np.uint32(0x7FFFFFFF)

Exact = Callable[[NDArray[np.int64], int], NDArray[np.int32]]
"""(q, k) nearest base rows of some base rows, -1 = none, searched in full."""


@dataclass(frozen=True)
class Lists:
    """The points, cell by cell.

    Attributes:
        centroids: (J, D) float32.
        cells: (M,) cell of every base row.
        order: (M,) base rows, cell by cell, rising in each.
        starts: (J + 1,) where each cell begins in `order`.
        points: (M, D + 2) coordinates in that order, squared lengths and ones: see `_turned`.
        sample: (s,) rising places in `order` of about every 16th point, at random.
        begins: (J + 1,) where each cell begins in `sample`.
        near: (J, J) cells by rising distance of their centroids, itself first.
        enough: (J,) how many of them the queries of each look into in any case.
        close: (J,) in how many of them the sample tells how far the neighbours are.
        known: (J,) and in how many at least it tells what they are within.
        k: The neighbours that was measured for.
        margin: How much farther than its own a centroid may be from a query.
        ratio: And how far, in multiples of the distance that its `k` neighbours lie within.
        recall: Measured on 500 queries.
    """

    centroids: NDArray[np.float32]
    cells: NDArray[np.int32]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    points: NDArray[np.float32]
    sample: NDArray[np.int64]
    begins: NDArray[np.int64]
    near: NDArray[np.int32]
    enough: NDArray[np.int64]
    close: NDArray[np.int64]
    known: NDArray[np.int64]
    k: int
    margin: float
    ratio: float
    recall: float

    @property
    def bits(self) -> int:
        """Bits of a base row's number."""
        return max(len(self.order) - 1, 1).bit_length()

    @property
    def block(self) -> int:
        """Queries that are looked at together: their number, 31 bits of a distance and a row share 64."""
        return int(min(BLOCK, 2 ** (33 - self.bits)))


def build_lists(
    points: NDArray[np.float32],
    groups: NDArray[np.int64] | None,
    exact: Exact,
    k: int,
    workers: Workers,
) -> Lists:
    """Cut points into cells and find out how far queries for `k` neighbours have to look."""
    count = int(CELLS_PER_ROOT * np.sqrt(len(points)))
    centroids = fit_centroids(points, count, workers, per_centroid=POINTS_PER_CENTROID, iterations=ITERATIONS)
    cells = assign(points, centroids, workers)
    order = np.argsort(cells, kind="stable")
    starts = np.searchsorted(cells[order], np.arange(len(centroids) + 1))
    near, gap = _near_cells(centroids, workers)
    sample = np.flatnonzero(hash_uniform(order.astype(np.uint64), _STREAM) < 1 / SAMPLED)
    # One measure for all is that of the many: around a rare or remote unit it holds hardly anybody.
    held = np.cumsum(np.diff(starts)[near], axis=1)
    enough, known = (
        np.minimum((held < many * k).sum(axis=1) + 1, len(centroids)) for many in (ENOUGH, KNOWN)
    )
    ordered = np.empty((len(points), points.shape[1] + 2), np.float32)
    for span in spans(len(points), _AT_ONCE):
        some = points[order[span]]
        ordered[span, :-2], ordered[span, -2], ordered[span, -1] = some, squared_norms(some), 1
    begins, unmeasured = np.searchsorted(sample, starts), (k, np.inf, np.inf, 1.0)
    cut = (centroids, cells, order, starts, ordered, sample, begins)
    lists = Lists(*cut, near, enough, enough, known, *unmeasured)
    return _tuned(lists, points, groups, gap, exact, workers)


def _near_cells(
    centroids: NDArray[np.float32], workers: Workers
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(J, J) cells by rising distance of their centroids, itself first, and the squared distances."""
    count = len(centroids)
    near, gap = np.empty((count, count), np.int32), np.empty((count, count), np.float32)
    everyone = Points.of(centroids, squared_norms(centroids))

    def some(span: slice) -> None:
        near[span], gap[span] = select(centroids[span], everyone, count)

    workers.each(some, spans(count, ROWS))
    # The nearest centroid of a centroid is itself, but for duplicates: put it first by name.
    own = np.argmax(near == np.arange(count, dtype=np.int32)[:, None], axis=1)
    near[np.arange(count), own] = near[:, 0]
    near[:, 0] = np.arange(count)
    return near, gap


def _tuned(
    lists: Lists,
    points: NDArray[np.float32],
    groups: NDArray[np.int64] | None,
    gap: NDArray[np.float32],
    exact: Exact,
    workers: Workers,
) -> Lists:
    """The least ratio that enough neighbours of exact queries lie within.

    Enough is also the lower 95 % bound of their share: other queries have no fewer.
    """
    rows = np.sort(hash_order(len(points), 11)[:PROBE_QUERIES])
    found = np.concatenate(
        list(workers.map(lambda span: exact(rows[span], lists.k), spans(len(rows), ROWS // 4)))
    )
    there = found >= 0
    asked = there.any(axis=1)
    rows, found, there = rows[asked], found[asked], there[asked]
    if not len(rows):
        return replace(lists, margin=0.0, ratio=0.0)
    own, theirs = lists.cells[rows], lists.cells[found]
    place = np.argsort(lists.near[own], axis=1)
    apart = np.take_along_axis(gap[own], np.take_along_axis(place, theirs, axis=1), axis=1)
    close = (gap <= np.quantile(apart[there], CLOSE)).sum(axis=1)
    lists = replace(lists, close=np.maximum(close, lists.enough))

    codes = None if groups is None else groups[lists.order]

    def reached(one: int) -> NDArray[np.float32]:
        row = rows[one : one + 1]
        some = None if groups is None else groups[row]
        cell, turned = int(own[one]), _turned(points[row])
        return _within(lists, turned, cell, lists.close[cell], (lists.k,), some, codes).ravel()

    reach = np.concatenate(list(workers.map(reached, range(len(rows)))))[:, None]
    norms = squared_norms(points[rows])[:, None]
    far = np.sqrt(np.maximum(_to_centroids(points[rows], lists.centroids) + norms, 0))
    reach = np.maximum(np.sqrt(np.maximum(reach + norms, 0)), _LEAST)
    theirs = np.take_along_axis(far, theirs, axis=1)
    margin = theirs - far[np.arange(len(rows)), own][:, None]
    most = max(float(np.quantile(margin[there], _APART, method="higher")), 0.0)
    ratio = np.where(margin <= most, theirs / reach, np.inf)
    # A cell whose centre is as near as the neighbours is looked into in any case.
    ratio = np.maximum(ratio, 1.0)
    ordered = np.sort(ratio[there])
    for wanted in np.arange(RECALL, 1.0, 0.001):
        enough = ordered[int(np.ceil(wanted * len(ordered))) - 1]
        share = ((ratio <= enough) & there).sum(axis=1) / there.sum(axis=1)
        if np.isinf(enough) or share.mean() - NORMAL_95 * share.std() / np.sqrt(len(share)) >= RECALL:
            break
    if np.isinf(enough):
        return replace(lists, recall=1.0)
    return replace(lists, margin=most, ratio=float(enough), recall=float((ordered <= enough).mean()))


def _turned(queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """(q, D + 2): times a point of the lists the squared distance less the query's own squared length.

    And less what stands negative in the last column, the query's limit.
    """
    made = np.empty((len(queries), queries.shape[1] + 2), np.float32)
    made[:, :-2], made[:, -2], made[:, -1] = queries * np.float32(-2), 1, 0
    return made


def _to_centroids(queries: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances less the queries' own squared lengths."""
    return np.asarray((queries * np.float32(-2)) @ centroids.T + squared_norms(centroids), np.float32)


def _within(
    lists: Lists,
    turned: NDArray[np.float32],
    cell: int,
    count: int,
    ks: tuple[int, ...],
    groups: NDArray[np.int64] | None,
    codes: NDArray[np.int64] | None,
) -> NDArray[np.float32]:
    """(len(ks), q) distances that more than `k` points of `count` cells are almost surely within."""
    begins = lists.begins
    close = np.sort(lists.near[cell, :count])
    place = np.concatenate([lists.sample[begins[j] : begins[j + 1]] for j in close])
    if not len(place):
        place = np.arange(lists.starts[cell], lists.starts[cell] + 1)
    sample = lists.points[place]
    members = None if groups is None or codes is None else Members.of(codes[place])
    wanted = [place_within(k, len(place)) for k in ks]
    made = np.empty((len(ks), len(turned)), np.float32)
    for span in spans(len(turned), max(1, _AT_ONCE // len(place))):
        distance = turned[span] @ sample.T
        if members is not None and groups is not None:
            members.left_out(groups[span], None).drop(distance, slice(0, len(place)))
        distance.partition(sorted(set(wanted)), axis=1)
        made[:, span] = distance[:, wanted].T
    return made


def _looked(
    lists: Lists,
    queries: NDArray[np.float32],
    runs: list[tuple[slice, int]],
    reach: NDArray[np.float32],
) -> list[tuple[slice, NDArray[np.int64]]]:
    """Cells that any query looks into: where each lies in the order, and which queries do."""
    own = squared_norms(queries)
    far = np.sqrt(np.maximum(_to_centroids(queries, lists.centroids) + own[:, None], 0))
    reach = np.maximum(np.sqrt(np.maximum(reach + own, 0)), _LEAST)
    most = reach * np.float32(lists.ratio)
    for span, cell in runs:
        most[span] = np.minimum(far[span, cell] + np.float32(lists.margin), most[span])
    looked = far <= most[:, None]
    for span, cell in runs:
        looked[span, lists.near[cell, : lists.enough[cell]]] = True
    used = np.flatnonzero(looked.any(axis=0))
    queried = np.ascontiguousarray(looked[:, used].T)
    where = (slice(int(lists.starts[j]), int(lists.starts[j + 1])) for j in used)
    return [(one, np.flatnonzero(who)) for one, who in zip(where, queried, strict=True)]


def search_lists(
    lists: Lists,
    queries: NDArray[np.float32],
    cells: NDArray[np.int32],
    k: int,
    groups: NDArray[np.int64] | None,
    codes: NDArray[np.int64] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` nearest of some queries, by rising distance, then base row.

    Args:
        lists: The points.
        queries: (q, D) coordinates, at most `lists.block`.
        cells: (q,) the cell that the nearest centroid of each is of; those of one cell stand together.
        k: How many neighbours.
        groups: (q,) codes, or None where nobody is left out.
        codes: (M,) codes of the base rows in the order of the lists; those of a query's own are left out.

    Returns:
        (q, k) base rows, -1 = none, and their squared distances.
    """
    turned = _turned(queries)
    stops = np.append(np.flatnonzero(np.diff(cells)) + 1, len(cells))
    runs = [(slice(a, b), int(cells[a])) for a, b in zip([0, *stops[:-1]], stops, strict=True)]
    reach, limit = np.empty((2, len(queries)), np.float32)
    for span, cell in runs:
        own, close, known = None if groups is None else groups[span], lists.close[cell], lists.known[cell]
        reach[span], limit[span] = _within(lists, turned[span], cell, close, (lists.k, k), own, codes)
        if known > close:
            limit[span] = _within(lists, turned[span], cell, known, (k,), own, codes)[0]
    looked = _looked(lists, queries, runs, reach)
    # Of whom the sample knows nothing is looked at in full below. The slack is that of rounding.
    limit = np.where(np.isfinite(limit), limit + _SLACK * squared_norms(queries), np.float32(0))
    turned[:, -1] = -limit
    width = sum(one.stop - one.start for one, _ in looked)
    batch = _Batch(lists, len(queries), k, groups, codes)
    for cell_span, rows in looked:
        some = turned[rows]
        for part in spans(cell_span.stop - cell_span.start, max(1, _AT_ONCE // len(rows))):
            batch.compare(some, rows, slice(cell_span.start + part.start, cell_span.start + part.stop))
    keys, held = batch.nearest()
    for one in np.flatnonzero(held < min(k, width)):
        seen = [span for span, rows in looked if one in rows]
        keys[one] = _in_full(lists, turned[one], seen, k, None if groups is None else groups[one], codes)
    return answers(keys, queries, limit)


class _Batch:
    """Distances of a block of queries to some cells after each other in memory, looked through at once.

    They are given less the limits: what is at most zero passes, whosever it is. It is kept as one integer
    that orders as (query, distance, base row) do, so that one sort tells the nearest of all queries.
    """

    def __init__(
        self,
        lists: Lists,
        queries: int,
        k: int,
        groups: NDArray[np.int64] | None,
        codes: NDArray[np.int64] | None,
    ) -> None:
        self.lists, self.queries, self.k, self.groups, self.codes = lists, queries, k, groups, codes
        # Memory that is written again and again, as in `select`.
        size = max(_AT_ONCE, queries)
        self.spare, self.inside = np.empty(size, np.float32), np.empty(size + WORD, np.bool_)
        self.filled, self.held = 0, 0
        self.passed: list[NDArray[np.uint64]] = []
        self.begins: list[int] = []
        self.rows: list[NDArray[np.int64]] = []
        self.where: list[slice] = []

    def compare(self, turned: NDArray[np.float32], rows: NDArray[np.int64], where: slice) -> None:
        """Take the distances of some queries to the points at `where` in the order; both not too many."""
        near = self.lists.points[where]
        size = len(rows) * len(near)
        if self.filled + size > len(self.spare):
            self.keep()
        out = self.spare[self.filled : self.filled + size].reshape(len(rows), len(near))
        np.matmul(turned, near.T, out=out)
        self.begins.append(self.filled)
        self.rows.append(rows)
        self.where.append(where)
        self.filled += size

    def keep(self) -> None:
        """Keep what passed, and begin anew."""
        if not self.filled:
            return
        found, begins = at_most(self.spare[: self.filled], 0, self.inside), np.array(self.begins)
        starts = np.array([one.start for one in self.where])
        widths = np.array([one.stop for one in self.where]) - starts
        first, rows = np.cumsum([0, *map(len, self.rows[:-1])]), np.concatenate(self.rows)
        for span in spans(len(found), _HITS):
            flat = found[span]
            # Pieces follow each other: what is theirs is repeated for whatever passed in each.
            passed = np.diff(np.searchsorted(flat, np.append(begins, self.filled)))
            inner, width = flat - np.repeat(begins, passed), np.repeat(widths, passed)
            row = inner // width
            place = np.repeat(starts, passed) + inner - row * width
            row = rows[np.repeat(first, passed) + row]
            if self.groups is not None and self.codes is not None:
                there = np.flatnonzero(self.groups[row] != self.codes[place])
                flat, row, place = flat[there], row[there], place[there]
            self.passed.append(self._keys(row, self.spare[flat], self.lists.order[place]))
            self.held += len(flat)
            if self.held > _KEPT:
                self._squeeze()
        self.filled, self.begins, self.rows, self.where = 0, [], [], []

    def _keys(
        self, row: NDArray[np.int64], values: NDArray[np.float32], names: NDArray[np.int64]
    ) -> NDArray[np.uint64]:
        """(n,) integers that order as (query, value, base row) do; values are at most zero."""
        upper = row.astype(np.uint64) << np.uint64(31)
        # Of numbers without a sign the bits order as the numbers do: here the other way round.
        upper |= (~values.view(np.uint32) & _SIZE).astype(np.uint64)
        return (upper << np.uint64(self.lists.bits)) | names.astype(np.uint64)

    def _squeeze(self) -> None:
        """Keep only the nearest of every query."""
        keys = np.sort(np.concatenate(self.passed))
        rank = np.arange(len(keys)) - np.searchsorted(keys, self._begins())[self._row(keys)]
        self.passed = [keys[rank < self.k]]
        self.held = len(self.passed[0])

    def _begins(self) -> NDArray[np.uint64]:
        return np.arange(self.queries, dtype=np.uint64) << np.uint64(31 + self.lists.bits)

    def _row(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        return np.asarray(keys >> np.uint64(31 + self.lists.bits)).astype(np.int64)

    def nearest(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """(q, k) least keys as `keys_of` makes them, all bits set = none; how many of each query passed."""
        self.keep()
        keys = np.sort(np.concatenate([*self.passed, np.empty(0, np.uint64)]))
        begins = np.searchsorted(keys, self._begins())
        held = np.diff(np.append(begins, len(keys)))
        place = begins[:, None] + np.arange(self.k)
        keys = keys[np.minimum(place, len(keys) - 1)] if len(keys) else np.zeros(place.shape, np.uint64)
        names = keys & np.uint64(2**self.lists.bits - 1)
        # The bits of a negative number, all of them turned.
        upper = (keys >> np.uint64(self.lists.bits)) & np.uint64(_SIZE)
        there = np.arange(self.k) < held[:, None]
        return np.where(there, upper << np.uint64(32) | names, ~np.uint64(0)), held


def _in_full(
    lists: Lists,
    turned: NDArray[np.float32],
    seen: list[slice],
    k: int,
    group: np.int64 | None,
    codes: NDArray[np.int64] | None,
) -> NDArray[np.uint64]:
    """(k,) keys of the nearest of one query in some cells, from all its distances."""
    distance: NDArray[np.float32] = np.concatenate([lists.points[one] @ turned for one in seen])
    if group is not None and codes is not None:
        distance[np.concatenate([codes[one] for one in seen]) == group] = np.inf
    names = np.concatenate([lists.order[one] for one in seen])
    return np.asarray(nearest_keys(keys_of(distance, names)[None], k)[0], np.uint64)
