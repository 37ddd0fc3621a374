"""The `epochs` table: what is known of each pass while the training goes on.

One row for each pass, a JSON file `figures.json` in the folder of its attempt: it comes and goes with the
pass. Rows are written whole (temporary name, rename) and written anew as more is known, so that they can be
read at any time. They hold sums and shares, no ids. See docs/record_format.md.
The training loads this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mld_core.records.format.layout import PassKey, RunKey, Store, subfolders
from mld_core.records.format.manifest import read_json, write_json

FIGURES_FILE = "figures.json"
FORMAT = 1

METRICS, ANALYSED, OVERTAKEN, LEFT_OUT = "metrics", "analysed", "overtaken", "left out"
"""How far a row is: metrics only yet; all; metrics only, a newer pass came; metrics only, `notes` say why."""


def write_figures(attempt: Path, row: dict[str, Any]) -> None:
    """Keep the row of a pass; what was there is replaced in one step.

    Raises:
        OSError: It could not be written; what was there is still there.
    """
    write_json(attempt / FIGURES_FILE, {"format": FORMAT, **row}, fsync=False)


def read_figures(attempt: Path) -> dict[str, Any] | None:
    """The row of a pass, None where there is none yet or a newer release wrote it."""
    row = read_json(attempt / FIGURES_FILE)
    return row if row is not None and row.get("format") == FORMAT else None


def attempts_of(store: Store, run: RunKey, key: PassKey) -> list[Path]:
    """The folders of the attempts at a pass that have a row, oldest first."""
    return [path for path in subfolders(store.pass_dir(run, key)) if (path / FIGURES_FILE).is_file()]


class Epochs:
    """The `epochs` table of a run, read again and again: a row is parsed once for each time it is written.

    Args:
        store: The store.
        run: The run.
    """

    def __init__(self, store: Store, run: RunKey) -> None:
        self._store, self._run = store, run
        self._read: dict[Path, tuple[tuple[int, int], dict[str, Any] | None]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """The rows of today's generation, of each pass its newest attempt's, in the order of sealing."""
        from mld_core.records.format.attempts import list_passes  # not in the training

        generation = self._store.generation(self._run)
        found = []
        for key in list_passes(self._store, self._run):
            rows = [row for path in attempts_of(self._store, self._run, key) if (row := self._row(path))]
            current = [row for row in rows if row["generation"] >= generation]
            found += current[-1:]
        return sorted(found, key=lambda row: str(row["sealed_at"]))

    def _row(self, attempt: Path) -> dict[str, Any] | None:
        path = attempt / FIGURES_FILE
        try:
            seen = path.stat()
        except OSError:
            return None
        stamp = (seen.st_mtime_ns, seen.st_ino)
        known = self._read.get(attempt)
        if known is None or known[0] != stamp:
            known = self._read[attempt] = (stamp, read_figures(attempt))
        return known[1]
