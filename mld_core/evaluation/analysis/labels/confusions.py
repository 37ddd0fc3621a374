"""Pairs of classes that a model reads one as the other, where the labels look wrong and are right.

A model that was taught a class as another says the other of all its units, and so do their train neighbours:
to the pool each of their labels is any label at all. The shape tells, as it does for a single pair (`pairs`),
but the burden of proof is turned round: labels of any kind were found wrong, and a pair is taken out of
that where its labels are not as frequent among the units most like the other class as among the least. Right
labels thin out at least in the order of the split's own neighbours, which go by the labels that are there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis.labels.pool import Pair, Pool, fit_pool, handed_on, pool
from mld_core.evaluation.analysis.labels.swaps import MOST_CLASSES, fit_swaps
from mld_core.evaluation.statistics.significance import BOUNDARY_GAIN, benjamini_hochberg

_MOST_PAIRS = 20
_ROUNDS = 3
_STEEPEST = 50.0


def find_confusions(
    values: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    own: Sequence[bool],
    around: NDArray[np.floating] | None = None,
) -> tuple[list[Pair], Pool, Pool]:
    """Pairs that the model confuses; the pools that know them, to which no label is wrong, and any may be.

    Args:
        values: (n, K) log-probabilities of each member.
        labels: (n,) given labels.
        own: Which members are of the split itself.
        around: (n, K) log-probabilities of the split's own neighbours, where they are no member.
    """
    pairs: list[Pair] = []
    told = values if around is None else [*values, around]
    rounds = _ROUNDS if values[0].shape[1] <= MOST_CLASSES else 0
    while True:
        right, any_label = (
            fit_pool(values, labels, own, noise=noise, pairs=pairs) for noise in (False, True)
        )
        gain = (any_label.value - right.value) * len(labels)
        more: list[Pair] = []
        if rounds and gain >= BOUNDARY_GAIN:
            q = handed_on(pool(values, any_label.weights), pairs, any_label.shares)
            more = [pair for pair in confused(told, q, labels, any_label.noise) if pair not in pairs]
        if not more[: _MOST_PAIRS - len(pairs)]:
            return pairs, right, any_label
        pairs, rounds = [*pairs, *more][:_MOST_PAIRS], rounds - 1


def confused(
    told: Sequence[NDArray[np.floating]], q: NDArray[np.float64], labels: NDArray[np.int64], noise: float
) -> list[Pair]:
    """Pairs whose labels look wrong and thin out as right ones do (5 % of them by chance), largest first.

    Args:
        told: (n, K) log-probabilities of each witness.
        q: (n, K) of a pool.
        labels: (n,) given labels.
        noise: Probability that a label is any label at all.
    """
    n_class, best = q.shape[1], q.argmax(axis=1)
    factors = fit_swaps(q, labels, noise).factors
    stray = noise / n_class

    def mistaken(rows: NDArray[np.intp], given: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where the label `given` would be rather wrong, and how often swaps occur is no reason for which."""
        others, here = q[rows] * factors[given], np.arange(len(rows))
        others[here, given] = 0
        wrong = stray * others.sum(axis=1) > (1 - noise + stray) * q[rows, given]
        return np.asarray(wrong & (others.argmax(axis=1) == best[rows]))

    suspected = mistaken(np.arange(len(q)), labels)
    codes, counts = np.unique(labels[suspected] * n_class + best[suspected], return_counts=True)
    chances = np.ones(len(codes))
    by_best = np.argsort(best, kind="stable")
    ends = np.searchsorted(best[by_best], np.arange(n_class + 1))
    for at, code in enumerate(codes):
        given, true = divmod(int(code), n_class)
        rows = by_best[ends[true] : ends[true + 1]]
        rows = rows[(labels[rows] == given) | (labels[rows] == true)]
        rows = rows[mistaken(rows, np.full(len(rows), given))]
        carried = labels[rows] == given
        each = [stays_even(value[rows, true] - value[rows, given], carried) for value in told]
        chances[at] = min(1.0, len(each) * min(each))
    beyond = benjamini_hochberg(chances)
    largest = np.argsort(-counts, kind="stable")
    return [divmod(int(codes[at]), n_class) for at in largest if beyond[at]]


def stays_even(likeness: NDArray[np.floating], carried: NDArray[np.bool_]) -> float:
    """p-value of labels that are as frequent among the units most alike as among the least.

    Against a frequency that falls to none in step with the rank, by the log-likelihood ratio of the ranks.
    Its tail is bounded by its moments (Chernoff), which holds for any ties. 1 where an even frequency is the
    likelier of the two.

    Example:
        >>> rank = np.arange(100.0)
        >>> stays_even(rank, rank % 3 == 0), stays_even(rank, rank < 33) < 0.001
        (1.0, True)
    """
    from scipy.optimize import minimize_scalar

    if carried.all() or not carried.any():
        return 1.0
    if carried.mean() > 0.5:
        # No frequency above a half can fall to none in step. That of the others can, from the other end.
        likeness, carried = -likeness, ~carried
    _, where, size = np.unique(likeness, return_inverse=True, return_counts=True)
    share, high = size / len(likeness), np.cumsum(size) / len(likeness)
    ratio = np.log(share / ((1 - high + share) ** 2 - (1 - high) ** 2))
    count, told = int(carried.sum()), float(ratio[where][carried].sum())
    if told >= 0:
        return 1.0

    def bound(slope: float) -> float:
        return slope * told + count * float(np.log(share @ np.exp(-slope * ratio)))

    found = minimize_scalar(bound, bounds=(0, _STEEPEST), method="bounded")
    return float(np.exp(min(0.0, float(found.fun))))
