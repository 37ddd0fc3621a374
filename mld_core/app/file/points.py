"""Points of a frame for the page: thinned, in whole centimetres, as text."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.records.store.png import encode_png
from mld_core.views.samples import ImageFn, small
from mld_core.views.units import PassUnits, spread

MAX_POINTS = 4_000
LEAST_POINTS = 500
BYTES_PER_POINT = 8
"""Three int16 as base64."""

PICTURE_SIDE = 256
REACH = 327.0
"""Metres that int16 centimetres reach."""

MARGIN = 0.3
"""Metres around a box within which points are kept first."""

LOOKED_AT = 60_000
"""Points of a frame that are looked at; of more an even choice."""

MOST_COLUMNS = 16

Floats = NDArray[np.float64]


def is_points(value: Any) -> bool:
    """Whether what an `image_fn` returned is a point cloud: floats, (N, 3 to 16).

    Example:
        >>> is_points(np.zeros((100, 4), np.float32)), is_points(np.zeros((64, 64, 3), np.uint8))
        (True, False)
    """
    found = np.asarray(value)
    return found.ndim == 2 and found.dtype.kind == "f" and 3 <= found.shape[1] <= MOST_COLUMNS


def ask_frames(
    units: PassUnits, ids: Iterable[str], boxes: Mapping[str, Floats], image_fn: ImageFn, budget: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Point clouds and pictures of some frames from the caller's `image_fn`.

    Args:
        units: The pass.
        ids: Input ids, most important first.
        boxes: (K, 7) boxes of each frame, whose points are kept first.
        image_fn: (dataset, input_id) -> (N, >= 3) floats, an image, or None.
        budget: Bytes that points and pictures may take together.

    Returns:
        Points by input id (`n` points shown, `of` so many, `xyz` their text) and PNGs by input id (base64).
    """
    wanted = list(dict.fromkeys(ids))
    most = min(MAX_POINTS, max(LEAST_POINTS, budget // BYTES_PER_POINT // max(len(wanted), 1)))
    clouds: dict[str, dict[str, Any]] = {}
    pictures: dict[str, str] = {}
    left = budget
    for one in wanted:
        found = image_fn(units.dataset, one)
        if found is None:
            continue
        if is_points(found):
            made = cloud(np.asarray(found), boxes.get(one, np.empty((0, 7))), most)
            if len(made["xyz"]) <= left:
                clouds[one] = made
                left -= len(made["xyz"])
            continue
        text = picture(found)
        if len(text) <= left:
            pictures[one] = text
            left -= len(text)
    return clouds, pictures


def picture(image: Any) -> str:
    """Base64 PNG of an image, at most `PICTURE_SIDE` pixels on its longer side."""
    return base64.b64encode(encode_png(small(np.asarray(image), PICTURE_SIDE))).decode()


def cloud(points: NDArray[Any], boxes: Floats, most: int) -> dict[str, Any]:
    """At most `most` points as the page holds them: int16 centimetres x, y, z, little-endian, base64.

    Points in and around boxes come first, up to half of them; the rest is an even choice of the others.

    Example:
        >>> made = cloud(np.array([[1.0, 2.0, 0.5], [np.nan, 0, 0]]), np.empty((0, 7)), 10)
        >>> made["n"], made["of"], np.frombuffer(base64.b64decode(made["xyz"]), "<i2").tolist()
        (1, 2, [100, 200, 50])
    """
    total = len(points)
    if total > LOOKED_AT:
        points = points[spread(total, LOOKED_AT)]
    xyz = np.asarray(points[:, :3], np.float64)
    xyz = xyz[(np.abs(xyz) < REACH).all(axis=1)]  # NaN is not below it
    if len(xyz) > most:
        xyz = xyz[chosen_points(xyz, boxes, most)]
    whole = np.round(xyz * 100).astype("<i2")
    return {"n": len(whole), "of": total, "xyz": base64.b64encode(whole.tobytes()).decode()}


def chosen_points(xyz: Floats, boxes: Floats, most: int) -> NDArray[np.int64]:
    """`most` of (N, 3) points: those in and around boxes first, up to half of them; evenly of the rest."""
    inside = near_boxes(xyz, boxes)
    own, other = np.flatnonzero(inside), np.flatnonzero(~inside)
    first = own[spread(len(own), max(most // 2, most - len(other)))]
    rest = other[spread(len(other), most - len(first))]
    return np.sort(np.concatenate([first, rest]))


def near_boxes(xyz: Floats, boxes: Floats) -> NDArray[np.bool_]:
    """(N,) points inside one of the (K, 7) boxes or within `MARGIN` of it, floor left out."""
    made = np.zeros(len(xyz), np.bool_)
    for cx, cy, cz, w, length, h, yaw in boxes[np.isfinite(boxes).all(axis=1)]:
        reach = np.hypot(w, length) / 2 + MARGIN
        rows = np.flatnonzero((np.abs(xyz[:, 0] - cx) < reach) & (np.abs(xyz[:, 1] - cy) < reach))
        gap = xyz[rows] - [cx, cy, cz]
        along = gap[:, 0] * np.cos(yaw) + gap[:, 1] * np.sin(yaw)
        across = gap[:, 1] * np.cos(yaw) - gap[:, 0] * np.sin(yaw)
        inside = (np.abs(along) < length / 2 + MARGIN) & (np.abs(across) < w / 2 + MARGIN)
        made[rows[inside & (np.abs(gap[:, 2]) < h / 2)]] = True
    return made
