"""What is new of some runs since it was asked last, found by looking at a few folders; how many may ask."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mld_core.app.kept_rows import stamp_of
from mld_core.app.library import Library
from mld_core.app.problems import ProblemError
from mld_core.records.format.attempts import list_passes
from mld_core.records.format.layout import RunKey
from mld_core.views.training.curves import Memory, curves, watched
from mld_core.views.training.state import state_of

MOST_STREAMS = 64
MOST_STREAMS_EACH = 12
"""A browser opens six at a server; a person may have two."""

WHOLE_SECONDS = 30.0
"""So often a run is read although nothing was seen to change: passes of long ago are not watched."""

_Stamp = tuple[tuple[int, int], ...]


class Streams:
    """How many streams are open, of all and of each reader."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def open(self) -> int:
        """How many there are."""
        return self._of.total()

    def enter(self, reader: str) -> None:
        """Take a place.

        Raises:
            ProblemError: There is none.
        """
        with self._lock:
            if self.open >= MOST_STREAMS or self._of[reader] >= MOST_STREAMS_EACH:
                raise ProblemError(
                    429, "Too many pages are being kept up to date.", fix="Close some of them."
                )
            self._of[reader] += 1

    def leave(self, reader: str) -> None:
        """Give a place back."""
        with self._lock:
            self._of[reader] -= 1
            self._of += Counter()  # names nobody has a place under any more go


class _Seen:
    """What was seen of a run."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.stamp: _Stamp = ()
        self.read = 0.0
        self.told: dict[str, Any] | None = None


class Watch:
    """Some runs that one reader looks at.

    Args:
        library: The runs they may see.
        runs: Those they look at.
        memory: What was read for others.
    """

    def __init__(self, library: Library, runs: Sequence[RunKey], memory: Memory) -> None:
        self._library = library
        self._memory = memory
        self._of = {run: _Seen() for run in runs}

    def look(self) -> list[dict[str, Any]]:
        """The runs of which something changed, whole; the first time all of them."""
        return [told for run, seen in self._of.items() if (told := self._look(run, seen)) is not None]

    def _look(self, run: RunKey, seen: _Seen) -> dict[str, Any] | None:
        # Asked each time: what somebody may see no more, or what was removed, is told no more.
        there = self._library.shelf.fetch(run)
        if there and not self._changed(run, seen):
            return None
        told = self.read(run) if there else {**vars_of(run), "state": "gone", "state_text": "removed"}
        if not there:
            told |= {"task": "classification", "splits": [], "unread": 0, "rows": [], "metrics": []}
        same, seen.told = told == seen.told, told
        return None if same else told

    def read(self, run: RunKey) -> dict[str, Any]:
        """All that is told of a run."""
        return curves(self._library.store, run, self._memory)

    def _changed(self, run: RunKey, seen: _Seen) -> bool:
        store, now = self._library.store, time.monotonic()
        if seen.told is None or seen.told["unread"] or now - seen.read > WHOLE_SECONDS:
            changed = True
        else:
            changed = tuple(map(stamp_of, seen.folders)) != seen.stamp
            if not changed and seen.told["state"] in {"training", "between"}:  # its process may be gone
                changed = state_of(store, run, list_passes(store, run)).text != seen.told["state_text"]
        if changed:
            # Before it is read: what changes meanwhile is seen the next time.
            seen.folders, seen.read = list(watched(store, run)), now
            seen.stamp = tuple(map(stamp_of, seen.folders))
        return changed


def vars_of(run: RunKey) -> dict[str, Any]:
    """The names of a run as the pages write them."""
    return {"model": run.model_name, "version": run.version_name}
