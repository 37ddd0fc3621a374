"""Where a data set lies on this machine: what ids that are paths are relative to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_STATED = ("data_root", "root_path", "root")  # MMEngine, OpenPCDet, torchvision
_INNER = 8
_FILES = ("im_files",)  # Ultralytics


def data_root(dataset: Any) -> str | None:
    """The folder that a data set, or what it wraps, states or keeps all its files in; None: not known.

    >>> from types import SimpleNamespace
    >>> data_root(SimpleNamespace(dataset=SimpleNamespace(data_root="/data/kitti/")))
    '/data/kitti'
    >>> data_root(SimpleNamespace(im_files=["/d/a/1.jpg", "/d/b/1.jpg"], data={}))
    '/d'
    """
    for _ in range(_INNER):
        parts = getattr(dataset, "datasets", None)
        if isinstance(parts, (list, tuple)) and parts:
            roots = [data_root(part) for part in parts]
            known = [root for root in roots if root is not None]
            return _common(known) if len(known) == len(roots) else None
        found = _stated(dataset)
        if found is not None:
            return found
        dataset = getattr(dataset, "dataset", None)
        if dataset is None:
            return None
    return None


def _stated(dataset: Any) -> str | None:
    data = getattr(dataset, "data", None)  # Ultralytics: what the data set's YAML says
    named = [data.get("path")] if isinstance(data, Mapping) else []
    named += [getattr(dataset, name, None) for name in _STATED]
    for one in named:
        if isinstance(one, (str, os.PathLike)) and os.fspath(one):
            return str(Path(one).absolute())  # links stay: paths of the files have them, too
    for name in _FILES:
        files = getattr(dataset, name, None)
        if isinstance(files, (list, tuple)) and files and all(isinstance(one, str) for one in files):
            return _common([str(Path(one).absolute().parent) for one in files])
    return None


def _common(folders: Sequence[str]) -> str | None:
    """The folder that holds all of them; None where that is the root of the file system."""
    try:
        found = os.path.commonpath(folders)
    except ValueError:  # on several drives
        return None
    return None if Path(found).parent == Path(found) else found


def portable(ids: Sequence[str], root: str | None) -> tuple[list[str], list[str | None] | None]:
    """Ids that are paths below `root` relative to it, and the paths as they were.

    Returns:
        The ids, and (None where no id is one) the path of each.

    >>> portable(["/data/kitti/velodyne/3.bin", "7"], "/data/kitti")
    (['velodyne/3.bin', '7'], ['/data/kitti/velodyne/3.bin', None])
    """
    if root is None:
        return list(ids), None
    # A path below the working directory may be written as it was given.
    every = (root, os.path.realpath(root), os.path.relpath(root))
    starts = {start.rstrip(os.sep) + os.sep for start in every}
    made: list[str] = []
    paths: list[str | None] = []
    for one in ids:
        start = max((s for s in starts if one.startswith(s)), key=len, default=None)
        made.append(one if start is None else one[len(start) :].replace(os.sep, "/"))
        paths.append(None if start is None else str(Path(one).absolute()))
    return made, paths if any(path is not None for path in paths) else None
