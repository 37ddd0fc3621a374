"""A process of ours that takes JSON lines on stdin and answers with JSON lines on stdout.

It reads what strangers sent, or what was made of it: it gets no key, password or address.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mld_core.service.server.settings import SECRET_PREFIXES

Event = dict[str, Any]


class Child:
    """One such process, started when it is needed and again after it died.

    Args:
        module: what it runs.
        arguments: after the module's name.
        env: variables it gets besides those of this process.
        errors: file for what it writes to stderr; None = nowhere.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        errors: IO[bytes] | None = None,
    ) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._env, self._errors = dict(env or {}), errors
        self._process: subprocess.Popen[str] | None = None
        self._events: queue.Queue[Event | None] = queue.Queue()

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, afresh if it ran."""
        self.stop()
        env = {name: value for name, value in os.environ.items() if not name.startswith(SECRET_PREFIXES)}
        # The system's allocator: the others reserve address space in bulk, which the limits count.
        env |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors or subprocess.DEVNULL,
            text=True,
            env=env | self._env,
        )
        self._events = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._events), daemon=True).start()

    def say(self, message: Mapping[str, Any]) -> None:
        """Hand it a line; that it just died is told by `event`."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def event(self, seconds: float) -> Event | None:
        """Its next line; {} if none came in time, None if it died."""
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return {}

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """End it, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
            self._process = None


def _read(process: subprocess.Popen[str], events: queue.Queue[Event | None]) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                events.put(json.loads(line))
    events.put(None)


def limit_memory(more: int) -> None:
    """Let this process, which is such a child, take `more` bytes of address space and then no more."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
