"""Seeded k-means and assignment to centroids; the same centroids for any number of threads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import hash_order

ITERATIONS = 10
SAMPLED = 64
"""Points that are looked at for each centroid of two levels."""
_CELLS = 2**22


def fit_centroids(
    points: NDArray[np.float32],
    count: int,
    workers: Workers,
    *,
    per_centroid: int = 256,
    iterations: int = ITERATIONS,
) -> NDArray[np.float32]:
    """Lloyd's algorithm on a hash-drawn sample of `per_centroid` points for each centroid.

    Args:
        points: (N, D) coordinates.
        count: Centroids wanted; at most N are made.
        workers: Open pool.
        per_centroid: Size of the sample.
        iterations: How often centroids are moved.

    Returns:
        (min(count, N), D) float32 centroids.
    """
    count = max(1, min(count, len(points)))
    order = hash_order(len(points), 7)[: count * per_centroid]
    sample = points[np.sort(order)]
    centroids = points[np.sort(order[:count])].copy()
    for _ in range(iterations):
        cells = assign(sample, centroids, workers)
        size = np.bincount(cells, minlength=count)
        by_cell = np.argsort(cells, kind="stable")
        starts = np.concatenate([[0], np.cumsum(size)[:-1]])
        filled = size > 0
        sums = np.add.reduceat(sample[by_cell].astype(np.float64), starts[filled], axis=0)
        centroids[filled] = (sums / size[filled, None]).astype(np.float32)
    return centroids


def assign(
    points: NDArray[np.float32], centroids: NDArray[np.float32], workers: Workers
) -> NDArray[np.int32]:
    """Number of the nearest centroid of each point, smallest number on a tie."""
    half = (centroids.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2
    turned = np.ascontiguousarray(centroids.T)
    made = np.empty(len(points), np.int32)

    def one(span: slice) -> None:
        score = points[span] @ turned
        score -= half
        made[span] = score.argmax(axis=1)

    workers.each(one, spans(len(points), max(64, _CELLS // len(centroids))))
    return made


TwoLevel = tuple[NDArray[np.float32], list[NDArray[np.float32]]]


def two_level_centroids(points: NDArray[np.float32], count: int, workers: Workers) -> TwoLevel:
    """About `count` centroids as sqrt(count) coarse ones with sqrt(count) fine ones below each."""
    side = max(1, int(np.sqrt(count)))
    sample = points[np.sort(hash_order(len(points), 19)[: SAMPLED * count + 1])]
    coarse = fit_centroids(sample, side, workers)
    home = assign(sample, coarse, workers)
    fine = []
    for place in range(len(coarse)):
        inside = sample[home == place]
        wanted = max(1, round(len(inside) / len(sample) * count))
        fine.append(
            fit_centroids(inside, wanted, workers, per_centroid=SAMPLED)
            if len(inside)
            else coarse[place : place + 1]
        )
    return coarse, fine


def two_level_assign(points: NDArray[np.float32], centroids: TwoLevel, workers: Workers) -> NDArray[np.int32]:
    """Fine cell of each point: nearest coarse centroid, then the nearest below it."""
    coarse, fine = centroids
    home = assign(points, coarse, workers)
    first = np.concatenate([[0], np.cumsum([len(leaf) for leaf in fine])])
    cell = np.empty(len(points), np.int32)
    order = np.argsort(home, kind="stable")
    starts = np.searchsorted(home[order], np.arange(len(coarse) + 1))
    for place in range(len(coarse)):
        rows = order[starts[place] : starts[place + 1]]
        if len(rows):
            cell[rows] = assign(points[rows], fine[place], workers) + first[place]
    return cell
