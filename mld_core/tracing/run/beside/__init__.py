"""What runs beside a training in processes of its own, put here from outside: this room imports none of it.

`uploads` hands sealed passes to a team's service, `live` to an evaluation. Open `live` first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mld_core.records.format.layout import RunKey

evaluations: list[Callable[[Path, RunKey], Any]] = []
"""Makes a `live.LiveEvaluation` of a run in a store; none where `mld_core` is used alone."""


def provide_evaluation(factory: Callable[[Path, RunKey], Any]) -> None:
    """Use this factory for every run that is started from now on. Does not load what uses it."""
    evaluations[:] = [factory]
