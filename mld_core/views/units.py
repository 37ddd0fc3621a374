"""One evaluated pass as the page reads it: its unit table, and its records where they still match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.results.database import axes_beside, beside, unit_fields
from mld_core.evaluation.results.result import Result
from mld_core.records.format.layout import RunKey
from mld_core.records.read.reader import PassSelection, select


@dataclass
class PassUnits:
    """The units of one pass of a result, read column by column.

    Attributes:
        result: The result.
        index: Place of the pass in `result.info["passes"]`.
        dataset: Name of the split.
        n_epoch: Epoch, or None.
        samples: Samples: units of a classification, images or frames of a detection.
        path: The unit table.
    """

    result: Result
    index: int
    dataset: str
    n_epoch: int | None
    samples: int
    path: Path

    @cached_property
    def rows(self) -> int:
        """Units: rows of the table."""
        return int(pq.read_metadata(self.path).num_rows)

    @property
    def beside(self) -> Path:
        """Where columns lie that are made on demand, row by row those of the table: see `UMAP_AXES`."""
        return beside(self.path)

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Those of `UMAP_AXES` that lie there."""
        return axes_beside(self.path)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the unit table, with what lies beside it."""
        return pa.schema(unit_fields(self.path))

    @cached_property
    def names(self) -> frozenset[str]:
        """Columns of the table."""
        return frozenset(self.schema.names)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, (N,); all null where the table does not have it."""
        if name not in self.names:
            return pa.chunked_array([pa.nulls(self.rows)])
        return pq.read_table(self._file_of(name), columns=[name]).column(name)

    def _file_of(self, name: str) -> Path:
        return self.beside if name in self.axes else self.path

    def has(self, name: str) -> bool:
        """Whether the column is there and holds anything: an analysis that has not run left it null."""
        column = self.column(name)
        return bool(len(column) > column.null_count)

    @cached_property
    def truth(self) -> NDArray[np.int64]:
        """(N,) true classes, -1 where unlabelled."""
        return self._integers("gt")

    @cached_property
    def prediction(self) -> NDArray[np.int64]:
        """(N,) predicted classes, -1 where the logits were not finite."""
        return self._integers("prediction")

    @cached_property
    def errors(self) -> NDArray[np.int8]:
        """(N,) 1 wrong, 0 right, -1 unlabelled."""
        found = self.column("is_error").cast(pa.int8()).fill_null(-1)
        return np.asarray(found.to_numpy(), np.int8)

    @cached_property
    def category(self) -> NDArray[np.str_]:
        """(N,) issue categories, "" where there is none; projected ones stand for unlabelled units."""
        column = self.column("category").cast(pa.string())
        if "projected_category" in self.names:
            column = pc.coalesce(column, self.column("projected_category").cast(pa.string()))
        return np.asarray(column.fill_null("").to_numpy(), np.str_)

    def floats(self, name: str) -> NDArray[np.float64]:
        """(N,) a numeric column, NaN where null."""
        return np.asarray(self.column(name).cast(pa.float64()).to_numpy(), np.float64)

    def texts(self, name: str) -> list[str | None]:
        """(N,) a text column."""
        found: list[str | None] = self.column(name).cast(pa.string()).to_pylist()
        return found

    def _integers(self, name: str) -> NDArray[np.int64]:
        return np.asarray(self.column(name).cast(pa.int64()).fill_null(-1).to_numpy(), np.int64)

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some units as dictionaries, in the order asked for; columns the table lacks are None."""
        where = pa.array(rows, pa.int64())
        made: list[dict[str, Any]] = [dict.fromkeys(columns) for _ in rows]
        for file in dict.fromkeys(self._file_of(name) for name in columns if name in self.names):
            own = [name for name in columns if name in self.names and self._file_of(name) == file]
            for row, found in zip(
                made, pq.read_table(file, columns=own).take(where).to_pylist(), strict=True
            ):
                row.update(found)
        return made

    @cached_property
    def records(self) -> PassSelection | None:
        """The records this pass was made from; None where they are gone or were recorded anew since."""
        info = self.result.info["passes"][self.index]
        run = RunKey(self.result.model_name, self.result.version_name)
        store = self.result.store
        if not store.run_dir(run).is_dir():
            return None
        epoch: Any = None if self.n_epoch is None else self.n_epoch
        # Of a detection the records count frames, the unit table boxes.
        counted = int(self.result.metrics_summary(full=True)["counts"].iloc[self.index])
        for one in select(store, run, dataset_type=self.dataset, n_epoch=epoch, passes="all"):
            same = one.key.n_epoch == self.n_epoch and one.key.pass_no == info["pass_no"]
            if same and one.attempt == info["attempt"] and one.n_rows == counted:
                return one
        return None


def passes_of(result: Result) -> list[PassUnits]:
    """The passes of a result, in the order of its tables."""
    return [
        PassUnits(
            result,
            place,
            str(one["dataset"]),
            None if one["n_epoch"] is None else int(one["n_epoch"]),
            int(one["counts"]),
            result.folder / str(one["units"]),
        )
        for place, one in enumerate(result.info["passes"])
    ]


def spread(rows: int, count: int, *, salt: int = 0) -> NDArray[np.int64]:
    """At most `count` of `rows` row numbers, as good as drawn by chance yet the same on every run; sorted.

    Rows are ranked by SplitMix64 of their number.

    Example:
        >>> spread(3, 5).tolist(), len(spread(1000, 10))
        ([0, 1, 2], 10)
    """
    if rows <= count:
        return np.arange(rows, dtype=np.int64)
    with np.errstate(over="ignore"):
        x = (np.arange(rows, dtype=np.uint64) + np.uint64(salt + 1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.sort(np.argpartition(x, count)[:count]).astype(np.int64)


def rounded(values: Any, digits: int = 4) -> list[float | None]:
    """Numbers at so many significant digits for the page, None where not finite.

    Example:
        >>> rounded([0.123456, float("nan"), 12345.6])
        [0.1235, None, 12350.0]
    """
    return [
        float(f"{value:.{digits}g}") if np.isfinite(value) else None
        for value in np.asarray(values, np.float64)
    ]
