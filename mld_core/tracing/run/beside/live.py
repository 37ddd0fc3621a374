"""The seam to the evaluation beside a training: what is sealed is handed to one put here from outside.

This room never imports the evaluation. `ml_debugger` provides it (`provide_evaluation`) when a tracer or
wrapper is imported. It runs in a process of its own on rank 0; nothing here waits for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Protocol

from mld_core.records.format.layout import RunKey, Store
from mld_core.tracing.guard import Guard
from mld_core.tracing.run.beside import evaluations
from mld_core.tracing.run.beside.uploads import sealed_folder
from mld_core.tracing.run.options import RecorderOptions

_ASK_SECONDS: Final = 1.0
_WHAT: Final = "evaluating beside the training"
_LOST: Final = "nothing; `mld evaluate` does it afterwards"


class LiveEvaluation(Protocol):
    """Evaluates sealed passes, beside the training. Nothing of it may block or raise."""

    def sealed(self, folder: Path) -> None:
        """A rank's folder is sealed."""
        ...

    def problem(self) -> str:
        """Why nothing is evaluated any more, empty while it is."""
        ...

    def news(self) -> list[dict[str, Any]]:
        """Rows of the `epochs` table that hold more than when this was asked last."""
        ...

    def finish(self) -> None:
        """No more will come."""
        ...


class RunLive:
    """The evaluation beside one started run.

    Args:
        store: Where the records are.
        run: The run.
        guard: Tells problems.
    """

    def __init__(self, store: Store, run: RunKey, guard: Guard) -> None:
        self._store, self._run, self._guard = store, run, guard
        self._beside: LiveEvaluation = evaluations[0](store.root, run)
        self._asked = 0.0

    def sealed(self, ticket: Future[Any]) -> None:
        """A pass is sealed, or will not be; called on the writer's thread."""
        with self._guard.catch(_WHAT, lost=_LOST):
            folder = sealed_folder(self._store, self._run, ticket)
            if folder is not None and not self._told_off():
                self._beside.sealed(folder)
                self._told_off()

    def _told_off(self) -> bool:
        problem = self._beside.problem()
        if problem:
            self._guard.tell_once(
                "live",
                f"Passes are no longer evaluated while the training goes on: {problem}. Records are not "
                "affected; `mld evaluate` evaluates them afterwards. live=False switches this off.",
            )
        return bool(problem)

    def news(self, *, at_once: bool = False) -> list[dict[str, float]]:
        """What is newly known, as `scalars_of`; looked for once a second at most, or `at_once`."""
        now = time.monotonic()
        if now - self._asked < _ASK_SECONDS and not at_once:
            return []
        self._asked = now
        return [scalars_of(row) for row in self._beside.news()]

    def finish(self) -> None:
        """The run is over: what is left is evaluated in the background."""
        with self._guard.catch(_WHAT, lost=_LOST):
            self._beside.finish()


def scalars_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a row as loggers take them, `mld/<split>/<name>`, and `mld/epoch`, whose they are.

    Example:
        >>> metrics = {"accuracy": 0.9, "auroc": None}
        >>> row = {"dataset": "val", "n_epoch": 3, "metrics": metrics, "analysis": None}
        >>> scalars_of(row)
        {'mld/epoch': 3.0, 'mld/val/accuracy': 0.9}
    """
    analysis = row["analysis"] or {}
    found = {**row["metrics"], **analysis.get("metrics", {})}
    found |= {
        name: value for name, value in analysis.get("categories", {}).items() if name.endswith("_ratio")
    }
    found["wrong_labels"] = analysis.get("wrong_labels")
    epoch = {} if row["n_epoch"] is None else {"mld/epoch": float(row["n_epoch"])}
    numbers = {name: value for name, value in found.items() if type(value) in {int, float}}
    return epoch | {f"mld/{row['dataset']}/{name}": float(value) for name, value in numbers.items()}


def live_for(
    options: RecorderOptions, guard: Guard, store: Store, run: RunKey, *, rank: int
) -> RunLive | None:
    """The evaluation beside a run: on rank 0, where it is not switched off and there is one."""
    if rank != 0 or not evaluations or not options.live or os.environ.get("MLD_LIVE", "") == "0":
        return None
    return RunLive(store, run, guard)
