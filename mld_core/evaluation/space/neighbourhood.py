"""What is around a unit: sums over its nearest neighbours, or, above five million units, over its cells.

Both answer the same questions - sums of a value over ever wider surroundings, counts of the labels, how far
away they are - so that the estimators do not know which of them they were given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.neighbours import EXACT_LIMIT, Base, make_base, search
from mld_core.evaluation.space.selection import squared_norms
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.kmeans import two_level_assign, two_level_centroids

K_GRID = (8, 16, 32, 64, 128)
CELL_LIMIT = 5_000_000
CELL_SIZE = 256
CELL_STEPS = (1, 2, 3, 5, 9)
"""How many nearest cells stand for each entry of `K_GRID`: the unit's own and up to its 8 nearest."""

_ROWS = 16_384
_SUMMED = 4_096
_LANES = 4
_BITS = 8
_APART = 2**_BITS

Counted = Callable[[NDArray[np.int64]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Two figures of some rows, one line for each choice of base units."""


class Neighbourhood(Protocol):
    """Surroundings of N units among M base units, own group left out."""

    distance: NDArray[np.float32]
    """(N, 2) logarithms of the distances at 8 and at 32 neighbours."""

    def sums(
        self, values: NDArray[np.floating], ks: tuple[int, ...], rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Sum of the values of the nearest `k` base units whose value is not NaN, and how many those are.

        Args:
            values: (M,) 0, 1, or NaN = as if the unit were not there.
            ks: Entries of `K_GRID`, or 96.
            rows: The units asked about, None = all.

        Returns:
            Two (len(rows), len(ks)) float32 arrays.
        """
        ...

    def within(self, wrong: NDArray[np.bool_], kept: NDArray[np.bool_], k: int) -> Counted:
        """Wrong and kept units, and kept ones, within the reach of the nearest `k` base units, often at once.

        Args:
            wrong: (M,) which base units are wrong.
            kept: (H, M) which are counted; the others take their place among the `k` all the same.
            k: One of `K_GRID`.

        Returns:
            What gives for some rows two (H, len(rows)) float32 arrays.
        """
        ...

    def label_counts(
        self, labels: NDArray[np.int64], n_class: int, k: int, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(len(rows), K) neighbours of each label (-1 = none) among the nearest `k` base units."""
        ...

    def mixed_counts(
        self, weights: NDArray[np.floating], k: int, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(len(rows), K) sums of the (M, K) label weights over the nearest `k` base units."""
        ...


@dataclass
class Nearest:
    """Surroundings as lists of neighbours: `index` is (N, k) base rows by rising distance, -1 = none."""

    index: NDArray[np.int32]
    distance: NDArray[np.float32]
    workers: Workers

    def sums(
        self, values: NDArray[np.floating], ks: tuple[int, ...], rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Neighbourhood.sums`."""
        asked = np.arange(len(self.index)) if rows is None else rows
        total = np.zeros((len(asked), len(ks)), np.float32)
        count = np.zeros((len(asked), len(ks)), np.float32)
        there = np.isfinite(values)
        if not np.isin(values[there], (0, 1)).all():
            raise ValueError("values other than 0, 1 and NaN: sums are counts")
        # Both counts in one number, so that one look-up and one running sum do. The place of -1 is the last:
        # nobody.
        table = np.append(there + _APART * (values == 1), 0).astype(np.uint16)

        def one(span: slice) -> None:
            running = np.cumsum(table[self.index[asked[span]]], axis=1, dtype=np.uint16)
            for place, k in enumerate(ks):
                both = _last_within(running, k)
                total[span, place], count[span, place] = both // _APART, both % _APART

        self.workers.each(one, spans(len(asked), _SUMMED))
        return total, count

    def within(self, wrong: NDArray[np.bool_], kept: NDArray[np.bool_], k: int) -> Counted:
        """See `Neighbourhood.within`."""
        # Eight counts in one number: k is at most 128, so the sums stay apart.
        lanes = [range(first, min(first + _LANES, len(kept))) for first in range(0, len(kept), _LANES)]
        table = np.zeros((len(wrong), len(lanes)), np.uint64)
        for lane, halves in enumerate(lanes):
            for place, half in enumerate(halves):
                one = kept[half] * np.uint64(1) + (kept[half] & wrong) * np.uint64(_APART)
                table[:, lane] |= one << np.uint64(2 * _BITS * place)

        def counted(rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            size = np.empty((len(kept), len(rows)), np.float32)
            bad = np.empty((len(kept), len(rows)), np.float32)
            for span in spans(len(rows), _SUMMED):
                sums = _summed(self.index[rows[span], :k], table)
                for lane, halves in enumerate(lanes):
                    for place, half in enumerate(halves):
                        both = (sums[:, lane] >> np.uint64(2 * _BITS * place)).astype(np.uint16)
                        size[half, span], bad[half, span] = both % _APART, both // _APART
            return bad, size

        return counted

    def label_counts(
        self, labels: NDArray[np.int64], n_class: int, k: int, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """See `Neighbourhood.label_counts`."""
        made = np.empty((len(rows), n_class), np.float32)
        for span in spans(len(rows), _SUMMED):
            near = self.index[rows[span], :k]
            flat = np.where(near < 0, 0, labels[near] + 1) + np.arange(len(near))[:, None] * (n_class + 1)
            counted = np.bincount(flat.ravel(), minlength=len(near) * (n_class + 1))
            made[span] = counted.reshape(len(near), n_class + 1)[:, 1:]
        return made

    def mixed_counts(
        self, weights: NDArray[np.floating], k: int, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """See `Neighbourhood.mixed_counts`."""
        made = np.empty((len(rows), weights.shape[1]), np.float32)
        for span in spans(len(rows), _SUMMED):
            made[span] = _summed(self.index[rows[span], :k], weights)
        return made


def _summed(near: NDArray[np.int32], table: NDArray[Any]) -> NDArray[Any]:
    """(n, L) sums of the rows of a table that (n, k) numbers name, -1 = none; one look fetches all L."""
    there = near >= 0
    begins = np.append(0, np.cumsum(there.sum(axis=1)))
    chosen = csr_array((np.ones(begins[-1], table.dtype), near[there], begins), (len(near), len(table)))
    return np.asarray(chosen @ table)


def _last_within(running: NDArray[np.uint16], k: int) -> NDArray[np.uint16]:
    """(n,) running sums (n, K) where the `k`-th unit that counts, or the last of fewer, has been added."""
    width, here = running.shape[1], np.arange(len(running))
    if k <= width and (running[:, k - 1] % _APART == k).all():
        return running[:, k - 1]
    passed = np.zeros(len(running), np.int64)
    step = 1 << (width.bit_length() - 1)
    while step:
        ahead = passed + step
        count = running[here, np.minimum(ahead, width) - 1] % _APART
        passed = np.where((ahead <= width) & (count <= k), ahead, passed)
        step >>= 1
    return np.where(passed > 0, running[here, passed - 1], np.uint16(0))


class Remembered:
    """The last few tables made of an array, so that the blocks of a walk, in any thread, share one."""

    def __init__(self, most: int = 4) -> None:
        self._most, self._lock = most, threading.Lock()
        self._made: dict[tuple[int, Any], tuple[NDArray[Any], NDArray[Any]]] = {}

    def of(self, source: NDArray[Any], key: Any, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The table of an array: `make()` the first time; the array must stay as it is."""
        with self._lock:
            # The array is held with its table: no other one can come to its address.
            found = self._made.pop((id(source), key), None) or (source, make())
            self._made[id(source), key] = found
            if len(self._made) > self._most:
                del self._made[next(iter(self._made))]
            return found[1]


@dataclass
class Cells:
    """Surroundings as cells of k-means: a unit's own cell and its nearest cells, the unit itself taken off.

    Attributes:
        cell: (N,) the unit's cell.
        near: (J, 9) nearest cells of each cell, itself first.
        base_cell: (M,) cell of every base unit.
        own: (N,) the base row that is the unit itself, -1 where it is not in the base.
        distance: See `Neighbourhood`.
        tables: Labels of the cells, for as long as they are asked for.
    """

    cell: NDArray[np.int32]
    near: NDArray[np.int32]
    base_cell: NDArray[np.int32]
    own: NDArray[np.int64]
    distance: NDArray[np.float32]

    tables: Remembered = field(default_factory=Remembered)

    def sums(
        self, values: NDArray[np.floating], ks: tuple[int, ...], rows: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Neighbourhood.sums`; `k` picks the number of cells."""
        asked = np.arange(len(self.cell)) if rows is None else rows
        steps = [self._step(k) for k in ks]
        total, size = (one[:, steps] for one in self._wide(values))
        made = np.empty((2, len(asked), len(ks)), np.float32)
        for span in spans(len(asked), _ROWS):
            cell, mine = self.cell[asked[span]], self.own[asked[span]]
            own = np.where(mine >= 0, values[mine], np.nan)
            made[0, span], made[1, span] = without_own(total[cell], size[cell], own)
        return made[0], made[1]

    def _step(self, k: int) -> int:
        return int(min(steps_of(k), self.near.shape[1])) - 1

    def _wide(self, values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(J, 9) sum of the values of ever more cells around each, and how many are not NaN."""
        cells, there = len(self.near), ~np.isnan(values)
        by_cell = np.bincount(self.base_cell, weights=np.where(there, values, 0.0), minlength=cells)
        size = np.bincount(self.base_cell, weights=there, minlength=cells)
        return np.cumsum(by_cell[self.near], axis=1), np.cumsum(size[self.near], axis=1)

    def within(self, wrong: NDArray[np.bool_], kept: NDArray[np.bool_], k: int) -> Counted:
        """See `Neighbourhood.within`."""
        step, wide = self._step(k), []
        for half in kept:
            total, size = self._wide(np.where(half, wrong, np.float32(np.nan)))
            wide.append((total[:, [step]], size[:, [step]]))

        def counted(rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            cell, mine = self.cell[rows], self.own[rows]
            made = np.empty((2, len(kept), len(rows)), np.float32)
            for place, (half, (total, size)) in enumerate(zip(kept, wide, strict=True)):
                own = np.where((mine >= 0) & half[mine], wrong[mine], np.nan)
                bad, count = without_own(total[cell], size[cell], own)
                made[0, place], made[1, place] = bad[:, 0], count[:, 0]
            return made[0], made[1]

        return counted

    def label_counts(
        self, labels: NDArray[np.int64], n_class: int, k: int, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """See `Neighbourhood.label_counts`; scaled to `k`, so that no test gains from a large cell."""

        def counted() -> NDArray[np.float32]:
            known = labels >= 0
            flat = self.base_cell[known].astype(np.int64) * n_class + labels[known]
            table = np.bincount(flat, minlength=len(self.near) * n_class).reshape(-1, n_class)
            return self._spread(table, k)

        table, mine = self.tables.of(labels, (n_class, k), counted), self.own[rows]
        return labels_without_own(table[self.cell[rows]], np.where(mine >= 0, labels[mine], -1), k)

    def mixed_counts(
        self, weights: NDArray[np.floating], k: int, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """See `Neighbourhood.mixed_counts`."""

        def counted() -> NDArray[np.float64]:
            table = np.zeros((len(self.near), weights.shape[1]))
            np.add.at(table, self.base_cell, weights)
            return self._spread(table, k)

        table, mine = self.tables.of(weights, (weights.shape[1], k), counted), self.own[rows]
        left = table[self.cell[rows]] - np.where(mine >= 0, weights[mine].T, 0.0).T
        return np.asarray(left * (k / np.maximum(left.sum(axis=1, keepdims=True), k)), dtype=np.float32)

    def _spread(self, table: NDArray[Any], k: int) -> NDArray[Any]:
        """(J, K) sums over the cells that stand for `k` neighbours; of counts as float32, else as given."""
        made = np.zeros(table.shape, np.float32 if table.dtype.kind == "i" else table.dtype)
        for step in range(self._step(k) + 1):
            made += table[self.near[:, step]]
        return made


def without_own(
    total: NDArray[np.floating], size: NDArray[np.floating], own: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sums and counts of cells, (n, S) each, without the unit's (n,) own value; NaN = it is not in them."""
    there = ~np.isnan(own)
    return (
        np.maximum(total - np.where(there, own, 0.0)[:, None], 0).astype(np.float32),
        np.maximum(size - there[:, None], 0).astype(np.float32),
    )


def labels_without_own(counted: NDArray[np.float32], own: NDArray[np.int64], k: int) -> NDArray[np.float32]:
    """(n, K) labels of cells without the unit's (n,) own, -1 = none, scaled to `k`; changes `counted`."""
    mine = np.flatnonzero(own >= 0)
    counted[mine, own[mine]] -= 1
    total = counted.sum(axis=1, keepdims=True)
    return np.asarray(counted * (k / np.maximum(total, k)), dtype=np.float32)


def steps_of(k: int) -> int:
    """Number of cells that stand for `k` neighbours.

    Example:
        >>> [steps_of(k) for k in (8, 32, 96, 128)]
        [1, 3, 5, 9]
    """
    fitting = [step for size, step in zip(K_GRID, CELL_STEPS, strict=True) if size <= k]
    return fitting[-1] if fitting else 1


@dataclass(frozen=True)
class Surroundings:
    """A neighbourhood and how it was found: "exact", "lists" or "cells", and the measured recall."""

    around: Neighbourhood
    method: str
    recall: float
    base: Base | None


def surroundings(
    points: NDArray[np.float32],
    groups: NDArray[np.int64] | None,
    base_rows: NDArray[np.int64],
    workers: Workers,
    *,
    k: int = 128,
    exact_limit: int = EXACT_LIMIT,
    cell_limit: int = CELL_LIMIT,
) -> Surroundings:
    """Look around every unit of a split among its own labelled units.

    Args:
        points: (N, D) coordinates.
        groups: (N,) group codes.
        base_rows: (M,) rows of the labelled units.
        workers: Open pool.
        k: Neighbours kept.
        exact_limit: Base units up to which the search is exact.
        cell_limit: Base units above which cells are used.
    """
    if len(base_rows) > cell_limit:
        return Surroundings(_cells(points, base_rows, workers), "cells", float("nan"), None)
    everyone = len(base_rows) == len(points)
    own = points if everyone else points[base_rows]
    codes = groups if everyone or groups is None else groups[base_rows]
    base = make_base(own, codes, workers, k=k, exact_limit=exact_limit)
    around = look(points, groups, base, k, workers)
    recall = 1.0 if base.lists is None else base.lists.recall
    return Surroundings(around, "exact" if base.lists is None else "lists", recall, base)


def look(
    queries: NDArray[np.float32],
    query_groups: NDArray[np.int64] | None,
    base: Base,
    k: int,
    workers: Workers,
) -> Nearest:
    """The `k` nearest base units of every query as a neighbourhood."""
    index = np.empty((len(queries), k), np.int32)
    distance = np.empty((len(queries), 2), np.float32)

    def keep(rows: NDArray[np.int64], found: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        index[rows] = found
        distance[rows] = log_distances(values, (8, 32))

    search(queries, query_groups, base, k, keep, workers)
    return Nearest(index, distance, workers)


def log_distances(squared: NDArray[np.float32], places: tuple[int, ...]) -> NDArray[np.float32]:
    """Natural logarithms of the distances at the given ranks (1 = nearest), else of the last finite one."""
    have = np.isfinite(squared).sum(axis=1)
    made = np.zeros((len(squared), len(places)), np.float32)
    for column, place in enumerate(places):
        at = np.clip(np.minimum(have, place) - 1, 0, None)
        value = squared[np.arange(len(squared)), at]
        made[:, column] = np.where(
            have > 0, np.log(np.maximum(np.where(have > 0, value, 1.0), 1e-20)) / 2, 0.0
        )
    return made


def _cells(points: NDArray[np.float32], base_rows: NDArray[np.int64], workers: Workers) -> Cells:
    count = max(1, len(base_rows) // CELL_SIZE)
    centroids = two_level_centroids(points, count, workers)
    cell = two_level_assign(points, centroids, workers)
    flat = np.concatenate(centroids[1])
    near = near_cells(flat, workers)
    own = np.full(len(points), -1, np.int64)
    own[base_rows] = np.arange(len(base_rows))
    return Cells(cell, near, cell[base_rows], own, cell_distances(points, cell, near, flat, workers))


def cell_distances(
    points: NDArray[np.float32],
    cell: NDArray[np.int32],
    near: NDArray[np.int32],
    centroids: NDArray[np.float32],
    workers: Workers,
) -> NDArray[np.float32]:
    """(N, 2) log distances to the centroid of a point's cell and to that of the farthest of its nearest."""
    gap = np.empty((len(points), 2), np.float32)

    def far(span: slice) -> None:
        for column, step in enumerate((0, min(8, near.shape[1] - 1))):
            offset = points[span] - centroids[near[cell[span], step]]
            gap[span, column] = np.log(np.maximum(squared_norms(offset), 1e-20)) / 2

    workers.each(far, spans(len(points), _ROWS))
    return gap


def near_cells(centroids: NDArray[np.float32], workers: Workers) -> NDArray[np.int32]:
    """(J, <= 9) the nearest cells of each cell, itself first."""
    keep = min(max(CELL_STEPS), len(centroids))
    near = np.empty((len(centroids), keep), np.int32)
    base = Base(centroids, squared_norms(centroids), np.arange(len(centroids)))

    def put(rows: NDArray[np.int64], found: NDArray[np.int32], _: NDArray[np.float32]) -> None:
        near[rows, 0] = rows
        near[rows, 1:] = found[:, : keep - 1]

    search(centroids, base.groups, base, max(keep - 1, 1), put, workers)
    return near
