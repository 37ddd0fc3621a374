"""Evaluations in a process of their own.

What to do comes as JSON on stdin, what happens goes out as JSON lines. Started by
`mld_core.service.server.jobs.worker`. Ends at once when stdin is closed, so that nothing goes on working for
a worker that was killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from queue import SimpleQueue
from typing import Any

from mld_core.evaluation.engine.executor import Reporter, Stage
from mld_core.evaluation.errors import NotFoundError, ResultExistsError
from mld_core.evaluation.evaluator import Evaluator
from mld_core.records.format.parts import DamagedPartError
from mld_core.service.server.children import limit_memory
from mld_core.service.server.storage.backends import FULL

# Not for whoever asks to choose: it is this machine.
_OWN_OPTIONS = frozenset({"progress", "threads"})
_TOO_MUCH = "it takes more memory than an evaluation may (MLD_SERVER_JOB_MEMORY_MB of the server)"
_TOLD = (NotFoundError, ResultExistsError, DamagedPartError, ValueError, KeyError, TypeError)


def say(**event: Any) -> None:
    """Tell the worker something."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class LineReporter(Reporter):
    """Tells each stage that begins."""

    def __init__(self, expected: int) -> None:
        super().__init__(enabled=False)
        self._expected = expected
        self._begun = 0

    def stage(self, name: str, total: int | None = None) -> Stage:
        """See `Reporter`."""
        say(stage=name, progress=min(0.99, self._begun / max(1, self._expected)))
        self._begun += 1
        return super().stage(name, total)


def evaluate(work: dict[str, Any]) -> None:
    """Run the evaluation that `work` describes."""
    request = work["request"]
    evaluator = Evaluator(work["model_name"], work["version_name"], store=work["root"], reporter=LineReporter)
    options = {
        name: value for name, value in (request.get("options") or {}).items() if name not in _OWN_OPTIONS
    }
    result = evaluator.request_evaluation(
        request.get("result_name"),
        request.get("n_epoch", "latest"),
        method_name=request.get("method_name") or "default",
        options={**options, "progress": False},
    )
    say(done=result.result_name, folder=result.folder.name)


def main() -> None:
    """Do one job after another and say how each went."""
    limit_memory(int(sys.argv[1]))
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_stdin, args=(lines,), daemon=True).start()
    while True:
        work = json.loads(lines.get())
        try:
            evaluate(work)
        except _TOLD as error:
            # The scratch folder means nothing to whoever asked.
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            reason = str(text).replace(str(work["root"]), "the store")[:2000]
            say(failed=type(error).__name__, reason=reason)
        except OSError as error:
            if error.errno not in FULL:
                raise
            say(full=error.errno)
        except Exception as error:
            if not isinstance(error, MemoryError) and "OutOfMemory" not in type(error).__name__:
                raise
            say(failed="MemoryError", reason=_TOO_MUCH)


def _read_stdin(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(3)


if __name__ == "__main__":
    main()
