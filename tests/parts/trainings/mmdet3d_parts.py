"""Shipped MMDetection3D configs made small: coarse pillars, a few real frames under several names, random weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import mmdet3d
import numpy as np
from folders import DATA, ROOT
from mmdet3d.datasets import Det3DDataset
from mmdet3d.registry import DATASETS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

SHIPPED = Path(mmdet3d.__file__).parent / ".mim" / "configs"
FRAMES = 4
KITTI = ["Pedestrian", "Cyclist", "Car"]
NUSCENES = ["car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle",
            "pedestrian", "traffic_cone"]  # fmt: skip
KITTI_RANGE = [0, -40.96, -3, 81.92, 40.96, 1]
NUSCENES_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]


@DATASETS.register_module(force=True)
class LidarFrames(Det3DDataset):
    """A user's dataset: frames with boxes in the LiDAR frame (KITTI's own class reads camera-frame boxes)."""

    METAINFO = {"classes": tuple(KITTI)}  # noqa: RUF012 - as MMDetection3D has it

    def parse_ann_info(self, info: dict[str, Any]) -> dict[str, Any]:
        found = super().parse_ann_info(info)
        boxes = found["gt_bboxes_3d"]
        if "velocities" in found:
            boxes = np.concatenate([boxes, found["velocities"]], 1).astype(np.float32)
        return {**found, "gt_bboxes_3d": LiDARInstance3DBoxes(boxes, box_dim=boxes.shape[1])}


@DATASETS.register_module(force=True)
class NuscenesFrames(LidarFrames):
    """The same with nuScenes' classes."""

    METAINFO = {"classes": tuple(NUSCENES)}  # noqa: RUF012 - as MMDetection3D has it


SEEN: list[Any] = []


@METRICS.register_module(force=True)
class CountFrames(BaseMetric):
    """Stands for the user's metric: sees what the model gave."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        for sample in data_samples:
            self.results.append(1)
            instances = sample["pred_instances_3d"]
            SEEN.append((instances["bboxes_3d"].tensor.clone(), instances["scores_3d"].clone()))

    def compute_metrics(self, results: list[int]) -> dict[str, int]:
        return {"frames": len(results)}


class Kept(BaseMetric):
    """In place of a metric: what the model answers, `answers` once the validation is over."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        self.answers = results
        return {}


def frame_of(name: str) -> dict[str, Any]:
    """The real frame of "kitti" or "nuscenes"."""
    file = DATA / {"kitti": "kitti/000008.json", "nuscenes": "nuscenes/n015.json"}[name]
    return {**json.loads(file.read_text()), "folder": file.parent}


def write_dataset(folder: Path, name: str = "kitti", frames: int = FRAMES) -> list[list[float]]:
    """The sweep under `frames` names, annotated as mmdet3d's converter writes it; returns its boxes in our form."""
    frame = frame_of(name)
    classes = KITTI if name == "kitti" else NUSCENES
    points = folder / "points"
    points.mkdir(parents=True)
    instances = []
    for thing in frame["objects"]:  # gravity centre and w, l, h; MMDetection3D: bottom centre and l, w, h
        x, y, z, w, length, h, yaw = thing["box_3d"][:7]
        entry = {"bbox_3d": [x, y, z - h / 2, length, w, h, yaw], "num_lidar_pts": thing["num_lidar_pts"]}
        entry["bbox_label_3d"] = classes.index(thing["label"])
        if name == "nuscenes":
            entry["velocity"] = thing.get("velocity") or [0.0, 0.0]
        instances.append(entry)
    infos = []
    for index in range(frames):
        (points / f"{index:06d}.bin").symlink_to(frame["folder"] / frame["points"])
        lidar = {"lidar_path": f"{index:06d}.bin", "num_pts_feats": len(frame["point_columns"])}
        infos.append({"sample_idx": index, "lidar_points": lidar, "instances": instances})
    names = {label: i for i, label in enumerate(classes)}
    with (folder / "infos.pkl").open("wb") as file:
        pickle.dump({"metainfo": {"categories": names}, "data_list": infos}, file)
    return [thing["box_3d"][:7] for thing in frame["objects"]]


def pointpillars() -> Config:
    """The example's config, coarse."""
    return coarse(Config.fromfile(ROOT / "examples" / "mmdet3d_pointpillars.py"))


def coarse(cfg: Config) -> Config:
    """PointPillars' shipped config with large pillars, so that it fits a CPU."""
    pillar, model = [0.64, 0.64, 4], cfg.model
    model.data_preprocessor.voxel_layer.update(point_cloud_range=KITTI_RANGE, voxel_size=pillar)
    model.voxel_encoder.update(point_cloud_range=KITTI_RANGE, voxel_size=pillar)
    model.middle_encoder.output_shape = [128, 128]
    low, high = KITTI_RANGE[:2], KITTI_RANGE[3:5]
    model.bbox_head.anchor_generator.ranges = [[*low, z, *high, z] for z in (-0.6, -0.6, -1.78)]
    model.test_cfg.update(score_thr=0.0, max_num=10)  # random weights: the best ten, whatever their score
    return cfg


def centerpoint() -> Config:
    """The shipped pillar config, coarse."""
    base = SHIPPED / "centerpoint/centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d.py"
    imports = 'custom_imports = dict(imports=["ml_debugger.mmengine"], allow_failed_imports=False)'
    cfg = Config.fromstring(f"_base_ = {str(base)!r}\n{imports}\n", ".py")
    pillar, model = [0.8, 0.8, 8], cfg.model
    model.data_preprocessor.voxel_layer.voxel_size = pillar
    model.pts_voxel_encoder.voxel_size = pillar
    model.pts_middle_encoder.output_shape = (128, 128)
    model.pts_bbox_head.bbox_coder.update(voxel_size=pillar[:2], max_num=60, score_threshold=0.05)
    model.train_cfg.pts.update(voxel_size=pillar, grid_size=[128, 128, 1])
    model.test_cfg.pts.update(voxel_size=pillar[:2], post_max_size=20, score_threshold=0.05)
    return cfg


def small_run(cfg: Config, data: Path, work_dir: Path, name: str = "kitti", **hook: Any) -> Config:
    """One epoch over the frames of `data`, then validation; `hook`: arguments of MLDebuggerHook."""
    limits, classes = (KITTI_RANGE, KITTI) if name == "kitti" else (NUSCENES_RANGE, NUSCENES)
    columns = 4 if name == "kitti" else 5
    load = {"type": "LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": columns, "use_dim": columns}
    in_range = {"type": "PointsRangeFilter", "point_cloud_range": limits}
    annotations = {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True}
    in_map = {"type": "ObjectRangeFilter", "point_cloud_range": limits}
    pack = {"type": "Pack3DDetInputs", "keys": ["points", "gt_bboxes_3d", "gt_labels_3d"]}
    pack_points = {"type": "Pack3DDetInputs", "keys": ["points"]}
    dataset = {
        "type": "LidarFrames" if name == "kitti" else "NuscenesFrames",
        "data_root": str(data),
        "ann_file": "infos.pkl",
        "data_prefix": {"pts": "points"},
        "metainfo": {"classes": classes},
        "modality": {"use_lidar": True, "use_camera": False},
        "box_type_3d": "LiDAR",
    }
    plain = {"num_workers": 0, "persistent_workers": False, "batch_size": 2}
    train = {**dataset, "pipeline": [load, annotations, in_range, in_map, pack]}
    val = {**dataset, "pipeline": [load, in_range, pack_points], "test_mode": True}
    cfg.train_dataloader = {**plain, "sampler": {"type": "DefaultSampler", "shuffle": True}, "dataset": train}
    cfg.val_dataloader = {**plain, "sampler": {"type": "DefaultSampler", "shuffle": False}, "dataset": val}
    cfg.test_dataloader = cfg.val_dataloader
    cfg.val_evaluator = cfg.test_evaluator = [{"type": "CountFrames"}]
    cfg.train_cfg = {"by_epoch": True, "max_epochs": 1, "val_interval": 1}
    cfg.param_scheduler = []
    cfg.work_dir = str(work_dir)
    cfg.log_level = "ERROR"
    given = {"type": "MLDebuggerHook", "priority": "LOW", "class_names": classes, **hook}
    cfg.custom_hooks = [given, {"type": "EMAHook"}]
    return cfg
