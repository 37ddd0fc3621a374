"""Gathers what the page of two results shows: what moved, what was fixed, what regressed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mld_core.evaluation.results.compare import Comparison
from mld_core.evaluation.results.result import Result
from mld_core.report.compared import (
    CHANGED,
    CLASS_ROWS,
    KINDS,
    Side,
    Sides,
    class_names,
    diagnosis_changes,
    note_epochs,
    of_dataset,
    of_epoch,
    outer,
    shared_splits,
    split_figures,
)
from mld_core.report.comparison_boxes import box_comparison
from mld_core.report.outline import IMAGE_BYTES, Gathered
from mld_core.views import samples
from mld_core.views.tables import class_label, plain


def comparison_content(a: Result, b: Result, image_fn: samples.ImageFn | None = None) -> dict[str, Any]:
    """All that the page of two results shows, as plain values; of each split the last epoch.

    Raises:
        ValueError: The results are of different tasks.
    """
    if a.task != b.task:
        raise ValueError(
            f"results {a.result_name!r} ({a.task}) and {b.result_name!r} ({b.task}): the page of two results "
            "compares results of one task; give two of the same task, or write a page of each"
        )
    if a.task != "classification":
        return box_comparison(a, b, image_fn)
    gathered = Gathered()
    compared = a.compare(b)
    sides = (Side(a), Side(b))
    splits = [_split(name, compared, sides, gathered) for name in shared_splits(sides)]
    note_epochs(sides, gathered)
    images: dict[str, dict[str, str]] = {}
    for split in splits:
        ids = [card["id"] for kind in KINDS for card in split[kind]["cards"]]
        found: dict[str, bytes] = {}
        for side in sides:
            found |= samples.stored_images(side.units(split["dataset"]), set(ids))
        if image_fn is not None:
            missing = [one for one in ids if one not in found]
            found |= samples.asked_images(sides[1].units(split["dataset"]), missing, image_fn)
        images[split["dataset"]], dropped = samples.within_budget(found, ids, IMAGE_BYTES // len(splits))
        if dropped:
            gathered.note(f"{split['dataset']}: {dropped} thumbnails were left out to keep the file small.")
    return outer(sides, splits, images, gathered)


def _split(name: str, compared: Comparison, sides: Sides, gathered: Gathered) -> dict[str, Any]:
    changed = of_dataset(compared.changed, name)
    names = class_names(sides)
    made = {
        **split_figures(name, compared, sides),
        "classes": _classes(sides, name, names, of_dataset(compared.classes, name)),
        "codes": diagnosis_changes(of_dataset(compared.codes, name)),
    }
    for kind in KINDS:
        own = changed[changed["change"] == kind]
        if len(own) > CHANGED:
            gathered.note(
                f"{name}: {CHANGED} of {len(own)} {kind} samples are shown; Comparison.{kind} has all."
            )
        cards = [_card(row, names) for row in own.head(CHANGED).to_dict("records")]
        made[kind] = {"n": len(own), "cards": cards}
    return made


def _classes(
    sides: Sides, dataset: str, names: Sequence[str] | None, tested: pd.DataFrame
) -> list[dict[str, Any]]:
    """Accuracy of each class on both sides, largest change first, and whether chance explains it."""
    sure = {int(row["class"]): bool(row["bh_sig"]) for row in tested.to_dict("records")}
    frames = [
        of_epoch(side.result.class_summary(dataset), side.units(dataset).n_epoch)[
            ["class", "counts", "accuracy"]
        ]
        for side in sides
    ]
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
