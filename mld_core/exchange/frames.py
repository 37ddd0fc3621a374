"""The frames of a recorded pass with their boxes, as every format reads them.

What the records may hold for a 3D frame: `ego_pose`, 16 numbers, the row-major transform from the frame of
the boxes to the global one, or to be applied after `lidar2ego`; and `calibration`, a JSON object with
`lidar2ego`, `lidar2cam` (4x4, LiDAR to rectified camera) and `cam2img` (3x3 or 3x4). Without `lidar2cam` the
camera sits in the LiDAR, looking ahead; without `cam2img` it has the focal length of KITTI's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.records.read.reader import PassSelection

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """One recorded unit with its boxes.

    Attributes:
        row: its row of `samples`.
        found: its detections.
        true: its truths.
        dataset_type: its split.
        model: `<model>/<version>`.
    """

    row: dict[str, Any]
    found: Boxes
    true: Boxes
    dataset_type: str = ""
    model: str = ""


@dataclass(frozen=True)
class Boxes:
    """Boxes of one frame.

    Attributes:
        box: (N, 4) or (N, 7).
        label: (N,).
        score: (N,), 1 for truths.
        velocity: (N, 2), NaN unknown.
        columns: further columns by name (truths: ignore, crowd, n_points, ...), lists of N.
    """

    box: Floats
    label: NDArray[np.int64]
    score: Floats
    velocity: Floats
    columns: dict[str, list[Any]]


def frames_of(item: PassSelection) -> Iterator[Frame]:
    """The frames of a pass in order, with their boxes."""
    samples = item.table("samples").to_pylist()
    width = 7 if item.task == "detection3d" else 4
    found = _by_unit(item.table("detections") if item.has("detections") else None, "det_idx", width)
    true = _by_unit(item.table("truths") if item.has("truths") else None, "gt_idx", width)
    nothing = _boxes([], width)
    model = f"{item.run.model_name}/{item.run.version_name}"
    for row in samples:
        key = (row["rank_"], row["unit"])
        yield Frame(row, found.get(key, nothing), true.get(key, nothing), item.key.dataset_type, model)


def _by_unit(table: pa.Table | None, order: str, width: int) -> dict[tuple[int, int], Boxes]:
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in table.to_pylist() if table is not None else ():
        rows.setdefault((row["rank_"], row["unit"]), []).append(row)
    return {key: _boxes(sorted(part, key=lambda one: one[order]), width) for key, part in rows.items()}


def _boxes(rows: list[dict[str, Any]], width: int) -> Boxes:
    nan = [np.nan, np.nan]
    own = {"unit", "rank_", "input_id", "det_idx", "gt_idx", "label", "score", "box", "velocity"}
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ()) if name not in own}
    return Boxes(
        np.array([row["box"] for row in rows], np.float64).reshape(-1, width),
        np.array([row["label"] for row in rows], np.int64),
        np.array([row.get("score", 1.0) for row in rows], np.float64),
        np.array([row.get("velocity") or nan for row in rows], np.float64).reshape(-1, 2),
        columns,
    )


def flags(boxes: Boxes, name: str) -> list[bool]:
    """A yes-or-no column of the boxes, all False where it was not recorded."""
    return [bool(value) for value in boxes.columns.get(name, [False] * len(boxes.label))]


def _affine(row: dict[str, Any]) -> Floats:
    given = row.get("affine")
    return np.array(given or [1, 0, 0, 0, 1, 0], np.float64).reshape(2, 3)


def original_boxes(box: Floats, row: dict[str, Any]) -> Floats:
    """Boxes in pixels of the original image: the upright box around the mapped corners."""
    matrix = _affine(row)
    corners = np.stack([box[:, [0, 1]], box[:, [2, 1]], box[:, [2, 3]], box[:, [0, 3]]], axis=1)
    mapped = corners @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([mapped.min(axis=1), mapped.max(axis=1)], axis=1) if len(box) else box


def original_size(row: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the original image as far as the tensor covers it; 0 where unknown."""
    if not row.get("image_height") or not row.get("image_width"):
        return 0, 0
    corner = original_boxes(np.array([[0, 0, row["image_width"], row["image_height"]]], np.float64), row)[0]
    return round(float(corner[3])), round(float(corner[2]))


def calibration(row: dict[str, Any]) -> dict[str, Any]:
    """The calibration of a frame, empty where none was recorded.

    Raises:
        ValueError: it is no JSON.
    """
    text = row.get("calibration")
    try:
        found = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(
            f"calibration of {row['input_id']!r} is no JSON ({error}); record an object"
        ) from error
    return found if isinstance(found, dict) else {}


def write_json(path: Path, content: Any) -> None:
    """Write one JSON file."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file)
