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
from collections.abc import Mapping
from typing import Any, Final

_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; sys.exit(main())"
)
_LONGEST_LINE: Final = 4000  # below PIPE_BUF: a line is written whole or not at all


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
            [sys.executable, "-c", _BOOT.format(module=module), json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,  # a Ctrl-C ends the training, not what is still to be done for it
        )
        assert self.process.stdin is not None
        self._stdin = self.process.stdin
        self._stdin.write(json.dumps(dict(settings)).encode() + b"\n")
        os.set_blocking(self._stdin.fileno(), False)

    def ended(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.process.poll()

    def tell(self, message: Any) -> bool:
        """Tell it something (JSON); False where it was not told: too long a line, a full pipe, it died."""
        line = json.dumps(message).encode() + b"\n"
        if len(line) > _LONGEST_LINE:
            return False
        with contextlib.suppress(OSError):
            return self._stdin.write(line) is not None
        return False

    def leave(self) -> None:
        """No more will come; it ends by itself."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        self.forget()

    def forget(self) -> None:
        """It is another process's (after a fork): neither told nor ended from here."""
        _left.append(self)


_left: list[Companion] = []
"""Processes that end by themselves; kept, or their objects would warn that they still run."""
