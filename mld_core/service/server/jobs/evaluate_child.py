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
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from mld_core.evaluation.engine.executor import Reporter, Stage
from mld_core.evaluation.errors import NotFoundError, ResultExistsError
from mld_core.evaluation.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.parts import DamagedPartError
from mld_core.records.read.reader import select
from mld_core.service.server.storage.backends import FULL

# Stages the method goes through for one pass; only the progress figure depends on it.
_STAGES = 15
# Not for whoever asks to choose: it is this machine.
_OWN_OPTIONS = frozenset({"progress", "threads"})
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


class ChildEvaluator(Evaluator):
    """The ordinary evaluator with its progress told to the worker."""

    expected = 1

    def _reporter(self, options: Mapping[str, Any]) -> Reporter:
        del options
        return LineReporter(self.expected)


def evaluate(work: dict[str, Any]) -> None:
    """Run the evaluation that `work` describes."""
    store = Store(work["root"])
    run = RunKey(work["model_name"], work["version_name"])
    request = work["request"]
    n_epoch = request.get("n_epoch", "latest")
    evaluator = ChildEvaluator(run.model_name, run.version_name, store=store.root)
    evaluator.expected = _STAGES * len(select(store, run, n_epoch=n_epoch))
    options = {
        name: value for name, value in (request.get("options") or {}).items() if name not in _OWN_OPTIONS
    }
    result = evaluator.request_evaluation(
        request.get("result_name"),
        n_epoch,
        method_name=request.get("method_name") or "default",
        options={**options, "progress": False},
    )
    say(done=result.result_name, folder=result.folder.name)


def main() -> None:
    """Do one job after another and say how each went."""
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


def _read_stdin(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(3)


if __name__ == "__main__":
    main()
