"""A real Runner with VoteNet on SUN RGB-D's data set class: what is recorded has IndoorMetric's figures.

Its operators need CUDA: the model and its head are real, the answer is made of the true boxes, moved about.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")

import mmdet3d_parts as parts
import torch
from mmdet3d.evaluation import indoor_eval
from mmdet3d.structures import Box3DMode, DepthInstance3DBoxes, LiDARInstance3DBoxes
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

import ml_debugger.mmengine  # noqa: F401 (registers the hook)
from ml_debugger.evaluator import Evaluator
from ml_debugger.records import load

init_default_scope("mmdet3d")
FRAMES = 12
OVERLAPS = (0.25, 0.5)


def write_rooms(folder: Path) -> None:
    """Rooms with furniture, as MMDetection3D's converter of SUN RGB-D writes them: gravity centres, depth frame."""
    rng = np.random.default_rng(1)
    (folder / "points").mkdir(parents=True)
    infos = []
    for index in range(FRAMES):
        rng.normal(0, 2, (200, 6)).astype(np.float32).tofile(folder / "points" / f"{index:06d}.bin")
        number = int(rng.integers(2, 7))
        place = rng.uniform([-3, 1, -1], [3, 7, 0], (number, 3))
        size = rng.uniform(0.5, 2, (number, 3))
        boxes = np.column_stack([place, size, rng.uniform(-3, 3, number)])
        things = [
            {"bbox_3d": box.tolist(), "bbox_label_3d": int(label)}
            for box, label in zip(boxes, rng.integers(0, 4, number), strict=True)
        ]
        lidar = {"lidar_path": f"{index:06d}.bin", "num_pts_feats": 6}
        infos.append({"sample_idx": index, "lidar_points": lidar, "instances": things})
    with (folder / "infos.pkl").open("wb") as file:
        pickle.dump({"metainfo": {"dataset": "sunrgbd"}, "data_list": infos}, file)


def about(samples: Any, rng: Any) -> Any:
    """In place of the head: the true boxes moved about, twice now and then, and false ones."""
    for sample in samples:
        given = sample.eval_ann_info
        rows, labels = given["gt_bboxes_3d"].tensor, torch.as_tensor(given["gt_labels_3d"])
        rows, labels = torch.cat([rows, rows[::3], rows]), torch.cat([labels, labels[::3], (labels + 1) % 4])
        moved = rows + torch.tensor(rng.normal(0, 1, rows.shape) * [0.15, 0.15, 0.1, 0.1, 0.1, 0.1, 0.2])
        moved[:, 3:6].clamp_(min=0.2)
        sample.pred_instances_3d = InstanceData(
            bboxes_3d=DepthInstance3DBoxes(moved.float()),
            scores_3d=torch.tensor(rng.uniform(0.1, 1, len(rows))).float(),
            labels_3d=labels,
        )
        sample.pred_instances = InstanceData()
    return samples


def runner_of(folder: Path, work: Path) -> Runner:
    """The shipped configuration, for validation alone."""
    cfg = Config.fromfile(parts.SHIPPED / "votenet" / "votenet_8xb16_sunrgbd-3d.py")
    points = {"type": "LoadPointsFromFile", "coord_type": "DEPTH", "load_dim": 6, "use_dim": [0, 1, 2]}
    cfg.val_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.val_dataloader.dataset.update(
        data_root=str(folder),
        ann_file="infos.pkl",
        modality={"use_lidar": True, "use_camera": False},
        pipeline=[points, {"type": "Pack3DDetInputs", "keys": ["points"]}],
    )
    cfg.val_evaluator = {"type": "IndoorMetric", "iou_thr": list(OVERLAPS)}
    for name in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"):
        cfg[name] = None
    for name in ("test_dataloader", "test_cfg", "test_evaluator", "auto_scale_lr"):
        cfg[name] = None
    cfg.work_dir, cfg.log_level = str(work), "ERROR"
    cfg.custom_hooks = [{"type": "MLDebuggerHook", "priority": "LOW"}]
    return Runner.from_cfg(cfg)


def recorded(table: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Boxes of LiDAR axes, labels and scores of every frame, as MMDetection3D has them."""
    frames = load("VoteNet", "v1", "samples", "val").to_pandas()
    rows = load("VoteNet", "v1", table, "val").to_pandas()
    boxes, labels, scores = [], [], []
    for unit in frames["unit"]:
        own = rows[rows["unit"] == unit]
        box = np.array(own["box"].tolist(), np.float32).reshape(-1, 7)
        turned = torch.tensor(box[:, [0, 1, 2, 4, 3, 5, 6]])
        boxes.append(LiDARInstance3DBoxes(turned, origin=(0.5, 0.5, 0.5)))
        labels.append(torch.tensor(own["label"].to_numpy()))
        scores.append(torch.tensor(own["score"].to_numpy()) if "score" in own else None)
    return boxes, labels, scores


def test_what_is_recorded_has_indoormetrics_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    write_rooms(tmp_path / "rooms")
    runner = runner_of(tmp_path / "rooms", tmp_path / "work")
    rng = np.random.default_rng(0)
    monkeypatch.setattr(runner.model, "predict", lambda _, data_samples, **__: about(data_samples, rng))
    theirs = runner.val()
    found, true = recorded("detections"), recorded("truths")
    names = runner.val_dataloader.dataset.metainfo["classes"]
    ours = indoor_eval(
        [{"gt_bboxes_3d": b, "gt_labels_3d": y.numpy()} for b, y, _ in zip(*true, strict=True)],
        [{"bboxes_3d": b, "labels_3d": y, "scores_3d": s} for b, y, s in zip(*found, strict=True)],
        OVERLAPS,
        names,
        box_mode_3d=Box3DMode.LIDAR,
    )
    for overlap in OVERLAPS:
        print(overlap, theirs[f"mAP_{overlap:.2f}"], ours[f"mAP_{overlap:.2f}"])
        assert 0.05 < theirs[f"mAP_{overlap:.2f}"] < 0.95
        assert ours[f"mAP_{overlap:.2f}"] == pytest.approx(theirs[f"mAP_{overlap:.2f}"], abs=1e-6)
        assert ours[f"mAR_{overlap:.2f}"] == pytest.approx(theirs[f"mAR_{overlap:.2f}"], abs=1e-6)
    result = Evaluator("VoteNet", "v1").request_evaluation(n_epoch=None)
    row = result.metrics_summary(full=True).iloc[0]
    print("by distance", row["auprc"])
    assert 0 < row["auprc"] < 1
    for kind, name in (("map", "mAP"), ("mar", "mAR")):
        for overlap in OVERLAPS:
            said = row[f"indoor_{kind}_{100 * overlap:.0f}"]
            print(f"{name}_{overlap:.2f}", theirs[f"{name}_{overlap:.2f}"], said)
            assert said == pytest.approx(theirs[f"{name}_{overlap:.2f}"], abs=1e-6)


def test_of_a_class_that_occurs_nowhere_its_mean_is_nan() -> None:
    box = DepthInstance3DBoxes(torch.tensor([[0.0, 3, 0, 1, 1, 1, 0]]))
    true = {"gt_bboxes_3d": box, "gt_labels_3d": np.array([0])}
    both = {"bboxes_3d": DepthInstance3DBoxes(box.tensor[[0, 0]]), "scores_3d": torch.tensor([0.9, 0.8])}
    found = {**both, "labels_3d": torch.tensor([0, 1])}
    theirs = indoor_eval([true], [found], OVERLAPS, ("a", "b"), box_mode_3d=Box3DMode.DEPTH)
    assert theirs["a_AP_0.25"] == 1
    assert np.isnan(theirs["mAP_0.25"]), "ours is over the classes that occur: test_eval_indoor.py"
