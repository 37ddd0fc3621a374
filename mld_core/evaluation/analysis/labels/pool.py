"""The log-opinion pool of the witnesses of a label, q ~ prod_m p_m^w_m, and how it is fitted.

A given label is drawn from q, or is, with a probability of its own, any label at all; and where pairs of
classes are named, a share of each pair's true class carries the other's label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OWN_SHARE = 0.1
"""How much a witness out of the split itself may count beside the independent ones."""

FLOOR = 1e-6
_START, _MOST = 0.05, 0.6
_MOST_OF_PAIR = 0.9

Pair = tuple[int, int]
"""The label that is given, and the class that is the case."""


def pool(members: Sequence[NDArray[np.floating]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Q of a log-opinion pool.

    Example:
        >>> half = np.log([[0.5, 0.5]])
        >>> pool([half, np.log([[0.8, 0.2]])], np.array([1.0, 1.0])).round(3).tolist()
        [[0.8, 0.2]]
    """
    z = np.zeros(members[0].shape)
    for w, member in zip(weights, members, strict=True):
        z += w * member
    return normalised(z)


def normalised(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distributions of (n, K) log-odds, in their place."""
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)
    return z


def handed_on(
    q: NDArray[np.float64], pairs: Sequence[Pair], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The distributions of (n, K) q in their place, the true class of each pair handing its share on.

    Args:
        q: (n, K), sums to 1.
        pairs: Of classes.
        shares: (pairs,), or (n, pairs).

    Example:
        >>> handed_on(np.array([[0.1, 0.9]]), [(0, 1)], np.array([0.5])).round(3).tolist()
        [[0.55, 0.45]]
    """
    if not len(pairs):
        return q
    moved = [np.asarray(shares)[..., at] * q[:, true] for at, (_, true) in enumerate(pairs)]
    for passed, (given, true) in zip(moved, pairs, strict=True):
        q[:, given] += passed
        q[:, true] -= passed
    np.maximum(q, 0, out=q)
    q /= q.sum(axis=1, keepdims=True)
    return q


@dataclass(frozen=True)
class Pool:
    """A fitted pool.

    Attributes:
        weights: (members,) of the pool.
        noise: Share of labels that are any label at all.
        shares: (pairs,) share of the true class that carries the given label.
        value: Mean log-likelihood it reaches.
    """

    weights: NDArray[np.float64]
    noise: float
    shares: NDArray[np.float64]
    value: float

    def swaps(self, q: NDArray[np.float64], pairs: Sequence[Pair]) -> tuple[float, NDArray[np.float32]]:
        """The share of labels that pairs have wrong, and how often each swap occurs as a multiple of that.

        As (K, K) factors of any label at random: what `fit_swaps` gives where labels of any kind are wrong.
        """
        n_class = q.shape[1]
        shares = self.shares[len(self.shares) - len(pairs) :]
        moved = [float(share * q[:, true].mean()) for share, (_, true) in zip(shares, pairs, strict=True)]
        wrong = max(sum(moved), FLOOR)
        factors = np.ones((n_class, n_class), np.float32)
        for share, (given, true) in zip(shares, pairs, strict=True):
            factors[given, true] = share * n_class / wrong
        return wrong, factors


def fit_pool(
    members: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    own: Sequence[bool],
    *,
    noise: bool = True,
    pairs: Sequence[Pair] = (),
) -> Pool:
    """Weights >= 0 and shares of wrong labels that maximise mean ln((1 - noise) p[y] + noise / K).

    p is q, of which each pair's share goes from the true class to the given label.

    Args:
        members: (n, K) log-probabilities of each member.
        labels: (n,) given labels.
        own: Which members are of the split itself: they weigh at most a tenth of the others together.
        noise: Whether labels may be any label.
        pairs: Pairs of classes that may be mistaken for each other.
    """
    from scipy.optimize import minimize

    bound = np.array(own)
    start = np.where(bound, OWN_SHARE / 2, 1 / max(1, int((~bound).sum())))
    limits = [(0, OWN_SHARE) if one else (0, None) for one in own]
    likelihood = _Likelihood(members, labels, bound, pairs)
    found = minimize(
        likelihood.loss,
        np.concatenate([start, [_START if noise else FLOOR], np.full(len(pairs), _START)]),
        jac=True,
        method="L-BFGS-B",
        bounds=[*limits, (FLOOR, _MOST) if noise else (FLOOR, FLOOR), *[(0, _MOST_OF_PAIR)] * len(pairs)],
    )
    weights, share, shares = likelihood.unpacked(found.x)
    return Pool(weights, share, shares, likelihood.held(weights) - float(found.fun))


class _Likelihood:
    """Mean log-likelihood of labels, and its slope, at (weights, noise, shares)."""

    def __init__(
        self,
        members: Sequence[NDArray[np.floating]],
        labels: NDArray[np.int64],
        bound: NDArray[np.bool_],
        pairs: Sequence[Pair],
    ) -> None:
        self.members, self.labels, self.bound, self.pairs = members, labels, bound, pairs
        self.here, self.stacked = np.arange(len(labels)), np.stack(members)
        self.product = np.empty(self.stacked.shape)
        # Beside a pair that explains every wrong label weights would grow without end. A normal prior holds
        # them; its scale is 1, the weight of a witness that knows how sure it is.
        self.tight = 0.5 / max(len(labels), 1) if pairs else 0.0
        # What a pair gives each label: the true class hands its share on.
        self.moved = [(labels == a).astype(np.int8) - (labels == b).astype(np.int8) for a, b in pairs]

    def unpacked(self, point: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
        bound, members = self.bound, len(self.bound)
        weights = point[:members].copy()
        weights[bound] *= weights[~bound].sum()
        return weights, float(point[members]), point[members + 1 :].copy()

    def loss(self, point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, noise, shares = self.unpacked(point)
        bound, n_class = self.bound, self.stacked.shape[2]
        q = pool(self.members, weights)
        given = q[self.here, self.labels]
        mean = np.multiply(self.stacked, q, out=self.product).sum(axis=2)
        slope = given * (self.stacked[:, self.here, self.labels] - mean)
        passed = []
        for share, moved, (_, true) in zip(shares, self.moved, self.pairs, strict=True):
            passed.append(moved * q[:, true])
            given = given + share * passed[-1]
            slope += share * passed[-1] * (self.stacked[:, :, true] - mean)
        # Several pairs of one true class may ask for more than it has.
        mixed = np.maximum((1 - noise) * given + noise / n_class, FLOOR / n_class)
        slope = -((1 - noise) * slope / mixed).mean(axis=1) + 2 * self.tight * weights
        free = np.where(
            bound, slope * weights[~bound].sum(), slope + (slope * point[: len(bound)])[bound].sum()
        )
        rest = [-((1 / n_class - given) / mixed).mean(), *(-((1 - noise) * p / mixed).mean() for p in passed)]
        return -float(np.log(mixed).mean()) + self.held(weights), np.append(free, rest)

    def held(self, weights: NDArray[np.float64]) -> float:
        return float(self.tight * (weights**2).sum())
