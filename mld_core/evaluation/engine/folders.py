"""Temporary folders that outlive no killed process: the next one that needs such a folder removes them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mld_core.records.write.reseal import locked

_STALE_SECONDS = 60.0
"""A folder of nobody's is removed when it is so old; younger, it may be about to be locked."""


@contextlib.contextmanager
def work_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder for what is done inside, after those of killed processes are removed.

    Args:
        prefix: Of its name, and of those that are looked for.

    Raises:
        OSError: It cannot be made.
    """
    _sweep(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as name, locked(Path(name)):
        yield Path(name)


def _sweep(prefix: str) -> None:
    """Remove what was left: who works in a folder holds its lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime < _STALE_SECONDS:
                continue
            with locked(folder, wait=False) as mine:
                if mine:
                    shutil.rmtree(folder, ignore_errors=True)
