"""A pass held in memory, and selections of its units: a filter's mask and an order's permutation, kept.

A page of a selection then costs the reading of its rows alone, wherever it lies: the permutation of an order
(int32) and the mask of a filter are made once by DuckDB over the result's own Parquet file.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.errors import FilterError
from mld_core.evaluation.results.database import database
from mld_core.evaluation.results.expression import compile_filter, conjuncts, find_column, polygon_of, quoted
from mld_core.evaluation.results.view import ALIASES
from mld_core.views.units import PassUnits

WORST = "-severity,-error_proba,-loss"
"""The order of `Result.get_issues`."""

MOST_KEPT = 8
"""Selections of a pass that stay at hand."""

_DICTIONARIES = frozenset(
    {"dataset", "unit_kind", "id_source", "category", "projected_category", "error_code", "primary_code"}
    | {"recommended_action", "det_code", "tide_error", "size_bucket", "detail"}
)
"""Text columns of few values: held as numbers and a list of the texts."""

Rows = NDArray[np.int32]
T = TypeVar("T")


class Recent(OrderedDict[Any, Any]):
    """The values asked for last, at most so many."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._lock = threading.Lock()

    def get_or(self, key: Any, make: Callable[[], T]) -> T:
        """The value under a key, made where it is not there; two threads may both make it."""
        with self._lock:
            if key in self:
                self.move_to_end(key)
                kept: T = self[key]
                return kept
        made = make()
        with self._lock:
            self[key] = made
            while len(self) > self._most:
                self.popitem(last=False)
        return made


@dataclass
class HeldUnits(PassUnits):
    """A pass whose columns stay in memory once they were read."""

    _columns: dict[str, pa.ChunkedArray] = field(default_factory=dict, repr=False)
    _orders: Recent = field(default_factory=lambda: Recent(MOST_KEPT), repr=False)
    _chosen: Recent = field(default_factory=lambda: Recent(MOST_KEPT), repr=False)
    memo: Recent = field(default_factory=lambda: Recent(32), repr=False)
    """Answers made of the pass, by whoever makes them."""

    @property
    def nbytes(self) -> int:
        """Bytes of the columns that are held, and of the answers that say theirs."""
        answers = sum(getattr(one, "nbytes", 0) for one in list(self.memo.values()))
        return int(answers + sum(column.nbytes for column in list(self._columns.values())))

    def column(self, name: str) -> pa.ChunkedArray:
        """See `PassUnits`; texts of few values come as dictionaries."""
        found = self._columns.get(name)
        if found is None:
            self.hold([name])
            found = self._columns[name]
        return found

    def hold(self, names: Sequence[str]) -> None:
        """Read columns at once that are asked for soon."""
        wanted = [name for name in names if name not in self._columns]
        there = [name for name in wanted if name in self.names]
        files = dict.fromkeys(map(self._file_of, there))
        for file in files:
            own = [name for name in there if self._file_of(name) == file]
            table = pq.read_table(
                file, columns=own, read_dictionary=[name for name in own if name in _DICTIONARIES]
            )
            for name in own:
                column = table.column(name)
                if pa.types.is_dictionary(column.type):
                    column = column.unify_dictionaries()
                self._columns[name] = pa.chunked_array([column.combine_chunks()], column.type)
        for name in wanted:
            self._columns.setdefault(name, pa.chunked_array([pa.nulls(self.rows)]))

    def take(self, rows: Sequence[int] | Rows, columns: Sequence[str]) -> list[dict[str, Any]]:
        """See `PassUnits`."""
        self.hold(columns)
        where = pa.array(np.asarray(rows, np.int64))
        found = [self.column(name).take(where).to_pylist() for name in columns]
        return [dict(zip(columns, values, strict=True)) for values in zip(*found, strict=True)]

    def order(self, sort: str = "") -> Rows:
        """All rows in an order: columns, `-` before one for descending, nulls last; empty = worst first.

        "row" is the order of the table.

        Raises:
            FilterError: An unknown column.
        """
        if sort == "row" and "row" not in self.names:
            return np.arange(self.rows, dtype=np.int32)
        return self._orders.get_or(sort or WORST, lambda: self._ordered(sort or WORST))

    def _ordered(self, sort: str) -> Rows:
        parts = []
        for name in filter(None, (one.strip() for one in sort.split(","))):
            bare = name.removeprefix("-").strip("`")
            if bare not in self.schema.names and sort == WORST:
                continue
            column = find_column(bare, self.schema, ALIASES)
            if pa.types.is_nested(self.schema.field(column).type):
                raise FilterError(f"sort {bare!r}: a column of lists has no order")
            parts.append(f"{quoted(column)} {'DESC' if name.startswith('-') else 'ASC'} NULLS LAST")
        by = ", ".join([*parts, "file_row_number"])
        return self._numbers(f"SELECT file_row_number FROM units ORDER BY {by}", [])  # noqa: S608

    def matching(self, condition: str) -> Rows:
        """The rows a filter asks for, in the order of the table.

        Raises:
            FilterError: The filter is not understood.
        """
        parts = conjuncts(condition)
        shapes = [polygon_of(part, self.schema, ALIASES) for part in parts]
        if not any(shapes):
            return self._by_sql(condition)
        inside = np.zeros(self.rows, np.int16)
        for shape in filter(None, shapes):
            inside[shape.rows(self.floats(shape.x), self.floats(shape.y))] += 1
        rest = [f"({part})" for part, shape in zip(parts, shapes, strict=True) if shape is None]
        if rest:
            inside[self._by_sql(" and ".join(rest))] += 1
        return np.flatnonzero(inside == len(parts) - len(rest) + bool(rest)).astype(np.int32)

    def _by_sql(self, condition: str) -> Rows:
        compiled = compile_filter(condition, self.schema, ALIASES)
        # Columns are quoted names of the schema and literals are parameters: no text of the user's is in it.
        sql = f"SELECT file_row_number FROM units WHERE {compiled.sql}"  # noqa: S608
        return np.sort(self._numbers(sql, list(compiled.parameters)))

    def chosen(self, condition: str = "", sort: str = "") -> Rows:
        """The rows of a filter in an order; empty = all of them, worst first."""
        return self._chosen.get_or((condition, sort or WORST), lambda: self._choose(condition, sort))

    def _choose(self, condition: str, sort: str) -> Rows:
        order = self.order(sort)
        if not condition.strip():
            return order
        inside = np.zeros(self.rows, np.bool_)
        inside[self.matching(condition)] = True
        return order[inside[order]]

    def _numbers(self, sql: str, parameters: list[Any]) -> Rows:
        spill = self.result.folder.parent / ".spill"
        axes = ", ".join(self.axes)
        more = {"more": [self.beside]} if any(quoted(one) in sql for one in self.axes) else {}
        with database(spill, numbered=True, units=[self.path], **more) as connection:
            if more:
                both = f"units JOIN (SELECT file_row_number, {axes} FROM more) USING (file_row_number)"  # noqa: S608
                sql = sql.replace("FROM units", f"FROM {both}", 1)
            found = connection.execute(sql, parameters).fetchnumpy()["file_row_number"]
        return np.ascontiguousarray(found, np.int32)


@dataclass
class Selection(PassUnits):
    """Some units of a pass, read as if they were the pass: every table and chart of a pass is one of them."""

    base: HeldUnits | None = None
    chosen: Rows = field(default_factory=lambda: np.zeros(0, np.int32), repr=False)

    @classmethod
    def of(cls, base: HeldUnits, condition: str) -> PassUnits:
        """The units of a filter; without one the pass itself.

        Raises:
            FilterError: The filter is not understood.
        """
        if not condition.strip():
            return base
        place = (base.result, base.index, base.dataset, base.n_epoch, base.samples, base.path)
        return cls(*place, base, np.sort(base.chosen(condition)))

    @cached_property
    def rows(self) -> int:
        """Units that are selected."""
        return len(self.chosen)

    def column(self, name: str) -> pa.ChunkedArray:
        """See `PassUnits`."""
        assert self.base is not None
        return self.base.column(name).take(pa.array(self.chosen))

    def take(self, rows: Sequence[int] | Rows, columns: Sequence[str]) -> list[dict[str, Any]]:
        """See `PassUnits`; `rows` count within the selection."""
        assert self.base is not None
        return self.base.take(self.chosen[np.asarray(rows, np.int64)], columns)


def held(units: PassUnits) -> HeldUnits:
    """The pass, held in memory."""
    return HeldUnits(units.result, units.index, units.dataset, units.n_epoch, units.samples, units.path)
