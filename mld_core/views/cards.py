"""What a page shows of a unit: truth, prediction, the finding, why, and what people said of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.records.store.verdict import Standing, Subject, Verdict, place
from mld_core.views.detection_tables import code_words
from mld_core.views.pictures import Canvas, canvases
from mld_core.views.selection import HeldUnits
from mld_core.views.tables import class_label, plain
from mld_core.views.words.sentences import why_box, why_sample

MOST_AT_ONCE = 500
MOVING = 0.5
"""Metres per second from which on an object moves."""

_READ = (
    *("input_id", "input_hash", "gt", "prediction", "confidence", "is_error", "error_proba", "loss"),
    *("category", "projected_category", "error_code", "primary_code", "diagnosis", "severity"),
    "suggested_label",
)
_BOX_READ = ("unit_kind", "det_code", "iou", "truth_id", "gt_idx", "detail", "suspicion", "miss_proba")
BOX = {
    "detection": ("x1", "y1", "x2", "y2"),
    "detection3d": ("cx", "cy", "cz", "w", "l", "h", "yaw"),
}
"""Columns of a box by task; those of its truth are called `gt_<name>`."""


@dataclass(frozen=True)
class Told:
    """What people said of the samples of a run, for one reader.

    Attributes:
        author: The reader.
        standing: What stands of each subject.
    """

    author: str = ""
    standing: Mapping[Subject, Standing] = field(default_factory=dict)


def named_class(number: int | None, names: Sequence[str] | None) -> dict[str, Any] | None:
    """A class as number and name, None where there is none.

    Example:
        >>> named_class(1, ["cat", "dog"]), named_class(-1, None)
        ({'class': 1, 'name': 'dog'}, None)
    """
    if number is None or number < 0:
        return None
    return {"class": int(number), "name": class_label(int(number), names)}


def cards(
    units: HeldUnits, rows: Sequence[int] | NDArray[np.int32], told: Told | None = None, badge: str = ""
) -> list[dict[str, Any]]:
    """Some units as a page shows them.

    Args:
        units: The pass.
        rows: Their row numbers.
        told: What people said.
        badge: A numeric column whose value is shown beside each.
    """
    task, told = units.result.task, told or Told()
    boxes = BOX.get(task, ())
    columns = [*_READ]
    if boxes:
        columns += [*_BOX_READ, *boxes, *(f"gt_{name}" for name in boxes)]
    if badge and badge not in columns:
        columns.append(badge)
    made = []
    for row, unit in zip(rows, units.take(rows, columns), strict=True):
        card = _card(int(row), unit, units, told)
        if boxes:
            card |= _box(unit, boxes, units.result.class_names)
        if task == "detection":
            card |= _placed(card, canvas_of(units, card["id"]))
        if task == "detection3d":
            card["moves"] = motions(units).get((card["id"], unit["gt_idx"]))
        if badge:
            value = unit[badge]
            card["badge"] = {"column": badge, "value": plain(value)} if _is_number(value) else None
        made.append(card)
    if badge and len({json.dumps(card["badge"]) for card in made}) == 1 < len(made):
        for card in made:  # the same beside each says nothing
            card["badge"] = None
    return made


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def subject_of(units: HeldUnits, unit: Mapping[str, Any]) -> Subject:
    """What a verdict on a unit is about, of a mapping with `input_id`; of boxes `gt_idx` and the box, too."""
    sample, truth = str(unit["input_id"]), unit.get("gt_idx")
    boxes = BOX.get(units.result.task, ())
    if truth is not None or not boxes:
        return Subject(units.dataset, sample, truth)
    corners = _corners([unit[name] for name in boxes])
    return Subject(units.dataset, sample, None, None if corners is None else place(corners))


def subject_columns(units: HeldUnits) -> list[str]:
    """The columns that `subject_of` reads."""
    boxes = BOX.get(units.result.task, ())
    return ["input_id", *(["gt_idx", *boxes] if boxes else [])]


def _card(row: int, unit: Mapping[str, Any], units: HeldUnits, told: Told) -> dict[str, Any]:
    names = units.result.class_names
    codes = list(dict.fromkeys([*filter(None, [unit["primary_code"]]), *(unit["diagnosis"] or [])]))
    known = next((BY_CODE[code] for code in codes if code in BY_CODE), None)
    suggested = unit["suggested_label"] if unit["suggested_label"] != unit["gt"] else None
    subject = subject_of(units, unit)
    return {
        "row": row,
        "id": str(unit["input_id"]),
        "truth": named_class(unit["gt"], names),
        "said": named_class(unit["prediction"], names),
        "wrong": unit["is_error"],
        "confidence": plain(unit["confidence"]),
        "error_proba": plain(unit["error_proba"]),
        "loss": plain(unit["loss"]),
        "category": unit["category"] or unit["projected_category"],
        "code": unit["error_code"],
        "finding": None
        if known is None
        else {"code": known.code, "title": known.title, "severity": unit["severity"] or known.severity},
        "severity": unit["severity"],
        "suggested": named_class(suggested, names),
        "why": _why(unit, codes, suggested, units),
        "hash": unit["input_hash"],
        "verdict": verdict_of(told, subject, names),
        "badge": None,
    }


def _why(unit: Mapping[str, Any], codes: Sequence[str], suggested: int | None, units: HeldUnits) -> str:
    names = units.result.class_names

    def name(number: int | None) -> str | None:
        return None if number is None or number < 0 else class_label(number, names)

    said = {
        "truth": name(unit["gt"]),
        "said": name(unit["prediction"]),
        "suggested": name(suggested),
        "confidence": unit["confidence"],
        "wrong": unit["is_error"],
        "codes": codes,
    }
    if said["confidence"] is not None and not math.isfinite(said["confidence"]):
        said["confidence"] = None
    if units.result.task == "classification":
        return why_sample(said)
    return why_box({**said, "event": _event(unit, names), "missed": unit["unit_kind"] == "gt"})


def _event(unit: Mapping[str, Any], names: Sequence[str] | None) -> str:
    code = unit["error_code"]
    return "" if code is None else code_words(code, names)["event"]


def _box(unit: Mapping[str, Any], boxes: Sequence[str], names: Sequence[str] | None) -> dict[str, Any]:
    there = unit["gt_idx"] is not None
    return {
        "kind": "missed" if unit["unit_kind"] == "gt" else "prediction",
        "event": unit["det_code"],
        "event_text": _event(unit, names),
        "iou": plain(unit["iou"]),
        "truth_id": unit["truth_id"],
        "gt_idx": unit["gt_idx"],
        "detail": unit["detail"],
        "suspicion": plain(unit["suspicion"]),
        "miss_proba": plain(unit["miss_proba"]),
        "box": _corners([unit[name] for name in boxes]),
        "truth_box": _corners([unit[f"gt_{name}"] for name in boxes]),
        "asks": "label" if there else "object",
    }


def canvas_of(units: HeldUnits, input_id: str) -> Canvas:
    """The frame in which the boxes of an image are drawn; of unknown size where the records are gone."""

    def read() -> dict[str, Canvas]:
        return canvases(units, pc.unique(units.column("input_id")).to_pylist())

    found: Canvas = units.memo.get_or("canvases", read).get(input_id, Canvas())
    return found


def motions(units: HeldUnits) -> dict[tuple[str, int], list[float]]:
    """Recorded velocities [vx, vy] in m/s of the truths that move, by input id and `gt_idx`.

    Empty where the records are gone or hold none.
    """

    def read() -> dict[tuple[str, int], list[float]]:
        records = units.records
        if records is None or "velocity" not in records.schema("truths").names:
            return {}
        table = records.table("truths", ["input_id", "gt_idx", "velocity"])
        table = table.filter(pc.is_valid(table["velocity"]))
        flat = table["velocity"].combine_chunks().flatten().fill_null(np.nan)
        velocity = np.asarray(flat.to_numpy(zero_copy_only=False), np.float64).reshape(-1, 2)
        rows = np.flatnonzero(np.hypot(velocity[:, 0], velocity[:, 1]) >= MOVING)  # NaN is not
        moving = table.select(["input_id", "gt_idx"]).take(rows).to_pydict()
        keys = zip(moving["input_id"], moving["gt_idx"], strict=True)
        return {(str(one), n): v for (one, n), v in zip(keys, velocity[rows].round(2).tolist(), strict=True)}

    found: dict[tuple[str, int], list[float]] = units.memo.get_or("motions", read)
    return found


def _placed(card: Mapping[str, Any], canvas: Canvas) -> dict[str, Any]:
    """The boxes of a card in the frame of its picture, and the size of that frame."""
    made: dict[str, Any] = {"size": [canvas.width, canvas.height] if canvas.width else None}
    if not canvas.straight:
        for name in ("box", "truth_box"):
            made[name] = None if card[name] is None else canvas.placed(card[name])
        said = card["verdict"]
        if said is not None and said["right"] is not None:
            made["verdict"] = {**said, "right": canvas.placed(said["right"])}
    return made


def _corners(values: Sequence[float | None]) -> list[float] | None:
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return [round(float(value), 3) for value in values if value is not None]


def verdict_of(told: Told, subject: Subject, names: Sequence[str] | None) -> dict[str, Any] | None:
    """What the reader said of a subject, else what stands of it; None where nobody said anything."""
    found = told.standing.get(subject)
    if found is None:
        return None
    mine = next((one for one in found.heard if one.author == told.author), None)
    shown = mine or found.verdict or found.heard[-1]
    return {**spoken(shown, told, names), "conflict": found.conflict}


def spoken(verdict: Verdict, told: Told, names: Sequence[str] | None) -> dict[str, Any]:
    """One person's word as a page shows it."""
    return {
        "kind": verdict.kind,
        "label": named_class(verdict.label, names),
        "author": verdict.author,
        "at": verdict.at,
        "note": verdict.note,
        "id": verdict.verdict_id,
        "right": None if verdict.right is None else list(verdict.right),
        "mine": verdict.author == told.author,
    }
