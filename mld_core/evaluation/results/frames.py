"""Pandas frames of what lies in tables, and how those of figures print."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

_NULLABLE = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}


def fetch(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[object] = ()) -> pd.DataFrame:
    """Run a query; integers and booleans with nulls keep their type."""
    table: pa.Table = connection.sql(sql, params=list(parameters)).to_arrow_table()
    return to_frame(table)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A pandas frame of an Arrow table whose null integers and booleans stay integers and booleans."""
    kinds = {column.type for column in table.columns if column.null_count and column.type in _NULLABLE}
    frame: pd.DataFrame = table.to_pandas(
        types_mapper=lambda kind: _NULLABLE[kind] if kind in kinds else None
    )
    return frame


class Figures(pd.DataFrame):
    """A table that prints with three decimals and all its columns; what is taken from it is a plain frame.

    Columns that do not stand side by side in the terminal (80 characters where there is none) become rows.
    """

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def __repr__(self) -> str:
        width = shutil.get_terminal_size((pd.get_option("display.width") or 80, 24)).columns
        cells = self._cells()
        wide = str(cells.to_string(index=False))
        if not len(cells) or len(wide.partition("\n")[0]) <= width:
            return wide
        keys = ["dataset", "n_epoch"] if cells["dataset"].duplicated().any() else ["dataset"]
        titles = [" ".join(row) for row in cells[keys].itertuples(index=False)]
        turned = cells.drop(columns=keys).T.set_axis(titles, axis="columns")
        turned.columns.name = " ".join(keys)
        return str(turned.to_string(line_width=width))

    def _cells(self) -> pd.DataFrame:
        return pd.DataFrame({name: [_three_decimals(value) for value in self[name]] for name in self})

    def _repr_html_(self) -> str:
        return str(self._cells().to_html(index=False))


def _three_decimals(value: Any) -> str:
    """A cell as text; lists as they are.

    Example:
        >>> _three_decimals(12875.5), _three_decimals(5000), _three_decimals(None)
        ('12875.500', '5000', '-')
    """
    if isinstance(value, list | np.ndarray):
        return str(value)
    if pd.isna(value):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
