"""Evaluations on this machine, begun from a page: one at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any, cast

from mld_core.app.jobs.protocol import Job, JobState, Wish, rows_asked
from mld_core.app.problems import ProblemError
from mld_core.records.format.layout import Store

MOST_KEPT = 100
MOST_WAITING = 50
_GRACE = 10.0
_TAIL = 2000


@dataclass
class _Work:
    """One evaluation, as it changes; read and written under the lock."""

    job_id: str
    wish: Wish
    state: JobState = "queued"
    stage: str = ""
    progress: float = 0.0
    begun: float | None = None
    ended: float | None = None
    result: str | None = None
    reason: str | None = None
    rows: int | None = None
    cancelled: bool = False
    process: subprocess.Popen[str] | None = None

    @property
    def what(self) -> str:
        return "evaluation" if self.wish.umap is None else "map"

    @property
    def active(self) -> bool:
        return self.state in {"queued", "running"}

    def shown(self) -> Job:
        until = self.ended if self.ended is not None else time.monotonic()
        seconds = None if self.begun is None else until - self.begun
        told = (self.stage, self.progress, seconds, self.result, self.reason, self.rows)
        return Job(self.job_id, self.wish.run, self.state, *told, self.wish.umap)

    def end(self, state: JobState, reason: str | None = None) -> None:
        self.state, self.reason, self.ended, self.process = state, reason, time.monotonic(), None


class LocalJobs:
    """See `Jobs`; what was begun ends with this process.

    Args:
        store: The store whose runs are evaluated.
    """

    maps = True

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._works: dict[str, _Work] = {}
        self._busy = False

    def start(self, wish: Wish) -> Job:
        """See `Jobs`."""
        rows = rows_asked(self._store, wish.run, wish.request()) if wish.umap is None else None
        with self._lock:
            active = [one for one in self._works.values() if one.active]
            work = next((one for one in active if one.wish == wish and not one.cancelled), None)
            if work is None:
                if len(active) >= MOST_WAITING:
                    raise ProblemError(429, f"{len(active)} evaluations wait.", fix="Wait, or cancel some.")
                work = _Work(f"job_{secrets.token_hex(12)}", wish, rows=rows)
                self._works[work.job_id] = work
                self._forget()
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._work, name="evaluations", daemon=True).start()
            return work.shown()

    def _forget(self) -> None:
        ended = [one for one in self._works.values() if not one.active]
        for old in ended[: max(0, len(self._works) - MOST_KEPT)]:
            del self._works[old.job_id]

    def listed(self) -> list[Job]:
        """See `Jobs`."""
        with self._lock:
            return [one.shown() for one in reversed(self._works.values())]

    def find(self, job_id: str) -> Job | None:
        """See `Jobs`."""
        with self._lock:
            work = self._works.get(job_id)
            return None if work is None else work.shown()

    def cancel(self, job_id: str) -> Job | None:
        """See `Jobs`."""
        with self._lock:
            work = self._works.get(job_id)
            if work is None:
                return None
            if work.state == "queued":
                work.end("cancelled")
            elif work.state == "running":
                work.cancelled, work.stage = True, "ending"
                if work.process is not None:
                    _end(work.process)
            return work.shown()

    def _work(self) -> None:
        while True:
            with self._lock:
                work = next((one for one in self._works.values() if one.state == "queued"), None)
                if work is None:
                    self._busy = False
                    return
                work.state, work.begun, work.stage = "running", time.monotonic(), "starting"
            try:
                with tempfile.TemporaryFile() as errors:
                    self._run(work, errors)
            except OSError as error:
                with self._lock:
                    work.end("failed", f"the {work.what} could not be started: {error}")

    def _run(self, work: _Work, errors: IO[bytes]) -> None:
        order = {**vars(work.wish.run), "root": str(self._store.root), "request": work.wish.request()}
        order["umap"] = None if work.wish.umap is None else (work.wish.umap.result, work.wish.umap.place)
        command = [sys.executable, "-m", "mld_core.app.jobs.child", json.dumps(order)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process:  # noqa: S603 - our own module
            with self._lock:
                work.process = process
                if work.cancelled:  # between its turn and its start
                    _end(process)
            assert process.stdout is not None
            told = self._heard(work, process.stdout)
            code = process.wait()
        with self._lock:
            self._ended(work, told, code, errors)

    def _heard(self, work: _Work, lines: Iterable[str]) -> dict[str, Any]:
        """Follow what the process says to its end; its last word."""
        last: dict[str, Any] = {}
        for line in lines:
            try:
                last = cast("dict[str, Any]", json.loads(line))
            except ValueError:  # something else that writes to stdout
                continue
            if "rows" in last:
                work.rows = last["rows"]
            if "stage" in last and not work.cancelled:
                with self._lock:
                    work.stage, work.progress = str(last["stage"]), float(last["progress"])
        return last

    @staticmethod
    def _ended(work: _Work, told: dict[str, Any], code: int, errors: IO[bytes]) -> None:
        if "done" in told:  # also where somebody cancelled it in its last moment: the result is there
            work.result, work.progress, work.stage = str(told["done"]), 1.0, "done"
            work.end("done")
        elif work.cancelled:
            work.end("cancelled")
        elif "failed" in told:
            work.end("failed", str(told["reason"]))
        else:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _TAIL))
            tail = errors.read().decode("utf-8", "replace").strip().splitlines()
            why = tail[-1] if tail else "it was killed, perhaps for want of memory" if code < 0 else "no word"
            work.end("failed", f"the {work.what} ended with code {code}: {why}")


def _end(process: subprocess.Popen[str]) -> None:
    """End it: at once if it can, for certain a little later."""
    process.terminate()
    timer = threading.Timer(_GRACE, process.kill)
    timer.daemon = True
    timer.start()
