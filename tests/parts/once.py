"""What is dear to make is made once in a test run: the first worker that asks makes it, the others wait for it."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import tempfile
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path

_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex


@functools.cache
def _root() -> Path:
    """The folder of this test run; those of the runs before are removed."""
    root = Path(tempfile.gettempdir(), f"mld-once-{os.getuid()}")
    root.mkdir(exist_ok=True, mode=0o700)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        own = root / _RUN
        own.mkdir(exist_ok=True)
        newest = sorted((one for one in root.iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime)
        for old in newest[:-8]:  # others may be under way
            shutil.rmtree(old, ignore_errors=True)
    return own


def made(name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make(folder)` filled, for reading; what it raised, it raises for each who asks.

    Args:
        name: Of the folder, the same in every worker.
        make: Called in one worker with an empty folder.
    """
    folder = _root() / name
    done, failed = Path(f"{folder}.done"), Path(f"{folder}.failed")
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() and not failed.exists():
            folder.mkdir()
            try:
                make(folder)
            except Exception:
                failed.write_text(traceback.format_exc())
                raise
            done.touch()
    assert not failed.exists(), failed.read_text()
    return folder


def copied(name: str, make: Callable[[Path], object], target: Path) -> Path:
    """`target` with a copy of what `make(folder)` filled, for tests that write to it."""
    return Path(shutil.copytree(made(name, make), target, dirs_exist_ok=True))
