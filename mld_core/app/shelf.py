"""Where the runs that are shown come from, as protocols, and the store of this machine as one of them.

`mld ui` shows a folder, a team's server what lies in its storage and is to be seen by who asks: each hands in
its own `Shelf`, which brings a run's records and results into a folder before anything of it is read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mld_core.app.kept_rows import KeptRows, stamp_of
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RUN_FILE, RunKey, Store, generation_in, named_run, subfolders
from mld_core.records.format.manifest import read_json
from mld_core.records.store.verdict import Verdict
from mld_core.records.store.verdicts import Verdicts
from mld_core.records.write.removal import finish_removed, remove_passes
from mld_core.views.runs import RUNS_ASKED, newest_run


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

    def listed(self) -> tuple[list[RunKey], list[RunKey]]:
        """The runs, and those that were put away; those made last first."""
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


class _Brief(NamedTuple):
    stamp: tuple[int, int]
    run: RunKey | None
    at: str
    away: bool


class LocalShelf:
    """The store of this machine: all of it is to be seen, and lies where it is read.

    Args:
        store: The store.
        rows: Lines of its runs that are known.
    """

    def __init__(self, store: Store, rows: KeptRows | None = None) -> None:
        self.store = store
        self.where = str(store.root)
        self._rows = rows or KeptRows()
        self._books: dict[RunKey, Verdicts] = {}
        self._briefs: dict[str, _Brief] = {}
        self._lock = threading.Lock()

    def listed(self) -> tuple[list[RunKey], list[RunKey]]:
        """See `Shelf`."""
        found = [self._brief(one) for model in subfolders(self.store.root) for one in _folders_in(model)]
        there = sorted((one for one in found if one.run is not None), key=lambda one: one.at, reverse=True)
        shown = [one.run for one in there if one.run is not None and not one.away]
        return shown, [one.run for one in there if one.run is not None and one.away]

    def _brief(self, folder: str) -> _Brief:
        """What the list needs of a run; read anew when its folder changed, as a new run.json changes it."""
        stamp = stamp_of(folder)
        found = self._briefs.get(folder)
        if found is None or found.stamp != stamp:
            row = self._rows.known(folder, stamp)
            if row is not None:
                run = RunKey(row["model"], row["version"])
                found = _Brief(stamp, run, str(row["created_at"] or ""), row["archived"])
            else:
                found = _read(folder, stamp)
            self._briefs[folder] = found
        return found

    def newest(self, model: str | None, *, evaluated: bool) -> RunKey | None:
        """See `Shelf`."""
        shown, away = self.listed()
        found = (run for run in [*shown, *away] if model in {None, run.model_name})
        if evaluated:
            found = (run for run in found if has_result(self.store, run))
        runs = list(islice(found, RUNS_ASKED))  # those made last: of thousands not all are looked through
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


def _read(folder: str, stamp: tuple[int, int]) -> _Brief:
    path = Path(folder)
    info = read_json(path / RUN_FILE)
    run = named_run(path.parent, path, info)
    if info is not None and info.get("generation", 0) != generation_in(folder):
        info = None  # an older generation's
    told = info or {}
    return _Brief(stamp, run, str(told.get("created_at", "")), bool(told.get("archived")))


def _folders_in(model: Path) -> list[str]:
    try:
        with os.scandir(model) as entries:
            return sorted(one.path for one in entries if not one.name.startswith(".") and one.is_dir())
    except OSError:
        return []


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
