"""The worker's end of the process that evaluates: started once, used for many jobs, ended with the worker."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

from mld_core.service.server.settings import SECRET_PREFIXES

_USES = 50
_TAIL = 2000

Event = dict[str, Any]


class EvaluationProcess:
    """A process of `evaluate_child`. It takes seconds to start, so it is kept for many jobs."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None
        self._events: queue.Queue[Event | None] = queue.Queue()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        self._uses = 0

    def warm_up(self) -> None:
        """Start it before there is work."""
        if self._child is None:
            self._start()

    def begin(self, work: dict[str, Any]) -> None:
        """Hand a job over; its events come from `event`."""
        if self._child is None or self._child.poll() is not None or self._uses >= _USES:
            self._start()
        self._uses += 1
        assert self._child is not None
        assert self._child.stdin is not None
        with contextlib.suppress(OSError):  # it died just now: `event` tells
            self._child.stdin.write(json.dumps(work) + "\n")
            self._child.stdin.flush()

    def event(self, seconds: float) -> Event | None:
        """The next event; {} if none came in time, None if the process died."""
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return {}

    def death(self) -> tuple[str, str]:
        """Why it died, and the end of what it wrote to stderr."""
        assert self._child is not None
        code = self._child.wait()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - _TAIL))
        text = self._errors.read().decode("utf-8", "replace")
        if code < 0:
            name = signal.Signals(-code).name
            hint = ": out of memory?" if name == "SIGKILL" else ""
            return f"the evaluation was ended by {name}{hint}", text
        return f"the evaluation ended unexpectedly (exit code {code}); the worker's log has the trace", text

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            if self._child.stdin is not None:
                with contextlib.suppress(OSError):
                    self._child.stdin.close()
            self._child = None

    def _start(self) -> None:
        self.stop()
        self._errors.seek(0)
        self._errors.truncate()
        self._uses = 0
        # It reads one folder and writes one folder: it needs no key, password or address.
        env = {name: value for name, value in os.environ.items() if not name.startswith(SECRET_PREFIXES)}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "mld_core.service.server.jobs.evaluate_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=env,
        )
        self._events = queue.Queue()
        threading.Thread(target=_read, args=(self._child, self._events), daemon=True).start()


def _read(child: subprocess.Popen[str], events: queue.Queue[Event | None]) -> None:
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                events.put(json.loads(line))
    events.put(None)
