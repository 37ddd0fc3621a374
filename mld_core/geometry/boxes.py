"""Boxes and their shapes: formats, corners, frames, points inside.

2D boxes are rows of four in one of the formats of `FORMATS`. 3D boxes are rows of seven,
`[cx, cy, cz, w, l, h, yaw]`: metres and radians, the gravity centre, l along the heading, yaw
counter-clockwise from +x about +z, in the frame the caller says. Numpy arrays and torch tensors (any
device, differentiable) alike; the dtype is float64 if an argument is float64 or an integer, else float32.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mld_core.geometry.kernels.arrays import A, is_tensor, namespace, prepare, require_boxes
from mld_core.geometry.kernels.circles import Circles, circle_test, row_and_column

# Corners, edges and extents of 2D boxes; with "n" in parts of the image's width and height.
FORMATS = ("xyxy", "xywh", "cxcywh", "xyxyn", "xywhn", "cxcywhn")
BOX_3D = "[cx, cy, cz, w, l, h, yaw]"

Matrix: TypeAlias = npt.ArrayLike

# The corner order of `corners_3d`: signs along (length, width, height). 0-3 the bottom face,
# counter-clockwise seen from above from the front left; 4-7 the top face above them.
_FACE = ((1, 1), (-1, 1), (-1, -1), (1, -1))
CORNER_SIGNS = tuple((ahead, left, up) for up in (-1, 1) for ahead, left in _FACE)


def _floats(boxes: Any, name: str, widths: tuple[int, ...], rows: str) -> Any:
    """The boxes in their floating dtype, kind and device unchanged, gradients kept."""
    require_boxes(boxes, name, widths, rows)
    call = prepare((boxes,), "torch" if is_tensor(boxes) else "numpy")
    return call.arrays[0]


def convert_boxes(boxes: A, source: str, target: str, image_size: tuple[float, float] | None = None) -> A:
    """Rewrite 2D boxes from one format to another.

    Args:
        boxes: (N, 4) rows in the format `source`.
        source: "xyxy" [x1, y1, x2, y2], "xywh" [x1, y1, width, height] or "cxcywh" [centre x, centre y,
            width, height]; with a trailing "n" in parts of the image's width and height.
        target: the format wanted, likewise.
        image_size: (height, width) of the image; needed where exactly one of the formats is normalised.

    Returns:
        (N, 4).

    Raises:
        ValueError: a wrong shape, an unknown format, or no positive `image_size` where one is needed.

    >>> import numpy as np
    >>> convert_boxes(np.array([[0.5, 0.5, 0.2, 0.4]]), "cxcywhn", "xyxy", image_size=(100, 200))
    array([[ 80.,  30., 120.,  70.]])
    """
    for which in (source, target):
        if which not in FORMATS:
            raise ValueError(f"box format {which!r} is none of {', '.join(FORMATS)}; pass one of these")
    rows = _floats(boxes, "boxes", (4,), f"in {source}")
    xp: Any = namespace(rows)
    p, q, r, s = (rows[:, k] for k in range(4))
    kind = source.removesuffix("n")
    if kind == "xywh":
        r, s = p + r, q + s
    elif kind == "cxcywh":
        p, q, r, s = p - r / 2, q - s / 2, p + r / 2, q + s / 2
    if source.endswith("n") != target.endswith("n"):
        if image_size is None or not (image_size[0] > 0 and image_size[1] > 0):
            raise ValueError(
                f"image_size is {image_size}; {source} to {target} needs the image's positive (height, width)"
            )
        height, width = (1 / side if target.endswith("n") else float(side) for side in image_size)
        p, q, r, s = p * width, q * height, r * width, s * height
    kind = target.removesuffix("n")
    if kind == "xywh":
        r, s = r - p, s - q
    elif kind == "cxcywh":
        p, q, r, s = (p + r) / 2, (q + s) / 2, r - p, s - q
    result: A = xp.stack([p, q, r, s], -1)
    return result


def wrap_yaw(yaw: A) -> A:
    """Bring angles into (-pi, pi].

    Args:
        yaw: radians, any shape.

    Returns:
        The same angles, same shape.

    >>> import numpy as np
    >>> wrap_yaw(np.array([-np.pi, 3 * np.pi, 0.5, 5.0])).round(4)
    array([ 3.1416,  3.1416,  0.5   , -1.2832])
    """
    xp: Any = namespace(yaw)
    turned = np.pi - xp.remainder(np.pi - yaw, 2 * np.pi)
    result: A = xp.where(turned <= -np.pi, turned + 2 * np.pi, turned)  # a remainder rounded up to 2 pi
    return result


def corners_bev(boxes: A) -> A:
    """The four corners of footprints, counter-clockwise from the front left: FL, RL, RR, FR.

    Args:
        boxes: (N, 5) rows [cx, cy, w, l, yaw] or (N, 7) rows [cx, cy, cz, w, l, h, yaw].

    Returns:
        (N, 4, 2) points (x, y), in the boxes' frame and unit.

    Raises:
        ValueError: another shape.

    >>> import numpy as np
    >>> corners_bev(np.array([[10, 0, 2, 4, 0.0]]))[0].tolist()
    [[12.0, 1.0], [8.0, 1.0], [8.0, -1.0], [12.0, -1.0]]
    """
    rows = _floats(boxes, "boxes", (5, 7), f"[cx, cy, w, l, yaw] or {BOX_3D}")
    xp: Any = namespace(rows)
    w, l, yaw = (rows[:, k] for k in ((2, 3, 4) if rows.shape[1] == 5 else (3, 4, 6)))  # noqa: E741
    cos, sin = xp.cos(yaw), xp.sin(yaw)
    points = []
    for ahead, left, _ in CORNER_SIGNS[:4]:
        u, v = ahead * l / 2, left * w / 2
        points.append(xp.stack([rows[:, 0] + u * cos - v * sin, rows[:, 1] + u * sin + v * cos], -1))
    result: A = xp.stack(points, 1)
    return result


def corners_3d(boxes: A) -> A:
    """The eight corners of 3D boxes: the bottom face as `corners_bev`, then the top face above it.

    Order: 0 front left, 1 rear left, 2 rear right, 3 front right, all at the bottom; 4 to 7 the same at
    the top (`CORNER_SIGNS`). Front is where the heading points, left is to its left seen from above.

    Args:
        boxes: (N, 7) rows [cx, cy, cz, w, l, h, yaw].

    Returns:
        (N, 8, 3) points (x, y, z), in the boxes' frame and unit.

    Raises:
        ValueError: another shape.

    >>> import numpy as np
    >>> corners_3d(np.array([[10, 0, 1, 2, 4, 2, 0.0]]))[0, [0, 6]].tolist()
    [[12.0, 1.0, 0.0], [8.0, -1.0, 2.0]]
    """
    rows = _floats(boxes, "boxes", (7,), BOX_3D)
    xp: Any = namespace(rows)
    flat = corners_bev(rows)
    z = [(rows[:, 2] + sign * rows[:, 5] / 2)[:, None] + flat[:, :, 0] * 0 for sign in (-1, 1)]
    faces = [xp.stack([flat[:, :, 0], flat[:, :, 1], height], -1) for height in z]
    result: A = xp.concatenate(faces, 1)
    return result


def boxes_from_corners(corners: A) -> A:
    """The 3D boxes whose corners these are; the inverse of `corners_3d`.

    Args:
        corners: (N, 8, 3), in the order of `corners_3d`.

    Returns:
        (N, 7) rows [cx, cy, cz, w, l, h, yaw]; yaw in (-pi, pi], 0 where the length is 0.

    Raises:
        ValueError: another shape.

    >>> import numpy as np
    >>> box = np.array([[1, 2, 3, 1.8, 4.5, 1.5, -2.0]])
    >>> boxes_from_corners(corners_3d(box)).round(6).tolist()
    [[1.0, 2.0, 3.0, 1.8, 4.5, 1.5, -2.0]]
    """
    if corners.ndim != 3 or tuple(corners.shape[1:]) != (8, 3):
        raise ValueError(f"corners has shape {tuple(corners.shape)}; pass (N, 8, 3) as made by corners_3d")
    flat = _floats(corners.reshape(-1, 3), "corners", (3,), "[x, y, z]")
    points = flat.reshape(-1, 8, 3)
    xp: Any = namespace(points)
    center = points.mean(1)
    ahead = (points[:, [0, 3, 4, 7]].mean(1) - points[:, [1, 2, 5, 6]].mean(1))[:, :2]
    left = (points[:, [0, 1, 4, 5]].mean(1) - points[:, [2, 3, 6, 7]].mean(1))[:, :2]
    height = points[:, 4:, 2].mean(1) - points[:, :4, 2].mean(1)
    length, width = ((d * d).sum(-1) ** 0.5 for d in (ahead, left))
    yaw = wrap_yaw(xp.arctan2(ahead[:, 1], ahead[:, 0]))
    columns = [center[:, 0], center[:, 1], center[:, 2], width, length, height, yaw]
    result: A = xp.stack(columns, -1)
    return result


def transform_boxes(boxes: A, matrix: Matrix) -> A:
    """Move 3D boxes into another frame.

    The centre is transformed as a point and the heading as a direction; sizes stay. If the frames'
    vertical axes differ a little (a tilted sensor), the box is set upright in the new frame: its heading
    is what the old heading looks like from above.

    Args:
        boxes: (N, 7) rows [cx, cy, cz, w, l, h, yaw] in the old frame.
        matrix: (4, 4) rigid transform from the old frame to the new one (a numpy array or tensor).

    Returns:
        (N, 7) rows in the new frame, yaw in (-pi, pi].

    Raises:
        ValueError: a wrong shape, or a matrix that is not a rotation (to 1e-3) with a translation.

    >>> import numpy as np
    >>> quarter = np.array([[0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1.0]])
    >>> transform_boxes(np.array([[2, 0, 0, 1.8, 4.5, 1.5, 0.0]]), quarter).round(4).tolist()
    [[5.0, 2.0, 1.0, 1.8, 4.5, 1.5, 1.5708]]
    """
    rows = _floats(boxes, "boxes", (7,), BOX_3D)
    xp: Any = namespace(rows)
    rotation, shift = rigid_parts(matrix)
    x, y, z = (rows[:, k] for k in range(3))
    center: list[Any] = [
        float(r[0]) * x + float(r[1]) * y + float(r[2]) * z + float(s)
        for r, s in zip(rotation, shift, strict=True)
    ]
    cos, sin = xp.cos(rows[:, 6]), xp.sin(rows[:, 6])
    ahead_x, ahead_y = (float(rotation[i, 0]) * cos + float(rotation[i, 1]) * sin for i in (0, 1))
    yaw = wrap_yaw(xp.arctan2(ahead_y, ahead_x))
    result: A = xp.stack([*center, rows[:, 3], rows[:, 4], rows[:, 5], yaw], -1)
    return result


def transform_velocities(velocities: A, matrix: Matrix) -> A:
    """Turn ground-plane velocities into another frame (rotation only; the frames do not move).

    Args:
        velocities: (N, 2) rows [vx, vy] in the old frame, m/s.
        matrix: (4, 4) rigid transform from the old frame to the new one.

    Returns:
        (N, 2) rows [vx, vy] in the new frame, the vertical part dropped.

    Raises:
        ValueError: as `transform_boxes`.

    >>> import numpy as np
    >>> quarter = np.array([[0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1.0]])
    >>> transform_velocities(np.array([[3.0, 0.0]]), quarter).tolist()
    [[0.0, 3.0]]
    """
    rows = _floats(velocities, "velocities", (2,), "[vx, vy]")
    xp: Any = namespace(rows)
    turn, _ = rigid_parts(matrix)
    vx, vy = rows[:, 0], rows[:, 1]
    result: A = xp.stack([float(turn[i, 0]) * vx + float(turn[i, 1]) * vy for i in (0, 1)], -1)
    return result


def rigid_parts(matrix: Matrix) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Rotation (3, 3) and translation (3,) of a 4x4 transform, float64.

    Raises:
        ValueError: not (4, 4), or the upper left block is no rotation (to 1e-3).
    """
    given: Any = matrix
    m = np.asarray(given.detach().cpu() if is_tensor(given) else given, dtype=np.float64)
    if m.shape != (4, 4):
        raise ValueError(f"matrix has shape {m.shape}; pass a (4, 4) transform")
    turn = m[:3, :3]
    if not (np.abs(turn @ turn.T - np.eye(3)).max() < 1e-3 and np.linalg.det(turn) > 0):
        raise ValueError(
            f"matrix is no rigid transform (its rotation block is {turn.tolist()}); pass rotation and shift"
        )
    return turn, m[:3, 3]


def points_in_boxes(points: A, boxes: A) -> A:
    """Which points lie in which boxes, borders included.

    Args:
        points: (P, >= 3) rows that begin with x, y, z.
        boxes: (N, 7) rows [cx, cy, cz, w, l, h, yaw], in the same frame.

    Returns:
        bool (N, P); one byte for each pair, so for long lists `count_points_in_boxes` is the lighter one.
        A box with a negative size or a NaN holds nothing.

    Raises:
        TypeError: numpy and torch mixed.
        ValueError: a wrong shape.

    >>> import numpy as np
    >>> points_in_boxes(np.array([[1.9, 0, 0], [0, 1.9, 0]]), np.array([[0, 0, 0, 2, 4, 1, 0.0]]))
    array([[ True, False]])
    """
    cloud, rows = _cloud(points, boxes)
    xp: Any = namespace(rows)
    masks = [_inside(xp, cloud, rows[k]) for k in range(len(rows))]
    result: A = xp.stack(masks, 0) if masks else (cloud[:, 0] == 0)[None][:0]
    return result


def count_points_in_boxes(points: A, boxes: A) -> A:
    """How many points lie in each box, borders included; as `points_in_boxes`, in memory of O(P).

    Returns:
        int64 (N,).

    >>> import numpy as np
    >>> count_points_in_boxes(np.array([[1.9, 0, 0], [0.5, 0, 0.4]]), np.array([[0, 0, 0, 2, 4, 1, 0.0]]))
    array([2])
    """
    cloud, rows = _cloud(points, boxes)
    count: Any = _count_tensors if is_tensor(rows) else _count_numpy
    result: A = count(cloud, rows)
    return result


def _cloud(points: Any, boxes: Any) -> tuple[Any, Any]:
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"points has shape {tuple(points.shape)}; pass (P, 3 or more) rows [x, y, z, ...]")
    require_boxes(boxes, "boxes", (7,), BOX_3D)
    call = prepare((points[:, :3], boxes), "torch" if is_tensor(points) or is_tensor(boxes) else "numpy")
    return call.arrays[0], call.arrays[1]


def _inside(xp: Any, cloud: Any, box: Any) -> Any:
    dx, dy, dz = (cloud[:, k] - box[k] for k in range(3))
    cos, sin = xp.cos(box[6]), xp.sin(box[6])
    ahead, left = cos * dx + sin * dy, cos * dy - sin * dx
    inside = (xp.abs(ahead) <= box[4] / 2) & (xp.abs(left) <= box[3] / 2)
    return inside & (xp.abs(dz) <= box[5] / 2)


def _count_tensors(cloud: Any, rows: Any) -> Any:
    import torch

    counts = [_inside(torch, cloud, rows[k]).sum() for k in range(len(rows))]
    return torch.stack(counts) if counts else torch.zeros(0, dtype=torch.long, device=rows.device)


def _count_numpy(cloud: Any, rows: Any) -> npt.NDArray[np.int64]:
    """Points near each box by the circle test, then the exact test on those."""
    counts = np.zeros(len(rows), np.int64)
    finite = np.isfinite(cloud).all(-1)
    valid = np.isfinite(rows).all(-1)
    x, y = (np.where(finite, cloud[:, k], 0).astype(np.float64) for k in (0, 1))
    here = Circles(x, y, np.zeros(len(cloud)), finite)
    boxes = np.where(valid[:, None], rows, 0).astype(np.float64)
    there = Circles(boxes[:, 0], boxes[:, 1], np.hypot(boxes[:, 3], boxes[:, 4]) / 2, valid)
    for start, _, found in circle_test(there, here).blocks():
        box, point = row_and_column(found, len(cloud))
        for k in np.unique(box):
            near = cloud[point[box == k]]
            counts[start + k] += np.count_nonzero(_inside(np, near, rows[start + k]))
    return counts
