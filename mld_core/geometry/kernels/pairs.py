"""From rows of boxes to IoU of given pairs; shared by the numpy and torch engines (`xp` is the module)."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mld_core.geometry.kernels.arrays import Mode
from mld_core.geometry.kernels.rotated import Array, Pose, hull_area, relative_pose

Overlap: TypeAlias = Callable[["Table", "Table"], Array]


class Table(NamedTuple):
    """Boxes as columns, each (P,); z and h are None for footprints, yaw is kept by the torch engine only."""

    x: Array
    y: Array
    z: Array
    l: Array  # noqa: E741  half of the length; the field's letter
    w: Array
    h: Array
    cos: Array
    sin: Array
    yaw: Array

    def take(self, index: Any) -> "Table":
        """The rows of `index`, in that order."""
        return Table(*(None if column is None else column[index] for column in self))


def as_table(xp: Any, boxes: Any) -> Table:
    """Columns of (N, 5) [cx, cy, w, l, yaw] or (N, 7) [cx, cy, cz, w, l, h, yaw] rows, sizes halved."""
    column = [boxes[:, k] for k in range(boxes.shape[1])]
    if xp.__name__ == "numpy":
        column = [np.ascontiguousarray(c) for c in column]
    yaw = column[-1]
    kept = None if xp.__name__ == "numpy" else yaw
    if len(column) == 5:
        x, y, w, l = column[:4]  # noqa: E741
        return Table(x, y, None, l / 2, w / 2, None, xp.cos(yaw), xp.sin(yaw), kept)
    x, y, z, w, l, h = column[:6]  # noqa: E741
    return Table(x, y, z, l / 2, w / 2, h / 2, xp.cos(yaw), xp.sin(yaw), kept)


def valid_rows(xp: Any, boxes: Any) -> Any:
    """Rows that are finite with no negative size, bool (N,); (N, 5) and (N, 7) rows as in `as_table`."""
    sizes = boxes[:, 2:4] if boxes.shape[1] == 5 else boxes[:, 3:6]
    return xp.isfinite(boxes).all(-1) & (sizes >= 0).all(-1)


def pose_of(xp: Any, a: Table, b: Table) -> Pose:
    """The relative pose of the footprints."""
    return relative_pose(xp, (a.x, a.y, a.l, a.w, a.cos, a.sin), (b.x, b.y, b.l, b.w, b.cos, b.sin))


def height_overlap(xp: Any, a: Table, b: Table) -> Array:
    """Length shared by the two height ranges, in metres; negative where they are apart."""
    dz = b.z - a.z
    return xp.minimum(a.h, dz + b.h) - xp.maximum(-a.h, dz - b.h)


def pair_values(xp: Any, mode: Mode, a: Table, b: Table, footprint: Overlap) -> Array:
    """IoU ("bev", "3d") or generalised IoU ("giou_3d") of pairs of valid boxes, (P,).

    `footprint` gives the overlap area of the footprints. A pair without area (volume) has IoU 0.
    """
    inter = footprint(a, b)
    size_a, size_b = 4 * a.l * a.w, 4 * b.l * b.w
    if mode != "bev":
        shared = height_overlap(xp, a, b)
        inter, size_a, size_b = inter * (shared * (shared > 0)), size_a * 2 * a.h, size_b * 2 * b.h
    union = size_a + size_b - inter
    empty = (size_a <= 0) | (size_b <= 0)
    iou = xp.where(empty, inter * 0, inter / xp.where(empty, union * 0 + 1, union))
    iou = iou.clip(None, 1.0)
    if mode != "giou_3d":
        return iou
    dz = b.z - a.z
    extent = xp.maximum(a.h, dz + b.h) - xp.minimum(-a.h, dz - b.h)
    hull = hull_area(pose_of(xp, a, b)) * extent
    flat = hull <= 0
    return iou - xp.where(flat, hull * 0, (hull - union) / xp.where(flat, hull * 0 + 1, hull)).clip(0.0, None)
