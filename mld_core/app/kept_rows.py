"""The lines of the list of runs, kept in the store and made beside the requests.

A search looks at every run. It takes the lines that are known, says how many are still being read, and never
waits for them: of thousands of runs the first reading lasts minutes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
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
_log = logging.getLogger(__name__)


def stamp_of(path: Path | str) -> tuple[int, int]:
    """What differs when a file or folder was changed or replaced."""
    try:
        stat = os.stat(path)  # noqa: PTH116  asked of thousands
    except OSError:
        return (0, 0)
    return (stat.st_mtime_ns, stat.st_ino)


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
                first, _, lines = (root / FILE).read_text(encoding="ascii").partition("\n")
                if json.loads(first)["version"] == __version__:
                    told = json.loads(f"[{lines.strip().replace(chr(10), ',')}]")
                    self._rows = {folder: (stamp, 0.0, row) for folder, stamp, row in told}

    def find(self, folder: str, stamp: Stamp) -> dict[str, Any] | None:
        """The line of a run; the first of its stamp is that of the folder itself."""
        found = self._rows.get(folder)
        if found is None or found[0] != stamp:
            return None
        # One that died may be going on, in folders that are there.
        if found[2]["state"] in {"training", "died"} and time.monotonic() - found[1] > ROW_SECONDS:
            return None
        return dict(found[2])

    def known(self, folder: str, stamp: tuple[int, int] | None = None) -> dict[str, Any] | None:
        """The line of a run whose own folder, tags and note are as they were; results may be newer."""
        found = self._rows.get(folder)
        return None if found is None or found[0][0] != [*(stamp or stamp_of(folder))] else found[2]

    def keep(self, folder: str, stamp: Stamp, row: dict[str, Any]) -> None:
        """Keep the line of a run."""
        self._rows[folder] = (stamp, time.monotonic(), row)
        self._new += row["state"] != "training"

    def write(self) -> None:
        """Write the lines down, where many are new; a store that takes none has them in memory."""
        if self._root is None or self._new < MANY:
            return
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._new = 0
            path = self._root / tmp_name(FILE)
            with path.open("w", encoding="ascii") as file:
                file.write(json.dumps({"version": __version__}) + "\n")
                for folder, (stamp, _, row) in list(self._rows.items()):
                    if row["state"] != "training" and stamp[0] == list(stamp_of(folder)):
                        file.write(json.dumps([folder, stamp, row], separators=(",", ":")) + "\n")
            path.replace(self._root / FILE)


class Beside:
    """Makes lines one after another on a thread of its own, which rests while a request is answered."""

    def __init__(self) -> None:
        self._wanted: dict[str, Callable[[], Any]] = {}
        self._failed: dict[str, str] = {}
        self._making: str | None = None
        self._running = False
        self._answering = 0
        self._changed = threading.Condition()

    def ask(
        self, wanted: Mapping[str, Callable[[], Any]], done: Callable[[], Any], *, first: bool = False
    ) -> None:
        """Have lines made, or looked at again.

        Args:
            wanted: What makes the line of a run, by its folder.
            done: Called when none is left.
            first: Before what was asked for earlier.
        """
        with self._changed:
            self._wanted = {**wanted, **self._wanted} if first else {**self._wanted, **wanted}
            if self._wanted and not self._running:
                self._running = True
                threading.Thread(target=self._work, args=(done,), name="mld-run-lines", daemon=True).start()

    def wait(self, folders: Collection[str], seconds: float) -> None:
        """Wait for the lines of some runs, at most so long."""

        def made() -> bool:
            return not any(one in self._wanted or one == self._making for one in folders)

        with self._changed:
            self._changed.wait_for(made, seconds)

    def failed(self, folder: str) -> bool:
        """Whether the line of a run could not be made when it was tried last."""
        return folder in self._failed

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """A request is being answered meanwhile."""
        with self._changed:
            self._answering += 1
        try:
            yield
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()

    def _work(self, done: Callable[[], Any]) -> None:
        while True:
            with self._changed:
                self._making = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: not self._answering)
                folder = self._making = next(iter(self._wanted), None)
                if folder is None:
                    self._running = False
                    break
                make = self._wanted.pop(folder)
            try:
                make()
                self._failed.pop(folder, None)
            except Exception as error:  # noqa: BLE001  one run that cannot be read is no reason to list none
                if self._failed.get(folder) != str(error):
                    _log.warning("%s is not listed: %s", folder, error)
                self._failed[folder] = str(error)
        done()
