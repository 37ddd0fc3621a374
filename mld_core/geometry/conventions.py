"""How other code writes 3D boxes, and one converter each to `[cx, cy, cz, w, l, h, yaw]`.

The target is that of `boxes`: metres, radians, gravity centre, l along the heading, yaw counter-clockwise
from +x in (-pi, pi], z up. Every converter takes native rows (numpy or torch) and gives (boxes (N, 7),
velocities (N, 2) or None). Sources: the box classes and decoders of mmdetection3d 0.17 and 1.x, MIT
BEVFusion, OpenPCDet 0.2 and later, det3d (CenterPoint), the KITTI and nuScenes devkits, each checked
against point counts in real LiDAR frames.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mld_core.geometry.boxes import Matrix, rigid_parts, transform_boxes, transform_velocities, wrap_yaw
from mld_core.geometry.kernels.arrays import A, is_tensor, namespace, prepare, require_boxes

BOTTOM, GRAVITY = "bottom", "gravity"
OLD_YAW = "clockwise from -y"


class Convention(NamedTuple):
    """One way to write a box: its columns, where its centre lies in height, and what its yaw means."""

    name: str
    columns: str
    widths: tuple[int, ...]
    center_z: str
    yaw: str
    needs_transform: bool = False


def to_standard(boxes: A, convention: str, transform: Matrix | None = None) -> tuple[A, A | None]:
    """Rewrite boxes of a named convention as `[cx, cy, cz, w, l, h, yaw]`.

    Args:
        boxes: (N, K) native rows; `CONVENTIONS[convention].columns` names them.
        convention: a key of `CONVENTIONS`.
        transform: a (4, 4) rigid transform. KITTI camera: from the LiDAR frame to the rectified camera frame
            (R0_rect @ Tr_velo_to_cam), required. nuScenes: from the global frame to the frame wanted,
            optional. The others take none.

    Returns:
        Boxes (N, 7) and ground-plane velocities (N, 2) in m/s, or None where the rows hold none; floating
        dtype as in `boxes`.

    Raises:
        KeyError: an unknown convention.
        ValueError: a wrong shape, a missing or a needless transform.

    >>> import numpy as np
    >>> native = np.array([[10, 5, -1.5, 1.8, 4.5, 1.5, -np.pi / 2]])  # its yaw is clockwise from -y
    >>> boxes, velocities = to_standard(native, "mmdet3d<1.0")
    >>> boxes.tolist(), velocities
    ([[10.0, 5.0, -0.75, 1.8, 4.5, 1.5, 0.0]], None)
    """
    if convention not in CONVENTIONS:
        raise KeyError(f"convention {convention!r} is none of {', '.join(CONVENTIONS)}; pass one of these")
    rule = CONVENTIONS[convention]
    require_boxes(boxes, "boxes", rule.widths, rule.columns)
    if rule.needs_transform and transform is None:
        raise ValueError(
            f"{convention} boxes need transform=, the (4, 4) LiDAR-to-camera matrix; none was given"
        )
    if transform is not None and not (rule.needs_transform or convention == "nuscenes"):
        raise ValueError(f"{convention} boxes take no transform; convert first, then boxes.transform_boxes")
    rows: Any = prepare((boxes,), "torch" if is_tensor(boxes) else "numpy").arrays[0]
    read: Any = {"kitti_camera": _kitti_camera, "nuscenes": _nuscenes}.get(convention, _as_written)
    converted, velocities = read(rule, rows, transform)
    return converted, velocities


def _columns(rule: Convention, rows: Any) -> dict[str, Any]:
    """The columns of native rows by the names the convention gives them, as far as the rows hold them."""
    names = re.findall(r"\w+", rule.columns.partition("]")[0])
    return {name: rows[:, k] for k, name in enumerate(names[: rows.shape[1]])}


def _stacked(rows: Any, columns: list[Any]) -> Any:
    xp: Any = namespace(rows)
    return xp.stack(columns, -1)


def _velocity(rows: Any, column: dict[str, Any]) -> Any:
    return _stacked(rows, [column["vx"], column["vy"]]) if "vx" in column else None


def _turned(yaw: Any) -> Any:
    """Clockwise from -y, to counter-clockwise from +x."""
    return wrap_yaw(-yaw - np.pi / 2)


def _as_written(rule: Convention, rows: Any, _: Matrix | None) -> tuple[Any, Any]:
    """The frame is right as it is: columns in order, the centre lifted, the yaw turned."""
    column = _columns(rule, rows)
    z = column["z"] + column["h"] / 2 if rule.center_z == BOTTOM else column["z"]
    yaw = _turned(column["yaw"]) if rule.yaw == OLD_YAW else wrap_yaw(column["yaw"])
    boxes = [column["x"], column["y"], z, column["w"], column["l"], column["h"], yaw]
    return _stacked(rows, boxes), _velocity(rows, column)


def _kitti_camera(rule: Convention, rows: Any, lidar_to_camera: Matrix | None) -> tuple[Any, Any]:
    column = _columns(rule, rows)
    turn, shift = rigid_parts(np.eye(4) if lidar_to_camera is None else lidar_to_camera)
    back = -turn.T @ shift
    center = [sum(float(turn[k, i]) * rows[:, k] for k in range(3)) + float(back[i]) for i in range(3)]
    center[2] = center[2] + column["h"] / 2
    boxes = [*center, column["w"], column["l"], column["h"], _turned(column["ry"])]
    return _stacked(rows, boxes), None


def _nuscenes(rule: Convention, rows: Any, from_global: Matrix | None) -> tuple[Any, Any]:
    column = _columns(rule, rows)
    w, x, y, z = (column[name] for name in ("qw", "qx", "qy", "qz"))
    xp: Any = namespace(rows)
    yaw = xp.arctan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)
    boxes = _stacked(rows, [rows[:, k] for k in range(6)] + [wrap_yaw(yaw)])
    velocity = _velocity(rows, column)
    if from_global is None:
        return boxes, velocity
    moved = None if velocity is None else transform_velocities(velocity, from_global)
    return transform_boxes(boxes, from_global), moved


_OLD, _NEW = "[x, y, z, w, l, h, yaw(, vx, vy)]", "[x, y, z, l, w, h, yaw(, vx, vy)]"
_CAMERA = "[x, y, z, l, h, w, ry], rectified camera frame"
_GLOBAL = "[x, y, z, w, l, h, qw, qx, qy, qz(, vx, vy)], global frame"
_TABLE = (
    Convention("mmdet3d<1.0", _OLD, (7, 9), BOTTOM, OLD_YAW),
    Convention("mmdet3d>=1.0", _NEW, (7, 9), BOTTOM, "ccw from +x"),
    # The class says "bottom", but targets add h/2 and the decoder takes it off: z is the gravity centre.
    Convention("mit_bevfusion", _OLD, (7, 9), GRAVITY, OLD_YAW),
    Convention("openpcdet", _NEW, (7, 9), GRAVITY, "ccw from +x"),
    Convention("det3d", "[x, y, z, w, l, h, yaw]", (7,), GRAVITY, OLD_YAW),
    Convention("det3d_velocity", "[x, y, z, w, l, h, vx, vy, yaw]", (9,), GRAVITY, OLD_YAW),
    Convention("kitti_camera", _CAMERA, (7,), BOTTOM, "about camera y (down), from camera x", True),
    Convention("nuscenes", _GLOBAL, (10, 12), GRAVITY, "unit quaternion"),
)

# By name; "mmdet3d<1.0" is up to and with 0.18, "mmdet3d>=1.0" from 1.0.0rc0, "openpcdet" from 0.2.
CONVENTIONS: Mapping[str, Convention] = MappingProxyType({rule.name: rule for rule in _TABLE})
