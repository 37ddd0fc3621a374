"""Units of another split, labelled or not, seen with the eyes of an analysed reference split.

Their errors are taken as unknown: the error probability comes from models fitted on all of the reference,
density and labels from its units, and the category is a projected one (E = 0). All of it assumes that the
reference resembles them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis import halves
from mld_core.evaluation.analysis.analysis import prepare, reference_of, shared_codes
from mld_core.evaluation.analysis.answers import AnalysisOptions, Fitted, SplitAnalysis, UnitAnswers, Work
from mld_core.evaluation.analysis.error_model import score_units
from mld_core.evaluation.analysis.stack_features import (
    EPOCH_COLUMNS,
    StackInputs,
    fixed_columns,
    has_epoch_columns,
)
from mld_core.evaluation.codes.categories import Flags, Thresholds, projected
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space import space
from mld_core.evaluation.space.arrays import SplitArrays
from mld_core.evaluation.space.cells import Density, density_of, rate_at_most
from mld_core.evaluation.space.layers import count_labels
from mld_core.evaluation.space.neighbourhood import K_GRID, Nearest, look


class Projection(UnitAnswers):
    """Answers for units whose errors are unknown.

    E is False throughout, ambiguity is that of the pooled space, neighbours are units of the reference, in
    whose space the coordinates are.
    """


def project_units(
    arrays: SplitArrays,
    reference: SplitAnalysis,
    *,
    options: AnalysisOptions | None = None,
    workers: Workers | None = None,
) -> Projection:
    """Score units by an analysed split.

    Args:
        arrays: The units; their labels and errors are not read. Needs `train` where the reference had it.
        reference: An analysis made with `keep_model=True`.
        options: Choices.
        workers: What runs it; None = `options.threads` of its own.

    Raises:
        ValueError: The reference kept no model, or the train split it relied on is missing here.
    """
    fitted, model = reference.fitted, reference.estimate.model
    if fitted is None or fitted.around.base is None or model is None:
        raise ValueError("the reference kept no model: analyse it with AnalysisOptions(keep_model=True)")
    if fitted.with_train and arrays.train is None:
        raise ValueError("the reference was analysed with its train split: give the same one as arrays.train")
    chosen = options or AnalysisOptions()
    with workers or Workers(chosen.threads) as pool:
        work = prepare(arrays, chosen, pool)
        points = space.project(fitted.space, arrays.layers, pool)
        codes, base_codes = shared_codes(arrays.groups, fitted.group_keys)
        base = fitted.around.base.regrouped(base_codes)
        around = look(points, codes, base, K_GRID[-1], pool)
        inputs = _inputs(work, fitted, around, points)
        proba = score_units(model, fitted.inputs, inputs, work.scores.msp)
        density, steady = _density(around, fitted, reference.used)
        view, close = count_labels(around, fitted.labels, arrays.n_class, arrays.rows, pool)
        frequent = rate_at_most(around, fitted.inputs.errors[fitted.inputs.base_rows], view.k)
    risk_low = reference.reference.risk.lower_bound(proba)
    baseline = model.baseline(work.scores.msp)
    used = reference.used
    flags = Flags(
        np.zeros(arrays.rows, np.bool_),
        steady > used.t2,
        risk_low > used.t2,
        baseline <= used.t2,
        view.mixed & view.tie & (density.low <= view.explained) & (view.a <= frequent),
        proba <= used.t1,
    )
    return Projection(
        prediction=work.scores.prediction,
        msp=work.scores.msp,
        error_proba=proba,
        baseline_risk=baseline,
        risk_low=risk_low,
        density=replace(density, low=steady),
        flags=flags,
        category=projected(flags),
        neighbours=np.append(fitted.inputs.base_rows, -1)[around.index[:, :8]],
        close_classes=close,
        points=points,
    )


def _inputs(work: Work, fitted: Fitted, around: Nearest, points: NDArray[np.float32]) -> StackInputs:
    arrays, everyone = work.arrays, np.arange(len(fitted.labels))
    fixed = fixed_columns(
        work.scores,
        arrays.n_class,
        around,
        everyone,
        points,
        work.workers,
        reference=reference_of(work, fitted.space, points)[0] if fitted.with_train else None,
        epochs=arrays.epochs if fitted.with_epochs else None,
        extra=arrays.extra,
        base_prediction=fitted.inputs.prediction[fitted.inputs.base_rows],
    )
    if fitted.with_epochs and not has_epoch_columns(arrays.epochs):
        fixed = _with_mean_epochs(fixed, fitted.inputs.fixed, arrays)
    unknown = np.full(arrays.rows, -1, np.int8)
    scores = work.scores
    return StackInputs(fixed, scores.prediction, scores.runner_up, arrays.n_class, unknown, everyone, around)


def _with_mean_epochs(
    fixed: NDArray[np.float32], reference: NDArray[np.float32], arrays: SplitArrays
) -> NDArray[np.float32]:
    """Columns with those of other epochs at the reference's mean: units of which no other epoch is known."""
    place = fixed.shape[1] - (0 if arrays.extra is None else arrays.extra.shape[1])
    means = reference[:, place : place + EPOCH_COLUMNS].mean(axis=0)
    return np.asarray(np.insert(fixed, [place] * EPOCH_COLUMNS, means, axis=1))


def _density(around: Nearest, fitted: Fitted, used: Thresholds) -> tuple[Density, NDArray[np.float64]]:
    """Density of the new units, and the lower bound that three in four halves of the reference reach."""
    k, m = fitted.density.k, fitted.density.m
    errors = fitted.inputs.errors[fitted.inputs.base_rows]
    total, count = around.sums(errors.astype(np.float32), (k,))
    density = density_of(total[:, 0], count[:, 0], k, m, used.pi)
    rows = np.arange(len(around.index))
    lows = halves.half_densities(around, errors, fitted.kept, density, fitted.halves, rows)
    return density, halves.steady_density(lows, density, used)
