"""Paired statistics of a comparison: intervals of differences, transitions, changes by class and region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import CATEGORIES, Flags, categorise
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.results.compare_statistics import (
    category_transitions,
    changes_by_group,
    paired_intervals,
)
from mld_core.evaluation.statistics.bootstrap import Interval, RankedErrors
from mld_core.evaluation.statistics.folds import group_codes, key_hashes

_MEANS = {"net_entropy_loss_mean": "loss", "net_entropy_mean": "entropy"}


@dataclass(frozen=True)
class PairedUnits:
    """The units of one dataset that stand on both sides, in one order.

    Attributes:
        columns: Column of the unit tables with `_a` or `_b` -> (N,) values; integers -1, floats NaN and
            booleans False where null; `known_a` and `known_b` say which units are labelled.
        groups: (N,) texts: the group key, else input hash, else input id.
    """

    columns: Mapping[str, NDArray[Any]]
    groups: NDArray[Any]

    def errors(self, side: str) -> NDArray[np.int8]:
        """(N,) 1 wrong, 0 right, -1 unlabelled on side "a" or "b"."""
        wrong = self.columns[f"is_error_{side}"].astype(np.int8)
        return np.where(self.columns[f"known_{side}"], wrong, np.int8(-1)).astype(np.int8)


COLUMNS = (
    *("loss", "entropy", "error_proba", "baseline_risk", "local_error_lo", "predicted_risk_lo"),
    *("is_error", "category", "gt", "region_id"),
)


def read_pairs(connection: duckdb.DuckDBPyConnection, key: str | None) -> PairedUnits:
    """Read the joined table `both_` (columns of both sides as `<name>_a`, `<name>_b`, and `key_`)."""
    sides = [f"{name}_{side}" for name in COLUMNS for side in "ab"]
    ambiguous = [f"coalesce(flags_{side}.A, false) AS ambiguous_{side}" for side in "ab"]
    known = [f"is_error_{side} IS NOT NULL AS known_{side}" for side in "ab"]
    group = "coalesce(key_, input_hash, input_id)" if key is not None else "coalesce(input_hash, input_id)"
    sql = f"SELECT {', '.join([*sides, *ambiguous, *known])}, {group} AS group_ FROM both_ ORDER BY unit_id"  # noqa: S608
    table: pa.Table = connection.sql(sql).to_arrow_table()
    columns = {name: _plain(table.column(name)) for name in table.column_names if name != "group_"}
    groups = np.asarray(table.column("group_").to_numpy(zero_copy_only=False)).astype(str)
    return PairedUnits(columns, groups)


def _plain(column: pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_integer(column.type):
        column = column.cast(pa.int64()).fill_null(-1)
    elif pa.types.is_boolean(column.type):
        column = column.fill_null(False)
    return np.asarray(column.to_numpy())


def difference_intervals(pairs: PairedUnits, workers: Workers) -> dict[str, tuple[float | None, Interval]]:
    """Metric -> (difference on the paired units, (low, high)): paired cluster bootstrap, 95 %."""
    if len(pairs.groups) == 0:
        return {}
    distinct, groups = group_codes(pairs.groups)
    use = np.flatnonzero((pairs.errors("a") >= 0) & (pairs.errors("b") >= 0))
    if len(use) == 0:
        return {}
    sides = [_metrics_of(pairs, side, use) for side in "ab"]
    hashes = key_hashes(distinct, "0")
    return paired_intervals(sides[0], sides[1], hashes, groups[use], workers)


def _metrics_of(pairs: PairedUnits, side: str, use: NDArray[np.int64]) -> Any:
    wrong = pairs.errors(side)[use].astype(np.float64)
    means = {
        name: pairs.columns[f"{column}_{side}"][use].astype(np.float64) for name, column in _MEANS.items()
    }
    proba = pairs.columns[f"error_proba_{side}"][use].astype(np.float64)
    ranked = None if np.isnan(proba).any() else RankedErrors.of(proba, pairs.errors(side)[use])

    def metrics(weight: NDArray[np.float64]) -> dict[str, float | None]:
        rate = _mean(wrong, weight)
        made = {"error_rate": rate, "accuracy": None if rate is None else 1 - rate}
        made |= {name: _mean(value, weight) for name, value in means.items()}
        return made | (ranked.metrics(weight) if ranked is not None else {})

    return metrics


def _mean(value: NDArray[np.float64], weight: NDArray[np.float64]) -> float | None:
    known = ~np.isnan(value)
    mass = float(weight[known].sum())
    return float((weight[known] * value[known]).sum()) / mass if mass > 0 else None


def rethresholded(pairs: PairedUnits, t1: float, t2: float) -> NDArray[np.int8]:
    """(N,) category numbers of side b under the thresholds of side a, -1 where unlabelled or not computed.

    The tables hold float32; a float32 that equals the threshold's float32 is not above it.
    """
    columns = {
        name: pairs.columns[f"{name}_b"].astype(np.float32)
        for name in ("error_proba", "baseline_risk", "local_error_lo", "predicted_risk_lo")
    }
    low, high = np.float32(t1), np.float32(t2)
    errors = pairs.errors("b")
    flags = Flags(
        errors == 1,
        columns["local_error_lo"] > high,
        columns["predicted_risk_lo"] > high,
        columns["baseline_risk"] <= high,
        pairs.columns["ambiguous_b"].astype(np.bool_),
        columns["error_proba"] <= low,
    )
    usable = (errors >= 0) & ~np.isnan(columns["error_proba"])
    return np.where(usable, categorise(flags), np.int8(-1)).astype(np.int8)


def category_numbers(names: NDArray[Any]) -> NDArray[np.int8]:
    """(N,) numbers of category names, -1 for none.

    Example:
        >>> category_numbers(np.array(["hotspot", None], dtype=object)).tolist()
        [2, -1]
    """
    made = np.full(len(names), -1, np.int8)
    for number, name in enumerate(CATEGORIES):
        made[names == name] = number
    return made


def transition_rows(dataset: str, before: NDArray[np.int8], after: NDArray[np.int8]) -> pd.DataFrame:
    """The 6 x 6 counts as rows; empty where a side has no categories."""
    if not ((before >= 0) & (after >= 0)).any():
        return pd.DataFrame(columns=["dataset", "category_a", "category_b", "counts"])
    counts = category_transitions(before, after)
    rows = [
        {"dataset": dataset, "category_a": a, "category_b": b, "counts": int(counts[i, j])}
        for i, a in enumerate(CATEGORIES)
        for j, b in enumerate(CATEGORIES)
    ]
    return pd.DataFrame(rows)


def group_rows(dataset: str, name: str, keys: NDArray[Any], pairs: PairedUnits) -> list[dict[str, Any]]:
    """Change of the error rate in each class or region."""
    changes = changes_by_group(keys.astype(np.int64), pairs.errors("a"), pairs.errors("b"))
    return [
        {
            "dataset": dataset,
            name: one.key,
            "n": one.n,
            "delta": one.delta,
            "p_value": one.p_value,
            "bh_sig": one.bh_sig,
        }
        for one in changes
    ]


def code_rows(dataset: str, before: Mapping[str, int], after: Mapping[str, int]) -> list[dict[str, Any]]:
    """Units of each diagnosis on both sides; `new` where it occurs in b only."""
    codes: Sequence[str] = sorted({*before, *after})
    return [
        {
            "dataset": dataset,
            "code": code,
            "counts_a": int(before.get(code, 0)),
            "counts_b": int(after.get(code, 0)),
            "new": bool(after.get(code)) and not before.get(code),
        }
        for code in codes
        if before.get(code) or after.get(code)
    ]
