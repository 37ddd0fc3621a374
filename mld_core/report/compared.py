"""What the pages of two results have in common, whatever the task: sides, metrics, categories, diagnoses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.results.compare import Comparison
from mld_core.evaluation.results.result import Result
from mld_core.report.outline import Gathered, epoch_name, first_shown, head, last_of_each_split
from mld_core.views.tables import category_rows, metric_rows, metric_texts, plain
from mld_core.views.units import PassUnits, passes_of
from mld_core.views.words.texts import CATEGORY_TEXTS, METRIC_TEXTS, MetricText

CHANGED = 24
"""Fixed samples, images or frames that are shown, and as many regressed ones."""

CLASS_ROWS = 50
KINDS = ("regressed", "fixed")


class Side:
    """One of the two results.

    Args:
        result: The result.
        texts: The metrics the page shows.
        more: Further columns of the metrics table the page needs.
    """

    def __init__(
        self, result: Result, texts: Sequence[MetricText] = METRIC_TEXTS, more: Sequence[str] = ()
    ) -> None:
        self.result = result
        self.texts = texts
        self.passes = passes_of(result)
        self.last = last_of_each_split(self.passes)
        self.metrics = metric_rows(result, texts, more)
        self.categories = category_rows(result)

    def units(self, dataset: str) -> PassUnits:
        """The last epoch of a split."""
        return self.passes[self.last[dataset]]

    def metric(self, dataset: str, name: str) -> Any:
        """A value of the last epoch of a split, None where it is not known."""
        return self.metrics[self.last[dataset]].get(name)


Sides = tuple[Side, Side]


def shared_splits(sides: Sides) -> list[str]:
    """The splits both results hold, in the order of the first."""
    return [name for name in sides[0].last if name in sides[1].last]


def note_epochs(sides: Sides, gathered: Gathered) -> None:
    """Say that earlier epochs are not compared, where there are any."""
    for one in sides[0].passes, sides[1].passes:
        if len(one) > len({item.dataset for item in one}):
            gathered.note("Of each split the last epoch is compared.")


def outer(
    sides: Sides, splits: Sequence[dict[str, Any]], images: dict[str, Any], gathered: Gathered
) -> dict[str, Any]:
    """The outer shape of every page of two results."""
    shared = shared_splits(sides)
    one_sided = sorted({*sides[0].last, *sides[1].last} - set(shared))
    if one_sided:
        gathered.note(f"Splits that only one of the results has are not compared: {', '.join(one_sided)}.")
    return {
        "kind": "comparison",
        "task": sides[1].result.task,
        "head": {"a": head(sides[0].result), "b": head(sides[1].result)},
        "splits": splits,
        "first": _first(sides[1], shared),
        "metric_texts": metric_texts(sides[0].metrics + sides[1].metrics, sides[1].texts),
        "category_texts": [vars(text).copy() for text in CATEGORY_TEXTS],
        "images": images,
        "left_out": gathered.left_out,
    }


def _first(side: Side, shared: Sequence[str]) -> int:
    if not shared:
        return 0
    name = side.passes[first_shown(side.passes, side.last)].dataset
    return shared.index(name) if name in shared else 0


def split_figures(name: str, compared: Comparison, sides: Sides) -> dict[str, Any]:
    """Counts, metrics, category shares and transitions of a split."""
    return {
        "dataset": name,
        "epochs": [epoch_name(side.units(name).n_epoch) for side in sides],
        "counts": {str(key): plain(value) for key, value in of_dataset(compared.units, name).iloc[0].items()},
        "metrics": _metrics(of_dataset(compared.metrics, name), sides[1].texts),
        "categories": [side.categories[side.last[name]]["shares"] for side in sides],
        "transitions": _transitions(of_dataset(compared.transitions, name)),
    }


def of_dataset(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The rows of a split."""
    return frame[frame["dataset"] == dataset]


def of_epoch(frame: pd.DataFrame, n_epoch: int | None) -> pd.DataFrame:
    """The rows of an epoch; None: of no epoch."""
    return frame[frame["n_epoch"].isna() if n_epoch is None else frame["n_epoch"] == n_epoch]


def class_names(sides: Sides) -> list[str] | None:
    """The names of the classes, those of the second result where both have some."""
    return sides[1].result.class_names or sides[0].result.class_names


def _metrics(frame: pd.DataFrame, texts: Sequence[MetricText]) -> list[dict[str, Any]]:
    """The metrics of `texts` in their order, with every column the comparison gives."""
    known = {str(row["metric"]): row for row in frame.to_dict("records")}
    return [
        {str(key): plain(value) for key, value in known[text.name].items()}
        for text in texts
        if text.name in known
    ]


def _transitions(frame: pd.DataFrame) -> list[list[int]] | None:
    """(6, 6) counts, category before by category after, in the order of the page; None without categories."""
    if frame.empty:
        return None
    order = {text.name: place for place, text in enumerate(CATEGORY_TEXTS)}
    table = [[0] * len(CATEGORIES) for _ in CATEGORIES]
    for row in frame.to_dict("records"):
        table[order[row["category_a"]]][order[row["category_b"]]] = int(row["counts"])
    return table


def diagnosis_changes(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Units that carry each diagnosis on both sides, most severe first."""
    found = [
        {
            "code": str(row["code"]),
            "title": BY_CODE[str(row["code"])].title,
            "severity": BY_CODE[str(row["code"])].severity,
            "action": BY_CODE[str(row["code"])].action,
            "a": int(row["counts_a"]),
            "b": int(row["counts_b"]),
            "fresh": bool(row["new"]),
        }
        for row in frame.to_dict("records")
        if str(row["code"]) in BY_CODE and row["counts_a"] + row["counts_b"] > 0
    ]
    return sorted(found, key=lambda row: (-row["severity"], row["code"]))
