"""Where 3D boxes lie from the ego vehicle and in the image, as far as calibration is recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, Predictions, Truths
from mld_core.evaluation.metrics.camera import image_boxes, in_camera, projection, seen_angles
from mld_core.records.format.schema import IMAGE_BOX, IMAGE_BOX_TYPE

MOST_PIXELS = 1_000_000
"""More of them on a side is no image."""


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


def all_rooms(records: BoxRecords) -> bool:
    """Whether all boxes of the frames with known truths came in a depth sensor's frame."""
    judged = np.flatnonzero(records.labelled).tolist()
    return all(_said(records, number).get("depth_frame") is True for number in judged)


def image_boxes_of(records: BoxRecords, found: Predictions) -> tuple[Floats | None, Bools]:
    """(N, 4) image boxes of predictions, cut to the image where its size is known, and which lie in it.

    What lies beside it or behind the camera does not, as in MMDetection3D, nor what lies beyond its metric's
    limits; in runs of OpenPCDet it is pressed into the image's edge and does. None and all of them where a
    judged frame has no camera.
    """
    every = np.ones(len(found), np.bool_)
    to_camera, project = _matrices(records, "lidar2cam"), _matrices(records, "cam2img")
    judged = set(np.flatnonzero(records.labelled).tolist())
    if not judged or not judged <= to_camera.keys() & project.keys():
        return None, every
    made = np.zeros((len(found), 4))
    for number in np.unique(found.frame).tolist():
        rows = np.flatnonzero(found.frame == number)
        box, camera = found.box[rows].astype(np.float64), projection(project[number])
        said = _said(records, number)
        pressed, size = said.get("pressed") is True, image_size(said)
        if pressed:
            camera[2] = 0, 0, 1, 0  # it divides by the depth itself
        flat = image_boxes(box, to_camera[number], camera, behind=True)
        if size is not None:
            if pressed:
                flat = flat.clip(0, np.array(size[::-1] * 2) - 1)
            else:
                before = in_camera(box, to_camera[number])[:, 0] > 0
                every[rows] = before & (flat[:, :2] < size[::-1]).all(axis=1) & (flat[:, 2:] > 0).all(axis=1)
                flat = np.concatenate([flat[:, :2].clip(0), np.minimum(flat[:, 2:], size[::-1])], axis=1)
        every[rows] &= _within(box, _limits(said))
        made[rows] = flat
    return made, every


def camera_boxes(records: BoxRecords, boxes: Predictions | Truths) -> Floats:
    """(N, 7) boxes in the camera's frame, as KITTI's tools compare them; without a camera as they are."""
    made = boxes.box.astype(np.float64)
    known = _matrices(records, "lidar2cam")
    to_camera = np.tile(np.eye(4), (records.frames.num_rows, 1, 1))
    for number, matrix in known.items():
        to_camera[number] = matrix
    rows = np.flatnonzero(np.isin(boxes.frame, list(known)))
    made[rows] = in_camera(made[rows], to_camera[boxes.frame[rows]])
    return made


def true_image_boxes(records: BoxRecords) -> NDArray[np.float64] | None:
    """(G, 4) image boxes of the truths as recorded, NaN where one has none; None where none has one."""
    table = records.truth_columns
    if IMAGE_BOX not in table.column_names or table.schema.field(IMAGE_BOX).type != IMAGE_BOX_TYPE:
        return None
    column = table[IMAGE_BOX].combine_chunks()
    there = np.asarray(pc.equal(pc.list_value_length(column), 4).fill_null(False))
    made = np.full((len(column), 4), np.nan)
    made[there] = np.asarray(column.filter(pa.array(there)).flatten(), np.float64).reshape(-1, 4)
    return made if there.any() else None


def _limits(said: Mapping[str, Any]) -> Floats | None:
    """(2, 3) lower and upper limits that a calibration names, None where it names none."""
    try:
        found = np.array(said.get("limit_range"), np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return found.reshape(2, 3) if found.shape == (6,) and np.isfinite(found).all() else None


def _within(box: Floats, limits: Floats | None) -> Bools:
    """(N,) whether the middle of a box's bottom lies between (2, 3) limits; without limits all do."""
    if limits is None:
        return np.ones(len(box), np.bool_)
    bottom = box[:, :3] - box[:, 5:6] / 2 * [0, 0, 1]
    return np.asarray(((bottom > limits[0]) & (bottom < limits[1])).all(axis=1))


def angles_of(records: BoxRecords, boxes: Predictions | Truths) -> Floats:
    """(N,) KITTI's observation angle of boxes in frames that have a camera.

    Of predictions in runs of a LiDAR's detector it is what MMDetection3D and OpenPCDet write.
    """
    to_camera = _matrices(records, "lidar2cam")
    every = np.tile(np.eye(4), (records.frames.num_rows, 1, 1))
    for number, matrix in to_camera.items():
        every[number] = matrix
    theirs = np.zeros(len(every), np.bool_)
    for number in to_camera if isinstance(boxes, Predictions) else ():
        said = _said(records, number)
        theirs[number] = said.get("pressed") is True or _limits(said) is not None
    return seen_angles(boxes.box.astype(np.float64), every[boxes.frame], from_lidar=theirs[boxes.frame])


def dont_care_of(records: BoxRecords) -> tuple[Ints, Floats]:
    """Frames (R,) and image boxes (R, 4) of the regions without labels, as far as calibrations name them."""
    frame: list[int] = []
    box: list[Floats] = []
    for number in range(len(records.calibration)):
        for one in _boxes_in(_said(records, number).get("dont_care")):
            frame.append(number)
            box.append(one)
    return np.array(frame, np.int64), np.array(box, np.float64).reshape(-1, 4)


@dataclass(frozen=True)
class Beside:
    """Vans and sitting persons that are no class of the run, as far as calibrations name them.

    Attributes:
        frame: (B,) their frames.
        name: of each, lower case.
        row: (B,) true boxes of the frame that stand before it.
        box: (B, 7) in the frame of the boxes.
        image_box: (B, 4) xyxy.
        told: (F,) frames that say which there are, be it none.
    """

    frame: Ints
    name: list[str]
    row: Ints
    box: Floats
    image_box: Floats
    told: Bools


def beside_of(records: BoxRecords) -> Beside:
    """The neighbours of a pass."""
    frames, names, rows, numbers = [], [], [], []
    told = np.zeros(records.frames.num_rows, np.bool_)
    for number in range(len(records.calibration)):
        said = _said(records, number).get("neighbours")
        read = [_neighbour(one) for one in said] if isinstance(said, list) else [None]
        known = [one for one in read if one is not None]
        told[number] = len(known) == len(read)
        for name, row, values in known:
            frames.append(number)
            names.append(name)
            rows.append(row)
            numbers.append(values)
    both = np.array(numbers, np.float64).reshape(-1, 11)
    return Beside(np.array(frames, np.int64), names, np.array(rows, np.int64), both[:, :7], both[:, 7:], told)


def _neighbour(said: Any) -> tuple[str, int, Floats] | None:
    """Name, row and the numbers of both boxes; None of what is no neighbour."""
    match said:
        case {"name": str() as name, "row": int() as row, "box": [*box], "image_box": [*drawn]} if row >= 0:
            try:
                numbers = np.array([*box, *drawn], np.float64)
            except (TypeError, ValueError, OverflowError):
                return None
            fits = (len(box), len(drawn)) == (7, 4) and numbers.shape == (11,)
            return (name.lower(), row, numbers) if fits and np.isfinite(numbers).all() else None
    return None


def _boxes_in(said: Any) -> list[Floats]:
    """The image boxes in a calibration's list; what is none is left out."""
    found = []
    for one in said if isinstance(said, list) else []:
        try:
            box = np.array(one, np.float64)
        except (TypeError, ValueError, OverflowError):
            continue
        if box.shape == (4,) and np.isfinite(box).all():
            found.append(box)
    return found


def read_calibration(text: str | None) -> dict[str, Any]:
    """What a frame's calibration says, which is a user's own text; nothing where it is no JSON object.

    Example:
        >>> read_calibration('{"image_size": [370, 1242]}'), read_calibration("[1]"), read_calibration(None)
        ({'image_size': [370, 1242]}, {}, {})
    """
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def matrix_in(said: Mapping[str, Any], name: str) -> Floats | None:
    """One of a calibration's matrices, (4, 4), or of `cam2img` also (3, 3) and (3, 4); None of anything else.

    Example:
        >>> matrix_in({"cam2img": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, "cam2img").shape
        (3, 3)
        >>> matrix_in({"lidar2cam": [[1, 2], "x"]}, "lidar2cam") is None
        True
    """
    try:
        made = np.array(said.get(name), np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    shapes = {(3, 3), (3, 4), (4, 4)} if name == "cam2img" else {(4, 4)}
    return made if made.shape in shapes and np.isfinite(made).all() else None


def image_size(said: Mapping[str, Any]) -> tuple[float, float] | None:
    """Height and width of a calibration's image in pixels; None where it names none.

    Example:
        >>> image_size({"image_size": [370, 1242]}), image_size({"image_size": ["a", None]})
        ((370, 1242), None)
    """
    match said.get("image_size"):
        case [int() | float() as height, int() | float() as width] if (
            0 < min(height, width) <= max(height, width) < MOST_PIXELS
        ):
            return height, width
    return None


def _said(records: BoxRecords, number: int) -> dict[str, Any]:
    return read_calibration(records.calibration[number] if len(records.calibration) else None)


def _matrices(records: BoxRecords, name: str) -> dict[int, Floats]:
    """Frame -> one of its matrices, of the frames that have it."""
    found = {number: matrix_in(_said(records, number), name) for number in range(len(records.calibration))}
    return {number: matrix for number, matrix in found.items() if matrix is not None}
