"""One region for each unit, out of several ways to look for regions that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.space.mixture import SMALLEST
from mld_core.evaluation.statistics.significance import binomial_upper, two_proportions_upper

_SIZE_POWER = 0.75
_ALIKE = 0.01
_CERTAIN = 0.001


def merged_regions(
    candidates: Sequence[NDArray[np.integer]], errors: NDArray[np.int8], *, parts: int | None = None
) -> NDArray[np.int32]:
    """(N,) region of each unit out of several ways to look for regions, -1 outside; see `ranked_regions`."""
    return first_regions(candidates, ranked_regions(candidates, errors, parts=parts))


def first_regions(
    candidates: Sequence[NDArray[np.integer]], ranked: Sequence[tuple[int, int]]
) -> NDArray[np.int32]:
    """(N,) place of the first of the ranked candidates that a unit belongs to, -1 = none.

    Example:
        >>> first_regions([np.array([0, 0, 1]), np.array([-1, 4, 4])], [(1, 4), (0, 0)]).tolist()
        [1, 0, 0]
    """
    made = np.full(len(candidates[0]), len(ranked), np.int32)
    for way, found in enumerate(candidates):
        mine = [(name, place) for place, (other, name) in enumerate(ranked) if other == way]
        if not mine or not len(found):
            continue
        places = np.full(max(int(found.max()), *(name for name, _ in mine)) + 2, len(ranked), np.int32)
        for name, place in mine:
            places[name] = place
        np.minimum(made, places[found], out=made)  # -1 is the last entry, which is no region
    return np.where(made < len(ranked), made, -1).astype(np.int32)


def ranked_regions(
    candidates: Sequence[NDArray[np.integer]],
    errors: NDArray[np.int8],
    weight: NDArray[np.float64] | None = None,
    *,
    parts: int | None = None,
) -> list[tuple[int, int]]:
    """The regions among the candidates of several ways to look for them, (way, its number), first first.

    The candidate that tells most about the errors is taken first: the Kullback-Leibler divergence of its
    error rate from the overall one, times its units to the power of 3/4, so that a pure part goes before the
    crowd around it. The others keep what is left of them. A candidate that reads more of a unit than where it
    lies (its label) cuts through those that do not; of these a smaller one of which it is no part of its own
    goes before it, see `_Candidates.cut_by`.

    Args:
        candidates: (N,) numbers of each way's regions, -1 = none.
        errors: (N,) 1 wrong, 0 right, -1 unknown.
        weight: (N,) how many units each stands for, None = one.
        parts: Which way reads more of a unit than where it lies; None = none does.
    """
    ranked: list[tuple[int, int]] = []
    weights = np.where(errors >= 0, 1.0 if weight is None else weight, 0.0)
    wrong = np.where(errors == 1, weights, 0.0)
    rate = float(wrong.sum() / max(weights.sum(), 1e-9))
    if not 0 < rate < 1:
        return ranked
    left = _Candidates.of(candidates, weights, wrong)
    for _ in range(len(left.size)):
        worth = left.worth(rate)
        best = int(np.argmax(worth))
        if worth[best] <= 0:
            break
        if parts is not None and left.way[best] == parts:
            cut = left.cut_by(best, rate, left.way != parts)
            best = int(np.argmax(np.where(cut, worth, 0.0))) if (cut & (worth > 0)).any() else best
        ranked.append((int(left.way[best]), int(left.name[best])))
        left.take(best)
    return ranked


@dataclass
class _Candidates:
    """What is left of all candidates; a unit is of at most one of each way.

    Attributes:
        own: Of each way (N,) candidate of each unit, -1 = none.
        order: Of each way the units in the order of their candidates.
        way, name: (C,) of each candidate.
        weights, wrong: (N,) how many units each stands for, and how many of those are wrong.
        size, bad: (C,) units that are left, and wrong ones.
        asked: (C,) that are not taken and large enough.
        left: (N,) units that are in none that is taken.
        worth_of_weight: How many units a sum of weights of 1 is worth (Kish).
    """

    own: list[NDArray[np.int64]]
    order: list[NDArray[np.int64]]
    way: NDArray[np.int64]
    name: NDArray[np.int64]
    weights: NDArray[np.float64]
    wrong: NDArray[np.float64]
    size: NDArray[np.float64]
    bad: NDArray[np.float64]
    asked: NDArray[np.bool_]
    left: NDArray[np.bool_]
    worth_of_weight: float

    @classmethod
    def of(
        cls,
        candidates: Sequence[NDArray[np.integer]],
        weights: NDArray[np.float64],
        wrong: NDArray[np.float64],
    ) -> _Candidates:
        """All of them whole."""
        named = [np.unique(found[found >= 0]) for found in candidates]
        first = np.cumsum([0, *map(len, named)])
        own = [
            np.where(found >= 0, np.searchsorted(names, found) + start, -1)
            for found, names, start in zip(candidates, named, first[:-1], strict=True)
        ]
        count = int(first[-1])
        return cls(
            own,
            [np.argsort(one, kind="stable") for one in own],
            np.repeat(np.arange(len(named)), [len(names) for names in named]),
            np.concatenate([names.astype(np.int64) for names in named]),
            weights,
            wrong,
            _counted(own, weights, count),
            _counted(own, wrong, count),
            np.ones(count, np.bool_),
            np.ones(len(weights), np.bool_),
            float(weights.sum() / max((weights * weights).sum(), 1e-9)),
        )

    def worth(self, rate: float) -> NDArray[np.float64]:
        """(C,) what each tells about the errors; 0 of those that are not asked."""
        # Weights leave a share of a rounding more than all.
        own_rate = np.minimum(self.bad / np.maximum(self.size, 1), 1.0)
        return np.where(self.asked, told(self.size, own_rate, rate), 0.0)

    def rows(self, at: int) -> NDArray[np.int64]:
        """The units that are left of a candidate."""
        way = int(self.way[at])
        begin, end = np.searchsorted(self.own[way], (at, at + 1), sorter=self.order[way])
        found = self.order[way][begin:end]
        return found[self.left[found]]

    def cut_by(self, at: int, rate: float, some: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(C,) which of some candidates, smaller than `at`, it only cuts in two.

        What both share fails no more often (1 %: a region may be cut by several) than the others of the one
        that is cut, and these fail more often than all units (0.1 %: of many regions, and of what is left of
        them, one would by chance): who is of `at` makes no difference there.
        """
        size, bad = self._of(self.rows(at))
        rest, rest_bad = np.maximum(self.size - size, 0), np.maximum(self.bad - bad, 0)
        n, wrong = self.worth_of_weight * rest, self.worth_of_weight * np.minimum(rest, rest_bad)
        shared, bad = self.worth_of_weight * size, self.worth_of_weight * bad
        alike = two_proportions_upper(bad, shared, wrong, n) > _ALIKE
        enough = (size > 0) & (rest >= SMALLEST) & (self.size < self.size[at])
        return np.asarray(some & self.asked & enough & alike & (binomial_upper(wrong, n, rate) <= _CERTAIN))

    def take(self, at: int) -> None:
        """The others keep what is left of them."""
        taken = self.rows(at)
        size, bad = self._of(taken)
        self.left[taken], self.asked[at] = False, False
        self.size, self.bad = np.maximum(self.size - size, 0), np.maximum(self.bad - bad, 0)
        self.asked &= self.size >= SMALLEST

    def _of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(C,) how many of some units each candidate has, and wrong ones."""
        own, count = [one[rows] for one in self.own], len(self.size)
        return _counted(own, self.weights[rows], count), _counted(own, self.wrong[rows], count)


def _counted(own: list[NDArray[np.int64]], weight: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """(count,) sum of the weights of each candidate's units."""
    made = np.zeros(count)
    for one in own:
        some = one >= 0
        made += np.bincount(one[some], weights=weight[some], minlength=count)
    return made


def told(size: NDArray[Any], own: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """(n,) what regions tell about the errors; 0 where these are no more frequent there.

    Args:
        size: (n,) units.
        own: (n,) their error rates.
        rate: The overall one, between 0 and 1.

    Example:
        >>> told(np.array([16, 16, 16]), np.array([1.0, 0.5, 0.1]), 0.5).round(2).tolist()
        [5.55, 0.0, 0.0]
    """
    from scipy.special import rel_entr

    known = rel_entr(own, rate) + rel_entr(1 - own, 1 - rate)
    return np.where(own > rate, size.astype(np.float64) ** _SIZE_POWER * known, 0.0)
