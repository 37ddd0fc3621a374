"""The risk behind an error probability as a smooth, rising curve with a band: no steps, nowhere exactly 0."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mld_core.evaluation.statistics.significance import NORMAL_95

BINS = 4_096
_EDGE, _STEPS = 1e-6, 50


@dataclass(frozen=True)
class RiskCurve:
    """Log-odds of being wrong as a straight line over those of the error probability.

    Attributes:
        line: (2,) intercept and slope.
        spread: (2, 2) their covariance.
    """

    line: NDArray[np.float64]
    spread: NDArray[np.float64]

    def lower_bound(self, proba: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N,) one-sided 95 % lower bound of the risk, `p_lo`."""
        x = _log_odds(proba)
        variance = self.spread[0, 0] + 2 * x * self.spread[0, 1] + x * x * self.spread[1, 1]
        return np.asarray(expit(self.line[0] + self.line[1] * x - NORMAL_95 * np.sqrt(variance)))


@dataclass(frozen=True)
class RankedRisk:
    """Units in at most 4,096 bins of equal mass of their error probability, for fits under many weights.

    Attributes:
        place: (n,) bin of each unit.
        centre: (B,) mean log-odds of each bin.
        wrong: (n,) float64 1 wrong, 0 right.
    """

    place: NDArray[np.int64]
    centre: NDArray[np.float64]
    wrong: NDArray[np.float64]

    @classmethod
    def of(cls, proba: NDArray[np.floating], errors: NDArray[np.integer]) -> RankedRisk:
        """Rank (n,) error probabilities of labelled units."""
        distinct, place = np.unique(_log_odds(proba), return_inverse=True)
        place = place.reshape(-1)
        if len(distinct) > BINS:
            mass = np.cumsum(np.bincount(place)) - 1
            place = (mass * BINS // len(place))[place]
        size = np.maximum(np.bincount(place), 1)
        return cls(place, np.bincount(place, weights=_log_odds(proba)) / size, (errors == 1).astype(float))

    def curve(self, weight: NDArray[np.floating] | None = None) -> RiskCurve:
        """The curve under (n,) unit weights, None = 1 each.

        A prior of one unit's weight says that the estimate is calibrated: it decides where there is too
        little to say otherwise, such as where no unit is wrong.
        """
        bins = len(self.centre)
        size = np.bincount(self.place, weights=weight, minlength=bins).astype(np.float64)
        mass = self.wrong if weight is None else self.wrong * weight
        bad = np.bincount(self.place, weights=mass, minlength=bins)
        rows = np.column_stack([np.ones(bins), self.centre])
        prior = np.array([0.0, 1.0])
        line, curvature = prior.copy(), np.eye(2)
        for _ in range(_STEPS):
            p = expit(rows @ line)
            slope = rows.T @ (size * p - bad) + (line - prior)
            curvature = (rows * (size * p * (1 - p))[:, None]).T @ rows + np.eye(2)
            step = np.linalg.solve(curvature, slope)
            line = line - step * min(1.0, 2 / max(float(np.abs(step).max()), 1e-12))
            if float(np.abs(step).max()) < 1e-9:
                break
        return RiskCurve(line, np.asarray(np.linalg.inv(curvature), np.float64))


def _log_odds(proba: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(logit(np.clip(np.asarray(proba, np.float64), _EDGE, 1 - _EDGE)))
