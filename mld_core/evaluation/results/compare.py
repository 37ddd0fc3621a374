"""Two results side by side: how the metrics moved and which units were fixed or regressed.

Units are paired within a dataset by their ids. Only where no id stands on both sides (ids that are hashes of
the content, places on one side and names on the other) they are paired by `input_hash`, within one kind of
hash. Repeats of a key are paired in order. Units of one side only are counted, never dropped silently. Of
detections the truths are paired: found or missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.analysis.units import unit_name
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.errors import TaskError
from mld_core.evaluation.results.database import database
from mld_core.evaluation.results.expression import quoted
from mld_core.evaluation.results.frames import fetch
from mld_core.evaluation.results.paired import (
    COLUMNS,
    PairedUnits,
    category_numbers,
    code_rows,
    difference_intervals,
    group_rows,
    mcnemar_exact,
    read_pairs,
    rethresholded,
    transition_rows,
)
from mld_core.evaluation.statistics.bootstrap import Interval
from mld_core.records.format.schema import INDEX_SOURCES

KEYS = ("input_id", "input_hash")
TRUTH_KEYS = ("truth_id",)
"""Detection: a unit stands for a truth (found or missed); predictions without one have no counterpart."""

# Places in a data set and names are ids of two kinds: the name "17" is not the 17th sample. A hash is none.
_PLACES = ", ".join(f"'{source}'" for source in INDEX_SOURCES)
_KEY = {
    "input_id": "CASE WHEN {0}.id_source = 'content_hash' THEN NULL WHEN {0}.id_source IN ("
    + _PLACES
    + ") THEN 'place/' || {0}.input_id ELSE 'name/' || {0}.input_id END",
    "input_hash": "{0}.input_hash",
    "truth_id": "{0}.truth_id",
}

Rows = NDArray[np.int32]

_SHOWN = ("prediction", "confidence", "error_code", "category")


@dataclass(frozen=True)
class Comparison:
    """What changed from result `a` (the one `compare` was called on) to result `b`.

    Attributes:
        a: Name of the first result.
        b: Name of the second result.
        metrics: Columns dataset, metric, a, b, delta (= b - a), and delta_paired with its 95 % interval
            delta_lo and delta_hi on the units both sides hold (paired cluster bootstrap; null for metrics
            that need every class score); sums such as `net_entropy` stand beside `counts`.
        units: Columns dataset, joined_on, n_paired, n_fixed (wrong in a, right in b), n_regressed (right in
            a, wrong in b), n_only_a, n_only_b, mcnemar_p (exact two-sided p of fixed against regressed).
        changed: One row for each fixed (C91) or regressed (C90) unit: dataset, change, code, input_id,
            input_hash, gt, and of both sides the prediction, confidence, error code and category.
        transitions: Columns dataset, category_a, category_b, counts: 6 x 6 rows for each dataset, both sides
            under the thresholds of `a`; empty while either side has no categories.
        classes: Columns dataset, class, n, delta (error rate in b - in a), p_value (exact McNemar), bh_sig.
        regions: The same for each region of `a`, by region_id.
        codes: Columns dataset, code, counts_a, counts_b, new (occurs in b only).
        rows: Of each dataset of both sides (n_paired, 2) row numbers of the units that were paired, in the
            unit table of `a` and in that of `b`.
    """

    a: str
    b: str
    metrics: pd.DataFrame
    units: pd.DataFrame
    changed: pd.DataFrame
    transitions: pd.DataFrame
    classes: pd.DataFrame
    regions: pd.DataFrame
    codes: pd.DataFrame
    rows: Mapping[str, Rows] = field(repr=False)

    @property
    def fixed(self) -> pd.DataFrame:
        """Units that were wrong in `a` and are right in `b`."""
        return self.changed[self.changed["change"] == "fixed"].reset_index(drop=True)

    @property
    def regressed(self) -> pd.DataFrame:
        """Units that were right in `a` and are wrong in `b`."""
        return self.changed[self.changed["change"] == "regressed"].reset_index(drop=True)

    def __repr__(self) -> str:
        tables = [frame.to_string(index=False) for frame in (self.units, self.metrics)]
        return "\n".join([f"{self.a} -> {self.b}", *tables])

    def _repr_html_(self) -> str:
        return self.units.to_html(index=False) + self.metrics.to_html(index=False)


@dataclass(frozen=True)
class Side:
    """One result as the comparison needs it, by dataset.

    Attributes:
        name: Name of the result.
        task: What was evaluated.
        metrics: Rows of the metrics table.
        units: Unit tables.
        facts: Thresholds and counts of the analysis.
        group_key: Column of the unit table that keeps units together, or None.
        keys: Columns units may be paired by, the first that pairs any counts.
        hash_kinds: How `input_hash` was made, None where that is not known or differs from rank to rank.
    """

    name: str
    task: str
    metrics: Mapping[str, Mapping[str, object]]
    units: Mapping[str, Path]
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    group_key: str | None = None
    keys: tuple[str, ...] = KEYS
    hash_kinds: Mapping[str, str | None] = field(default_factory=dict)


def side_of(
    folder: Path, info: Mapping[str, Any], keys: tuple[str, ...], dataset_type: str | None, place: int | None
) -> Side:
    """A result as the comparison needs it.

    Args:
        folder: Its folder.
        info: Its result.json.
        keys: Columns its units may be paired by.
        dataset_type: Only this split.
        place: Only this one of its passes; None = the last epoch of each split.
    """
    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    facts = info.get("facts") or [{} for _ in rows]
    own = [
        (str(one["dataset"]), one, row, fact)
        for number, (one, row, fact) in enumerate(zip(info["passes"], rows, facts, strict=True))
        if dataset_type in {None, one["dataset"]} and place in {None, number}
    ]
    group = info["options"].get("group_key")
    return Side(
        str(info["result_name"]),
        str(info.get("task", "classification")),
        metrics={name: row for name, _, row, _ in own},
        units={name: folder / str(one["units"]) for name, one, _, _ in own},
        facts={name: fact for name, _, _, fact in own},
        group_key=None if group is None else unit_name(str(group)),
        keys=keys,
        hash_kinds={name: one.get("hash_kind") for name, one, _, _ in own},
    )


def check_tasks(a: tuple[str, str], b: tuple[str, str]) -> None:
    """Refuse results of different tasks; of each its name and its task.

    Raises:
        TaskError: They are.
    """
    if a[1] != b[1]:
        raise TaskError(
            f"results {a[0]!r} ({a[1]}) and {b[0]!r} ({b[1]}): only results of one task are compared"
        )


def compare_sides(a: Side, b: Side, spill: Path, threads: int | None = None) -> Comparison:
    """Compare two results over the datasets they share; a dataset of one side only stands with its counts.

    Raises:
        TaskError: They are of different tasks.
    """
    check_tasks((a.name, a.task), (b.name, b.task))
    found: _Rows = {name: [] for name in _COLUMNS}
    changed: list[pd.DataFrame] = []
    paired: dict[str, Rows] = {}
    for dataset in list(dict.fromkeys([*a.units, *b.units])):
        if dataset not in a.units or dataset not in b.units:
            side, name = (a, "n_only_a") if dataset in a.units else (b, "n_only_b")
            found["units"].append({"dataset": dataset, name: side.metrics[dataset]["counts"]})
            continue
        with (
            database(spill, numbered=True, a=[a.units[dataset]], b=[b.units[dataset]]) as connection,
            Workers(threads) as workers,
        ):
            changed.append(_compare_dataset(connection, dataset, a, b, found, workers))
            paired[dataset] = _rows(connection)
    frames = {name: pd.DataFrame(rows, columns=list(_COLUMNS[name])) for name, rows in found.items()}
    for name in _COUNTS:
        frames["units"][name] = frames["units"][name].fillna(0).astype("int64")
    some = [frame for frame in changed if len(frame)]
    if some:
        frames["changed"] = pd.concat(some, ignore_index=True)
    return Comparison(a.name, b.name, **frames, rows=paired)


def _compare_dataset(
    connection: duckdb.DuckDBPyConnection, dataset: str, a: Side, b: Side, found: _Rows, workers: Workers
) -> pd.DataFrame:
    """Add the rows of a dataset to those of each table; its changed units come back."""
    key = a.group_key if a.group_key is not None and a.group_key == b.group_key else None
    keys = a.keys if a.keys == b.keys else KEYS
    if a.hash_kinds.get(dataset) != b.hash_kinds.get(dataset):
        keys = tuple(name for name in keys if name != "input_hash")
    found["units"].append(_paired(connection, dataset, key, keys))
    pairs = read_pairs(connection, key)
    intervals = difference_intervals(pairs, workers)
    if a.keys == TRUTH_KEYS:
        # Of the paired truths: the share that is found.
        intervals = {"recall": intervals["accuracy"]} if "accuracy" in intervals else {}
    found["metrics"] += _moved(dataset, a.metrics[dataset], b.metrics[dataset], intervals)
    found["transitions"] += _transitions(dataset, pairs, a, b)
    errors = (pairs.errors("a"), pairs.errors("b"))
    found["classes"] += group_rows(dataset, "class", pairs.columns["gt_a"], *errors)
    found["regions"] += group_rows(dataset, "region_id", pairs.columns["region_id_a"], *errors)
    counts = [side.facts.get(dataset, {}).get("code_counts", {}) for side in (a, b)]
    found["codes"] += code_rows(dataset, counts[0], counts[1])
    return _changed(connection)


def _transitions(dataset: str, pairs: PairedUnits, a: Side, b: Side) -> list[dict[str, Any]]:
    """Category transitions; those of b are made anew where a was cut at other thresholds."""
    before = category_numbers(pairs.columns["category_a"])
    after = category_numbers(pairs.columns["category_b"])
    cuts = [tuple(side.facts.get(dataset, {}).get(name) for name in ("t1", "t2")) for side in (a, b)]
    t1, t2 = cuts[0]
    if cuts[0] != cuts[1] and t1 is not None and t2 is not None:
        after = rethresholded(pairs, float(t1), float(t2))
    return transition_rows(dataset, before, after)


_METRICS = ("dataset", "metric", "a", "b", "delta", "delta_paired", "delta_lo", "delta_hi")
_COUNTS = ("n_paired", "n_fixed", "n_regressed", "n_only_a", "n_only_b")
_CHANGE = ("n", "delta", "p_value", "bh_sig")
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "metrics": _METRICS,
    "units": ("dataset", "joined_on", *_COUNTS, "mcnemar_p"),
    "changed": (
        *("dataset", "change", "code", "input_id", "input_hash", "gt", "prediction_a", "prediction_b"),
        *("confidence_a", "confidence_b", "error_code_a", "error_code_b", "category_a", "category_b"),
    ),
    "transitions": ("dataset", "category_a", "category_b", "counts"),
    "classes": ("dataset", "class", *_CHANGE),
    "regions": ("dataset", "region_id", *_CHANGE),
    "codes": ("dataset", "code", "counts_a", "counts_b", "new"),
}
_Rows = dict[str, list[dict[str, Any]]]

_FACTS = frozenset(
    {"n_epoch", "pass_no", "rows_read", "duplicates_dropped", "non_unique_ids", "superseded_rows"}
    | {"rows_lost", "torn_parts", "count_overflow", "count_label_out_of_range"}
)
"""Numbers of the metrics table that say how the records were read, not how the model does."""


def _moved(
    dataset: str,
    a: Mapping[str, object],
    b: Mapping[str, object],
    intervals: Mapping[str, tuple[float | None, Interval]],
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, left in a.items():
        right = b.get(name)
        if (
            name in _FACTS
            or name.endswith(("_lo", "_hi"))
            or isinstance(left, bool)
            or not isinstance(left, int | float)
            or not isinstance(right, int | float)
        ):
            continue
        paired, (low, high) = intervals.get(name, (None, (None, None)))
        made = (dataset, name, left, right, right - left, paired, low, high)
        rows.append(dict(zip(_METRICS, made, strict=True)))
    return rows


def _paired(
    connection: duckdb.DuckDBPyConnection, dataset: str, key: str | None, keys: tuple[str, ...]
) -> dict[str, object]:
    """Make the table `both_` by the first key that pairs any units, and count them."""
    best = keys[0]
    for name in keys:
        pairs = f"FROM a JOIN b ON {_KEY[name].format('a')} = {_KEY[name].format('b')}"
        if _count(connection, f"SELECT count(*) FROM (SELECT 1 {pairs} LIMIT 1)"):  # noqa: S608
            best = name
            break
    wanted = dict.fromkeys((*COLUMNS, *_SHOWN, "flags"))
    names = ("unit_id", "dataset", "input_id", "input_hash", "file_row_number", *wanted)
    groups = {"a": "NULL" if key is None else f"CAST({quoted(key)} AS VARCHAR)", "b": "NULL"}
    for side, group in groups.items():
        connection.execute(
            f"CREATE TEMP TABLE side_{side} AS SELECT {', '.join(dict.fromkeys(names))}, "  # noqa: S608
            f"{group} AS key_, {_KEY[best].format(side)} AS k_, row_number() OVER "
            f"(PARTITION BY {_KEY[best].format(side)} ORDER BY unit_id) AS nth_ FROM {side}"
        )
    sides = ", ".join(f"x.{name} AS {name}_a, y.{name} AS {name}_b" for name in wanted)
    connection.execute(
        "CREATE TEMP TABLE both_ AS SELECT x.unit_id, x.dataset, x.input_id, x.input_hash, "  # noqa: S608
        f"coalesce(y.gt, x.gt) AS gt, x.key_, {sides}, "
        "x.file_row_number AS row_a, y.file_row_number AS row_b "
        "FROM side_a x JOIN side_b y ON x.k_ = y.k_ AND x.nth_ = y.nth_"
    )
    paired = _count(connection, "SELECT count(*) FROM both_")
    there = "truth_id" if keys == TRUTH_KEYS else "*"
    fixed = _count(connection, "SELECT count(*) FROM both_ WHERE is_error_a AND NOT is_error_b")
    regressed = _count(connection, "SELECT count(*) FROM both_ WHERE is_error_b AND NOT is_error_a")
    return {
        "dataset": dataset,
        "joined_on": best,
        "n_paired": paired,
        "n_fixed": fixed,
        "n_regressed": regressed,
        "n_only_a": _count(connection, f"SELECT count({there}) FROM a") - paired,  # noqa: S608
        "n_only_b": _count(connection, f"SELECT count({there}) FROM b") - paired,  # noqa: S608
        "mcnemar_p": mcnemar_exact(fixed, regressed),
    }


def _count(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    return int(connection.execute(sql).fetchall()[0][0] or 0)


def _rows(connection: duckdb.DuckDBPyConnection) -> Rows:
    found = connection.execute("SELECT row_a, row_b FROM both_ ORDER BY row_a").fetchnumpy()
    return np.stack([np.asarray(found[name], np.int32) for name in ("row_a", "row_b")], axis=1)


def _changed(connection: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    sides = ", ".join(f"{name}_{side}" for name in _SHOWN for side in "ab")
    return fetch(
        connection,
        "SELECT dataset, CASE WHEN is_error_a THEN 'fixed' ELSE 'regressed' END AS change, "  # noqa: S608
        f"CASE WHEN is_error_a THEN 'C91' ELSE 'C90' END AS code, input_id, input_hash, gt, {sides} FROM "
        "both_ WHERE is_error_a <> is_error_b ORDER BY change DESC, confidence_b DESC NULLS FIRST, input_id",
    )
