"""Pairs of classes of which one carries the other's labels, told from classes that a model merely confuses.

A pool fitted to such labels goes flat until they are draws from it. That they are wrong raises the
likelihood, but so it does where the labels are right and the model reads one class as another. The two differ
in shape (anchor points: Patrini et al., 2017): wrong labels that fall on a class by chance are as frequent
among the units that are the most like it as among the least; right labels of another class thin out to none.
What cannot be told apart is a part of one class that looks exactly like another class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, gammaincc, ndtri

from mld_core.evaluation.analysis.labels.pool import Pair, Pool, fit_pool, handed_on, pool
from mld_core.evaluation.analysis.labels.swaps import MOST_CLASSES
from mld_core.evaluation.statistics.significance import LEVEL

_ASKED = 3
"""How many pairs are asked before the pool is fitted anew."""

_MOST_PAIRS = 10

_OUTWEIGHED = 20.0
"""How much one label may say for a pair while its share is not fitted."""


def find_pairs(
    values: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    own: Sequence[bool],
    start: Pool,
    around: NDArray[np.floating] | None = None,
    confused: Sequence[Pair] = (),
) -> tuple[list[Pair], Pool]:
    """Pairs whose labels are mistaken for each other, one after the other, and the pool that knows them.

    A pair counts if its share of wrong labels raises the likelihood (beyond what the best of all pairs would
    gain by chance) and if they have the shape of wrong labels (`evenness`).

    Args:
        values: (n, K) log-probabilities of each member.
        labels: (n,) given labels.
        own: Which members are of the split itself.
        start: The pool to which every label is right.
        around: (n, K) log-probabilities of the split's own neighbours, where they are no member.
        confused: Pairs that `start` knows the model to confuse: their labels are right.
    """
    n_class = values[0].shape[1]
    pairs: list[Pair] = []
    known = start
    if not 2 <= n_class <= MOST_CLASSES:
        return pairs, known
    told = values if around is None else [*values, around]
    least = ndtri(1 - LEVEL / (n_class * (n_class - 1))) ** 2 / 2
    while len(pairs) < _MOST_PAIRS:
        q = handed_on(pool(values, known.weights), confused, known.shares[: len(confused)])
        asked = [
            pair
            for pair in likeliest_pairs(q, labels, known, [*confused, *pairs])
            if evenness(told, q, labels, pair) <= LEVEL / _ASKED
        ]
        fitted = [
            fit_pool(values, labels, own, noise=False, pairs=[*confused, *pairs, pair]) for pair in asked
        ]
        at = int(np.argmax([one.value for one in fitted])) if fitted else 0
        if not fitted or (fitted[at].value - known.value) * len(labels) < least:
            break
        pairs.append(asked[at])
        known = fitted[at]
    return pairs, known


def likeliest_pairs(
    q: NDArray[np.float64], labels: NDArray[np.int64], known: Pool, but: Sequence[Pair]
) -> list[Pair]:
    """The pairs of which a small share would raise the likelihood most."""
    n_class = q.shape[1]
    given = (1 - known.noise) * q[np.arange(len(q)), labels] + known.noise / n_class
    told = np.minimum(q / given[:, None], _OUTWEIGHED)
    order = np.argsort(labels, kind="stable")
    there, starts = np.unique(labels[order], return_index=True)
    slope = np.zeros((n_class, n_class))
    slope[there] = np.add.reduceat(told[order], starts, axis=0)
    slope -= slope.diagonal().copy()
    for given_label, true in but:
        slope[given_label, true] = 0
    np.fill_diagonal(slope, 0)
    best = np.argsort(-slope, axis=None, kind="stable")[:_ASKED]
    return [
        (int(a), int(b)) for a, b in zip(*np.unravel_index(best, slope.shape), strict=True) if slope[a, b] > 0
    ]


def evenness(
    values: Sequence[NDArray[np.floating]], q: NDArray[np.float64], labels: NDArray[np.int64], pair: Pair
) -> float:
    """Largest p-value, over members and their fit, of labels that thin out to none towards the true class.

    Args:
        values: (n, K) log-probabilities of each member.
        q: (n, K) of a pool.
        labels: (n,) given labels.
        pair: The given label, and the class that is the case.
    """
    given, true = pair
    others = q.copy()
    others[:, [given, true]] = 0
    either = (labels == given) | (labels == true)
    rows = np.flatnonzero(either & (np.maximum(q[:, given], q[:, true]) >= others.max(axis=1)))
    if not len(rows):
        return 1.0
    odds = np.stack([value[rows, true] - value[rows, given] for value in values]).astype(np.float64)
    carried = labels[rows] == given
    fitted = true_odds(odds, carried)
    inside = fitted > 0
    return max(thins_out(one[inside], carried[inside]) for one in (fitted, *odds))


def true_odds(odds: NDArray[np.float64], carried: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) log-odds that the true class of a pair is right, fitted to labels of which shares are exchanged.

    Args:
        odds: (members, n) log-odds of each member.
        carried: (n,) whether the label is the other class's.
    """
    from scipy.optimize import minimize

    members = len(odds)

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        shift, weights, back, share = point[0], point[1:-2], point[-2], point[-1]
        other = expit(-shift - weights @ odds)
        p = np.clip(share + (1 - share - back) * other, 1e-12, 1 - 1e-12)
        told = np.where(carried, 1 / p, -1 / (1 - p))
        steep = -(1 - share - back) * other * (1 - other) * told
        slope = [steep.sum(), *(odds @ steep), -(other * told).sum(), ((1 - other) * told).sum()]
        return -float(np.where(carried, np.log(p), np.log1p(-p)).sum()), -np.array(slope)

    limits = [(-20, 20), *[(0, 20)] * members, (0, 0.45), (0, 0.9)]
    found = min(
        (
            minimize(
                loss,
                [0.0, *[scale / members] * members, 0.01, share],
                jac=True,
                method="L-BFGS-B",
                bounds=limits,
            )
            for scale in (0.3, 1.0)
            for share in (0.05, 0.3)
        ),
        key=lambda one: float(one.fun),
    )
    return np.asarray(found.x[0] + found.x[1:-2] @ odds, dtype=np.float64)


def thins_out(likeness: NDArray[np.float64], carried: NDArray[np.bool_]) -> float:
    """p-value of labels that thin out to none, at least in step with the rank, among the units most alike.

    The most powerful test of that against an even frequency: the log-likelihood ratio of the ranks. It has a
    gamma distribution where no two units are alike; ties share their ranks' probability. 1 where thinning out
    is the likelier of the two whatever the p-value.

    Example:
        >>> rank = np.arange(100.0)
        >>> thins_out(rank, rank % 3 == 0) < 0.001, thins_out(rank, rank < 33)
        (True, 1.0)
    """
    _, where, size = np.unique(likeness, return_inverse=True, return_counts=True)
    high = np.cumsum(size) / len(likeness)
    low = high - size / len(likeness)
    thinned = (1 - low) ** 2 - (1 - high) ** 2
    ratio = np.log((high - low) / thinned)
    count, told = int(carried.sum()), float(ratio[where][carried].sum())
    # The ratio of ranks without ties is at least -log 2, and exponentially distributed above it.
    mean = float(thinned @ ratio) + np.log(2)
    spread = float(thinned @ (ratio + np.log(2)) ** 2) - mean**2
    if told <= 0 or spread <= 1e-12:
        return 1.0
    return float(gammaincc(count * mean**2 / spread, (told + count * np.log(2)) * mean / spread))
