"""The units two passes have in common whose judgement changed, as rows of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mld_core.records.format.schema import INDEX_SOURCES
from mld_core.views.cards import cards
from mld_core.views.selection import HeldUnits

KINDS = ("regressed", "fixed")
MOST_AT_ONCE = 200

Rows = NDArray[np.int32]


def changed_rows(a: HeldUnits, b: HeldUnits, key: str) -> dict[str, Rows]:
    """The units that were regressed (right in `a`, wrong in `b`) or fixed, the surest first.

    Units are paired as `Comparison` pairs them.

    Args:
        a: The pass before.
        b: The pass after.
        key: What they are paired by, as `Comparison.units` says in `joined_on`.

    Returns:
        (N, 2) row numbers before and after, for each of `KINDS`.
    """
    both: pd.DataFrame = _keyed(a, key).merge(_keyed(b, key), on=["key", "nth"], suffixes=("_a", "_b"))
    both = both[(both["wrong_a"] >= 0) & (both["wrong_b"] >= 0) & (both["wrong_a"] != both["wrong_b"])]
    both["sure"] = both[["sure_a", "sure_b"]].max(axis=1)
    both = both.sort_values(["sure", "row_b"], ascending=[False, True], kind="stable")
    return {
        kind: np.ascontiguousarray(
            both.loc[both["wrong_b"] == after, ["row_a", "row_b"]].to_numpy(), np.int32
        ).reshape(-1, 2)
        for kind, after in (("regressed", 1), ("fixed", 0))
    }


def _keyed(units: HeldUnits, key: str) -> pd.DataFrame:
    """Units that have a key; repeats of one are numbered in the order of their ids."""
    columns: dict[str, Any] = {
        name: units.texts(name) for name in dict.fromkeys(("unit_id", key, "id_source"))
    }
    frame = pd.DataFrame(columns)
    made = frame[key].astype(object)
    if (
        key == "input_id"
    ):  # places in a data set and names are ids of two kinds, hashes of the content are none
        places = frame["id_source"].isin(list(INDEX_SOURCES))
        made = ("place/" + made).where(places, "name/" + made)
        made = made.where(frame["id_source"] != "content_hash")
    frame = pd.DataFrame(
        {
            "unit_id": frame["unit_id"],
            "key": made,
            "row": np.arange(units.rows),
            "wrong": units.errors,
            "sure": units.floats("confidence"),
        }
    )
    frame = frame[frame["key"].notna()].sort_values("unit_id", kind="stable")
    frame["nth"] = frame.groupby("key").cumcount()
    return frame.drop(columns="unit_id")


def pairs(
    a: HeldUnits, b: HeldUnits, rows: Rows, offset: int = 0, limit: int = MOST_AT_ONCE
) -> list[dict[str, Any]]:
    """Some pairs as a page shows them: the unit before and after."""
    shown = rows[offset : offset + limit]
    before, after = cards(a, shown[:, 0]), cards(b, shown[:, 1])
    return [{"a": one, "b": other} for one, other in zip(before, after, strict=True)]


def of_class(b: HeldUnits, rows: Rows, number: int | None) -> Rows:
    """The pairs whose truth is of a class; None: all."""
    return rows if number is None else rows[b.truth[rows[:, 1]] == number]
