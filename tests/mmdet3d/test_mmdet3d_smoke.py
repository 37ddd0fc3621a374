"""A real mmdet3d PointPillars config with the hook in `custom_hooks`: the event mapping, proven on a real detector.

Runs in .venv-mmdet3d (`.ci/mmdet3d-env` builds it) and is skipped elsewhere. Random weights, one real KITTI sweep under
several names, coarse pillars so that it fits a CPU.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")

import mmdet3d
import torch
from mmdet3d.datasets import Det3DDataset
from mmdet3d.registry import DATASETS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmengine.runner import Runner

from ml_debugger.records import load
from mld_core.records.layout import RunKey, Store
from mld_core.records.reader import select

REPO = Path(__file__).parents[2]
DATA = Path(os.environ.get("MLD_TEST_DATA", REPO.parent / "shared" / "data")) / "kitti"
FRAMES = 4
RANGE = [0, -40.96, -3, 81.92, 40.96, 1]
PILLAR = [0.64, 0.64, 4]
CLASSES = ["Pedestrian", "Cyclist", "Car"]
LINES = """
custom_imports = dict(imports=["ml_debugger.mmengine"], allow_failed_imports=False)
custom_hooks = [dict(type="MLDebuggerHook", priority="LOW")]
"""


def write_dataset(folder: Path) -> list[list[float]]:
    """The sweep under FRAMES names with an annotation file as mmdet3d's converter writes it; returns its boxes."""
    frame = json.loads((DATA / "000008.json").read_text())
    points = folder / "points"
    points.mkdir(parents=True)
    boxes = [  # stored with gravity centre and w, l, h; MMDetection3D has bottom centre and l, w, h
        [x, y, z - h / 2, length, w, h, yaw]
        for x, y, z, w, length, h, yaw in (o["box_3d"] for o in frame["objects"])
    ]
    instances = [
        {"bbox_3d": box, "bbox_label_3d": CLASSES.index(o["label"]), "num_lidar_pts": o["num_lidar_pts"]}
        for box, o in zip(boxes, frame["objects"], strict=True)
    ]
    infos = []
    for index in range(FRAMES):
        (points / f"{index:06d}.bin").symlink_to(DATA / frame["points"])
        lidar = {"lidar_path": f"{index:06d}.bin", "num_pts_feats": 4}
        infos.append({"sample_idx": index, "lidar_points": lidar, "instances": instances})
    names = {name: i for i, name in enumerate(CLASSES)}
    with (folder / "infos.pkl").open("wb") as file:
        pickle.dump({"metainfo": {"categories": names}, "data_list": infos}, file)
    return boxes


def coarse_config(folder: Path, work_dir: Path) -> Config:
    """The shipped config; only sizes, paths and the schedule are changed, and the documented lines are added."""
    work_dir.mkdir()
    name = "configs/pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py"
    base = Path(mmdet3d.__file__).parent / ".mim" / name
    path = work_dir / "config.py"
    path.write_text(f"_base_ = {str(base)!r}\n{LINES}")
    cfg = Config.fromfile(path)
    model = cfg.model
    model.data_preprocessor.voxel_layer.update(point_cloud_range=RANGE, voxel_size=PILLAR)
    model.voxel_encoder.update(point_cloud_range=RANGE, voxel_size=PILLAR)
    model.middle_encoder.output_shape = [128, 128]
    low, high = [RANGE[0], RANGE[1]], [RANGE[3], RANGE[4]]
    model.bbox_head.anchor_generator.ranges = [[*low, z, *high, z] for z in (-0.6, -0.6, -1.78)]
    model.test_cfg.update(
        score_thr=0.0, max_num=10
    )  # random weights: keep the best ten, whatever their score
    load_points = cfg.test_pipeline[0]
    dataset = {
        "type": "LidarFrames",
        "data_root": str(folder),
        "ann_file": "infos.pkl",
        "data_prefix": {"pts": "points"},
        "metainfo": {"classes": CLASSES},
        "modality": {"use_lidar": True, "use_camera": False},
        "box_type_3d": "LiDAR",
    }
    in_range = {"type": "PointsRangeFilter", "point_cloud_range": RANGE}
    pack = {"type": "Pack3DDetInputs", "keys": ["points", "gt_bboxes_3d", "gt_labels_3d"]}
    annotations = {"type": "LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True}
    test_pipeline = Config({"p": cfg.test_pipeline}).p
    for step in test_pipeline[1].transforms:
        if step.type == "PointsRangeFilter":
            step.point_cloud_range = RANGE
    plain = {"num_workers": 0, "persistent_workers": False}
    cfg.train_dataloader = {
        **plain,
        "batch_size": 2,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "dataset": {**dataset, "pipeline": [load_points, annotations, in_range, pack]},
    }
    cfg.val_dataloader = {
        **plain,
        "batch_size": 2,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {**dataset, "pipeline": test_pipeline, "test_mode": True},
    }
    cfg.test_dataloader = cfg.val_dataloader
    cfg.val_evaluator = cfg.test_evaluator = [{"type": "CountFrames"}]
    cfg.train_cfg = {"by_epoch": True, "max_epochs": 1, "val_interval": 1}
    cfg.param_scheduler = []
    cfg.work_dir = str(work_dir)
    cfg.log_level = "ERROR"
    return cfg


@DATASETS.register_module(force=True)
class LidarFrames(Det3DDataset):
    """A user's dataset: frames with boxes in the LiDAR frame (KITTI's own class reads camera-frame boxes)."""

    METAINFO = {"classes": tuple(CLASSES)}  # noqa: RUF012 - as MMDetection3D has it

    def parse_ann_info(self, info: dict[str, Any]) -> dict[str, Any]:
        found = super().parse_ann_info(info)
        return {**found, "gt_bboxes_3d": LiDARInstance3DBoxes(found["gt_bboxes_3d"])}


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[list[float]], list[Any]]:
    """Trains one epoch and validates; (store, true boxes, what the metric was given)."""
    if not DATA.is_dir():
        pytest.skip(f"no real LiDAR frames at {DATA}; set MLD_TEST_DATA to the folder that holds kitti/")
    seen: list[Any] = []

    @METRICS.register_module(name="CountFrames", force=True)
    class CountFrames(BaseMetric):
        def process(self, data_batch: Any, data_samples: Any) -> None:
            for sample in data_samples:
                self.results.append(1)
                instances = sample["pred_instances_3d"]
                seen.append((instances["bboxes_3d"].tensor.clone(), instances["scores_3d"].clone()))

        def compute_metrics(self, results: list[int]) -> dict[str, int]:
            return {"frames": len(results)}

    store = tmp_path / "store"
    monkeypatch.setenv("MLD_HOME", str(store))
    boxes = write_dataset(tmp_path / "data")
    torch.manual_seed(0)
    Runner.from_cfg(coarse_config(tmp_path / "data", tmp_path / "work")).train()
    return store, boxes, seen


def test_pointpillars_val_pass_is_recorded(recorded: Any) -> None:
    store, true_boxes, seen = recorded
    (selection,) = select(Store(store), RunKey("VoxelNet", "v1"), n_epoch=None, passes="all")
    assert (selection.key.dataset_type, selection.key.n_epoch, selection.task) == ("val", 0, "detection3d")
    assert selection.sealed
    assert selection.meta["boxes_as"] == "LiDARInstance3DBoxes"

    samples = load("VoxelNet", "v1", "samples", "val").to_pylist()
    assert [Path(row["input_id"]).name for row in samples] == [f"{i:06d}.bin" for i in range(FRAMES)]
    assert {row["id_source"] for row in samples} == {"metainfo"}
    assert len({row["input_hash"] for row in samples}) == 1, "one sweep under four names"
    assert [row["n_detections"] for row in samples] == [len(scores) for _, scores in seen]
    assert [row["n_truths"] for row in samples] == [len(true_boxes)] * FRAMES
    assert all(row["labelled"] and not row["nonfinite"] for row in samples)

    found = load("VoxelNet", "v1", "detections", "val")
    assert found.num_rows == sum(len(scores) for _, scores in seen) > 0
    np.testing.assert_array_equal(
        found["box"].to_pylist(), torch.cat([box for box, _ in seen])[:, :7].numpy()
    )
    np.testing.assert_array_equal(found["score"].to_pylist(), torch.cat([s for _, s in seen]).numpy())
    assert set(found["label"].to_pylist()) <= {0, 1, 2}
    indices = found["det_idx"].to_pylist()
    assert indices == [i for _, scores in seen for i in range(len(scores))]

    truths = load("VoxelNet", "v1", "truths", "val")
    np.testing.assert_allclose(truths["box"].to_pylist(), true_boxes * FRAMES, atol=1e-4)
    assert set(truths["label"].to_pylist()) == {2}
    assert not any(truths["ignore"].to_pylist())
