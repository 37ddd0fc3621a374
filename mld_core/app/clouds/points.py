"""Where points lie that the reader has in files: `/data/velodyne/{input_id}.bin`, or a CSV of ids and paths.

As with pictures, no id leads out of the folder of its template, and only what can be read as points leaves
the machine, as coordinates.
"""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.app.clouds.formats import SUFFIXES, CloudError, read_points, unreadable
from mld_core.app.file.points import chosen_points
from mld_core.app.pictures import FromDataset, Table, Template, remember, remembered, source_of
from mld_core.records.format.layout import Store
from mld_core.views.columns.packed import packed_columns

SETTING = ".points.json"
MOST_POINTS = 60_000
AROUND, LEAST_REACH = 15.0, 60.0
"""Metres that are shown beyond the farthest box, and at least, from the sensor."""

MOST_COLUMNS = 64


@dataclass
class Clouds:
    """The points of a store's frames.

    Attributes:
        store: The store.
        allowed: Whether files of this machine may be shown.
    """

    store: Store
    allowed: bool = True

    def __post_init__(self) -> None:
        self.source: Template | Table | None = None
        self.columns: int | None = None
        self.broken = ""
        if self.allowed:
            self._remembered()

    def _remembered(self) -> None:
        said = remembered(self.store, SETTING)
        try:
            self._take(said.get("points"), said.get("columns"))
        except (ValueError, TypeError, AttributeError) as error:
            self.broken = str(error)

    def _take(self, text: str | None, columns: int | None) -> None:
        # Of the import path of a data set nothing is imported: it gives pictures.
        if text and "{" not in text and not text.lower().endswith((".csv", ".txt")):
            raise ValueError(f"{text}: expected a path with {{input_id}} in it, or a CSV of ids and paths")
        source = source_of(text) if text else None
        assert not isinstance(source, FromDataset)
        if isinstance(source, Template) and not source.text.lower().endswith((*SUFFIXES, "{input_id}")):
            raise ValueError(f"{text}: expected files ending in {', '.join(SUFFIXES)}")
        if columns is not None and not 3 <= columns <= MOST_COLUMNS:
            raise ValueError(f"{columns} columns: expected 3 (x, y, z) to {MOST_COLUMNS}")
        self.source, self.columns = source, columns

    def set(self, text: str | None, columns: int | None = None) -> None:
        """Take points from there; None = from nowhere. It is remembered in the store.

        Args:
            text: A path with `{input_id}` in it, or a CSV.
            columns: Of raw files; None = what the files tell.

        Raises:
            ValueError: It means nothing, or is not allowed here.
        """
        if not self.allowed:
            raise ValueError("points of this server's disk are not shown: only what was uploaded")
        self._take(text, columns)
        self.broken = ""
        remember(self.store, SETTING, {"points": text, "columns": columns})

    def path(self, split: str, input_id: str) -> Path | None:
        """The file of a frame; None where there is none.

        Raises:
            CloudError: Its folder cannot be reached.
        """
        found = None if self.source is None else self.source.path(split, input_id)
        try:
            return found if found is not None and found.is_file() else None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # an id that is no file's name
                return None
            raise unreadable(found, error) from error

    def stamp(self, path: Path, *more: Any) -> str:
        """What changes where the file, or how it is read, does: the answer's ETag."""
        try:
            told = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        said = repr((str(path), told.st_mtime_ns, told.st_size, self.columns, *more))
        return f'"{hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]}"'

    def says(self) -> dict[str, Any]:
        """What the page shows of it."""
        sentence = "No points: give a path or a CSV." if self.allowed else "No points were sent."
        if self.source is not None:
            sentence = f"Points from {self.source.text}."
        elif self.broken:
            sentence = f"The points set before are not there: {self.broken}"
        return {
            "set": None if self.source is None else self.source.text,
            "columns": self.columns,
            "allowed": self.allowed,
            "sentence": sentence,
        }

    def check(self, split: str, ids: list[str]) -> dict[str, Any]:
        """How many of some frames have points there, and what is wrong with the first that has none."""
        found, missing, problem = 0, None, None
        for one in ids if self.source is not None else ():
            try:
                path = self.path(split, one)
                if path is not None:
                    read_points(path, self.columns)
                    found += 1
                    continue
            except CloudError as error:
                problem = problem or str(error)
            if missing is None and self.source is not None:
                missing = str(self.source.path(split, one) or one)
        return {"checked": len(ids), "found": found, "missing": missing, "problem": problem}


def sent_points(xyz: NDArray[np.float32], boxes: NDArray[np.float64]) -> bytes:
    """Points as bytes: those within what is shown, of more than `MOST_POINTS` those in boxes first.

    Args:
        xyz: (N, 3) metres.
        boxes: (K, 7) boxes of the frame.

    Returns:
        As `packed_columns`; the header holds `of`, the points of the file, and `reach`, the metres shown.
    """
    known = boxes[np.isfinite(boxes).all(axis=1)]
    far = np.hypot(known[:, 0], known[:, 1]).max(initial=0.0)
    reach = float(np.ceil(max(LEAST_REACH, far + AROUND)))
    near = xyz[np.hypot(xyz[:, 0], xyz[:, 1]) <= reach]
    if len(near) > MOST_POINTS:
        near = near[chosen_points(near.astype(np.float64), known, MOST_POINTS)]
    columns = [(name, near[:, at], "f4", None) for at, name in enumerate("xyz")]
    return packed_columns(columns, len(near), {"of": len(xyz), "reach": reach})
