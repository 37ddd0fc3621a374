"""Grouped, standardised and filtered views of the unit table (evaluation method, "get_view").

Splits are evaluated separately, so every view has one block of rows for each dataset (and epoch, where a
result holds several). Direct standardisation (`adjustby=X`): value_adj(g) = sum over x of w_x * value(g, x),
where w_x is the share of x in the filtered population of the block; a cell (g, x) without units takes the
value of all units of x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from mld_core.evaluation.errors import FilterError, near
from mld_core.evaluation.metrics.classification import auroc, average_precision, jeffreys_interval
from mld_core.evaluation.results.expression import Compiled, compile_filter, find_column, quoted
from mld_core.evaluation.results.frames import fetch

ALIASES: Mapping[str, str] = {
    "dataset_type": "dataset",
    "class": "gt",
    "label": "gt",
    "predicted_class": "prediction",
    "issue_category": "category",
    "code": "error_code",
    "epoch": "n_epoch",
}
"""Further names for columns of the unit table, in views and filters."""

BINS = 10
SAMPLE_IDS = 16

_ERROR = "CASE WHEN is_error THEN 1.0 WHEN NOT is_error THEN 0.0 END"
_MEANS: Mapping[str, str] = {
    "accuracy": "CASE WHEN is_error THEN 0.0 WHEN NOT is_error THEN 1.0 END",
    "net_entropy_loss_mean": "loss",
    "net_entropy_mean": "entropy",
    "confidence": "confidence",
}
_SUMS: Mapping[str, str] = {
    "net_entropy_loss": "sum(loss)",
    "net_entropy": "sum(entropy)",
    "count_labeled": "count(is_error)",
    "count_nonfinite": "count(*) FILTER (WHERE nonfinite)",
    "count_distinct_input": "count(DISTINCT coalesce(input_hash, input_id))",
}
_RANKS = {"error_proba_auroc": auroc, "error_proba_auprc": average_precision}


@dataclass(frozen=True)
class _Key:
    """One grouping column: its name in the view and the SQL expression that makes it."""

    name: str
    sql: str
    exploded: bool = False


@dataclass(frozen=True)
class _Plan:
    """What a view computes: the keys of its blocks, its groups, and its metrics by kind."""

    own: tuple[_Key, ...]
    keys: tuple[_Key, ...]
    means: Mapping[str, str]
    sums: Mapping[str, str]
    ranks: tuple[str, ...]

    @property
    def own_names(self) -> list[str]:
        return [key.name for key in self.own]

    @property
    def names(self) -> list[str]:
        return [key.name for key in (*self.own, *self.keys)]

    def columns(self) -> list[tuple[str, str]]:
        """Name in the view and column of the table `keyed` of every key."""
        made = [(key.name, quoted(f"key_{place}")) for place, key in enumerate(self.keys)]
        return [(key.name, key.sql) for key in self.own] + made


def view(
    connection: duckdb.DuckDBPyConnection,
    schema: pa.Schema,
    groupby: str | Sequence[str] | None,
    adjustby: str | None,
    condition: str | None,
    metrics: Sequence[str] | None,
) -> pd.DataFrame:
    """Group the view `units` of `connection`; see `Result.get_view` for the arguments and the columns.

    Raises:
        FilterError: A column, metric or filter that does not exist or cannot be read.
    """
    names = [groupby] if isinstance(groupby, str) else list(groupby or [])
    if len(names) > 3:
        raise FilterError(f"groupby={names!r}: expected one to three columns")
    means, sums, ranks = _choose_metrics(list(metrics or []), schema)
    pick(connection, schema, condition)
    own = [_Key("dataset", quoted("dataset"))]
    if _one(connection, "SELECT count(DISTINCT coalesce(n_epoch, -9)) FROM picked") > 1:
        own.append(_Key("n_epoch", quoted("n_epoch")))
    keys = [_key(connection, schema, name, f"edges_{place}") for place, name in enumerate(names)]
    if sum(key.exploded for key in keys) > 1:
        raise FilterError(f"groupby={names!r}: only one of the columns may hold lists")
    own = [key for key in own if key.name not in {ALIASES.get(name, name) for name in names}]
    plan = _Plan(tuple(own), tuple(keys), means, sums, ranks)
    made = "".join(f", {key.sql} AS key_{place}" for place, key in enumerate(keys))
    connection.execute(f"CREATE OR REPLACE TEMP TABLE keyed AS SELECT *{made} FROM picked")  # noqa: S608
    frame = _ranked(connection, plan, _grouped(connection, plan))
    if adjustby is not None:
        adjust = _key(connection, schema, adjustby, "edges_adjust")
        if adjust.exploded:
            raise FilterError(f"adjustby={adjustby!r}: expected a column with one value for each unit")
        frame = _adjusted(connection, plan, adjust, frame)
    return frame


def pick(connection: duckdb.DuckDBPyConnection, schema: pa.Schema, condition: str | None) -> None:
    """Make the table `picked` of those rows of `units` that a filter asks for."""
    compiled = compile_filter(condition, schema, ALIASES) if condition is not None else Compiled("true", ())
    # Columns are quoted names of the schema and literals are parameters: no text of the user's is in the SQL.
    sql = f"CREATE OR REPLACE TEMP TABLE picked AS SELECT * FROM units WHERE {compiled.sql}"  # noqa: S608
    connection.execute(sql, list(compiled.parameters))


def parse_column(
    name: str, schema: pa.Schema, bins_of_floats: int, where: str
) -> tuple[str, str, pa.DataType, int | None]:
    """Read `column` or `column:bins` -> (name in the view, column of the table, its type, bins or None).

    Raises:
        FilterError: There is no such column, or it cannot be cut into bins; `where` begins the message.
    """
    text, _, bins = (name, "", "") if name in schema.names else name.partition(":")
    column = find_column(text, schema, ALIASES)
    kind = schema.field(column).type
    if bins and not (bins.isdigit() and int(bins) > 1 and is_numeric(kind)):
        raise FilterError(
            f"{where} {name!r}: expected <numeric column>:<number of bins>, e.g. 'confidence:5'"
        )
    floating = bins_of_floats if pa.types.is_floating(kind) else None
    return text, column, kind, int(bins) if bins else floating


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    return int(connection.execute(sql).fetchall()[0][0])


def _choose_metrics(
    wanted: list[str], schema: pa.Schema
) -> tuple[dict[str, str], dict[str, str], tuple[str, ...]]:
    means: dict[str, str] = {}
    sums: dict[str, str] = {}
    for name in wanted:
        column = name.removeprefix("mean_")
        if name in _MEANS:
            means[name] = _MEANS[name]
        elif name in _SUMS:
            sums[name] = _SUMS[name]
        elif name.startswith("mean_") and column in schema.names and is_numeric(schema.field(column).type):
            means[name] = quoted(column)
        elif name not in _RANKS:
            options = [*_MEANS, *_SUMS, *_RANKS]
            raise FilterError(
                f"unknown metric {name!r}{near(name, options)} (a view has: {', '.join(options)}, "
                "mean_<numeric column>; auroc and auprc need every class score: see metrics_summary, "
                "class_summary)"
            )
    return means, sums, tuple(name for name in wanted if name in _RANKS)


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _key(connection: duckdb.DuckDBPyConnection, schema: pa.Schema, name: str, edges: str) -> _Key:
    """Resolve one grouping column; `column:bins` and every float column become equal-mass bins."""
    text, column, kind, bins = parse_column(name, schema, BINS, "groupby")
    if pa.types.is_list(kind):
        return _Key(text, f"unnest({quoted(column)})", exploded=True)
    if pa.types.is_struct(kind):
        raise FilterError(f"groupby {name!r}: a column of {kind} cannot be grouped")
    if bins is not None:
        return _Key(text, _bin_sql(connection, column, bins, edges))
    return _Key(text, quoted(column))


def _bin_sql(connection: duckdb.DuckDBPyConnection, column: str, bins: int, edges: str) -> str:
    """SQL that names the equal-mass bin of a column; the edges are quantiles of the filtered units."""
    value = f"{quoted(column)}::DOUBLE"
    known = f"{value} IS NOT NULL AND NOT isnan({value})"
    sql = f"SELECT quantile_cont({value}, ?::DOUBLE[]) FROM picked WHERE {known}"  # noqa: S608
    found = connection.execute(sql, [[step / bins for step in range(bins + 1)]]).fetchall()[0][0]
    marks = np.unique(np.asarray(found if found is not None else [], dtype=np.float64))
    pairs = list(pairwise(marks)) or [(mark, mark) for mark in marks]
    closed = ["]" if place == len(pairs) - 1 else ")" for place in range(len(pairs))]
    names = [f"[{low:.4g}, {high:.4g}{end}" for (low, high), end in zip(pairs, closed, strict=True)]
    connection.register(
        edges,
        pa.table(
            {"low": pa.array([low for low, _ in pairs], pa.float64()), "name": pa.array(names, pa.string())}
        ),
    )
    return f"(SELECT arg_max(name, low) FROM {edges} WHERE low <= {value} AND NOT isnan({value}))"  # noqa: S608


def _grouped(connection: duckdb.DuckDBPyConnection, plan: _Plan) -> pd.DataFrame:
    """One row for each group: counts, error rate with its interval, lift, and the metrics SQL can make."""
    select = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in plan.columns())
    by = ", ".join(sql for _, sql in plan.columns()) or "()"
    extra = "".join(f", avg({sql}) AS {quoted(name)}" for name, sql in plan.means.items())
    extra += "".join(f", {sql} AS {quoted(name)}" for name, sql in plan.sums.items())
    order = f"ORDER BY {by}" if plan.columns() else ""
    frame = fetch(
        connection,
        f"SELECT {select}{',' if select else ''} count(*) AS counts, count(is_error) AS labeled_, "  # noqa: S608
        f"count(*) FILTER (WHERE is_error) AS errors, avg(error_proba)::DOUBLE AS error_proba{extra}, "
        f"list(input_id ORDER BY unit_id)[1:{SAMPLE_IDS}] AS sample_ids FROM keyed GROUP BY {by} {order}",
    )
    whole = _blocks(connection, plan)
    block = frame.merge(whole, on=plan.own_names, how="left") if plan.own else frame.merge(whole, how="cross")
    labeled, errors = frame.pop("labeled_").to_numpy(), frame["errors"].to_numpy()
    rate = np.divide(errors, labeled, out=np.full(len(frame), np.nan), where=labeled > 0)
    bounds = [jeffreys_interval(int(bad), int(count)) for bad, count in zip(errors, labeled, strict=True)]
    low, high = np.array(bounds, dtype=np.float64).reshape(-1, 2).T  # None becomes NaN
    overall = block["overall_"].to_numpy(dtype=np.float64, na_value=np.nan)
    place = len(plan.names) + 1
    frame.insert(place, "share", frame["counts"].to_numpy() / block["all_"].to_numpy())
    frame.insert(place + 2, "error_rate", rate)
    frame.insert(place + 3, "error_rate_lo", low)
    frame.insert(place + 4, "error_rate_hi", high)
    lift = np.divide(rate, overall, out=np.full(len(frame), np.nan), where=overall > 0)
    frame.insert(place + 5, "lift", lift)
    return frame


def _blocks(connection: duckdb.DuckDBPyConnection, plan: _Plan) -> pd.DataFrame:
    """Units and error rate of each block, over the filtered population."""
    own = ", ".join(quoted(name) for name in plan.own_names)
    values = f"count(*) AS all_, avg({_ERROR}) AS overall_"
    sql = f"SELECT {own}{',' if own else ''} {values} FROM picked GROUP BY {own or '()'}"  # noqa: S608
    return fetch(connection, sql)


def _ranked(connection: duckdb.DuckDBPyConnection, plan: _Plan, frame: pd.DataFrame) -> pd.DataFrame:
    """Add the ranking metrics of the error probability, group by group."""
    if not plan.ranks:
        return frame
    select = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in plan.columns())
    units = fetch(
        connection,
        f"SELECT {select}{',' if select else ''} list(error_proba ORDER BY unit_id) AS scores_, "  # noqa: S608
        "list(is_error ORDER BY unit_id) AS errors_ FROM keyed "
        "WHERE error_proba IS NOT NULL AND is_error IS NOT NULL "
        f"GROUP BY {', '.join(sql for _, sql in plan.columns()) or '()'}",
    )
    pairs = [
        (np.asarray([] if scores is None else scores, np.float64), np.asarray(errors, np.bool_))
        for scores, errors in zip(units["scores_"], units["errors_"], strict=True)
    ]
    for name in plan.ranks:
        units[name] = np.array([_RANKS[name](*pair) for pair in pairs], dtype=np.float64)  # None becomes NaN
    units = units.drop(columns=["scores_", "errors_"])
    ids = frame.pop("sample_ids")
    joined = frame.merge(units, on=plan.names, how="left") if plan.names else frame.join(units)
    return joined.assign(sample_ids=ids)


def _adjusted(
    connection: duckdb.DuckDBPyConnection, plan: _Plan, adjust: _Key, frame: pd.DataFrame
) -> pd.DataFrame:
    """Add `error_rate_adj` and `<mean metric>_adj`: each group at the block's mix of the `adjust` column."""
    values = {"error_rate": _ERROR, "error_proba": "error_proba", **plan.means}
    sums = "".join(
        f", sum({sql})::DOUBLE AS {quoted(f's_{name}')}, count({sql}) AS {quoted(f'n_{name}')}"
        for name, sql in values.items()
    )

    def cells(table: str, columns: list[tuple[str, str]]) -> pd.DataFrame:
        keys = "".join(f"{sql} AS {quoted(name)}, " for name, sql in columns)
        by = "".join(f"{sql}, " for _, sql in columns)
        select = f"{keys}{adjust.sql} AS stratum_, count(*) AS units_{sums}"
        sql = f"SELECT {select} FROM {table} GROUP BY {by}{adjust.sql}"  # noqa: S608
        return fetch(connection, sql)

    inside = cells("keyed", plan.columns())
    margin = cells("picked", plan.columns()[: len(plan.own)])
    groups = frame[plan.names]
    grid = (
        groups.merge(margin, on=plan.own_names, how="left") if plan.own else groups.merge(margin, how="cross")
    )
    grid = grid.merge(inside, on=[*plan.names, "stratum_"], how="left", suffixes=("_x", "_g"))
    ids = frame.pop("sample_ids")
    for name in values:
        frame[f"{name}_adj"] = _standardise(grid, groups, name)
    return frame.assign(sample_ids=ids)


def _standardise(grid: pd.DataFrame, groups: pd.DataFrame, name: str) -> list[float]:
    """Weighted mean over the strata of each group; strata where nothing is known carry no weight."""

    def mean(side: str) -> np.ndarray:
        count = grid[f"n_{name}_{side}"].replace(0, np.nan).to_numpy(float, na_value=np.nan)
        return np.asarray(grid[f"s_{name}_{side}"].to_numpy(float, na_value=np.nan) / count)

    own, of_stratum = mean("g"), mean("x")
    value = np.where(np.isnan(own), of_stratum, own)
    weight = np.where(np.isnan(value), 0.0, grid["units__x"].to_numpy(float))
    where = _group_numbers(grid, groups)
    total = np.bincount(where, weights=weight, minlength=len(groups))
    summed = np.bincount(where, weights=weight * np.nan_to_num(value), minlength=len(groups))
    return [float(s / t) if t > 0 else float("nan") for s, t in zip(summed, total, strict=True)]


def _group_numbers(grid: pd.DataFrame, groups: pd.DataFrame) -> np.ndarray:
    """(rows of grid,) the row of `groups` each cell belongs to."""
    if groups.columns.empty:
        return np.zeros(len(grid), np.int64)
    numbered = groups.assign(number_=np.arange(len(groups)))
    names = list(groups.columns)
    return grid[names].merge(numbered, on=names, how="left")["number_"].to_numpy(np.int64)
