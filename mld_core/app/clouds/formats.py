"""Point clouds in files: raw float32 (KITTI, nuScenes), NumPy arrays, PCD; what is none of them is refused.

A raw file does not say how many columns it has, and a size that fits several says nothing. What the columns
hold does (an intensity between 0 and 1 is the fourth of KITTI's, the number of a laser the fifth of
nuScenes'), and so do the sizes of the files beside it. Where neither tells, the reader is asked.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 200_000_000
SUFFIXES = (".bin", ".npy", ".pcd")
CANDIDATES = (3, 4, 5, 6)
"""Columns that a raw file may have where nobody said how many."""

LOOKED_AT = 200
"""Files beside a raw one whose sizes are looked at."""

LEAST_ROWS = 50
"""Points from which on a column's values tell what it is."""

FAR = 20_000.0
"""Metres beyond which no sensor sees: numbers like these are no coordinates."""

Points = NDArray[np.float32]
_PCD_KINDS = {"F": "f", "I": "i", "U": "u"}


class CloudError(ValueError):
    """A file that is no point cloud, or may be one of several; the message says which and what to do."""


def unreadable(path: Path | None, error: OSError) -> CloudError:
    """What is said of a file that the system does not give."""
    return CloudError(f"{path.name if path else 'points'}: it cannot be read ({error.strerror})")


def read_points(path: Path, columns: int | None = None) -> Points:
    """(N, 3) x, y, z in metres, as the file has them; points that are not finite are left out.

    Args:
        path: The file.
        columns: Columns of a raw one; None = what its values and the files beside it tell.

    Raises:
        CloudError: It is no cloud, or too large, or its columns are not known.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise CloudError(f"{path.name}: expected a file ending in {', '.join(SUFFIXES)}")
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise CloudError(f"{path.name}: {size:,} bytes; at most {MOST_BYTES:,} are read")
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if data.startswith(b"\x93NUMPY"):
        found = _npy(data, path.name)
    elif path.suffix.lower() == ".npy":
        raise CloudError(f"{path.name}: by its first bytes it is no NumPy array; write it with numpy.save")
    elif path.suffix.lower() == ".pcd":
        found = _pcd(data, path.name)
    else:
        found = _raw(data, path, columns)
    xyz = np.ascontiguousarray(found[:, :3], np.float32)
    good = np.isfinite(xyz).all(axis=1)
    # Of an organised cloud most may be nothing: pixels that no beam came back to.
    if good.any() and (np.abs(xyz[good]) < FAR).all(axis=1).mean() < 0.5:
        raise CloudError(f"{path.name}: most of its numbers are no metres; expected x, y, z, as float32")
    return xyz if good.all() else xyz[good]


def columns_of_size(size: int) -> frozenset[int]:
    """How many float32 columns a raw file of so many bytes may have.

    Example:
        >>> sorted(columns_of_size(4 * 4 * 17)), sorted(columns_of_size(4 * 20))
        ([4], [4, 5])
    """
    return frozenset(n for n in CANDIDATES if size % (4 * n) == 0)


def _raw(data: bytes, path: Path, columns: int | None) -> NDArray[Any]:
    if columns is None:
        columns = _columns(data, path) if data else CANDIDATES[0]
    if len(data) % (4 * columns):
        raise CloudError(
            f"{path.name}: {len(data):,} bytes are no whole number of points of {columns} float32 columns; "
            "say how many there are with --points-columns"
        )
    return np.frombuffer(data, "<f4").reshape(-1, columns)


def _columns(data: bytes, path: Path) -> int:
    may = columns_of_size(len(data))
    told = [n for n in (4, 5) if _looks(_rows(data, n))]
    if len(told) == 1 and told[0] in may:
        return told[0]
    begins = f"{path.name}: {len(data):,} bytes"
    if len(told) == 1:
        raise CloudError(
            f"{begins}, and its values are those of {told[0]} columns, of which that is no whole number: "
            "it was cut; copy it anew"
        )
    if not may:
        raise CloudError(
            f"{begins} are no whole number of points of {_either(CANDIDATES)} float32 columns: it was cut, "
            "or say how many there are with --points-columns"
        )
    agreed = _of_neighbours(path)
    beside = may & agreed
    if len(beside) == 1:
        return next(iter(beside))
    if not beside:
        others = (
            f"those of the files beside it {_either(agreed)}" if agreed else "the files beside it disagree"
        )
        raise CloudError(
            f"{path.name}: it has by its size {_either(may)} columns, {others}: it was cut, or is of another "
            "kind; say with --points-columns how many there are (KITTI 4, nuScenes 5)"
        )
    raise CloudError(
        f"{path.name}: by its size it may have {_either(beside)} columns, and nothing tells which; "
        "say it with --points-columns (KITTI 4, nuScenes 5)"
    )


def _either(columns: Collection[int]) -> str:
    return " or ".join(map(str, sorted(columns)))


def _rows(data: bytes, columns: int) -> Points:
    """As many whole points of so many columns as there are."""
    return np.frombuffer(data, "<f4", len(data) // (4 * columns) * columns).reshape(-1, columns)


def _looks(points: Points) -> bool:
    """Whether the last column alone is what it would have to be: KITTI's intensity, the laser of nuScenes."""
    if len(points) < LEAST_ROWS:
        return False

    def fits(values: Points) -> bool:
        if not np.isfinite(values).all() or values.min() < 0:
            return False
        if points.shape[1] == 4:
            return bool(values.max() <= 1)
        return bool(values.max() < 256 and (values == np.floor(values)).all())

    return fits(points[:, -1]) and not all(fits(points[:, at]) for at in range(3))


def _of_neighbours(path: Path) -> frozenset[int]:
    """Columns that the sizes of the most raw files in this one's folder allow; none where half are others.

    Most, since one that was cut must not spoil those beside it.
    """
    counted, seen = dict.fromkeys(CANDIDATES, 0), 0
    try:
        with os.scandir(path.parent) as entries:
            for one in entries:
                if one.name.endswith(path.suffix) and one.is_file():
                    seen += 1
                    for columns in columns_of_size(one.stat().st_size):
                        counted[columns] += 1
                if seen == LOOKED_AT:
                    break
    except OSError:
        return frozenset(CANDIDATES)  # a folder that may not be listed tells nothing
    most = max(counted.values())
    return frozenset(n for n in CANDIDATES if counted[n] == most) if 2 * most > seen else frozenset()


def _npy(data: bytes, name: str) -> NDArray[Any]:
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy's reader of headers has a dozen kinds of them, TokenError among them
        raise CloudError(f"{name}: it cannot be read as a NumPy array ({error})") from error
    if found.ndim != 2 or found.shape[1] < 3 or found.dtype.kind not in "fiu":
        raise CloudError(f"{name}: expected (N, 3 or more) numbers, it has {found.shape} of {found.dtype}")
    return np.asarray(found)


def _whole(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"POINTS {text}: expected a whole number")
    return int(text)


def _texts(data: bytes, rows: int, columns: int) -> NDArray[Any]:
    """(rows, columns) numbers of the lines of an ascii file."""
    if not rows:
        return np.empty((0, columns))
    # NumPy makes room for as many rows as it is told; a line has more than one byte.
    found = np.loadtxt(io.BytesIO(data), max_rows=min(rows, len(data)), ndmin=2)
    if len(found) != rows:
        raise ValueError(f"POINTS {rows}: it holds {len(found)}")
    return found


def _pcd(data: bytes, name: str) -> NDArray[Any]:
    head: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in head:
        end = data.find(b"\n", at, at + 4_096)
        if end < 0:
            raise CloudError(f"{name}: expected the header of a PCD file, with a line DATA")
        words = data[at:end].decode("latin-1").split("#")[0].split()
        if words:
            head[words[0]] = words[1:]
        at = end + 1
    try:
        fields, kind = head["FIELDS"], head["DATA"][0]
        counts = [int(one) for one in head.get("COUNT", ["1"] * len(fields))]
        formats = [f"<{_PCD_KINDS[a]}{int(b)}" for a, b in zip(head["TYPE"], head["SIZE"], strict=True)]
        rows = _whole(head["POINTS"][0])
        if kind == "ascii":
            text = _texts(data[at:], rows, sum(counts))
            places = np.cumsum([0, *counts])
            return np.stack([text[:, places[fields.index(one)]] for one in "xyz"], axis=1)
        if kind == "binary":
            each = [(f"f{k}", a, (n,)) for k, (a, n) in enumerate(zip(formats, counts, strict=True))]
            table = np.frombuffer(data, np.dtype(each), rows, at)
            return np.stack([table[f"f{fields.index(one)}"][:, 0] for one in "xyz"], axis=1)
    except (KeyError, ValueError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise CloudError(f"{name}: its header does not tell what it holds ({error!r})") from error
    raise CloudError(f"{name}: DATA {kind} is not read; write it as ascii or binary")
