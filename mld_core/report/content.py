"""Gathers all that the page of a result shows, within bounds; what was left out is said in `left_out`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mld_core.evaluation.results.result import Result
from mld_core.report.detection import detection_content
from mld_core.report.outline import (
    IMAGE_BYTES,
    Gathered,
    chosen_passes,
    last_of_each_split,
    note_bounds,
    noted_map,
    page_content,
)
from mld_core.views import charts, samples, tables
from mld_core.views.units import PassUnits, passes_of

__all__ = ["Gathered", "report_content"]


def report_content(result: Result, image_fn: samples.ImageFn | None = None) -> dict[str, Any]:
    """All that the page of one result shows, as plain values.

    Args:
        result: The result.
        image_fn: Images of samples without a recorded thumbnail; see `detection_content` for detections.
    """
    if result.task != "classification":
        return detection_content(result, image_fn)
    gathered = Gathered()
    passes = passes_of(result)
    names = result.class_names
    metrics = tables.metric_rows(result)
    last = last_of_each_split(passes)
    shown = chosen_passes(passes, gathered)
    details: dict[str, Any] = {}
    wishes: list[tuple[PassUnits, dict[str, Any]]] = []
    for place in shown:
        units = passes[place]
        details[str(place)] = pass_content(units, names, gathered, with_samples=last[units.dataset] == place)
        if last[units.dataset] == place:
            wishes.append((units, details[str(place)]))
    images = gather_images(wishes, image_fn, gathered)
    judged = [one.rows for one in passes]
    texts = tables.metric_texts(metrics)
    return page_content(result, passes, judged, metrics, texts, details, gathered, images=images)


def pass_content(
    units: PassUnits,
    names: Sequence[str] | None,
    gathered: Gathered,
    *,
    with_samples: bool,
) -> dict[str, Any]:
    """One pass: tables and matrices; map and samples only for the last epoch of a split."""
    n_class = int(units.result.info["passes"][units.index]["n_class"])
    codes, total = tables.code_rows(units, names)
    diagnoses = tables.diagnosis_rows(units)
    note_bounds(gathered, len(codes), total, n_class)
    made: dict[str, Any] = {
        "codes": codes,
        "codes_total": total,
        "diagnoses": diagnoses,
        "steps": tables.first_steps(units, codes, diagnoses),
        "confusion": charts.confusion(units, n_class, names),
        "category_class": charts.category_by_class(units, n_class, names),
        "calibration": charts.calibration(units),
        "map": None,
        "regions": tables.region_rows(units, names),
        "slices": tables.slice_rows(units),
        "groups": [],
        "cards": {},
    }
    if with_samples:
        made["map"] = noted_map(units, "samples", gathered)
        made["groups"] = samples.groups(units, codes)
        rows = list(dict.fromkeys(row for group in made["groups"] for row in group["rows"]))
        made["cards"] = samples.cards(units, rows, names)
        gathered.note(
            "Samples are shown for the last epoch of each split: the worst "
            f"{samples.PER_GROUP} of each group ({samples.ALL_GROUP} of all errors), error codes for the "
            f"{samples.MAX_CODES} most frequent. "
            "Result.get_issues() lists every one."
        )
    return made


def gather_images(
    wishes: Sequence[tuple[PassUnits, dict[str, Any]]], image_fn: samples.ImageFn | None, gathered: Gathered
) -> dict[str, dict[str, str]]:
    """Base64 PNGs by split and input id, as many as fit into `IMAGE_BYTES`, shared evenly by the splits."""
    made: dict[str, dict[str, str]] = {}
    for units, detail in wishes:
        own = [card["id"] for card in detail["cards"].values()]
        near = [one["id"] for card in detail["cards"].values() for one in card["near"]]
        order = list(dict.fromkeys([*own, *near]))
        found = samples.stored_images(units, set(order))
        if image_fn is not None:
            found |= samples.asked_images(units, [one for one in order if one not in found], image_fn)
        made[units.dataset], dropped = samples.within_budget(found, order, IMAGE_BYTES // len(wishes))
        if dropped:
            gathered.note(f"{units.dataset}: {dropped} thumbnails were left out to keep the file small.")
    return made
