"""Two results side by side: how the metrics moved and which units were fixed or regressed.

Units are paired within a dataset by `input_hash` or by `input_id`, whichever pairs more of them (a content
hash does not survive augmentation, an id may be missing); repeats of a key are paired in order. Units of one
side only are counted, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd
from scipy.special import bdtr

from mld_core.evaluation.database import database, fetch

KEYS = ("input_hash", "input_id")


@dataclass(frozen=True)
class Comparison:
    """What changed from result `a` (the one `compare` was called on) to result `b`.

    Attributes:
        a: Name of the first result.
        b: Name of the second result.
        metrics: Columns dataset, metric, a, b, delta (= b - a); sums such as `net_entropy` stand beside
            `counts`.
        units: Columns dataset, joined_on, n_paired, n_fixed (wrong in a, right in b), n_regressed (right in
            a, wrong in b), n_only_a, n_only_b, mcnemar_p (exact two-sided p of fixed against regressed).
        changed: One row for each fixed or regressed unit: dataset, change, input_id, input_hash, gt and the
            prediction, confidence and error code of both sides.
        transitions: Columns dataset, category_a, category_b, counts; empty while either side has no
            categories.
    """

    a: str
    b: str
    metrics: pd.DataFrame
    units: pd.DataFrame
    changed: pd.DataFrame
    transitions: pd.DataFrame

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
    """One result as the comparison needs it: its metric rows and the unit table, by dataset."""

    name: str
    metrics: Mapping[str, Mapping[str, object]]
    units: Mapping[str, Path]


def compare_sides(a: Side, b: Side, spill: Path) -> Comparison:
    """Compare two results over the datasets they share; a dataset of one side only stands with its counts."""
    moved: list[dict[str, object]] = []
    counted: list[dict[str, object]] = []
    changed: list[pd.DataFrame] = []
    transitions: list[pd.DataFrame] = []
    for dataset in list(dict.fromkeys([*a.units, *b.units])):
        if dataset not in a.units or dataset not in b.units:
            side, name = (a, "n_only_a") if dataset in a.units else (b, "n_only_b")
            counted.append({"dataset": dataset, name: side.metrics[dataset]["counts"]})
            continue
        moved += _moved(dataset, a.metrics[dataset], b.metrics[dataset])
        with database(spill, a=[a.units[dataset]], b=[b.units[dataset]]) as connection:
            counted.append(_paired(connection, dataset))
            changed.append(_changed(connection))
            transitions.append(_transitions(connection))
    columns = [
        "dataset",
        "joined_on",
        "n_paired",
        "n_fixed",
        "n_regressed",
        "n_only_a",
        "n_only_b",
        "mcnemar_p",
    ]
    units = pd.DataFrame(counted, columns=columns)
    for name in columns[2:7]:
        units[name] = units[name].fillna(0).astype("int64")
    return Comparison(
        a.name,
        b.name,
        pd.DataFrame(moved, columns=["dataset", "metric", "a", "b", "delta"]),
        units,
        _stack(changed, _CHANGED),
        _stack(transitions, ("dataset", "category_a", "category_b", "counts")),
    )


_CHANGED = (
    *("dataset", "change", "input_id", "input_hash", "gt", "prediction_a", "prediction_b"),
    *("confidence_a", "confidence_b", "error_code_a", "error_code_b"),
)


_FACTS = frozenset(
    {
        "n_epoch",
        "pass_no",
        "rows_read",
        "duplicates_dropped",
        "non_unique_ids",
        "superseded_rows",
        "rows_lost",
        "torn_parts",
    }
    | {"count_overflow", "count_label_out_of_range"}
)
"""Numbers of the metrics table that say how the records were read, not how the model does."""


def mcnemar_exact(fixed: int, regressed: int) -> float | None:
    """Exact two-sided McNemar p of `fixed` against `regressed` changes; None where nothing changed.

    Example:
        >>> round(mcnemar_exact(1, 8), 4)
        0.0391
    """
    n = fixed + regressed
    return None if n == 0 else min(1.0, 2 * float(bdtr(min(fixed, regressed), n, 0.5)))


def _stack(frames: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    some = [frame for frame in frames if len(frame)]
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame(columns=list(columns))


def _moved(dataset: str, a: Mapping[str, object], b: Mapping[str, object]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, left in a.items():
        right = b.get(name)
        if (
            name in _FACTS
            or isinstance(left, bool)
            or not isinstance(left, int | float)
            or not isinstance(right, int | float)
        ):
            continue
        rows.append({"dataset": dataset, "metric": name, "a": left, "b": right, "delta": right - left})
    return rows


def _paired(connection: duckdb.DuckDBPyConnection, dataset: str) -> dict[str, object]:
    """Make the tables `left_`, `right_` and `pairs` by the key that pairs more units, and count them."""
    best, size = KEYS[-1], -1
    for key in KEYS:
        tallies = f"{_tally('a', key)} x JOIN {_tally('b', key)} y USING (k)"
        found = _count(connection, f"SELECT sum(least(x.n, y.n)) FROM {tallies}")  # noqa: S608
        if found > size:
            best, size = key, found
    for side in ("a", "b"):
        connection.execute(
            f"CREATE TEMP TABLE side_{side} AS SELECT *, row_number() OVER (PARTITION BY "  # noqa: S608
            f"{best} ORDER BY unit_id) AS nth_ "
            f"FROM {side}"
        )
    connection.execute(
        "CREATE TEMP TABLE pairs AS SELECT x.dataset, x.input_id, x.input_hash, "  # noqa: S608
        "coalesce(y.gt, x.gt) AS gt, "
        "x.prediction AS prediction_a, y.prediction AS prediction_b, x.confidence AS confidence_a, "
        "y.confidence AS confidence_b, x.error_code AS error_code_a, y.error_code AS error_code_b, "
        "x.is_error AS error_a, y.is_error AS error_b, x.category AS category_a, y.category AS category_b "
        f"FROM side_a x JOIN side_b y ON x.{best} = y.{best} AND x.nth_ = y.nth_"
    )
    paired = _count(connection, "SELECT count(*) FROM pairs")
    fixed = _count(connection, "SELECT count(*) FROM pairs WHERE error_a AND NOT error_b")
    regressed = _count(connection, "SELECT count(*) FROM pairs WHERE error_b AND NOT error_a")
    return {
        "dataset": dataset,
        "joined_on": best,
        "n_paired": paired,
        "n_fixed": fixed,
        "n_regressed": regressed,
        "n_only_a": _count(connection, "SELECT count(*) FROM a") - paired,
        "n_only_b": _count(connection, "SELECT count(*) FROM b") - paired,
        "mcnemar_p": mcnemar_exact(fixed, regressed),
    }


def _tally(side: str, key: str) -> str:
    return f"(SELECT {key} AS k, count(*) AS n FROM {side} WHERE {key} IS NOT NULL GROUP BY {key})"  # noqa: S608


def _count(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    return int(connection.execute(sql).fetchall()[0][0] or 0)


def _changed(connection: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    return fetch(
        connection,
        "SELECT dataset, CASE WHEN error_a THEN 'fixed' ELSE 'regressed' END AS change, input_id, "
        "input_hash, gt, "
        "prediction_a, prediction_b, confidence_a, confidence_b, error_code_a, error_code_b "
        "FROM pairs WHERE error_a <> error_b ORDER BY change DESC, confidence_b DESC NULLS FIRST, input_id",
    )


def _transitions(connection: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    return fetch(
        connection,
        "SELECT dataset, category_a, category_b, count(*) AS counts FROM pairs "
        "WHERE category_a IS NOT NULL AND category_b IS NOT NULL GROUP BY ALL ORDER BY ALL",
    )
