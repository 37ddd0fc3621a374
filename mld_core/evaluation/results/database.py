"""DuckDB for joins and views over result tables; it never reaches a network and spills inside the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
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


def unit_fields(units: Path) -> list[pa.Field]:
    """The columns of a unit table, and those that lie beside it."""
    axes = axes_beside(units)
    more = [pq.read_schema(beside(units)).field(name) for name in axes]
    return [*pq.read_schema(units), *more]


@contextmanager
def units_database(spill: Path, files: Sequence[Path]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database whose view `units` holds the units of some tables, with what lies beside each."""
    plain = [file for file in files if not axes_beside(file)]
    mapped = [file for file in files if file not in plain]
    if not mapped:
        with database(spill, units=plain) as connection:
            yield connection
        return
    views = {f"units_{place}": [file] for place, file in enumerate(mapped)}
    views |= {f"umap_{place}": [beside(file)] for place, file in enumerate(mapped)}
    axes = ", ".join(f"b.{name}" for name in UMAP_AXES)
    parts = [
        f"SELECT a.* EXCLUDE (file_row_number), {axes} FROM units_{place} a "  # noqa: S608  no text of a user's
        f"JOIN umap_{place} b ON a.file_row_number = b.file_row_number"
        for place in range(len(mapped))
    ]
    if plain:
        views["plain"] = plain
        parts.append("SELECT * EXCLUDE (file_row_number) FROM plain")
    with database(spill, numbered=True, **views) as connection:
        connection.execute(f"CREATE VIEW units AS {' UNION ALL BY NAME '.join(parts)}")
        yield connection


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
