"""Logistic regression with an L2 penalty, solved to convergence by Newton's method.

Minimises C * sum_i w_i log-loss_i + |beta|^2 / 2 without a penalty on the intercept, scikit-learn's
objective. Newton reaches the one minimum in a few steps, where a quasi-Newton solver stops at a tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics.blocks import spans

_ROWS = 16_384
_KEPT = 2**23
"""Numbers of standardised columns that are held from step to step; more are made anew in each."""

_STEPS = 60


@dataclass(frozen=True)
class Logistic:
    """A fitted model: logit = x @ coefficients + intercept, x standardised by `mean` and `scale`."""

    coefficients: NDArray[np.float64]
    intercept: float
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    def logit(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N,) log-odds of (N, P) columns."""
        weight = self.coefficients / self.scale
        return np.asarray(x @ weight + (self.intercept - self.mean @ weight), dtype=np.float64)


def fit_logistic(
    x: NDArray[np.floating],
    y: NDArray[np.integer],
    weight: NDArray[np.floating],
    *,
    c: float,
    workers: Workers,
    standardise: bool = True,
) -> Logistic:
    """Fit (N, P) columns to (N,) 0/1 targets.

    Args:
        x: Columns.
        y: Targets, both values present.
        weight: (N,) weights.
        c: Inverse strength of the penalty.
        workers: Open pool.
        standardise: Whether to centre the columns and divide by their standard deviation.
    """
    width = x.shape[1]
    mean, scale = np.zeros(width), np.ones(width)
    if standardise:
        mean = np.mean(x, axis=0, dtype=np.float64)
        scale = np.std(x, axis=0, dtype=np.float64)
        scale[scale < 1e-12] = 1.0
    mass = c * weight.astype(np.float64)
    penalty = np.append(np.ones(width), 0.0)
    problem = _Problem(x, y.astype(np.float64), mass, mean, scale, penalty, workers)
    if len(x) * (width + 1) <= _KEPT:
        problem = replace(problem, kept=tuple(workers.map(problem.rows, spans(len(x), _ROWS))))
    beta = np.zeros(width + 1)
    rate = float((mass * problem.target).sum() / mass.sum())
    beta[-1] = np.log(rate / (1 - rate))
    here = problem.at(beta)
    for _ in range(_STEPS):
        loss, slope, curve = here
        step = np.linalg.solve(curve + np.diag(problem.penalty + 1e-10), slope)
        if float(slope @ step) < 1e-10 * max(1.0, loss):
            break
        size = 1.0
        here = problem.at(beta - step)
        while size > 1e-4 and here[0] > loss:
            size /= 2
            here = problem.at(beta - size * step)
        beta = beta - size * step
    return Logistic(beta[:-1], float(beta[-1]), mean, scale)


@dataclass(frozen=True)
class _Problem:
    """The objective; its sums are over blocks of rows, folded in order."""

    x: NDArray[np.floating]
    target: NDArray[np.float64]
    mass: NDArray[np.float64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    penalty: NDArray[np.float64]
    workers: Workers
    kept: tuple[NDArray[np.float64], ...] = ()

    def at(self, beta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Value, gradient and the Hessian of the unpenalised part."""
        parts = list(self.workers.map(lambda span: self._block(span, beta), spans(len(self.x), _ROWS)))
        loss = sum(part[0] for part in parts) + float((self.penalty * beta * beta).sum()) / 2
        slope = sum((part[1] for part in parts), np.zeros(len(beta))) + self.penalty * beta
        return loss, slope, sum((part[2] for part in parts[1:]), parts[0][2])

    def rows(self, span: slice) -> NDArray[np.float64]:
        """(n, P + 1) standardised columns and ones."""
        return np.column_stack([(self.x[span] - self.mean) / self.scale, np.ones(span.stop - span.start)])

    def _block(
        self, span: slice, beta: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        rows = self.kept[span.start // _ROWS] if self.kept else self.rows(span)
        mass, target = self.mass[span], self.target[span]
        logit = rows @ beta
        loss = float((mass * (np.logaddexp(0, logit) - target * logit)).sum())
        p = expit(logit)
        slope = rows.T @ (mass * (p - target))
        rows = rows * np.sqrt(mass * p * (1 - p))[:, None]
        return loss, slope, rows.T @ rows  # of an array with itself: half the arithmetic
