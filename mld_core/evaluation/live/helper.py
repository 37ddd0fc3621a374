"""The training's end of the evaluation beside it: a process of its own, started when a pass is sealed.

The process is told the folder of each sealed rank on its stdin and answers through `figures.json` of the
pass alone. It ends by itself: some time after the last pass, and when the training is over or gone, once the
figures of what was sealed are there. Nothing here waits for it. It may be killed at any moment: another one
is started at the next pass and is told what is left to do. The training loads this module; what evaluates is
loaded in the process alone.
"""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mld_core import companion
from mld_core.companion import Companion
from mld_core.evaluation.live.figures import FIGURES_FILE, METRICS, read_figures
from mld_core.evaluation.live.memory import CAP, refusal

NO_MEMORY: Final = 3
"""Exit status: the process can not get its memory."""

_DEATHS = 3
_PROCESS = "mld_core.evaluation.live.process"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class LiveSettings:
    """What the process is told: the run it cares for, the memory it may have, and when it is idle.

    Attributes:
        store: The store.
        model_name: The run's model name.
        version_name: The run's version name.
        memory: Bytes it may have.
        idle: Seconds without a pass after which it ends.
    """

    store: str
    model_name: str
    version_name: str
    memory: int = CAP
    idle: float = 30.0


class LiveHelper:
    """The evaluation beside one run. No method takes longer than starting a process.

    Args:
        settings: Of which run.
    """

    def __init__(self, settings: LiveSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._process: Companion | None = None
        self._pid = os.getpid()
        self._deaths = 0
        self._off = ""
        self._waiting: dict[Path, None] = {}
        self._new: dict[Path, str] = {}  # attempts, and the state of the row that was told last

    def sealed(self, folder: Path) -> None:
        """A rank's folder is sealed: its pass is evaluated. Never blocks, never raises OSError."""
        self._here()
        with self._lock:
            done = [rank for rank in self._waiting if (rank.parent / FIGURES_FILE).exists()]
            for rank in done:
                del self._waiting[rank]
            self._waiting[folder] = None
            self._new[folder.parent] = ""
            running = self._process is not None and self._process.ended() is None
            if self._alive():
                for rank in [folder] if running else list(self._waiting):
                    self._write(rank)

    def problem(self) -> str:
        """Why nothing is evaluated any more; empty while it is."""
        return self._off

    def finish(self) -> None:
        """No more will come: what is left is evaluated, and the process ends by itself."""
        self._here()
        with self._lock:
            left = [rank for rank in self._waiting if not (rank.parent / FIGURES_FILE).exists()]
            if self._process is not None or left:
                self._end(left)

    def _end(self, left: list[Path]) -> None:
        running = self._process is not None and self._process.ended() is None
        if not running and left and self._alive():
            for rank in left:
                self._write(rank)
        if self._process is not None:
            self._process.leave()
        self._process = None

    def news(self) -> list[dict[str, Any]]:
        """Rows of the `epochs` table that hold more than when this was asked last, in order of sealing."""
        with self._lock:
            known = dict(self._new)
        found = []
        for attempt, state in known.items():
            row = read_figures(attempt)
            if row is None or row["state"] == state:
                continue
            found.append(row)
            with self._lock:
                if row["state"] == METRICS:
                    self._new[attempt] = METRICS
                else:  # nothing will be added to it
                    self._new.pop(attempt, None)
        return sorted(found, key=lambda row: str(row["sealed_at"]))

    def _here(self) -> None:
        """In a forked child: the process is the parent's, and a thread left behind may hold the lock."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
            if self._process is not None:
                self._process.forget()
            self._process = None

    def _alive(self) -> bool:
        """Whether there is a process to talk to; starts one."""
        if self._process is not None:
            status = self._process.ended()
            if status is None:
                return True
            self._process = None
            self._note_end(status)
        if not self._off:
            self._off = companion.refusal() or _no_locks() or refusal(self.settings.memory)
        if self._off:
            return False
        try:
            self._process = self._start()
        except OSError as error:
            self._off = f"no process could be started: {error}"
        return self._process is not None

    def _note_end(self, status: int) -> None:
        if status == 0:
            return
        self._deaths += 1
        if status == NO_MEMORY:
            self._off = f"the process can not get its {self.settings.memory / 1e6:.0f} MB of memory"
        elif self._deaths >= _DEATHS:
            self._off = f"the process ended {self._deaths} times before its time (status {status})"

    def _start(self) -> Companion:
        frugal = dict.fromkeys(_THREADS, "1")
        frugal |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
        return Companion(_PROCESS, asdict(self.settings), self.settings.store, frugal)

    def _write(self, rank: Path) -> None:
        assert self._process is not None
        self._process.tell(str(rank))  # what it was not told is told to the next one


def _no_locks() -> str:
    try:
        import fcntl  # noqa: F401 - not everywhere
    except ImportError:
        return "folders have no locks here, by which trainings on one store take turns"
    return ""
