"""The frames of two 3D detections in which truths changed: both sides from above, and the points once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mld_core.app.file.points import ask_frames
from mld_core.report import frames_3d, scenes_3d
from mld_core.report.outline import Gathered
from mld_core.report.paired_truths import Tables
from mld_core.views.samples import ImageFn, stored_images, within_budget


def frame_cards(
    order: Sequence[tuple[int, int]],
    tables: Tables,
    first: Sequence[Mapping[int, set[int]]],
    image_fn: ImageFn | None,
    splits: int,
    gathered: Gathered,
) -> dict[str, dict[str, Any]]:
    """Both sides of each frame as `frames_3d` makes them, `a<number>` and `b<number>`.

    Points and pictures are those of the frame after; the page draws the points under both sides.

    Args:
        order: Numbers of the frames before and after, the most important first.
        tables: Their units.
        first: Of both sides the truths that are drawn whatever else is left out.
        image_fn: (dataset, input_id) -> points (N, >= 3) of the frame, an image, or None.
        splits: Splits of the page, which share its bytes.
        gathered: Where what is left out is noted.
    """
    made = []
    for side, table in enumerate(tables):
        numbers = list(dict.fromkeys(pair[side] for pair in order))
        room = scenes_3d.BOX_BYTES // splits // 2
        made.append(frames_3d.drawn_frames(table, numbers, room, first[side]))
    cards: dict[str, dict[str, Any]] = {}
    boxes: dict[str, Any] = {}
    for a, b in order:
        if str(a) in made[0] and str(b) in made[1]:
            before, after = cards[f"a{a}"], cards[f"b{b}"] = made[0][str(a)], made[1][str(b)]
            before["points"] = before["picture"] = None
            both = [frames_3d.card_boxes(one) for one in (before, after)]
            boxes[after["id"]] = np.concatenate(both)
    _add_points(tables, cards, boxes, image_fn, splits, gathered)
    return cards


def _add_points(
    tables: Tables,
    cards: Mapping[str, dict[str, Any]],
    boxes: Mapping[str, Any],
    image_fn: ImageFn | None,
    splits: int,
    gathered: Gathered,
) -> None:
    units, order = tables[1].units, list(boxes)
    stored, _ = within_budget(stored_images(units, set(order)), order, scenes_3d.PICTURE_BYTES // splits)
    clouds: dict[str, dict[str, Any]] = {}
    if image_fn is not None and order:
        room = scenes_3d.POINT_BYTES // splits
        clouds, asked = ask_frames(units, order, dict(boxes), image_fn, room)
        stored = {**asked, **stored}
    for key, card in cards.items():
        if key.startswith("b"):
            card["points"], card["picture"] = clouds.get(card["id"]), stored.get(card["id"])
    cut = [one["n"] for one in clouds.values() if one["n"] < one["of"]]
    if cut:
        gathered.note(
            f"{units.dataset}: of the points of a frame at most {max(cut):,} are drawn: those in and around "
            "boxes first, an even choice of the others."
        )
