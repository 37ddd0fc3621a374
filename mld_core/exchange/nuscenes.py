"""nuScenes: `results.json` (a submission) and `truths.json` (the same form, with `num_pts`).

In the global frame where `ego_pose` is recorded, else in the frame of the boxes, which `meta` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mld_core.exchange.frames import Boxes, Floats, Frame, calibration, flags, write_json

NUSCENES_CLASSES = (
    *("car", "truck", "bus", "trailer", "construction_vehicle"),
    *("pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier"),
)
NUSCENES_ATTRIBUTES = (
    *("cycle.with_rider", "cycle.without_rider"),
    *("pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down"),
    *("vehicle.moving", "vehicle.parked", "vehicle.stopped"),
)
"""By the numbers that MMDetection3D gives them."""

MOST_NUSCENES = 500
"""Boxes of a sample beyond which nuScenes refuses a submission; the best-scored are kept."""


def write_nuscenes(frames: list[Frame], class_names: list[str], folder: Path) -> None:
    """Write the two files of one pass.

    Raises:
        ValueError: a class nuScenes has not.
    """
    known = [name.lower().replace(" ", "_").replace("-", "_") for name in class_names]
    strange = sorted({name for name in known if name not in NUSCENES_CLASSES})
    if strange:
        raise ValueError(
            f"nuScenes has no class {', '.join(strange)}; give the names by label, out of "
            f"{', '.join(NUSCENES_CLASSES)} (class_names=, --class-names)"
        )
    posed = all(frame.row.get("ego_pose") for frame in frames)
    meta = {f"use_{name}": name == "lidar" for name in ("camera", "lidar", "radar", "map", "external")}
    found, true = {}, {}
    for frame in frames:
        token = str(frame.row["input_id"])
        pose = _to_global(frame.row) if posed else np.eye(4)
        found[token] = _nuscenes_boxes(token, frame.found, known, pose, score=True)
        true[token] = _nuscenes_boxes(token, frame.true, known, pose, score=False)
    where: dict[str, Any] = {**meta, "frame": "global" if posed else "as recorded: no ego_pose is there"}
    write_json(folder / "results.json", {"meta": where, "results": found})
    write_json(folder / "truths.json", {"meta": where, "results": true})


def _to_global(row: dict[str, Any]) -> Floats:
    pose = np.array(row["ego_pose"], np.float64).reshape(4, 4)
    given = calibration(row).get("lidar2ego")
    return pose if given is None else pose @ np.array(given, np.float64).reshape(4, 4)


def _nuscenes_boxes(
    token: str, boxes: Boxes, known: list[str], pose: Floats, *, score: bool
) -> list[dict[str, Any]]:
    box = boxes.box
    centre = box[:, :3] @ pose[:3, :3].T + pose[:3, 3]
    heading = np.stack([np.cos(box[:, 6]), np.sin(box[:, 6]), np.zeros(len(box))], axis=1) @ pose[:3, :3].T
    half = np.arctan2(heading[:, 1], heading[:, 0]) / 2
    flat = np.concatenate([boxes.velocity, np.zeros((len(box), 1))], axis=1) @ pose[:3, :3].T
    points = boxes.columns.get("n_points", [None] * len(box))
    kinds = boxes.columns.get("attribute", [None] * len(box))
    ignore = flags(boxes, "ignore")
    rows = np.argsort(-boxes.score, kind="stable")[:MOST_NUSCENES] if score else np.arange(len(box))
    made = []
    for k in rows.tolist():
        if ignore[k] or boxes.label[k] < 0:
            continue
        one: dict[str, Any] = {
            "sample_token": token,
            "translation": centre[k].tolist(),
            "size": box[k, 3:6].tolist(),
            "rotation": [float(np.cos(half[k])), 0.0, 0.0, float(np.sin(half[k]))],
            "velocity": flat[k, :2].tolist(),
            "detection_name": known[boxes.label[k]],
            "attribute_name": _attribute(kinds[k]),
        }
        if score:
            one["detection_score"] = float(boxes.score[k])
        elif points[k] is not None:
            one["num_pts"] = int(points[k])
        made.append(one)
    return made


def _attribute(kind: Any) -> str:
    """A name, none for what is no number of nuScenes' (a user's own column may have that name)."""
    known = isinstance(kind, int) and 0 <= kind < len(NUSCENES_ATTRIBUTES)
    return NUSCENES_ATTRIBUTES[kind] if known else ""
