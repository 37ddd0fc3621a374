"""How much boxes overlap: pairwise matrices and aligned pairs, on numpy arrays or torch tensors.

Every function takes two arrays of one kind and gives one of that kind: float64 if an argument is float64 or
an integer, else float32. `backend` forces an engine (see `backend`); all engines agree to 1e-6.

Rows that are no boxes (NaN or infinite entries, negative sizes; find them with `invalid_boxes`) overlap
nothing: IoU 0, generalised IoU -1. Boxes without area (volume) have IoU 0 with everything, themselves
included.

Error bounds: rotated and 3D IoU compute the pairs that can overlap in float64 from differences of the
coordinates, relative to one of the two boxes, wherever the boxes lie. Against exact areas the error is below
1e-10 for float64 (1e-4 m slivers included, 1e-15 is usual) and half a unit in the last place of the result,
6e-8, for float32. Axis-aligned IoU in float32 rounds each step: 1e-6. Temporary memory is bounded (a few MB)
besides the result; with gradients, torch keeps what the backward pass needs of every overlapping pair.

Rotated boxes are the footprints [cx, cy, w, l, yaw] in metres and radians, l along the heading, yaw
counter-clockwise from +x, or 7-DoF rows [cx, cy, cz, w, l, h, yaw] with cz the gravity centre; both boxes in
one frame, z up.

Sources: Green's theorem over edges cut by slabs (Liang and Barsky, "Line Clipping", 1984);
Rezatofighi et al., "Generalized Intersection over Union", 2019; Zheng et al., "Distance-IoU Loss", 2020.
"""

from typing import Any

import numpy as np

from mld_core.geometry.kernels import engine_numpy
from mld_core.geometry.kernels.arrays import (
    AXIS_MODES,
    A,
    Backend,
    Call,
    Mode,
    namespace,
    prepare,
    require_boxes,
)
from mld_core.geometry.kernels.axis import CHUNK, valid_corners
from mld_core.geometry.kernels.pairs import valid_rows

XYXY = "[x1, y1, x2, y2]"
BEV = "[cx, cy, w, l, yaw] or [cx, cy, cz, w, l, h, yaw]"
BOX_3D = "[cx, cy, cz, w, l, h, yaw]"


def box_iou(a: A, b: A, *, backend: Backend | None = None) -> A:
    """IoU of every pair of axis-aligned boxes.

    Args:
        a: (N, 4) rows [x1, y1, x2, y2], any unit.
        b: (M, 4) rows likewise.
        backend: force an engine.

    Returns:
        (N, M) in [0, 1].

    Raises:
        TypeError: numpy and torch mixed, or tensors on several devices.
        ValueError: a wrong shape or backend.

    >>> import numpy as np
    >>> box_iou(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 3, 2.0], [5, 5, 6, 6.0]])).round(4)
    array([[0.3333, 0.    ]])
    """
    return overlaps(a, b, "iou", backend)


def box_giou(a: A, b: A, *, backend: Backend | None = None) -> A:
    """Generalised IoU of every pair of axis-aligned boxes: IoU - (enclosing box - union) / enclosing box.

    Shapes and errors as `box_iou`; values in [-1, 1].

    >>> import numpy as np
    >>> float(box_giou(np.array([[0, 0, 1, 1.0]]), np.array([[3, 0, 4, 1.0]]))[0, 0])
    -0.5
    """
    return overlaps(a, b, "giou", backend)


def box_diou(a: A, b: A, *, backend: Backend | None = None) -> A:
    """Distance IoU of every pair: IoU - (centre distance / diagonal of the enclosing box) squared.

    Shapes and errors as `box_iou`; values in [-1, 1].

    >>> import numpy as np
    >>> round(float(box_diou(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 3, 2.0]]))[0, 0]), 4)  # 1/3 - 1/13
    0.2564
    """
    return overlaps(a, b, "diou", backend)


def box_ioa(a: A, b: A, *, backend: Backend | None = None) -> A:
    """Share of each box of `a` that lies inside each box of `b` (COCO's overlap with a crowd region).

    Shapes and errors as `box_iou`; values in [0, 1].

    >>> import numpy as np
    >>> float(box_ioa(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 9, 9.0]]))[0, 0])
    0.5
    """
    return overlaps(a, b, "ioa", backend)


def box_iou_aligned(a: A, b: A, *, backend: Backend | None = None) -> A:
    """IoU (N,) of row k of `a` (N, 4) with row k of `b` (N, 4); else as `box_iou`.

    >>> import numpy as np
    >>> box_iou_aligned(np.array([[0, 0, 2, 2.0]]), np.array([[0, 0, 2, 1.0]]))
    array([0.5])
    """
    return overlaps(a, b, "iou", backend, aligned=True)


def box_giou_aligned(a: A, b: A, *, backend: Backend | None = None) -> A:
    """Generalised IoU (N,) of row k of `a` with row k of `b`; else as `box_giou`.

    >>> import numpy as np
    >>> box_giou_aligned(np.array([[0, 0, 1, 1.0]]), np.array([[3, 0, 4, 1.0]]))
    array([-0.5])
    """
    return overlaps(a, b, "giou", backend, aligned=True)


def box_diou_aligned(a: A, b: A, *, backend: Backend | None = None) -> A:
    """Distance IoU (N,) of row k of `a` with row k of `b`; else as `box_diou`.

    >>> import numpy as np
    >>> box_diou_aligned(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 3, 2.0]])).round(4)
    array([0.2564])
    """
    return overlaps(a, b, "diou", backend, aligned=True)


def box_ioa_aligned(a: A, b: A, *, backend: Backend | None = None) -> A:
    """Share (N,) of row k of `a` that lies inside row k of `b`; else as `box_ioa`.

    >>> import numpy as np
    >>> box_ioa_aligned(np.array([[0, 0, 2, 2.0]]), np.array([[1, 0, 9, 9.0]]))
    array([0.5])
    """
    return overlaps(a, b, "ioa", backend, aligned=True)


def bev_iou(a: A, b: A, *, backend: Backend | None = None) -> A:
    """IoU of every pair of rotated footprints (bird's-eye view).

    Args:
        a: (N, 5) rows [cx, cy, w, l, yaw] or (N, 7) rows [cx, cy, cz, w, l, h, yaw], of which the footprint
            counts.
        b: (M, 5) or (M, 7) rows likewise.
        backend: force an engine.

    Returns:
        (N, M) in [0, 1]. Differentiable where a tensor requires a gradient.

    Raises:
        TypeError: numpy and torch mixed, or tensors on several devices.
        ValueError: a wrong shape or backend.

    >>> import numpy as np
    >>> turned = np.array([[0, 0, 2, 2, np.pi / 4]])  # two squares at 45 degrees share a regular octagon
    >>> round(float(bev_iou(np.array([[0, 0, 2, 2, 0.0]]), turned)[0, 0]), 6)
    0.707107
    """
    return overlaps(a, b, "bev", backend)


def bev_iou_aligned(a: A, b: A, *, backend: Backend | None = None) -> A:
    """IoU (N,) of the footprint in row k of `a` with that in row k of `b`; else as `bev_iou`.

    >>> import numpy as np
    >>> bev_iou_aligned(np.array([[0, 0, 2, 4, 0.0]]), np.array([[0, 0, 2, 4, np.pi / 2]])).round(4)
    array([0.3333])
    """
    return overlaps(a, b, "bev", backend, aligned=True)


def iou_3d(a: A, b: A, *, backend: Backend | None = None) -> A:
    """IoU of the volumes of every pair of upright 3D boxes.

    Args:
        a: (N, 7) rows [cx, cy, cz, w, l, h, yaw], metres and radians, cz the gravity centre.
        b: (M, 7) rows likewise.
        backend: force an engine.

    Returns:
        (N, M) in [0, 1]. Differentiable where a tensor requires a gradient.

    Raises:
        TypeError: numpy and torch mixed, or tensors on several devices.
        ValueError: a wrong shape or backend.

    >>> import numpy as np
    >>> box = np.array([[10, 5, 0, 2, 4, 1.5, 0.3]])
    >>> float(iou_3d(box, box + [0, 0, 0.75, 0, 0, 0, 0]).round(6)[0, 0])  # half the height shared
    0.333333
    """
    return overlaps(a, b, "3d", backend)


def iou_3d_aligned(a: A, b: A, *, backend: Backend | None = None) -> A:
    """IoU (N,) of the volume in row k of `a` with that in row k of `b`; else as `iou_3d`.

    >>> import numpy as np
    >>> iou_3d_aligned(np.array([[0, 0, 0, 2, 4, 2, 0.0]]), np.array([[0, 0, 0, 2, 4, 1, 0.0]]))
    array([0.5])
    """
    return overlaps(a, b, "3d", backend, aligned=True)


def giou_3d(a: A, b: A, *, backend: Backend | None = None) -> A:
    """Generalised 3D IoU of every pair: IoU - (enclosing - union) / enclosing.

    The enclosing body is the convex hull of both footprints over the joint height range. Arguments and errors
    as `iou_3d`; values in [-1, 1].

    >>> import numpy as np
    >>> a, b = np.array([[0, 0, 0, 1, 1, 1, 0.0]]), np.array([[3, 0, 0, 1, 1, 1, 0.0]])
    >>> float(giou_3d(a, b)[0, 0])
    -0.5
    """
    return overlaps(a, b, "giou_3d", backend)


def giou_3d_aligned(a: A, b: A, *, backend: Backend | None = None) -> A:
    """Generalised 3D IoU (N,) of row k of `a` with row k of `b`; else as `giou_3d`.

    >>> import numpy as np
    >>> giou_3d_aligned(np.array([[0, 0, 0, 1, 1, 1, 0.0]]), np.array([[3, 0, 0, 1, 1, 1, 0.0]]))
    array([-0.5])
    """
    return overlaps(a, b, "giou_3d", backend, aligned=True)


def center_distance(a: A, b: A, *, dims: int = 2) -> A:
    """Distance of every pair of box centres.

    Args:
        a: (N, >= dims) rows that begin with the centre: boxes [cx, cy, ...] or [cx, cy, cz, ...], or bare
            points.
        b: (M, >= dims) rows likewise.
        dims: 2 for the ground plane (nuScenes' distance), 3 for space.

    Returns:
        (N, M) in the unit of the rows; NaN where a centre is NaN.

    Raises:
        TypeError: numpy and torch mixed, or tensors on several devices.
        ValueError: `dims` is not 2 or 3, or the rows are too short.

    >>> import numpy as np
    >>> center_distance(np.array([[0, 0, 9.0]]), np.array([[3, 4, 9.0], [0, 1, 0.0]]))
    array([[5., 1.]])
    """
    call, xp = _centers(a, b, dims)
    left, right = call.arrays
    if xp is not np:
        matrix: A = call.give_back(_norm(xp, [left[:, None, k] - right[None, :, k] for k in range(dims)]))
        return matrix
    out = np.empty((len(left), len(right)), left.dtype)
    columns = np.ascontiguousarray(right[:, :dims].T)
    step = max(1, CHUNK // max(len(right), 1))
    for start in range(0, len(left), step):
        block = left[start : start + step]
        out[start : start + step] = _norm(np, [block[:, k, None] - columns[k] for k in range(dims)])
    result: A = call.give_back(out)
    return result


def center_distance_aligned(a: A, b: A, *, dims: int = 2) -> A:
    """Distance (N,) of the centre in row k of `a` from that in row k of `b`; else as `center_distance`.

    >>> import numpy as np
    >>> center_distance_aligned(np.array([[0, 0, 0.0]]), np.array([[2, 3, 6.0]]), dims=3)
    array([7.])
    """
    call, xp = _centers(a, b, dims)
    _require_pairs(a, b)
    left, right = call.arrays
    result: A = call.give_back(_norm(xp, [left[:, k] - right[:, k] for k in range(dims)]))
    return result


def invalid_boxes(boxes: A) -> A:
    """Rows that are no boxes: an entry is NaN or infinite, or a size is negative.

    Args:
        boxes: (N, 4) xyxy, (N, 5) [cx, cy, w, l, yaw] or (N, 7) [cx, cy, cz, w, l, h, yaw] rows.

    Returns:
        bool (N,); zero-size boxes are not among them.

    Raises:
        ValueError: another shape.

    >>> import numpy as np
    >>> invalid_boxes(np.array([[0, 0, 1, 1.0], [0, 0, -1, 1.0], [0, 0, np.nan, 1.0], [2, 2, 2, 2.0]]))
    array([False,  True,  True, False])
    """
    require_boxes(boxes, "boxes", (4, 5, 7), f"{XYXY}, {BEV}")
    xp: Any = namespace(boxes)
    valid = valid_corners if boxes.shape[1] == 4 else valid_rows
    result: A = ~valid(xp, boxes)
    return result


def _norm(xp: Any, differences: list[Any]) -> Any:
    if xp is not np:
        return xp.linalg.vector_norm(xp.stack(differences, -1), dim=-1)  # has a finite gradient at 0
    return np.sqrt(sum(d * d for d in differences))


def _centers(a: Any, b: Any, dims: int) -> tuple[Call, Any]:
    if dims not in {2, 3}:
        raise ValueError(f"dims is {dims}; pass 2 (ground plane) or 3 (space)")
    for name, rows in (("a", a), ("b", b)):
        if rows.ndim != 2 or rows.shape[1] < dims:
            raise ValueError(
                f"{name} has shape {tuple(rows.shape)}; pass (N, {dims} or more) rows [cx, cy, ...]"
            )
    call = prepare((a, b))
    return call, namespace(call.arrays[0])


def footprints(boxes: Any) -> Any:
    """(N, 5) footprints of (N, 5) or (N, 7) rows."""
    return boxes if boxes.shape[1] == 5 else boxes[:, [0, 1, 3, 4, 6]]


def overlaps(a: A, b: A, mode: Mode, backend: Backend | None, *, aligned: bool = False) -> A:
    """One of the quantities above for every pair, or for row k with row k, by whichever engine fits."""
    widths, rows = ((4,), XYXY) if mode in AXIS_MODES else ((5, 7), BEV) if mode == "bev" else ((7,), BOX_3D)
    if aligned:
        _require_pairs(a, b)
    for name, given in (("a", a), ("b", b)):
        require_boxes(given, name, widths, rows)
    left, right = (footprints(a), footprints(b)) if mode == "bev" else (a, b)
    call = prepare((left, right), backend)
    engine: Any = engine_numpy
    if call.engine == "torch":
        from mld_core.geometry.kernels import engine_torch as engine
    elif call.engine == "numba":
        from mld_core.geometry.kernels import engine_numba as engine
    compute = engine.aligned if aligned else engine.pairwise
    result: A = call.give_back(compute(*call.arrays, mode))
    return result


def _require_pairs(a: Any, b: Any) -> None:
    if len(a) != len(b):
        raise ValueError(
            f"aligned boxes need equal row counts, got {len(a)} and {len(b)}; use the pairwise function"
        )
