"""Whether a run is being trained now, has ended, or died in the middle of a pass."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, NamedTuple

from mld_core.records.format.attempts import Attempt, list_attempts
from mld_core.records.format.layout import PassKey, RunKey, Store, subfolders
from mld_core.records.format.manifest import AttemptManifest

ALIVE_SECONDS = 600.0
"""What was written to within them is being trained, as far as its process cannot be asked."""

StateName = Literal["training", "between", "died", "ended", "none"]
"""`between`: no pass is open, and the process that recorded the last one goes on."""


class State(NamedTuple):
    """How a training stands, and in words."""

    name: StateName
    text: str


def state_of(store: Store, run: RunKey, keys: Iterable[PassKey]) -> State:
    """How the training of a run stands.

    The passes of the launch made last are looked at: one that is open belongs to a process that runs, or that
    died. Of a process of another machine only what it wrote is known.

    Args:
        store: The store.
        run: The run.
        keys: Its passes.
    """
    last = _last_launch(store, run, keys)
    if not last:
        return State("none", "nothing is recorded yet")
    opened = [one for one in last if not one.sealed]
    if opened:
        newest = max(opened, key=lambda one: one.opened.started_at)
        if _runs(newest) or (_runs(newest) is None and _written_lately(newest.path)):
            return State("training", f"training now: {_named(newest)}")
        return State("died", f"died in {_named(newest)}, which was not sealed")
    newest = max(last, key=lambda one: one.sealed_at or "")
    if _sealed_lately(newest) and _runs(newest):
        return State("between", f"{_named(newest)} is sealed, its process goes on")
    return State("ended", f"ended after {_named(newest)}")


def _named(attempt: Attempt) -> str:
    epoch = attempt.key.n_epoch
    return f"{attempt.key.dataset_type}, epoch {epoch}" if epoch is not None else attempt.key.dataset_type


def _last_launch(store: Store, run: RunKey, keys: Iterable[PassKey]) -> list[Attempt]:
    """Of each split the last pass of the launch that began last: attempts bear the names of launches."""
    named: dict[str, tuple[str, PassKey]] = {}
    for key in keys:  # in the order of epochs
        names = [path.name for path in subfolders(store.pass_dir(run, key))]
        if names and names[-1] >= named.get(key.dataset_type, ("",))[0]:
            named[key.dataset_type] = (names[-1], key)
    newest = max((name for name, _ in named.values()), default="")
    found = [one for name, key in named.values() if name == newest for one in list_attempts(store, run, key)]
    return [one for one in found if one.name == newest and one.generation >= store.generation(run)]


def _runs(attempt: Attempt) -> bool | None:
    """Whether a process of an attempt runs; None where all it can be asked of are on other machines."""
    said = [process_runs(rank.opened) for rank in attempt.ranks]
    if any(said):
        return True
    return None if None in said else False


def process_runs(opened: AttemptManifest) -> bool | None:
    """Whether the process that opened a pass runs; None = it is another machine's."""
    if opened.host != socket.gethostname() or opened.pid <= 0:
        return None
    try:
        os.kill(opened.pid, 0)
        told = Path(f"/proc/{opened.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, or a system without /proc
        return True
    return told.rpartition(")")[2].split()[0] not in {"Z", "X"}  # ended, and nobody asked for its status yet


def _written_lately(folder: Path) -> bool:
    try:
        touched = max((path.stat().st_mtime for path in [folder, *folder.iterdir()]), default=0.0)
    except OSError:
        return False
    return time.time() - touched < ALIVE_SECONDS


def _sealed_lately(attempt: Attempt) -> bool:
    sealed = datetime.fromisoformat(attempt.sealed_at or "1970-01-01T00:00:00+00:00")
    return (datetime.now(timezone.utc) - sealed).total_seconds() < ALIVE_SECONDS
