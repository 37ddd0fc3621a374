"""Error probabilities of boxes: of each error code, of a wrong class, and both recalibrated into one.

The columns are those of the error estimator (`error_probability`), the folds its own; a box is scored by
models that saw neither it nor another box of its frame or group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mld_core.evaluation.analysis.error_probability import CSE, MINIMUM, ErrorProbability
from mld_core.evaluation.analysis.stack_features import StackInputs, fold_columns
from mld_core.evaluation.detection.codes import A, U
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import FOLDS, hash_uniform
from mld_core.evaluation.statistics.logistic import fit_logistic
from mld_core.evaluation.statistics.warned import filters_kept

TRAIN_CAP = 20_000
"""Boxes a model of the error codes is fitted on: it has one set of trees for each code."""

_TREES = {"max_iter": 60, "max_leaf_nodes": 15, "min_samples_leaf": 40, "l2_regularization": 5}
_ROWS = 65_536
_EDGE = 1e-6


@dataclass(frozen=True)
class BoxProbabilities:
    """What is estimated about every box.

    Attributes:
        det_error: (N,) probability that the box is not aligned with a truth, P(not A).
        cls_error: (N,) probability that its class is wrong, given that it found a truth.
        certainty: (N,) largest probability over the error codes A, M, SP, SG, D, ON, N.
    """

    det_error: Floats
    cls_error: Floats
    certainty: Floats


class BoxRefiner:
    """Called by the analysis once the plain error probability is there; keeps what it estimated.

    Args:
        code: (N,) number of the error code, -1 where it is not known.
        wrong_class: (N,) 1 wrong, 0 right, -1 where the box found no truth.
    """

    def __init__(self, code: NDArray[np.integer], wrong_class: NDArray[np.integer]) -> None:
        self.code = code.astype(np.int64)
        self.wrong_class = wrong_class.astype(np.int64)
        self.found: BoxProbabilities | None = None

    def __call__(self, estimate: ErrorProbability, inputs: StackInputs, work: Any) -> ErrorProbability:
        """Estimate both parts, and recalibrate 1 - (1 - det)(1 - cls) together with the plain estimate."""
        folds: NDArray[np.int8] = work.folds[0]
        workers: Workers = work.workers
        # U stands for "none of the others": no probability of its own.
        codes = np.where(self.code == U, -1, self.code)
        of_code = class_probabilities(inputs, folds, codes, U, workers)
        of_class = class_probabilities(inputs, folds, self.wrong_class, 2, workers)
        self.found = BoxProbabilities(1 - of_code[:, A], of_class[:, 1], of_code.max(axis=1))
        return recalibrated(estimate, self.found, inputs, folds, workers)


def class_probabilities(
    inputs: StackInputs, folds: NDArray[np.int8], target: Ints, count: int, workers: Workers
) -> Floats:
    """(N, count) cross-fitted probabilities of a target, calibrated by a temperature fitted out of fold.

    Args:
        inputs: Columns of the error estimator.
        folds: (N,) folds.
        target: (N,) 0 to count - 1, -1 = unknown: scored, never fitted on.
        count: Number of outcomes.
        workers: Open pool.
    """
    known = np.flatnonzero(target >= 0)
    prior = (np.bincount(target[known], minlength=count) + 1 / count) / (len(known) + 1)
    made = np.tile(prior, (len(target), 1))
    if len(known) - np.bincount(target[known], minlength=count).max(initial=0) < MINIMUM:
        return made

    def one(fold: int) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        test = np.flatnonzero(folds == fold)
        train = known[folds[known] != fold]
        keep = hash_uniform(train.astype(np.uint64), 501 + fold) < TRAIN_CAP / max(len(train), 1)
        rows = train[keep]
        if len(test) == 0 or len(np.unique(target[rows])) < 2:
            return
        trees = HistGradientBoostingClassifier(**_TREES, early_stopping=False, random_state=0)
        table = _columns(inputs, rows, folds, fold)
        with filters_kept():
            model = trees.fit(table, target[rows])
        for span in spans(len(test), _ROWS):
            p = np.zeros((len(test[span]), count))
            p[:, model.classes_] = model.predict_proba(_columns(inputs, test[span], folds, fold))
            made[test[span]] = p

    workers.each(one, range(FOLDS))
    return _tempered(made, target, folds)


def _columns(inputs: StackInputs, rows: Ints, folds: NDArray[np.int8], held_out: int) -> NDArray[np.float32]:
    return np.column_stack([inputs.fixed[rows], fold_columns(inputs, rows, folds, held_out)])


def _tempered(p: Floats, target: Ints, folds: NDArray[np.int8]) -> Floats:
    """Each fold's probabilities at the temperature that suits the other folds best."""
    z = np.log(np.maximum(p, _EDGE))
    made = p.copy()
    known = target >= 0
    for fold in range(FOLDS):
        train = np.flatnonzero(known & (folds != fold))
        mine = folds == fold
        if len(train) and mine.any():
            made[mine] = _softmax(z[mine] * _best_power(z[train], target[train]))
    return made


def _best_power(z: Floats, target: Ints) -> float:
    from scipy.optimize import minimize_scalar

    here = np.arange(len(target))

    def loss(power: float) -> float:
        return -float(np.log(np.maximum(_softmax(z * power)[here, target], _EDGE)).mean())

    return float(minimize_scalar(loss, bounds=(0.2, 3.0), method="bounded", options={"xatol": 0.01}).x)


def _softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def recalibrated(
    estimate: ErrorProbability,
    parts: BoxProbabilities,
    inputs: StackInputs,
    folds: NDArray[np.int8],
    workers: Workers,
) -> ErrorProbability:
    """The error probability with 1 - (1 - det)(1 - cls) as a second opinion.

    A logistic regression of two log-odds, fitted out of fold on the event errors; kept where it lowers the
    log-loss, and not tried where the plain estimate already fell back to the confidence.
    """
    known = inputs.base_rows
    if estimate.source != CSE:
        return estimate
    product = 1 - (1 - parts.det_error) * (1 - parts.cls_error)
    columns = np.column_stack([_log_odds(estimate.error_proba), _log_odds(product)])
    proba = estimate.error_proba.copy()
    for fold in range(FOLDS):
        train, test = known[folds[known] != fold], np.flatnonzero(folds == fold)
        errors = inputs.errors[train]
        if len(test) and len(train) and errors.min() != errors.max():
            fitted = fit_logistic(columns[train], errors, np.ones(len(train)), c=1e3, workers=workers)
            proba[test] = expit(fitted.logit(columns[test]))
    wrong = inputs.errors[known] == 1
    if _log_loss(proba[known], wrong) >= _log_loss(estimate.error_proba[known], wrong):
        return estimate
    return replace(estimate, error_proba=proba)


def _log_odds(p: Floats) -> Floats:
    return np.asarray(logit(np.clip(p, _EDGE, 1 - _EDGE)))


def _log_loss(p: Floats, wrong: Bools) -> float:
    held = np.clip(p, _EDGE, 1 - _EDGE)
    return -float(np.where(wrong, np.log(held), np.log1p(-held)).mean())
