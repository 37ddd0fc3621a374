"""A process beside a training: started, told one JSON line after another, never waited for.

It is told on its stdin: its settings, then messages. Lines are written without blocking, so that no training
thread is held by it; one that did not fit was not told at all. At the end of stdin it ends by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.spawn import get_executable
from pathlib import Path
from typing import Any, Final

_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; sys.exit(main())"
)
_LONGEST_LINE: Final = 4000  # below PIPE_BUF: a line is written whole or not at all
_TRIES: Final = 20
_INSIDE: Final = "MLD_COMPANION"


def refusal() -> str:
    """Why no process can be started beside a training here; empty where one can.

    Where the interpreter lives inside another program, `sys.executable` may be that program: to start it
    would be to train again, and so on. `multiprocessing.set_executable` names the interpreter there.
    """
    if getattr(sys, "frozen", False):
        return "this is a frozen program, which has no Python interpreter that could be started"
    if os.environ.get(_INSIDE):
        return "this program was itself started in the place of a process beside a training"
    name = Path(_interpreter()).name
    if "py" not in name.lower():
        return (
            f"{name or 'nothing'} is known as the Python interpreter to start; "
            "multiprocessing.set_executable() names another"
        )
    if not hasattr(os, "set_blocking"):
        return "pipes that never block are not to be had here"
    return ""


def _interpreter() -> str:
    return os.fsdecode(get_executable() or "")


def stand_back(nice: int) -> None:
    """Leave the processor to the training; called in such a process, with the niceness to add to its own.

    It has a session of its own, and where Linux shares the processor among sessions first (`autogroup`), it
    would get half of what they compete for, however nice it is within its own.
    """
    with contextlib.suppress(AttributeError, OSError):
        nice = os.nice(nice)
    for _ in range(_TRIES):
        if _session_stands_back(nice):
            return
        time.sleep(0.1)


def _session_stands_back(nice: int) -> bool:
    """False: so many were told in this second that this one has to wait."""
    try:
        Path("/proc/self/autogroup").write_text(str(nice), encoding="ascii")
    except BlockingIOError:
        return False
    except OSError:  # sessions are all one here
        pass
    return True


class Companion:
    """One such process.

    Args:
        module: Whose `main()` it runs; loaded there, not here.
        settings: Its first line.
        folder: The folder it works in.
        environment: Variables that it has beside those of the training.

    Raises:
        OSError: It could not be started.
    """

    def __init__(
        self, module: str, settings: Mapping[str, Any], folder: str, environment: Mapping[str, str]
    ) -> None:
        # The training's own search path, whatever made it: the process must find this very package.
        path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - "" is the current folder
        self.process = subprocess.Popen(  # noqa: S603 - our own module
            [_interpreter(), "-c", _BOOT.format(module=module), json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=folder,
            env={**os.environ, **environment, _INSIDE: "1"},
            start_new_session=True,  # a Ctrl-C ends the training, not what is still to be done for it
        )
        assert self.process.stdin is not None
        self._stdin = self.process.stdin
        self._stdin.write(json.dumps(dict(settings)).encode() + b"\n")
        os.set_blocking(self._stdin.fileno(), False)
        self.listens = True
        """Whether it can be told more: it has closed its end where not, if it still runs."""

    def ended(self) -> int | None:
        """Its exit status; None while it runs."""
        _reap()
        return self.process.poll()

    def tell(self, message: Any) -> bool:
        """Tell it something (JSON); False where it was not told: too long a line, a full pipe, it died."""
        line = json.dumps(message).encode() + b"\n"
        if len(line) > _LONGEST_LINE:
            return False
        try:
            return self._stdin.write(line) is not None
        except OSError:
            self.listens = False
            return False

    def leave(self) -> None:
        """No more will come; it ends by itself."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        self.forget()

    def forget(self) -> None:
        """It is another process's (after a fork): neither told nor ended from here."""
        _reap()
        _left.append(self)


_left: list[Companion] = []
"""Processes that end by themselves; kept, or their objects would warn that they still run."""


def _reap() -> None:
    """Those that ended are asked for their status, or they would stay in the system's table."""
    for one in [*_left]:
        if one.process.poll() is not None:
            with contextlib.suppress(ValueError):  # another thread was here first
                _left.remove(one)
