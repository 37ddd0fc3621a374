"""A real Runner on MMDetection3D's nuScenes data set class: the recorded run has the figures of its NuScenesMetric.

That metric asks nuscenes-devkit and its database: a small one is written, of objects that drive on through the frames
at their velocity, all ten classes among them, some without points and some out of range. Predictions are the true
boxes moved about: a network with random weights finds nothing.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import DATA

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")

import mmdet3d_parts as parts
import torch
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.evaluation.metrics import NuScenesMetric
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from pyquaternion import Quaternion

from ml_debugger.evaluator import Evaluator

if not DATA.is_dir():
    pytest.skip(f"no real LiDAR frames at {DATA}; set MLD_TEST_DATA to their folder", allow_module_level=True)
init_default_scope("mmdet3d")

FRAMES, SECONDS = 8, 0.5
NEAR, ALL = 40, 60
ORDER = NuScenesDataset.METAINFO["classes"]
"""Of labels in infos; the data set maps them to its own classes."""
CATEGORIES = {ours: theirs for theirs, ours in NuScenesMetric.NameMapping.items()}
OURS = {"mATE": "mate", "mASE": "mase", "mAOE": "maoe", "mAVE": "mave", "mAP": "auprc"}


def objects() -> list[dict[str, Any]]:
    """So many near the car, and some anywhere, in the LiDAR's frame."""
    rng = np.random.default_rng(1)
    made = []
    for number in range(ALL):
        reach = 14.0 if number < NEAR else 45.0
        size = rng.uniform(0.5, 5, 3)
        made.append(
            {
                "box_3d": [*rng.uniform(-reach, reach, 2), -1.0, *size, rng.uniform(-np.pi, np.pi)],
                "label": parts.NUSCENES[number % len(parts.NUSCENES)],
                "velocity": rng.uniform(-2, 2, 2).tolist(),
                "num_lidar_pts": int(rng.integers(0, 20)),
            }
        )
    return made


def centre(thing: dict[str, Any], index: int) -> Any:
    """Of an object in a frame."""
    return np.array(thing["box_3d"][:3]) + index * SECONDS * np.array([*thing["velocity"], 0.0])


def instance(thing: dict[str, Any], index: int) -> dict[str, Any]:
    """A box as MMDetection3D's converter writes it."""
    w, length, h, yaw = thing["box_3d"][3:]
    return {
        "bbox_3d": [*centre(thing, index).tolist(), length, w, h, yaw],
        "bbox_label_3d": ORDER.index(thing["label"]),
        "velocity": thing["velocity"],
        "num_lidar_pts": thing["num_lidar_pts"],
        "bbox_3d_isvalid": True,
    }


def annotation(thing: dict[str, Any], number: int, index: int, to_globe: Any) -> dict[str, Any]:
    """The same in the devkit's table."""
    w, length, h, yaw = thing["box_3d"][3:]
    turn = Quaternion(matrix=to_globe[:3, :3], rtol=1e-5, atol=1e-7) * Quaternion(axis=[0, 0, 1], radians=yaw)
    return {
        "token": f"{index}.{number}",
        "prev": f"{index - 1}.{number}" if index else "",
        "next": f"{index + 1}.{number}" if index + 1 < FRAMES else "",
        "sample_token": f"{index}",
        "instance_token": f"{number}",
        "attribute_tokens": [],
        "translation": (to_globe[:3, :3] @ centre(thing, index) + to_globe[:3, 3]).tolist(),
        "size": [w, length, h],
        "rotation": turn.elements.tolist(),
        "num_lidar_pts": thing["num_lidar_pts"],
        "num_radar_pts": 0,
    }


def write_nuscenes(folder: Path) -> None:
    """Infos of the real sweep under several names, and the devkit's tables."""
    frame, things = parts.frame_of("nuscenes"), objects()
    pose = np.array(frame["ego2global"])
    points = folder / "points"
    points.mkdir(parents=True)
    (folder / "mask.png").write_bytes(b"")
    infos: list[Any] = []
    tables: dict[str, list[Any]] = {
        "category": [{"token": name, "name": name} for name in CATEGORIES.values()],
        "instance": [
            {"token": f"{number}", "category_token": CATEGORIES[thing["label"]]}
            for number, thing in enumerate(things)
        ],
        "sensor": [{"token": "s", "channel": "LIDAR_TOP", "modality": "lidar"}],
        "calibrated_sensor": [{"token": "c", "sensor_token": "s"}],
        "ego_pose": [{"token": "e", "rotation": [1, 0, 0, 0], "translation": pose[:3, 3].tolist()}],
        "log": [{"token": "l"}],
        "scene": [{"token": "s", "name": "scene-0103", "log_token": "l"}],
        "map": [{"token": "m", "log_tokens": ["l"], "filename": "mask.png"}],
        **{name: [] for name in ("attribute", "visibility", "sample", "sample_data", "sample_annotation")},
    }
    of = {"ego_pose_token": "e", "calibrated_sensor_token": "c", "is_key_frame": True}
    for index in range(FRAMES):
        (points / f"{index:06d}.bin").symlink_to(frame["folder"] / frame["points"])
        tables["sample"].append(
            {"token": f"{index}", "scene_token": "s", "timestamp": int(index * SECONDS * 1e6)}
        )
        tables["sample_data"].append({"token": f"{index}", "sample_token": f"{index}", **of})
        tables["sample_annotation"] += [
            annotation(thing, number, index, pose @ np.array(frame["lidar2ego"]))
            for number, thing in enumerate(things)
        ]
        lidar = {"lidar_path": f"{index:06d}.bin", "num_pts_feats": 5, "lidar2ego": frame["lidar2ego"]}
        info = {"sample_idx": index, "token": f"{index}", "ego2global": frame["ego2global"], "images": {}}
        infos.append(
            {**info, "lidar_points": lidar, "instances": [instance(thing, index) for thing in things]}
        )
    numbers = {label: i for i, label in enumerate(ORDER)}
    with (folder / "infos.pkl").open("wb") as file:
        pickle.dump({"metainfo": {"categories": numbers}, "data_list": infos}, file)
    (folder / "v1.0-mini").mkdir()
    for name, rows in tables.items():
        (folder / "v1.0-mini" / f"{name}.json").write_text(json.dumps(rows))


def about(samples: Any, rng: Any) -> Any:
    """In place of the head: the true boxes moved about, some left out, some of another class, and false ones."""
    noise = [0.4, 0.4, 0.2, 0.1, 0.1, 0.1, 0.3, 0.4, 0.4]
    for sample in samples:
        known = sample.eval_ann_info
        kept = rng.random(len(known["gt_labels_3d"])) < 0.8
        true, labels = known["gt_bboxes_3d"].tensor[kept], torch.tensor(known["gt_labels_3d"][kept])
        moved = torch.tensor(rng.normal(0, 1, true.shape) * noise, dtype=torch.float32)
        labels[torch.tensor(rng.random(len(labels)) < 0.1)] = 0
        false = (true + moved)[::4] + torch.tensor([6.0, -5, 0, 0, 0, 0, 0, 0, 0])
        rows = torch.cat([true + moved, false])
        rows[:, 3:6].clamp_(min=0.1)
        closeness = 1 - moved[:, :2].norm(dim=1)
        scores = torch.cat([closeness, torch.tensor(rng.random(len(false)))]).clamp(0.05, 0.99).float()
        sample.pred_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(rows, box_dim=9),
            scores_3d=scores,
            labels_3d=torch.cat([labels, labels[::4]]),
        )
        sample.pred_instances = InstanceData()
    return samples


def test_a_nuscenes_run_has_the_figures_of_its_own_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    write_nuscenes(tmp_path / "data")
    cfg = parts.small_run(parts.centerpoint(), tmp_path / "data", tmp_path / "work", "nuscenes")
    meta = {"classes": parts.NUSCENES, "version": "v1.0-mini"}
    cfg.val_dataloader.dataset.update(type="NuScenesDataset", metainfo=meta)
    place = {"data_root": str(tmp_path / "data"), "ann_file": str(tmp_path / "data" / "infos.pkl")}
    cfg.val_evaluator = {"type": "NuScenesMetric", **place}
    runner = Runner.from_cfg(cfg)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(runner.model, "predict", lambda _, data_samples, **__: about(data_samples, rng))
    theirs = {name.rsplit("/", 1)[1]: value for name, value in runner.val().items()}
    result = Evaluator("CenterPoint", "v1").request_evaluation(n_epoch=None)
    ours = result.metrics_summary(full=True).iloc[0]
    print(f"theirs {theirs['mAP']:.4f}, ours {ours['auprc']:.4f}", {own: ours[own] for own in OURS.values()})
    assert 0.1 < theirs["mAP"] < 0.9
    # Centres are compared over the ground there, in the LiDAR's plane here, which is tilted by more than a degree.
    for name, own in OURS.items():
        assert ours[own] == pytest.approx(theirs[name], abs=5e-4), name
