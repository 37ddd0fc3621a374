"""Nearest neighbours under L2 with a unit's own group left out.

Up to 200,000 base points the search is exact. Beyond that the base is cut into cells (an inverted file,
Jegou, Douze and Schmid, 2011): the queries of a cell look into the cells around theirs, as far as holds
0.98 of the neighbours of 500 exactly searched queries and twice as many units as are wanted. All of it is
numpy: with or without faiss the answer is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.selection import ROWS, Dropped, Members, Points, select
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import hash_order
from mld_core.evaluation.statistics.kmeans import assign, fit_centroids
from mld_core.evaluation.statistics.significance import NORMAL_95

EXACT_LIMIT = 200_000
RECALL = 0.98
PROBE_QUERIES = 500
POINTS_PER_LIST_CENTROID = 48
CELLS_PER_ROOT = 2
LIST_ITERATIONS = 5
FEWEST_PROBES = 8
ENOUGH = 2
"""Units that every query is compared with, in multiples of the neighbours wanted."""

Consumer = Callable[[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]], None]
"""Called with rows (q,), neighbours (q, k) by rising distance, -1 = none, and squared distances (q, k)."""


@dataclass(frozen=True)
class Base:
    """The points neighbours are taken from.

    Attributes:
        points: (M, D) float32 coordinates.
        norms: (M,) float32 squared norms.
        groups: (M,) int64 codes, or None where nothing is left out.
        lists: The inverted file, or None for an exact search.
    """

    points: NDArray[np.float32]
    norms: NDArray[np.float32]
    groups: NDArray[np.int64] | None
    lists: Lists | None = None

    @cached_property
    def everyone(self) -> Points:
        """All points, as a block of queries is compared with them."""
        return Points.of(self.points, self.norms)

    @cached_property
    def members(self) -> Members | None:
        """Who is of which group."""
        return None if self.groups is None else Members.of(self.groups)

    def regrouped(self, groups: NDArray[np.int64] | None) -> Base:
        """The same points with other group codes."""
        return replace(self, groups=groups)


@dataclass(frozen=True)
class Lists:
    """An inverted file: the base cut into cells.

    Attributes:
        centroids: (J, D) float32.
        cells: (M,) cell of every base row.
        order: (M,) base rows, cell by cell.
        starts: (J + 1,) where each cell begins in `order`.
        near: (J, J) cells by rising distance of their centroids, itself first.
        probes: (J,) how many of them the queries of each look into.
        recall: Measured on 500 queries.
    """

    centroids: NDArray[np.float32]
    cells: NDArray[np.int32]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    near: NDArray[np.int32]
    probes: NDArray[np.int64]
    recall: float


def squared_norms(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,) squared lengths of the rows."""
    return np.asarray(np.einsum("ij,ij->i", points, points), dtype=np.float32)


def make_base(
    points: NDArray[np.float32],
    groups: NDArray[np.int64] | None,
    workers: Workers,
    *,
    k: int = 128,
    exact_limit: int = EXACT_LIMIT,
) -> Base:
    """Prepare points for searches of up to `k` neighbours; beyond `exact_limit` with an inverted file."""
    base = Base(points, squared_norms(points), groups)
    if len(points) <= exact_limit:
        return base
    return replace(base, lists=_build_lists(base, k, workers))


def search(
    queries: NDArray[np.float32],
    query_groups: NDArray[np.int64] | None,
    base: Base,
    k: int,
    consume: Consumer,
    workers: Workers,
) -> None:
    """Find the `k` nearest base points of every query and hand them to `consume`, block by block.

    Args:
        queries: (N, D) float32 coordinates.
        query_groups: (N,) codes in the naming of `base.groups`; neighbours of the same code are left out.
        base: From `make_base`.
        k: How many neighbours.
        consume: Called from several threads, with every row once.
        workers: Open pool.
    """

    def one(task: tuple[NDArray[np.int64], int]) -> None:
        rows, cell = task
        inside = None if base.lists is None else _inside(base.lists, cell)
        points = base.everyone if inside is None else Points.of(base.points[inside], base.norms[inside])
        for span in spans(len(rows), ROWS):
            here = rows[span]
            groups = None if query_groups is None else query_groups[here]
            consume(here, *_nearest(queries[here], groups, base, points, inside, k))

    workers.each(one, _tasks(queries, base, workers))


def _tasks(
    queries: NDArray[np.float32], base: Base, workers: Workers
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Blocks of query rows with the cell they lie in."""
    if base.lists is None:
        everyone = np.arange(len(queries))
        for span in spans(len(queries), ROWS):
            yield everyone[span], -1
        return
    same = queries is base.points
    cells = base.lists.cells if same else assign(queries, base.lists.centroids, workers)
    order = np.argsort(cells, kind="stable")
    starts = np.searchsorted(cells[order], np.arange(len(base.lists.centroids) + 1))
    for cell in np.flatnonzero(np.diff(starts)):
        yield order[starts[cell] : starts[cell + 1]], int(cell)


def _inside(lists: Lists, cell: int) -> NDArray[np.int64]:
    near = lists.near[cell, : lists.probes[cell]]
    return np.sort(np.concatenate([lists.order[lists.starts[j] : lists.starts[j + 1]] for j in near]))


def _nearest(
    queries: NDArray[np.float32],
    groups: NDArray[np.int64] | None,
    base: Base,
    points: Points,
    inside: NDArray[np.int64] | None,
    k: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `k` nearest of some base rows (rising; None = all) by rising distance, then row."""
    dropped: Dropped = None
    if groups is not None and base.members is not None:
        dropped = base.members.left_out(groups, inside)
    columns, values = select(queries, points, k, dropped)
    if inside is not None:
        columns = np.append(inside, -1)[columns]
    return columns.astype(np.int32), values


def _build_lists(base: Base, k: int, workers: Workers) -> Lists:
    count = int(CELLS_PER_ROOT * np.sqrt(len(base.points)))
    centroids = fit_centroids(
        base.points, count, workers, per_centroid=POINTS_PER_LIST_CENTROID, iterations=LIST_ITERATIONS
    )
    cells = assign(base.points, centroids, workers)
    order = np.argsort(cells, kind="stable")
    starts = np.searchsorted(cells[order], np.arange(len(centroids) + 1))
    near = np.empty((len(centroids), len(centroids)), np.int32)
    gap = np.empty((len(centroids), len(centroids)), np.float32)
    flat = Base(centroids, squared_norms(centroids), None)

    def nearest_cells(span: slice) -> None:
        near[span], gap[span] = _nearest(centroids[span], None, flat, flat.everyone, None, len(centroids))

    workers.each(nearest_cells, spans(len(centroids), ROWS))
    # The nearest centroid of a centroid is itself, but for duplicates: put it first by name.
    own = np.argmax(near == np.arange(len(centroids), dtype=np.int32)[:, None], axis=1)
    near[np.arange(len(centroids)), own] = near[:, 0]
    near[:, 0] = np.arange(len(centroids))
    lists = Lists(centroids, cells, order, starts, near, np.ones(len(centroids), np.int64), 0.0)
    reach, recall = _tune(base, lists, gap, k, workers)
    # One reach for all is that of the many: around a rare or remote unit it holds hardly anybody.
    held = np.cumsum(np.diff(starts)[near], axis=1)
    enough = np.maximum((held < ENOUGH * k).sum(axis=1) + 1, FEWEST_PROBES)
    probes = np.minimum(np.maximum((gap <= reach).sum(axis=1), enough), len(centroids))
    return replace(lists, probes=probes, recall=recall)


def _tune(
    base: Base, lists: Lists, gap: NDArray[np.float32], k: int, workers: Workers
) -> tuple[float, float]:
    """The least distance of cells within which enough neighbours of exact queries lie, and how many do.

    Enough is also the lower 95 % bound of their share: other queries have no fewer.
    """
    rows = np.sort(hash_order(len(base.points), 11)[:PROBE_QUERIES])

    def gaps(span: slice) -> NDArray[np.float32]:
        some = rows[span]
        part = None if base.groups is None else base.groups[some]
        found = _nearest(base.points[some], part, base, base.everyone, None, k)[0]
        # How far the cell of a neighbour is from the query's.
        place = np.argsort(lists.near[lists.cells[some]], axis=1)
        rank = np.take_along_axis(place, lists.cells[found], axis=1)
        apart = np.take_along_axis(gap[lists.cells[some]], rank, axis=1)
        return np.where(found >= 0, apart, np.float32(np.nan))

    apart = np.concatenate(list(workers.map(gaps, spans(len(rows), ROWS // 4))))
    apart = apart[~np.isnan(apart).all(axis=1)]
    if not len(apart):
        return 0.0, 1.0
    there = ~np.isnan(apart)
    ordered = np.sort(apart[there])
    for wanted in np.arange(RECALL, 1.0, 0.001):
        reach = ordered[int(np.ceil(wanted * len(ordered))) - 1]
        share = (apart <= reach).sum(axis=1) / there.sum(axis=1)
        if share.mean() - NORMAL_95 * share.std() / np.sqrt(len(share)) >= RECALL:
            break
    else:
        reach = ordered[-1]
    return float(reach), float((ordered <= reach).mean())
