"""The stage that turns a split's records into error probabilities, issue categories, codes and regions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.analysis.answers import AnalysisOptions, Reference, SplitAnalysis
from mld_core.evaluation.analysis.evidence import NEEDS
from mld_core.evaluation.analysis.issue_columns import analysis_columns, projection_columns
from mld_core.evaluation.analysis.projection import project_units
from mld_core.evaluation.analysis.stages import (
    REFERENCE_MINIMUM,
    Split,
    SplitGroup,
    SplitStage,
    StageOutput,
    Value,
)
from mld_core.evaluation.classification.diagnoses import DIAGNOSES
from mld_core.evaluation.classification.gather import gather
from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.engine.rounds import EmbeddedEngine
from mld_core.evaluation.space.arrays import SplitArrays
from mld_core.evaluation.space.regions import Region
from mld_core.evaluation.space.slices import find_slices
from mld_core.evaluation.statistics.blocks import Workers
from mld_core.evaluation.statistics.intervals import mean_intervals, ranking_intervals

_NOT_WORTH_A_NOTE = frozenset(NEEDS[name] for name in ("comparison", "train_split", "other_split", "labels"))
"""Reasons that lie in what a code is about, not in what was recorded."""


class IssueAnalysis:
    """Error probability, issue category, error code, diagnoses and regions of every unit of a split."""

    name = "issues"

    def __call__(self, split: Split, group: SplitGroup, engine: EmbeddedEngine) -> StageOutput:
        """Analyse a labelled split, or project an unlabelled one onto its reference."""
        if split.rows == 0:
            return StageOutput()
        if split.width("logits") is None:
            return StageOutput(
                notes=("no logits are stored: error probabilities, issue categories and diagnoses need them",)
            )
        if split.labeled == 0:
            return _project(split, group, engine)
        return _analyse(split, group, engine)


CLASSIFICATION_STAGES: tuple[SplitStage, ...] = (IssueAnalysis(),)
"""The analyses of `classification_v1` after its metrics, in order."""


def analysis_options(options: Mapping[str, Any], engine: EmbeddedEngine, **more: Any) -> AnalysisOptions:
    """The options of a request as the analysis takes them."""
    return AnalysisOptions(
        risk_tolerance=options.get("risk_tolerance"),
        threads=engine.width,
        salts=tuple(str(number) for number in range(int(options.get("repeats", 3)))),
        **more,
    )


def _analyse(split: Split, group: SplitGroup, engine: EmbeddedEngine) -> StageOutput:
    def progress(name: str) -> AbstractContextManager[Any]:
        return engine.reporter.stage(f"{name} ({split.dataset})")

    with progress("reading vectors"):
        gathered = gather(split, group)
    arrays = gathered.arrays
    keep = _projects_from(group) is split and any(one.labeled == 0 for one in group.splits)
    options = analysis_options(group.options, engine, keep_model=keep, diagnoses=DIAGNOSES)
    analysis = analyse(arrays, reference=_reference(split, group), options=options, progress=progress)
    split.scratch["reference"] = analysis.reference
    if keep:
        split.scratch["analysis"] = analysis
    metrics: dict[str, Value] = {**analysis.metrics, "error_proba_source": analysis.estimate.source}
    with progress("intervals"), Workers(engine.width) as workers:
        metrics |= _intervals(split, arrays, analysis, workers)
    extra: dict[str, Value] = {}
    if group.options.get("null_run"):
        extra["null_hotspot_ratio"] = _null_share(arrays, group, engine)
    notes = [*gathered.notes, *analysis_notes(split, analysis)]
    return StageOutput(
        columns=analysis_columns(analysis, arrays, split),
        metrics=metrics,
        categories={**category_row(analysis), **extra},
        facts={"labeled": split.labeled, **plain_facts(analysis.facts)},
        notes=tuple(notes),
        tables={
            "regions": region_rows(split, analysis.regions),
            "slices": slice_rows(split, arrays, analysis),
        },
    )


def _reference(split: Split, group: SplitGroup) -> Reference | None:
    """Thresholds of the reference split; None where the split is its own or the other was not analysed."""
    other = group.reference(split)
    found = None if other is split else other.scratch.get("reference")
    return found if isinstance(found, Reference) else None


def _null_share(arrays: SplitArrays, group: SplitGroup, engine: EmbeddedEngine) -> float:
    """Share of hotspot and critical_hotspot after the errors were shuffled by hash: should be near 0."""
    options = analysis_options(group.options, engine, permute_errors=True, replicates=0)
    shuffled = analyse(arrays, options=options).ratios
    return float((shuffled["hotspot_ratio"] or 0.0) + (shuffled["critical_hotspot_ratio"] or 0.0))


# --- metrics and categories ---------------------------------------------------------------------------------


def _intervals(
    split: Split, arrays: SplitArrays, analysis: SplitAnalysis, workers: Workers
) -> dict[str, float | None]:
    wrong = np.where(analysis.errors < 0, np.nan, analysis.errors == 1)
    values: dict[str, NDArray[np.floating]] = {
        "accuracy": 1 - wrong,
        "error_rate": wrong,
        "net_entropy_loss_mean": np.where(analysis.errors < 0, np.nan, split.column("loss")),
        "net_entropy_mean": split.column("entropy"),
    }
    keys = arrays.group_keys
    return {
        **mean_intervals(values, keys, workers),
        **ranking_intervals(arrays.logits, arrays.labels, keys, workers),
    }


def category_row(analysis: SplitAnalysis) -> dict[str, Value]:
    """Cells of the split's row in the category table."""
    row: dict[str, Value] = {
        f"{name.removeprefix('five_way_')}_five_way" if name.startswith("five_way_") else name: value
        for name, value in analysis.ratios.items()
    }
    row |= _threshold_cells(analysis)
    unlabelled = analysis.errors < 0
    if unlabelled.any():
        row |= _projected_ratios(analysis.projected[unlabelled])
    return row


def _threshold_cells(analysis: SplitAnalysis) -> dict[str, Value]:
    used = analysis.used
    return {
        "t1": used.t1,
        "t2": used.t2,
        "k": analysis.density.k,
        "m": analysis.density.m,
        "ref_split": used.reference,
    }


def _projected_ratios(category: NDArray[np.int8]) -> dict[str, Value]:
    """Shares of the projected categories among the units without a label."""
    return {
        f"projected_{name}_ratio": float((category == number).mean())
        for number, name in enumerate(CATEGORIES)
    }


def plain_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON holds them: no NaN, infinity as a text."""
    made: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, np.generic):
            value = value.item()  # noqa: PLW2901
        if isinstance(value, float) and not math.isfinite(value):
            value = None if math.isnan(value) else str(value)  # noqa: PLW2901
        made[name] = value
    return made


def analysis_notes(split: Split, analysis: SplitAnalysis) -> list[str]:
    """What to know when reading the figures of a split."""
    made = []
    estimate = analysis.estimate
    if estimate.source == "constant":
        made.append(f"error_proba is the same for every unit: {estimate.reason}")
    elif estimate.source != "cse":
        made.append(f"error_proba is the isotonic risk of the softmax confidence: {estimate.reason}")
    if min(split.errors, split.labeled - split.errors) < REFERENCE_MINIMUM:
        made.append(
            f"{split.errors} wrong and {split.labeled - split.errors} right units are few: thresholds from "
            f"{analysis.used.reference!r}, read the categories with care"
        )
    if analysis.density.m == math.inf:
        made.append("errors are not clustered in the feature space: no unit can be in a hotspot by density")
    by_reason: dict[str, list[str]] = {}
    for code, reason in analysis.diagnoses.not_computable.items():
        text = reason.removeprefix("not computable: ")
        if not any(part in _NOT_WORTH_A_NOTE for part in text.split("; ")):
            by_reason.setdefault(text, []).append(code)
    made += [f"{', '.join(codes)} could not be computed: {reason}" for reason, codes in by_reason.items()]
    return made


# --- tables -------------------------------------------------------------------------------------------------


def region_rows(split: Split, regions: list[Region]) -> list[dict[str, Any]]:
    """Rows of the table of regions."""
    if not regions:
        return []
    ids = pq.read_table(split.units, columns=["unit_id", "input_id"])
    medoids = ids.take([region.medoid for region in regions]).to_pylist()
    return [
        {
            "dataset": split.dataset,
            "n_epoch": split.n_epoch,
            "region_id": region.region_id,
            "n": region.n,
            "errors": region.errors,
            "rate": region.rate,
            "rate_lo": region.rate_lo,
            "p_value": region.p_value,
            "bh_sig": region.bh_sig,
            "label": region.label,
            "top_classes": region.top_classes,
            "top_codes": region.top_codes,
            "medoid_unit_id": medoid["unit_id"],
            "medoid_input_id": medoid["input_id"],
        }
        for region, medoid in zip(regions, medoids, strict=True)
    ]


def slice_rows(split: Split, arrays: SplitArrays, analysis: SplitAnalysis) -> list[dict[str, Any]]:
    """The metadata slices behind C32."""
    if arrays.metadata is None:
        return []
    return [
        {
            "dataset": split.dataset,
            "n_epoch": split.n_epoch,
            "slice": " and ".join(f"{name} = {value}" for name, value in found.conditions.items()),
            "n": found.size,
            "errors": found.errors,
            "rate": found.errors / found.size,
            "score": found.score,
            "p_value": found.p_value,
            "bh_sig": found.significant,
        }
        for found in find_slices(arrays.metadata, analysis.errors)
    ]


# --- units without labels -----------------------------------------------------------------------------------


def _projects_from(group: SplitGroup) -> Split | None:
    """The split unlabelled ones are projected onto: one with enough errors, else the first labelled."""
    labelled = [one for one in group.in_reference_order() if one.labeled and one.width("logits") is not None]
    rich = [one for one in labelled if min(one.errors, one.labeled - one.errors) >= REFERENCE_MINIMUM]
    found = rich or labelled
    return found[0] if found else None


def _project(split: Split, group: SplitGroup, engine: EmbeddedEngine) -> StageOutput:
    reference = _projects_from(group)
    analysis = None if reference is None else reference.scratch.get("analysis")
    if reference is None or not isinstance(analysis, SplitAnalysis):
        return StageOutput(
            notes=("no unit is labelled and no labelled split is evaluated with it: nothing to project onto",)
        )
    problem = _not_projectable(split, reference, analysis)
    if problem:
        return StageOutput(notes=(problem,))
    assert analysis.fitted is not None
    gathered = gather(split, group, layers=analysis.fitted.space.names)
    options = analysis_options(group.options, engine)
    with engine.reporter.stage(f"projection ({split.dataset})"):
        projection = project_units(gathered.arrays, analysis, options=options)
    note = (
        f"no unit is labelled: error_proba and projected_category are estimates from {reference.dataset!r}, "
        "as far as the two resemble each other"
    )
    return StageOutput(
        columns=projection_columns(projection, reference),
        categories={**_threshold_cells(analysis), **_projected_ratios(projection.category)},
        facts={"labeled": 0, "projected_from": reference.dataset},
        notes=(note, *gathered.notes),
    )


def _not_projectable(split: Split, reference: Split, analysis: SplitAnalysis) -> str:
    """Why a split cannot be projected; empty where it can."""
    if analysis.fitted is None:
        return f"{reference.dataset!r} is too large to keep its units: nothing can be projected onto it"
    for name, axes in analysis.fitted.space.layers.items():
        if split.width(name) != len(axes):
            return (
                f"layer {name!r} is not stored as in {reference.dataset!r}: units without labels can be "
                "projected where both splits have the same layers"
            )
    if split.n_class != reference.n_class:
        return f"{split.n_class} classes here, {reference.n_class} in {reference.dataset!r}: not projectable"
    return ""
