"""What the file brings along to be seen: pictures of samples, and points of frames."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.app.file.points import Floats, ask_frames
from mld_core.views.cards import BOX, canvas_of
from mld_core.views.detail import camera_of
from mld_core.views.pictures import Canvas, pictures
from mld_core.views.samples import ImageFn, asked_images, stored_images
from mld_core.views.selection import HeldUnits

PICTURE_BYTES = 5_000_000
POINT_BYTES = 4_400_000
MOST_ROWS = 200_000


@dataclass
class Seen:
    """Pictures and points of a split.

    Attributes:
        pictures: Base64 of PNG or JPEG, by input id.
        canvases: Of images with boxes the frames that the pictures show, by input id.
        points: Of 3D frames `n` points of `of`, and `xyz` their text, by input id.
        cameras: How the cameras of 3D frames with pictures see them, by input id.
        left_out: Sentences on what is not there.
    """

    pictures: dict[str, str] = field(default_factory=dict)
    canvases: dict[str, Canvas] = field(default_factory=dict)
    points: dict[str, dict[str, Any]] = field(default_factory=dict)
    cameras: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def place(self, units: HeldUnits) -> None:
        """Have the boxes of a pass of the split drawn in the frames that the pictures show."""
        if self.canvases:
            canvas_of(units, "")  # reads the recorded frames
            units.memo["canvases"] = {**units.memo["canvases"], **self.canvases}


def seen(units: HeldUnits, rows: Sequence[int], image_fn: ImageFn | None, parts: int) -> Seen:
    """Pictures and points of some rows, of their neighbours, then of the worst of the others, while they fit.

    Args:
        units: The pass.
        rows: The most important rows.
        image_fn: The caller's images or points.
        parts: How many splits share the room there is.
    """
    near = [one for found in units.take(rows, ["neighbour_ids"]) for one in found["neighbour_ids"] or []]
    ids = [str(one["input_id"]) for one in units.take([*rows, *units.order()[:MOST_ROWS]], ["input_id"])]
    first = list(dict.fromkeys(ids[: len(rows)]))
    order = list(dict.fromkeys([*first, *near, *ids[len(rows) :]]))
    if units.result.task == "detection":
        return _images(units, order, image_fn, PICTURE_BYTES // parts)
    if units.result.task == "detection3d":
        return _frames(units, first, order, image_fn, parts)
    found = stored_images(units, set(order))
    if image_fn is not None:
        found |= asked_images(units, [one for one in order[: 4 * len(rows)] if one not in found], image_fn)
    made = Seen()
    _fill(made, units, found, order, PICTURE_BYTES // parts)
    return made


def _fill(
    made: Seen, units: HeldUnits, found: Mapping[str, bytes], order: Sequence[str], budget: int
) -> None:
    """Put pictures there while they fit."""
    for one in order:
        png = found.get(one)
        if png is None:
            continue
        budget -= 4 * len(png) // 3
        if budget < 0:
            break
        made.pictures[one] = base64.b64encode(png).decode()
    if len(made.pictures) < len(found):
        made.left_out.append(
            f"{units.dataset}: pictures of {len(made.pictures):,} of {len(found):,} samples, the worst and "
            "their neighbours first; the rest would make the file large."
        )


def _images(units: HeldUnits, order: Sequence[str], image_fn: ImageFn | None, budget: int) -> Seen:
    """Of 2D boxes: the caller's images, sharper than thumbnails, else those."""
    found, _, notes = pictures(units, order, image_fn, budget)
    made = Seen(canvases={one: picture.canvas for one, picture in found.items()}, left_out=notes)
    made.pictures = {one: base64.b64encode(picture.data).decode() for one, picture in found.items()}
    return made


def _frames(
    units: HeldUnits, first: Sequence[str], order: Sequence[str], image_fn: ImageFn | None, parts: int
) -> Seen:
    """Of 3D boxes: recorded pictures, and the caller's points or pictures of the worst frames."""
    made = Seen()
    if image_fn is not None:
        room = POINT_BYTES // parts
        made.points, made.pictures = ask_frames(units, first, boxes_of(units, first), image_fn, room)
        cut = [one for one in made.points.values() if one["n"] < one["of"]]
        if cut:
            most = max(one["n"] for one in cut)
            made.left_out.append(
                f"{units.dataset}: of the points of a frame at most {most:,} are drawn: those in and around "
                "boxes first, an even choice of the others."
            )
        frames = len(set(order))
        if made.points and len(made.points) < frames:
            made.left_out.append(
                f"{units.dataset}: points of {len(made.points):,} of {frames:,} frames, the worst first."
            )
    asked = dict(made.pictures)
    _fill(made, units, stored_images(units, set(order)), order, PICTURE_BYTES // parts)
    made.pictures |= asked
    seen_by = {one: camera_of(units, one)[0] for one in made.pictures}
    made.cameras = {one: camera for one, camera in seen_by.items() if camera is not None}
    return made


def boxes_of(units: HeldUnits, ids: Sequence[str]) -> dict[str, Floats]:
    """(K, 7) predicted and true boxes of some frames."""
    inside = pc.is_in(units.column("input_id"), pa.array(ids, pa.string()))
    rows = np.flatnonzero(np.asarray(inside.to_numpy(zero_copy_only=False), np.bool_))
    names = BOX["detection3d"]
    made: dict[str, list[list[float]]] = {}
    for unit in units.take(rows.tolist(), ["input_id", *names, *(f"gt_{name}" for name in names)]):
        own = made.setdefault(str(unit["input_id"]), [])
        for side in ("", "gt_"):
            box = [unit[f"{side}{name}"] for name in names]
            if None not in box:
                own.append(box)
    return {one: np.array(boxes, np.float64).reshape(-1, 7) for one, boxes in made.items()}
