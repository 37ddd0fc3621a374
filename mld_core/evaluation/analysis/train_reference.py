"""What the train split says about a unit of another split: label agreement, trust ratio, novelty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.neighbourhood import log_distances
from mld_core.evaluation.space.neighbours import EXACT_LIMIT, Base, make_base, search
from mld_core.evaluation.space.selection import squared_norms
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import hash_order
from mld_core.evaluation.statistics.significance import NORMAL_95, benjamini_hochberg

CALIBRATION_UNITS = 20_000
EXACT_PAIRS = 4_000_000_000
"""Units x train units up to which the distances of the trust ratio are exact."""

_NEAR = 128
_LABELS = 32
_LEAST_OWN = 100
_COPIES = 0.001
_RANK = 10
_TILE = 2**23


@dataclass(frozen=True)
class TrainReference:
    """Per-unit figures against the train split.

    Attributes:
        columns: (N, 4) float32: share of 10 and of 50 train neighbours whose label is the prediction, log
            trust ratio (10th distance to the nearest other class over 10th distance to the predicted class;
            Jiang et al., 2018), log 10th distance.
        novelty: (N,) float32 conformal p-value of the 10th distance against the train units' own; small =
            novel.
        near: (N,) far nearer to a train unit than those are to each other: a near-duplicate.
        labels: (N, 32) int32 labels of the nearest train units, -1 where there are fewer.
    """

    columns: NDArray[np.float32]
    novelty: NDArray[np.float32]
    near: NDArray[np.bool_]
    labels: NDArray[np.int32]

    def stacked(self) -> NDArray[np.float32]:
        """(N, 5) all of it as columns of the estimator."""
        return np.column_stack([self.columns, self.novelty])


def train_reference(
    points: NDArray[np.float32],
    groups: NDArray[np.int64] | None,
    prediction: NDArray[np.int64],
    train_points: NDArray[np.float32],
    train_groups: NDArray[np.int64] | None,
    train_labels: NDArray[np.int64],
    workers: Workers,
    *,
    exact_limit: int = EXACT_LIMIT,
    exact_pairs: int = EXACT_PAIRS,
) -> TrainReference:
    """Compare units with the labelled train units.

    Args:
        points: (N, D) coordinates of the units.
        groups: (N,) group codes, or None where groups cannot be matched.
        prediction: (N,) predicted classes.
        train_points: (M, D) coordinates of the train units in the same space.
        train_groups: (M,) codes in the same naming.
        train_labels: (M,) labels, -1 where unlabelled.
        workers: Open pool.
        exact_limit: See `make_base`.
        exact_pairs: Above this many pairs the trust ratio is read off the 128 nearest train units.
    """
    known = np.flatnonzero(train_labels >= 0)
    if len(known) < len(train_labels):
        train_points, train_labels = train_points[known], train_labels[known]
        train_groups = None if train_groups is None else train_groups[known]
    codes = train_groups if groups is not None else None
    base = make_base(train_points, codes, workers, k=_NEAR, exact_limit=exact_limit)
    columns = np.zeros((len(points), 4), np.float32)
    table = np.append(train_labels, -1)
    nearest = np.empty(len(points), np.float32)
    near_labels = np.full((len(points), _LABELS), -1, np.int32)

    def keep(rows: NDArray[np.int64], found: NDArray[np.int32], squared: NDArray[np.float32]) -> None:
        labels = table[found]
        near_labels[rows] = labels[:, :_LABELS]
        agree = labels == prediction[rows, None]
        for place, k in enumerate((10, 50)):
            there = np.maximum((found[:, :k] >= 0).sum(axis=1), 1)
            columns[rows, place] = agree[:, :k].sum(axis=1) / there
        columns[rows, 2] = _near_trust(agree, squared)
        nearest[rows], columns[rows, 3] = log_distances(squared, (1, _RANK)).T

    search(points, groups if codes is not None else None, base, _NEAR, keep, workers)
    if len(points) * len(train_points) <= exact_pairs:
        columns[:, 2] = exact_trust(
            points, groups if codes is not None else None, prediction, base, train_labels, workers
        )
    own = _own_distances(base, workers)
    novelty, near = _novelty(columns[:, 3], own[:, 1]), near_duplicates(nearest, own[:, 0])
    return TrainReference(columns, novelty, near, near_labels)


def _near_trust(agree: NDArray[np.bool_], squared: NDArray[np.float32]) -> NDArray[np.float32]:
    """Trust ratio from the nearest neighbours: a class not met 10 times is at least as far as the last."""
    own = _rank_distance(squared, agree)
    other = _rank_distance(squared, ~agree)
    return np.asarray(
        (np.log(np.maximum(other, 1e-20)) - np.log(np.maximum(own, 1e-20))) / 2, dtype=np.float32
    )


def _rank_distance(squared: NDArray[np.float32], member: NDArray[np.bool_]) -> NDArray[np.float32]:
    finite = np.isfinite(squared)
    rank = np.cumsum(member & finite, axis=1)
    reached = rank >= _RANK
    last = np.maximum(finite.sum(axis=1) - 1, 0)
    at = np.where(reached.any(axis=1), reached.argmax(axis=1), last)
    value = squared[np.arange(len(squared)), at]
    return np.asarray(np.where(np.isfinite(value), value, 1.0), dtype=np.float32)


def exact_trust(
    points: NDArray[np.float32],
    groups: NDArray[np.int64] | None,
    prediction: NDArray[np.int64],
    base: Base,
    labels: NDArray[np.int64],
    workers: Workers,
) -> NDArray[np.float32]:
    """(N,) log trust ratio with the 10th neighbour of every class found exactly."""
    order = np.argsort(labels, kind="stable")
    sorted_points, sorted_norms = base.points[order], base.norms[order]
    codes = None if base.groups is None or groups is None else base.groups[order]
    classes, starts = np.unique(labels[order], return_index=True)
    stops = np.append(starts[1:], len(order))
    made = np.empty(len(points), np.float32)

    def one(span: slice) -> None:
        distance: NDArray[Any] = (points[span] * np.float32(-2)) @ sorted_points.T
        distance += sorted_norms
        distance += squared_norms(points[span])[:, None]
        if codes is not None and groups is not None:
            distance[groups[span, None] == codes[None, :]] = np.inf
        by_class = np.stack([_tenth(distance[:, a:b]) for a, b in zip(starts, stops, strict=True)], axis=1)
        is_own = classes[None, :] == prediction[span, None]
        own = np.where(is_own, by_class, np.inf).min(axis=1)
        other = np.where(is_own, np.inf, by_class).min(axis=1)
        far = np.float32(by_class[np.isfinite(by_class)].max(initial=1.0))
        own, other = (np.log(np.clip(value, 1e-20, far)) for value in (own, other))
        made[span] = (other - own) / 2

    workers.each(one, spans(len(points), max(16, _TILE // max(len(order), 1))))
    return made


def _tenth(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    place = min(_RANK, distance.shape[1]) - 1
    return np.asarray(np.partition(distance, place, axis=1)[:, place])


def _own_distances(base: Base, workers: Workers) -> NDArray[np.float32]:
    """(n, 2) log distances of a sample of train units to their nearest and 10th nearest train unit."""
    rows = np.sort(hash_order(len(base.points), 13)[:CALIBRATION_UNITS])
    own = np.empty((len(rows), 2), np.float32)

    def keep(places: NDArray[np.int64], _: NDArray[np.int32], squared: NDArray[np.float32]) -> None:
        own[places] = log_distances(squared, (1, _RANK))

    # A unit is left out of its own neighbours by its group, or by its row where no groups are known.
    codes = np.arange(len(base.points)) if base.groups is None else base.groups
    search(
        base.points[rows], codes[rows], Base(base.points, base.norms, codes, base.lists), _RANK, keep, workers
    )
    return own


def _novelty(log_distance: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
    """Conformal p-values: share of train units that are at least as far from their train neighbours."""
    ranked = np.sort(own)
    at_least = len(ranked) - np.searchsorted(ranked, log_distance, side="left")
    return np.asarray((1 + at_least) / (1 + len(ranked)), dtype=np.float32)


def near_duplicates(log_nearest: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N,) units far nearer to a train unit than train units are to each other.

    Log distances to the nearest fall off below their median about as a normal distribution does; its width is
    read from the 5 % quantile. Benjamini-Hochberg at 0.1 %, for the code is grave, and below all but 0.5 % of
    the train units' own: where train holds near copies of its own (augmentations, frames of a video) they are
    nothing special.

    Example:
        >>> own = np.log(np.linspace(0.5, 2, 200)).astype(np.float32)
        >>> near_duplicates(np.log(np.array([1.0, 0.4, 0.001], np.float32)), own).tolist()
        [False, False, True]
    """
    if len(own) < _LEAST_OWN:
        return np.zeros(len(log_nearest), np.bool_)
    least, low, middle = np.quantile(own.astype(np.float64), [0.005, 0.05, 0.5])
    width = max(float(middle - low) / NORMAL_95, 1e-6)
    p = np.asarray(ndtr((log_nearest - middle) / width))
    return np.asarray(benjamini_hochberg(p, _COPIES) & (log_nearest < least))
