"""Removing what no reader looks at: temporary folders, replaced parts, old generations, superseded attempts.

Nothing that may belong to a running process goes: what was touched within `min_age_s`, and unsealed attempts
whose process still runs on this machine, stay. A folder is renamed to a `.tmp` name before it is deleted, so
that no reader meets half of it.
"""

import contextlib
import itertools
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mld_core.records.format.attempts import Attempt, RankFolder, chain, choose, list_attempts, list_passes
from mld_core.records.format.layout import RESULTS_DIR, RunKey, Store
from mld_core.records.format.manifest import TMP_PREFIX, tmp_name

Kind = Literal["tmp", "stale part", "old generation", "superseded attempt"]
_PART = re.compile(r"(part|merged|slim)-\d+")


@dataclass(frozen=True)
class GcItem:
    """One thing to remove: path, kind, size in bytes."""

    path: Path
    kind: Kind
    bytes: int


@dataclass
class GcReport:
    """What was removed, or would be."""

    items: list[GcItem] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    dry_run: bool = False

    @property
    def bytes(self) -> int:
        """Bytes freed, or that would be."""
        return sum(item.bytes for item in self.items)


def folder_bytes(path: Path) -> int:
    """Size in bytes of a file or of all files below a folder, hard-linked ones once."""
    files = [found for found in _entries(path) if not stat.S_ISDIR(found.st_mode)]
    once = {(f.st_dev, f.st_ino) if f.st_nlink > 1 else k: f.st_size for k, f in enumerate(files)}
    return sum(once.values())


def _entries(path: Path) -> Iterator[os.stat_result]:
    """A path and all that is below it, as far as it can be looked at."""
    below = (Path(folder, name) for folder, dirs, files in os.walk(path) for name in (*dirs, *files))
    for one in itertools.chain([path], () if path.is_symlink() else below):
        with contextlib.suppress(OSError):
            yield one.lstat()


def _touched(path: Path) -> float:
    """Time of the latest change of a path or anything below it."""
    return max((found.st_mtime for found in _entries(path)), default=0.0)


def is_running(rank: RankFolder) -> bool:
    """Whether the process that records a rank, which has not sealed, runs on this machine."""
    if rank.sealed is not None or rank.opened.host != socket.gethostname() or rank.opened.pid <= 0:
        return False
    try:
        os.kill(rank.opened.pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _tmp_paths(folder: Path, depth: int = 7) -> Iterator[Path]:
    """Our temporary files and folders below a run, down to the rank folders."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError:
        return
    for name, is_dir in sorted(found):
        if name.startswith(f"{TMP_PREFIX}-"):
            yield folder / name
        elif is_dir and depth > 1 and (name == RESULTS_DIR or not name.startswith(".")):
            yield from _tmp_paths(folder / name, depth - 1)


def _attempt_items(store: Store, run: RunKey, min_age_s: float) -> Iterator[tuple[Path, Kind]]:
    generation = store.generation(run)
    limit = time.time() - min_age_s
    for key in list_passes(store, run):
        attempts = list_attempts(store, run, key)
        chosen = choose(attempts, generation)
        needed = {attempt.name for attempt, _ in chain(chosen, attempts, generation)} if chosen else set()
        for attempt in attempts:
            kind = _useless(attempt, generation, chosen, needed)
            if (
                kind is not None
                and _touched(attempt.path) <= limit
                and not any(map(is_running, attempt.ranks))
            ):
                yield attempt.path, kind
            elif kind is None:
                yield from ((path, "stale part") for path in _stale_parts(attempt) if _touched(path) <= limit)


def _useless(attempt: Attempt, generation: int, chosen: Attempt | None, needed: set[str]) -> Kind | None:
    if attempt.generation < generation:
        return "old generation"
    superseded = (
        chosen is not None and chosen.sealed and attempt.name not in needed and attempt.name < chosen.name
    )
    return "superseded attempt" if superseded else None


def _stale_parts(attempt: Attempt) -> Iterator[Path]:
    for rank in attempt.ranks:
        if rank.sealed is None:
            continue
        listed = {part.name for part in rank.sealed.parts}
        for path in sorted(rank.path.iterdir()):
            if _PART.fullmatch(path.name) and path.name not in listed:
                yield path


def gc(
    store: Store, run: RunKey | None = None, *, dry_run: bool = False, min_age_s: float = 3600.0
) -> GcReport:
    """Remove what no reader looks at.

    Args:
        store: the store.
        run: only this run; None = all.
        dry_run: only say what would go.
        min_age_s: what was changed within so many seconds stays.

    Returns:
        What went, with sizes; what could not be removed stands in `failed`.
    """
    report = GcReport(dry_run=dry_run)
    limit = time.time() - min_age_s
    for key in [run] if run is not None else store.runs():
        found: list[tuple[Path, Kind]] = [
            (path, "tmp") for path in _tmp_paths(store.run_dir(key)) if _touched(path) <= limit
        ]
        found += _attempt_items(store, key, min_age_s)
        gone: list[Path] = []
        for path, kind in sorted(found, key=lambda pair: len(pair[0].parts)):
            if any(parent in path.parents for parent in gone):
                continue
            gone.append(path)
            item = GcItem(path, kind, folder_bytes(path))
            try:
                if not dry_run:
                    remove(path)
                report.items.append(item)
            except OSError as error:
                report.failed.append(f"{path}: {error.strerror or error}")
    return report


def remove(path: Path) -> None:
    """Delete a file or folder so that no reader meets half of it.

    Raises:
        OSError: it could not be removed, or not wholly.
    """
    if path.is_dir() and not path.is_symlink():
        hidden = path
        if not path.name.startswith(TMP_PREFIX):
            hidden = path.parent / tmp_name("gc")
            path.rename(hidden)
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)
