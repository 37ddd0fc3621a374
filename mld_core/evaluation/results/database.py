"""DuckDB for joins and views over result tables; it never reaches a network and spills inside the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

UMAP_AXES = ("umap_1", "umap_2")
"""Columns of a unit table that are made on demand, and lie in a file of their own: see `beside`."""


def beside(units: Path) -> Path:
    """Where the columns lie that are made on demand, row by row those of a unit table."""
    return units.with_name(units.name.replace("units-", "umap-"))


def own_axes(units: Path) -> list[str]:
    """Columns that a unit table holds of a user's own under the names of `UMAP_AXES`, whatever their case."""
    return [name for name in pq.read_schema(units).names if name.lower() in UMAP_AXES]


def axes_beside(units: Path) -> tuple[str, ...]:
    """`UMAP_AXES` where they were made and the table holds none of a user's own; else nothing."""
    return UMAP_AXES if beside(units).is_file() and not own_axes(units) else ()


@contextmanager
def database(
    spill: Path, *, numbered: bool = False, **views: Sequence[Path]
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory database with a view over the Parquet files of each keyword.

    Args:
        spill: Folder of the store where large joins spill; made only if one does, removed after.
        numbered: Add `file_row_number`, the number of a row within its file.
        **views: View name and its files, all of one schema.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "temp_directory": str(spill),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    connection = duckdb.connect(":memory:", config=config)
    try:
        for name, files in views.items():
            names = [str(path) for path in files]
            connection.read_parquet(names, union_by_name=True, file_row_number=numbered).create_view(name)
        yield connection
    finally:
        connection.close()
