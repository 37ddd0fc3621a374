"""Error probability: the cross-fitted stacked error estimator (CSE), its guard and its fall-backs.

Boosted trees and a logistic regression predict from a model's internals whether a unit is wrong. They are
fitted on the evaluated split itself, each unit scored by models that saw neither it nor its group, three
times over with other folds. Where that does not beat the calibrated risk of the softmax confidence alone, the
latter is published; where it is clearly worse after the first time, there is no second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mld_core.evaluation.analysis.error_model import (
    CONSTANT,
    CSE,
    MSP_ISOTONIC,
    PREDICT_ROWS,
    ErrorModel,
    score_rest,
    tree_logit,
    unit_columns,
)
from mld_core.evaluation.analysis.stack_features import StackInputs
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.confidence import Confidence, fit_confidence
from mld_core.evaluation.statistics.folds import FOLDS, SALTS, hash_uniform
from mld_core.evaluation.statistics.logistic import Logistic, fit_logistic
from mld_core.evaluation.statistics.significance import NORMAL_95
from mld_core.evaluation.statistics.warned import filters_kept

WHOLE = 200_000
"""Labelled units up to which all of them are fitted."""
FIT_ROWS = 50_000
"""Rows that the trees and the logistic regression are fitted to beyond that."""

TREES = {"max_iter": 80, "learning_rate": 0.09, "max_leaf_nodes": 15, "max_bins": 63}
SAMPLED_TREES = {"max_iter": 60, "learning_rate": 0.12, "max_leaf_nodes": 31, "max_bins": 63}
"""Half as many and larger ones where they are fitted to a sample: no worse, in half the time."""
CALIBRATION_BINS = 4_096
MINIMUM = 30
HOPELESS = -0.5
"""The guard's z of one repeat below which there are no more: the mean of three gains less than 2 on it."""


@dataclass(frozen=True)
class ErrorProbability:
    """Error probabilities of a split.

    Attributes:
        error_proba: (N,) float64 estimated probability of being wrong.
        baseline_risk: (N,) float64 calibrated risk of the largest softmax probability.
        source: "cse", "msp_isotonic" (guard or too few errors) or "constant" (no errors, or nothing but
            errors).
        reason: Why it is not "cse"; empty where it is.
        guard_z: Paired z of the log-loss gained over the baseline; NaN where the estimator did not run.
        model: Scores further units; None unless asked for.
        repeats: (N,) error probabilities of every repeat of the cross-fit; `error_proba` alone where there is
            no other.
    """

    error_proba: NDArray[np.float64]
    baseline_risk: NDArray[np.float64]
    source: str
    reason: str
    guard_z: float
    model: ErrorModel | None
    repeats: tuple[NDArray[np.float64], ...] = ()

    @property
    def looks(self) -> tuple[NDArray[np.float64], ...]:
        """The repeats, or the published estimate as the only one."""
        return self.repeats or (self.error_proba,)


def estimate_errors(
    inputs: StackInputs,
    msp: NDArray[np.float64],
    groups: NDArray[np.int64],
    folds: list[NDArray[np.int8]],
    workers: Workers,
    *,
    with_model: bool = False,
) -> ErrorProbability:
    """Estimate the error probability of every unit.

    Args:
        inputs: Columns, surroundings and errors.
        msp: (N,) largest softmax probability.
        groups: (N,) group codes; the guard's test treats a group as one observation.
        folds: For each repeat, the (N,) folds.
        workers: Open pool.
        with_model: Also fit on all labelled units; done in any case where a unit is unlabelled.

    Returns:
        Unlabelled units are scored by the models fitted on all labelled ones.
    """
    known = inputs.base_rows
    wrong = int((inputs.errors[known] == 1).sum())
    right = len(known) - wrong
    constant = (wrong + 1) / (len(known) + 2)
    unlabelled = len(known) < len(inputs.errors)
    if wrong == 0 or right == 0:
        what = "no errors" if wrong == 0 else "nothing but errors"
        model = ErrorModel(None, None, None, None, constant, CONSTANT)
        flat = np.full(len(msp), constant)
        reason = f"{what} among {len(known)} labelled units"
        return ErrorProbability(flat, flat.copy(), CONSTANT, reason, float("nan"), model)
    confidence = fit_confidence(msp[known], inputs.errors[known], workers)
    baseline = confidence.risk(msp)
    if min(wrong, right) < MINIMUM:
        reason = f"{wrong} wrong and {right} right units: {MINIMUM} of each are needed"
        model = ErrorModel(None, None, None, confidence, constant, MSP_ISOTONIC)
        return ErrorProbability(baseline.copy(), baseline, MSP_ISOTONIC, reason, float("nan"), model)
    raw, calibrated, gained = _repeated(inputs, baseline, folds, groups, workers)
    proba = _mean_proba(calibrated)
    source = CSE if gained > NORMAL_95 else MSP_ISOTONIC
    reason = (
        "" if source == CSE else f"log-loss not significantly below the softmax baseline's (z = {gained:.2f})"
    )
    full: ErrorModel | None = None
    if with_model or unlabelled:
        full = _full_model(inputs, raw, confidence, constant, source, workers)
    if unlabelled:
        rows = np.flatnonzero(inputs.errors < 0)
        assert full is not None
        proba[rows] = score_rest(full, inputs, rows, msp)
    if source != CSE:
        return ErrorProbability(baseline.copy(), baseline, source, reason, gained, full)
    looks = tuple(np.where(inputs.errors < 0, proba, expit(z)) for z in calibrated)
    return ErrorProbability(proba, baseline, source, reason, gained, full, looks)


def _repeated(
    inputs: StackInputs,
    baseline: NDArray[np.float64],
    folds: list[NDArray[np.int8]],
    groups: NDArray[np.int64],
    workers: Workers,
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]], float]:
    """Log-odds of each repeat, the same calibrated, and what the guard says; one where it is hopeless."""
    known = inputs.base_rows
    raw: list[NDArray[np.float64]] = []
    calibrated: list[NDArray[np.float64]] = []
    gained = 0.0
    for repeats in (folds[:1], folds[1:]):
        made = _cross_fit(inputs, repeats, len(raw), workers)
        raw += made
        calibrated += [_platt(z, inputs, fold, workers) for z, fold in zip(made, repeats, strict=True)]
        proba = _mean_proba(calibrated)
        gained = guard(proba[known], baseline[known], inputs.errors[known], groups[known])
        if gained < HOPELESS:
            break
    return raw, calibrated, gained


def _mean_proba(log_odds: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.array(expit(np.mean(log_odds, axis=0)))


def guard(
    proba: NDArray[np.float64],
    baseline: NDArray[np.float64],
    errors: NDArray[np.int8],
    groups: NDArray[np.int64],
    weight: NDArray[np.floating] | None = None,
) -> float:
    """Paired z of the log-loss of the baseline over that of the estimate, above 0 = the estimate wins.

    Probabilities are held within [1 / (n + 2), 1 - 1 / (n + 2)], as far as n units can tell them.
    """
    edge = 1 / (len(errors) + 2)
    p, b = (np.clip(value, edge, 1 - edge) for value in (proba, baseline))
    gain = np.where(errors == 1, np.log(p) - np.log(b), np.log1p(-p) - np.log1p(-b))
    mass = np.ones(len(gain)) if weight is None else weight
    gain = gain * mass
    by_group = np.bincount(groups, weights=gain)
    size = np.bincount(groups, weights=mass)
    if np.count_nonzero(size) < 2:
        return 0.0  # one observation has no spread to compare its gain with
    # Sums over groups of unequal size: the ratio estimator's variance, centred at the mean gain of a unit.
    spread = np.sqrt((((by_group - size * (gain.sum() / mass.sum())) ** 2)[size > 0]).sum())
    return float(gain.sum() / spread) if spread > 0 else 0.0


def _cross_fit(
    inputs: StackInputs, folds: list[NDArray[np.int8]], first: int, workers: Workers
) -> list[NDArray[np.float64]]:
    """For each repeat (N,) mean log-odds of both models; a unit is scored by models without its fold.

    `first` is the number of the first of them.
    """
    made = [np.zeros(len(inputs.errors)) for _ in folds]

    def one(task: tuple[int, int]) -> None:
        repeat, fold = task
        _fit_fold(inputs, folds[repeat], first + repeat, fold, made[repeat], workers)

    workers.each(one, [(repeat, fold) for repeat in range(len(folds)) for fold in range(FOLDS)])
    return made


def _fit_fold(
    inputs: StackInputs,
    folds: NDArray[np.int8],
    repeat: int,
    fold: int,
    z: NDArray[np.float64],
    workers: Workers,
) -> None:
    known = inputs.base_rows
    train, test = known[folds[known] != fold], known[folds[known] == fold]
    if not len(test):
        return
    rows, shift = _sampled(inputs, train, repeat * FOLDS + fold)
    errors = inputs.errors[rows]
    if not len(rows) or errors.min() == errors.max():
        z[test] = logit((errors.sum() + 1) / (len(errors) + 2))
        return
    trees, linear = fit_pair(unit_columns(inputs, rows, folds, fold), errors, _settings(inputs), workers)
    for span in spans(len(test), PREDICT_ROWS):
        columns = unit_columns(inputs, test[span], folds, fold)
        z[test[span]] = (tree_logit(trees, columns) + linear.logit(columns)) / 2 + shift


def fit_sample(
    errors: NDArray[np.int8], rows: NDArray[np.int64], stream: int, cap: int
) -> tuple[NDArray[np.int64], float]:
    """At most about `cap` training rows, the rarer outcome whole, the other hash-sampled.

    Where both outcomes exceed half the cap, both are sampled down to half of it. A model with an intercept
    fitted to a sample drawn by the outcome differs from that of all rows by a constant alone (Prentice and
    Pyke, 1979).

    Returns:
        The rows kept, in order, and what is to be added to the log-odds of a model fitted to them.

    Example:
        >>> rows, shift = fit_sample(np.array([0, 1], np.int8), np.arange(2), 0, cap=2)
        >>> rows.tolist(), shift
        ([0, 1], 0.0)
    """
    if len(rows) <= cap:
        return rows, 0.0
    wrong = errors[rows] == 1
    count = np.array([len(rows) - int(wrong.sum()), int(wrong.sum())])
    fewer = min(int(count.min()), cap // 2)
    rate = np.where(count > cap // 2, np.minimum(1.0, (cap - fewer) / np.maximum(count, 1)), 1.0)
    kept = hash_uniform(rows.astype(np.uint64), 101 + stream) < rate[wrong.astype(np.int64)]
    return rows[kept], float(np.log(rate[0] / rate[1]))


def _sampled(inputs: StackInputs, rows: NDArray[np.int64], stream: int) -> tuple[NDArray[np.int64], float]:
    cap = FIT_ROWS if len(inputs.base_rows) > WHOLE else len(rows)
    return fit_sample(inputs.errors, rows, stream, cap)


def _settings(inputs: StackInputs) -> dict[str, Any]:
    return SAMPLED_TREES if len(inputs.base_rows) > WHOLE else TREES


def fit_pair(
    columns: NDArray[np.float32], errors: NDArray[np.int8], settings: dict[str, Any], workers: Workers
) -> tuple[Any, Logistic]:
    """Boosted trees and a logistic regression on the same columns."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(
        **settings, min_samples_leaf=40, l2_regularization=5, early_stopping=False, random_state=0
    )
    linear = fit_logistic(columns, errors, np.ones(len(errors)), c=0.05, workers=workers)
    with filters_kept():
        trees.fit(columns, errors)
    return trees, linear


def _platt(
    z: NDArray[np.float64], inputs: StackInputs, folds: NDArray[np.int8], workers: Workers
) -> NDArray[np.float64]:
    """Calibrated log-odds: a logistic regression on the log-odds, fitted out of fold (Platt, 1999)."""
    made = z.copy()
    known = inputs.base_rows
    table = _binned(z[known], inputs.errors[known], folds[known]) if len(known) > WHOLE else None
    for fold in range(FOLDS):
        train, test = known[folds[known] != fold], known[folds[known] == fold]
        errors = inputs.errors[train]
        if not len(test) or not len(train) or errors.min() == errors.max():
            continue
        if table is None:
            model = fit_platt(z[train], errors, np.ones(len(train)), workers)
        else:
            size, wrong, total = table.sum(axis=2) - table[:, :, fold]
            outcome = np.repeat(np.array([0, 1], np.int8), len(size))
            mean = np.tile(total / np.maximum(size, 1), 2)
            model = fit_platt(mean, outcome, np.concatenate([size - wrong, wrong]), workers)
        made[test] = model.logit(z[test, None])
    return made


def _binned(z: NDArray[np.float64], errors: NDArray[np.int8], folds: NDArray[np.int8]) -> NDArray[np.float64]:
    """(3, bins, folds) units, wrong ones and sum of the log-odds in bins of equal mass.

    A curve of two numbers does not tell a bin's units from as many at their mean.
    """
    place = np.empty(len(z), np.int64)
    place[np.argsort(z, kind="stable")] = np.arange(len(z)) * CALIBRATION_BINS // len(z)
    place = place * FOLDS + folds
    parts = [
        np.bincount(place, weights=weight, minlength=CALIBRATION_BINS * FOLDS)
        for weight in (None, errors == 1, z)
    ]
    return np.array(parts, np.float64).reshape(3, CALIBRATION_BINS, FOLDS)


def fit_platt(
    z: NDArray[np.float64], errors: NDArray[np.int8], weight: NDArray[np.float64], workers: Workers
) -> Logistic:
    """Calibration of (n,) log-odds by two numbers."""
    return fit_logistic(z[:, None], errors, weight, c=1e3, workers=workers, standardise=False)


def _full_model(
    inputs: StackInputs,
    raw: list[NDArray[np.float64]],
    confidence: Confidence,
    constant: float,
    source: str,
    workers: Workers,
) -> ErrorModel:
    if source != CSE:
        return ErrorModel(None, None, None, confidence, constant, source)
    rows, shift = _sampled(inputs, inputs.base_rows, len(SALTS) * FOLDS)
    columns = unit_columns(inputs, rows, None, -1)
    trees, linear = fit_pair(columns, inputs.errors[rows], _settings(inputs), workers)
    known = inputs.base_rows
    # The log-odds of new units are as spread as out-of-fold ones: those are what it is fitted to.
    platt = fit_platt(np.mean(raw, axis=0)[known], inputs.errors[known], np.ones(len(known)), workers)
    return ErrorModel(trees, linear, platt, confidence, constant, source, shift)
