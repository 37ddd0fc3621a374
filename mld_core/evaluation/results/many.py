"""More than two results: each against the first, and what all of them got wrong, some of them, none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.results.compare import Comparison, Side, compare_sides
from mld_core.evaluation.statistics.significance import LEVEL, holm
from mld_core.records.format.schema import INDEX_SOURCES

MOST_OTHERS = 10
"""Results that one is compared with."""

Rows = NDArray[np.int32]


@dataclass(frozen=True)
class Comparisons:
    """What changed from the first of several results, the baseline, to each of the others.

    Attributes:
        names: Names of the results, the baseline first. Results of different runs may share one: in the
            tables `place` counts them, 0 = the baseline.
        against: The comparison of the baseline with each other result, in their order.
        metrics: Columns dataset, metric, place, result, value, and of the others delta, delta_paired,
            delta_lo and delta_hi as in `Comparison`; each interval is one of 95 % by itself.
        units: The columns of `Comparison.units` for each other result by place, with holm_p: mcnemar_p
            corrected for as many tests as there are other results (Holm), and better: 1 where significantly
            more units were fixed than regressed at 5 % after that, -1 where fewer, 0 where neither.
        together: Columns dataset, n_common (labelled units that all results hold), n_all (wrong in all of
            them), n_some, n_none.
    """

    names: tuple[str, ...]
    against: tuple[Comparison, ...]
    metrics: pd.DataFrame
    units: pd.DataFrame
    together: pd.DataFrame

    def __repr__(self) -> str:
        tables = [frame.to_string(index=False) for frame in (self.units, self.together, self.metrics)]
        return "\n".join([f"{self.names[0]} -> {', '.join(self.names[1:])}", *tables])

    def _repr_html_(self) -> str:
        return "".join(frame.to_html(index=False) for frame in (self.units, self.together, self.metrics))


def compare_many(sides: Sequence[Side], spill: Path, threads: int | None = None) -> Comparisons:
    """Compare the first of some results with each other one.

    Args:
        sides: The results, the baseline first.
        spill: Folder of the store where large joins spill.
        threads: Of the intervals.

    Raises:
        ValueError: None but the baseline, or too many.
    """
    if not 1 <= len(sides) - 1 <= MOST_OTHERS:
        raise ValueError(f"{len(sides) - 1} results to compare with the first: expected 1 to {MOST_OTHERS}")
    against = tuple(compare_sides(sides[0], other, spill, threads) for other in sides[1:])
    names = tuple(one.name for one in sides)
    units = pd.concat(
        [one.units.assign(place=place, result=one.b) for place, one in enumerate(against, 1)],
        ignore_index=True,
    )
    return Comparisons(names, against, _metrics(sides, against), _tested(units), _together(sides, against))


def _metrics(sides: Sequence[Side], against: Sequence[Comparison]) -> pd.DataFrame:
    """The baseline's values, then those of each other with what moved."""
    moved = ["delta", "delta_paired", "delta_lo", "delta_hi"]
    columns = ["dataset", "metric", "place", "result", "value", *moved]
    tables = [one.metrics.assign(place=place, result=one.b) for place, one in enumerate(against, 1)]
    first = pd.concat([one.metrics[["dataset", "metric", "a"]] for one in against]).drop_duplicates()
    base = first.rename(columns={"a": "value"}).assign(place=0, result=sides[0].name)
    others = pd.concat(tables).rename(columns={"b": "value"})
    made = pd.concat([base.reindex(columns=columns), others[columns]], ignore_index=True)
    order = {name: place for place, name in enumerate(dict.fromkeys(made["metric"]))}
    by = made["metric"].map(order)
    return (
        made.assign(by=by)
        .sort_values(["dataset", "by", "place"], kind="stable")[columns]
        .reset_index(drop=True)
    )


def _tested(units: pd.DataFrame) -> pd.DataFrame:
    """With McNemar's p corrected within each dataset."""
    raw = units["mcnemar_p"].astype("float64")
    units["holm_p"] = raw.groupby(units["dataset"]).transform(lambda one: holm(one.to_numpy()))
    sign = np.sign(units["n_fixed"] - units["n_regressed"])
    units["better"] = np.where(units["holm_p"] < LEVEL, sign, 0).astype("int64")
    first = ["dataset", "place", "result"]
    return units[[*first, *(name for name in units.columns if name not in first)]]


def _together(sides: Sequence[Side], against: Sequence[Comparison]) -> pd.DataFrame:
    rows = []
    for dataset in sides[0].units:
        if not all(dataset in one.units for one in sides):
            continue
        maps, errors = [], [_errors(sides[0].units[dataset])]
        for side, found in zip(sides[1:], against, strict=True):
            line = found.units[found.units["dataset"] == dataset].iloc[0]
            key = str(line["joined_on"])
            tables = [_key_columns(one.units[dataset], key) for one in (sides[0], side)]
            maps.append(aligned(tables[0], tables[1], key))
            errors.append(_errors(side.units[dataset]))
        rows.append(
            {"dataset": dataset, **counted(wrong_in(errors, in_all(len(errors[0]), maps)), len(sides))}
        )
    return pd.DataFrame(rows, columns=["dataset", "n_common", "n_all", "n_some", "n_none"])


def _key_columns(units: Path, key: str) -> dict[str, Any]:
    table = pq.read_table(units, columns=list(dict.fromkeys(("unit_id", key, "id_source"))))
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _errors(units: Path) -> NDArray[np.int8]:
    column = pq.read_table(units, columns=["is_error"]).column("is_error")
    return np.asarray(pc.fill_null(column.cast("int8"), -1).to_numpy(), np.int8)


# -- which rows are one unit ---------------------------------------------------------------------------------


def aligned(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> Rows:
    """The rows of two unit tables that are one unit, as `Comparison` pairs them.

    Args:
        a: Columns unit_id, id_source and the key of one table.
        b: Those of the other.
        key: What they are paired by: `Comparison.units` says it in joined_on.

    Returns:
        (N, 2) row numbers.
    """
    both = _keyed(a, key).merge(_keyed(b, key), on=["key", "nth"], suffixes=("_a", "_b"))
    return np.ascontiguousarray(both[["row_a", "row_b"]].to_numpy(), np.int32).reshape(-1, 2)


def _keyed(columns: Mapping[str, Any], key: str) -> pd.DataFrame:
    """Units that have a key; repeats of one are numbered in the order of their ids."""
    frame = pd.DataFrame(dict(columns))
    made = frame[key].astype(object)
    if key == "input_id":
        # Places in a data set and names are ids of two kinds, hashes of the content are none.
        places = frame["id_source"].isin(list(INDEX_SOURCES))
        made = ("place/" + made).where(places, "name/" + made)
        made = made.where(frame["id_source"] != "content_hash")
    frame = pd.DataFrame({"unit_id": frame["unit_id"], "key": made, "row": np.arange(len(frame))})
    frame = frame[frame["key"].notna()].sort_values("unit_id", kind="stable")
    frame["nth"] = frame.groupby("key").cumcount()
    return frame.drop(columns="unit_id")


def in_all(rows: int, maps: Sequence[Rows]) -> Rows:
    """(N, 1 + maps) rows of the units of a baseline that are in every other table, its own row first.

    Args:
        rows: Of the baseline.
        maps: Rows of it and of each other, as `aligned` gives them.
    """
    found = np.full((rows, 1 + len(maps)), -1, np.int32)
    found[:, 0] = np.arange(rows)
    for place, one in enumerate(maps, 1):
        found[one[:, 0], place] = one[:, 1]
    return found[(found >= 0).all(axis=1)]


def wrong_in(errors: Sequence[NDArray[np.int8]], rows: Rows) -> NDArray[np.int64]:
    """(N,) in how many results each unit is wrong, -1 where one of them has no label of it.

    Args:
        errors: Of each table: 1 wrong, 0 right, -1 unlabelled.
        rows: As `in_all` gives them.
    """
    said = np.stack([own[rows[:, place]] for place, own in enumerate(errors)], axis=1)
    return np.where((said >= 0).all(axis=1), said.sum(axis=1, dtype=np.int64), -1)


def counted(wrong: NDArray[np.int64], results: int) -> dict[str, int]:
    """How many units are wrong in all results, in some, in none.

    Example:
        >>> counted(np.array([0, 3, 1, -1, 2]), 3)
        {'n_common': 4, 'n_all': 1, 'n_some': 2, 'n_none': 1}
    """
    n_all, n_none = int((wrong == results).sum()), int((wrong == 0).sum())
    common = int((wrong >= 0).sum())
    return {"n_common": common, "n_all": n_all, "n_some": common - n_all - n_none, "n_none": n_none}
