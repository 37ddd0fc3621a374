"""More than two results: each against the first, and what all of them got wrong, some of them, none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.results.compare import Comparison, Rows, Side, compare_sides
from mld_core.evaluation.statistics.significance import LEVEL, holm

MOST_OTHERS = 10
"""Results that one is compared with."""


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
            corrected for as many tests as there are other results with that dataset (Holm), and better: 1
            where significantly more units were fixed than regressed at 5 % after that, -1 where fewer, 0
            where neither.
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
        TaskError: They are of different tasks.
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
    """With McNemar's p corrected within each dataset, for the results that hold it."""
    raw = units.loc[units["joined_on"].notna(), "mcnemar_p"].astype("float64")
    units["holm_p"] = raw.groupby(units["dataset"]).transform(lambda one: holm(one.to_numpy()))
    sign = np.sign(units["n_fixed"] - units["n_regressed"])
    units["better"] = np.where(units["holm_p"] < LEVEL, sign, 0).astype("int64")
    first = ["dataset", "place", "result"]
    return units[[*first, *(name for name in units.columns if name not in first)]]


def _together(sides: Sequence[Side], against: Sequence[Comparison]) -> pd.DataFrame:
    rows = []
    for dataset in sides[0].units:
        if all(dataset in one.units for one in sides):
            errors = [_errors(one.units[dataset]) for one in sides]
            wrong = wrong_in(errors, rows_of_all(len(errors[0]), [one.rows[dataset] for one in against]))
            rows.append({"dataset": dataset, **counted(wrong, len(sides))})
    return pd.DataFrame(rows, columns=["dataset", "n_common", "n_all", "n_some", "n_none"])


def _errors(units: Path) -> NDArray[np.int8]:
    column = pq.read_table(units, columns=["is_error"]).column("is_error")
    return np.asarray(pc.fill_null(column.cast("int8"), -1).to_numpy(), np.int8)


# -- which rows are one unit ---------------------------------------------------------------------------------


def rows_of_all(rows: int, paired: Sequence[Rows]) -> Rows:
    """(rows, 1 + others) the row of each unit of a baseline in every table, -1 where one does not hold it.

    Args:
        rows: Of the baseline.
        paired: Those of it and of each other table, as `Comparison.rows` has them.
    """
    found = np.full((rows, 1 + len(paired)), -1, np.int32)
    found[:, 0] = np.arange(rows)
    for place, one in enumerate(paired, 1):
        found[one[:, 0], place] = one[:, 1]
    return found


def wrong_in(errors: Sequence[NDArray[np.int8]], rows: Rows) -> NDArray[np.int8]:
    """(N,) in how many results each unit is wrong, -1 where one of them does not hold it, or has no label.

    Args:
        errors: Of each table: 1 wrong, 0 right, -1 unlabelled.
        rows: As `rows_of_all` gives them.
    """
    wrong = np.zeros(len(rows), np.int8)
    known = np.ones(len(rows), np.bool_)
    for place, own in enumerate(errors):
        # The last entry stands for row -1.
        said = np.append(own, np.int8(-1))[rows[:, place]]
        known &= said >= 0
        wrong += said > 0
    return np.where(known, wrong, np.int8(-1))


def counted(wrong: NDArray[np.int8], results: int) -> dict[str, int]:
    """How many units are wrong in all results, in some, in none.

    Example:
        >>> counted(np.array([0, 3, 1, -1, 2]), 3)
        {'n_common': 4, 'n_all': 1, 'n_some': 2, 'n_none': 1}
    """
    n_all, n_none = int((wrong == results).sum()), int((wrong == 0).sum())
    common = int((wrong >= 0).sum())
    return {"n_common": common, "n_all": n_all, "n_some": common - n_all - n_none, "n_none": n_none}
