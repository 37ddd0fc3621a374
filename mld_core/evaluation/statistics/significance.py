"""Tests for many hypotheses at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
M_GRID = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, float("inf"))
"""How many units the overall rate counts for, where a local rate is drawn towards it."""

NORMAL_95 = 1.6448536269514722
"""One-sided 5 % point of the normal distribution."""

BOUNDARY_GAIN = 1.3528
"""Log-likelihood that a figure held at its boundary must gain: half the 5 % point of a chi-square mixture."""


def benjamini_hochberg(p_values: NDArray[Any], q: float = LEVEL) -> NDArray[np.bool_]:
    """Which hypotheses are rejected at false discovery rate `q` (Benjamini and Hochberg, 1995).

    NaN is never rejected.

    Example:
        >>> benjamini_hochberg(np.array([0.01, 0.04, 0.9, 0.02])).tolist()
        [True, False, False, True]
    """
    ranked = np.sort(p_values[~np.isnan(p_values)])
    passed = np.flatnonzero(ranked <= q * np.arange(1, len(ranked) + 1) / max(len(ranked), 1))
    if not len(passed):
        return np.zeros(len(p_values), np.bool_)
    # Equal values pass together: a rank later the bound is higher.
    return np.asarray(p_values <= ranked[passed[-1]])


def holm(p_values: NDArray[Any]) -> NDArray[np.float64]:
    """p-values of several tests, such that any is at most q by chance with probability q (Holm, 1979).

    NaN is a test in which nothing was seen: it counts among them, and stays NaN.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
        [0.03, 0.06, 0.06]
    """
    known = np.where(np.isnan(p_values), 1.0, p_values).astype(np.float64)
    order = np.argsort(known, kind="stable")
    steps = np.maximum.accumulate(known[order] * np.arange(len(known), 0, -1))
    made = np.empty_like(known)
    made[order] = np.minimum(steps, 1.0)
    return np.where(np.isnan(p_values), np.nan, made)


def binomial_upper(hits: NDArray[Any], count: NDArray[Any], p: NDArray[Any] | float) -> NDArray[np.float64]:
    """P(X >= hits) for X ~ Binomial(count, p).

    Example:
        >>> binomial_upper(np.array([3.0]), np.array([3.0]), 0.5).tolist()
        [0.125]
    """
    from scipy.special import betainc

    return np.asarray(np.where(hits > 0, betainc(np.maximum(hits, 1e-12), count - hits + 1, p), 1.0))


def binomial_lower(hits: NDArray[Any], count: NDArray[Any], p: NDArray[Any] | float) -> NDArray[np.float64]:
    """P(X <= hits) for X ~ Binomial(count, p).

    Example:
        >>> binomial_lower(np.array([0.0]), np.array([3.0]), 0.5).tolist()
        [0.125]
    """
    from scipy.special import betaincc

    return np.asarray(np.where(hits < count, betaincc(hits + 1, np.maximum(count - hits, 1e-12), p), 1.0))


def poisson_upper(hits: NDArray[Any], mean: NDArray[Any] | float) -> NDArray[np.float64]:
    """P(X >= hits) for X ~ Poisson(mean), continued to hits that are no whole numbers.

    Example:
        >>> poisson_upper(np.array([0.0, 1.0]), np.log(2)).round(3).tolist()
        [1.0, 0.5]
    """
    from scipy.special import gammainc

    return np.asarray(np.where(hits > 0, gammainc(np.maximum(hits, 1e-12), mean), 1.0))


def two_proportions_upper(
    hits: NDArray[Any],
    count: NDArray[Any],
    other_hits: NDArray[Any],
    other_count: NDArray[Any],
) -> NDArray[np.float64]:
    """One-sided p-value that hits / count is above the other proportion: pooled z, 1 if a side is empty."""
    from scipy.special import ndtr

    n, m = np.maximum(count, 1), np.maximum(other_count, 1)
    pooled = (hits + other_hits) / (n + m)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    z = (hits / n - other_hits / m) / np.where(spread > 0, spread, 1)
    return np.asarray(np.where((count > 0) & (other_count > 0) & (spread > 0), ndtr(-z), 1.0))


def two_sided_z(difference: NDArray[Any], spread: NDArray[Any]) -> NDArray[np.float64]:
    """Two-sided p-value of a difference of known spread; 1 where the spread is 0."""
    from scipy.special import ndtr

    z = np.abs(difference) / np.where(spread > 0, spread, 1)
    return np.asarray(np.where(spread > 0, 2 * ndtr(-z), 1.0))
