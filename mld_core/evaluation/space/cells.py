"""Local error density: how many errors lie around a unit, and whether chance puts that many there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv

from mld_core.evaluation.space.neighbourhood import K_GRID, Neighbourhood

ALPHA = 0.05
M_GRID = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, float("inf"))
MINIMUM_AMBIGUITY_K = 32
_TIE = 1e-9


@dataclass(frozen=True)
class Density:
    """Local error rates.

    Attributes:
        k: Number of neighbours the leave-one-out likelihood chose.
        m: Weight of the overall rate, in units; infinity = no spatial structure, nothing can be dense.
        rate: (N,) float64 mean of Beta(m pi + E_k, m (1 - pi) + k - E_k).
        low: (N,) float64 its 5 % quantile, `r_lo`.
    """

    k: int
    m: float
    rate: NDArray[np.float64]
    low: NDArray[np.float64]


def choose_density(
    total: NDArray[np.floating], count: NDArray[np.floating], errors: NDArray[np.integer], pi: float
) -> tuple[int, float]:
    """Choose k and m jointly by the leave-one-out log-likelihood of the errors.

    Args:
        total: (n, 5) errors among the nearest 8, 16, 32, 64, 128 neighbours of each labelled unit.
        count: (n, 5) how many neighbours those are (fewer in a small split).
        errors: (n,) 1 wrong, 0 right.
        pi: Overall error rate of the reference split, strictly inside (0, 1).

    Returns:
        k and m; ties go to the larger m, then the larger k.

    Example:
        >>> none = np.zeros((4, 5))
        >>> choose_density(none, none, np.array([0, 1, 0, 0]), 0.25)
        (128, inf)
    """
    wrong = np.asarray(errors) == 1
    found: list[tuple[float, float, int]] = []
    for m in M_GRID:
        for place, k in enumerate(K_GRID):
            p = np.full(len(wrong), pi) if np.isinf(m) else (m * pi + total[:, place]) / (m + count[:, place])
            found.append((float(np.log(p[wrong]).sum() + np.log1p(-p[~wrong]).sum()), m, k))
    best = max(value for value, _, _ in found)
    close = best - _TIE * max(1.0, abs(best))
    _, m, k = max((entry for entry in found if entry[0] >= close), key=lambda entry: (entry[1], entry[2]))
    return k, m


def beta_quantile(a: NDArray[np.floating], b: NDArray[np.floating], q: float = ALPHA) -> NDArray[np.float64]:
    """Quantile of Beta(a, b), computed once for each distinct pair.

    Example:
        >>> beta_quantile(np.array([1.0]), np.array([1.0])).round(6).tolist()
        [0.05]
    """
    pairs, where = np.unique(np.stack([a, b], axis=1).astype(np.float64), axis=0, return_inverse=True)
    return np.asarray(betaincinv(pairs[:, 0], pairs[:, 1], q)[where.reshape(-1)], dtype=np.float64)


def density_of(
    total: NDArray[np.floating], count: NDArray[np.floating], k: int, m: float, pi: float
) -> Density:
    """Local rate and its lower bound from (N,) errors among (N,) neighbours.

    Example:
        >>> one = density_of(np.array([0.0, 8.0]), np.array([8.0, 8.0]), 8, 2.0, 0.1)
        >>> one.low.round(4).tolist()
        [0.0, 0.5974]
    """
    if np.isinf(m):
        flat = np.full(len(total), pi)
        return Density(k, m, flat, flat.copy())
    a = m * pi + total.astype(np.float64)
    b = m * (1 - pi) + (count - total).astype(np.float64)
    return Density(k, m, a / (a + b), beta_quantile(a, b))


def local_density(
    around: Neighbourhood, base_errors: NDArray[np.integer], labelled_rows: NDArray[np.int64], pi: float
) -> Density:
    """Density of every unit from its labelled neighbours.

    Args:
        around: Surroundings of N units among the M labelled ones.
        base_errors: (M,) 1 wrong, 0 right.
        labelled_rows: (M,) rows of those units.
        pi: (E + 1) / (n + 2) of the reference split.
    """
    total, count = around.sums(base_errors.astype(np.float32), K_GRID)
    if len(labelled_rows) == len(total):
        k, m = choose_density(total, count, base_errors, pi)
    else:
        k, m = choose_density(total[labelled_rows], count[labelled_rows], base_errors, pi)
    place = K_GRID.index(k)
    return density_of(total[:, place], count[:, place], k, m, pi)


@dataclass(frozen=True)
class RiskBins:
    """Equal-mass bins of the error probability.

    Attributes:
        edges: (B - 1,) inner edges; a value on an edge belongs to the upper bin.
        errors: (B,) wrong units of each bin.
        count: (B,) units of each bin.
        low: (B,) 5 % quantile of Beta(errors + 1/2, count - errors + 1/2).
    """

    edges: NDArray[np.float64]
    errors: NDArray[np.float64]
    count: NDArray[np.float64]
    low: NDArray[np.float64]

    def lower_bound(self, proba: NDArray[np.floating]) -> NDArray[np.float64]:
        """`p_lo` of units by their error probability."""
        return self.low[np.searchsorted(self.edges, proba, side="right")]


def risk_bins(proba: NDArray[np.floating], errors: NDArray[np.integer]) -> RiskBins:
    """Cut labelled units into max(2, min(20, floor(min(E, n - E) / 10))) bins of equal mass.

    Equal values always share a bin, so that heavy ties make fewer bins.

    Args:
        proba: (n,) error probabilities.
        errors: (n,) 1 wrong, 0 right.
    """
    wrong = int((errors == 1).sum())
    bins = max(2, min(20, min(wrong, len(errors) - wrong) // 10))
    ranked = np.sort(proba.astype(np.float64))
    places = (np.arange(1, bins) * len(ranked)) // bins
    edges = np.unique(ranked[places]) if len(ranked) else np.empty(0)
    edges = edges[edges > ranked[0]] if len(ranked) else edges
    where = np.searchsorted(edges, proba, side="right")
    count = np.bincount(where, minlength=len(edges) + 1).astype(np.float64)
    bad = np.bincount(where[errors == 1], minlength=len(edges) + 1).astype(np.float64)
    return RiskBins(edges, bad, count, np.asarray(betaincinv(bad + 0.5, count - bad + 0.5, ALPHA)))


@dataclass(frozen=True)
class Ambiguity:
    """The two most frequent labels around a unit in one layer.

    Attributes:
        a: (N,) float32 share of neighbours that do not carry the most frequent label.
        tie: (N,) the two lead a majority and neither is significantly ahead.
        rejected: (N,) one is significantly ahead of the other.
        first: (N,) most frequent label, smallest on a tie; -1 where nobody is near.
        majority: (N,) the two together hold more than half.
    """

    a: NDArray[np.float32]
    tie: NDArray[np.bool_]
    rejected: NDArray[np.bool_]
    first: NDArray[np.int64]
    majority: NDArray[np.bool_]


def ambiguity_of(counts: NDArray[np.floating]) -> Ambiguity:
    """Ambiguity from (N, K) label counts, which may be sums of soft labels.

    The test is the upper tail P(X >= n1) of Binomial(n1 + n2, 1/2), as the incomplete beta function
    I_1/2(n1, n2 + 1), which is the same for whole counts and continues it to soft ones.

    Example:
        >>> made = ambiguity_of(np.array([[16, 14, 2], [30, 2, 0], [8, 6, 7]]))
        >>> made.tie.tolist(), made.first.tolist()
        ([True, False, True], [0, 0, 0])
    """
    size = counts.sum(axis=1)
    here = np.arange(len(counts))
    first = counts.argmax(axis=1)
    n1 = counts[here, first].astype(np.float64)
    if counts.shape[1] > 1:
        rest = counts.copy()
        rest[here, first] = -1
        n2 = rest.max(axis=1).astype(np.float64)
    else:
        n2 = np.zeros(len(counts))
    tail = np.where(n1 > 0, betainc(np.maximum(n1, 1e-9), n2 + 1, 0.5), 1.0)
    close = tail > ALPHA
    majority = n1 + n2 > size / 2
    a = 1 - n1 / np.maximum(size, 1)
    return Ambiguity(a.astype(np.float32), close & majority, ~close, np.where(size > 0, first, -1), majority)
