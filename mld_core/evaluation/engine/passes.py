"""The records of one pass as the rounds read them, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.records.format.schema import LEFT_OUT, LOADER_PLACE, REPEATED

if TYPE_CHECKING:
    from mld_core.records.read.reader import PassSelection

CELLS = 2**23
"""Units x classes of one batch: its float64 temporaries stay around 64 MiB each."""

ROW = "\0row"
"""Column of a batch: the running number of a row in its pass. No column of a user's is called so."""

_OWN_COLUMNS = frozenset(
    [
        *("input_id", "id_source", "input_hash", "label", "soft_label", "prediction", "confidence", "loss"),
        *("unit", "rank_", "batch_idx", "row", "global_step", "mode", "nonfinite", "overflow"),
        *(REPEATED, LOADER_PLACE),
    ]
)
"""Columns of the sample records that are no user's own."""


_DIFFER = frozenset({"unit_id", "input_id", "input_hash", "neighbour_ids"})
"""Texts of a unit table that differ from row to row."""


def unit_file(target: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A file for a table of units.

    Ids and figures differ from row to row: a dictionary of them would be half of the time of writing and a
    quarter of the file.
    """
    repeat = [one for one in schema if one.name not in _DIFFER and not pa.types.is_floating(one.type)]
    paths = [f"{one.name}.list.element" if pa.types.is_list(one.type) else one.name for one in repeat]
    return pq.ParquetWriter(target, schema, compression="zstd", use_dictionary=paths or False)


def layer_column(alias: str) -> str:
    r"""Column of a batch that holds a layer's vectors: a column of the samples may be called as the layer is.

    Example:
        >>> layer_column("logits"), layer_column("pool")
        ('logits', '\x00layer pool')
    """
    return alias if alias == "logits" else f"\0layer {alias}"


@dataclass(frozen=True)
class PassSource:
    """The samples of a pass, with their logits where they are stored, in batches of equal rows."""

    selection: PassSelection
    logits_width: int | None
    batch_rows: int

    @classmethod
    def of(cls, selection: PassSelection) -> PassSource:
        """Look at the stored vectors of a pass."""
        width = logits_width(selection)
        rows = 65_536 if width is None else max(1024, min(65_536, CELLS // width))
        return cls(selection, width, rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Walk over the pass: all sample columns, `logits` if stored, and `ROW`."""
        samples = self.selection.batches("samples", None, self.batch_rows)
        pieces: Iterator[tuple[pa.RecordBatch, pa.RecordBatch | None]] = ((batch, None) for batch in samples)
        if self.logits_width is not None:
            pieces = _together(samples, self.selection.batches("vectors", ["logits"], self.batch_rows))
        start = 0
        for left, right in pieces:
            if left.num_rows == 0:
                continue
            columns, fields = list(left.columns), list(left.schema)
            if right is not None:
                place = right.schema.get_field_index("logits")
                columns.append(right.column(place))
                fields.append(right.schema.field(place))
            columns.append(pa.array(np.arange(start, start + left.num_rows), pa.int64()))
            fields.append(pa.field(ROW, pa.int64()))
            yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
            start += left.num_rows

    def user_fields(self) -> dict[str, pa.DataType]:
        """The user's own columns and their types, dictionaries as what they hold."""
        fields = [field for field in self.selection.schema("samples") if field.name not in _OWN_COLUMNS]
        plain = {field.name: field.type for field in fields}
        return {
            name: kind.value_type if pa.types.is_dictionary(kind) else kind for name, kind in plain.items()
        }


def logits_width(selection: PassSelection) -> int | None:
    """Number of classes of the stored logits; None where the pass has none for its samples."""
    schema = selection.schema("vectors")
    return int(schema.field("logits").type.byte_width) // 4 if "logits" in schema.names else None


def count_classes(source: PassSource, info: Mapping[str, Any]) -> int:
    """Number of classes where no logits are stored: what the run says, else the largest class seen."""
    if info.get("n_class"):
        return int(info["n_class"])
    import pyarrow.compute as pc  # here: who reads a summary loads this file, and does not wait for it

    largest = -1
    for batch in source.selection.batches("samples", ["label", "prediction"], source.batch_rows):
        for column in batch.columns:
            top = pc.max(column).as_py()
            largest = max(largest, -1 if top is None else int(top))
    return largest + 1


def _together(
    left: Iterator[pa.RecordBatch], right: Iterator[pa.RecordBatch]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Walk over two families of the same rows side by side.

    Raises:
        ValueError: They do not hold the same number of rows.
    """
    for one, other in zip_longest(left, right):
        if one is None or other is None or one.num_rows != other.num_rows:
            raise ValueError("the pass has not one vector for each sample: run `mld doctor` on the store")
        yield one, other


# --- what is wrong ------------------------------------------------------------------------------------------


def problem(
    kind: str, message: str, selection: PassSelection | None = None, *, severity: str = "warning"
) -> dict[str, Any]:
    """One entry of the list that every summary shows."""
    key = selection.key if selection is not None else None
    return {
        "kind": kind,
        "severity": severity,
        "dataset": key.dataset_type if key else None,
        "n_epoch": key.n_epoch if key else None,
        "message": f"{describe(selection)}: {message}" if selection is not None else message,
    }


def describe(selection: PassSelection) -> str:
    """Split and epoch of a pass, for messages."""
    epoch = "no epoch" if selection.key.n_epoch is None else f"epoch {selection.key.n_epoch}"
    return f"{selection.key.dataset_type} ({epoch})"


def record_problems(selection: PassSelection) -> list[dict[str, Any]]:
    """What reading the pass brought to light: missing ranks, lost rows, ids that are not unique."""
    found = []
    if not selection.sealed:
        ranks = ", ".join(str(rank) for rank in selection.missing_ranks) or "unknown"
        found.append(
            problem(
                "partial",
                f"the pass was never finished (rank {ranks} did not seal it): rows are missing",
                selection,
            )
        )
    if selection.torn:
        found.append(
            problem(
                "torn", f"{len(selection.torn)} torn parts were left out (mld doctor names them)", selection
            )
        )
    lost = rows_lost(selection)
    if lost:
        reasons = ", ".join(f"{name} {count}" for name, count in sorted(selection.losses.items()))
        found.append(problem("rows_lost", f"{lost} rows were lost while recording ({reasons})", selection))
    left = int((selection.meta.get("counts") or {}).get(LEFT_OUT, 0))
    if left:
        text = (
            f"at least {left} training rows were left out while recording, to spare the training: one rank's"
        )
        found.append(problem("thinned", text, selection, severity="note"))
    report = selection.report
    if report.non_unique_ids:
        found.append(
            problem(
                "non_unique_ids",
                f"{report.non_unique_ids} input ids stand for more than one content; all rows are counted",
                selection,
            )
        )
    if report.duplicates_dropped:
        text = f"{report.duplicates_dropped} repeated rows (same id and content) were counted once"
        found.append(problem("duplicates", text, selection, severity="note"))
    if report.superseded_rows:
        text = f"{report.superseded_rows} rows of an interrupted attempt were replaced by the resumed one"
        found.append(problem("superseded", text, selection, severity="note"))
    return found


def rows_lost(selection: PassSelection) -> int:
    """Rows the recorder counted as lost in this pass."""
    return sum(selection.losses.values())
