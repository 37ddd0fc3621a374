"""The error estimator of the rounds: fitted on the sample; a unit is scored by models without its fold.

The same columns, models and calibration as `analysis.error_probability`; what is around a unit comes from
cells that hold all units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mld_core.evaluation.analysis.error_model import CONSTANT, CSE, MSP_ISOTONIC, tree_logit
from mld_core.evaluation.analysis.error_probability import (
    FIT_ROWS,
    MINIMUM,
    SAMPLED_TREES,
    TREES,
    WHOLE,
    fit_pair,
    fit_platt,
    fit_sample,
    guard,
)
from mld_core.evaluation.analysis.stack_features import class_rates, joined_columns, shrunk
from mld_core.evaluation.classification.rounds.block import Block, Draw
from mld_core.evaluation.classification.rounds.cells import Around
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics.confidence import Confidence, fit_confidence
from mld_core.evaluation.statistics.folds import FOLDS, group_codes
from mld_core.evaluation.statistics.logistic import Logistic
from mld_core.evaluation.statistics.significance import NORMAL_95


@dataclass(frozen=True)
class FoldModel:
    """What scores the units of one fold in one repeat.

    Attributes:
        trees: Boosted trees, None where the other folds hold no errors or nothing else.
        linear: Logistic regression on the same columns.
        shift: Added to their mean log-odds.
        platt: Calibration of the sum, None = none.
    """

    trees: Any
    linear: Logistic | None
    shift: float
    platt: Logistic | None = None

    def raw(self, columns: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) log-odds before calibration."""
        if self.linear is None:
            return np.full(len(columns), self.shift)
        return np.asarray((tree_logit(self.trees, columns) + self.linear.logit(columns)) / 2 + self.shift)

    def calibrated(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) calibrated log-odds."""
        return z if self.platt is None else self.platt.logit(z[:, None])


@dataclass(frozen=True)
class Estimator:
    """What gives any unit of the pass its error probability; small, and plain data.

    Attributes:
        models: One for each repeat and fold; empty where the baseline or a constant is published.
        confidence: The baseline, None where it is constant.
        constant: (E + 1) / (n + 2).
        source: As in `ErrorProbability`.
        reason: Why it is not the estimator.
        guard_z: How clearly it beats the baseline.
    """

    models: tuple[tuple[FoldModel, ...], ...]
    confidence: Confidence | None
    constant: float
    source: str
    reason: str
    guard_z: float

    def baseline(self, msp: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) risk a monitor of the softmax confidence would see."""
        return np.full(len(msp), self.constant) if self.confidence is None else self.confidence.risk(msp)

    def score(
        self, block: Block, fixed: NDArray[np.float32], cell: NDArray[np.int32], around: Around
    ) -> tuple[NDArray[np.float64], ...]:
        """The error probability of (n,) units, then that of each repeat (the same where there is none)."""
        if not self.models:
            flat = self.baseline(block.scores.msp)
            return flat, flat
        z = np.empty(block.folds.shape)
        for repeat, fold, rows in _turns(block.folds):
            model = self.models[repeat][fold]
            columns = held_out_columns(block, rows, cell, around, repeat, fold)
            z[repeat, rows] = model.calibrated(model.raw(np.column_stack([fixed[rows], columns])))
        return expit(z.mean(axis=0)), *expit(z)


def _turns(folds: NDArray[np.int8]) -> list[tuple[int, int, NDArray[np.int64]]]:
    """Each repeat and fold and the units in it, but folds in which no unit is: of few groups some are."""
    turns = [
        (repeat, fold, np.flatnonzero(own == fold))
        for repeat, own in enumerate(folds)
        for fold in range(FOLDS)
    ]
    return [turn for turn in turns if len(turn[2])]


def fixed_columns(
    block: Block,
    n_class: int,
    points: NDArray[np.float32],
    cell: NDArray[np.int32],
    distance: NDArray[np.float32],
    around: Around,
) -> NDArray[np.float32]:
    """The columns that no error enters."""
    same = around.same_share(cell, block.scores.prediction, block.known)
    return joined_columns(block.scores, n_class, same, distance, points, extra=block.extra)


def held_out_columns(
    block: Block, rows: NDArray[np.int64], cell: NDArray[np.int32], around: Around, repeat: int, fold: int
) -> NDArray[np.float32]:
    """The columns that depend on errors, from all folds but one; see `stack_features.fold_columns`.

    Units of a cell share its counts: less its own error alone, each would tell a model what that is. So a
    unit that is fitted sees neither the fold that is kept out nor its own.
    """
    folds = block.folds[repeat, rows]
    inside = (folds != fold) & block.known[rows]
    mean, here = float(around.means[repeat, fold]), cell[rows]
    figures = (around.everyone - around.folds[repeat, fold])[here]
    figures[inside] -= around.folds[repeat, folds[inside], here[inside]]
    parts: list[NDArray[Any]] = [shrunk(figures[..., 1], figures[..., 0], mean)]
    if around.classes.shape[3]:
        for place, classes in enumerate((block.scores.prediction[rows], block.scores.runner_up[rows])):
            table = around.classes[place, repeat].astype(np.float64).copy()
            table[fold] = 0
            size, wrong = np.moveaxis(table, 0, 1)[..., 0], np.moveaxis(table, 0, 1)[..., 1]
            at = classes % table.shape[1]
            parts.append(class_rates(size, wrong, at, folds, inside.astype(np.float64), mean)[:, None])
    return np.column_stack(parts).astype(np.float32)


def fit_estimator(
    block: Block,
    fixed: NDArray[np.float32],
    cell: NDArray[np.int32],
    around: Around,
    draw: Draw,
    weight: NDArray[np.float64],
    workers: Workers,
) -> tuple[Estimator, NDArray[np.float64], tuple[NDArray[np.float64], ...]]:
    """Fit the estimator to a sample of labelled units.

    Args:
        block: The sample.
        fixed: Its columns that no error enters.
        cell: Its cells.
        around: What the cells hold, of all units.
        draw: How it was drawn.
        weight: (n,) weights, as many together as they are worth.
        workers: Open pool.

    Returns:
        The estimator, its error probabilities of the sample, and those of each repeat.
    """
    wrong, units = int(around.counts[:, 0, 1].sum()), int(around.counts[:, 0, 0].sum())
    constant, msp, errors = (wrong + 1) / (units + 2), block.scores.msp, block.errors
    if wrong in {0, units}:
        flat = np.full(len(msp), constant)
        return _constant(constant, wrong, units), flat, (flat,)
    confidence = fit_confidence(msp, errors, workers, weight)
    baseline = confidence.risk(msp)
    if min(wrong, units - wrong) < MINIMUM:
        reason = f"{wrong} wrong and {units - wrong} right units: {MINIMUM} of each are needed"
        made = Estimator((), confidence, constant, MSP_ISOTONIC, reason, float("nan"))
        return made, baseline, (baseline,)
    large = units > WHOLE

    def one(task: tuple[int, int]) -> FoldModel:
        return _fit_fold(block, fixed, cell, around, draw, *task, large=large, workers=workers)

    tasks = [(repeat, fold) for repeat in range(len(block.folds)) for fold in range(FOLDS)]
    models = list(workers.map(one, tasks))
    z, by_turn = np.zeros(block.folds.shape), dict(zip(tasks, models, strict=True))
    for repeat, fold, rows in _turns(block.folds):
        columns = held_out_columns(block, rows, cell, around, repeat, fold)
        z[repeat, rows] = by_turn[repeat, fold].raw(np.column_stack([fixed[rows], columns]))
    told = [
        _calibrate(model, z[repeat], block, repeat, fold, weight, workers)
        for (repeat, fold), model in zip(tasks, models, strict=True)
    ]
    rows_of = tuple(tuple(told[start : start + FOLDS]) for start in range(0, len(told), FOLDS))
    found = Estimator(rows_of, confidence, constant, CSE, "", 0.0)
    proba, *looks = found.score(block, fixed, cell, around)
    groups = group_codes(block.digests)[1]
    gained = guard(proba, baseline, errors, groups, weight)
    if gained > NORMAL_95:
        return Estimator(rows_of, confidence, constant, CSE, "", gained), proba, tuple(looks)
    reason = f"log-loss not significantly below the softmax baseline's (z = {gained:.2f})"
    return Estimator((), confidence, constant, MSP_ISOTONIC, reason, gained), baseline, (baseline,)


def _constant(risk: float, wrong: int, units: int) -> Estimator:
    """Of units that are all right or all wrong nothing more is known than how many they are."""
    what = "no errors" if wrong == 0 else "nothing but errors"
    return Estimator((), None, risk, CONSTANT, f"{what} among {units} labelled units", float("nan"))


def _fit_fold(
    block: Block,
    fixed: NDArray[np.float32],
    cell: NDArray[np.int32],
    around: Around,
    draw: Draw,
    repeat: int,
    fold: int,
    *,
    large: bool,
    workers: Workers,
) -> FoldModel:
    train = np.flatnonzero(block.folds[repeat] != fold)
    cap = FIT_ROWS if large else len(train)
    rows, shift = fit_sample(block.errors, train, repeat * FOLDS + fold, cap)
    errors = block.errors[rows]
    if not len(rows) or errors.min() == errors.max():
        return FoldModel(None, None, float(logit((errors.sum() + 1) / (len(errors) + 2))))
    columns = np.column_stack([fixed[rows], held_out_columns(block, rows, cell, around, repeat, fold)])
    trees, linear = fit_pair(columns, errors, SAMPLED_TREES if large else TREES, workers)
    return FoldModel(trees, linear, shift + draw.shift)


def _calibrate(
    model: FoldModel,
    z: NDArray[np.float64],
    block: Block,
    repeat: int,
    fold: int,
    weight: NDArray[np.float64],
    workers: Workers,
) -> FoldModel:
    train = block.folds[repeat] != fold
    errors = block.errors[train]
    if not len(errors) or errors.min() == errors.max():
        return model
    platt = fit_platt(z[train], errors, weight[train], workers)
    return FoldModel(model.trees, model.linear, model.shift, platt)
