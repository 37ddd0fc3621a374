"""A real Runner on KITTI's own data set class: what it knows of frames and boxes is recorded, AP40 is KittiMetric's.

The sweep is real, the boxes are the true ones moved about: a network with random weights finds nothing.
"""

from __future__ import annotations

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import DATA

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")

import mmdet3d_parts as parts
import torch
from kitti_frames import BESIDE, camera_iou, with_neighbours
from mmdet3d.evaluation.functional.kitti_utils import eval as kitti_eval
from mmdet3d.structures import Box3DMode, LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from ml_debugger.evaluator import Evaluator
from ml_debugger.records import load

if not DATA.is_dir():
    pytest.skip(f"no real LiDAR frames at {DATA}; set MLD_TEST_DATA to their folder", allow_module_level=True)
init_default_scope("mmdet3d")

FRAMES = 20
P2 = np.array(
    [
        [721.5377, 0, 609.5593, 44.85728],
        [0, 721.5377, 172.854, 0.2163791],
        [0, 0, 1, 0.002745884],
        [0, 0, 0, 1],
    ]
)
SIZE = (375, 1242)
CLASSES = (*parts.KITTI, "Van", "Truck", "Person_sitting", "Tram", "Misc")  # in KittiDataset's order
DONT_CARE = (0.0, 150.0, 500.0, 375.0)  # in which some of the false boxes lie


def write_kitti(folder: Path) -> None:
    """The sweep under several names, with infos as MMDetection3D's converter writes them."""
    frame = parts.frame_of("kitti")
    lidar2cam = np.linalg.inv(P2) @ np.array(frame["lidar2img"])
    things = with_neighbours(frame["objects"], lidar2cam, P2[:3])
    rows = torch.tensor([o["box_3d"] for o in things], dtype=torch.float32)
    own = LiDARInstance3DBoxes(rows[:, [0, 1, 2, 4, 3, 5, 6]], origin=(0.5, 0.5, 0.5))
    in_camera = own.convert_to(Box3DMode.CAM, lidar2cam).tensor.tolist()
    names = ("difficulty", "truncated", "occluded", "num_lidar_pts")
    instances = [
        {
            **{name: thing[name] for name in names},
            "bbox": thing["bbox_2d"],
            "bbox_label": CLASSES.index(thing["label"]),
            "bbox_label_3d": CLASSES.index(thing["label"]),
            "bbox_3d": box,
            "alpha": box[6] - float(np.arctan2(box[0], box[2])),
            "score": 0.0,
        }
        for thing, box in zip(things, in_camera, strict=True)
    ]
    no_label = {"bbox_label": -1, "bbox_label_3d": -1, "bbox_3d": [-1000.0, -1000, -1000, -1, -1, -1, -10]}
    facts = {"difficulty": -1, "truncated": -1.0, "occluded": -1, "num_lidar_pts": -1}
    instances.append({**facts, **no_label, "bbox": list(DONT_CARE), "alpha": -10.0, "score": 0.0})
    camera = {"img_path": "none.png", "height": SIZE[0], "width": SIZE[1], "cam2img": P2.tolist()}
    camera |= {"lidar2cam": lidar2cam.tolist(), "lidar2img": frame["lidar2img"]}
    points = folder / "points"
    points.mkdir(parents=True)
    infos = []
    for index in range(FRAMES):
        (points / f"{index:06d}.bin").symlink_to(frame["folder"] / frame["points"])
        lidar = {"lidar_path": f"{index:06d}.bin", "num_pts_feats": 4}
        infos.append(
            {"sample_idx": index, "lidar_points": lidar, "images": {"CAM2": camera}, "instances": instances}
        )
    content = {
        "metainfo": {"categories": {**{name: k for k, name in enumerate(CLASSES)}, "DontCare": -1}},
        "data_list": infos,
    }
    with (folder / "infos.pkl").open("wb") as file:
        pickle.dump(content, file)


def about(samples: Any, rng: Any) -> Any:
    """In place of the head: the true boxes moved about, and false ones, some of them outside the image.

    Vans, which are none of the run's true boxes, are found as cars, sitting persons as pedestrians.
    """
    beside = torch.tensor([*BESIDE["Van"], *BESIDE["Person_sitting"]])[:, [0, 1, 2, 4, 3, 5, 6]]
    beside = LiDARInstance3DBoxes(beside, origin=(0.5, 0.5, 0.5)).tensor
    for sample in samples:
        given = sample.eval_ann_info
        true = torch.cat([given["gt_bboxes_3d"].tensor, beside])
        kinds = torch.cat([torch.as_tensor(given["gt_labels_3d"]), torch.tensor([2, 2, 0, 0])])
        boxes = true + torch.tensor(rng.normal(0, 1, true.shape) * [0.2, 0.1, 0.05, 0.1, 0.05, 0.05, 0.05])
        false = true[rng.integers(0, len(true), 4)].clone()
        false[:, :2] += torch.tensor(rng.uniform(-12, 12, (4, 2)))
        false[:, 0].clamp_(min=8)  # behind the camera theirs projects to anywhere
        rows = torch.cat([boxes, false]).float()
        closeness = 1 - (boxes[:, :2] - true[:, :2]).norm(dim=1)
        scores = torch.cat([closeness, torch.tensor(rng.random(4))]).clamp(0.05, 0.99).float()
        sample.pred_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(rows),
            scores_3d=scores,
            labels_3d=torch.cat([kinds, torch.full((4,), 2)]),
        )
        sample.pred_instances = InstanceData()
    return samples


def spied(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Orientation similarity in KittiMetric, (class, level, overlap): it prints two digits and returns none."""
    seen: list[Any] = []
    own = kitti_eval.do_eval

    def listened(*args: Any, **options: Any) -> Any:
        found = own(*args, **options)
        seen.append(found[-1])
        return found

    monkeypatch.setattr(kitti_eval, "do_eval", listened)
    return seen


def test_a_kitti_run_has_its_facts_and_kittis_own_ap40(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    kernel = types.ModuleType("rotate_iou")  # theirs needs a CUDA driver
    kernel.rotate_iou_gpu_eval = camera_iou
    monkeypatch.setitem(sys.modules, "mmdet3d.evaluation.functional.kitti_utils.rotate_iou", kernel)
    write_kitti(tmp_path / "data")
    cfg = parts.small_run(parts.pointpillars(), tmp_path / "data", tmp_path / "work")
    cfg.val_dataloader.dataset.update(type="KittiDataset")
    cfg.model.test_cfg.max_num = 50  # as shipped
    infos = str(tmp_path / "data" / "infos.pkl")
    limits = [0, -8, -3, 40, 8, 0]  # some of the predictions lie beyond
    cfg.val_evaluator = {"type": "KittiMetric", "ann_file": infos, "pcd_limit_range": limits}
    runner = Runner.from_cfg(cfg)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(runner.model, "predict", lambda _, data_samples, **__: about(data_samples, rng))
    with monkeypatch.context() as spying:
        seen = spied(spying)
        theirs = runner.val()
    aos = seen[0][[0, 2], :, 0].mean(axis=0)  # pedestrians and cars, in the run's order

    def their(metric: str, level: str) -> float:
        """The mean over the two classes that have true boxes."""
        names = (f"{name}_{metric}_AP40_{level}_strict" for name in ("Car", "Pedestrian"))
        return (
            float(np.mean([theirs[f"Kitti metric/pred_instances_3d/KITTI/{name}"] for name in names])) / 100
        )

    samples = load("VoxelNet", "v1", "samples", "val").to_pylist()
    assert [row["input_id"] for row in samples] == [f"points/{index:06d}.bin" for index in range(FRAMES)]
    assert samples[3]["media_path"] == str(tmp_path / "data" / "points" / "000003.bin")
    known = json.loads(samples[0]["calibration"])
    np.testing.assert_allclose(known["cam2img"], P2, atol=1e-6)
    assert known["image_size"] == list(SIZE)
    assert known["limit_range"] == limits
    assert known["dont_care"] == [list(DONT_CARE)]
    truths = load("VoxelNet", "v1", "truths", "val").to_pydict()
    every = with_neighbours(parts.frame_of("kitti")["objects"], np.array(known["lidar2cam"]), P2[:3])
    real = [one for one in every if one["label"] in parts.KITTI]
    beside = [one for one in every if one["label"] not in parts.KITTI]
    assert [one["name"] for one in known["neighbours"]] == ["Van", "Van", "Person_sitting", "Person_sitting"]
    assert [one["row"] for one in known["neighbours"]] == [1, 7, 7, 7]
    for named, one in zip(known["neighbours"], beside, strict=True):
        # Their yaw stays as it is between the tilted frames, as that of their true boxes does.
        np.testing.assert_allclose(named["box"], one["box_3d"], atol=0.02)
        np.testing.assert_allclose(named["image_box"], one["bbox_2d"], rtol=1e-6)
    for ours, name in (
        ("n_points", "num_lidar_pts"),
        ("difficulty", "difficulty"),
        ("occlusion", "occluded"),
    ):
        assert truths[ours][: len(real)] == [one[name] for one in real]
    np.testing.assert_allclose(truths["truncation"][: len(real)], [one["truncated"] for one in real])

    for drawn, one in zip(truths["image_box"], real, strict=False):
        np.testing.assert_allclose(drawn, one["bbox_2d"], rtol=1e-6)

    result = Evaluator("VoxelNet", "v1").request_evaluation(n_epoch=None)
    ours = result.metrics_summary(full=True).iloc[0]
    # Predictions are projected in single precision there.
    for level, angle in zip(("easy", "moderate", "hard"), aos, strict=True):
        expected = their("2D", level)
        assert ours[f"ap40_image_{level}"] == pytest.approx(expected, abs=1e-5), level
        assert ours[f"aos40_{level}"] == pytest.approx(angle / 100, abs=1e-6), level
    print(f"| PointPillars | {their('3D', 'moderate'):.4f} | {ours['ap40_3d_moderate']:.4f} |")
    for metric, name in (("3d", "3D"), ("bev", "BEV")):
        for level in ("easy", "moderate", "hard"):
            expected = their(name, level)
            assert ours[f"ap40_{metric}_{level}"] == pytest.approx(expected, abs=1e-5), (name, level)
    assert 0.1 < ours["ap40_3d_moderate"] < 0.95
    assert 0.1 < ours["ap40_image_moderate"] < 0.99
    assert not [one["message"] for one in result.problems if "is no class of this run" in one["message"]]
