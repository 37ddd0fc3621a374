"""One unit with its evidence: probabilities, neighbours with labels, its history, the boxes of its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.evaluation.analysis.units import BASE_FIELDS, STAGE_FIELDS
from mld_core.evaluation.detection3d.places import image_size, matrix_in, read_calibration
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.errors import NotFoundError
from mld_core.evaluation.metrics.camera import projection
from mld_core.evaluation.results.result import Result
from mld_core.records.store.verdict import Subject
from mld_core.views.cards import Told, canvas_of, cards, named_class, spoken, subject_columns, subject_of
from mld_core.views.evaluation import boxed
from mld_core.views.pictures import Canvas
from mld_core.views.selection import HeldUnits
from mld_core.views.stored import probabilities
from mld_core.views.tables import plain
from mld_core.views.units import PassUnits, passes_of
from mld_core.views.words.sentences import column_text, literal, title

NEIGHBOURS = 10
FRAME_UNITS = 300
EPOCHS = 60
GONE = "The logits of this pass are not stored (any more)."
OF_BOXES = "Records hold no probabilities of boxes but their score."
_OURS = frozenset(item.name for item in (*BASE_FIELDS, *STAGE_FIELDS))


def find_row(units: HeldUnits, input_id: str) -> int:
    """The first row of a sample.

    Raises:
        NotFoundError: The pass has no such sample.
    """
    found = pc.index(units.column("input_id"), pa.scalar(input_id, pa.string())).as_py()
    if found is None or found < 0:
        raise NotFoundError(f"{units.dataset!r} has no sample {input_id!r} in this result")
    return int(found)


def sample(units: HeldUnits, row: int, told: Told, siblings: Sequence[PassUnits] = ()) -> dict[str, Any]:
    """A unit with its evidence; see docs/app.md.

    Args:
        units: The pass.
        row: Its row.
        told: What people said.
        siblings: Other passes of the result, where neighbours may lie.

    Raises:
        NotFoundError: There is no such row.
    """
    if not 0 <= row < units.rows:
        raise NotFoundError(f"row {row}: the pass has {units.rows:,} units")
    names, boxes = units.result.class_names, boxed(units.result)
    card = cards(units, [row], told)[0]
    raw = units.take([row], ["diagnosis", "neighbour_ids", "recommended_action", "primary_code", "severity"])[
        0
    ]
    subject = Subject(units.dataset, card["id"], card.get("gt_idx"))
    heard = told.standing.get(subject)
    likely = [] if boxes else probabilities(units, row)
    return {
        "sample": card,
        "why": card["why"],
        "action": raw["recommended_action"],
        "text": sentences(card, units),
        "probabilities": [
            {
                **(named_class(number, names) or {}),
                "p": p,
                "truth": card["truth"] is not None and card["truth"]["class"] == number,
            }
            for number, p in likely
        ],
        "probabilities_missing": OF_BOXES if boxes else None if likely else GONE,
        "neighbours": neighbours(units, raw["neighbour_ids"] or [], siblings),
        "history": history(units.result, units, card["id"], row),
        "findings": [
            {
                "code": code,
                "title": BY_CODE[code].title,
                "why": BY_CODE[code].when,
                "action": raw["recommended_action"] if code == raw["primary_code"] else BY_CODE[code].action,
                "severity": raw["severity"] if code == raw["primary_code"] else BY_CODE[code].severity,
            }
            for code in raw["diagnosis"] or []
            if code in BY_CODE
        ],
        "fields": own_fields(units, row),
        "verdicts": [spoken(one, told, names) for one in heard.heard] if heard is not None else [],
        "conflict": heard is not None and heard.conflict,
        "frame": frame_of(units, card["id"], told) if boxes else None,
    }


def sentences(card: Mapping[str, Any], units: HeldUnits) -> list[str]:
    """What is known of a unit, in sentences."""
    made = []
    if card["error_proba"] is not None:
        made.append(f"Error probability {card['error_proba']:.0%}.".replace("%", " %"))
    near = units.take([card["row"]], ["local_error_rate", "ambiguity", "label_quality", "membership"])[0]
    share = plain(near["membership"])
    if share is not None:
        made.append(f"Of halves of the data {share:.0%} give it this category.".replace("%", " %"))
    rate = plain(near["local_error_rate"])
    if rate is not None:
        made.append(f"Around it {rate:.0%} are wrong.".replace("%", " %"))
    if plain(near["label_quality"]) is not None:
        made.append(f"Label quality {near['label_quality']:.3f} (0 worst, 1 best).")
    if card["category"]:
        made.append(f"Category: {card['category'].replace('_', ' ')}.")
    return made


def neighbours(
    units: HeldUnits, ids: Sequence[str], siblings: Sequence[PassUnits] = ()
) -> list[dict[str, Any]]:
    """The nearest samples with their labels, nearest first; those of other splits are looked up there.

    Args:
        units: The pass.
        ids: Their input ids.
        siblings: Other passes of the result.
    """
    wanted = list(dict.fromkeys(ids))[:NEIGHBOURS]
    names = units.result.class_names
    found: dict[str, dict[str, Any]] = {}
    for place in [units, *siblings]:
        missing = [one for one in wanted if one not in found]
        if not missing:
            break
        inside = pc.is_in(place.column("input_id"), pa.array(missing, pa.string()))
        rows = np.flatnonzero(np.asarray(inside.to_numpy(zero_copy_only=False), np.bool_))
        for row, one in zip(
            rows.tolist(),
            place.take(rows.tolist(), ["input_id", "gt", "prediction", "is_error"]),
            strict=True,
        ):
            found.setdefault(
                str(one["input_id"]),
                {
                    "id": str(one["input_id"]),
                    "row": row if place is units else None,
                    "truth": named_class(one["gt"], names),
                    "said": named_class(one["prediction"], names),
                    "wrong": one["is_error"],
                    "split": place.dataset,
                },
            )
    unknown = {"row": None, "truth": None, "said": None, "wrong": None, "split": None}
    return [found.get(one, {"id": one, **unknown}) for one in wanted]


def history(result: Result, units: HeldUnits, input_id: str, row: int) -> list[dict[str, Any]]:
    """What the model said of the sample in each evaluated epoch of the split, oldest first.

    Args:
        result: The result.
        units: The pass that is shown.
        input_id: The sample.
        row: Its row in the pass.
    """
    if boxed(result):
        return []
    made = []
    read = ("prediction", "is_error", "confidence", "error_proba", "loss", "input_id")
    for one in [place for place in passes_of(result) if place.dataset == units.dataset][-EPOCHS:]:
        if one.index == units.index:
            rows = [row]
        else:
            found = pc.index(one.column("input_id"), pa.scalar(input_id, pa.string())).as_py()
            rows = [found] if found is not None and found >= 0 else []
        made += [
            {
                "epoch": one.n_epoch,
                "said": named_class(unit["prediction"], result.class_names),
                "wrong": unit["is_error"],
                **{name: plain(unit[name]) for name in ("confidence", "error_proba", "loss")},
            }
            for unit in (units if one.index == units.index else one).take(rows, read)
        ]
    return made


def own_fields(units: HeldUnits, row: int) -> list[dict[str, Any]]:
    """The user's own columns of a unit, each with the filter of its value."""
    schema = units.schema
    known = _OURS | _box_columns(units) | set(units.axes)
    names = [item.name for item in schema if item.name not in known and not pa.types.is_nested(item.type)]
    if not names:
        return []
    unit = units.take([row], names)[0]
    return [
        {
            "name": name,
            "title": title(name),
            "value": plain(value) if not isinstance(value, str) else value,
            "filter": f"{column_text(name)} is null"
            if value is None
            else f"{column_text(name)} = {literal(value)}",
        }
        for name, value in unit.items()
        if value is None or isinstance(value, str | bool | int | float)
    ]


def _box_columns(units: HeldUnits) -> frozenset[str]:
    """Columns a detection's table has of ours: they stand before the user's, beside the stages'."""
    if not boxed(units.result):
        return frozenset()
    names = units.schema.names
    last = max((names.index(name) for name in ("suspicion", "detail") if name in names), default=-1)
    return frozenset(names[: last + 1])


def _drawn(units: HeldUnits, input_id: str, told: Told) -> list[dict[str, Any]]:
    """Boxes that people drew into an image: objects without a label where no predicted box stands."""
    own = [
        one
        for subject, one in told.standing.items()
        if subject.box is not None and subject.input_id == input_id and subject.dataset_type == units.dataset
    ]
    if not own:
        return []
    inside = pc.equal(units.column("input_id"), pa.scalar(input_id, pa.string()))
    rows = np.flatnonzero(np.asarray(inside.to_numpy(zero_copy_only=False), np.bool_))
    predicted = {subject_of(units, one).box for one in units.take(rows.tolist(), subject_columns(units))}
    canvas = canvas_of(units, input_id) if units.result.task == "detection" else Canvas()
    names = units.result.class_names
    return [
        {
            "box": list(one.subject.box or ()) if canvas.straight else canvas.placed(one.subject.box or ()),
            **{name: spoken(one.heard[-1], told, names)[name] for name in ("label", "author", "mine", "id")},
        }
        for one in own
        if one.subject.box not in predicted and any(heard.kind == "missing" for heard in one.heard)
    ]


def camera_of(units: HeldUnits, input_id: str) -> tuple[dict[str, Any] | None, str | None]:
    """How a 3D frame's camera sees it, and why that is not known.

    Args:
        units: A pass of 3D boxes.
        input_id: The frame.

    Returns:
        `to_image`, 12 numbers, the rows of the (3, 4) matrix from the boxes' frame to pixels, and `size`, the
        image's width and height or None; or None and a sentence.
    """

    def read() -> pa.Table | None:
        records = units.records
        if records is None or "calibration" not in records.schema("samples").names:
            return None
        return records.table("samples", ["input_id", "calibration"])

    table = units.memo.get_or("calibrations", read)
    said: dict[str, Any] = {}
    if table is not None:
        row = pc.index(table["input_id"], pa.scalar(input_id, pa.string())).as_py()
        said = read_calibration(table["calibration"][row].as_py() if row >= 0 else None)
    more = said.get("cameras")
    cameras = [
        one
        for one in (said, *(more if isinstance(more, list) else ()))
        if isinstance(one, dict) and {"lidar2cam", "cam2img"} <= set(one)
    ]
    if len(cameras) > 1:
        return None, f"{len(cameras)} cameras are recorded, and not which of them the image is of."
    camera = cameras[0] if cameras else {}
    to_camera, to_pixels = (matrix_in(camera, name) for name in ("lidar2cam", "cam2img"))
    with np.errstate(all="ignore"):
        made = None if to_camera is None or to_pixels is None else projection(to_pixels) @ to_camera
    if made is None or not np.isfinite(made).all():
        return None, "No calibration of the camera is recorded, so boxes are not drawn on its image."
    size = image_size(camera) or image_size(said)
    return {"to_image": made.reshape(-1).tolist(), "size": None if size is None else [size[1], size[0]]}, None


def frame_of(units: HeldUnits, input_id: str, told: Told) -> dict[str, Any]:
    """All boxes of an image, errors first."""
    inside = pc.equal(units.column("input_id"), pa.scalar(input_id, pa.string()))
    rows = np.flatnonzero(np.asarray(inside.to_numpy(zero_copy_only=False), np.bool_))
    order = units.errors[rows] != 1
    rows = rows[np.argsort(order, kind="stable")]
    found = cards(units, rows[:FRAME_UNITS].tolist(), told)
    camera = camera_of(units, input_id) if units.result.task == "detection3d" else (None, None)
    kinds = [units.column(name).take(pa.array(rows)) for name in ("unit_kind", "truth_id")]
    return {
        "id": input_id,
        "units": found,
        "left_out": max(0, len(rows) - FRAME_UNITS),
        "errors": int((units.errors[rows] == 1).sum()),
        "n": len(rows),
        "drawn": _drawn(units, input_id, told),
        "n_gt": len(pc.unique(kinds[1].drop_null())),
        "n_pred": int(pc.sum(pc.equal(kinds[0].cast(pa.string()), "pred")).as_py() or 0),
        "size": found[0].get("size") if found else None,
        "camera": camera[0],
        "camera_note": camera[1],
    }
