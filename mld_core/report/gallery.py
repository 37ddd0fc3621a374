"""The images of a 2D detection: which are the worst of each group, their boxes, and what they look like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.report.frames_3d import ALL_GROUP, PER_GROUP, FrameTable, drawn_first, ranked_group
from mld_core.report.outline import IMAGE_BYTES
from mld_core.views.pictures import Canvas, Picture, fitting, pictures, shown
from mld_core.views.samples import ImageFn
from mld_core.views.tables import CONFIDENT, plain
from mld_core.views.units import PassUnits

if TYPE_CHECKING:
    from mld_core.report.outline import Gathered

MAX_CODES = 12
MAX_BOXES = 120
"""Units of an image, errors first."""

BOX_BYTES = 2_500_000
"""Of the boxes of all splits of a page together."""

WORST = 30
"""Images in the list of the worst."""

SUSPECTS = {
    "D20": "Suspected missing labels",
    "D22": "Suspected wrong classes",
    "D21": "Suspected badly drawn boxes",
    "D23": "Suspected spurious labels",
    "D24": "Labels drawn twice",
}
FIELDS = (
    *("kind", "p", "t", "said", "truth", "score", "error_proba", "miss_proba", "iou", "code", "diagnosis"),
    *("category", "suspicion", "suggested", "action", "gt_idx"),
)
"""Of each unit of an image. `kind` is 0 right, 1 false, 2 not judged, 3 missed; `p` and `t` are xyxy of the
prediction and of the truth it stands for, pixels of the canvas; `said`, `truth`, `suggested` classes."""

BOX = ("x1", "y1", "x2", "y2")
_READ = (
    *("input_id", "unit_kind", "truth_id", "is_error", "gt", "prediction", "confidence", "error_proba"),
    *("miss_proba", "iou", "error_code", "diagnosis", "category", "projected_category", "suspicion"),
    *("suggested_label", "recommended_action", "gt_idx", *BOX, *(f"gt_{name}" for name in BOX)),
)
Bools = NDArray[np.bool_]


def gallery_parts(
    units: PassUnits, codes: Sequence[Mapping[str, Any]], gathered: Gathered, *, image_fn: ImageFn | None
) -> dict[str, Any]:
    """`groups` of images, `cards` by image number, and the list of the `worst` images.

    Args:
        units: A pass of 2D boxes.
        codes: Its error codes, commonest first.
        gathered: Where what is left out is noted.
        image_fn: The caller's images.
    """
    table = FrameTable.of(units)
    if table.repeated:
        gathered.note(
            f"{units.dataset}: {table.repeated:,} images have an id that occurs more than once in the pass; "
            "they are not shown, because their boxes cannot be told apart."
        )
    wished = image_groups(table, codes)
    rounds = [
        group["rows"][place] for place in range(ALL_GROUP) for group in wished if place < len(group["rows"])
    ]
    order = list(dict.fromkeys(rounds))
    splits = max(1, len(units.result.datasets))
    names = [table.ids[one] for one in order]
    found, known, notes = pictures(units, names, image_fn, IMAGE_BYTES // splits)
    made = cards(table, order, found, known, BOX_BYTES // splits)
    if len(made) < len(order):
        notes.append(
            f"{units.dataset}: {len(order) - len(made)} images of the groups were left out: they hold too "
            "many boxes for a small file."
        )
    for note in notes:
        gathered.note(note)
    if order:
        gathered.note(
            f"{units.dataset}: shown are the worst {PER_GROUP} images of each group ({ALL_GROUP} of all), "
            f"error codes for the {MAX_CODES} most frequent; Result.frames() and get_issues() list every one."
        )
    if order and not found:
        gathered.note(
            f"{units.dataset}: no images are at hand: boxes are drawn on empty canvases. Give the callback "
            "image_fn, or the report an image_fn(dataset, input_id)."
        )
    kept = [{**group, "rows": [row for row in group["rows"] if str(row) in made]} for group in wished]
    return {
        "groups": [group for group in kept if group["rows"]],
        "cards": made,
        "worst": worst_images(table, [int(row) for row in made]),
    }


def image_groups(table: FrameTable, codes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups of images, worst first: all with errors, suspected labels, diagnoses, categories, error codes.

    All: by the image's error probability, its most severe diagnosis, its errors. Suspected label faults: by
    the largest suspicion. Others: by the number of boxes that carry the code or category, then by their
    largest error probability.
    """
    units = table.units
    wrong = np.asarray(units.errors == 1)
    risk = units.floats("error_proba")
    severe = table.most(units.floats("severity"), np.ones(units.rows, np.bool_))
    made = [
        _group(
            table,
            "all",
            "all images with errors",
            "Overview",
            wrong,
            [table.proba, severe, table.count(wrong)],
        )
    ]
    sure = wrong & (units.floats("confidence") >= CONFIDENT)
    order = [table.most(units.floats("confidence"), sure)]
    made.append(_group(table, "sure", f"wrong at a score of {CONFIDENT} or more", "Overview", sure, order))
    carried = _diagnosed(units)
    for key, title in SUSPECTS.items():
        mask = carried.pop(key, None)
        if mask is not None:
            by = [table.most(units.floats("suspicion"), mask), np.asarray(table.count(mask), np.float64)]
            made.append(_group(table, key, f"{key}: {title.lower()}", "Suspected labels", mask, by))
    for key in sorted(carried, key=lambda code: (-BY_CODE[code].severity, code)):
        title = f"{key}: {BY_CODE[key].title}"
        made.append(
            _group(table, key, title, "Diagnoses", carried[key], _by_count(table, carried[key], risk))
        )
    for name in reversed(CATEGORIES[2:]):
        mask = np.asarray(units.category == name)
        title = name.replace("_", " ")
        made.append(_group(table, name, title, "Issue categories", mask, _by_count(table, mask, risk)))
    texts = np.asarray([text or "" for text in units.texts("error_code")], np.str_)
    for row in codes[:MAX_CODES]:
        mask = np.asarray((texts == row["code"]) & wrong)
        title = f"{row['code']}: {row['event']}"
        made.append(_group(table, row["code"], title, "Error codes", mask, _by_count(table, mask, risk)))
    return [one for one in made if one["rows"]]


def _by_count(table: FrameTable, mask: Bools, risk: NDArray[np.float64]) -> list[NDArray[Any]]:
    return [table.count(mask), table.most(risk, mask), table.proba]


def _diagnosed(units: PassUnits) -> dict[str, Bools]:
    """The units of each diagnosis that occurs."""
    if not units.has("diagnosis"):
        return {}
    lists = units.column("diagnosis").combine_chunks()
    rows = np.asarray(pc.list_parent_indices(lists))
    values = np.asarray(pc.list_flatten(lists).to_pylist(), np.str_)
    made = {}
    for code in np.unique(values).tolist():
        if code in BY_CODE:
            made[code] = np.zeros(units.rows, np.bool_)
            made[code][rows[values == code]] = True
    return made


def _group(
    table: FrameTable, key: str, title: str, kind: str, mask: Bools, order: Sequence[NDArray[Any]]
) -> dict[str, Any]:
    return ranked_group(key, title, kind, table.count(mask), order)


def worst_images(table: FrameTable, drawn: Sequence[int]) -> list[dict[str, Any]]:
    """The images most likely to hold an error, of those that do: their counts, and whether they are drawn."""
    errors = table.count(np.asarray(table.units.errors == 1))
    ranked = np.lexsort((np.arange(len(errors)), -errors, -table.proba))
    there = set(drawn)
    made = []
    for number in ranked[errors[ranked] > 0][:WORST].tolist():
        facts = table.facts.get(table.ids[number], {})
        made.append({"row": number if number in there else None, "id": table.ids[number], **_counts(facts)})
    return made


def _counts(facts: Mapping[Any, Any]) -> dict[str, Any]:
    names = ("frame_error_proba", "n_gt", "n_pred", "n_tp", "n_fp", "n_fn")
    return {name: plain(facts.get(name)) for name in names}


def cards(
    table: FrameTable,
    order: Sequence[int],
    found: Mapping[str, Picture],
    known: Mapping[str, Canvas],
    budget: int,
    first: Mapping[int, set[int]] | None = None,
) -> dict[str, dict[str, Any]]:
    """What is drawn of some images, by number, the most important first until their boxes fill the budget.

    Args:
        table: The units by image.
        order: Numbers of images.
        found: Their pictures by input id.
        known: Their recorded canvases by input id.
        budget: Bytes of the boxes.
        first: Truths (`gt_idx`) of an image that are drawn whatever else is left out.
    """
    chosen = np.flatnonzero(np.isin(table.frame, np.asarray(order, np.int64)))
    rows: dict[int, list[dict[str, Any]]] = {number: [] for number in order}
    for row, unit in zip(chosen, table.units.take(chosen.tolist(), _READ), strict=True):
        rows[int(table.frame[row])].append(unit)
    made: dict[str, dict[str, Any]] = {}
    for number in order:
        name = table.ids[number]
        picture = found.get(name)
        canvas = picture.canvas if picture is not None else known.get(name, Canvas())
        boxes = sorted((_box(unit, canvas) for unit in rows[number]), key=_rank)
        boxes = drawn_first(boxes, (first or {}).get(number, set()))
        if canvas.width == 0:
            width, height = fitting(boxes)
            canvas = replace(canvas, width=width, height=height)
        shapes = [[box[field] for field in FIELDS] for box in boxes[:MAX_BOXES]]
        size = len(json.dumps(shapes, separators=(",", ":")))
        if made and size > budget:
            continue
        budget -= size
        made[str(number)] = {
            "id": name,
            **_counts(table.facts.get(name, {})),
            "width": canvas.width,
            "height": canvas.height,
            "picture": None if picture is None else shown(picture),
            "units": len(boxes),
            "boxes": shapes,
        }
    return made


def _rank(box: Mapping[str, Any]) -> tuple[bool, bool, float]:
    """Errors first, then what carries a diagnosis, then by suspicion and error probability."""
    return (
        box["kind"] not in {1, 3},
        not box["diagnosis"],
        -(box["suspicion"] or 0.0) - (box["error_proba"] or 0.0),
    )


def _box(unit: Mapping[str, Any], canvas: Canvas) -> dict[str, Any]:
    missed = unit["unit_kind"] == "gt"
    suggested = unit["suggested_label"]
    said = [unit[name] for name in BOX]
    true = [unit[f"gt_{name}"] for name in BOX]
    stands = unit["truth_id"] is not None
    return {
        "kind": 3 if missed else 2 if unit["is_error"] is None else int(unit["is_error"]),
        "p": None if missed else canvas.placed(said),
        "t": canvas.placed(true) if stands else None,
        "said": unit["prediction"],
        "truth": unit["gt"],
        "score": plain(unit["confidence"]),
        "error_proba": plain(unit["error_proba"]),
        "miss_proba": plain(unit["miss_proba"]),
        "iou": plain(unit["iou"]),
        "code": unit["error_code"],
        "diagnosis": unit["diagnosis"] or [],
        "category": unit["category"] or unit["projected_category"],
        "suspicion": plain(unit["suspicion"]),
        "suggested": suggested if "D22" in (unit["diagnosis"] or []) and suggested != unit["gt"] else None,
        "action": unit["recommended_action"],
        "gt_idx": unit["gt_idx"],
    }
