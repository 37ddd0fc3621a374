"""What the pages of all tasks have in common: passes shown, who the page is about, what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mld_core.evaluation.results.result import Result
from mld_core.report import maps
from mld_core.views import charts, tables
from mld_core.views.units import PassUnits, spread
from mld_core.views.words.texts import CATEGORY_TEXTS

MAX_PASSES = 24
IMAGE_BYTES = 5_000_000
MAX_PROBLEMS = 40


class Gathered:
    """The content of a page as plain values, and notes on what is not in it."""

    def __init__(self) -> None:
        self.left_out: list[str] = []

    def note(self, text: str) -> None:
        """Say once what is missing and why."""
        if text not in self.left_out:
            self.left_out.append(text)


def epoch_name(n_epoch: int | None) -> str:
    """Name of an epoch for people; it counts from 0 as the trainer does.

    Example:
        >>> epoch_name(3), epoch_name(-1), epoch_name(None)
        ('epoch 3', 'before training', 'no epoch')
    """
    if n_epoch is None:
        return "no epoch"
    return "before training" if n_epoch < 0 else f"epoch {n_epoch}"


def last_of_each_split(passes: Sequence[PassUnits]) -> dict[str, int]:
    """Place of the last epoch of each split."""
    return {one.dataset: place for place, one in enumerate(passes)}


def chosen_passes(passes: Sequence[PassUnits], gathered: Gathered) -> list[int]:
    """The passes shown in detail: all, or the last epochs and an even choice of the others."""
    if len(passes) <= MAX_PASSES:
        return list(range(len(passes)))
    last = set(last_of_each_split(passes).values())
    others = [place for place in range(len(passes)) if place not in last]
    room = max(0, MAX_PASSES - len(last))
    picked = {others[int(place)] for place in spread(len(others), room)}
    gathered.note(
        f"Details are shown for {len(last | picked)} of {len(passes)} passes: the last epoch of each split "
        "and a choice of the earlier ones. Metrics and category shares over epochs hold all of them."
    )
    return sorted(last | picked)


def first_shown(passes: Sequence[PassUnits], last: dict[str, int]) -> int:
    """The pass the page opens with: the last epoch of val, else of test, else of the first split."""
    for name in ("val", "test"):
        if name in last:
            return last[name]
    return last[passes[0].dataset] if passes else 0


def head(result: Result) -> dict[str, Any]:
    """Who the page is about."""
    return {
        "model": result.model_name,
        "version": result.version_name,
        "result": result.result_name,
        "method": result.method_name,
        "completed_at": str(result.info["completed_at"])[:16].replace("T", " "),
        "package_version": result.info.get("package_version"),
        "classes": max((int(one["n_class"]) for one in result.info["passes"]), default=0),
    }


def page_content(
    result: Result,
    passes: Sequence[PassUnits],
    units: Sequence[int],
    metrics: Sequence[dict[str, Any]],
    metric_texts: Sequence[dict[str, Any]],
    details: dict[str, Any],
    gathered: Gathered,
    *,
    images: dict[str, Any],
) -> dict[str, Any]:
    """The outer shape of every page; `units` are how many of what is judged each pass holds."""
    return {
        "kind": "report",
        "task": result.task,
        "head": head(result),
        "class_names": result.class_names,
        "passes": [
            {"dataset": one.dataset, "epoch": epoch_name(one.n_epoch), "n_epoch": one.n_epoch, "units": n}
            for one, n in zip(passes, units, strict=True)
        ],
        "first": first_shown(passes, last_of_each_split(passes)),
        "metrics": metrics,
        "metric_texts": metric_texts,
        "categories": tables.category_rows(result),
        "category_texts": [vars(text).copy() for text in CATEGORY_TEXTS],
        "details": details,
        "images": images,
        "problems": problems(result, gathered),
        "left_out": gathered.left_out,
    }


def note_bounds(gathered: Gathered, codes: int, total: int, n_class: int) -> None:
    """Say that a table of error codes or a matrix of classes does not hold all of them."""
    if total > codes:
        gathered.note(
            f"Of each pass the {tables.MAX_CODES} most frequent error codes are listed; the table says how "
            "many there are."
        )
    if n_class > charts.MAX_CLASSES:
        gathered.note(
            f"Matrices show the {charts.MAX_CLASSES} of {n_class} classes with the most errors; "
            "Result.confusion() has them all."
        )


def noted_map(units: PassUnits, what: str, gathered: Gathered) -> dict[str, Any] | None:
    """The map of a pass; where it draws a choice of the units ("samples", "boxes"), that is said."""
    made = maps.split_map(units, tables.pseudo_counts(units))
    if made is not None and made["shown"] < made["units"]:
        gathered.note(
            f"{units.dataset}, {epoch_name(units.n_epoch)}: the map draws {made['shown']:,} of "
            f"{made['units']:,} {what}, an even choice and at least {maps.LEAST_PER_KIND} of each kind; its "
            "grid counts all."
        )
    return made


def problems(result: Result, gathered: Gathered) -> list[dict[str, str]]:
    """What is wrong with the records, warnings first."""
    found = [{"severity": str(one["severity"]), "message": str(one["message"])} for one in result.problems]
    found.sort(key=lambda one: one["severity"] != "warning")
    if len(found) > MAX_PROBLEMS:
        gathered.note(
            f"{len(found) - MAX_PROBLEMS} more remarks about the records: Result.problems has them all."
        )
    return found[:MAX_PROBLEMS]
