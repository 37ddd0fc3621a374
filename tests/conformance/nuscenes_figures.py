"""The devkit's figures of what a repository writes for it, and true boxes made of that.

Boxes are the devkit's annotations: dicts in the global frame.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed: run this in .venv-mmdet3d")
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox
from old_mm import Files
from pyquaternion import Quaternion

from ml_debugger.evaluator import Evaluator
from ml_debugger.training import ObjectDetection3DTracer

NAMES = (
    "car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian",
    "traffic_cone",
)  # fmt: skip
TASKS = (NAMES[:1], NAMES[1:3], NAMES[3:5], NAMES[5:6], NAMES[6:8], NAMES[8:])
DEVKIT = config_factory("detection_cvpr_2019")
ERRORS = {"trans_err": "mate", "scale_err": "mase", "orient_err": "maoe", "vel_err": "mave"}


def infos_of(count: int, *, beside: bool = False) -> list[dict[str, Any]]:
    """Frames under tokens, with the poses that converters write. LiDAR and car stand level.

    Args:
        count: of frames.
        beside: the LiDAR does not stand where the car's frame begins, which the range of boxes is measured from.
    """
    return [
        {
            "token": f"t{index}",
            "lidar2ego_rotation": Quaternion(axis=[0, 0, 1], radians=-1.5 if beside else 0).elements,
            "lidar2ego_translation": [0.9, 0.1, 1.8] if beside else [0, 0, 0],
            "ego2global_rotation": Quaternion(axis=[0, 0, 1], radians=0.3 + index).elements,
            "ego2global_translation": [100.0 + index, -50, 2],
        }
        for index in range(count)
    ]


def matrix_of(info: dict[str, Any], name: str) -> Any:
    """(4, 4) of "lidar2ego" or "ego2global"."""
    made = Quaternion(info[f"{name}_rotation"]).transformation_matrix
    made[:3, 3] = info[f"{name}_translation"]
    return made


def true_boxes(
    info: dict[str, Any], found: list[dict[str, Any]], rng: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """Some of the predictions of a frame, moved about.

    Returns:
        (G, 9) in the LiDAR's frame as the devkit has them, x, y, z, w, l, h, yaw, vx, vy; and the annotations.
    """
    whole = matrix_of(info, "ego2global") @ matrix_of(info, "lidar2ego")
    back, around = np.linalg.inv(whole), np.arctan2(whole[1, 0], whole[0, 0])
    rows, kept = [], []
    for one in sorted(found, key=lambda one: -one["detection_score"])[::2]:
        size = np.array(one["size"]) * np.exp(rng.normal(0, 0.1, 3))
        yaw = Quaternion(one["rotation"]).yaw_pitch_roll[0] + rng.normal(0, 0.3)
        place = np.array(one["translation"]) + np.array([*rng.normal(0, 0.7, 2), 0.1])
        speed = np.array(one["velocity"]) + rng.normal(0, 0.5, 2)
        kept.append(
            {"sample_token": info["token"], "translation": place.tolist(), "size": size.tolist(),
             "rotation": Quaternion(axis=[0, 0, 1], radians=yaw).elements.tolist(), "velocity": speed.tolist(),
             "detection_name": one["detection_name"] if rng.random() > 0.15 else "car", "detection_score": -1.0,
             "attribute_name": ""}
        )  # fmt: skip
        center, flat = (back @ [*place, 1])[:3], (back[:3, :3] @ [*speed, 0])[:2]
        rows.append([*center, *size, yaw - around, *flat])
    return np.array(rows, np.float32).reshape(-1, 9), kept


def judged(infos: list[dict[str, Any]], found: dict[str, Any], true: dict[str, Any]) -> dict[str, float]:
    """The devkit's mean figures, step by step (its class needs the whole database)."""

    def boxes(given: dict[str, Any]) -> EvalBoxes:
        made = EvalBoxes.deserialize(given, DetectionBox)
        for info in infos:
            for box in made[info["token"]]:
                box.ego_translation = tuple(np.array(box.translation) - info["ego2global_translation"])
            made.boxes[info["token"]] = [
                one for one in made[info["token"]] if one.ego_dist < DEVKIT.class_range[one.detection_name]
            ]
        return made

    left, right = boxes(found), boxes(true)
    curves = {
        (name, most): accumulate(right, left, name, center_distance, most)
        for name in NAMES
        for most in DEVKIT.dist_ths
    }
    figures = {"mAP": float(np.mean([calc_ap(curve, 0.1, 0.1) for curve in curves.values()]))}
    skipped = {"orient_err": ("traffic_cone",), "vel_err": ("traffic_cone", "barrier")}
    for error, ours in ERRORS.items():
        known = [name for name in NAMES if name not in skipped.get(error, ())]
        figures[ours] = float(np.mean([calc_tp(curves[name, 2.0], 0.1, error) for name in known]))
    return figures


def data_set(files: Files, infos: list[dict[str, Any]]) -> Any:
    """The repository's own, over infos that the test writes."""
    made = object.__new__(files.find("NuScenesDataset"))
    made.CLASSES, made.modality = list(NAMES), {"use_lidar": True}
    made.eval_detection_configs, made.eval_version = DEVKIT, "detection_cvpr_2019"
    made.with_velocity, made.use_valid_flag = True, True
    made.img_info_prototype, made.test_adj_ids = "bevdet", None  # BEVDet's, of what is not in time
    made.speed_mode, made.max_interval, made.test_adj, made.fix_direction = "relative_dis", 3, "next", False
    made.box_mode_3d = files.find("Box3DMode").LIDAR
    made.data_infos = infos
    return made


def written(data: Any, answers: list[Any], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The file for the devkit."""
    files, _ = data.format_results(answers, str(folder))
    file = Path(files["pts_bbox"] if isinstance(files, dict) else files)
    return dict(json.loads(file.read_text())["results"])


def compared(
    name: str,
    model: Any,
    calls: list[tuple[Any, Any, list[str]]],
    theirs: dict[str, float],
    *,
    least: float = 0.05,
) -> None:
    """Records calls (batch, truth, ids) of a model; the figures of that are theirs.

    Args:
        least: mAP below which the case says nothing.
    """
    tracer = ObjectDetection3DTracer(model, "net", "v1")
    for batch, truth, ids in calls:
        tracer(batch, truth, ids, "val", 0)
    tracer.wait_for_save(0)
    assert not tracer.guard.problems, tracer.guard.tracebacks
    ours = Evaluator("net", "v1").request_evaluation(n_epoch=None).metrics_summary(full=True).iloc[0]
    print(f"| {name} | {theirs['mAP']:.4f} | {ours['auprc']:.4f} |")
    assert theirs["mAP"] > least
    assert ours["auprc"] == pytest.approx(theirs["mAP"], abs=1e-5)
    for own in ERRORS.values():
        assert ours[own] == pytest.approx(theirs[own], abs=1e-5), own
