"""Paired statistics of a comparison: intervals of differences, exact McNemar, transitions, changes by group.

All functions take units that were already joined (same input on both sides), in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import CATEGORIES, Flags, categorise
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics.bootstrap import Interval, RankedErrors, bootstrap
from mld_core.evaluation.statistics.folds import group_codes, key_hashes
from mld_core.evaluation.statistics.significance import benjamini_hochberg

Metrics = Callable[[NDArray[np.float64]], Mapping[str, float | None]]
"""Metrics of one side from (N,) weights of its units, such as `RankedErrors.metrics`."""

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
    use = np.flatnonzero((pairs.errors("a") >= 0) & (pairs.errors("b") >= 0))
    if len(use) == 0:
        return {}
    distinct, groups = group_codes(pairs.groups)
    before, after = (_metrics_of(pairs, side, use) for side in "ab")
    return paired_intervals(before, after, key_hashes(distinct, "0"), groups[use], workers)


def paired_intervals(
    before: Metrics, after: Metrics, hashes: NDArray[np.uint64], groups: NDArray[np.int64], workers: Workers
) -> dict[str, tuple[float | None, Interval]]:
    """Differences after - before of metrics with paired cluster-bootstrap intervals.

    Both sides draw the same groups.

    Args:
        before: Metrics of the first result.
        after: Metrics of the second.
        hashes: (G,) hashes of the group keys.
        groups: (N,) place of each unit's group.
        workers: Open pool.

    Returns:
        Metric -> (difference, (low, high)).
    """

    def difference(weight: NDArray[np.float64]) -> dict[str, float | None]:
        a, b = before(weight), after(weight)
        both = {name: (left, b[name]) for name, left in a.items() if name in b}
        return {name: None if x is None or y is None else y - x for name, (x, y) in both.items()}

    exact = difference(np.ones(len(groups)))
    intervals = bootstrap(difference, hashes, groups, workers)
    return {name: (value, intervals.get(name, (None, None))) for name, value in exact.items()}


def _metrics_of(pairs: PairedUnits, side: str, use: NDArray[np.int64]) -> Metrics:
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


def mcnemar_exact(fixed: int, regressed: int) -> float | None:
    """Two-sided exact McNemar p-value: the discordant units under Binomial(n, 1/2), doubled, at most 1.

    None where nothing changed.

    Example:
        >>> mcnemar_exact(1, 9)
        0.021484375
    """
    from scipy.special import betainc

    low, total = min(fixed, regressed), fixed + regressed
    if total == 0:
        return None
    return 1.0 if 2 * low == total else min(1.0, 2 * float(betainc(total - low, low + 1, 0.5)))


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


def category_transitions(before: NDArray[np.integer], after: NDArray[np.integer]) -> NDArray[np.int64]:
    """(6, 6) units by category before (rows) and after (columns); unlabelled units (-1) are left out.

    Example:
        >>> category_transitions(np.array([0, 0, -1]), np.array([0, 2, 1]))[0].tolist()
        [1, 0, 1, 0, 0, 0]
    """
    size = len(CATEGORIES)
    known = (before >= 0) & (after >= 0)
    flat = before[known].astype(np.int64) * size + after[known]
    return np.bincount(flat, minlength=size * size).reshape(size, size)


def transition_rows(dataset: str, before: NDArray[np.int8], after: NDArray[np.int8]) -> list[dict[str, Any]]:
    """The 6 x 6 counts as rows; none where a side has no categories."""
    counts = category_transitions(before, after)
    return [
        {"dataset": dataset, "category_a": a, "category_b": b, "counts": int(counts[i, j])}
        for i, a in enumerate(CATEGORIES)
        for j, b in enumerate(CATEGORIES)
        if counts.any()
    ]


def group_rows(
    dataset: str,
    name: str,
    keys: NDArray[np.integer],
    before: NDArray[np.integer],
    after: NDArray[np.integer],
) -> list[dict[str, Any]]:
    """Change of the error rate in each class or region.

    Args:
        dataset: First column.
        name: Name of the column that holds the key.
        keys: (N,) number of each unit's group; those below 0 are left out.
        before: (N,) errors: 1 wrong, 0 right, -1 unknown; units unknown on a side are left out.
        after: (N,) errors of the other side.

    Returns:
        dataset, the key, n, delta (rate after - before), p_value (exact McNemar in the group), bh_sig
        (significant after Benjamini-Hochberg over the groups).
    """
    known = (keys >= 0) & (before >= 0) & (after >= 0)
    rows = np.flatnonzero(known)
    distinct, where = np.unique(keys[rows], return_inverse=True)
    size, fixed, regressed = (
        np.bincount(where, weights=weights, minlength=len(distinct)).astype(np.int64)
        for weights in (known[rows], before[rows] > after[rows], before[rows] < after[rows])
    )
    p_values = [mcnemar_exact(int(f), int(r)) for f, r in zip(fixed, regressed, strict=True)]
    shown = np.array([1.0 if p is None else p for p in p_values])
    delta = (regressed - fixed) / size
    columns = {
        name: distinct,
        "n": size,
        "delta": delta,
        "p_value": shown,
        "bh_sig": benjamini_hochberg(shown),
    }
    made = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [{"dataset": dataset, **dict(zip(columns, row, strict=True))} for row in made]


def code_rows(dataset: str, before: Mapping[str, int], after: Mapping[str, int]) -> list[dict[str, Any]]:
    """Units of each diagnosis on both sides; `new` where it occurs in b only."""
    counts = {code: (int(before.get(code, 0)), int(after.get(code, 0))) for code in sorted({*before, *after})}
    return [
        {"dataset": dataset, "code": code, "counts_a": a, "counts_b": b, "new": b > 0 and a == 0}
        for code, (a, b) in counts.items()
        if a or b
    ]
