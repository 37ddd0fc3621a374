"""`classification_v1` from the records of a run to the tables of a result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.evaluation.analysis.answers import Reference
from mld_core.evaluation.analysis.stages import Handed, Split, SplitGroup, SplitStage
from mld_core.evaluation.classification.ranking import EXACT_CELLS, rank
from mld_core.evaluation.classification.rounds.method import begin, finish
from mld_core.evaluation.classification.scalars import (
    ClassificationSplit,
    ClassificationState,
    Ranking,
    class_rows,
    metric_row,
    scalars,
)
from mld_core.evaluation.classification.stage import CLASSIFICATION_STAGES
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.engine.passes import PassSource, count_classes, problem, record_problems, unit_file
from mld_core.evaluation.engine.rounds import Rounds, rounds_of
from mld_core.evaluation.results.database import database
from mld_core.evaluation.results.evaluated import EvaluatedPass, Method, evaluate_passes
from mld_core.evaluation.results.store import ResultStore
from mld_core.evaluation.results.tables import CONFUSION_SCHEMA, read_facts
from mld_core.records.read.reader import PassSelection


def evaluate_classification(
    results: ResultStore,
    selections: Sequence[PassSelection],
    folder: Path,
    engine: Workers,
    *,
    options: dict[str, Any],
    stages: tuple[SplitStage, ...] = CLASSIFICATION_STAGES,
) -> dict[str, Any]:
    """Evaluate some passes of a run; see `evaluate_passes`."""
    info = results.store.run_info(results.run)
    evaluated = partial(evaluate_passes, info=info, options=options)
    if options.get("engine", "memory") == "memory":
        method = Method(
            lambda group: [_evaluate_pass(results, one, engine, info, options) for one in group.splits],
            stages,
        )
        found = evaluated(method, selections, folder, engine)
    else:
        with rounds_of(engine, options) as rounds:
            method = Method(lambda group: _in_rounds(results, group, rounds, info), (Handed(),))
            found = evaluated(method, selections, folder, engine)
    return {**found, "task": "classification", "problems": found["problems"] + _unused_options(options)}


def measure_units(
    split: Split, source: PassSource, engine: Workers, info: dict[str, Any]
) -> tuple[ClassificationSplit, ClassificationState]:
    """The first round: writes the unit table of a split and counts it."""
    selection = split.selection
    n_class = source.logits_width or count_classes(source, info)
    context = ClassificationSplit(
        split.dataset,
        split.n_epoch,
        n_class,
        source.user_fields(),
        has_logits=source.logits_width is not None,
        sigmoid=selection.sigmoid,
    )
    with unit_file(split.units, context.schema) as writer:
        state = scalars(engine, context, source.batches, int(selection.n_rows), writer.write_batch)
    split.n_class, split.rows, split.errors, split.labeled = (
        n_class,
        state.counts,
        state.errors,
        state.labeled,
    )
    return context, state


def _evaluate_pass(
    results: ResultStore, split: Split, engine: Workers, info: dict[str, Any], options: dict[str, Any]
) -> EvaluatedPass:
    selection = split.selection
    source = PassSource.of(selection)
    context, state = measure_units(split, source, engine, info)
    ranking = None
    if context.has_logits and state.labeled:
        cells = int(options.get("exact_cells", EXACT_CELLS))
        ranking = rank(engine, context, source.batches, state.counts, exact_cells=cells)
    overflow = _count_flag(source, "overflow")
    return _evaluated(split, context, state, ranking, overflow, _distinct_inputs(results, split.units))


def _in_rounds(
    results: ResultStore, group: SplitGroup, rounds: Rounds, info: dict[str, Any]
) -> list[EvaluatedPass]:
    """The passes of a group in rounds over their parts; what is said of their units is found in `scratch`."""
    begun = {id(one): begin(one, rounds, info, group.options) for one in group.splits}
    references: dict[str, Reference | None] = {}
    for split in group.in_reference_order():
        other = group.reference(split)
        known = None if other is split else references.get(other.dataset)
        found, own = finish(begun[id(split)], group, results, rounds, known)
        references[split.dataset], split.scratch[Handed.name] = own, found
    made = []
    for split in group.splits:
        one = begun[id(split)]
        overflow = one.counted.overflow
        made.append(_evaluated(split, one.context, one.counts, one.ranking, overflow, one.distinct))
    return made


def _evaluated(
    split: Split,
    context: ClassificationSplit,
    state: ClassificationState,
    ranking: Ranking | None,
    overflow: int,
    distinct: int,
) -> EvaluatedPass:
    """What the tables say of a pass."""
    selection = split.selection
    metrics = metric_row(state, ranking, context.n_class, sigmoid=context.sigmoid) | read_facts(selection)
    metrics |= {"count_label_out_of_range": state.out_of_range, "count_overflow": overflow}
    metrics["count_distinct_input"] = distinct
    classes = [
        {"dataset": split.dataset, "n_epoch": split.n_epoch, **row}
        for row in class_rows(state, ranking, context.n_class)
    ]
    problems = record_problems(selection) + _value_problems(selection, state, ranking, overflow, context)
    return EvaluatedPass(split, metrics, classes, _confusion(state, context), problems)


def _count_flag(source: PassSource, name: str) -> int:
    """Rows of the pass whose flag is set."""
    total = 0
    for batch in source.selection.batches("samples", [name], 65_536):
        total += int(pc.sum(batch.column(batch.schema.get_field_index(name))).as_py() or 0)
    return total


def _distinct_inputs(results: ResultStore, units: Path) -> int:
    with database(results.spill, units=[units]) as connection:
        sql = "SELECT count(DISTINCT coalesce(input_hash, input_id)) FROM units"
        return int(connection.execute(sql).fetchall()[0][0])


def _value_problems(
    selection: PassSelection,
    state: ClassificationState,
    ranking: Ranking | None,
    overflow: int,
    context: ClassificationSplit,
) -> list[dict[str, Any]]:
    if state.counts == 0:
        return [problem("empty", "the pass holds no rows", selection)]
    found = []
    if state.nonfinite:
        text = (
            f"{state.nonfinite} of {state.counts} units have NaN or infinity in their logits: they count as "
        )
        text += "errors and are left out of the probability metrics"
        found.append(problem("nonfinite", text, selection))
    if state.out_of_range:
        text = f"{state.out_of_range} labels are {context.n_class} or more, the model has {context.n_class} "
        text += "classes: they count as unlabelled"
        found.append(problem("label_out_of_range", text, selection))
    if overflow:
        found.append(
            problem("overflow", f"{overflow} units have features beyond the range of float16", selection)
        )
    if state.labeled < state.counts:
        missing = state.counts - state.labeled
        text = f"{missing} of {state.counts} units have no usable label: accuracy is over the others"
        found.append(problem("unlabelled", text, selection, severity="note"))
    if not context.has_logits:
        text = "no logits are stored: auroc, auprc and entropy have no value"
        found.append(problem("no_logits", text, selection))
    if ranking is not None and ranking.method == "histogram":
        text = "auroc and auprc are from 65,536-bin histograms, where all units x classes were not sorted"
        found.append(problem("histogram", text, selection, severity="note"))
    return found


def _confusion(state: ClassificationState, context: ClassificationSplit) -> pa.Table:
    rows = len(state.pairs.counts)
    truth, prediction = state.pairs.keys[:, 0], state.pairs.keys[:, 1]
    columns = [
        pa.array([context.dataset] * rows, pa.string()),
        pa.array([context.n_epoch] * rows, pa.int32()),
        pa.array(truth.astype(np.int32), pa.int32()),
        pa.array(prediction.astype(np.int32), pa.int32(), mask=prediction < 0),
        pa.array(state.pairs.counts, pa.int64()),
    ]
    return pa.Table.from_arrays(columns, schema=CONFUSION_SCHEMA)


def _unused_options(options: dict[str, Any]) -> list[dict[str, Any]]:
    if "error_proba_thresh" not in options:
        return []
    text = "error_proba_thresh marks detection codes with *; a classification has none, so it changes nothing"
    return [problem("option", text, severity="note")]
