"""The per-unit table of a result: one row for each counted unit, in the order the records are read.

Columns of the analyses that have not run are null; they are never filled with a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.engine.passes import unit_file

Column: TypeAlias = NDArray[Any] | pa.Array | pa.ChunkedArray

BASE_FIELDS: tuple[pa.Field, ...] = (
    pa.field("unit_id", pa.string()),
    pa.field("input_id", pa.string()),
    pa.field("input_hash", pa.string()),
    pa.field("id_source", pa.string()),
    pa.field("dataset", pa.string()),
    pa.field("n_epoch", pa.int32()),
    pa.field("unit_kind", pa.string()),
    pa.field("gt", pa.int32()),
    pa.field("prediction", pa.int32()),
    pa.field("confidence", pa.float32()),
    pa.field("is_error", pa.bool_()),
    pa.field("nonfinite", pa.bool_()),
    pa.field("loss", pa.float64()),
    pa.field("entropy", pa.float64()),
    pa.field("error_code", pa.string()),
)
"""What the first round fills in: `loss` and `entropy` in nats, `gt` and `prediction` 0-based classes."""

FLAGS = pa.struct([pa.field(name, pa.bool_()) for name in ("E", "H", "P", "C", "A", "S")])

STAGE_FIELDS: tuple[pa.Field, ...] = (
    pa.field("error_proba", pa.float32()),
    pa.field("category", pa.string()),
    pa.field("projected_category", pa.string()),
    pa.field("primary_code", pa.string()),
    pa.field("diagnosis", pa.list_(pa.string())),
    pa.field("severity", pa.int8()),
    pa.field("membership", pa.float32()),
    pa.field("code_membership", pa.float32()),
    pa.field("recommended_action", pa.string()),
    pa.field("local_error_rate", pa.float32()),
    pa.field("local_error_lo", pa.float32()),
    pa.field("baseline_risk", pa.float32()),
    pa.field("predicted_risk_lo", pa.float32()),
    pa.field("ambiguity", pa.float32()),
    pa.field("label_quality", pa.float32()),
    pa.field("suggested_label", pa.int32()),
    pa.field("neighbour_ids", pa.list_(pa.string())),
    pa.field("region_id", pa.int32()),
    pa.field("flags", FLAGS),
    pa.field("pca_1", pa.float32()),
    pa.field("pca_2", pa.float32()),
)
"""What the stages of a split fill in; null until one does."""

_OWN_LOWER = frozenset(field.name.lower() for field in (*BASE_FIELDS, *STAGE_FIELDS))


def unit_schema(user_fields: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of the table: ours, then the user's own columns under their `unit_name`."""
    own = [*BASE_FIELDS, *STAGE_FIELDS]
    return pa.schema(own + [pa.field(unit_name(name), kind) for name, kind in user_fields.items()])


def unit_name(user_column: str) -> str:
    """The name of a user's column in the unit table: its own, or `field_<name>` where we hold that name.

    Example:
        >>> unit_name("weather"), unit_name("category")
        ('weather', 'field_category')
    """
    return f"field_{user_column}" if user_column.lower() in _OWN_LOWER else user_column


def unit_ids(first: int, rows: int) -> pa.Array:
    """Ids of rows `first` to `first + rows - 1` of a split: zero-padded, so that text order is row order."""
    return pa.array([f"{number:09d}" for number in range(first, first + rows)], pa.string())


def rewrite_units(source: Path, target: Path, columns: Mapping[str, Column]) -> None:
    """Copy a unit table, with the given columns in place of those of the same name; streams row groups.

    Args:
        source: Parquet file of the table as the earlier rounds left it.
        target: Where the new table goes.
        columns: (N,) numpy or Arrow columns, in row order, for names of the schema.

    Raises:
        ValueError: A column is unknown or has another number of rows than the table.
    """
    file = pq.ParquetFile(source)
    schema = file.schema_arrow
    new = {name: as_arrow(name, values, schema, file.metadata.num_rows) for name, values in columns.items()}
    with unit_file(target, schema) as writer:
        start = 0
        for batch in file.iter_batches(65_536, columns=[name for name in schema.names if name not in new]):
            rows = batch.num_rows
            made = [new[name].slice(start, rows) if name in new else batch[name] for name in schema.names]
            writer.write_table(pa.Table.from_arrays(made, schema=schema))
            start += rows


def key_texts(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """(N,) the texts of a column whose equal values keep units together, None where there is none.

    Example:
        >>> key_texts(pa.array([3, None, 3])).tolist(), key_texts(pa.array([float("nan"), 0.5])).tolist()
        (['3', None, '3'], [None, '0.5'])
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values = column.to_pylist()
    made: NDArray[Any] = np.empty(len(values), object)
    made[:] = [None if one is None or one != one else str(one) for one in values]  # noqa: PLR0124  NaN
    return made


def with_columns(batch: pa.RecordBatch, columns: Mapping[str, Column]) -> pa.RecordBatch:
    """Rows of a unit table with the given columns in place of those of the same name."""
    arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
    arrays |= {name: as_arrow(name, values, batch.schema, batch.num_rows) for name, values in columns.items()}
    return pa.RecordBatch.from_arrays([arrays[name] for name in batch.schema.names], schema=batch.schema)


def as_arrow(name: str, values: Column, schema: pa.Schema, rows: int) -> pa.Array | pa.ChunkedArray:
    """A stage's column as the table has it.

    Raises:
        ValueError: The table has no such column, or another number of rows.
    """
    if name not in schema.names:
        raise ValueError(f"a stage returned the column {name!r}: expected one of {', '.join(schema.names)}")
    if len(values) != rows:
        raise ValueError(
            f"a stage returned {len(values)} values for {name!r}: expected one for each of the {rows} units"
        )
    kind = schema.field(name).type
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.cast(kind)
    # NaN is how numpy says "not known" in a float column; a table says null.
    return pa.array(values, kind, from_pandas=values.dtype.kind == "f")
