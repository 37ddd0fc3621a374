"""DuckDB for joins and views over result tables; it never reaches a network and spills inside the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb


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
