"""DuckDB for joins and views over result tables; it never reaches a network and spills inside the store.

To make a database costs as much as thirty small queries, so the last few stay and every caller gets a
connection of its own, whose views and tables are temporary: nobody else sees them, and they end with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
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
        connection.execute(f"CREATE TEMP VIEW units AS {' UNION ALL BY NAME '.join(parts)}")
        yield connection


@contextmanager
def database(
    spill: Path, *, numbered: bool = False, **views: Sequence[Path]
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to an in-memory database, with a view over the Parquet files of each keyword.

    Args:
        spill: Folder of the store where large joins spill; made only if one does, removed after.
        numbered: Add `file_row_number`, the number of a row within its file.
        **views: View name and its files, all of one schema.
    """
    try:
        with connected(str(spill)) as connection:
            for name, files in views.items():
                names = ", ".join(_text(str(path)) for path in files)
                connection.execute(
                    f'CREATE TEMP VIEW "{name}" AS SELECT * FROM '  # noqa: S608  quoted
                    f"read_parquet([{names}], union_by_name=true, file_row_number={numbered})"
                )
            yield connection
    finally:
        if spill.exists():
            _instance.cache_clear()  # the folder goes with the database


def connected(spill: str | None = None) -> closing[duckdb.DuckDBPyConnection]:
    """A connection that is closed at the end of the context; what it makes has to be temporary.

    Args:
        spill: Folder where large joins spill; None where there are none.
    """
    return closing(_instance(spill).cursor())


@lru_cache(maxsize=4)
def _instance(spill: str | None) -> duckdb.DuckDBPyConnection:
    config: dict[str, str | bool | int | float | list[str]] = {
        "temp_directory": spill or "",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    made = duckdb.connect(":memory:", config=config)
    with suppress(duckdb.Error):  # before 1.3 there is none
        made.execute(
            "SET enable_external_file_cache = false"
        )  # it would hold what was read for as long as it stays
    return made


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


if hasattr(os, "register_at_fork"):
    # A fork has none of its threads, and would crash at its end.
    os.register_at_fork(before=_instance.cache_clear)
