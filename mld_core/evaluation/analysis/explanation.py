"""Why units fail and where: label quality, diagnoses (asked of all, and of halves of the data), regions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis.answers import Estimated, Explanation, Judged
from mld_core.evaluation.analysis.evidence import CellEvidence, Evidence
from mld_core.evaluation.analysis.halves import Replays
from mld_core.evaluation.analysis.labels.by_heart import judged_by
from mld_core.evaluation.analysis.labels.quality import (
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
from mld_core.evaluation.codes.categories import Thresholds
from mld_core.evaluation.codes.diagnosis import Diagnoses, diagnose
from mld_core.evaluation.space import order
from mld_core.evaluation.space.cells import Density
from mld_core.evaluation.space.directions import failing_direction
from mld_core.evaluation.space.merged import merged_regions
from mld_core.evaluation.space.mixture import failing_components
from mld_core.evaluation.space.neighbourhood import Nearest
from mld_core.evaluation.space.novelty import novel_units
from mld_core.evaluation.space.regions import CellGrid, cut_cells, describe_regions, region_numbers
from mld_core.evaluation.space.slices import find_slices, slices_of
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import group_codes

SHOWN_NEIGHBOURS = 8

_ROWS = 65_536


def _label_members(made: Estimated, near: Member) -> tuple[list[Member], list[bool]]:
    """The witnesses of the labels, and which of them are of the split itself; `near` are its neighbours."""
    work, arrays = made.work, made.work.arrays
    net = log_softmax_member(arrays.logits)
    if arrays.is_train and arrays.epochs is not None and arrays.epochs.mean_probability is not None:
        net = probability_member(arrays.epochs.mean_probability)
    if made.train is not None and not arrays.is_train:
        return [net, train_member(made.train.labels, arrays.n_class)], [False, False]
    members = [net, near]
    if arrays.is_train and arrays.n_class <= PROBE_CLASSES:
        members.append(probe_member(made.points, arrays.labels, work.folds[0], arrays.n_class))
    return members, [False] + [True] * (len(members) - 1)


def pooled_labels(made: Estimated) -> LabelPosterior:
    """The label posterior of every unit."""
    work, arrays = made.work, made.work.arrays
    labels, folds, n_class = arrays.labels, work.folds[0], arrays.n_class
    near = neighbour_member(made.around.around, labels[work.known], n_class)
    members, of_split = _label_members(made, near)
    around = None if near in members else near
    pooled = label_posterior(members, labels, folds, n_class, work.workers, own=of_split, around=around)
    return judged_by(members[1], pooled, labels, folds, n_class, work.workers) if arrays.is_train else pooled


def fitted_facts(
    used: Thresholds, density: Density, source: str, reason: str, guard_z: float
) -> dict[str, Any]:
    """What is kept of thresholds, density and the error estimator, however they were fitted."""
    return {
        "pi": used.pi,
        "t1": used.t1,
        "t2": used.t2,
        "risk_tolerance": used.risk_tolerance,
        "ref_split": used.reference,
        "k": density.k,
        "m": density.m,
        "error_proba_source": source,
        "error_proba_reason": reason,
        "guard_z": guard_z,
    }


def facts(made: Estimated, judged: Judged, posterior: LabelPosterior, found: Diagnoses) -> dict[str, Any]:
    """What is kept of an analysis beside its columns."""
    estimate = made.estimate
    return {
        **fitted_facts(judged.used, judged.density, estimate.source, estimate.reason, estimate.guard_z),
        "neighbours": made.around.method,
        "neighbour_recall": made.around.recall,
        "n_hat": posterior.n_hat,
        "label_evidence": posterior.gain,
        "label_weights": posterior.weights.mean(axis=0).tolist(),
        "layers": list(made.space.names),
        "train_reference": made.train is not None,
        "not_computable": dict(found.not_computable),
        "code_counts": dict(found.counts),
        "sure_counts": dict(found.sure),
    }


def _cells(made: Estimated) -> tuple[CellGrid, CellEvidence]:
    workers, train = made.work.workers, made.work.arrays.train
    grid = cut_cells(made.points, workers)
    train_cell = None if made.train_points is None else grid.cells_of(made.train_points, workers)
    train_errors = None if train is None or train_cell is None else train.errors
    return grid, CellEvidence(grid.cell, len(grid.centroids), train_cell, train_errors)


def explain(made: Estimated, judged: Judged, posterior: LabelPosterior) -> Explanation:
    """Diagnoses, regions and slices of a judged split."""
    work, arrays = made.work, made.work.arrays
    grid, cells = _cells(made)
    evidence = _evidence(made, judged, posterior, cells)
    near = made.around.around
    shown = np.append(work.known, -1)[near.index[:, :SHOWN_NEIGHBOURS]] if isinstance(near, Nearest) else None
    links = shown if shown is not None else np.full((arrays.rows, 0), -1, np.int64)
    dense = region_numbers(grid, links, work.errors, judged.used.t2)
    region = merged_regions([dense, *_parts(made, judged)], work.errors, parts=1)
    again = list(asked_again(evidence, judged.replays, posterior))
    found = diagnose(work.options.diagnoses, evidence, again, region)
    regions = describe_regions(
        made.points,
        region,
        arrays.labels,
        work.scores.prediction,
        work.errors,
        masks=found.masks,
        metadata=arrays.metadata,
        dense=judged.replays.dense,
    )
    return Explanation(shown, region, regions, found, evidence.slices)


def _parts(made: Estimated, judged: Judged) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Regions that need not be clusters: failing components, and the end of a failing direction."""
    work, arrays = made.work, made.work.arrays
    hashes, t2 = work.hashes[work.groups], judged.used.t2
    components = failing_components(
        made.points,
        arrays.labels,
        work.scores.prediction,
        work.errors,
        hashes,
        t2,
        arrays.n_class,
        work.workers,
        by_label=arrays.labels_tell,
    )
    return components, failing_direction(made.points, work.errors, hashes, t2)


def asked_again(evidence: Evidence, replays: Replays, posterior: LabelPosterior) -> Iterator[Evidence]:
    """The evidence as every half of the data has it."""
    # Where the units around say the given label, the network alone says otherwise: it may be what is wrong.
    near = evidence.neighbours
    backed = near.rejected & (near.first == evidence.labels)
    certainty = np.where(backed, 0, posterior.certainty)
    levels = (np.arange(len(replays.kept)) + 0.5) / len(replays.kept)
    for level, kept, dense, category in zip(
        levels, replays.kept, replays.dense, replays.category, strict=True
    ):
        yield replace(
            evidence,
            flags=replace(evidence.flags, dense=dense),
            category=category,
            suspected=evidence.suspected & (certainty >= level),
            kept=kept,
            slices=None if evidence.slices is None else slices_of(evidence.slices, evidence.errors, kept),
        )


def _pairs(made: Estimated) -> tuple[NDArray[np.int64] | None, NDArray[np.bool_] | None]:
    """Near copies of units in the split, and units near their neighbours in its order; None for cells."""
    around, work = made.around.around, made.work
    if not isinstance(around, Nearest):
        return None, None
    near = np.append(work.known, -1)[around.index[:, : order.ORDER_NEIGHBOURS]]
    gap = np.full(len(near), np.nan)
    for span in spans(len(near), _ROWS):
        rows = np.flatnonzero(near[span, 0] >= 0) + span.start
        apart = made.points[rows] - made.points[near[rows, 0]]
        gap[rows] = np.log(np.maximum(np.linalg.norm(apart, axis=1), 1e-20))
    copies = order.near_copies(gap, around.distance[:, 0])
    return np.where(copies, near[:, 0], -1), order.ordered_units(near, work.arrays.labels)


def _novel(made: Estimated) -> NDArray[np.bool_] | None:
    train, points = made.work.arrays.train, made.train_points
    asked = any("train" in one.needs for one in made.work.options.diagnoses)
    if train is None or points is None or not asked:
        return None
    keys = train.groups if train.groups is not None else train.hashes
    groups = None if keys is None else group_codes(keys)[1]
    return novel_units(made.points, points, groups, made.work.workers)


def _evidence(made: Estimated, judged: Judged, posterior: LabelPosterior, cells: CellEvidence) -> Evidence:
    work, arrays = made.work, made.work.arrays
    train = None if arrays.is_train else made.train
    copy_of, ordered = _pairs(made)
    return Evidence(
        labels=arrays.labels,
        prediction=work.scores.prediction,
        runner_up=work.scores.runner_up,
        errors=work.errors,
        msp=work.scores.msp,
        error_proba=made.estimate.error_proba,
        baseline_risk=made.estimate.baseline_risk,
        flags=judged.flags,
        category=judged.category,
        t1=judged.used.t1,
        t2=judged.used.t2,
        suspected=suspected_labels(posterior, arrays.labels, work.errors, is_train=arrays.is_train),
        neighbours=judged.view.pooled,
        layers=judged.view.layers,
        cells=cells,
        hashes=arrays.hashes,
        train_hashes=None if arrays.train is None else arrays.train.hashes,
        novel=None if train is None else _novel(made),
        near_train=None if train is None else train.near,
        copy_of=copy_of,
        ordered=ordered,
        epochs=arrays.epochs,
        slices=None if arrays.metadata is None else find_slices(arrays.metadata, work.errors),
        is_train=arrays.is_train,
    )
