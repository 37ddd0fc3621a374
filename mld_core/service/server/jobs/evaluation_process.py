"""The worker's end of the process that evaluates: started once, used for many jobs, ended with the worker."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import Any

from mld_core.service.server.children import Child

_USES = 50
_TAIL = 2000


class EvaluationProcess(Child):
    """A process of `evaluate_child`. It takes seconds to start, so it is kept for many jobs."""

    def __init__(self, memory: int) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        engine = {name: os.environ[name] for name in ("MLD_ENGINE",) if name in os.environ}
        super().__init__(
            "mld_core.service.server.jobs.evaluate_child", str(memory), env=engine, errors=self._log
        )
        self._uses = 0

    def start(self) -> None:
        """See `Child`; what the one before wrote to stderr is gone."""
        self._log.seek(0)
        self._log.truncate()
        self._uses = 0
        super().start()

    def begin(self, work: dict[str, Any]) -> None:
        """Hand a job over; its events come from `event`."""
        if not self.running or self._uses >= _USES:
            self.start()
        self._uses += 1
        self.say(work)

    def death(self) -> tuple[str, str]:
        """Why it died, and the end of what it wrote to stderr."""
        code = self.wait()
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - _TAIL))
        text = self._log.read().decode("utf-8", "replace")
        if code < 0:
            name = signal.Signals(-code).name
            hint = ": out of memory?" if name == "SIGKILL" else ""
            return f"the evaluation was ended by {name}{hint}", text
        return f"the evaluation ended unexpectedly (exit code {code}); the worker's log has the trace", text
