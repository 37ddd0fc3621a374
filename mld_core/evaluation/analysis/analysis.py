"""The statistical analysis of one split, from arrays to per-unit answers: the stages in their order.

`analyse` is a pure function of its arrays: the same figures on every run and for any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis.answers import AnalysisOptions, Fitted, Reference, SplitAnalysis
from mld_core.evaluation.analysis.error_probability import ErrorProbability, estimate_errors
from mld_core.evaluation.analysis.evidence import CellEvidence, Evidence
from mld_core.evaluation.analysis.label_quality import (
    PROBE_CLASSES,
    LabelPosterior,
    Member,
    label_posterior,
    log_softmax_member,
    neighbour_member,
    probability_member,
    probe_member,
    suspected_labels,
    train_member,
)
from mld_core.evaluation.analysis.stack_features import StackInputs, fixed_columns, has_epoch_columns
from mld_core.evaluation.analysis.train_reference import TrainReference, train_reference
from mld_core.evaluation.codes import categories
from mld_core.evaluation.codes.categories import Flags, Thresholds
from mld_core.evaluation.codes.diagnosis import Diagnoses, diagnose
from mld_core.evaluation.engine.executor import Stage, Workers
from mld_core.evaluation.space import space
from mld_core.evaluation.space.arrays import LogitScores, SplitArrays, score_logits, unit_errors
from mld_core.evaluation.space.cells import Density, local_density, rate_at_most, risk_bins
from mld_core.evaluation.space.layers import LayerView, look_at_layers
from mld_core.evaluation.space.neighbourhood import Nearest, Surroundings, surroundings
from mld_core.evaluation.space.regions import CellGrid, Region, cut_cells, find_regions
from mld_core.evaluation.space.slices import MetadataSlice, find_slices
from mld_core.evaluation.statistics.bootstrap import error_metrics
from mld_core.evaluation.statistics.folds import folds_of, group_codes, key_hashes
from mld_core.evaluation.statistics.kmeans import assign

SHOWN_NEIGHBOURS = 8


@dataclass
class Work:
    """What the stages of one analysis share.

    Attributes:
        arrays: The split.
        options: Choices.
        workers: Open pool.
        scores: Figures of the logits.
        errors: (N,) 1 wrong, 0 right, -1 unlabelled; permuted where the options say so.
        known: (M,) rows of the labelled units.
        groups: (N,) place of each unit's group in `hashes`.
        hashes: (G,) hashes of the group keys.
        folds: (N,) folds for each repeat.
    """

    arrays: SplitArrays
    options: AnalysisOptions
    workers: Workers
    scores: LogitScores
    errors: NDArray[np.int8]
    known: NDArray[np.int64]
    groups: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    folds: list[NDArray[np.int8]]

    def stage(self, name: str) -> Stage:
        """Open a line of progress."""
        return self.workers.stage(f"{name} ({self.arrays.name})")


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
            estimate = estimate_errors(
                inputs, work.scores.msp, work.groups, work.folds, pool, with_model=chosen.keep_model
            )
            if chosen.refine is not None:
                estimate = chosen.refine(estimate, inputs, work)
        fitted = _Estimated(work, fitted_space, points, around, train, train_points, inputs, estimate)
        return _answers(fitted, reference)


@dataclass
class _Estimated:
    work: Work
    space: space.Space
    points: NDArray[np.float32]
    around: Surroundings
    train: TrainReference | None
    train_points: NDArray[np.float32] | None
    inputs: StackInputs
    estimate: ErrorProbability


def prepare(arrays: SplitArrays, options: AnalysisOptions, workers: Workers) -> Work:
    """Figures of the logits, errors, groups and folds of a split."""
    scores = score_logits(arrays.logits, workers)
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
    made: _Estimated,
    density: Density,
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
        density.low > used.t2,
        risk_low > used.t2,
        made.estimate.baseline_risk <= used.t2,
        ambiguous,
        made.estimate.error_proba <= used.t1,
    )


def _label_members(made: _Estimated) -> tuple[list[Member], list[bool]]:
    """The witnesses of the labels, and which of them are of the split itself."""
    work, arrays = made.work, made.work.arrays
    net = log_softmax_member(arrays.logits)
    if arrays.is_train and arrays.epochs is not None and arrays.epochs.mean_probability is not None:
        net = probability_member(arrays.epochs.mean_probability)
    if made.train is not None and not arrays.is_train:
        return [net, train_member(made.train.labels, arrays.n_class)], [False, False]
    members = [net, neighbour_member(made.around.around, arrays.labels[work.known], arrays.n_class)]
    if arrays.is_train and arrays.n_class <= PROBE_CLASSES:
        members.append(probe_member(made.points, arrays.labels, work.folds[0], arrays.n_class))
    return members, [False] + [True] * (len(members) - 1)


def _answers(made: _Estimated, reference: Reference | None) -> SplitAnalysis:
    work, arrays, estimate = made.work, made.work.arrays, made.estimate
    known, proba, errors = work.known, estimate.error_proba, work.errors
    own = _own_reference(made)
    used = own.thresholds if reference is None else reference.thresholds
    with work.stage("error density"):
        density = local_density(made.around.around, errors[known], known, used.pi)
        risk_low = own.bins.lower_bound(proba)
    with work.stage("label ambiguity"):
        view = look_at_layers(arrays, made.space, made.around, work.groups, known, work.workers)
        frequent = rate_at_most(made.around.around, errors[known], view.pooled.k)
    flags = _flags(made, density, view, used, risk_low, frequent)
    category = np.where(errors >= 0, categories.categorise(flags), np.int8(-1)).astype(np.int8)
    with work.stage("label quality"):
        members, of_split = _label_members(made)
        posterior = label_posterior(
            members, arrays.labels, work.folds[0], arrays.n_class, work.workers, own=of_split
        )
    with work.stage("diagnoses"):
        neighbours, region, regions, found, slices = _diagnoses(made, flags, category, view, posterior, used)
    with work.stage("metrics"):
        metrics = error_metrics(
            proba[known],
            errors[known],
            work.hashes,
            work.groups[known],
            work.workers,
            replicates=work.options.replicates,
        )
        labelled = Flags(*(value[known] for value in vars(flags).values()))
        ratios = categories.category_ratios(labelled, proba[known])
    return SplitAnalysis(
        prediction=work.scores.prediction,
        msp=work.scores.msp,
        errors=errors,
        error_proba=proba,
        baseline_risk=estimate.baseline_risk,
        risk_low=risk_low,
        density=density,
        flags=flags,
        category=category,
        projected=categories.projected(flags),
        ambiguity=view.layers[-1].a,
        label_quality=posterior.given,
        suggested_label=posterior.best,
        neighbours=neighbours,
        close_classes=view.close,
        region=region,
        regions=regions,
        points=made.points,
        estimate=estimate,
        posterior=posterior,
        diagnoses=found,
        reference=own,
        used=used,
        metrics=metrics,
        ratios=ratios,
        facts=_facts(made, used, density, posterior, found),
        fitted=_kept(made, density),
        slices=slices,
    )


def _kept(made: _Estimated, density: Density) -> Fitted | None:
    work = made.work
    if not work.options.keep_model or made.around.base is None:
        return None
    labels, keys = work.arrays.labels[work.known], work.arrays.group_keys[work.known]
    has_train = made.train is not None
    has_epochs = has_epoch_columns(work.arrays.epochs)
    return Fitted(
        made.space, made.around, made.inputs, labels, keys, made.estimate, density, has_train, has_epochs
    )


def _own_reference(made: _Estimated) -> Reference:
    work, known = made.work, made.work.known
    proba, errors = made.estimate.error_proba[known], work.errors[known]
    tolerance = work.options.risk_tolerance
    limits = categories.thresholds(proba, errors, reference=work.arrays.name, risk_tolerance=tolerance)
    return Reference(limits, risk_bins(proba, errors))


def _facts(
    made: _Estimated, used: Thresholds, density: Density, posterior: LabelPosterior, found: Diagnoses
) -> dict[str, Any]:
    return {
        "pi": used.pi,
        "t1": used.t1,
        "t2": used.t2,
        "risk_tolerance": used.risk_tolerance,
        "ref_split": used.reference,
        "k": density.k,
        "m": density.m,
        "error_proba_source": made.estimate.source,
        "error_proba_reason": made.estimate.reason,
        "guard_z": made.estimate.guard_z,
        "neighbours": made.around.method,
        "neighbour_recall": made.around.recall,
        "n_hat": posterior.n_hat,
        "label_evidence": posterior.gain,
        "label_weights": posterior.weights.mean(axis=0).tolist(),
        "layers": list(made.space.names),
        "train_reference": made.train is not None,
        "not_computable": dict(found.not_computable),
        "code_counts": dict(found.counts),
    }


def _cells(made: _Estimated) -> tuple[CellGrid, CellEvidence]:
    workers, train = made.work.workers, made.work.arrays.train
    grid = cut_cells(made.points, workers)
    train_cell = None if made.train_points is None else assign(made.train_points, grid.centroids, workers)
    train_errors = None if train is None or train_cell is None else train.errors
    return grid, CellEvidence(grid.cell, len(grid.centroids), train_cell, train_errors)


def _diagnoses(
    made: _Estimated,
    flags: Flags,
    category: NDArray[np.int8],
    view: LayerView,
    posterior: LabelPosterior,
    used: Thresholds,
) -> tuple[NDArray[np.int64] | None, NDArray[np.int32], list[Region], Diagnoses, list[MetadataSlice] | None]:
    work, arrays = made.work, made.work.arrays
    grid, cells = _cells(made)
    slices = None if arrays.metadata is None else find_slices(arrays.metadata, work.errors)
    evidence = Evidence(
        labels=arrays.labels,
        prediction=work.scores.prediction,
        runner_up=work.scores.runner_up,
        errors=work.errors,
        msp=work.scores.msp,
        error_proba=made.estimate.error_proba,
        baseline_risk=made.estimate.baseline_risk,
        flags=flags,
        category=category,
        t1=used.t1,
        t2=used.t2,
        suspected=suspected_labels(posterior, arrays.labels, work.errors, is_train=arrays.is_train),
        neighbours=view.pooled,
        layers=view.layers,
        cells=cells,
        hashes=arrays.hashes,
        train_hashes=None if arrays.train is None else arrays.train.hashes,
        novelty=None if made.train is None or arrays.is_train else made.train.novelty,
        near_train=None if made.train is None or arrays.is_train else made.train.near,
        epochs=arrays.epochs,
        slices=slices,
        is_train=arrays.is_train,
    )
    found = diagnose(work.options.diagnoses, evidence)
    near = made.around.around
    shown = np.append(work.known, -1)[near.index[:, :SHOWN_NEIGHBOURS]] if isinstance(near, Nearest) else None
    links = shown if shown is not None else np.full((arrays.rows, 0), -1, np.int64)
    region, regions = find_regions(
        made.points,
        grid,
        links,
        arrays.labels,
        work.scores.prediction,
        work.errors,
        used.t2,
        masks=found.masks,
        metadata=arrays.metadata,
    )
    return shown, region, regions, found, slices
