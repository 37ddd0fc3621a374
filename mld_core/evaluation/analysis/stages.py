"""The slots of the per-split analyses: what a stage is given, and what it gives back.

After the rounds of the metrics every split has its unit table on disk. The stages then run in order, each
over all
splits: a stage takes the aggregated arrays of one split (and may look at the others, for thresholds of a
reference split or neighbours in the train split) and returns per-unit columns, metrics and facts. A column,
metric or ratio that no stage returned stays null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.analysis.units import Column
from mld_core.evaluation.engine.executor import Workers
from mld_core.records.format.vectors import is_vector, to_numpy
from mld_core.records.read.reader import PassSelection

REFERENCE_MINIMUM = 30
"""A split serves as reference if it has at least so many errors and so many right units."""

REFERENCE_ORDER = ("val", "test")

Value = float | int | str | None

Rows: TypeAlias = list[dict[str, Any]] | pa.Table
"""Rows of a table: one dict each, or a table where there are many."""


@dataclass
class Split:
    """One evaluated pass, as a stage sees it. Rows are the units of its table, in order.

    Attributes:
        dataset: Name of the split.
        n_epoch: Epoch, or None.
        selection: The records, for streaming vectors.
        units: Parquet file of the unit table of the metric rounds.
        n_class: Number of classes; this and the counts are filled in by the metric rounds.
        rows: Number of units.
        errors: Labelled units that are wrong.
        labeled: Labelled units.
        facts: What earlier stages learned about the split (thresholds, k and m, ...).
        columns: Per-unit columns earlier stages returned.
        scratch: What a stage keeps in memory for the other splits of the group; never stored.
    """

    dataset: str
    n_epoch: int | None
    selection: PassSelection
    units: Path
    n_class: int = 0
    rows: int = 0
    errors: int = 0
    labeled: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    scratch: dict[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> NDArray[Any]:
        """One column of the unit table or of an earlier stage, (N,).

        Integers have -1, floats NaN, booleans False and texts None where the table has null.
        """
        if name in self.columns:
            made = self.columns[name]
            return made if isinstance(made, np.ndarray) else _plain(made)
        return _plain(pq.read_table(self.units, columns=[name]).column(name))

    @property
    def features(self) -> tuple[str, ...]:
        """Aliases of the feature vectors that are still stored for this pass, `logits` not among them."""
        schema = self.selection.schema("vectors")
        return tuple(field.name for field in schema if is_vector(field) and field.name != "logits")

    def width(self, alias: str) -> int | None:
        """Width of the stored vectors of an alias (or `logits`); None where there are none."""
        return vector_width(self.selection, alias)

    def vectors(self, alias: str, rows: int = 65_536) -> Iterator[NDArray[Any]]:
        """Stream the (n, D) vectors of one alias (or `logits`), in the order of the units."""
        return stored_vectors(self.selection, alias, rows)


@dataclass(frozen=True)
class SplitGroup:
    """The splits that are evaluated together: those of one epoch, or the latest of each."""

    splits: tuple[Split, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def get(self, dataset: str) -> Split | None:
        """The split of that name, if it is there."""
        return next((split for split in self.splits if split.dataset == dataset), None)

    def reference(self, split: Split) -> Split:
        """Whose thresholds `split` uses: the first of val, test, itself with enough errors and rights."""
        for dataset in REFERENCE_ORDER:
            other = self.get(dataset)
            if other is not None and min(other.errors, other.labeled - other.errors) >= REFERENCE_MINIMUM:
                return other
        return split

    def in_reference_order(self) -> tuple[Split, ...]:
        """The splits, labelled ones and reference candidates first: the others need what they find."""
        rank = {name: place for place, name in enumerate(REFERENCE_ORDER)}
        return tuple(
            sorted(self.splits, key=lambda split: (split.labeled == 0, rank.get(split.dataset, len(rank))))
        )


@dataclass(frozen=True)
class StageOutput:
    """What a stage found out about one split.

    Attributes:
        columns: (N,) columns of the unit table by name (`units.STAGE_FIELDS`, or `error_code` to refine it).
        metrics: Cells of the split's row in the metrics table, e.g. `error_proba_auroc`.
        categories: Cells of the split's row in the category table, e.g. `hotspot_ratio`.
        facts: Plain values kept with the result and shown to later stages: thresholds and such.
        notes: Sentences for the summary.
        tables: Rows of further tables of the result by name, e.g. `regions`.
    """

    columns: Mapping[str, Column] = field(default_factory=dict)
    metrics: Mapping[str, Value] = field(default_factory=dict)
    categories: Mapping[str, Value] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tables: Mapping[str, Rows] = field(default_factory=dict)


class SplitStage(Protocol):
    """One analysis of a split; `name` is what the progress shows."""

    @property
    def name(self) -> str:
        """What the progress shows."""
        ...

    def __call__(self, split: Split, group: SplitGroup, engine: Workers) -> StageOutput:
        """Analyse one split."""
        ...


class Handed:
    """The stage of an evaluation in rounds: hands on what the rounds left in `scratch`."""

    name = "rounds"

    def __call__(self, split: Split, group: SplitGroup, engine: Workers) -> StageOutput:  # noqa: ARG002
        """See `SplitStage`."""
        found: StageOutput = split.scratch[self.name]
        return found


def run_stages(group: SplitGroup, stages: tuple[SplitStage, ...], engine: Workers) -> dict[str, StageOutput]:
    """Run every stage over every split; the later stage wins where two return the same column or metric."""
    found = {split.dataset: StageOutput() for split in group.splits}
    for stage in stages:
        for split in group.in_reference_order():
            with engine.stage(f"{stage.name} ({split.dataset})"):
                output = stage(split, group, engine)
            split.columns.update(output.columns)
            split.facts.update(output.facts)
            before = found[split.dataset]
            found[split.dataset] = StageOutput(
                {**before.columns, **output.columns},
                {**before.metrics, **output.metrics},
                {**before.categories, **output.categories},
                {**before.facts, **output.facts},
                before.notes + output.notes,
                {**before.tables, **output.tables},
            )
    return found


def vector_width(selection: PassSelection, alias: str) -> int | None:
    """Width of the stored vectors of an alias (or `logits`) of a pass; None where there are none."""
    schema = selection.schema("vectors")
    field = schema.field(alias) if alias in schema.names else None
    if field is None or not is_vector(field):
        return None
    return int(field.type.byte_width) // int(np.dtype(field.metadata[b"dtype"].decode()).itemsize)


def stored_vectors(selection: PassSelection, alias: str, rows: int) -> Iterator[NDArray[Any]]:
    """Stream the (n, D) vectors of one alias of a pass, in the order of its samples."""
    for batch in selection.batches("vectors", [alias], rows):
        place = batch.schema.get_field_index(alias)
        yield np.asarray(to_numpy(batch.column(place), batch.schema.field(place)))


def _plain(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_integer(column.type):
        column = column.cast(pa.int64()).fill_null(-1)
    elif pa.types.is_boolean(column.type):
        column = column.fill_null(False)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return np.asarray(column.to_numpy(zero_copy_only=False))
