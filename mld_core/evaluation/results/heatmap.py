"""Rectangular grids over two columns of the unit table, shrunk so that a cell of three units stays calm."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.errors import FilterError, near
from mld_core.evaluation.metrics.classification import jeffreys_interval
from mld_core.evaluation.results.expression import quoted
from mld_core.evaluation.results.frames import fetch
from mld_core.evaluation.results.view import is_numeric, parse_column, pick
from mld_core.evaluation.statistics.significance import (
    M_GRID,
    benjamini_hochberg,
    binomial_upper,
    two_sided_z,
)

BINS = 64
"""Bins of a float column; `"confidence:10"` asks for 10."""

MOST_CELLS = 1_000_000
TAIL = 0.005
"""Bins span a float column from this quantile to its mirror image; what lies beyond joins the outer bins."""

VALUES = ("error_rate", "counts", "share")
STRONGEST = float(M_GRID[-2])
"""Weight of the overall rate where the errors have no spatial structure (m is infinite)."""


@dataclass(frozen=True)
class _Axis:
    """One side of the grid: the column's name in the table and SQL that gives its value or bin."""

    name: str
    sql: str
    values: list[Any]
    """What can stand there, in order; empty = what occurs."""

    binned: bool = False


def heatmap(
    connection: duckdb.DuckDBPyConnection,
    schema: pa.Schema,
    x: str,
    y: str,
    value: str,
    condition: str | None,
    weights: dict[tuple[str, int | None], float],
) -> pd.DataFrame:
    """Fill a grid from the view `units`; see `Result.heatmap`.

    Args:
        connection: Holds `units`.
        schema: Schema of the unit table.
        x: Column of the horizontal axis.
        y: Column of the vertical axis.
        value: "error_rate", "counts", "share" or a numeric column.
        condition: A filter of the view grammar.
        weights: (dataset, epoch) -> m of the density, the weight of the overall value.

    Raises:
        FilterError: A name or filter that is not understood, or more than a million cells.
    """
    measured = _measured(value, schema)
    pick(connection, schema, condition)
    across, down = _axis(connection, schema, x), _axis(connection, schema, y)
    if across.name == down.name:
        raise FilterError(f"heatmap of {x!r} against itself: expected two columns")
    own = [name for name in _block_keys(connection) if name not in {across.name, down.name}]
    keys = "".join(f"{quoted(name)}, " for name in own)
    cells = fetch(
        connection,
        f"SELECT {keys}{across.sql} AS x_, {down.sql} AS y_, count(*) AS counts, "  # noqa: S608
        f"count({measured}) AS n, sum({measured})::DOUBLE AS total_, "
        f"sum(({measured}) * ({measured}))::DOUBLE AS squares_, count(*) FILTER (WHERE is_error) AS errors "
        f"FROM picked WHERE {across.sql} IS NOT NULL AND {down.sql} IS NOT NULL GROUP BY ALL ORDER BY ALL",
    )
    blocks: list[dict[Hashable, Any]] = cells[own].drop_duplicates().to_dict("records") if own else [{}]
    if len(cells) == 0:
        blocks = []
    made = [_block(cells, block, across, down, value, weights) for block in blocks]
    names = [*own, across.name, down.name, *_OUT]
    return pd.concat(made, ignore_index=True)[names] if made else pd.DataFrame(columns=names)


_OUT = ("counts", "n", "errors", "raw", "value", "value_lo", "value_hi", "bh_sig")


def _measured(value: str, schema: pa.Schema) -> str:
    """SQL of what a cell is the mean of."""
    if value in VALUES:
        return "CASE WHEN is_error THEN 1.0 WHEN NOT is_error THEN 0.0 END"
    numeric = [field.name for field in schema if is_numeric(field.type)]
    if value not in numeric:
        options = [*VALUES, *numeric]
        raise FilterError(
            f"heatmap value {value!r}{near(value, options)}: expected {', '.join(VALUES)} or a number "
            f"({', '.join(numeric)})"
        )
    return f"{quoted(value)}::DOUBLE"


def _block_keys(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Splits are never mixed; nor are epochs, where there are several."""
    sql = "SELECT count(*) FROM (SELECT DISTINCT n_epoch FROM picked)"
    several = int(connection.execute(sql).fetchall()[0][0]) > 1
    return ["dataset", "n_epoch"] if several else ["dataset"]


def _axis(connection: duckdb.DuckDBPyConnection, schema: pa.Schema, name: str) -> _Axis:
    text, column, kind, count = parse_column(name, schema, BINS, "heatmap over")
    if pa.types.is_nested(kind):
        raise FilterError(f"heatmap over {name!r}: a column of {kind} has no axis")
    if count is None:
        named = list(CATEGORIES) if column in {"category", "projected_category"} else []
        return _Axis(text, quoted(column), named)
    value = f"{quoted(column)}::DOUBLE"
    known = f"{value} IS NOT NULL AND NOT isnan({value})"
    sql = f"SELECT quantile_cont({value}, [{TAIL}, {1 - TAIL}]) FROM picked WHERE {known}"  # noqa: S608
    edges = connection.execute(sql).fetchall()[0][0]
    low, high = (0.0, 0.0) if edges is None else (float(edges[0]), float(edges[1]))
    step = (high - low) / count or 1.0
    place = f"greatest(0, least({count - 1}, floor(({value} - {low!r}) / {step!r})))"
    sql = f"CASE WHEN {known} THEN {low!r} + ({place} + 0.5) * {step!r} END"
    return _Axis(text, sql, [low + (number + 0.5) * step for number in range(count)], binned=True)


def _block(
    cells: pd.DataFrame,
    block: Mapping[Hashable, Any],
    across: _Axis,
    down: _Axis,
    value: str,
    weights: dict[tuple[str, int | None], float],
) -> pd.DataFrame:
    """The rectangular grid of one split (and epoch)."""
    mine = np.ones(len(cells), np.bool_)
    for name, key in block.items():
        mine &= (cells[name].isna() if pd.isna(key) else cells[name] == key).to_numpy(bool)
    found = cells[mine]
    columns = across.values or sorted(found["x_"].unique())
    rows = down.values or sorted(found["y_"].unique())
    if len(columns) * len(rows) > MOST_CELLS:
        raise FilterError(f"{len(columns)} x {len(rows)} cells: bin a column, e.g. '{across.name}:20'")
    grid = pd.MultiIndex.from_product([columns, rows], names=["x_", "y_"])
    found = found.assign(x_=_snapped(found["x_"], across), y_=_snapped(found["y_"], down))
    whole = found.set_index(["x_", "y_"]).reindex(grid).reset_index()
    made = pd.DataFrame({across.name: whole["x_"], down.name: whole["y_"]})
    for name, key in block.items():
        made[name] = key
    for name in ("counts", "n", "errors"):
        made[name] = whole[name].fillna(0).astype("int64")
    total, squares = (whole[name].fillna(0.0).to_numpy(float) for name in ("total_", "squares_"))
    dataset, epoch = str(block.get("dataset", "")), block.get("n_epoch")
    number = None if epoch is None or pd.isna(epoch) else int(epoch)
    weight = weights.get((dataset, number), weights.get((dataset, None), 0.0))
    return _filled(made, total, squares, value, min(weight, STRONGEST), across.name)


def _snapped(values: pd.Series, axis: _Axis) -> pd.Series:
    """Bin centres as computed by the database, to the last bit those of the axis."""
    if not axis.binned:
        return values
    known = np.array(axis.values, dtype=float)
    nearest = np.abs(values.to_numpy(float)[:, None] - known[None]).argmin(axis=1)
    return pd.Series(known[nearest], index=values.index)


def _filled(
    made: pd.DataFrame,
    total: NDArray[np.float64],
    squares: NDArray[np.float64],
    value: str,
    weight: float,
    column: str,
) -> pd.DataFrame:
    n = made["n"].to_numpy(float)
    counts = made["counts"].to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        if value in {"counts", "share"}:
            whole = made.groupby(column)["counts"].transform("sum").to_numpy(float)
            raw = counts if value == "counts" else counts / whole
            low, high = _shares(counts, whole) if value == "share" else (raw, raw)
            return made.assign(raw=raw, value=raw, value_lo=low, value_hi=high, bh_sig=False)
        raw = total / n
        overall = total.sum() / n.sum()
        shrunk = (weight * overall + total) / (weight + n)
        if value == "error_rate":
            low, high = _shares(total, n)
            p = np.where(n > 0, binomial_upper(total, n, float(overall)), np.nan)
        else:
            spread = np.sqrt(np.maximum(squares / n - raw**2, 0) / n)
            low, high = raw - 1.96 * spread, raw + 1.96 * spread
            p = np.where(n > 1, two_sided_z(raw - overall, spread), np.nan)
    return made.assign(raw=raw, value=shrunk, value_lo=low, value_hi=high, bh_sig=benjamini_hochberg(p))


def _shares(
    hits: NDArray[np.float64], n: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = [jeffreys_interval(int(e), int(c)) for e, c in zip(hits, n, strict=True)]
    low, high = np.array(pairs, dtype=np.float64).reshape(-1, 2).T  # None becomes NaN
    return low, high
