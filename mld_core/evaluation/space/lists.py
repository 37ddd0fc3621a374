"""An inverted file (Jegou, Douze and Schmid, 2011): points cut into cells, of which a query looks into a few.

Into which is decided for every query: those whose centroids are hardly farther from it than that of its own
cell. How much farther holds enough of the neighbours of exactly searched queries is measured.
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
    Coded,
    Passed,
    Points,
    answers,
    select,
    squared_norms,
    within_sample,
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

BLOCK = 1_024
"""Queries of one cell that are looked at together."""

_AROUND = 1 - (1 - RECALL) / 2
_STREAM = 23
_COMMON = 16
_AT_ONCE = 2**20

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
        points: (M, D) and
        norms: (M,) coordinates and squared lengths in that order.
        sampled: (M,) which of them are of the sample that gives limits.
        near: (J, J) cells by rising distance of their centroids, itself first.
        enough: (J,) how many of them the queries of each look into in any case.
        around: (J,) and among how many the others are.
        margin: How much farther than its own a centroid may be from a query.
        recall: Measured on 500 queries.
    """

    centroids: NDArray[np.float32]
    cells: NDArray[np.int32]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    points: NDArray[np.float32]
    norms: NDArray[np.float32]
    sampled: NDArray[np.bool_]
    near: NDArray[np.int32]
    enough: NDArray[np.int64]
    around: NDArray[np.int64]
    margin: float
    recall: float


@dataclass(frozen=True)
class _Probed:
    """Cells that any query of a block looks into: where each lies in the order, and which queries do."""

    spans: list[slice]
    queries: list[NDArray[np.int64]]


def build_lists(points: NDArray[np.float32], exact: Exact, k: int, workers: Workers) -> Lists:
    """Cut points into cells and find out how far queries for `k` neighbours have to look."""
    count = int(CELLS_PER_ROOT * np.sqrt(len(points)))
    centroids = fit_centroids(points, count, workers, per_centroid=POINTS_PER_CENTROID, iterations=ITERATIONS)
    cells = assign(points, centroids, workers)
    order = np.argsort(cells, kind="stable")
    starts = np.searchsorted(cells[order], np.arange(len(centroids) + 1))
    near, gap = _near_cells(centroids, workers)
    sampled = hash_uniform(order.astype(np.uint64), _STREAM) < 1 / SAMPLED
    ordered = points[order]
    # One margin for all is that of the many: around a rare or remote unit it holds hardly anybody.
    held = np.cumsum(np.diff(starts)[near], axis=1)
    enough = np.minimum((held < ENOUGH * k).sum(axis=1) + 1, len(centroids))
    lists = Lists(
        centroids,
        cells,
        order,
        starts,
        ordered,
        squared_norms(ordered),
        sampled,
        near,
        enough,
        np.full(len(centroids), len(centroids)),
        np.inf,
        1.0,
    )
    return _tuned(lists, points, gap, exact, k, workers)


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
    gap: NDArray[np.float32],
    exact: Exact,
    k: int,
    workers: Workers,
) -> Lists:
    """The least margin that enough neighbours of exact queries lie within.

    Enough is also the lower 95 % bound of their share: other queries have no fewer.
    """
    rows = np.sort(hash_order(len(points), 11)[:PROBE_QUERIES])

    def margins(span: slice) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        some = rows[span]
        found = exact(some, k)
        own, theirs = lists.cells[some], lists.cells[found]
        place = np.argsort(lists.near[own], axis=1)
        apart = np.take_along_axis(gap[own], np.take_along_axis(place, theirs, axis=1), axis=1)
        far = _to_centroids(points[some], lists.centroids) + squared_norms(points[some])[:, None]
        far = np.sqrt(np.maximum(far, 0))
        margin = np.take_along_axis(far, theirs, axis=1) - far[np.arange(len(some)), own][:, None]
        return np.where(found >= 0, apart, np.nan), np.where(found >= 0, np.maximum(margin, 0), np.nan)

    made = list(workers.map(margins, spans(len(rows), ROWS // 4)))
    apart, margin = (np.concatenate([one[part] for one in made]) for part in (0, 1))
    asked = ~np.isnan(apart).all(axis=1)
    if not asked.any():
        return replace(lists, around=lists.enough, margin=0.0)
    apart, margin = apart[asked], margin[asked]
    there = ~np.isnan(apart)
    reach = np.quantile(apart[there], _AROUND, method="higher")
    margin[apart > reach] = np.inf
    ordered = np.sort(margin[there])
    for wanted in np.arange(RECALL, 1.0, 0.001):
        enough = ordered[int(np.ceil(wanted * len(ordered))) - 1]
        share = (margin <= enough).sum(axis=1) / there.sum(axis=1)
        if np.isinf(enough) or share.mean() - NORMAL_95 * share.std() / np.sqrt(len(share)) >= RECALL:
            break
    around = np.full(len(gap), gap.shape[1]) if np.isinf(enough) else (gap <= reach).sum(axis=1)
    recall = float((ordered <= enough).mean()) if np.isfinite(enough) else 1.0
    return replace(lists, around=np.maximum(around, lists.enough), margin=float(enough), recall=recall)


def _to_centroids(queries: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances less the queries' own squared lengths."""
    return np.asarray((queries * np.float32(-2)) @ centroids.T + squared_norms(centroids), np.float32)


def _probed(lists: Lists, queries: NDArray[np.float32], cell: int) -> _Probed:
    near = lists.near[cell, : lists.around[cell]]
    far = _to_centroids(queries, lists.centroids[near])
    own = squared_norms(queries)
    limit = (np.sqrt(np.maximum(far[:, 0] + own, 0)) + np.float32(lists.margin)) ** 2 - own
    looked = far <= limit[:, None]
    looked[:, : lists.enough[cell]] = True
    used = np.flatnonzero(looked.any(axis=0))
    where = [slice(int(lists.starts[j]), int(lists.starts[j + 1])) for j in near[used]]
    return _Probed(where, [np.flatnonzero(looked[:, place]) for place in used])


def _with_sample(
    points: NDArray[np.float32], norms: NDArray[np.float32], sampled: NDArray[np.bool_]
) -> Points:
    sample = np.flatnonzero(sampled)
    sample = sample if len(sample) else np.zeros(1, np.int64)
    return Points(points, norms, sample, points[sample], norms[sample])


def search_lists(
    lists: Lists,
    queries: NDArray[np.float32],
    cell: int,
    k: int,
    groups: NDArray[np.int64] | None,
    codes: NDArray[np.int64] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` nearest of some queries of one cell, by rising distance, then base row.

    Args:
        lists: The points.
        queries: (q, D) coordinates, at most some hundred.
        cell: The cell their nearest centroid is of.
        k: How many neighbours.
        groups: (q,) codes, or None where nobody is left out.
        codes: (M,) codes of the base rows; those of a query's own are left out.

    Returns:
        (q, k) base rows, -1 = none, and their squared distances.
    """
    probed = _probed(lists, queries, cell)
    turned = queries * np.float32(-2)
    # Whoever looks into other cells besides has a limit that is too wide by little.
    looks = zip(probed.spans, probed.queries, strict=True)
    common = [one for one, who in looks if _COMMON * len(who) >= len(queries)]
    sample = np.concatenate([np.flatnonzero(lists.sampled[one]) + one.start for one in common])
    if not len(sample):
        sample = np.arange(common[0].start, common[0].stop)[:1]
    width = sum(one.stop - one.start for one in probed.spans)
    dropped = None
    if groups is not None and codes is not None:
        dropped = Coded(groups, codes[lists.order[sample]])
    limit = within_sample(turned, lists.points[sample], lists.norms[sample], k, dropped)
    passed = Passed.none(limit, k, width)
    # Memory that is written again and again, as in `select`.
    spare = np.empty(max(_AT_ONCE, len(queries)), np.float32)
    for cell_span, rows in zip(probed.spans, probed.queries, strict=True):
        some = turned[rows]
        for part in spans(cell_span.stop - cell_span.start, max(1, _AT_ONCE // len(rows))):
            where = slice(cell_span.start + part.start, cell_span.start + part.stop)
            near = lists.points[where]
            distance = spare[: len(rows) * len(near)].reshape(len(rows), len(near))
            np.matmul(some, near.T, out=distance)
            distance += lists.norms[where]
            passed.add(distance, lists.order[where], rows, groups, codes)
    found, squared = answers(passed.nearest(), queries)
    few = passed.few(width)
    if len(few):
        place = np.concatenate([np.arange(one.start, one.stop) for one in probed.spans])
        place = place[np.argsort(lists.order[place], kind="stable")]
        inside = lists.order[place]
        again = _with_sample(lists.points[place], lists.norms[place], lists.sampled[place])
        dropped = Coded(groups[few], codes[inside]) if groups is not None and codes is not None else None
        columns, squared[few] = select(queries[few], again, k, dropped)
        found[few] = np.append(inside, -1)[columns]
    return found, squared
