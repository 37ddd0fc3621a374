"""`classification_v1` from the records of a run to the tables of a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mld_core.evaluation.classification import (
    EXACT_CELLS,
    ClassificationSplit,
    ClassificationState,
    Ranking,
    class_rows,
    metric_row,
    rank,
    scalars,
)
from mld_core.evaluation.database import database
from mld_core.evaluation.engine import EmbeddedEngine
from mld_core.evaluation.issue_stage import CLASSIFICATION_STAGES
from mld_core.evaluation.passes import PassSource, describe, problem, record_problems, rows_lost
from mld_core.evaluation.result_store import ResultStore
from mld_core.evaluation.stages import (
    Split,
    SplitGroup,
    SplitStage,
    StageOutput,
    run_stages,
)
from mld_core.evaluation.units import rewrite_units
from mld_core.records.reader import PassSelection

METHOD = "classification_v1"

NAMED_PASSES = 4
"""A note that is true of more passes names the first few."""

_SPLIT_ORDER = ("train", "val", "test", "predict", "deploying")

_KEY_FIELDS = [pa.field("dataset", pa.string()), pa.field("n_epoch", pa.int32())]

METRICS_SCHEMA = pa.schema(
    [
        pa.field("dataset", pa.string()),
        pa.field("counts", pa.int64()),
        *(
            pa.field(name, pa.float64())
            for name in ("accuracy", "auroc", "auprc", "net_entropy_loss", "net_entropy")
        ),
        *(pa.field(name, pa.float64()) for name in ("error_proba_auroc", "error_proba_auprc")),
        pa.field("model_name", pa.string()),
        pa.field("version_name", pa.string()),
        pa.field("task", pa.string()),
        pa.field("n_epoch", pa.int32()),
        pa.field("pass_no", pa.int32()),
        *(pa.field(name, pa.int64()) for name in ("count_labeled", "count_error", "count_distinct_input")),
        *(
            pa.field(name, pa.float64())
            for name in ("error_rate", "net_entropy_loss_mean", "net_entropy_mean")
        ),
        pa.field("net_entropy_norm", pa.float64()),
        pa.field("ranking_method", pa.string()),
        *(pa.field(f"error_proba_{name}", pa.float64()) for name in ("brier", "ece")),
        *(pa.field(name, pa.float64()) for name in ("aurc", "augrc")),
        pa.field("error_proba_source", pa.string()),
        *(
            pa.field(name, pa.int64())
            for name in ("count_nonfinite", "count_label_out_of_range", "count_overflow")
        ),
        *(pa.field(name, pa.int64()) for name in ("rows_read", "duplicates_dropped", "non_unique_ids")),
        *(pa.field(name, pa.int64()) for name in ("superseded_rows", "rows_lost")),
        pa.field("partial", pa.bool_()),
        pa.field("missing_ranks", pa.list_(pa.int32())),
        pa.field("torn_parts", pa.int32()),
    ]
)
"""One row for each pass; what a stage adds under another name is appended as a float64 or string column."""

_RATIOS = ("stable_coverage", "operational_coverage", "hotspot", "recessive_hotspot", "critical_hotspot")
CATEGORY_SCHEMA = pa.schema(
    [
        pa.field("dataset", pa.string()),
        *(pa.field(f"{name}_ratio", pa.float64()) for name in (*_RATIOS, "aleatoric_hotspot")),
        pa.field("n_epoch", pa.int32()),
        pa.field("counts", pa.int64()),
        pa.field("aleatoric_overlay_ratio", pa.float64()),
        *(pa.field(f"{name}_ratio_five_way", pa.float64()) for name in _RATIOS),
        *(
            pa.field(name, pa.float64())
            for name in ("expected_risk_coverage", "t1", "t2", "m", "null_hotspot_ratio")
        ),
        pa.field("k", pa.int32()),
        pa.field("ref_split", pa.string()),
    ]
)
CLASS_SCHEMA = pa.schema(
    [
        *_KEY_FIELDS,
        *(pa.field(name, pa.int64()) for name in ("class", "counts", "count_error")),
        *(pa.field(name, pa.float64()) for name in ("accuracy", "precision", "auroc", "auprc")),
    ]
)
REGION_SCHEMA = pa.schema(
    [
        *_KEY_FIELDS,
        pa.field("region_id", pa.int32()),
        pa.field("n", pa.int64()),
        pa.field("errors", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("rate", "rate_lo", "p_value")),
        pa.field("bh_sig", pa.bool_()),
        pa.field("label", pa.string()),
        pa.field("top_classes", pa.list_(pa.int32())),
        pa.field("top_codes", pa.list_(pa.string())),
        *(pa.field(name, pa.string()) for name in ("medoid_unit_id", "medoid_input_id")),
    ]
)
SLICE_SCHEMA = pa.schema(
    [
        *_KEY_FIELDS,
        pa.field("slice", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("errors", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("rate", "score", "p_value")),
        pa.field("bh_sig", pa.bool_()),
    ]
)
CONFUSION_SCHEMA = pa.schema(
    [
        *_KEY_FIELDS,
        pa.field("gt", pa.int32()),
        pa.field("prediction", pa.int32()),
        pa.field("counts", pa.int64()),
    ]
)


@dataclass(frozen=True)
class _Pass:
    """One pass after its metric rounds."""

    split: Split
    metrics: dict[str, Any]
    classes: list[dict[str, Any]]
    confusion: pa.Table
    problems: list[dict[str, Any]]


def split_order(dataset: str) -> tuple[int, str]:
    """Sort key of split names: train, val, val/1, test, predict, then the user's own by name.

    Example:
        >>> sorted(["night", "test", "val/1", "train", "val"], key=split_order)
        ['train', 'val', 'val/1', 'test', 'night']
    """
    base = dataset.partition("/")[0]
    return (_SPLIT_ORDER.index(base) if base in _SPLIT_ORDER else len(_SPLIT_ORDER), dataset)


def evaluate_classification(
    results: ResultStore,
    selections: Sequence[PassSelection],
    folder: Path,
    engine: EmbeddedEngine,
    *,
    options: dict[str, Any],
    stages: tuple[SplitStage, ...] = CLASSIFICATION_STAGES,
) -> dict[str, Any]:
    """Evaluate some passes of a run and write the tables of the result into `folder`.

    Args:
        results: Where the run's results lie.
        selections: The passes, each counted on its own.
        folder: An empty folder.
        engine: What runs the rounds.
        options: The checked options of the request.
        stages: The analyses after the metrics.

    Returns:
        The members `passes`, `problems`, `facts` and `class_names` of `result.json`.
    """
    info = results.store.run_info(results.run)
    ordered = sorted(
        selections, key=lambda one: (split_order(one.key.dataset_type), _epoch_order(one.key.n_epoch))
    )
    done = [
        _evaluate_pass(results, one, folder / f"base-{place}.parquet", engine, info, options)
        for place, one in enumerate(ordered)
    ]
    targets = {id(one.split): folder / f"units-{place}.parquet" for place, one in enumerate(done)}
    outputs: dict[int, StageOutput] = {}
    for group in _groups(done, options):
        found = run_stages(group, stages, engine)
        for split in group.splits:
            outputs[id(split)] = _write_units(split, targets[id(split)], found[split.dataset])
    _write_tables(folder, done, [outputs[id(one.split)] for one in done])
    return {
        "task": "classification",
        "class_names": info.get("class_names"),
        "passes": [_pass_info(one, f"units-{place}.parquet") for place, one in enumerate(done)],
        "problems": [problem_ for one in done for problem_ in one.problems]
        + _notes(done, outputs)
        + _unused_options(options),
        "facts": [
            {"dataset": one.split.dataset, "n_epoch": one.split.n_epoch, **one.split.facts} for one in done
        ],
    }


def _epoch_order(n_epoch: int | None) -> int:
    return -(2**31) if n_epoch is None else n_epoch


def _evaluate_pass(
    results: ResultStore,
    selection: PassSelection,
    units: Path,
    engine: EmbeddedEngine,
    info: dict[str, Any],
    options: dict[str, Any],
) -> _Pass:
    source = PassSource.of(selection)
    n_class = source.logits_width or _count_classes(source, info)
    key = selection.key
    context = ClassificationSplit(
        key.dataset_type,
        key.n_epoch,
        n_class,
        source.user_fields(),
        has_logits=source.logits_width is not None,
    )
    rows = int(selection.n_rows)
    with pq.ParquetWriter(units, context.schema, compression="zstd") as writer:
        state = scalars(engine, context, source.batches, rows, writer.write_batch)
    ranking = None
    if context.has_logits and state.labeled:
        cells = int(options.get("exact_cells", EXACT_CELLS))
        ranking = rank(engine, context, source.batches, state.counts, exact_cells=cells)
    overflow = _count_flag(source, "overflow")
    metrics = metric_row(state, ranking, n_class)
    metrics |= _read_facts(selection) | {
        "count_label_out_of_range": state.out_of_range,
        "count_overflow": overflow,
    }
    metrics["count_distinct_input"] = _distinct_inputs(results, units)
    split = Split(
        key.dataset_type, key.n_epoch, selection, n_class, state.counts, state.errors, state.labeled, units
    )
    classes = [
        {"dataset": key.dataset_type, "n_epoch": key.n_epoch, **row}
        for row in class_rows(state, ranking, n_class)
    ]
    problems = record_problems(selection) + _value_problems(selection, state, ranking, overflow, context)
    return _Pass(split, metrics, classes, _confusion(state, context), problems)


def _count_classes(source: PassSource, info: dict[str, Any]) -> int:
    """Number of classes where no logits are stored: what the run says, else the largest class seen."""
    if info.get("n_class"):
        return int(info["n_class"])
    largest = -1
    for batch in source.batches():
        for name in ("label", "prediction"):
            top = pc.max(batch.column(name)).as_py()
            largest = max(largest, -1 if top is None else int(top))
    return largest + 1


def _count_flag(source: PassSource, name: str) -> int:
    """Rows of the pass whose flag is set."""
    total = 0
    for batch in source.selection.batches("samples", [name], 65_536):
        total += int(pc.sum(batch.column(batch.schema.get_field_index(name))).as_py() or 0)
    return total


def _read_facts(selection: PassSelection) -> dict[str, Any]:
    report = selection.report
    return {
        "model_name": selection.run.model_name,
        "version_name": selection.run.version_name,
        "task": "classification",
        "dataset": selection.key.dataset_type,
        "n_epoch": selection.key.n_epoch,
        "pass_no": selection.key.pass_no,
        "rows_read": report.rows_read,
        "duplicates_dropped": report.duplicates_dropped,
        "non_unique_ids": report.non_unique_ids,
        "superseded_rows": report.superseded_rows,
        "rows_lost": rows_lost(selection),
        "partial": not selection.sealed,
        "missing_ranks": list(selection.missing_ranks),
        "torn_parts": len(selection.torn),
    }


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
        text = "auroc and auprc are from 65,536-bin histograms (too many units x classes to sort)"
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


def _groups(done: Sequence[_Pass], options: dict[str, Any]) -> list[SplitGroup]:
    """Splits that are evaluated together: all, or epoch by epoch where a split stands with several."""
    names = [one.split.dataset for one in done]
    if len(set(names)) == len(names):
        return [SplitGroup(tuple(one.split for one in done), options)]
    epochs = dict.fromkeys(one.split.n_epoch for one in done)
    return [
        SplitGroup(tuple(one.split for one in done if one.split.n_epoch == epoch), options)
        for epoch in epochs
    ]


def _write_units(split: Split, target: Path, output: StageOutput) -> StageOutput:
    """Write the unit table of a split and let go of its columns: many epochs are not held at once."""
    if output.columns:
        rewrite_units(split.units, target, output.columns)
        split.units.unlink()
    else:
        split.units.rename(target)
    split.columns.clear()
    split.scratch.clear()
    return replace(output, columns={})


def _write_tables(folder: Path, done: Sequence[_Pass], outputs: Sequence[StageOutput]) -> None:
    metrics = [{**one.metrics, **output.metrics} for one, output in zip(done, outputs, strict=True)]
    pq.write_table(_table(metrics, METRICS_SCHEMA), folder / "metrics.parquet")
    categories = [
        {
            "dataset": one.split.dataset,
            "n_epoch": one.split.n_epoch,
            "counts": one.split.rows,
            **output.categories,
        }
        for one, output in zip(done, outputs, strict=True)
    ]
    pq.write_table(_table(categories, CATEGORY_SCHEMA), folder / "categories.parquet")
    classes = [row for one in done for row in one.classes]
    pq.write_table(pa.Table.from_pylist(classes, CLASS_SCHEMA), folder / "classes.parquet")
    for name, schema in (("regions", REGION_SCHEMA), ("slices", SLICE_SCHEMA)):
        rows = [row for output in outputs for row in output.tables.get(name, [])]
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{name}.parquet")
    confusion = pa.concat_tables([one.confusion for one in done])
    pq.write_table(confusion, folder / "confusion.parquet")


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows under a schema, with what they hold beyond it in further columns."""
    more = dict.fromkeys(name for row in rows for name in row if name not in schema.names)
    for name in more:
        texts = any(isinstance(row.get(name), str) for row in rows)
        schema = schema.append(pa.field(name, pa.string() if texts else pa.float64()))
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)


def _pass_info(one: _Pass, units: str) -> dict[str, Any]:
    selection = one.split.selection
    return {
        "dataset": one.split.dataset,
        "n_epoch": one.split.n_epoch,
        "pass_no": selection.key.pass_no,
        "attempt": selection.attempt,
        "sealed": selection.sealed,
        "sealed_at": selection.sealed_at,
        "missing_ranks": list(selection.missing_ranks),
        "torn": list(selection.torn),
        "losses": dict(selection.losses),
        "report": asdict(selection.report),
        "n_class": one.split.n_class,
        "counts": one.split.rows,
        "units": units,
    }


def _notes(done: Sequence[_Pass], outputs: dict[int, StageOutput]) -> list[dict[str, Any]]:
    """What the stages noted, once for all passes it is true of."""
    passes: dict[str, list[PassSelection]] = {}
    for one in done:
        for note in outputs[id(one.split)].notes:
            passes.setdefault(note, []).append(one.split.selection)
    made = []
    for note, where in passes.items():
        if len(where) == 1:
            made.append(problem("analysis", note, where[0], severity="note"))
            continue
        shown = ", ".join(describe(selection) for selection in where[:NAMED_PASSES])
        more = f" and {len(where) - NAMED_PASSES} more" if len(where) > NAMED_PASSES else ""
        made.append(problem("analysis", f"{shown}{more}: {note}", severity="note"))
    return made


def _unused_options(options: dict[str, Any]) -> list[dict[str, Any]]:
    if "error_proba_thresh" not in options:
        return []
    text = "error_proba_thresh marks detection codes with *; a classification has none, so it changes nothing"
    return [problem("option", text, severity="note")]
