"""The stage that turns a split's records into error probabilities, issue categories, codes and regions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.analysis.answers import Reference, SplitAnalysis
from mld_core.evaluation.analysis.issue_columns import (
    answer_columns,
    category_names,
    diagnosis_columns,
)
from mld_core.evaluation.analysis.issue_tables import (
    analysis_notes,
    analysis_options,
    category_row,
    plain_facts,
    projected_ratios,
    region_rows,
    slice_rows,
    threshold_row,
)
from mld_core.evaluation.analysis.projection import Projection, project_units
from mld_core.evaluation.analysis.stages import (
    REFERENCE_MINIMUM,
    Split,
    SplitGroup,
    SplitStage,
    StageOutput,
    Value,
)
from mld_core.evaluation.analysis.units import Column
from mld_core.evaluation.classification.diagnoses import DIAGNOSES
from mld_core.evaluation.classification.gather import gather
from mld_core.evaluation.codes.notation import suffixed_codes
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.arrays import SplitArrays
from mld_core.evaluation.statistics.intervals import mean_intervals, ranking_intervals


class IssueAnalysis:
    """Error probability, issue category, error code, diagnoses and regions of every unit of a split."""

    name = "issues"

    def __call__(self, split: Split, group: SplitGroup, engine: Workers) -> StageOutput:
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


def _analyse(split: Split, group: SplitGroup, engine: Workers) -> StageOutput:
    with engine.stage(f"reading vectors ({split.dataset})"):
        gathered = gather(split, group)
    arrays = gathered.arrays
    keep = _projects_from(group) is split and any(one.labeled == 0 for one in group.splits)
    options = analysis_options(group.options, keep_model=keep, diagnoses=DIAGNOSES)
    analysis = analyse(arrays, reference=_reference(split, group), options=options, workers=engine)
    split.scratch["reference"] = analysis.reference
    if keep:
        split.scratch["analysis"] = analysis
    metrics: dict[str, Value] = {**analysis.metrics, "error_proba_source": analysis.estimate.source}
    with engine.stage(f"intervals ({split.dataset})"), engine:
        metrics |= _intervals(split, arrays, analysis, engine)
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
            "slices": slice_rows(split, analysis.slices),
        },
    )


def _reference(split: Split, group: SplitGroup) -> Reference | None:
    """Thresholds of the reference split; None where the split is its own or the other was not analysed."""
    other = group.reference(split)
    found = None if other is split else other.scratch.get("reference")
    return found if isinstance(found, Reference) else None


def _null_share(arrays: SplitArrays, group: SplitGroup, engine: Workers) -> float:
    """Share of hotspot and critical_hotspot after the errors were shuffled by hash: should be near 0."""
    options = analysis_options(group.options, permute_errors=True, replicates=0)
    shuffled = analyse(arrays, options=options, workers=Workers(engine.threads)).ratios
    return float((shuffled["hotspot_ratio"] or 0.0) + (shuffled["critical_hotspot_ratio"] or 0.0))


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
        **ranking_intervals(arrays.logits, arrays.labels, keys, workers, sigmoid=arrays.sigmoid),
    }


def _projects_from(group: SplitGroup) -> Split | None:
    """The split unlabelled ones are projected onto: one with enough errors, else the first labelled."""
    labelled = [one for one in group.in_reference_order() if one.labeled and one.width("logits") is not None]
    rich = [one for one in labelled if min(one.errors, one.labeled - one.errors) >= REFERENCE_MINIMUM]
    found = rich or labelled
    return found[0] if found else None


def _project(split: Split, group: SplitGroup, engine: Workers) -> StageOutput:
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
    options = analysis_options(group.options)
    with engine.stage(f"projection ({split.dataset})"):
        projection = project_units(gathered.arrays, analysis, options=options, workers=engine)
    note = (
        f"no unit is labelled: error_proba and projected_category are estimates from {reference.dataset!r}, "
        "as far as the two resemble each other"
    )
    return StageOutput(
        columns=projection_columns(projection, reference),
        categories={
            **threshold_row(analysis.used, analysis.density),
            **projected_ratios(projection.category),
        },
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


def analysis_columns(analysis: SplitAnalysis, arrays: SplitArrays, split: Split) -> dict[str, Column]:
    """Columns of a labelled split; (N,) each."""
    codes = suffixed_codes(
        analysis.category,
        arrays.labels,
        analysis.prediction,
        analysis.close_classes,
        analysis.suggested_label,
    )
    return {
        **answer_columns(analysis, split),
        **diagnosis_columns(analysis.diagnoses),
        "suggested_label": analysis.suggested_label,
        "error_code": pa.array(codes.tolist(), pa.string()),
    }


def projection_columns(projection: Projection, reference: Split) -> dict[str, Column]:
    """Columns of an unlabelled split; its neighbours are units of the reference split."""
    names = category_names(projection.category)
    return {**answer_columns(projection, reference), "projected_category": names}
