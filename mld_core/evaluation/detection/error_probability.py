"""Error probabilities of boxes: of each error code, of a wrong class, and both recalibrated into one.

The columns are those of the error estimator (`error_probability`), the folds its own; a box is scored by
models that saw neither it nor another box of its frame or group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mld_core.evaluation.analysis.error_model import CSE, TREE_ROWS
from mld_core.evaluation.analysis.error_probability import MINIMUM, WHOLE, ErrorProbability
from mld_core.evaluation.analysis.stack_features import StackInputs, fold_columns
from mld_core.evaluation.detection.codes import A, U
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import FOLDS, hash_uniform
from mld_core.evaluation.statistics.logistic import Logistic, fit_logistic
from mld_core.evaluation.statistics.warned import filters_kept

TRAIN_CAP = 20_000
"""Boxes a model of the error codes is fitted on: it has one set of trees for each code."""

_TREES = {"max_iter": 60, "max_leaf_nodes": 15, "min_samples_leaf": 40, "l2_regularization": 5}
_FEWER_TREES = _TREES | {"max_iter": 40, "learning_rate": 0.15, "max_bins": 63}
"""Beyond `WHOLE` boxes, where scoring them all is what costs."""

_POWER_ROWS = 50_000
"""Boxes that a temperature, one number, is fitted to."""

_ROWS = 16_384
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
    """Called by the analysis beside the plain error probability, which it refines; keeps what it estimated.

    Args:
        code: (N,) number of the error code, -1 where it is not known.
        wrong_class: (N,) 1 wrong, 0 right, -1 where the box found no truth.
    """

    def __init__(self, code: NDArray[np.integer], wrong_class: NDArray[np.integer]) -> None:
        self.code = code.astype(np.int64)
        self.wrong_class = wrong_class.astype(np.int64)
        self.found: BoxProbabilities | None = None

    def __call__(self, inputs: StackInputs, work: Any) -> Callable[[ErrorProbability], ErrorProbability]:
        """Estimate both parts; what recalibrates 1 - (1 - det)(1 - cls) together with the plain estimate."""
        folds: NDArray[np.int8] = work.folds[0]
        workers: Workers = work.workers
        # U stands for "none of the others": no probability of its own.
        codes = np.where(self.code == U, -1, self.code)

        def columns(rows: Ints, fold: int) -> NDArray[np.float32]:
            return np.column_stack([inputs.fixed[rows], fold_columns(inputs, rows, folds, fold)])

        _, self.found = parts = fit_parts(columns, folds, codes, self.wrong_class, workers)
        return lambda estimate: recalibrated(estimate, parts[1], inputs, folds, workers)


ColumnsOf = Callable[[Ints, int], NDArray[np.float32]]
"""Rows and the fold that is kept out -> the columns of the error estimator."""


@dataclass(frozen=True)
class ClassModels:
    """What gives any box its probabilities of some outcomes; small, and plain data.

    Attributes:
        prior: (count,) shares of the outcomes.
        trees: One set for each fold; None where the other folds hold too little.
        powers: (folds,) inverse temperatures.
    """

    prior: Floats
    trees: tuple[Any, ...]
    powers: Floats

    def raw(self, columns: ColumnsOf, folds: NDArray[np.int8], workers: Workers | None = None) -> Floats:
        """(n, count) before the temperature; each box by the trees that did not see its fold.

        Without workers on this thread.
        """
        made = np.tile(self.prior, (len(folds), 1))

        def one(task: tuple[int, Ints]) -> None:
            fold, rows = task
            trees, own = self.trees[fold], columns(rows, fold)
            p = np.zeros((len(rows), len(self.prior)))
            for span in spans(len(rows), TREE_ROWS):
                p[span, trees.classes_] = trees.predict_proba(own[span])
            made[rows] = p

        tasks = (
            (fold, test[span])
            for fold, trees in enumerate(self.trees)
            if trees is not None
            for test in [np.flatnonzero(folds == fold)]
            for span in spans(len(test), _ROWS)
        )
        for _ in (map if workers is None else workers.map)(one, tasks):
            pass
        return made

    def tempered(self, raw: Floats, folds: NDArray[np.int8]) -> Floats:
        """(n, count) each fold's probabilities at its temperature."""
        made = raw.copy()
        for fold, power in enumerate(self.powers):
            mine = folds == fold
            if mine.any() and not np.isnan(power):
                made[mine] = _softmax(np.log(np.maximum(raw[mine], _EDGE)) * power)
        return made


@dataclass(frozen=True)
class PartModels:
    """The models of the error codes and of a wrong class."""

    code: ClassModels
    wrong_class: ClassModels

    def score(self, columns: ColumnsOf, folds: NDArray[np.int8]) -> BoxProbabilities:
        """What is estimated about (n,) boxes."""
        both = (one.tempered(one.raw(columns, folds), folds) for one in (self.code, self.wrong_class))
        return _probabilities(*both)


def _probabilities(of_code: Floats, of_class: Floats) -> BoxProbabilities:
    return BoxProbabilities(1 - of_code[:, A], of_class[:, 1], of_code.max(axis=1))


def fit_parts(
    columns: ColumnsOf,
    folds: NDArray[np.int8],
    code: Ints,
    wrong_class: Ints,
    workers: Workers,
    weight: Floats | None = None,
) -> tuple[PartModels, BoxProbabilities]:
    """Fit both, and say what they say of the boxes they were fitted on, out of fold."""
    with workers, workers.beside() as beside:
        # Beside each other: five fits leave one of two threads waiting, and temperatures are one thread's.
        other = beside(lambda: fit_classes(columns, folds, wrong_class, 2, workers, weight))
        codes, of_code = fit_classes(columns, folds, code, U, workers, weight)
        classes, of_class = other.result()
    return PartModels(codes, classes), _probabilities(of_code, of_class)


def fit_classes(
    columns: ColumnsOf,
    folds: NDArray[np.int8],
    target: Ints,
    count: int,
    workers: Workers,
    weight: Floats | None = None,
) -> tuple[ClassModels, Floats]:
    """Models of a target, and (N, count) cross-fitted probabilities, calibrated by a temperature.

    Args:
        columns: Of the error estimator.
        folds: (N,) folds.
        target: (N,) 0 to count - 1, -1 = unknown: scored, never fitted on.
        count: Number of outcomes.
        workers: Open pool.
        weight: (N,) how many boxes each stands for; None = itself.
    """
    known = np.flatnonzero(target >= 0)
    mass = np.ones(len(known)) if weight is None else weight[known]
    size = np.bincount(target[known], weights=mass, minlength=count)
    prior = (size + 1 / count) / (mass.sum() + 1)
    nothing = ClassModels(prior, (None,) * FOLDS, np.full(FOLDS, np.nan))
    if len(known) - np.bincount(target[known], minlength=count).max(initial=0) < MINIMUM:
        return nothing, np.tile(prior, (len(target), 1))

    def one(fold: int) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier

        train = known[folds[known] != fold]
        keep = hash_uniform(train.astype(np.uint64), 501 + fold) < TRAIN_CAP / max(len(train), 1)
        rows = train[keep]
        if len(np.unique(target[rows])) < 2:
            return None
        settings = _TREES if len(known) <= WHOLE else _FEWER_TREES
        trees = HistGradientBoostingClassifier(**settings, early_stopping=False, random_state=0)
        with filters_kept():
            return trees.fit(
                columns(rows, fold), target[rows], sample_weight=None if weight is None else weight[rows]
            )

    fitted = replace(nothing, trees=tuple(workers.map(one, range(FOLDS))))
    raw = fitted.raw(columns, folds, workers)
    made = replace(fitted, powers=_powers(raw, target, folds, weight, workers))
    return made, made.tempered(raw, folds)


def _powers(
    p: Floats, target: Ints, folds: NDArray[np.int8], weight: Floats | None, workers: Workers
) -> Floats:
    """(folds,) the power of each fold's probabilities that suits the other folds best."""
    z = np.log(np.maximum(p, _EDGE))
    known = target >= 0

    def one(fold: int) -> float:
        train = np.flatnonzero(known & (folds != fold))
        kept = hash_uniform(train.astype(np.uint64), 601 + fold) < _POWER_ROWS / max(len(train), 1)
        train = train[kept] if len(train) > WHOLE else train
        if not len(train):
            return float("nan")
        return _best_power(z[train], target[train], None if weight is None else weight[train])

    return np.array(list(workers.map(one, range(FOLDS))))


def _best_power(z: Floats, target: Ints, weight: Floats | None) -> float:
    from scipy.optimize import minimize_scalar

    here = np.arange(len(target))

    def loss(power: float) -> float:
        own = np.log(np.maximum(_softmax(z * power)[here, target], _EDGE))
        return -float(np.average(own, weights=weight))

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
    """The error probability with 1 - (1 - det)(1 - cls) as a second opinion; see `fit_opinions`.

    Not tried where the plain estimate already fell back to the confidence.
    """
    if estimate.source != CSE:
        return estimate
    both = opinions(estimate.error_proba, parts)
    models = fit_opinions(both, inputs.errors, inputs.base_rows, folds, workers)
    return estimate if models is None else replace(estimate, error_proba=opined(models, both, folds))


def opinions(proba: Floats, parts: BoxProbabilities) -> Floats:
    """(N, 2) log-odds of the plain estimate and of the product of both parts."""
    product = 1 - (1 - parts.det_error) * (1 - parts.cls_error)
    return np.column_stack([_log_odds(proba), _log_odds(product)])


def fit_opinions(
    both: Floats,
    errors: NDArray[np.int8],
    known: Ints,
    folds: NDArray[np.int8],
    workers: Workers,
    weight: Floats | None = None,
) -> tuple[Logistic | None, ...] | None:
    """For each fold a logistic regression of two log-odds, fitted out of fold on the event errors.

    None where that does not lower the log-loss; of a fold None where the other folds do not tell.
    """
    mass = np.ones(len(errors)) if weight is None else weight

    def one(fold: int) -> Logistic | None:
        train = known[folds[known] != fold]
        here = errors[train]
        told = len(train) > 0 and here.min() != here.max()
        return fit_logistic(both[train], here, mass[train], c=1e3, workers=workers) if told else None

    made = tuple(workers.map(one, range(FOLDS)))
    wrong = errors[known] == 1
    before = expit(both[known, 0])
    after = opined(made, both, folds)[known]
    worse = _log_loss(after, wrong, mass[known]) >= _log_loss(before, wrong, mass[known])
    return None if worse else made


def opined(models: tuple[Logistic | None, ...], both: Floats, folds: NDArray[np.int8]) -> Floats:
    """(N,) recalibrated error probabilities."""
    proba = np.asarray(expit(both[:, 0]))
    for fold, model in enumerate(models):
        test = np.flatnonzero(folds == fold)
        if len(test) and model is not None:
            proba[test] = expit(model.logit(both[test]))
    return proba


def _log_odds(p: Floats) -> Floats:
    return np.asarray(logit(np.clip(p, _EDGE, 1 - _EDGE)))


def _log_loss(p: Floats, wrong: Bools, weight: Floats) -> float:
    held = np.clip(p, _EDGE, 1 - _EDGE)
    return -float(np.average(np.where(wrong, np.log(held), np.log1p(-held)), weights=weight))
