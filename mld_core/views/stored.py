"""Single rows of records, without reading the whole pass: recorded pictures, and logits of a unit."""

from __future__ import annotations

import bisect
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.removals import Removals, marks
from mld_core.records.format.vectors import is_vector, to_numpy
from mld_core.records.read.reader import PassSelection, select
from mld_core.views.samples import stated
from mld_core.views.selection import HeldUnits, Recent

GROUPS_KEPT = 16
MOST_CLASSES = 10


class StoredPictures:
    """The thumbnails of one split of a run; where they lie is read once.

    Args:
        store: The store.
        run: The run.
        dataset_type: The split.
    """

    def __init__(self, store: Store, run: RunKey, dataset_type: str) -> None:
        self._place: dict[str, tuple[Path, int, int]] = {}
        self._groups = Recent(GROUPS_KEPT)
        self._removed = Removals(store, run).of_split(dataset_type)
        for one in select(store, run, dataset_type=dataset_type, n_epoch=None, passes="all"):
            for path in one.files("media") if one.has("media") else ():
                self._index(path)

    def _index(self, path: Path) -> None:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["input_id"]).column(0).cast(pa.string())
                gone = marks(ids, self._removed)
                for row, name in enumerate(ids.to_pylist()):
                    if not gone[row]:
                        self._place[name] = (path, group, row)

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, input_id: object) -> bool:
        return input_id in self._place

    def png(self, input_id: str) -> bytes | None:
        """The picture of a sample; None where none was recorded."""
        place = self._place.get(input_id)
        if place is None:
            return None
        path, group, row = place

        def read() -> Any:
            with pq.ParquetFile(path) as file:
                return file.read_row_group(group, columns=["png"]).column(0)

        try:
            found = self._groups.get_or((path, group), read)[row].as_py()
        except (OSError, IndexError):  # joined or removed since
            return None
        return bytes(found) if found else None


class PictureShelf:
    """Recorded pictures of every split that was asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held = Recent(GROUPS_KEPT)
        self._lock = threading.Lock()

    def of(self, run: RunKey, dataset_type: str) -> StoredPictures:
        """Those of a split; read anew when the split has more passes, or samples of the run were removed."""
        folders = (self._store.split_dir(run, dataset_type), Removals(self._store, run).folder)
        stamp = tuple(sorted(path.name for folder in folders if folder.is_dir() for path in folder.iterdir()))
        with self._lock:  # the grid asks for sixty at once: one of them reads the index
            found: StoredPictures = self._held.get_or(
                (run, dataset_type, stamp), lambda: StoredPictures(self._store, run, dataset_type)
            )
        return found


def logits_of(records: PassSelection | None, row: int) -> NDArray[np.float64] | None:
    """(K,) logits of a row of a pass; None where they are not stored (any more)."""
    if records is None or not records.has("vectors"):
        return None
    try:
        names = [item.name for item in records.schema("vectors") if is_vector(item)]
        if "logits" not in names:
            return None
        files = records.files("vectors")
        rows = [pq.read_metadata(path).num_rows for path in files]
        if sum(rows) == records.n_rows:  # none is left out: the row lies where it is counted
            return _from_file(files, np.cumsum([0, *rows]).tolist(), row)
        return _streamed(records, row)
    except OSError:  # a living training drops vectors of older epochs
        return None


def _from_file(files: list[Path], starts: list[int], row: int) -> NDArray[np.float64] | None:
    place = bisect.bisect_right(starts, row) - 1
    if not 0 <= place < len(files):
        return None
    left = row - starts[place]
    with pq.ParquetFile(files[place]) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if left < count:
                column = file.read_row_group(group, columns=["logits"]).slice(left, 1)
                item = file.schema_arrow.field("logits")
                found: NDArray[np.float64] = np.asarray(to_numpy(column.column(0), item), np.float64)[0]
                return found
            left -= count
    return None


def _streamed(records: PassSelection, row: int) -> NDArray[np.float64] | None:
    start = 0
    for batch in records.batches("vectors", ["logits"], 16_384):
        if row < start + batch.num_rows:
            part = pa.Table.from_batches([batch]).slice(row - start, 1)
            values = np.asarray(to_numpy(part.column(0), batch.schema.field(0)), np.float64)
            found: NDArray[np.float64] = values[0]
            return found
        start += batch.num_rows
    return None


def probabilities(units: HeldUnits, row: int) -> list[tuple[int, float]]:
    """The most likely classes of a sample and their probabilities; empty where logits are gone."""
    values = logits_of(units.records, row)
    if values is None or units.records is None or not np.isfinite(values).all():
        return []
    p = stated(values, sigmoid=units.records.sigmoid)
    best = np.argsort(-p, kind="stable")[:MOST_CLASSES]
    return [(int(one), float(f"{p[one]:.4g}")) for one in best]
