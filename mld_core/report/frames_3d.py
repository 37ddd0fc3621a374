"""The frames that are drawn from above: which are the worst of each group, and the boxes in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.metrics.nuscenes import ERRORS
from mld_core.views.tables import plain
from mld_core.views.units import PassUnits

PER_GROUP = 6
ALL_GROUP = 12
MAX_BOXES = 250
"""Units of a frame, errors first."""

SUSPECTS = ("T20", "T21", "T22", "D21", "D22", "D23")
"""Codes whose frames are ordered by their largest suspicion rather than by how many units carry them."""

SWAPPED = "swapped"
WRONG_CLASS = "D22"
BOX = ("cx", "cy", "cz", "w", "l", "h", "yaw")
KINDS = ("right", "wrong", "open", "missed")

FIELDS = (
    *("kind", "p", "t", "said", "truth", "score", "error_proba", "miss_proba", "range", "n_points", "speed"),
    *("code", "diagnosis", "detail", "suspicion", "category", *ERRORS, "moves", "suggested"),
    "gt_idx",
)
"""Of each unit of a frame. `p` and `t` are [cx, cy, cz, w, l, h (cm), yaw (mrad)] of the prediction and of
the truth it stands for; `said`, `truth` and `suggested` class numbers; `moves` the truth's velocity, cm/s."""

_READ = (
    *("input_id", "unit_kind", "truth_id", "is_error", "gt", "prediction", "confidence", "error_proba"),
    *("miss_proba", "range", "n_points", "speed", "error_code", "diagnosis", "detail", "suspicion", "gt_idx"),
    *("category", "projected_category", "suggested_label", *ERRORS, *BOX, *(f"gt_{name}" for name in BOX)),
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class FrameTable:
    """The units of a pass by frame.

    Attributes:
        units: The pass.
        ids: (F,) input ids of the frames with a unit, the order in which they first occur.
        frame: (N,) frame of each unit; -1 where the id occurs more than once.
        facts: Rows of `Result.frames()` by input id.
        repeated: How many frames cannot be told from another by their id.
    """

    units: PassUnits
    ids: list[str]
    frame: Ints
    facts: dict[str, dict[Any, Any]]
    repeated: int

    @classmethod
    def of(cls, units: PassUnits) -> FrameTable:
        """Read what is needed of the unit table and of the frames' table."""
        table = units.result.frames()
        if len(table):
            epoch = table["n_epoch"].isna() if units.n_epoch is None else table["n_epoch"] == units.n_epoch
            table = table[(table["dataset"] == units.dataset) & epoch]
        many = set() if not len(table) else set(table["input_id"][table["input_id"].duplicated(keep=False)])
        rows: list[dict[Any, Any]] = table.to_dict("records")
        facts = {str(row["input_id"]): row for row in rows}
        coded = pc.dictionary_encode(units.column("input_id").combine_chunks())
        ids = [str(one) for one in coded.dictionary.to_pylist()]
        frame = np.asarray(coded.indices.to_numpy(zero_copy_only=False), np.int64)
        if many:
            lost = np.array([one in many for one in ids], np.bool_)
            frame = np.where(lost[frame], -1, frame)
        repeated = int(table["input_id"].isin(many).sum()) if many else 0
        return cls(units, ids, frame, facts, repeated)

    @cached_property
    def proba(self) -> Floats:
        """(F,) probability that the frame holds an error, 0 where unknown."""
        found = [self.facts.get(one, {}).get("frame_error_proba") for one in self.ids]
        return np.nan_to_num(np.array([np.nan if one is None else one for one in found], np.float64))

    def count(self, mask: NDArray[np.bool_]) -> Ints:
        """(F,) units of a mask in each frame."""
        rows = np.flatnonzero(mask & (self.frame >= 0))
        return np.bincount(self.frame[rows], minlength=len(self.ids))

    def most(self, values: Floats, mask: NDArray[np.bool_]) -> Floats:
        """(F,) largest value over the units of a mask, -inf where there is none."""
        made = np.full(len(self.ids), -np.inf)
        rows = np.flatnonzero(mask & (self.frame >= 0) & np.isfinite(values))
        np.maximum.at(made, self.frame[rows], values[rows])
        return made


def groups(table: FrameTable) -> list[dict[str, Any]]:
    """Groups of frames, worst first: all with errors, by diagnosis, by issue category.

    All: by the frame's error probability, its most severe diagnosis, its errors. Others: by the number of
    units that carry the code or category, then by their largest error probability; suspected label faults by
    the largest suspicion.
    """
    units = table.units
    wrong = units.errors == 1
    risk, suspicion = units.floats("error_proba"), units.floats("suspicion")
    severe = table.most(units.floats("severity"), np.ones(units.rows, np.bool_))
    errors = table.count(wrong)
    made = [ranked_group("all", "all frames with errors", "Overview", errors, [table.proba, severe, errors])]
    for key, title, mask in _diagnosed(units):
        n = table.count(mask)
        order = [n, table.most(risk, mask), table.proba]
        if key in SUSPECTS:
            order = [table.most(suspicion, mask), *order]
        made.append(ranked_group(key, title, "Diagnoses", n, order))
    for name in reversed(CATEGORIES[2:]):
        mask = units.category == name
        n = table.count(mask)
        order = [n, table.most(risk, mask), table.proba]
        made.append(ranked_group(name, name.replace("_", " "), "Issue categories", n, order))
    return [one for one in made if one["rows"]]


def _diagnosed(units: PassUnits) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """Code, title and units of each diagnosis that occurs, most severe first; exchanged sides apart."""
    if not units.has("diagnosis"):
        return []
    lists = units.column("diagnosis").combine_chunks()
    rows = np.asarray(pc.list_parent_indices(lists))
    values = np.asarray(pc.list_flatten(lists).to_pylist(), np.str_)
    made = []
    for entry in sorted(BY_CODE.values(), key=lambda one: (-one.severity, one.code)):
        mask = np.zeros(units.rows, np.bool_)
        mask[rows[values == entry.code]] = True
        if not mask.any():
            continue
        made.append((entry.code, f"{entry.code}: {entry.title}", mask))
        if entry.code == "T04":
            swapped = mask & (np.asarray(units.texts("detail"), object) == SWAPPED)
            if swapped.any():
                made.append((SWAPPED, "T04: width and length exchanged", swapped))
    return made


def ranked_group(key: str, title: str, kind: str, n: Ints, order: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """A group of frames: those that hold any of it (`n`: how many), by `order`, the largest first."""
    keys = [-np.asarray(one, np.float64) for one in reversed(order)]
    ranked = np.lexsort((np.arange(len(n)), *keys))
    rows = ranked[n[ranked] > 0]
    return {
        "key": key,
        "title": title,
        "kind": kind,
        "n": len(rows),
        "units": int(n.sum()),
        "rows": rows[: ALL_GROUP if key == "all" else PER_GROUP].tolist(),
    }


def cards(
    table: FrameTable, wished: Sequence[dict[str, Any]], budget: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The frames of some groups, the first of every group before the second of any, within a budget.

    Returns:
        The groups with the frames that are there, and the frames by number.
    """
    turns = [
        group["rows"][place] for place in range(ALL_GROUP) for group in wished if place < len(group["rows"])
    ]
    made = drawn_frames(table, list(dict.fromkeys(turns)), budget)
    kept = [{**group, "rows": [row for row in group["rows"] if str(row) in made]} for group in wished]
    return [group for group in kept if group["rows"]], made


def drawn_frames(
    table: FrameTable, order: Sequence[int], budget: int, first: Mapping[int, set[int]] | None = None
) -> dict[str, dict[str, Any]]:
    """What is drawn of some frames, by number, the most important first until they fill the budget.

    Args:
        table: The units by frame.
        order: Numbers of frames.
        budget: Bytes.
        first: Truths (`gt_idx`) of a frame that are drawn whatever else is left out.
    """
    made: dict[str, dict[str, Any]] = {}
    for number, rows in _rows_of(table, order).items():
        card = _card(table, number, rows, (first or {}).get(number, set()))
        size = len(json.dumps(card, separators=(",", ":")))
        if made and size > budget:
            continue
        budget -= size
        made[str(number)] = card
    _add_velocities(table.units, made)
    for card in made.values():
        card["boxes"] = [[box[name] for name in FIELDS] for box in card["boxes"]]
    return made


def drawn_first(boxes: Sequence[dict[str, Any]], truths: set[int]) -> list[dict[str, Any]]:
    """Boxes that stand for some truths (`gt_idx`) before all others; the order is kept otherwise.

    Example:
        >>> drawn_first([{"t": [0], "gt_idx": 4}, {"t": [0], "gt_idx": 7}], {7})[0]["gt_idx"]
        7
    """
    return sorted(boxes, key=lambda box: not (box["t"] is not None and box["gt_idx"] in truths))


def _rows_of(table: FrameTable, order: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
    """The units of some frames, in the order asked for."""
    chosen = np.flatnonzero(np.isin(table.frame, np.asarray(order, np.int64)))
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in order}
    for row, unit in zip(chosen, table.units.take(chosen.tolist(), _READ), strict=True):
        found[int(table.frame[row])].append(unit)
    return found


def _card(table: FrameTable, number: int, rows: list[dict[str, Any]], first: set[int]) -> dict[str, Any]:
    facts = table.facts.get(table.ids[number], {})
    boxes = drawn_first(sorted((_box(row) for row in rows), key=_rank), first)
    return {
        "id": table.ids[number],
        "frame_error_proba": plain(facts.get("frame_error_proba")),
        **{name: plain(facts.get(name)) for name in ("n_gt", "n_pred", "n_tp", "n_fp", "n_fn")},
        "units": len(boxes),
        "boxes": boxes[:MAX_BOXES],
    }


def _rank(box: dict[str, Any]) -> tuple[bool, bool, float]:
    """Errors first, then what carries a diagnosis, then by suspicion and error probability."""
    error = box["kind"] in {1, 3}
    return (not error, not box["diagnosis"], -(box["suspicion"] or 0.0) - (box["error_proba"] or 0.0))


def _box(row: dict[str, Any]) -> dict[str, Any]:
    missed = row["unit_kind"] == "gt"
    kind = 3 if missed else 2 if row["is_error"] is None else int(row["is_error"])
    said = None if missed else _packed([row[name] for name in BOX])
    true = _packed([row[f"gt_{name}"] for name in BOX]) if row["truth_id"] is not None else None
    made = {
        "kind": kind,
        "p": said,
        "t": true,
        "said": row["prediction"],
        "truth": row["gt"] if true is not None or missed else None,
        "score": _short(row["confidence"]),
        "code": row["error_code"],
        "diagnosis": row["diagnosis"] or [],
        "detail": row["detail"],
        "category": row["category"] or row["projected_category"],
        "n_points": row["n_points"],
        "moves": None,
        "gt_idx": row["gt_idx"],
        "suggested": row["suggested_label"] if WRONG_CLASS in (row["diagnosis"] or []) else None,
    }
    for name in ("error_proba", "miss_proba", "range", "speed", "suspicion", *ERRORS):
        made[name] = _short(row[name])
    return made


def _short(value: Any) -> Any:
    """Three digits are enough for a fact on a card."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.3g}")


def _packed(box: Sequence[Any]) -> list[int] | None:
    """A box in whole centimetres and milliradians; None where a number is missing.

    Example:
        >>> _packed([1.234, 0, 0, 2, 4, 1.5, 3.14159])
        [123, 0, 0, 200, 400, 150, 3142]
    """
    if any(value is None or not np.isfinite(value) for value in box):
        return None
    return [round(100 * value) for value in box[:6]] + [round(1000 * box[6])]


def card_boxes(card: dict[str, Any]) -> Floats:
    """(K, 7) predicted and true boxes of a finished card, metres and radians."""
    found = [box[place] for box in card["boxes"] for place in (1, 2) if box[place] is not None]
    return np.array(found, np.float64).reshape(-1, 7) / [100, 100, 100, 100, 100, 100, 1000]


def _add_velocities(units: PassUnits, made: dict[str, dict[str, Any]]) -> None:
    """The recorded velocity of each truth that moves, from the records where they are still there."""
    records = units.records
    if records is None or not made or "velocity" not in records.schema("truths").names:
        return
    by_id = {card["id"]: card for card in made.values()}
    table = records.table("truths", ["unit", "rank_", "input_id", "gt_idx", "velocity"])
    table = table.filter(pc.is_in(table["input_id"].cast(pa.string()), pa.array(sorted(by_id), pa.string())))
    found = {
        (str(row["input_id"]), row["gt_idx"]): row["velocity"]
        for row in table.select(["input_id", "gt_idx", "velocity"]).to_pylist()
        if row["velocity"] is not None and np.isfinite(row["velocity"]).all()
    }
    for card in made.values():
        for box in card["boxes"]:
            velocity = found.get((card["id"], box["gt_idx"])) if box["t"] is not None else None
            if velocity is not None and np.hypot(*velocity) >= 0.5:
                box["moves"] = [round(100 * float(value)) for value in velocity]
