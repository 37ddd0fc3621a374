"""Local error density: how many errors lie around a unit, and whether chance puts that many there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.space.neighbourhood import K_GRID, Neighbourhood
from mld_core.evaluation.statistics.significance import M_GRID, benjamini_hochberg, binomial_upper

ALPHA = 0.05
AMBIGUITY_KS = (8, 16, 32)
"""Neighbours whose labels are compared: the most that half of the smaller of the two classes still has.

Of fewer than five even the same label throughout would not tell one class from two.
"""

_TIE = 1e-9
_SIDE = 1_024


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
    total: NDArray[np.floating],
    count: NDArray[np.floating],
    errors: NDArray[np.integer],
    pi: float,
    weight: NDArray[np.floating] | None = None,
) -> tuple[int, float]:
    """Choose k and m jointly by the leave-one-out log-likelihood of the errors.

    Args:
        total: (n, 5) errors among the nearest 8, 16, 32, 64, 128 neighbours of each labelled unit.
        count: (n, 5) how many neighbours those are (fewer in a small split).
        errors: (n,) 1 wrong, 0 right.
        pi: Overall error rate of the reference split, strictly inside (0, 1).
        weight: (n,) how many units each line stands for; None = 1.

    Returns:
        k and m; ties go to the larger m, then the larger k.

    Example:
        >>> none = np.zeros((4, 5))
        >>> choose_density(none, none, np.array([0, 1, 0, 0]), 0.25)
        (128, inf)
    """
    wrong = np.asarray(errors) == 1
    bad: Any = 1.0 if weight is None else weight[wrong]
    good: Any = 1.0 if weight is None else weight[~wrong]
    found: list[tuple[float, float, int]] = []
    for m in M_GRID:
        for place, k in enumerate(K_GRID):
            p = np.full(len(wrong), pi) if np.isinf(m) else (m * pi + total[:, place]) / (m + count[:, place])
            found.append((float((bad * np.log(p[wrong])).sum() + (good * np.log1p(-p[~wrong])).sum()), m, k))
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
    from scipy.special import betaincinv

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
    wrong, right, where = _pairs(total, count)
    a = m * pi + wrong
    b = m * (1 - pi) + right
    return Density(k, m, (a / (a + b))[where], beta_quantile(a, b)[where])


def _pairs(
    total: NDArray[np.floating], count: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """The distinct pairs of counts as wrong and right units, and (N,) which of them each unit has."""
    whole = total.astype(np.int64)
    side = int(count.max(initial=0)) + 1
    code = count.astype(np.int64) * side + whole
    if (whole < 0).any() or (whole > count).any() or (whole != total).any():
        return total.astype(np.float64), (count - total).astype(np.float64), np.arange(len(total))
    if side > _SIDE:
        found, where = np.unique(code, return_inverse=True)
        where = where.reshape(-1)
    else:
        found = np.flatnonzero(np.bincount(code, minlength=1))
        place = np.zeros(side * side, np.int64)
        place[found] = np.arange(len(found))
        where = place[code]
    wrong, size = (found % side).astype(np.float64), (found // side).astype(np.float64)
    return wrong, size - wrong, where


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
class Ambiguity:
    """The two most frequent labels around a unit in one layer.

    Attributes:
        k: (N,) int64 neighbours that were compared: at most 32, and at most half the smaller of the two
            classes; 0 where a class is too small for any: nothing is said of such a unit.
        a: (N,) float32 share of neighbours that do not carry the most frequent label.
        second: (N,) float32 neighbours that carry the second label.
        explained: (N,) float32 error rate of whoever tosses a coin between the two: of the larger half `a`
            alone would be too little.
        tie: (N,) the two hold significantly more than half and neither is significantly ahead of the other.
        rejected: (N,) one is significantly ahead of the other.
        first: (N,) most frequent label, smallest on a tie; -1 where nobody is near.
        majority: (N,) the two together hold more than half.
    """

    k: NDArray[np.int64]
    a: NDArray[np.float32]
    second: NDArray[np.float32]
    explained: NDArray[np.float32]
    tie: NDArray[np.bool_]
    rejected: NDArray[np.bool_]
    first: NDArray[np.int64]
    majority: NDArray[np.bool_]

    @property
    def mixed(self) -> NDArray[np.bool_]:
        """(N,) the second label is significantly more frequent than it is around the units of this split.

        Where the layer knows nothing of the labels every surrounding is as mixed as the class sizes make it,
        and none stands out.
        """
        share = float((self.second / np.maximum(self.k, 1))[self.k > 0].mean()) if self.k.any() else 0.0
        p = binomial_upper(self.second.astype(np.float64), self.k.astype(np.float64), share)
        return benjamini_hochberg(np.where((self.k > 0) & (self.second > 0), p, np.nan))


LabelCounts = Callable[[int, NDArray[np.int64]], NDArray[np.float32]]
"""(len(rows), K) labels among the nearest k of some rows."""


def ambiguity_of(counted: LabelCounts, sizes: NDArray[Any], rows: NDArray[np.int64]) -> Ambiguity:
    """Ambiguity of some units from the labels around them, which may be sums of soft labels.

    The test is the upper tail P(X >= n1) of Binomial(n1 + n2, 1/2), as the incomplete beta function
    I_1/2(n1, n2 + 1), which is the same for whole counts and continues it to soft ones.

    Args:
        counted: Counts the labels of the nearest k of some rows.
        sizes: (K,) units of each class.
        rows: The units asked about.

    Example:
        >>> table = np.array([[16, 14, 2], [30, 2, 0], [12, 9, 11]])
        >>> made = ambiguity_of(lambda k, rows: table[rows], np.full(3, 64), np.arange(3))
        >>> made.tie.tolist(), made.first.tolist()
        ([True, False, True], [0, 0, 0])
    """
    from scipy.special import betainc

    counts = counted(AMBIGUITY_KS[-1], rows)
    k = _own_k(counts, sizes)
    for fewer in AMBIGUITY_KS[:-1]:
        some = np.flatnonzero(k == fewer)
        if len(some):
            counts[some] = counted(fewer, rows[some])
    # Among fewer neighbours another, smaller class may lead.
    k[_own_k(counts, sizes) < k] = 0
    first, n1, _, n2 = _leading(counts)
    size = counts.sum(axis=1)
    tail = np.where(n1 > 0, betainc(np.maximum(n1, 1e-9), n2 + 1, 0.5), 1.0)
    close, said = tail > ALPHA, k > 0
    majority = n1 + n2 > size / 2
    # Of many labels at random two may hold a majority by chance: those are no pair.
    pair = np.where(n1 + n2 > 0, betainc(np.maximum(n1 + n2, 1e-9), size - n1 - n2 + 1, 0.5), 1.0) <= ALPHA
    return Ambiguity(
        k,
        (1 - n1 / np.maximum(size, 1)).astype(np.float32),
        n2.astype(np.float32),
        (1 - (n1 + n2) / np.maximum(2 * size, 1)).astype(np.float32),
        close & pair & said & (n2 > 0),
        ~close & said,
        np.where(size > 0, first, -1),
        majority | ~said,
    )


def _leading(counts: NDArray[np.floating]) -> tuple[NDArray[np.int64], Any, NDArray[np.int64], Any]:
    """The most frequent label of each row, its count, and the same of the second one."""
    here, first = np.arange(len(counts)), counts.argmax(axis=1)
    n1 = counts[here, first].astype(np.float64)
    if counts.shape[1] == 1:
        return first, n1, first, np.zeros(len(counts))
    rest = counts.copy()
    rest[here, first] = -1
    second = rest.argmax(axis=1)
    return first, n1, second, rest[here, second].astype(np.float64)


def _own_k(counts: NDArray[np.floating], sizes: NDArray[Any]) -> NDArray[np.int64]:
    """(N,) the largest of `AMBIGUITY_KS` that is at most half the smaller of the two leading classes."""
    first, _, second, n2 = _leading(counts)
    smaller = np.where(n2 > 0, np.minimum(sizes[first], sizes[second]), sizes[first])
    place = np.searchsorted(AMBIGUITY_KS, smaller / 2, side="right")
    return np.append(0, AMBIGUITY_KS)[place].astype(np.int64)


def rate_at_most(
    around: Neighbourhood, base_errors: NDArray[np.integer], k: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(N,) 95 % upper bound of the error rate among its own number of neighbours; 1 where that is 0."""
    total, count = around.sums(base_errors.astype(np.float32), AMBIGUITY_KS)
    place, here = np.searchsorted(AMBIGUITY_KS, np.maximum(k, AMBIGUITY_KS[0])), np.arange(len(k))
    wrong, size = total[here, place].astype(np.float64), count[here, place].astype(np.float64)
    return np.where(k > 0, beta_quantile(wrong + 0.5, size - wrong + 0.5, 1 - ALPHA), 1.0)
