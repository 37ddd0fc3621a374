"""What the page of a 3D detection shows beyond that of any detection: frames from above, places, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.app.file.points import ask_frames
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.report import frames_3d
from mld_core.report.curves_3d import curves
from mld_core.report.errors_3d import RoadUnits, error_bins, error_map, sensor_findings
from mld_core.report.outline import Gathered
from mld_core.views.samples import ImageFn, stored_images, within_budget
from mld_core.views.units import PassUnits

POINT_BYTES = 4_400_000
BOX_BYTES = 1_800_000
PICTURE_BYTES = 600_000
"""Of all splits of a page together."""


def scene_parts(
    units: PassUnits,
    names: Sequence[str] | None,
    gathered: Gathered,
    *,
    image_fn: ImageFn | None,
    with_samples: bool,
) -> dict[str, Any]:
    """The 3D parts of one pass as plain values.

    Args:
        units: A pass of task "detection3d".
        names: Class names.
        gathered: Where what is left out is noted.
        image_fn: (dataset, input_id) -> points (N, >= 3) of the frame, an image, or None.
        with_samples: The last epoch of its split: with frames and curves.

    Returns:
        `errormap`, `bins`, `sensor` (see `errors_3d`), `codes` (diagnoses in words), and with samples
        `curves`, `groups` and `frames`, else None and empty; `repeated` frames whose ids are not unique.
    """
    road = RoadUnits(units)
    made: dict[str, Any] = {
        "errormap": error_map(road),
        "bins": error_bins(road, names, by_class=with_samples),
        "sensor": sensor_findings(units),
        "codes": _codes(units),
        "curves": None,
        "groups": [],
        "frames": {},
        "points": False,
        "repeated": 0,
    }
    if made["errormap"] is not None and made["errormap"]["beyond"]:
        gathered.note(
            f"{units.dataset}: {made['errormap']['beyond']:,} events lie beyond the rings of the error map; "
            "the bars by range count them."
        )
    if not with_samples:
        return made
    made["curves"] = curves(units, names)
    splits = max(1, len(units.result.datasets))
    table = frames_3d.FrameTable.of(units)
    made["repeated"] = table.repeated
    if table.repeated:
        gathered.note(
            f"{units.dataset}: {table.repeated:,} frames have an id that occurs more than once in the pass; "
            "they are not drawn, because their boxes cannot be told apart."
        )
    wished = frames_3d.groups(table)
    kept, frames = frames_3d.cards(table, wished, BOX_BYTES // splits)
    made["groups"], made["frames"] = kept, frames
    if frames:
        gathered.note(
            f"{units.dataset}: drawn from above are the worst {frames_3d.PER_GROUP} frames of each group "
            f"({frames_3d.ALL_GROUP} of all); Result.frames() and get_issues() list every one."
        )
    _add_points(units, made, image_fn, gathered, splits)
    return made


def _add_points(
    units: PassUnits, made: dict[str, Any], image_fn: ImageFn | None, gathered: Gathered, splits: int
) -> None:
    """Put points and pictures to the frames, as far as the budget goes."""
    frames = made["frames"]
    order = list(dict.fromkeys(one["id"] for one in frames.values()))
    pictures, _ = within_budget(stored_images(units, set(order)), order, PICTURE_BYTES // splits)
    clouds: dict[str, dict[str, Any]] = {}
    if image_fn is not None and order:
        boxes = {one["id"]: frames_3d.card_boxes(one) for one in frames.values()}
        clouds, asked = ask_frames(units, order, boxes, image_fn, POINT_BYTES // splits)
        pictures = {**asked, **pictures}
    for one in frames.values():
        one["points"] = clouds.get(one["id"])
        one["picture"] = pictures.get(one["id"])
    made["points"] = bool(clouds)
    cut = [one for one in clouds.values() if one["n"] < one["of"]]
    if cut:
        gathered.note(
            f"{units.dataset}: of the points of a frame at most {max(one['n'] for one in cut):,} are drawn: "
            "those in and around boxes first, an even choice of the others."
        )
    if clouds and len(clouds) < len(order) and not pictures:
        gathered.note(f"{units.dataset}: {len(order) - len(clouds)} frames are drawn without points.")


def _codes(units: PassUnits) -> dict[str, dict[str, Any]]:
    """The diagnoses that occur, in words."""
    if not units.has("diagnosis"):
        return {}
    found: NDArray[Any] = np.unique(
        np.asarray(pc.list_flatten(pa.chunked_array(units.column("diagnosis"))).to_pylist(), np.str_)
    )
    return {
        code: {
            "title": BY_CODE[code].title,
            "severity": BY_CODE[code].severity,
            "action": BY_CODE[code].action,
            "why": BY_CODE[code].when,
        }
        for code in found.tolist()
        if code in BY_CODE
    }
