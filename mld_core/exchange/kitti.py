"""KITTI: `label_2/`, `pred/`, `calib/` with one text file a frame, and `index.json` (number -> input id)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from mld_core.evaluation.metrics.kitti import image_boxes, projection
from mld_core.exchange.frames import Boxes, Floats, Frame, calibration, flags, write_json

AHEAD = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
"""LiDAR (x ahead, y left, z up) to camera (x right, y down, z ahead) at the same place."""

KITTI_P2 = np.array([[721.5377, 0, 609.5593, 0], [0, 721.5377, 172.854, 0], [0, 0, 1, 0.0]])


def write_kitti(frames: list[Frame], class_names: list[str], folder: Path) -> None:
    """Write the files of one pass."""
    for name in ("label_2", "pred", "calib"):
        (folder / name).mkdir()
    index = {}
    for number, frame in zip(_numbers(frames), frames, strict=True):
        to_camera, project = _cameras(frame.row)
        index[number] = frame.row["input_id"]
        truth = _kitti_lines(frame.true, class_names, to_camera, project, score=False)
        found = _kitti_lines(frame.found, class_names, to_camera, project, score=True)
        (folder / "label_2" / f"{number}.txt").write_text("".join(truth))
        (folder / "pred" / f"{number}.txt").write_text("".join(found))
        (folder / "calib" / f"{number}.txt").write_text(_kitti_calibration(to_camera, project))
    write_json(folder / "index.json", index)


def _numbers(frames: list[Frame]) -> list[str]:
    """KITTI's six digits where the ids end in them, else running numbers."""
    stems = [Path(str(frame.row["input_id"])).stem for frame in frames]
    if len(set(stems)) == len(stems) and all(re.fullmatch(r"\d{6}", stem) for stem in stems):
        return stems
    return [f"{k:06d}" for k in range(len(frames))]


def _cameras(row: dict[str, Any]) -> tuple[Floats, Floats]:
    """(4, 4) LiDAR to rectified camera and (3, 4) camera to image."""
    known = calibration(row)
    to_camera = np.array(known.get("lidar2cam", AHEAD), np.float64).reshape(4, 4)
    given = np.array(known.get("cam2img", KITTI_P2), np.float64)
    return to_camera, projection(given.reshape(3, -1) if given.size in {9, 12} else given.reshape(4, 4))


def _kitti_lines(
    boxes: Boxes, class_names: list[str], to_camera: Floats, project: Floats, *, score: bool
) -> list[str]:
    box = boxes.box
    bottom = box[:, :3] - np.array([0, 0, 0.5]) * box[:, 5:6]
    location = bottom @ to_camera[:3, :3].T + to_camera[:3, 3]
    heading = np.stack([np.cos(box[:, 6]), np.sin(box[:, 6]), np.zeros(len(box))], axis=1)
    turned = heading @ to_camera[:3, :3].T
    rotation = np.arctan2(-turned[:, 2], turned[:, 0])
    alpha = _wrapped(rotation - np.arctan2(location[:, 0], location[:, 2]))
    image = image_boxes(box, to_camera, project)
    ignore = flags(boxes, "ignore")
    lines = []
    for k in range(len(box)):
        name = "DontCare" if ignore[k] and boxes.label[k] < 0 else class_names[boxes.label[k]]
        hidden = boxes.columns.get("occlusion", [None] * len(box))[k]
        cut = boxes.columns.get("truncation", [None] * len(box))[k]
        numbers = [alpha[k], *image[k], box[k, 5], box[k, 3], box[k, 4], *location[k], rotation[k]]
        numbers += [boxes.score[k]] if score else []
        first = f"{name.replace(' ', '_')} {-1 if score else cut or 0:g} {-1 if score else int(hidden or 0)}"
        lines.append(f"{first} {' '.join(f'{value:.6f}' for value in numbers)}\n")
    return lines


def _wrapped(angle: Floats) -> Floats:
    return np.asarray((angle + np.pi) % (2 * np.pi) - np.pi)


def _kitti_calibration(to_camera: Floats, project: Floats) -> str:
    def line(name: str, matrix: Floats) -> str:
        return f"{name}: {' '.join(f'{value:.12e}' for value in matrix.ravel())}\n"

    cameras = "".join(line(f"P{k}", project) for k in range(4))
    rest = line("R0_rect", np.eye(3)) + line("Tr_velo_to_cam", to_camera[:3])
    return cameras + rest + line("Tr_imu_to_velo", np.eye(4)[:3])
