"""From the passes of a run to the files of a result: what all evaluation methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.evaluation.analysis.error_probability import MINIMUM
from mld_core.evaluation.analysis.stages import Rows, Split, SplitGroup, SplitStage, StageOutput, run_stages
from mld_core.evaluation.analysis.units import rewrite_units
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.engine.passes import describe, problem
from mld_core.evaluation.results.reviewed import reviewed, standing_of
from mld_core.evaluation.results.tables import (
    CATEGORY_SCHEMA,
    CLASS_SCHEMA,
    METRICS_SCHEMA,
    REGION_SCHEMA,
    SLICE_SCHEMA,
    epoch_order,
    split_order,
    table_of,
)
from mld_core.records.read.reader import PassSelection

NAMED_PASSES = 4
"""A note that is true of more passes names the first few."""


@dataclass(frozen=True)
class EvaluatedPass:
    """One pass after its metric rounds."""

    split: Split
    metrics: dict[str, Any]
    classes: list[dict[str, Any]]
    confusion: pa.Table
    problems: list[dict[str, Any]]


@dataclass(frozen=True)
class Method:
    """What a task brings to the evaluation of its passes.

    Attributes:
        measure: The metric rounds of the splits that are evaluated together; writes their unit tables.
        stages: The analyses after the metrics, in order.
        metrics_schema: Of the metrics table.
        class_schema: Of the table of classes.
        tables: Further tables the stages fill, written as they are.
    """

    measure: Callable[[SplitGroup], Sequence[EvaluatedPass]]
    stages: tuple[SplitStage, ...]
    metrics_schema: pa.Schema = METRICS_SCHEMA
    class_schema: pa.Schema = CLASS_SCHEMA
    tables: tuple[str, ...] = ()


def evaluate_passes(
    method: Method,
    selections: Sequence[PassSelection],
    folder: Path,
    engine: Workers,
    *,
    info: Mapping[str, Any],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate some passes of a run and write the tables of the result into `folder`.

    Args:
        method: What the task brings.
        selections: The passes, each counted on its own.
        folder: An empty folder.
        engine: What runs the analyses.
        info: The run's info.
        options: The checked options of the request.

    Returns:
        The members `task`, `class_names`, `passes`, `problems`, `verdicts` and `facts` of `result.json`.
    """
    splits = [
        Split(one.key.dataset_type, one.key.n_epoch, one, folder / f"base-{place}.parquet")
        for place, one in enumerate(sorted(selections, key=_place_of))
    ]
    files = {id(split): f"units-{place}.parquet" for place, split in enumerate(splits)}
    finished: dict[int, EvaluatedPass] = {}
    outputs: dict[int, StageOutput] = {}
    # Epochs of a split one after the other: of many epochs only one group's units are held at once.
    for group in groups_of(splits, options):
        finished |= {id(one.split): one for one in method.measure(group)}
        found = run_stages(group, method.stages, engine)
        for split in group.splits:
            outputs[id(split)] = write_units(split, folder / files[id(split)], found[split.dataset])
    done = [finished[id(split)] for split in splits]
    _write_tables(folder, method, done, [outputs[id(split)] for split in splits])
    told = _verdicts(splits, {key: folder / name for key, name in files.items()})
    notes = [problem("verdicts", one["sentence"], split.selection, severity="note") for split, one in told]
    return {
        "task": selections[0].task if selections else str(info.get("task")),
        "class_names": info.get("class_names"),
        "passes": [_pass_info(one, files[id(one.split)]) for one in done],
        "problems": [*(one for each in done for one in each.problems), *stage_notes(done, outputs), *notes],
        "verdicts": [{"dataset": split.dataset, "n_epoch": split.n_epoch, **one} for split, one in told],
        "facts": [{"dataset": one.dataset, "n_epoch": one.n_epoch, **one.facts} for one in splits],
    }


def _verdicts(splits: Sequence[Split], units: Mapping[int, Path]) -> list[tuple[Split, dict[str, Any]]]:
    """What became of the samples that people reviewed, for the last epoch of each split."""
    last = {split.dataset: split for split in splits}
    if not last:
        return []
    selection = splits[0].selection
    told = standing_of(selection.store, selection.run)
    found = {name: reviewed(units[id(split)], name, told) for name, split in last.items()} if told else {}
    return [(last[name], one) for name, one in found.items() if one is not None]


def _place_of(selection: PassSelection) -> tuple[tuple[int, str], int]:
    return split_order(selection.key.dataset_type), epoch_order(selection.key.n_epoch)


def groups_of(splits: Sequence[Split], options: dict[str, Any]) -> list[SplitGroup]:
    """Splits that are evaluated together: all, or epoch by epoch where a split stands with several."""
    names = [split.dataset for split in splits]
    if len(set(names)) == len(names):
        return [SplitGroup(tuple(splits), options)]
    epochs = dict.fromkeys(split.n_epoch for split in splits)
    return [
        SplitGroup(tuple(split for split in splits if split.n_epoch == epoch), options) for epoch in epochs
    ]


def write_units(split: Split, target: Path, output: StageOutput) -> StageOutput:
    """Write the unit table of a split and let go of its columns: many epochs are not held at once."""
    if output.columns:
        rewrite_units(split.units, target, output.columns)
        split.units.unlink()
    else:
        split.units.rename(target)
    split.columns.clear()
    split.scratch.clear()
    return replace(output, columns={})


def _write_tables(
    folder: Path, method: Method, done: Sequence[EvaluatedPass], outputs: Sequence[StageOutput]
) -> None:
    """Write the tables beside the units: metrics, categories, classes, regions, confusion, ..."""
    metrics = [{**one.metrics, **output.metrics} for one, output in zip(done, outputs, strict=True)]
    pq.write_table(table_of(metrics, method.metrics_schema), folder / "metrics.parquet")
    categories = [
        {
            "dataset": one.split.dataset,
            "n_epoch": one.split.n_epoch,
            "counts": one.split.rows,
            **output.categories,
        }
        for one, output in zip(done, outputs, strict=True)
    ]
    pq.write_table(table_of(categories, CATEGORY_SCHEMA), folder / "categories.parquet")
    classes = [row for one in done for row in one.classes]
    pq.write_table(pa.Table.from_pylist(classes, method.class_schema), folder / "classes.parquet")
    schemas = {"regions": REGION_SCHEMA, "slices": SLICE_SCHEMA, **dict.fromkeys(method.tables)}
    for name, schema in schemas.items():
        found = _together([output.tables.get(name, []) for output in outputs], schema)
        pq.write_table(found, folder / f"{name}.parquet")
    confusion = pa.concat_tables([one.confusion for one in done])
    pq.write_table(confusion, folder / "confusion.parquet")


def _together(parts: Sequence[Rows], schema: pa.Schema | None) -> pa.Table:
    """One table of what the stages found about several splits."""
    tables = [one for one in parts if isinstance(one, pa.Table)]
    rows = [row for one in parts if not isinstance(one, pa.Table) for row in one]
    if not tables:
        return pa.Table.from_pylist(rows, schema)
    return pa.concat_tables(tables, promote_options="default")


def _pass_info(one: EvaluatedPass, units: str) -> dict[str, Any]:
    """What `result.json` says about a pass; `units` is the file of its unit table."""
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
        "hash_kind": selection.hash_kind,
        "report": asdict(selection.report),
        "n_class": one.split.n_class,
        "counts": one.split.rows,
        "units": units,
    }


def stage_notes(done: Sequence[EvaluatedPass], outputs: dict[int, StageOutput]) -> list[dict[str, Any]]:
    """What the stages noted, once for all passes it is true of.

    Of a pass too small for any of them one note says it all.
    """
    passes: dict[str, list[PassSelection]] = {}
    for one in done:
        notes = outputs[id(one.split)].notes
        if notes and one.split.rows < MINIMUM:
            units = "1 unit is" if one.split.rows == 1 else f"{one.split.rows} units are"
            notes = (f"{units} too few to estimate error probabilities, categories and diagnoses from",)
        for note in notes:
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
