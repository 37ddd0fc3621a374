"""What is computed of a pass while its training goes on: by the same code that evaluates it afterwards.

Metrics are those of an evaluation, figure for figure. The analysis looks at a sample of at most `FIT_ROWS`
rows, so that it costs the same of any pass: its shares are estimates, and counts are told of the whole pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mld_core.evaluation.classification.ranking import EXACT_CELLS, rank
from mld_core.evaluation.classification.scalars import ClassificationSplit, metric_row, scalars
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.engine.passes import PassSource
from mld_core.evaluation.live.sampled import sample_rows
from mld_core.evaluation.results.tables import read_facts
from mld_core.records.read.reader import PassSelection

FIT_ROWS: Final = 8000
"""Rows the analysis looks at, at most."""

OPTIONS: Final = {"repeats": 1}
"""Of the evaluation: one cross-fit is enough to watch by."""

_FINDINGS: Final = 6
_WHERE: Final = frozenset({"model_name", "version_name", "task", "dataset", "n_epoch", "pass_no"})


@dataclass(frozen=True)
class Analysed:
    """What is known of the latest pass: metrics that need more than scalar columns, and the analysis."""

    metrics: dict[str, Any]
    analysis: dict[str, Any] | None
    notes: tuple[str, ...] = ()


def scalar_metrics(selection: PassSelection, info: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics out of the scalar columns alone.

    Args:
        selection: The pass.
        info: The run's info.
    """
    facts = {name: value for name, value in read_facts(selection).items() if name not in _WHERE}
    if selection.task != "classification":
        return {**_box_counts(selection), **facts}
    from mld_core.evaluation.engine.passes import count_classes

    source = PassSource(selection, None, 65_536)
    n_class = PassSource.of(selection).logits_width or count_classes(source, dict(info))
    context = _context(selection, n_class, has_logits=False)
    with Workers(1) as engine:
        state = scalars(engine, context, source.batches, int(selection.n_rows), None)
    return {**metric_row(state, None, n_class), "count_label_out_of_range": state.out_of_range, **facts}


def _context(selection: PassSelection, n_class: int, *, has_logits: bool) -> ClassificationSplit:
    return ClassificationSplit(
        selection.key.dataset_type,
        selection.key.n_epoch,
        n_class,
        {},
        has_logits=has_logits,
        sigmoid=selection.sigmoid,
    )


def _box_counts(selection: PassSelection) -> dict[str, Any]:
    """Frames, boxes and truths of a detection pass."""
    counts = {"counts": selection.n_rows}
    for name, family in (("n_recorded", "detections"), ("n_truths", "truths")):
        counts[name] = sum(batch.num_rows for batch in selection.batches(family, ["input_id"]))
    return counts


def analyse_samples(
    selection: PassSelection,
    train: PassSelection | None,
    info: Mapping[str, Any],
    engine: Workers,
    folder: Path,
) -> Analysed:
    """Metrics out of all columns, error probability, categories and the estimate of wrong labels.

    Args:
        selection: A pass of a classifier.
        train: The train pass it is compared with, where there is one.
        info: The run's info.
        engine: Runs it; its reporter may raise where a stage begins, to give up.
        folder: An empty folder.
    """
    from mld_core.evaluation.analysis.analysis import analyse
    from mld_core.evaluation.analysis.issue_tables import analysis_options
    from mld_core.evaluation.analysis.stages import Split, SplitGroup
    from mld_core.evaluation.classification.diagnoses import DIAGNOSES
    from mld_core.evaluation.classification.gather import gather
    from mld_core.evaluation.classification.method import measure_units

    source = PassSource.of(selection)
    if not selection.n_rows:
        return Analysed({}, None, ("it has no rows that can be read",))
    if source.logits_width is None:
        return Analysed({}, None, ("no logits are stored",))
    context = _context(selection, source.logits_width, has_logits=True)
    rows = int(selection.n_rows)
    state = scalars(engine, context, source.batches, rows, None)
    notes: tuple[str, ...] = ()
    ranking = None
    if state.labeled and rows * context.n_class <= EXACT_CELLS // 2:
        ranking = rank(engine, context, source.batches, state.counts)
    elif state.labeled:
        notes = ("auroc and auprc are left to `mld evaluate`: too many units x classes",)
    metrics = metric_row(state, ranking, context.n_class, sigmoid=context.sigmoid)
    if state.labeled == 0:
        return Analysed(metrics, None, (*notes, "no unit is labelled"))
    # Without an epoch the analysis does not look at the ones before, of which there are more and more.
    name = selection.key.dataset_type
    split = Split(name, None, sample_rows(selection, FIT_ROWS), folder / "units.parquet")
    measure_units(split, PassSource.of(split.selection), engine, dict(info))
    others = () if train is None else (Split("train", None, sample_rows(train, FIT_ROWS), folder / "train"),)
    group = SplitGroup((split, *others), OPTIONS)
    options = analysis_options(OPTIONS, diagnoses=DIAGNOSES, replicates=0)
    analysis = analyse(gather(split, group).arrays, options=options, workers=engine)
    found = described(analysis, split.rows, rows)
    return Analysed(metrics, found, notes)


def described(analysis: Any, looked_at: int, rows: int) -> dict[str, Any]:
    """What is kept of an analysis.

    Args:
        analysis: Of the sample (a `SplitAnalysis`).
        looked_at: Units of the sample.
        rows: Units of the pass: counts are told of these.
    """
    from mld_core.evaluation.analysis.issue_tables import category_row

    scale, facts = rows / max(looked_at, 1), analysis.facts
    return {
        "rows": looked_at,
        "of": rows,
        "metrics": {**analysis.metrics, "error_proba_source": analysis.estimate.source},
        "categories": category_row(analysis),
        "wrong_labels": round(scale * facts["n_hat"]),
        "findings": findings(facts["code_counts"], facts["sure_counts"], scale),
    }


def findings(counts: Mapping[str, int], sure: Mapping[str, int], scale: float) -> list[dict[str, Any]]:
    """The gravest diagnoses, those of most units first.

    Args:
        counts: Code -> units of the sample.
        sure: Code -> those that would be found in other data too.
        scale: Units of the pass for each of the sample.
    """
    from mld_core.evaluation.codes.diagnosis import shown
    from mld_core.evaluation.diagnoses import BY_CODE

    said = {code: (n, *shown(BY_CODE[code], bool(sure.get(code)))) for code, n in counts.items() if n}
    grave = sorted(said, key=lambda code: (-said[code][1], -said[code][0], code))[:_FINDINGS]
    return [
        {
            "code": code,
            "title": BY_CODE[code].title,
            "severity": said[code][1],
            "counts": round(scale * said[code][0]),
            "action": said[code][2],
        }
        for code in grave
    ]
