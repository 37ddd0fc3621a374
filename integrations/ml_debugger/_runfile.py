"""`mld_run.json` beside a framework's checkpoints: what a resumed training needs to find its run again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mld_core.tracing.run.recorder import Recorder


__all__ = ["RUN_FILE", "read_run_file", "state_at", "write_run_file"]

RUN_FILE = "mld_run.json"


def read_run_file(folder: str | Path) -> dict[str, Any]:
    """What the file in `folder` holds, {} where there is none."""
    path = Path(folder) / RUN_FILE
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def state_at(saved: Mapping[str, dict[str, Any]], step: int) -> dict[str, Any]:
    """The state of a checkpoint; of the one before it, where a kill came before its own was written.

    >>> state_at({"0": {"a": 1}, "4": {"a": 2}}, 6)
    {'a': 2}
    """
    earlier = [int(key) for key in saved if int(key) <= step]
    return saved[str(max(earlier))] if earlier else {}


def write_run_file(recorder: Recorder, folder: str | Path, state: dict[str, Any]) -> None:
    """Writes the file whole or not at all; a failure is told."""
    with recorder.guard.catch(f"writing {RUN_FILE}", lost="a resumed training gets a new version"):
        path = Path(folder) / RUN_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{RUN_FILE}.{os.getpid()}")
        temporary.write_text(json.dumps(state, indent=1))
        temporary.replace(path)
