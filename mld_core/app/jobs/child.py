"""An evaluation in a process of its own: told what to do as JSON, it says what happens in JSON lines.

Started by `mld_core.app.jobs.local`; `mld_core.service.server.jobs.evaluate_child` does the same for a team's
server. It ends when its stdin does, so that nothing goes on working for a server that was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any

from mld_core.evaluation.engine.executor import Reporter, Stage
from mld_core.evaluation.errors import NotFoundError, ResultExistsError
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.results.result import Result
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.parts import DamagedPartError
from mld_core.views.columns.umap import make_umap
from mld_core.views.units import passes_of

TOLD = (
    NotFoundError,
    ResultExistsError,
    DamagedPartError,
    ValueError,
    KeyError,
    TypeError,
    ModuleNotFoundError,
)
"""What an evaluation refuses, in words for who asked."""

# Not for whoever asks to choose: it is this machine.
_OWN_OPTIONS = frozenset({"progress", "threads", "ray_address"})
_LONGEST_END = 10.0


def say(**event: Any) -> None:
    """Tell whoever started this process something."""
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
    """Run the evaluation that `work` describes, and say what its result is called."""
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


def make_map(work: dict[str, Any]) -> None:
    """Make the UMAP that `work` describes, and say of which result."""
    name, place = work["umap"]
    run = RunKey(work["model_name"], work["version_name"])
    result = Result(ResultStore(Store(work["root"]), run), name, diagnoses={})
    units = passes_of(result)[place]
    say(rows=units.rows)
    make_umap(units, LineReporter(3).stage)
    say(done=name)


def words(error: BaseException) -> str:
    """What an error says."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)[:2000]


def main() -> None:
    """Do one evaluation; SIGTERM ends it, and what it had begun to write goes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if hasattr(os, "nice"):
        os.nice(5)  # the pages go first
    work = json.loads(sys.argv[1])
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        make_map(work) if work.get("umap") else evaluate(work)
    except (*TOLD, OSError, MemoryError, ImportError) as error:
        say(failed=type(error).__name__, reason=words(error) or type(error).__name__)


def _end_with_stdin() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LONGEST_END)
    os._exit(3)


if __name__ == "__main__":
    main()
