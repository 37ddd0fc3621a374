"""Which results are open: the place a page asks about, found and held; columns of passes within a bound."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.app.kept_rows import Beside, KeptRows, stamp_of
from mld_core.app.shelf import Book, Shelf, has_result
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.errors import NotFoundError, known
from mld_core.evaluation.results.result import Result
from mld_core.evaluation.results.store import ResultStore, no_such_run
from mld_core.records.format.attempts import list_passes
from mld_core.records.format.layout import RUN_FILE, RunKey, Store, subfolders
from mld_core.records.read.reader import select
from mld_core.records.store.verdict import Standing, Subject, Verdict, standing
from mld_core.views.reviewing import subjects_of
from mld_core.views.runs import run_row
from mld_core.views.selection import HeldUnits, Recent, held
from mld_core.views.units import passes_of

MOST_BYTES = 1_500_000_000
"""Of columns that are held; passes asked for least recently are let go."""

MOST_PASSES = 24
JUST_SECONDS = 900.0
"""A run evaluated within them is what somebody wants to see first."""

FEW = 50
WAIT_SECONDS = 5.0
"""A search waits at most so long for few runs that are new, and not at all for many."""

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Place:
    """What a page asks about.

    Attributes:
        run: The run.
        result: One of its results.
        units: One of its passes.
        key: What differs from every other pass, also from one that a result of the same name held before.
    """

    run: RunKey
    result: Result
    units: HeldUnits
    key: tuple[Any, ...]

    def says(self) -> dict[str, Any]:
        """As every answer repeats it."""
        return {
            "model": self.run.model_name,
            "version": self.run.version_name,
            "result": self.result.result_name,
            "split": self.units.dataset,
            "epoch": self.units.n_epoch,
            "task": self.result.task,
            "unit": "sample" if self.result.task == "classification" else "box",
        }


@dataclass
class Held:
    """What is kept in memory, by the folders it was read from; one for all readers of a server."""

    results: Recent = field(default_factory=lambda: Recent(MOST_PASSES))
    passes: Recent = field(default_factory=lambda: Recent(MOST_PASSES))
    told: Recent = field(default_factory=lambda: Recent(MOST_PASSES))
    rows: KeptRows = field(default_factory=KeptRows)
    beside: Beside = field(default_factory=Beside)
    said: dict[tuple[Path, str], list[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Library:
    """The results of the runs that one reader may see.

    Args:
        shelf: The runs.
        kept: What other readers of this server have in memory.
    """

    def __init__(self, shelf: Shelf, kept: Held | None = None) -> None:
        self.shelf = shelf
        self.store = shelf.store
        self.held = kept or Held()

    def run(self, model: str | None, version: str | None) -> RunKey:
        """The run of these names; without a version the model's newest, without names the newest of all.

        Raises:
            NotFoundError: There is none.
        """
        found: RunKey | None = RunKey(model or "", version or "")
        if model is None or version is None:
            found = self.shelf.newest(model, evaluated=False)
        if found is None or not self.shelf.fetch(found):
            wanted = RunKey(model or "", version or "")
            shown, away = self.shelf.listed()
            raise no_such_run([*shown, *away], self.shelf.where, wanted)
        return found

    def shown_run(self, model: str | None, version: str | None) -> RunKey:
        """As `run`; where no version is named, the newest of those that are evaluated, if any is."""
        found = self.shelf.newest(model, evaluated=True) if version is None else None
        if found is not None and self.shelf.fetch(found):
            return found
        return self.run(model, version)

    def evaluated_lately(self, run: RunKey) -> bool:
        """Whether a result of a run was made in the last minutes."""
        results = ResultStore(self.store, run).all() if self.evaluated(run) else []
        try:
            made = [datetime.fromisoformat(str(one["completed_at"])) for one in results[-1:]]
        except ValueError:
            return False
        return any((datetime.now(timezone.utc) - one).total_seconds() < JUST_SECONDS for one in made)

    def evaluated(self, run: RunKey) -> bool:
        """Whether a run has a result."""
        return has_result(self.store, run)

    def row(self, run: RunKey) -> dict[str, Any]:
        """A run as the first page lists it; made anew when something of it changed."""
        self.shelf.fetch(run, whole=False)
        folder = self.store.run_dir(run)
        watched = (folder, folder / RUN_FILE, self.store.results_dir(run), *subfolders(folder))
        stamp = [list(stamp_of(one)) for one in watched]
        row = self.held.rows.find(str(folder), stamp)
        if row is None:
            row = run_row(self.store, run)
            self.held.rows.keep(str(folder), stamp, row)
        return row

    def rows(self, runs: Sequence[RunKey]) -> list[dict[str, Any]]:
        """Runs as the first page lists them."""
        with self.held.beside.resting():
            return [self.row(run) for run in runs]

    def read_beside(self, runs: Sequence[RunKey], *, first: bool = False) -> None:
        """Have the lines of runs made, or looked at again, while requests are answered."""
        wanted = {_folder_of(self.store, run): partial(self.row, run) for run in runs}
        self.held.beside.ask(wanted, self.held.rows.write, first=first)

    def known_rows(self, runs: Sequence[RunKey]) -> tuple[list[dict[str, Any]], int]:
        """The lines that are known of some runs, and how many are still to be read.

        A few runs that are new or changed are waited for; of those that were evaluated again the line may be
        the former one for seconds.
        """
        rows, beside = self.held.rows, self.held.beside
        with beside.resting():
            folders = [_folder_of(self.store, run) for run in runs]
            known_ = [rows.known(folder) for folder in folders]
            unread = [place for place, row in enumerate(known_) if row is None]
        self.read_beside([runs[place] for place in unread], first=True)
        if unread:
            seconds = WAIT_SECONDS if len(unread) <= FEW else 0.0
            beside.wait({folders[place] for place in unread}, seconds)
            for place in unread:
                known_[place] = rows.known(folders[place])
        self.read_beside(runs)
        missing = [place for place in unread if known_[place] is None and not beside.failed(folders[place])]
        return [row for row in known_ if row is not None], len(missing)

    def update(self, run: RunKey, **members: Any) -> None:
        """Set members of what is known of a run; its line says so at once."""
        self.shelf.update(run, **members)
        self.row(run)

    def class_names(self, run: RunKey) -> list[str] | None:
        """Names of the classes of a run."""
        names = self.shelf.info(run).get("class_names")
        return [str(name) for name in names] if names else None

    def n_class(self, run: RunKey) -> int:
        """How many classes a run has, as far as it is known."""
        names = self.class_names(run)
        known_ = self.shelf.info(run).get("n_class") or (len(names) if names else 0)
        if not known_ and self.evaluated(run):
            known_ = max((int(one["n_class"]) for one in self.result(run, None).info["passes"]), default=0)
        return int(known_)

    def first_split(self, run: RunKey) -> str | None:
        """The split a page opens with."""
        there = sorted({key.dataset_type for key in list_passes(self.store, run)})
        return first_split(there) if there else None

    def some_ids(self, run: RunKey, split: str, count: int) -> list[str]:
        """Ids of the first samples of a split."""
        for one in select(self.store, run, dataset_type=split):
            for batch in one.batches("samples", ["input_id"], count):
                return [str(name) for name in batch.column(0).to_pylist()]
        return []

    def rows_of(self, place: Place, wanted: Sequence[Subject]) -> dict[Subject, int]:
        """Row numbers of some subjects in a pass; those that are not there are left out."""
        ids = pa.array(sorted({one.input_id for one in wanted}), pa.string())
        inside = pc.is_in(place.units.column("input_id"), ids)
        rows = np.flatnonzero(np.asarray(inside.to_numpy(zero_copy_only=False), np.bool_)).astype(np.int32)
        return {
            subject: row for row, subject in zip(rows.tolist(), subjects_of(place.units, rows), strict=True)
        }

    def result(self, run: RunKey, name: str | None) -> Result:
        """A result of a run; without a name the newest.

        Raises:
            NotFoundError: There is none yet, or none of that name.
        """
        results = ResultStore(self.store, run)
        if name is None:
            made = results.all()
            if not made:
                raise NotFoundError(f"{run.model_name} {run.version_name} is not evaluated yet")
            name = str(made[-1]["result_name"])
        stamp = results.folder(name) / "result.json"
        key = (stamp, stamp_of(stamp))
        found: Result = self.held.results.get_or(key, lambda: Result(results, name, diagnoses=BY_CODE))
        return found

    def place(
        self,
        model: str | None = None,
        version: str | None = None,
        result: str | None = None,
        split: str | None = None,
        epoch: str | None = None,
    ) -> Place:
        """The pass a page asks about, held in memory.

        Raises:
            NotFoundError: There is no such run, result, split or epoch; the message says what is there.
        """
        run = self.run(model, version)
        found = self.result(run, result)
        passes = passes_of(found)
        name = split if split is not None else first_split(found.datasets)
        own = [one for one in passes if one.dataset == name]
        if not own:
            raise NotFoundError(f"no split {name!r} in this result (splits: {known(found.datasets)})")
        chosen = own[-1]
        if epoch not in {None, ""}:
            wanted = [one for one in own if epoch == epoch_text(one.n_epoch)]
            if not wanted:
                there = known(epoch_text(one.n_epoch) for one in own)
                raise NotFoundError(f"no epoch {epoch!r} of {name!r} in this result (epochs: {there})")
            chosen = wanted[-1]
        key = (found.folder, chosen.index, stamp_of(chosen.path), stamp_of(chosen.beside))
        units: HeldUnits = self.held.passes.get_or(key, lambda: held(chosen))
        self._let_go(key)
        return Place(run, found, units, key)

    def _let_go(self, used: Any) -> None:
        """Forget the passes asked for least recently while too much is held."""
        with self.held.lock:
            total = sum(one.nbytes for one in list(self.held.passes.values()))
            for key in [one for one in list(self.held.passes) if one != used]:
                if total <= MOST_BYTES:
                    break
                gone = self.held.passes.pop(key, None)
                total -= gone.nbytes if gone is not None else 0

    def verdicts(self, run: RunKey) -> Book:
        """The verdicts of a run."""
        return self.shelf.book(run)

    def say(self, run: RunKey, verdicts: Sequence[Verdict], author: str) -> list[Verdict]:
        """Write verdicts down; they are what `last_said` names until the next."""
        book = self.verdicts(run)
        with self.held.lock:
            written = book.append(verdicts)
            self.held.said[(self.store.run_dir(run), author)] = [one.verdict_id for one in written]
        return written

    def last_said(self, run: RunKey, author: str) -> list[str]:
        """Ids of what an author said in the last request."""
        return list(self.held.said.get((self.store.run_dir(run), author), []))

    def take_back(self, run: RunKey, verdicts: Sequence[Verdict], author: str) -> None:
        """Take verdicts back, by lines of their own."""
        book = self.verdicts(run)
        with self.held.lock:
            book.undo(verdicts, author=author)
            self.held.said.pop((self.store.run_dir(run), author), None)

    def standing(self, run: RunKey) -> dict[Subject, Standing]:
        """What stands of every subject of a run; read anew when something was said."""
        book = self.verdicts(run)
        key = (self.store.run_dir(run), book.stamp())
        found: dict[Subject, Standing] = self.held.told.get_or(key, lambda: standing(book.read()[0]))
        return found


def first_split(datasets: list[str]) -> str:
    """The split that a page shows where none is asked for."""
    for name in SPLITS:
        if name in datasets:
            return name
    return datasets[0] if datasets else "val"


@lru_cache(maxsize=65_536)
def _folder_of(store: Store, run: RunKey) -> str:
    return str(store.run_dir(run))


def epochs_of(result: Result) -> dict[str, list[str]]:
    """Of each split of a result its epochs as an address names them, the last one last."""
    found: dict[str, list[str]] = {}
    for one in passes_of(result):
        found.setdefault(one.dataset, []).append(epoch_text(one.n_epoch))
    return found


def epoch_text(epoch: int | None) -> str:
    """An epoch as an address names it."""
    return "none" if epoch is None else str(epoch)
