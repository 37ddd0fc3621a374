"""Pairs of units that are nearly the same, and units that stand near their neighbours in the data's order.

Both look at the nearest labelled units alone, and at nothing that a model of the field's shape would not
change: the ratio of two distances, and places within a class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from mld_core.evaluation.statistics.folds import hash_order
from mld_core.evaluation.statistics.significance import benjamini_hochberg

COPIES = 0.001
"""False discovery rate of near copies."""

ORDER = 0.001
"""Level of the test that the order says anything at all."""

NEAR_IN_ORDER = 0.05
"""Share of shuffled units that stand as near their neighbours as one that is shown, where the test passes."""

FAR = 8
"""The rank that the nearest is compared with."""

ORDER_NEIGHBOURS = 16
SHUFFLES = 20
_LEAST = 100


def near_copies(nearest: NDArray[np.floating], eighth: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(N,) units whose nearest unit is far nearer than its distance to the eighth explains.

    Seven points spread evenly in a ball of dimension D: the nearest is within a share r of the radius with
    probability 1 - (1 - r^D)^7. D is read from the median, which a few copies do not move.

    Args:
        nearest: (N,) log distances to the nearest unit; NaN where there is none.
        eighth: (N,) log distances to the eighth.

    Example:
        >>> far = np.zeros(200)
        >>> near = np.log(np.linspace(0.5, 0.99, 200))
        >>> near[0] = np.log(1e-4)
        >>> np.flatnonzero(near_copies(near, far)).tolist()
        [0]
    """
    ratio = np.minimum(np.asarray(nearest, np.float64) - eighth, 0.0)
    known = np.isfinite(ratio)
    if known.sum() < _LEAST or not (middle := float(np.median(ratio[known]))) < 0:
        return np.zeros(len(ratio), np.bool_)
    dimension = np.log(1 - 0.5 ** (1 / (FAR - 1))) / middle
    p = -np.expm1((FAR - 1) * np.log1p(-np.exp(np.minimum(dimension * ratio, -1e-12))))
    return benjamini_hochberg(np.where(known, p, np.nan), COPIES)


@dataclass(frozen=True)
class OrderState:
    """What shuffles within the classes look like; the small state of the stage.

    Attributes:
        shuffled: Sorted mean distances in the order, of units under shuffles.
        p_value: How often a shuffle brings neighbours as near in the order as they are.
    """

    shuffled: NDArray[np.float32]
    p_value: float


def class_places(labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """(N,) place of each unit among those of its class, in the order of the data: 0 first, near 1 last.

    Example:
        >>> class_places(np.array([0, 1, 0, 1, 0, 0])).tolist()
        [0.0, 0.0, 0.25, 0.5, 0.5, 0.75]
    """
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order], side="left")
    size = np.searchsorted(labels[order], labels[order], side="right") - first
    made = np.empty(len(labels), np.float32)
    made[order] = (np.arange(len(labels)) - first) / size
    return made


def order_gaps(
    place: NDArray[np.float32], near: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(n,) mean distance in the order to the near units of the same class; NaN where fewer than 4 are.

    Args:
        place: (N,) places within the classes.
        near: (n, 1 + k) rows of a unit and of those near it, -1 where there are fewer.
        labels: (N,) labels.
    """
    own, others = near[:, :1], near[:, 1:]
    same = (others >= 0) & (labels[others] == labels[own])
    gap = np.where(same, np.abs(place[others] - place[own]), np.float32(0)).sum(axis=1)
    count = same.sum(axis=1)
    return np.where(count >= 4, gap / np.maximum(count, 1), np.nan).astype(np.float32)


def fit_order(near: NDArray[np.int64], labels: NDArray[np.int64]) -> OrderState:
    """Shuffle the order within the classes and see how near neighbours come to stand.

    A data set sorted by class is in no order of its own; frames of a video and a sensor that drifts are.

    Args:
        near: (n, 1 + k) rows of a sample of units, each with those near it.
        labels: (N,) labels.
    """
    place = class_places(labels)
    seen = order_gaps(place, near, labels)
    if not np.isfinite(seen).any():
        return OrderState(np.empty(0, np.float32), 1.0)
    gaps, means = [], []
    # The sort of 16 bits is by radix.
    small = labels.astype(np.int16) if labels.max(initial=0) < 2**15 else labels
    by_class = np.argsort(small, kind="stable")
    for shuffle in range(SHUFFLES):
        mixed = hash_order(len(labels), 3_000 + shuffle)
        moved = np.empty(len(labels), np.float32)
        # The places of a class, dealt out among its units.
        moved[mixed[np.argsort(small[mixed], kind="stable")]] = place[by_class]
        gap = order_gaps(moved, near, labels)
        gaps.append(gap[np.isfinite(gap)])
        means.append(float(np.nanmean(gap)))
    spread = float(np.std(means, ddof=1))
    z = (np.mean(means) - float(np.nanmean(seen))) / max(spread * np.sqrt(1 + 1 / SHUFFLES), 1e-12)
    # Student's t with SHUFFLES - 1 degrees of freedom has the heavier tail that few shuffles deserve.
    return OrderState(np.sort(np.concatenate(gaps)), float(t_tail(z, SHUFFLES - 1)))


def t_tail(value: float, freedom: int) -> float:
    """P(T >= value) of Student's t.

    Example:
        >>> round(t_tail(1.729, 19), 3)
        0.05
    """
    return float(stdtr(freedom, -value))


def score_order(gaps: NDArray[np.float32], state: OrderState) -> NDArray[np.float64]:
    """(n,) p-values of units: share of shuffled units whose neighbours stand as near in the order."""
    if not len(state.shuffled):
        return np.full(len(gaps), np.nan)
    below = np.searchsorted(state.shuffled, np.nan_to_num(gaps, nan=np.inf), side="right")
    return np.where(np.isfinite(gaps), (1 + below) / (1 + len(state.shuffled)), np.nan)


def ordered_units(near: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) units that stand near their neighbours in the order of the data, where there is such an order.

    Args:
        near: (N, k) rows of the nearest units, -1 where there are fewer or where the unit has no label.
        labels: (N,) labels, -1 where unlabelled.
    """
    rows = np.arange(len(labels))
    joined = np.column_stack([rows, near])
    known = np.flatnonzero(labels >= 0)
    sample = known[hash_order(len(known), 17)[:20_000]]
    state = fit_order(joined[sample], labels)
    if state.p_value > ORDER:
        return np.zeros(len(labels), np.bool_)
    p = score_order(order_gaps(class_places(labels), joined, labels), state)
    return np.asarray((labels >= 0) & (p <= NEAR_IN_ORDER))
