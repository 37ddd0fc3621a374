"""Where the runs that are shown come from, as protocols, and the store of this machine as one of them.

`mld ui` shows a folder, a team's server what lies in its storage and is to be seen by who asks: each hands in
its own `Shelf`, which brings a run's records and results into a folder before anything of it is read.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RUN_FILE, RunKey, Store
from mld_core.records.store.verdicts import Verdict, Verdicts
from mld_core.records.write.removal import finish_removed, remove_passes
from mld_core.views.runs import newest_run


class Book(Protocol):
    """What people said of a run's samples; lines are added, none is changed."""

    def read(self) -> tuple[list[Verdict], list[str]]:
        """All verdicts, oldest first, and what could not be read, in words."""
        ...

    def append(self, verdicts: Iterable[Verdict]) -> list[Verdict]:
        """Write verdicts down, with author, time and id; they are durable when this returns."""
        ...

    def undo(self, verdicts: Iterable[Verdict], *, author: str = "") -> list[Verdict]:
        """Take verdicts back, by lines of their own."""
        ...

    def stamp(self) -> Hashable:
        """Differs whenever `read` may say something else."""
        ...


@dataclass(frozen=True)
class Gone:
    """What goes with a run: sample rows, files, their bytes, results."""

    rows: int
    files: int
    bytes: int
    results: int


class Shelf(Protocol):
    """The runs that one reader may see.

    Attributes:
        store: The folder in which runs lie once they were fetched.
        where: What a message calls it.
    """

    store: Store
    where: str

    def runs(self, *, archived: bool | None = None) -> list[RunKey]:
        """Those made last first: all, or those that are put away, or those that are not."""
        ...

    def newest(self, model: str | None, *, evaluated: bool) -> RunKey | None:
        """The run that was recorded last (of a model; among those with a result)."""
        ...

    def fetch(self, run: RunKey, *, whole: bool = True) -> bool:
        """Bring a run's folder up to date; False where there is no such run to be seen.

        Args:
            run: The run.
            whole: With its records; else what the list of runs shows of it.
        """
        ...

    def info(self, run: RunKey) -> dict[str, Any]:
        """What is known of a run, as its `run.json`."""
        ...

    def update(self, run: RunKey, **members: Any) -> None:
        """Set members of what is known of a run: tags, note, archived, evaluations."""
        ...

    def remove(self, run: RunKey, *, dry_run: bool) -> Gone:
        """Remove a run with all that lies beside its records, or only say what would go.

        Raises:
            ValueError: Some of it is being recorded.
        """
        ...

    def book(self, run: RunKey) -> Book:
        """What people said of its samples."""
        ...


class LocalShelf:
    """The store of this machine: all of it is to be seen, and lies where it is read.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.where = str(store.root)
        self._books: dict[RunKey, Verdicts] = {}
        self._briefs: dict[RunKey, tuple[Any, tuple[str, bool]]] = {}
        self._lock = threading.Lock()

    def runs(self, *, archived: bool | None = None) -> list[RunKey]:
        """See `Shelf`."""
        made: dict[RunKey, str] = {}
        for run in self.store.runs():
            at, away = self._brief(run)
            if archived in {None, away}:
                made[run] = at
        return sorted(made, key=lambda run: made[run], reverse=True)

    def _brief(self, run: RunKey) -> tuple[str, bool]:
        """When a run was made and whether it is put away; read anew when its folder or run.json changed."""
        folder = self.store.run_dir(run)
        stamp = tuple(_modified(one) for one in (folder, folder / RUN_FILE))
        found = self._briefs.get(run)
        if found is None or found[0] != stamp:
            info = self.store.run_info(run)
            found = (stamp, (str(info.get("created_at", "")), bool(info.get("archived"))))
            self._briefs[run] = found
        return found[1]

    def newest(self, model: str | None, *, evaluated: bool) -> RunKey | None:
        """See `Shelf`."""
        runs = [run for run in self.store.runs() if model in {None, run.model_name}]
        if evaluated:
            runs = [run for run in runs if has_result(self.store, run)]
        return newest_run(self.store, runs) if runs else None

    def fetch(self, run: RunKey, *, whole: bool = True) -> bool:  # noqa: ARG002  all of it is here
        """See `Shelf`. A store of thousands of runs is not listed for each question of a page."""
        try:
            return self.store.run_dir(run).is_dir()
        except OSError:  # a name longer than any folder's
            return False

    def info(self, run: RunKey) -> dict[str, Any]:
        """See `Shelf`."""
        return self.store.run_info(run)

    def update(self, run: RunKey, **members: Any) -> None:
        """See `Shelf`."""
        self.store.update_run_info(run, **members)

    def remove(self, run: RunKey, *, dry_run: bool) -> Gone:
        """See `Shelf`."""
        results = ResultStore(self.store, run)
        made = len(results.all())
        if not dry_run:
            finish_removed(self.store)
        gone = remove_passes(self.store, run, dry_run=dry_run)
        return Gone(gone.rows, gone.files, gone.bytes, made)

    def book(self, run: RunKey) -> Book:
        """See `Shelf`; one writer for all of this server."""
        with self._lock:
            return self._books.setdefault(run, Verdicts(self.store, run))


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def has_result(store: Store, run: RunKey) -> bool:
    """Whether a run has a result."""
    root = store.results_dir(run)
    return any(not path.name.startswith(".") for path in root.iterdir()) if root.is_dir() else False


@dataclass(frozen=True)
class Who:
    """Who asks.

    Attributes:
        author: The name under which they review.
        csrf: What the header of a writing request of their session must hold.
        may: What they may do beside looking: "write" (verdicts, tags, notes, evaluations), "delete".
        of: What the sign-in knows of them besides, for the shelf.
    """

    author: str
    csrf: str
    may: frozenset[str] = frozenset({"write", "delete"})
    of: Any = None
