"""The statistical analysis of one split, from arrays to per-unit answers: the stages in their order.

`analyse` is a pure function of its arrays: the same figures on every run and for any number of threads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis import halves
from mld_core.evaluation.analysis.answers import (
    AnalysisOptions,
    Estimated,
    Fitted,
    Judged,
    Reference,
    SplitAnalysis,
    Work,
)
from mld_core.evaluation.analysis.error_probability import ErrorProbability, estimate_errors
from mld_core.evaluation.analysis.explanation import explain, facts, pooled_labels
from mld_core.evaluation.analysis.stack_features import StackInputs, fixed_columns, has_epoch_columns
from mld_core.evaluation.analysis.train_reference import TrainReference, train_reference
from mld_core.evaluation.codes import categories
from mld_core.evaluation.codes.categories import Flags, Thresholds
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space import space
from mld_core.evaluation.space.arrays import SplitArrays, score_logits, unit_errors
from mld_core.evaluation.space.cells import Density, local_density, rate_at_most
from mld_core.evaluation.space.layers import LayerView, look_at_layers
from mld_core.evaluation.space.neighbourhood import Surroundings, surroundings
from mld_core.evaluation.statistics.bootstrap import error_metrics
from mld_core.evaluation.statistics.folds import folds_of, group_codes, key_hashes
from mld_core.evaluation.statistics.risk import RankedRisk


def analyse(
    arrays: SplitArrays,
    *,
    reference: Reference | None = None,
    options: AnalysisOptions | None = None,
    workers: Workers | None = None,
) -> SplitAnalysis:
    """Analyse one split.

    Args:
        arrays: The split.
        reference: Thresholds of the reference split (`SplitAnalysis.reference`); None = this split is it.
        options: Choices.
        workers: What runs it and shows its stages; None = `options.threads` of its own.

    Raises:
        ValueError: No unit is labelled.
    """
    chosen = options or AnalysisOptions()
    with workers or Workers(chosen.threads) as pool:
        with pool.stage(f"logits ({arrays.name})"):
            work = prepare(arrays, chosen, pool)
        if len(work.known) == 0:
            raise ValueError(
                f"split {arrays.name!r} has {arrays.rows} units and no label: its errors are unknown; "
                "evaluate a labelled split first and project it onto this one (project_units)"
            )
        with work.stage("feature space"):
            fitted_space = space.fit_space(arrays.layers, pool)
            points = space.project(fitted_space, arrays.layers, pool)
        with work.stage("neighbours"):
            around = surroundings(
                points,
                work.groups,
                work.known,
                pool,
                exact_limit=chosen.exact_limit,
                cell_limit=chosen.cell_limit,
            )
        with work.stage("train reference"):
            train, train_points = reference_of(work, fitted_space, points)
        with work.stage("error probability"):
            inputs = _stack_inputs(work, around, points, train)
            estimate = _estimate(inputs, work)
        fitted = Estimated(work, fitted_space, points, around, train, train_points, inputs, estimate)
        return _answers(fitted, reference)


def _estimate(inputs: StackInputs, work: Work) -> ErrorProbability:
    refine, keep = work.options.refine, work.options.keep_model
    # Beside each other: five folds leave one of two threads waiting.
    with work.workers.beside() as beside:
        refined = None if refine is None else beside(lambda: refine(inputs, work))
        estimate = estimate_errors(
            inputs, work.scores.msp, work.groups, work.folds, work.workers, with_model=keep
        )
        return estimate if refined is None else replace(refined.result()(estimate), repeats=())


def prepare(arrays: SplitArrays, options: AnalysisOptions, workers: Workers) -> Work:
    """Figures of the logits, errors, groups and folds of a split."""
    scores = score_logits(arrays.logits, workers, sigmoid=arrays.sigmoid)
    if arrays.prediction is not None:
        scores = replace(scores, prediction=arrays.prediction)
    errors = unit_errors(arrays, scores.prediction)
    known = np.flatnonzero(errors >= 0)
    keys, groups = group_codes(arrays.group_keys)
    digests = [key_hashes(keys, salt) for salt in options.salts]
    if options.permute_errors:
        errors = errors.copy()
        errors[known] = errors[known][np.argsort(key_hashes(known, "permute"), kind="stable")]
    folds = [folds_of(one)[groups] for one in digests]
    return Work(arrays, options, workers, scores, errors, known, groups, digests[0], folds)


def shared_codes(
    keys: NDArray[Any] | None, other: NDArray[Any] | None
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Group codes of two splits in one naming; None where a side has no keys, or keys of another kind."""
    if keys is None or other is None or (keys.dtype.kind in "iu") != (other.dtype.kind in "iu"):
        return None, None
    _, codes = group_codes(np.concatenate([keys, other]))
    return codes[: len(keys)], codes[len(keys) :]


def reference_of(
    work: Work, fitted_space: space.Space, points: NDArray[np.float32]
) -> tuple[TrainReference | None, NDArray[np.float32] | None]:
    """Figures against the train split and its coordinates; None where it has not the same layers."""
    arrays, train = work.arrays, work.arrays.train
    if arrays.is_train:
        # The train split is its own reference: its groups are left out, so no unit sees its own label.
        made = train_reference(
            points,
            work.groups,
            work.scores.prediction,
            points,
            work.groups,
            arrays.labels,
            work.workers,
            exact_limit=work.options.exact_limit,
        )
        return made, None
    if train is None or not (train.labels >= 0).any():
        return None, None
    layers = train.features
    if any(
        name not in layers or layers[name].shape[1] != len(fitted_space.layers[name])
        for name in fitted_space.names
    ):
        return None, None
    train_points = space.project(fitted_space, layers, work.workers)
    own = arrays.groups if arrays.groups is not None else arrays.hashes
    other = train.groups if train.groups is not None else train.hashes
    codes, train_codes = shared_codes(own, other)
    made = train_reference(
        points,
        codes,
        work.scores.prediction,
        train_points,
        train_codes,
        train.labels,
        work.workers,
        exact_limit=work.options.exact_limit,
    )
    return made, train_points


def _stack_inputs(
    work: Work, around: Surroundings, points: NDArray[np.float32], train: TrainReference | None
) -> StackInputs:
    arrays = work.arrays
    fixed = fixed_columns(
        work.scores,
        arrays.n_class,
        around.around,
        work.known,
        points,
        work.workers,
        reference=train,
        epochs=arrays.epochs,
        extra=arrays.extra,
    )
    return StackInputs(
        fixed,
        work.scores.prediction,
        work.scores.runner_up,
        arrays.n_class,
        work.errors,
        work.known,
        around.around,
    )


def _flags(
    made: Estimated,
    density: Density,
    steady: NDArray[np.float64],
    view: LayerView,
    used: Thresholds,
    risk_low: NDArray[np.float64],
    frequent: NDArray[np.float64],
) -> Flags:
    # Labels that tie cost any model about as many errors: fewer, and the model tells them apart.
    ambiguous = view.pooled.mixed & (frequent >= view.pooled.a)
    for layer in view.layers:
        ambiguous &= layer.tie & (density.low <= layer.explained)
    return Flags(
        made.work.errors == 1,
        steady > used.t2,
        risk_low > used.t2,
        made.estimate.baseline_risk <= used.t2,
        ambiguous,
        made.estimate.error_proba <= used.t1,
    )


def judge(made: Estimated, reference: Reference | None) -> Judged:
    """Thresholds, density, flags and categories, and how they come out on halves of the data."""
    work, estimate, around = made.work, made.estimate, made.around.around
    known, errors = work.known, work.errors
    own = _own_reference(made)
    used = own.thresholds if reference is None else reference.thresholds
    with work.stage("error density"):
        density = local_density(around, errors[known], known, used.pi)
        risk_low = own.risk.lower_bound(estimate.error_proba)
    with work.stage("label ambiguity"):
        view = look_at_layers(work.arrays, made.space, made.around, work.groups, known, work.workers)
        frequent = rate_at_most(around, errors[known], view.pooled.k)
    with work.stage("halves"):
        kept = np.stack([halves.kept_groups(work.hashes, half) for half in range(halves.HALVES)])
        kept = kept[:, work.groups]
        looks = tuple(proba[known] for proba in estimate.looks)
        state = halves.fit_halves(
            looks,
            errors[known],
            halves.kept_of(kept, known),
            used,
            own=reference is None,
            workers=work.workers,
        )
        dense, steady = halves.replay_density(around, errors, known, kept, density, used, state, work.workers)
        flags = _flags(made, density, steady, view, used, risk_low, frequent)
        labelled = errors >= 0
        replays = halves.replay(flags, dense, estimate.looks, used, kept, labelled, state, work.workers)
    density = replace(density, low=steady)
    category = np.where(labelled, categories.categorise(flags), np.int8(-1)).astype(np.int8)
    return Judged(own, used, density, risk_low, view, flags, category, state, replays)


def _answers(made: Estimated, reference: Reference | None) -> SplitAnalysis:
    work, estimate = made.work, made.estimate
    known, proba, errors = work.known, estimate.error_proba, work.errors
    with work.workers.beside() as beside:
        # Much of each is one thread's: labels are judged beside the units, metrics beside the diagnoses.
        labels, figures = beside(lambda: pooled_labels(made)), beside(lambda: _metrics(made))
        judged = judge(made, reference)
        with work.stage("label quality"):
            posterior = labels.result()
        with work.stage("diagnoses"):
            why = explain(made, judged, posterior)
        with work.stage("metrics"):
            metrics = figures.result()
        labelled = Flags(*(value[known] for value in vars(judged.flags).values()))
        ratios = categories.category_ratios(labelled, proba[known])
    return SplitAnalysis(
        prediction=work.scores.prediction,
        msp=work.scores.msp,
        errors=errors,
        error_proba=proba,
        baseline_risk=estimate.baseline_risk,
        risk_low=judged.risk_low,
        density=judged.density,
        flags=judged.flags,
        category=judged.category,
        membership=judged.replays.membership(judged.category),
        projected=categories.projected(judged.flags),
        ambiguity=judged.view.layers[-1].a,
        label_quality=posterior.given,
        suggested_label=posterior.best,
        close_classes=judged.view.close,
        points=made.points,
        estimate=estimate,
        posterior=posterior,
        reference=judged.own,
        used=judged.used,
        metrics=metrics,
        ratios=ratios,
        facts=facts(made, judged, posterior, why.diagnoses),
        fitted=_kept(made, judged),
        **vars(why),
    )


def _metrics(made: Estimated) -> dict[str, Any]:
    work, known = made.work, made.work.known
    return error_metrics(
        made.estimate.error_proba[known],
        work.errors[known],
        work.hashes,
        work.groups[known],
        work.workers,
        replicates=work.options.replicates,
    )


def _kept(made: Estimated, judged: Judged) -> Fitted | None:
    work = made.work
    if not work.options.keep_model or made.around.base is None:
        return None
    known = work.known
    return Fitted(
        made.space,
        made.around,
        made.inputs,
        work.arrays.labels[known],
        work.arrays.group_keys[known],
        made.estimate,
        judged.density,
        judged.state,
        judged.replays.kept[:, known],
        with_train=made.train is not None,
        with_epochs=has_epoch_columns(work.arrays.epochs),
    )


def _own_reference(made: Estimated) -> Reference:
    work, known = made.work, made.work.known
    proba, errors = made.estimate.error_proba[known], work.errors[known]
    tolerance = work.options.risk_tolerance
    limits = categories.thresholds(proba, errors, reference=work.arrays.name, risk_tolerance=tolerance)
    return Reference(limits, RankedRisk.of(proba, errors).curve())
