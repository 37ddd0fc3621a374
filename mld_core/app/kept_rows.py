"""The lines of the list of runs, kept in the store: a search looks at every run, and reads what changed."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from mld_core import __version__
from mld_core.records.format.manifest import tmp_name

FILE = ".runs.json"
ROW_SECONDS = 2.0
"""So long a run's line stands although it is being trained."""

MANY = 50
"""So many new lines are worth writing them down."""

Stamp = list[list[int]]


class KeptRows:
    """Lines by the folder of their run; a line counts while nothing of the folder changed.

    Args:
        root: The store, in which they are kept from one server to the next; None = in memory alone.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._rows: dict[str, tuple[Stamp, float, dict[str, Any]]] = {}
        self._new = 0
        self._lock = threading.Lock()
        if root is not None:
            # Another release may say more of a run; a file that is torn or foreign is none.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                told = json.loads((root / FILE).read_text(encoding="utf-8"))
                if told["version"] == __version__:
                    self._rows = {name: (stamp, 0.0, row) for name, (stamp, row) in told["rows"].items()}

    def find(self, folder: Path, stamp: Stamp) -> dict[str, Any] | None:
        """The line of a run."""
        found = self._rows.get(str(folder))
        if found is None or found[0] != stamp:
            return None
        if found[2]["state"] == "training" and time.monotonic() - found[1] > ROW_SECONDS:
            return None
        return dict(found[2])

    def keep(self, folder: Path, stamp: Stamp, row: dict[str, Any]) -> None:
        """Keep the line of a run."""
        self._rows[str(folder)] = (stamp, time.monotonic(), row)
        self._new += row["state"] != "training"

    def write(self) -> None:
        """Write the lines down, where many are new; a store that takes none has them in memory."""
        if self._root is None or self._new < MANY:
            return
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._new = 0
            rows = {
                name: [stamp, row]
                for name, (stamp, _, row) in list(self._rows.items())
                if row["state"] != "training" and Path(name).is_dir()
            }
            path = self._root / tmp_name(FILE)
            path.write_text(json.dumps({"version": __version__, "rows": rows}), encoding="ascii")
            path.replace(self._root / FILE)
