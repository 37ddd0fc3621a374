"""What the process beside a training does: metrics of every pass at once, the analysis of the latest.

Three threads: one hears what is sealed; one writes the metrics of its scalar columns, whatever else is going
on; the main one analyses one pass after the other, of each split the latest that was sealed by then: one that
waited and was overtaken keeps its metrics. Of the processes of one store one analyses at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mld_core.evaluation.engine.executor import Reporter, Stage, Workers
from mld_core.evaluation.engine.folders import work_folder
from mld_core.evaluation.live.figures import (
    ANALYSED,
    LEFT_OUT,
    METRICS,
    OVERTAKEN,
    read_figures,
    write_figures,
)
from mld_core.evaluation.live.helper import RANKS_SECONDS, LiveSettings
from mld_core.evaluation.live.inbox import Inbox
from mld_core.evaluation.live.measuring import Analysed, analyse_samples, scalar_metrics
from mld_core.records.format.attempts import chain, list_attempts, read_rank
from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.manifest import SEAL_FILE, utc_now
from mld_core.records.read.reader import PassSelection
from mld_core.records.write.reseal import locked

_LOOK_SECONDS = 0.2
"""How often to see whether the other ranks have sealed, too, or another training lets go of the analysis."""

_PARENT_SECONDS = 2.0
_LINGER_SECONDS = 120.0
"""How long the process works on when the training is over."""

_LAST_SECONDS = 10.0
"""How long the other ranks are waited for of a pass that was sealed as the training died."""

_TURN_SECONDS = 15.0
"""How long it waits then for the analyses of other trainings."""

_FOLDER = "mld-live-"


class TooLateError(Exception):
    """The training is over for so long that nobody waits for this any more."""


@dataclass
class Pass:
    """A pass whose metrics are written, and its row of the table."""

    attempt: Path
    selection: PassSelection
    row: dict[str, Any]

    @property
    def split(self) -> str:
        """Its split."""
        return str(self.row["dataset"])

    def keep(self, state: str, *notes: str, **more: Any) -> None:
        """Write the row with what is known now."""
        self.row |= {"state": state, "notes": [*self.row["notes"], *notes], **more}
        with contextlib.suppress(OSError):  # the pass was removed meanwhile, or the disk is full
            write_figures(self.attempt, self.row)


class Evaluation:
    """What the threads share.

    Args:
        settings: Of which run.
        inbox: What the training says.
        said: Lines that it has said before.
    """

    def __init__(self, settings: LiveSettings, inbox: Inbox, said: list[bytes]) -> None:
        self._settings, self._inbox = settings, inbox
        self._store = Store(settings.store)
        self._run = RunKey(settings.model_name, settings.version_name)
        self._info = self._store.run_info(self._run)
        self._parent = os.getppid()
        self._changed = threading.Condition()
        self._told: dict[Path, float] = {}  # rank folders, and until when the other ranks are waited for
        self._taken: set[Path] = set()  # attempts
        self._due: dict[str, Pass] = {}
        self._train: PassSelection | None = None
        self._analysed: dict[str, float] = {}
        self._working = False
        self._heard = time.monotonic()
        self._since = float("inf")  # when the first of what it was told was sealed, by the disk's clock
        self._ended: float | None = None
        self._measured = False
        self._failed: BaseException | None = None
        with self._changed:
            self._hear(said)

    def run(self) -> None:
        """Work until the training is over and all it sealed has its figures, or nothing came for a while.

        Raises:
            MemoryError: The metrics take more than it may have.
        """
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()
        threading.Thread(target=self._measure, name="metrics", daemon=True).start()
        while (one := self._next()) is not None:
            try:
                with self._alone():
                    self._analyse(one)
            except TooLateError as error:
                one.keep(LEFT_OUT, str(error))
            with self._changed:
                self._working = False
                self._analysed[one.split] = time.monotonic()
        if self._failed is not None:
            raise self._failed

    # -- taking in -------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Read the training's lines until it is over or gone, or nothing came for a while."""
        with contextlib.suppress(OSError, ValueError):
            while (lines := self._inbox.lines(min(_PARENT_SECONDS, self._settings.idle))) is not None:
                # Forked workers of a killed training may hold its end open: ask for the parent, too.
                if not lines and os.getppid() != self._parent:
                    break
                with self._changed:
                    self._hear(lines)
                    if self._idle() and not self._inbox.waits():
                        self._inbox.close()  # the training hears of it, and tells another process
                        self._since = float("inf")
                        break
        with self._changed:
            with contextlib.suppress(OSError):  # a folder went while it was walked through
                for folder in self._untold():
                    self._told.setdefault(folder, time.monotonic() + _LAST_SECONDS)
            self._ended = time.monotonic()
            self._changed.notify_all()

    def _hear(self, lines: list[bytes]) -> None:
        """The folder of a sealed rank each."""
        for line in lines:
            folder = Path(json.loads(line))
            self._told.setdefault(folder, time.monotonic() + RANKS_SECONDS)
            self._heard = time.monotonic()
            self._since = min(self._since, _sealed_at(folder) or self._since)
        if lines:
            self._changed.notify_all()

    def _untold(self) -> list[Path]:
        """Ranks sealed since the first it was told of: a training can die between sealing and telling."""
        ranks = [seal.parent for seal in self._store.run_dir(self._run).rglob(SEAL_FILE)]
        # On disks whose clock is coarse the first and the last may have one time.
        return [
            one for one in ranks if one.parent not in self._taken and (_sealed_at(one) or 0.0) >= self._since
        ]

    def _idle(self) -> bool:
        busy = self._told or self._due or self._working
        return not busy and time.monotonic() - self._heard > self._settings.idle

    def _measure(self) -> None:
        """Write the metrics of each pass that all ranks have sealed, until no more can come."""
        try:
            while (folders := self._to_measure()) is not None:
                for folder, until in folders.items():
                    self._take_in(folder, until)
                if self._told:
                    time.sleep(_LOOK_SECONDS)
        except BaseException as error:  # noqa: BLE001 - the main thread ends the process with it
            self._failed = error
        with self._changed:
            self._measured = True
            self._changed.notify_all()

    def _to_measure(self) -> dict[Path, float] | None:
        """What is told and not taken in, waited for; None: the training is over, and no more can come."""
        with self._changed:
            while not self._told and self._ended is None:
                self._changed.wait()
            return None if not self._told or self._late() else dict(self._told)

    def _late(self) -> bool:
        return self._ended is not None and time.monotonic() - self._ended > _LINGER_SECONDS

    def _take_in(self, folder: Path, until: float) -> None:
        """Write the metrics of a pass, once all its ranks have sealed it."""
        found = None
        with contextlib.suppress(
            Exception
        ):  # it was removed meanwhile, or can not be read: not this process's end
            found = self._select(folder)
        if found is not None and not found.sealed and time.monotonic() < until:
            return
        if found is not None and found.sealed and folder.parent not in self._taken:
            self._taken.add(folder.parent)
            self._measure_one(folder.parent, found)
        with self._changed:
            del self._told[folder]

    def _measure_one(self, attempt: Path, found: PassSelection) -> None:
        row = read_figures(attempt)
        one = Pass(attempt, found, row or self._row(found))
        if row is None:
            begun = time.thread_time()
            state, notes, metrics = METRICS, [], {}
            try:
                metrics = scalar_metrics(found, self._info)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - of this pass alone, and the row says so
                state, notes = LEFT_OUT, [_failure(attempt, "its metrics", error)]
            spent = round(time.thread_time() - begun, 3)
            one.keep(state, *notes, metrics=metrics, cpu_seconds=spent, measured_at=utc_now())
        if one.row["state"] == METRICS:
            self._add(one)

    def _select(self, folder: Path) -> PassSelection | None:
        rank = read_rank(folder)
        if rank is None:
            return None
        key = PassKey(rank.opened.dataset_type, rank.opened.n_epoch, rank.opened.pass_no)
        attempts = list_attempts(self._store, self._run, key)
        chosen = next((one for one in attempts if one.name == folder.parent.name), None)
        if chosen is None:
            return None
        return PassSelection(self._store, chain(chosen, attempts, self._store.generation(self._run)))

    def _row(self, found: PassSelection) -> dict[str, Any]:
        return {
            "dataset": found.key.dataset_type,
            "n_epoch": found.key.n_epoch,
            "pass_no": found.key.pass_no,
            "attempt": found.attempt,
            "generation": self._store.generation(self._run),
            "task": found.task,
            "sealed_at": found.sealed_at,
            "rows": found.n_rows,
            "analysis": None,
            "notes": [],
        }

    def _add(self, one: Pass) -> None:
        """It is the one to analyse of its split; the one before it, if it still waits, keeps its metrics."""
        with self._changed:
            before = self._due.get(one.split)
            self._due[one.split] = one
            if one.split == "train":
                self._train = one.selection
            self._changed.notify_all()
        if before is not None and before.attempt != one.attempt:
            before.keep(OVERTAKEN)

    # -- the analysis ----------------------------------------------------------------------------------------

    def _next(self) -> Pass | None:
        """The pass of the split that waits the longest for an analysis; None when no more will come."""
        with self._changed:
            while not self._due:
                if self._measured:
                    return None
                self._changed.wait()
            # Of splits that have none yet the train split comes last: it is the largest.
            split = min(self._due, key=lambda name: (self._analysed.get(name, 0.0), name == "train"))
            self._working = True
            return self._due.pop(split)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the store's analyses: trainings side by side make them one after the other."""
        while True:
            with locked(self._store.root, wait=False) as mine:
                if mine:
                    yield
                    return
            self._go_on(_TURN_SECONDS, "the training ended, and other trainings had their turn")
            time.sleep(_LOOK_SECONDS)

    def _go_on(self, seconds: float = _LINGER_SECONDS, why: str = "the training ended too long ago") -> None:
        """Ask whether it is worth going on.

        Raises:
            TooLateError: It is not: the training is over for longer than that.
        """
        if self._ended is not None and time.monotonic() - self._ended > seconds:
            raise TooLateError(why)

    def _analyse(self, one: Pass) -> None:
        train = self._train
        if one.split == "train" or train is None or train.key.n_epoch != one.row["n_epoch"]:
            train = None
        begun = time.process_time()
        try:
            found = self._found(one.selection, train)
        except TooLateError:
            raise
        except MemoryError:
            one.keep(LEFT_OUT, "the analysis took more memory than it may have")
        except Exception as error:  # noqa: BLE001 - of this pass alone, and the row says so
            one.keep(LEFT_OUT, _failure(one.attempt, "the analysis", error))
        else:
            one.keep(
                LEFT_OUT if found.analysis is None else ANALYSED,
                *found.notes,
                metrics=one.row["metrics"] | found.metrics,
                analysis=found.analysis,
                cpu_seconds=round(one.row["cpu_seconds"] + time.process_time() - begun, 3),
                analysed_at=utc_now(),
            )

    def _found(self, selection: PassSelection, train: PassSelection | None) -> Analysed:
        engine = Workers(1, _Asking(self._go_on))
        with work_folder(_FOLDER) as folder:
            if selection.task == "classification":
                return analyse_samples(selection, train, self._info, engine, folder)
            from mld_core.evaluation.live.boxes import analyse_boxes

            return analyse_boxes(selection, self._info, engine, folder)


class _Asking(Reporter):
    """Shows nothing, and asks at every stage whether to go on."""

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__(enabled=False)
        self._ask = ask

    def stage(self, name: str, total: int | None = None) -> Stage:
        """Open a line for a stage."""
        self._ask()
        return super().stage(name, total)


def _sealed_at(folder: Path) -> float | None:
    """When a rank was sealed, by the disk's clock; None where it was removed meanwhile."""
    try:
        return (folder / SEAL_FILE).stat().st_mtime
    except OSError:
        return None


def _failure(attempt: Path, what: str, error: Exception) -> str:
    if attempt.is_dir():
        return f"{what} failed: {error!r}"
    return f"its records went meanwhile: {error}"
