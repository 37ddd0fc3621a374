"""Nearest neighbours under L2 with a unit's own group left out.

Up to 200,000 base points the search is exact. Beyond that the base is cut into cells (an inverted file,
Jegou, Douze and Schmid, 2011): the queries of a cell look into the cells nearest to theirs, more of them
until the recall on 500 exactly searched queries reaches 0.98. All of it is numpy: with or without faiss the
answer is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import hash_order
from mld_core.evaluation.statistics.kmeans import assign, fit_centroids

EXACT_LIMIT = 200_000
RECALL = 0.98
PROBE_QUERIES = 500
POINTS_PER_LIST_CENTROID = 48
_TILE = 2**23
_STRIDE = 8

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

    def regrouped(self, groups: NDArray[np.int64] | None) -> Base:
        """The same points with other group codes."""
        return replace(self, groups=groups)


@dataclass(frozen=True)
class Lists:
    """An inverted file: the base cut into cells.

    Attributes:
        centroids: (J, D) float32.
        order: (M,) base rows, cell by cell.
        starts: (J + 1,) where each cell begins in `order`.
        near: (J, J') cells by rising distance of their centroids, itself first.
        probes: How many of them a query looks into.
        recall: Measured on 500 queries.
    """

    centroids: NDArray[np.float32]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    near: NDArray[np.int32]
    probes: int
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
        members = None if base.lists is None else _members(base.lists, cell, base.lists.probes)
        size = len(base.points) if members is None else len(members)
        for span in spans(len(rows), max(16, _TILE // max(size, 1))):
            here = rows[span]
            groups = None if query_groups is None else query_groups[here]
            consume(here, *_nearest(queries[here], groups, base, members, k))

    workers.each(one, _tasks(queries, base, workers))


def _tasks(
    queries: NDArray[np.float32], base: Base, workers: Workers
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Blocks of query rows with the cell they lie in."""
    if base.lists is None:
        everyone = np.arange(len(queries))
        for span in spans(len(queries), max(16, _TILE // max(len(base.points), 1))):
            yield everyone[span], -1
        return
    cells = assign(queries, base.lists.centroids, workers)
    order = np.argsort(cells, kind="stable")
    starts = np.searchsorted(cells[order], np.arange(len(base.lists.centroids) + 1))
    for cell in np.flatnonzero(np.diff(starts)):
        yield order[starts[cell] : starts[cell + 1]], int(cell)


def _members(lists: Lists, cell: int, probes: int) -> NDArray[np.int64]:
    near = lists.near[cell, :probes]
    return np.sort(np.concatenate([lists.order[lists.starts[j] : lists.starts[j + 1]] for j in near]))


def _nearest(
    queries: NDArray[np.float32],
    groups: NDArray[np.int64] | None,
    base: Base,
    members: NDArray[np.int64] | None,
    k: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `k` nearest of the given base rows, by rising distance, then row."""
    points, norms, codes = base.points, base.norms, base.groups
    if members is not None:
        points, norms, codes = points[members], norms[members], None if codes is None else codes[members]
    distance: NDArray[Any] = (queries * np.float32(-2)) @ points.T
    distance += norms
    if groups is not None and codes is not None:
        distance[groups[:, None] == codes[None, :]] = np.inf
    columns, values = _smallest(distance, min(k, len(points)))
    values += squared_norms(queries)[:, None]
    np.maximum(values, 0, out=values)
    found = columns if members is None else members[columns]
    near = np.where(np.isfinite(values), found, -1).astype(np.int32)
    if near.shape[1] < k:
        pad = ((0, 0), (0, k - near.shape[1]))
        near = np.pad(near, pad, constant_values=-1)
        values = np.pad(values, pad, constant_values=np.inf)
    return near, values


def _smallest(distance: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Columns and values of the `k` smallest entries of each row, sorted by value, then column."""
    width = distance.shape[1]
    columns: NDArray[np.int64] | None = None
    if width > 16 * k and width > 4 * _STRIDE * 64:
        columns = _candidates(distance, k)
    if columns is None:
        columns = np.argpartition(distance, k - 1, axis=1)[:, :k] if k < width else None
    if columns is None:
        columns = np.broadcast_to(np.arange(width), distance.shape)
    values = np.take_along_axis(distance, columns, axis=1)
    order = np.lexsort((columns, values), axis=1)[:, :k]
    return np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1)


def _candidates(distance: NDArray[np.float32], k: int) -> NDArray[np.int64] | None:
    """Columns that hold the `k` smallest of every row, found by a threshold from every 8th column.

    Comparing with a threshold is several times cheaper than partitioning the row. None where a threshold
    fell short.
    """
    sample = np.ascontiguousarray(distance[:, ::_STRIDE])
    place = min(int(k / _STRIDE + 4 * np.sqrt(k / _STRIDE) + 4), sample.shape[1] - 1)
    limit = np.partition(sample, place, axis=1)[:, place]
    flat = np.flatnonzero(distance <= limit[:, None])
    rows = flat // distance.shape[1]
    count = np.bincount(rows, minlength=len(distance))
    if count.min() < k or count.max() > 64 * k:
        return None
    starts = np.concatenate([[0], np.cumsum(count)[:-1]])
    columns = np.zeros((len(distance), count.max()), np.int64)
    columns[rows, np.arange(len(flat)) - starts[rows]] = flat % distance.shape[1]
    values = np.take_along_axis(distance, columns, axis=1)
    values[np.arange(count.max())[None, :] >= count[:, None]] = np.inf
    return np.take_along_axis(columns, np.argpartition(values, k - 1, axis=1)[:, :k], axis=1)


def _build_lists(base: Base, k: int, workers: Workers) -> Lists:
    count = int(4 * np.sqrt(len(base.points)))
    centroids = fit_centroids(base.points, count, workers, per_centroid=POINTS_PER_LIST_CENTROID)
    cells = assign(base.points, centroids, workers)
    order = np.argsort(cells, kind="stable")
    starts = np.searchsorted(cells[order], np.arange(len(centroids) + 1))
    near = np.empty((len(centroids), len(centroids)), np.int32)
    flat = Base(centroids, squared_norms(centroids), None)

    def nearest_cells(span: slice) -> None:
        near[span] = _nearest(centroids[span], None, flat, None, len(centroids))[0]

    workers.each(nearest_cells, spans(len(centroids), 256))
    # The nearest centroid of a centroid is itself, but for duplicates: put it first by name.
    own = np.argmax(near == np.arange(len(centroids), dtype=np.int32)[:, None], axis=1)
    near[np.arange(len(centroids)), own] = near[:, 0]
    near[:, 0] = np.arange(len(centroids))
    lists = Lists(centroids, order, starts, near, 1, 0.0)
    probes, recall = _tune(base, lists, cells, k, workers)
    return replace(lists, probes=probes, recall=recall)


def _tune(base: Base, lists: Lists, cells: NDArray[np.int32], k: int, workers: Workers) -> tuple[int, float]:
    """Raise the number of probed cells until the recall on exactly searched queries is reached."""
    rows = np.sort(hash_order(len(base.points), 11)[:PROBE_QUERIES])
    groups = None if base.groups is None else base.groups[rows]
    exact: dict[int, NDArray[np.int32]] = {}

    def truth(span: slice) -> None:
        part = None if groups is None else groups[span]
        exact[span.start] = _nearest(base.points[rows[span]], part, base, None, k)[0]

    workers.each(truth, spans(len(rows), 16))
    wanted = np.concatenate([exact[start] for start in sorted(exact)])
    probes, recall = 8, 0.0
    while True:

        def hits(place: int, probes: int = probes) -> int:
            members = _members(lists, int(cells[rows[place]]), probes)
            part = None if groups is None else groups[place : place + 1]
            found = _nearest(base.points[rows[place : place + 1]], part, base, members, k)[0]
            return int(np.isin(wanted[place], found[0]).sum())

        recall = sum(workers.map(hits, range(len(rows)))) / wanted.size
        if recall >= RECALL or probes >= len(lists.centroids):
            return probes, recall
        probes = min(len(lists.centroids), probes + max(4, probes // 2))
