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
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from mld_core import companion
from mld_core.companion import Companion
from mld_core.evaluation.live.figures import METRICS, read_figures
from mld_core.evaluation.live.memory import CAP, refusal

NO_MEMORY: Final = 3
"""Exit status: the process can not get its memory."""

RANKS_SECONDS: Final = 600.0
"""How long the other ranks of a pass are waited for; what has no metrics then gets none."""

_DEATHS = 3
_MOST_NEWS = 1000
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


@dataclass
class _Sealed:
    """A pass that was sealed: when, whether the process knows, and the state of its row told last."""

    since: float
    told: bool = False
    state: str = ""


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
        self._left: dict[Path, _Sealed] = {}  # rank folders of passes to whose rows more will be added
        self._new: dict[Path, _Sealed] = {}  # attempts of which `news` has more to tell

    def sealed(self, folder: Path) -> None:
        """A rank's folder is sealed: its pass is evaluated. Never blocks, never raises OSError."""
        self._here()
        with self._lock:
            self._drop_done()
            self._left[folder] = self._new[folder.parent] = _Sealed(time.monotonic())
            while len(self._new) > _MOST_NEWS:  # nobody asks
                del self._new[next(iter(self._new))]
            self._tell()

    def _drop_done(self) -> None:
        late = time.monotonic() - RANKS_SECONDS
        for rank, one in [*self._left.items()]:
            row = read_figures(rank.parent)
            if one.since < late if row is None else row["state"] != METRICS:
                del self._left[rank]

    def _tell(self) -> None:
        """Tell the process what it was not told; another one, where it has stopped to listen by then."""
        for _ in range(2):
            process = self._alive()
            if process is None:
                return
            for rank, one in self._left.items():
                one.told = one.told or process.tell(str(rank))
            if process.listens:
                return

    def problem(self) -> str:
        """Why nothing is evaluated any more; empty while it is."""
        return self._off

    def finish(self) -> None:
        """No more will come: what is left is evaluated, and the process ends by itself."""
        self._here()
        with self._lock:
            self._drop_done()
            for one in self._left.values():
                one.told = False  # it may have been told when it no longer listened; it takes nothing twice
            if self._left:
                self._tell()
            self._left = {}
            if self._process is not None:
                self._process.leave()
            self._process = None

    def news(self) -> list[dict[str, Any]]:
        """Rows of the `epochs` table that hold more than when this was asked last, in order of sealing."""
        self._here()
        with self._lock:
            known = dict(self._new)
        late = time.monotonic() - RANKS_SECONDS
        found = []
        for attempt, one in known.items():
            row = read_figures(attempt)
            if row is not None and row["state"] != one.state:
                found.append(row)
                one.state = row["state"]
            if one.since < late if row is None else row["state"] != METRICS:  # nothing will be added to it
                with self._lock:
                    self._new.pop(attempt, None)
        return sorted(found, key=lambda row: str(row["sealed_at"]))

    def _here(self) -> None:
        """In a forked child: the process is the parent's, and a thread left behind may hold the lock."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
            if self._process is not None:
                self._process.forget()
            self._process, self._left, self._new = None, {}, {}

    def _alive(self) -> Companion | None:
        """A process to talk to, started where there is none; None: it can not be."""
        if self._process is not None:
            status = self._process.ended()
            if status is None and self._process.listens:
                return self._process
            if status is None:
                self._process.leave()  # it is about to end: nothing came for a while
            else:
                self._note_end(status)
            self._process = None
        if not self._off:
            self._off = companion.refusal() or _no_locks() or refusal(self.settings.memory)
        if self._off:
            return None
        for one in self._left.values():
            one.told = False
        try:
            self._process = self._start()
        except OSError as error:
            self._off = f"no process could be started: {error}"
        return self._process

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


def _no_locks() -> str:
    try:
        import fcntl  # noqa: F401 - not everywhere
    except ImportError:
        return "folders have no locks here, by which trainings on one store take turns"
    return ""
