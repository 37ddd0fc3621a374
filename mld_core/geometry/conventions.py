"""How other code writes 3D boxes, and one converter each to `[cx, cy, cz, w, l, h, yaw]`.

The target is that of `boxes`: metres, radians, gravity centre, l along the heading, yaw counter-clockwise
from +x in (-pi, pi], z up. Every converter takes native rows (numpy or torch) and gives (boxes (N, 7),
velocities (N, 2) or None). Sources: the box classes and decoders of mmdetection3d 0.17 and 1.x, MIT
BEVFusion, OpenPCDet 0.2 and later, det3d (CenterPoint), the KITTI and nuScenes devkits, each checked
against point counts in real LiDAR frames.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mld_core.geometry.boxes import Matrix, rigid_parts, transform_boxes, transform_velocities, wrap_yaw
from mld_core.geometry.kernels.arrays import A, is_tensor, namespace, prepare, require_boxes

Converted: TypeAlias = tuple[Any, Any]
Converter: TypeAlias = Callable[[Any, Matrix | None], Converted]


class Convention(NamedTuple):
    """One way to write a box: its columns, what must be known about them, and the converter."""

    name: str
    columns: str
    widths: tuple[int, ...]
    center_z: str
    yaw: str
    needs_transform: bool
    convert: Converter


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
    rows = prepare((boxes,), "torch" if is_tensor(boxes) else "numpy").arrays[0]
    converted, velocities = rule.convert(rows, transform)
    return converted, velocities


def _rows(rows: Any, columns: list[Any]) -> Any:
    xp: Any = namespace(rows)
    return xp.stack(columns, -1)


def _old_yaw(yaw: Any) -> Any:
    """Clockwise from -y, to counter-clockwise from +x."""
    return wrap_yaw(-yaw - np.pi / 2)


def _velocity(t: Any, first: int) -> Any:
    return t[:, first : first + 2] if t.shape[1] >= first + 2 else None


def _mmdet3d_old(t: Any, _: Matrix | None) -> Converted:
    z = t[:, 2] + t[:, 5] / 2
    return _rows(t, [t[:, 0], t[:, 1], z, t[:, 3], t[:, 4], t[:, 5], _old_yaw(t[:, 6])]), _velocity(t, 7)


def _mmdet3d_new(t: Any, _: Matrix | None) -> Converted:
    z = t[:, 2] + t[:, 5] / 2
    return _rows(t, [t[:, 0], t[:, 1], z, t[:, 4], t[:, 3], t[:, 5], wrap_yaw(t[:, 6])]), _velocity(t, 7)


def _mit_bevfusion(t: Any, _: Matrix | None) -> Converted:
    # The class says "bottom", but targets add h/2 and the decoder takes it off: column 2 is the gravity
    # centre.
    return _rows(t, [t[:, k] for k in range(6)] + [_old_yaw(t[:, 6])]), _velocity(t, 7)


def _openpcdet(t: Any, _: Matrix | None) -> Converted:
    return _rows(t, [t[:, k] for k in (0, 1, 2, 4, 3, 5)] + [wrap_yaw(t[:, 6])]), _velocity(t, 7)


def _det3d(t: Any, _: Matrix | None) -> Converted:
    return _rows(t, [t[:, k] for k in range(6)] + [_old_yaw(t[:, 6])]), None


def _det3d_velocity(t: Any, _: Matrix | None) -> Converted:
    return _rows(t, [t[:, k] for k in range(6)] + [_old_yaw(t[:, 8])]), t[:, 6:8]


def _kitti_camera(t: Any, lidar_to_camera: Matrix | None) -> Converted:
    turn, shift = rigid_parts(np.eye(4) if lidar_to_camera is None else lidar_to_camera)
    back = -turn.T @ shift
    center = [sum(float(turn[k, i]) * t[:, k] for k in range(3)) + float(back[i]) for i in range(3)]
    center[2] = center[2] + t[:, 4] / 2
    return _rows(t, [*center, t[:, 5], t[:, 3], t[:, 4], _old_yaw(t[:, 6])]), None


def _nuscenes(t: Any, from_global: Matrix | None) -> Converted:
    xp: Any = namespace(t)
    w, x, y, z = (t[:, k] for k in range(6, 10))
    yaw = xp.arctan2(2 * (w * z + x * y), w * w + x * x - y * y - z * z)
    boxes, velocity = _rows(t, [t[:, k] for k in range(6)] + [wrap_yaw(yaw)]), _velocity(t, 10)
    if from_global is None:
        return boxes, velocity
    return transform_boxes(boxes, from_global), (
        None if velocity is None else transform_velocities(velocity, from_global)
    )


_TABLE = (
    Convention(
        "mmdet3d<1.0",
        "[x, y, z, w, l, h, yaw(, vx, vy)]",
        (7, 9),
        "bottom",
        "clockwise from -y",
        False,
        _mmdet3d_old,
    ),
    Convention(
        "mmdet3d>=1.0",
        "[x, y, z, l, w, h, yaw(, vx, vy)]",
        (7, 9),
        "bottom",
        "ccw from +x",
        False,
        _mmdet3d_new,
    ),
    Convention(
        "mit_bevfusion",
        "[x, y, z, w, l, h, yaw(, vx, vy)]",
        (7, 9),
        "gravity",
        "clockwise from -y",
        False,
        _mit_bevfusion,
    ),
    Convention(
        "openpcdet", "[x, y, z, l, w, h, yaw(, vx, vy)]", (7, 9), "gravity", "ccw from +x", False, _openpcdet
    ),
    Convention("det3d", "[x, y, z, w, l, h, yaw]", (7,), "gravity", "clockwise from -y", False, _det3d),
    Convention(
        "det3d_velocity",
        "[x, y, z, w, l, h, vx, vy, yaw]",
        (9,),
        "gravity",
        "clockwise from -y",
        False,
        _det3d_velocity,
    ),
    Convention(
        "kitti_camera",
        "[x, y, z, l, h, w, ry], rectified camera frame",
        (7,),
        "bottom",
        "about camera y (down), from camera x",
        True,
        _kitti_camera,
    ),
    Convention(
        "nuscenes",
        "[x, y, z, w, l, h, qw, qx, qy, qz(, vx, vy)], global frame",
        (10, 12),
        "gravity",
        "unit quaternion",
        False,
        _nuscenes,
    ),
)

# By name; "mmdet3d<1.0" is up to and with 0.18, "mmdet3d>=1.0" from 1.0.0rc0, "openpcdet" from 0.2.
CONVENTIONS: Mapping[str, Convention] = MappingProxyType({rule.name: rule for rule in _TABLE})
