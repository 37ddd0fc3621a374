"""Which classes' labels get mistaken for which: the transition matrix of wrong labels.

Confident learning (Northcutt et al., 2021) counts labels against what the evidence points at. Here a pair of
classes counts by how much more often it occurs than if any label were as likely: gamma-distributed factors,
Poisson counts, the spread of the factors by maximum likelihood. Where the counts are no more spread than
chance brings about every factor is 1, and of no use are they where pairs beyond chance hold less than half of
the wrong labels (`of_pairs`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from mld_core.evaluation.statistics.significance import BOUNDARY_GAIN, benjamini_hochberg, poisson_upper

MOST_CLASSES = 2_000
"""Above so many classes (4 million pairs) every pair is taken to be as likely."""

_ROUNDS = 20
_SETTLED = 1e-3
_COUNTED = 1e-2
_SHAPES = (-7.0, 7.0)


@dataclass(frozen=True)
class Swaps:
    """Wrong labels between classes.

    Attributes:
        factors: (K, K) float32 [given, true] how often a true class is given a label, as a multiple of how
            often any label is given at random; 1 on the diagonal.
        counts: (K, K) wrong labels of each pair, as far as the posteriors tell.
        expected: (K,) how many each label would hold of a true class if any were as likely.
    """

    factors: NDArray[np.float32]
    counts: NDArray[np.float64]
    expected: NDArray[np.float64]


def alike(n_class: int) -> NDArray[np.float32]:
    """(K, K) factors where any label is as likely: ones, read-only and without their memory."""
    return np.broadcast_to(np.float32(1), (n_class, n_class))


def fit_swaps(q: NDArray[np.float64], labels: NDArray[np.int64], noise: float) -> Swaps:
    """Which classes' labels get mistaken for which.

    Args:
        q: (n, K) label posteriors.
        labels: (n,) given labels.
        noise: Probability that a label is any label at all.
    """
    n_class = q.shape[1]
    stray = noise / n_class
    expected = stray * q.sum(axis=0)
    if n_class > MOST_CLASSES:
        return Swaps(alike(n_class), np.broadcast_to(0.0, (n_class, n_class)), expected)
    factors = np.ones((n_class, n_class))
    order = np.argsort(labels, kind="stable")
    given, starts = np.unique(labels[order], return_index=True)
    rows = np.split(order, starts[1:])
    before = np.zeros((n_class, n_class))
    for _ in range(_ROUNDS):
        counts = np.zeros((n_class, n_class))
        for label, mine in zip(given, rows, strict=True):
            swapped = stray * q[mine] * factors[label]
            swapped[:, label] = 0
            kept = (1 - noise + stray) * q[mine, label]
            counts[label] = (swapped / (swapped.sum(axis=1) + kept)[:, None]).sum(axis=0)
        shape = _shape(counts, expected)
        if not np.isfinite(shape) or np.abs(counts - before).max() < _SETTLED:
            break
        before = counts
        factors = (shape + counts) / (shape + expected)
        np.fill_diagonal(factors, 1)
    return Swaps(factors.astype(np.float32), counts, expected)


def of_pairs(counts: NDArray[np.float64], expected: NDArray[np.float64]) -> bool:
    """Whether pairs that occur more often than chance has it hold most of the wrong labels.

    A model that confuses two classes by itself, or reads a broken sensor as some class, looks like labels
    mistaken for each other. Where most wrong labels are of no such pair, that is the likelier story, and
    labels of any kind are judged alike.

    Args:
        counts: (K, K) and
        expected: (K,) of `Swaps`.
    """
    if len(counts) > MOST_CLASSES:
        return False
    pairs = ~np.eye(len(counts), dtype=bool)
    found, mean = counts[pairs], np.broadcast_to(expected, counts.shape)[pairs]
    beyond = benjamini_hochberg(poisson_upper(np.where(found > _COUNTED, found, 0.0), mean))
    return bool(found[beyond].sum() > found[~beyond].sum())


def _shape(counts: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Shape of the gamma distribution of the factors; infinite where equal factors explain the counts."""
    from scipy.optimize import minimize_scalar

    some = counts[counts > _COUNTED]
    by_true, others = counts.sum(axis=0), len(counts) - 1

    def gain(log_shape: float) -> float:
        shape = np.exp(log_shape)
        apart = (gammaln(some + shape) - gammaln(shape)).sum()
        spread = np.log(shape) - np.log(shape + expected)
        joint = (others * (shape * spread + expected) - by_true * np.log(shape + expected)).sum()
        return float(apart + joint)

    found = minimize_scalar(lambda at: -gain(at), bounds=_SHAPES, method="bounded")
    return float(np.exp(found.x)) if -found.fun > BOUNDARY_GAIN else np.inf


def swapped_share(
    q: NDArray[np.float64], labels: NDArray[np.int64], factors: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(n,) posterior of all other classes than the given one, each times how often such a swap occurs.

    Example:
        >>> factors = np.array([[1, 1, 4], [1, 1, 1], [1, 1, 1]], np.float32)
        >>> swapped_share(np.array([[0.5, 0.3, 0.2]]), np.array([0]), factors).round(3).tolist()
        [1.1]
    """
    own = q[np.arange(len(q)), labels]
    return np.asarray((q * factors[labels]).sum(axis=1) - own, dtype=np.float64).clip(0)
