"""Where 3D boxes lie from the ego vehicle and in the image, as far as calibration is recorded."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, Predictions
from mld_core.evaluation.metrics.kitti import image_boxes, projection


def ego_places(records: BoxRecords, frame: Ints, box: NDArray[np.floating]) -> Floats | None:
    """(N, 2) centres in the ego vehicle's ground plane; None where no frame says how it stands to it.

    Of a frame that does not say so its own origin counts.
    """
    known = _matrices(records, "lidar2ego")
    if not known:
        return None
    to_ego = np.tile(np.eye(4), (records.frames.num_rows, 1, 1))
    for number, matrix in known.items():
        to_ego[number] = matrix
    turn, shift = to_ego[:, :2, :3], to_ego[:, :2, 3]
    return np.asarray(np.einsum("nij,nj->ni", turn[frame], box[:, :3].astype(np.float64)) + shift[frame])


def image_boxes_of(records: BoxRecords, found: Predictions) -> tuple[Floats | None, Bools]:
    """(N, 4) image boxes of predictions, cut to the image where its size is known, and which lie in it.

    None and all of them where a judged frame has no camera.
    """
    every = np.ones(len(found), np.bool_)
    to_camera, project = _matrices(records, "lidar2cam"), _matrices(records, "cam2img", None)
    judged = set(np.flatnonzero(records.labelled).tolist())
    if not judged or not judged <= to_camera.keys() & project.keys():
        return None, every
    made = np.zeros((len(found), 4))
    for number in np.unique(found.frame).tolist():
        rows = np.flatnonzero(found.frame == number)
        camera = projection(project[number])
        made[rows] = image_boxes(found.box[rows].astype(np.float64), to_camera[number], camera)
        size = _said(records, number).get("image_size")
        if size is not None:
            height, width = size
            box = made[rows]
            every[rows] = (box[:, 0] < width) & (box[:, 1] < height) & (box[:, 2] > 0) & (box[:, 3] > 0)
            made[rows] = np.concatenate([box[:, :2].clip(0), np.minimum(box[:, 2:], (width, height))], axis=1)
    return made, every


def _said(records: BoxRecords, number: int) -> dict[str, Any]:
    text = records.calibration[number] if len(records.calibration) else None
    try:
        found = json.loads(text) if text else {}
    except ValueError:  # a user's own text
        return {}
    return found if isinstance(found, dict) else {}


def _matrices(records: BoxRecords, name: str, shape: tuple[int, ...] | None = (4, 4)) -> dict[int, Floats]:
    """Frame -> one of its matrices, of the frames that have it."""
    made = {}
    for number in range(len(records.calibration)):
        value = _said(records, number).get(name)
        matrix = np.empty(0) if value is None else np.asarray(value, np.float64)
        if matrix.ndim == 2 and (shape is None or matrix.shape == shape):
            made[number] = matrix
    return made
