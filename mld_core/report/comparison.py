"""Gathers what the page of two results shows: what moved, what was fixed, what regressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mld_core.evaluation.catalogue import BY_CODE
from mld_core.evaluation.compare import Comparison
from mld_core.evaluation.result import CATEGORIES, Result
from mld_core.report import samples
from mld_core.report.outline import IMAGE_BYTES, Gathered, epoch_name, first_shown, head, last_of_each_split
from mld_core.report.tables import category_rows, class_label, metric_rows, metric_texts, plain
from mld_core.report.texts import CATEGORY_TEXTS, METRIC_TEXTS
from mld_core.report.units import PassUnits, passes_of

CHANGED = 24
CLASS_ROWS = 50


def comparison_content(a: Result, b: Result, image_fn: samples.ImageFn | None = None) -> dict[str, Any]:
    """All that the page of two results shows, as plain values; of each split the last epoch."""
    if {a.task, b.task} != {"classification"}:
        raise ValueError(
            f"results {a.result_name!r} ({a.task}) and {b.result_name!r} ({b.task}): the page of two results "
            "compares classifications; write a page of each, or use Result.compare() and `mld compare`"
        )
    gathered = Gathered()
    compared = a.compare(b)
    sides = [_Side(a), _Side(b)]
    shared = [name for name in sides[0].last if name in sides[1].last]
    splits = [_split(name, compared, sides, gathered) for name in shared]
    for one in sides[0].passes, sides[1].passes:
        if len(one) > len({item.dataset for item in one}):
            gathered.note("Of each split the last epoch is compared.")
    images: dict[str, dict[str, str]] = {}
    for split in splits:
        ids = [card["id"] for kind in ("regressed", "fixed") for card in split[kind]["cards"]]
        found: dict[str, bytes] = {}
        for side in sides:
            found |= samples.stored_images(side.units(split["dataset"]), set(ids))
        if image_fn is not None:
            missing = [one for one in ids if one not in found]
            found |= samples.asked_images(sides[1].units(split["dataset"]), missing, image_fn)
        images[split["dataset"]], dropped = samples.within_budget(found, ids, IMAGE_BYTES // len(splits))
        if dropped:
            gathered.note(f"{split['dataset']}: {dropped} thumbnails were left out to keep the file small.")
    rows = sides[0].metrics + sides[1].metrics
    one_sided = sorted({*sides[0].last, *sides[1].last} - set(shared))
    if one_sided:
        gathered.note(f"Splits that only one of the results has are not compared: {', '.join(one_sided)}.")
    return {
        "kind": "comparison",
        "task": b.task,
        "head": {"a": head(a), "b": head(b)},
        "splits": splits,
        "first": _first(sides[1], shared),
        "metric_texts": metric_texts(rows),
        "category_texts": [vars(text).copy() for text in CATEGORY_TEXTS],
        "images": images,
        "left_out": gathered.left_out,
    }


class _Side:
    """One of the two results."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self.passes = passes_of(result)
        self.last = last_of_each_split(self.passes)
        self.metrics = metric_rows(result)
        self.categories = category_rows(result)

    def units(self, dataset: str) -> PassUnits:
        return self.passes[self.last[dataset]]


def _first(side: _Side, shared: Sequence[str]) -> int:
    if not shared:
        return 0
    name = side.passes[first_shown(side.passes, side.last)].dataset
    return shared.index(name) if name in shared else 0


def _split(name: str, compared: Comparison, sides: Sequence[_Side], gathered: Gathered) -> dict[str, Any]:
    counts = {key: plain(value) for key, value in _of(compared.units, name).iloc[0].items()}
    changed = _of(compared.changed, name)
    names = sides[1].result.class_names or sides[0].result.class_names
    made = {
        "dataset": name,
        "epochs": [epoch_name(side.units(name).n_epoch) for side in sides],
        "counts": counts,
        "metrics": _metrics(_of(compared.metrics, name)),
        "categories": [side.categories[side.last[name]]["shares"] for side in sides],
        "transitions": _transitions(_of(compared.transitions, name)),
        "classes": _classes(sides, name, names, _of(compared.classes, name)),
        "codes": _codes(_of(compared.codes, name)),
    }
    for kind in ("regressed", "fixed"):
        own = changed[changed["change"] == kind]
        if len(own) > CHANGED:
            gathered.note(
                f"{name}: {CHANGED} of {len(own)} {kind} samples are shown; Comparison.{kind} has all."
            )
        cards = [_card(row, names) for row in own.head(CHANGED).to_dict("records")]
        made[kind] = {"n": len(own), "cards": cards}
    return made


def _of(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    return frame[frame["dataset"] == dataset]


def _metrics(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The metrics of `METRIC_TEXTS` in their order, with every column the comparison gives."""
    known = {str(row["metric"]): row for row in frame.to_dict("records")}
    return [
        {str(key): plain(value) for key, value in known[text.name].items()}
        for text in METRIC_TEXTS
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


def _classes(
    sides: Sequence[_Side], dataset: str, names: Sequence[str] | None, tested: pd.DataFrame
) -> list[dict[str, Any]]:
    """Accuracy of each class on both sides, largest change first, and whether chance explains it."""
    sure = {int(row["class"]): bool(row["bh_sig"]) for row in tested.to_dict("records")}
    frames = [_of_epoch(side.result.class_summary(dataset), side.units(dataset).n_epoch) for side in sides]
    both = frames[0].merge(frames[1], on="class", suffixes=("_a", "_b"))
    both["delta"] = both["accuracy_b"] - both["accuracy_a"]
    both = both[both["delta"].notna()].sort_values("delta", key=abs, ascending=False, kind="stable")
    return [
        {
            "name": class_label(int(row["class"]), names),
            "n": plain(row["counts_b"]),
            "a": plain(row["accuracy_a"]),
            "b": plain(row["accuracy_b"]),
            "delta": plain(row["delta"]),
            "sig": sure.get(int(row["class"])),
        }
        for row in both.head(CLASS_ROWS).to_dict("records")
    ]


def _codes(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Samples that carry each diagnosis on both sides, most severe first."""
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


def _of_epoch(frame: pd.DataFrame, n_epoch: int | None) -> pd.DataFrame:
    keep = frame["n_epoch"].isna() if n_epoch is None else frame["n_epoch"] == n_epoch
    return frame.loc[keep, ["class", "counts", "accuracy"]]


def _card(row: dict[Any, Any], names: Sequence[str] | None) -> dict[str, Any]:
    def label(value: Any) -> str:
        return class_label(-1 if plain(value) is None else int(value), names)

    return {
        "id": str(row["input_id"]),
        "truth": None if plain(row["gt"]) is None else label(row["gt"]),
        "before": label(row["prediction_a"]),
        "after": label(row["prediction_b"]),
        "confidence_before": plain(row["confidence_a"]),
        "confidence_after": plain(row["confidence_b"]),
        "code_before": plain(row["error_code_a"]),
        "code_after": plain(row["error_code_b"]),
        "category_before": plain(row["category_a"]),
        "category_after": plain(row["category_b"]),
    }
