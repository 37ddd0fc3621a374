"""Writing a sealed rank anew: other parts take the place of some, old or new at every moment.

New parts are `slim-<seq>` folders, by the write protocol of mld_core.records.write.writer: they count once
`seal.json` lists them, and only then are the old ones removed. Who writes a rank anew holds a lock on its
folder: two at once would each remove what the other lists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mld_core.records.format.manifest import SEAL_FILE, PartInfo, SealManifest, fsync_dir, write_json
from mld_core.records.format.options import WriterOptions

if TYPE_CHECKING:
    from mld_core.records.format.attempts import RankFolder

Anew = Callable[[PartInfo, Iterator[str]], PartInfo | None]
"""A part and free names -> the part itself, one written under the next name, or None: no rows are left."""


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a folder for this process; False if another has it and `wait` is off.

    Where the file system has no locks, nothing is held.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield _take(fd, wait)
    finally:
        os.close(fd)


def _take(fd: int, wait: bool) -> bool:
    try:
        import fcntl  # noqa: PLC0415 - not everywhere

        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def reseal(
    rank: RankFolder,
    anew: Anew,
    changed: Callable[[SealManifest, list[PartInfo]], dict[str, Any]],
    options: WriterOptions,
    step: str,
) -> list[PartInfo]:
    """Write a sealed rank anew; its lock is held by the caller.

    Args:
        rank: the rank.
        anew: makes each of its parts.
        changed: the members of the seal that change with the new parts.
        options: codec, fsync, test hook.
        step: prefix of the steps' names.

    Returns:
        The parts that count now.

    Raises:
        OSError, DamagedPartError: nothing was changed.
    """
    sealed = rank.sealed
    assert sealed is not None
    names = (f"slim-{number:06d}" for number in itertools.count())
    free = (name for name in names if not os.path.lexists(rank.path / name))
    made: list[PartInfo] = []
    try:
        for part in sealed.parts:
            fresh = anew(part, free)
            made += [fresh] if fresh is not None else []
        if options.fsync:
            fsync_dir(rank.path)
        manifest = dataclasses.replace(sealed, parts=made, **changed(sealed, made))
        options.step(f"{step}:manifest")
        write_json(rank.path / SEAL_FILE, dataclasses.asdict(manifest), fsync=options.fsync)
    except BaseException:
        if rank.reread().sealed == sealed:
            for part in made:
                if part not in sealed.parts:
                    shutil.rmtree(rank.path / part.name, ignore_errors=True)
        raise
    options.step(f"{step}:stale")
    listed = {part.name for part in made}
    for part in sealed.parts:
        if part.name not in listed:
            shutil.rmtree(rank.path / part.name, ignore_errors=True)
    return made
