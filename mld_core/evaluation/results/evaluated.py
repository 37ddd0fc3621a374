"""Evaluated passes, from their groups to the files of a result; shared by all evaluation methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.evaluation.analysis.stages import Split, SplitGroup, StageOutput
from mld_core.evaluation.analysis.units import rewrite_units
from mld_core.evaluation.engine.passes import describe, problem
from mld_core.evaluation.results.tables import (
    CATEGORY_SCHEMA,
    CLASS_SCHEMA,
    METRICS_SCHEMA,
    REGION_SCHEMA,
    SLICE_SCHEMA,
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


def write_tables(
    folder: Path,
    done: Sequence[EvaluatedPass],
    outputs: Sequence[StageOutput],
    *,
    metrics_schema: pa.Schema = METRICS_SCHEMA,
    class_schema: pa.Schema = CLASS_SCHEMA,
) -> None:
    """Write the tables beside the units: metrics, categories, classes, regions, slices, confusion."""
    metrics = [{**one.metrics, **output.metrics} for one, output in zip(done, outputs, strict=True)]
    pq.write_table(table_of(metrics, metrics_schema), folder / "metrics.parquet")
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
    pq.write_table(pa.Table.from_pylist(classes, class_schema), folder / "classes.parquet")
    for name, schema in (("regions", REGION_SCHEMA), ("slices", SLICE_SCHEMA)):
        rows = [row for output in outputs for row in output.tables.get(name, [])]
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{name}.parquet")
    confusion = pa.concat_tables([one.confusion for one in done])
    pq.write_table(confusion, folder / "confusion.parquet")


def pass_info(one: EvaluatedPass, units: str) -> dict[str, Any]:
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
        "report": asdict(selection.report),
        "n_class": one.split.n_class,
        "counts": one.split.rows,
        "units": units,
    }


def stage_notes(done: Sequence[EvaluatedPass], outputs: dict[int, StageOutput]) -> list[dict[str, Any]]:
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
