"""3D boxes as KITTI's camera has them: where in the image, and at which angle they are seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.boxes import Floats

SQUINT = np.radians(5.0)
"""A LiDAR's x and a camera's view that are nearer to one another than this are one direction."""

NEAREST = 0.1
"""Metres before the camera from which on a point is in its image."""


def projection(matrix: NDArray[np.floating]) -> Floats:
    """(3, 4) camera to image, of a matrix (3, 3), (3, 4) or (4, 4)."""
    project = np.zeros((3, 4))
    given = matrix[:3]
    project[:, : given.shape[1]] = given
    return project


def in_camera(box: Floats, to_camera: Floats) -> Floats:
    """(N, 7) 3D boxes as KITTI's tools compare them: upright in the camera's frame, not in the LiDAR's.

    KITTI writes a box by the centre of its bottom in the rectified camera and one angle around the camera's
    axis. MMDetection3D and OpenPCDet move that centre and keep the yaw: the LiDAR's x is the camera's view to
    a degree. Where they are `SQUINT` apart the yaw turns with the frame. Axes here are forward, left, up.

    Args:
        box: (N, 7) in the LiDAR's frame.
        to_camera: (4, 4) or (N, 4, 4) LiDAR to rectified camera.

    Example:
        >>> camera = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, -0.3], [0, 0, 0, 1.0]])
        >>> in_camera(np.array([[10, 2, -1, 1.6, 4, 1.5, 0.5]]), camera).round(2).tolist()
        [[9.7, 2.0, -1.0, 1.6, 4.0, 1.5, 0.5]]
    """
    turn, shift = to_camera[..., :3, :3], to_camera[..., :3, 3]
    half = box[:, 5] / 2
    bottom = box[:, :3] - np.array([0, 0, 1]) * half[:, None]
    x, y, z = (np.einsum("...ij,...j->...i", turn, bottom) + shift).T
    aside = np.arctan2(-turn[..., 0, 0], turn[..., 2, 0])
    yaw = box[:, 6] + np.where(np.abs(aside) < SQUINT, 0.0, aside)
    return np.column_stack([z, -x, -y + half, box[:, 3:6], yaw])


def image_boxes(box: Floats, to_camera: Floats, project: Floats, *, behind: bool = False) -> Floats:
    """(N, 4) xyxy image boxes around the corners of 3D boxes that lie before the camera; else zeros.

    Boxes stand upright in the camera's frame. `behind`: with corners behind it, mirrored (KITTI's tools do).
    """
    along = np.array([1, -1, -1, 1, 1, -1, -1, 1]) * 0.5
    aside = np.array([1, 1, -1, -1, 1, 1, -1, -1]) * 0.5
    up = np.array([-1, -1, -1, -1, 1, 1, 1, 1]) * 0.5
    box = in_camera(box, to_camera)
    cos, sin = np.cos(box[:, 6:7]), np.sin(box[:, 6:7])
    ahead, left = along * box[:, 4:5], aside * box[:, 3:4]
    x, y = box[:, 0:1] + ahead * cos - left * sin, box[:, 1:2] + ahead * sin + left * cos
    seen = np.stack([-y, -(box[:, 2:3] + up * box[:, 5:6]), x], axis=-1)
    flat = seen @ project[:, :3].T + project[:, 3]
    before = np.asarray(flat[..., 2] != 0 if behind else seen[..., 2] > NEAREST)
    depth = np.where(before, flat[..., 2], 1.0)
    pixel = flat[..., :2] / depth[..., None]
    low = np.where(before[..., None], pixel, np.inf).min(axis=1)
    high = np.where(before[..., None], pixel, -np.inf).max(axis=1)
    made = np.concatenate([low, high], axis=1)
    return np.asarray(np.where(before.any(axis=1, keepdims=True), made, 0.0))


def seen_angles(box: Floats, to_camera: Floats, *, from_lidar: bool | NDArray[np.bool_] = False) -> Floats:
    """(N,) KITTI's alpha as its tools compare it, of boxes upright in the camera's frame.

    Args:
        box: (N, 7) in the LiDAR's frame.
        to_camera: (4, 4) or (N, 4, 4) LiDAR to rectified camera.
        from_lidar: one or (N,): looked at from the LiDAR's origin, not from the camera's, as MMDetection3D
            and OpenPCDet do with what a LiDAR's detector finds; KITTI's annotators looked from the camera.
    """
    seen = in_camera(box, to_camera)
    aside = np.where(from_lidar, np.arctan2(-box[:, 1], box[:, 0]), np.arctan2(-seen[:, 1], seen[:, 0]))
    return np.asarray((-seen[:, 6] - np.pi / 2 - aside + np.pi) % (2 * np.pi) - np.pi)


def observation_angles(box: Floats, to_camera: Floats) -> tuple[Floats, Floats]:
    """(N,) rotation around the camera's axis that points down, and how an object is seen: KITTI's alpha.

    Args:
        box: (N, 7) in the LiDAR's frame.
        to_camera: (4, 4) or (N, 4, 4) LiDAR to rectified camera.
    """
    turn, shift = to_camera[..., :3, :3], to_camera[..., :3, 3]
    center = np.einsum("...ij,...j->...i", turn, box[:, :3] - np.array([0, 0, 0.5]) * box[:, 5:6]) + shift
    ahead = np.stack([np.cos(box[:, 6]), np.sin(box[:, 6]), np.zeros(len(box))], axis=1)
    turned = np.einsum("...ij,...j->...i", turn, ahead)
    rotation = np.asarray(np.arctan2(-turned[:, 2], turned[:, 0]))
    alpha = rotation - np.arctan2(center[:, 0], center[:, 2])
    return rotation, np.asarray((alpha + np.pi) % (2 * np.pi) - np.pi)
