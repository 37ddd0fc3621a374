"""The truths two detections have in common: what each side made of them, and where that changed."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import pyarrow.parquet as pq

from mld_core.report.compared import CHANGED
from mld_core.report.frames_3d import FrameTable
from mld_core.views.units import PassUnits

Tables = tuple[FrameTable, FrameTable]
_READ = ("truth_id", "unit_id", "is_error", "gt", "input_id", "gt_idx", "confidence")


@dataclass(frozen=True)
class Pair:
    """An image (3D: a frame) in which truths changed.

    Attributes:
        images: Its number before and after, as in `FrameTable`.
        truths: `gt_idx` before and after of each truth that changed.
    """

    images: tuple[int, int]
    truths: tuple[tuple[int, int], ...]


def paired_truths(a: PassUnits, b: PassUnits) -> pd.DataFrame:
    """The truths both passes hold and judge, paired as `Comparison` pairs them.

    Returns:
        Columns gt (the class before), error_a, error_b, change ("fixed", "regressed" or None), and of both
        sides the unit's row, its input id, `gt_idx` and score.
    """
    made: pd.DataFrame = _truths(a).merge(_truths(b), on=["truth_id", "nth"], suffixes=("_a", "_b"))
    made = made[made["is_error_a"].notna() & made["is_error_b"].notna()].reset_index(drop=True)
    for side in "ab":
        made[f"error_{side}"] = made[f"is_error_{side}"].astype(bool)
    made["gt"] = made["gt_a"].fillna(made["gt_b"]).fillna(-1).astype("int64")
    made["change"] = pd.Series([None] * len(made), index=made.index, dtype=object)
    made.loc[made["error_a"] & ~made["error_b"], "change"] = "fixed"
    made.loc[made["error_b"] & ~made["error_a"], "change"] = "regressed"
    ordered: pd.DataFrame = made.sort_values("row_b", kind="stable", ignore_index=True)
    return ordered


def _truths(units: PassUnits) -> pd.DataFrame:
    """The units that stand for a truth; repeats of one are numbered in the order of the table."""
    frame: pd.DataFrame = pq.read_table(units.path, columns=list(_READ)).to_pandas()
    frame["row"] = range(len(frame))
    frame = frame[frame["truth_id"].notna()].sort_values("unit_id", kind="stable")
    frame["nth"] = frame.groupby("truth_id").cumcount()
    del frame["unit_id"]
    return frame


def changed_pairs(truths: pd.DataFrame, tables: Tables, kind: str) -> list[Pair]:
    """The images with truths that changed in one way, those with the most first, at most `CHANGED`.

    Of images with as many the one whose truth was found with the highest score on the side that found it.
    Images whose id occurs more than once in a pass are left out: their boxes cannot be told apart.
    """
    own = truths[truths["change"] == kind]
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    surest: dict[tuple[int, int], float] = {}
    scores = own["confidence_b" if kind == "fixed" else "confidence_a"].fillna(0.0).tolist()
    columns = ("row_a", "row_b", "gt_idx_a", "gt_idx_b")
    rows = own[list(columns)].astype("int64").to_numpy().tolist()
    for (row_a, row_b, truth_a, truth_b), score in zip(rows, scores, strict=True):
        images = (int(tables[0].frame[row_a]), int(tables[1].frame[row_b]))
        if min(images) >= 0:
            found.setdefault(images, []).append((truth_a, truth_b))
            surest[images] = max(surest.get(images, 0.0), score)
    ranked = sorted(found.items(), key=lambda one: (-len(one[1]), -surest[one[0]], one[0][::-1]))
    return [Pair(images, tuple(changed)) for images, changed in ranked[:CHANGED]]
