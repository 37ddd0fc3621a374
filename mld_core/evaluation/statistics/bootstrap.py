"""Cluster bootstrap with Poisson(1) weights drawn from hashes: the same interval on every run.

A group (scene, patient, input) is drawn as a whole, B = 200 times. Its weight in a replicate depends on its
key and the replicate's number only, so that splits, engines and the two sides of a comparison draw the same
groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import exp, factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.classification import auroc_of_counts, average_precision_of_counts
from mld_core.evaluation.statistics.folds import hash_uniform, mix

REPLICATES = 200
LEVEL = 0.95
CALIBRATION_BINS = 15
_STEPS = np.cumsum([exp(-1) / factorial(n) for n in range(14)])
_BINS = 65_536
_COARSE = 2**16
_BELOW = np.searchsorted(_STEPS, np.arange(_COARSE) / _COARSE, side="right")
_BELOW[np.searchsorted(_STEPS, (np.arange(_COARSE) + 1) / _COARSE) > _BELOW] = -1
_BELOW = _BELOW.astype(np.int8)
"""Weight by the first 16 bits of a number in [0, 1); -1 where those do not decide it."""

Interval = tuple[float | None, float | None]


def poisson_weights(hashes: NDArray[np.uint64], replicate: int) -> NDArray[np.int8]:
    """Poisson(1) weight of each group in one replicate.

    Args:
        hashes: (G,) hashes of the group keys (`folds.key_hashes` with salt "0").
        replicate: Number of the replicate.

    Example:
        >>> poisson_weights(np.arange(10_000, dtype=np.uint64), 0).mean().round(1).item()
        1.0
    """
    made: NDArray[np.int8] = _BELOW[mix(hashes, 1_000 + replicate) >> np.uint64(48)]
    undecided = np.flatnonzero(made < 0)
    drawn = hash_uniform(hashes[undecided], 1_000 + replicate)
    made[undecided] = np.searchsorted(_STEPS, drawn, side="right")
    return made


def percentile_interval(values: NDArray[np.floating], level: float = LEVEL) -> Interval:
    """Quantile interval of the replicates that have a value; (None, None) where fewer than 2 do."""
    kept = values[~np.isnan(values)]
    if len(kept) < 2:
        return None, None
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], Mapping[str, float | None]],
    hashes: NDArray[np.uint64],
    groups: NDArray[np.int64],
    workers: Workers,
    *,
    replicates: int = REPLICATES,
) -> dict[str, Interval]:
    """Intervals of any statistic of unit weights.

    Args:
        statistic: Takes (N,) weights, gives values by name, None where undefined.
        hashes: (G,) hashes of the group keys.
        groups: (N,) place of each unit's group in `hashes`.
        workers: Open pool.
        replicates: How many.
    """

    def one(replicate: int) -> Mapping[str, float | None]:
        return statistic(poisson_weights(hashes, replicate)[groups].astype(np.float64))

    drawn = list(workers.map(one, range(replicates)))
    return {
        name: percentile_interval(
            np.array([np.nan if row[name] is None else row[name] for row in drawn], np.float64)
        )
        for name in (drawn[0] if drawn else {})
    }


@dataclass(frozen=True)
class RankedErrors:
    """Units sorted by a score, for metrics under many sets of weights.

    Attributes:
        place: (N,) number of each unit's distinct score, by rising score; at most 65,536 equal-mass bins
            beyond that.
        places: How many.
        score: (N,) the score.
        wrong: (N,) float64 1 wrong, 0 right.
    """

    place: NDArray[np.int64]
    places: int
    score: NDArray[np.float64]
    wrong: NDArray[np.float64]

    @classmethod
    def of(cls, score: NDArray[np.floating], errors: NDArray[np.integer]) -> RankedErrors:
        """Rank (n,) finite scores of labelled units."""
        values = score.astype(np.float64)
        distinct, place = np.unique(values, return_inverse=True)
        place = place.reshape(-1)
        if len(distinct) > _BINS:
            mass = np.cumsum(np.bincount(place)) - 1
            place = (mass * _BINS // len(values))[place]
        return cls(place, int(place.max(initial=-1)) + 1, values, (errors == 1).astype(np.float64))

    @cached_property
    def _square(self) -> NDArray[np.float64]:
        return np.asarray((self.score - self.wrong) ** 2)

    @cached_property
    def _gap(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        return _calibration_bins(self.score, CALIBRATION_BINS), self.score - self.wrong

    def metrics(self, weight: NDArray[np.float64] | None = None) -> dict[str, float | None]:
        """Metrics of the score as an error detector: AUROC, AUPRC, Brier, ECE, AURC, AUGRC.

        AURC is the mean selective risk over all coverages, AUGRC the mean of selective risk times coverage
        (Traub et al., 2024), both with the least risky units accepted first and ties accepted together.

        Args:
            weight: (n,) unit weights, None = 1 each.
        """
        w = np.ones(len(self.place)) if weight is None else weight
        total = np.bincount(self.place, weights=w, minlength=self.places)
        wrong = np.bincount(self.place, weights=w * self.wrong, minlength=self.places)
        mass = float(w.sum())
        if mass <= 0:
            return dict.fromkeys(METRICS)
        place, gap = self._gap
        by_bin = np.bincount(place, weights=w * gap)
        return metrics_of_counts(wrong, total, float((w * self._square).sum()), by_bin, mass)


def metrics_of_counts(
    wrong: NDArray[Any],
    total: NDArray[Any],
    square: float,
    gap: NDArray[Any],
    mass: float,
) -> dict[str, float | None]:
    """The metrics of a score from counts of units by rising score.

    Args:
        wrong: (places,) wrong units.
        total: (places,) units.
        square: Sum of (score - wrong) squared.
        gap: (15,) sums of score - wrong by equal bins of the score.
        mass: Units.
    """
    aurc, augrc = _risk_coverage(total, wrong)
    return {
        "error_proba_auroc": auroc_of_counts(wrong, total),
        "error_proba_auprc": average_precision_of_counts(wrong, total),
        "error_proba_brier": square / mass,
        "error_proba_ece": float(np.abs(gap).sum() / mass),
        "aurc": aurc,
        "augrc": augrc,
    }


METRICS = ("error_proba_auroc", "error_proba_auprc", "error_proba_brier", "error_proba_ece", "aurc", "augrc")


def _risk_coverage(total: NDArray[Any], wrong: NDArray[Any]) -> tuple[float, float]:
    seen, bad = np.cumsum(total), np.cumsum(wrong)
    share = total / seen[-1]
    risk = bad / np.maximum(seen, 1e-300)
    return float((risk * share).sum()), float((bad / seen[-1] * share).sum())


def calibration_error(
    score: NDArray[np.floating],
    wrong: NDArray[np.floating],
    weight: NDArray[np.floating],
    bins: int = CALIBRATION_BINS,
) -> float:
    """Expected calibration error with equal-width bins of the score.

    Example:
        >>> calibration_error(np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.ones(2))
        0.0
    """
    return _calibration_error(_calibration_bins(score, bins), score - wrong, weight)


def _calibration_bins(score: NDArray[np.floating], bins: int) -> NDArray[np.int64]:
    return np.clip((score * bins).astype(np.int64), 0, bins - 1)


def _calibration_error(
    place: NDArray[np.int64], gap: NDArray[np.floating], weight: NDArray[np.floating]
) -> float:
    return float(np.abs(np.bincount(place, weights=weight * gap)).sum() / weight.sum())


def error_metrics(
    score: NDArray[np.floating],
    errors: NDArray[np.integer],
    hashes: NDArray[np.uint64],
    groups: NDArray[np.int64],
    workers: Workers,
    *,
    replicates: int = REPLICATES,
) -> dict[str, float | None]:
    """The metrics of an error score with their 95 % intervals under `<name>_lo` and `<name>_hi`.

    Args:
        score: (n,) error probabilities of labelled units.
        errors: (n,) 1 wrong, 0 right.
        hashes: (G,) hashes of the group keys.
        groups: (n,) place of each unit's group in `hashes`.
        workers: Open pool.
        replicates: How many.
    """
    if len(score) == 0:
        return dict.fromkeys(METRICS)
    ranked = RankedErrors.of(score, errors)
    made = ranked.metrics()
    intervals = (
        bootstrap(ranked.metrics, hashes, groups, workers, replicates=replicates) if replicates else {}
    )
    for name, (low, high) in intervals.items():
        made[f"{name}_lo"], made[f"{name}_hi"] = low, high
    return made
