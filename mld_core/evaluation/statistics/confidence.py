"""The risk that a monitor of one score, such as the softmax confidence, would see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics.logistic import Logistic, fit_logistic

_LEAST_SLOPE = 1e-3


@dataclass(frozen=True)
class Confidence:
    """The risk a monitor of one score would see: strictly falling in it, and nowhere exactly 0.

    Beta calibration (Kull, Silva Filho and Flach, 2017) of a probability, a logistic one of any other score:
    at most three numbers, so that one curve for all folds ranks the units exactly as the score does.
    """

    curve: Logistic

    def risk(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) risk."""
        return np.asarray(expit(self.curve.logit(_confidence_columns(score, len(self.curve.coefficients)))))


def _confidence_columns(score: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    if count == 1:
        return -score[:, None]
    inside = np.clip(score, 1e-16, 1.0)
    return np.column_stack([-np.log(inside), np.log(np.maximum(1 - inside, 1e-16))])


def fit_confidence(
    score: NDArray[np.float64],
    errors: NDArray[np.int8],
    workers: Workers,
    weight: NDArray[np.floating] | None = None,
) -> Confidence:
    """Fit the curve to labelled units, some of them wrong and some right; of sampled ones with weights."""
    mass = np.ones(len(score)) if weight is None else weight
    bounded = float(score.min()) >= 0 and float(score.max()) <= 1
    columns = _confidence_columns(score, 2 if bounded else 1)
    found = fit_logistic(columns, errors, mass, c=1.0, workers=workers)
    if (found.coefficients < 0).any():
        best = int(np.argmax(found.coefficients))
        one = fit_logistic(columns[:, [best]], errors, mass, c=1.0, workers=workers)
        slopes = np.zeros(columns.shape[1])
        # A score that points the wrong way still ranks as it does.
        slopes[best] = max(float(one.coefficients[0]), _LEAST_SLOPE)
        found = Logistic(slopes, one.intercept, found.mean, found.scale)
    return Confidence(found)
