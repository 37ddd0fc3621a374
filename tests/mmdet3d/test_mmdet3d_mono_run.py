"""FCOS3D, PGD and SMOKE in a real Runner on KITTI's own data set class: AP40 of the recorded run is KittiMetric's.

The picture is real (of nuScenes, cut to KITTI's size). With random weights nothing is found, so true boxes are some of
the model's own predictions, moved about.
"""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import DATA

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")

import cv2
import mmdet3d_parts as parts
import torch
from kitti_frames import camera_iou
from mmdet3d.structures import points_cam2img
from mmengine.config import Config
from mmengine.evaluator import Evaluator as ComposedEvaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from scipy.spatial.transform import Rotation

from ml_debugger.evaluator import Evaluator
from ml_debugger.mmengine import MLDebuggerHook

PICTURE = DATA / "nuscenes" / "n015-CAM_FRONT-1532402927612460.jpg"
if not PICTURE.is_file():
    pytest.skip(f"no real picture at {PICTURE}; set MLD_TEST_DATA to its folder", allow_module_level=True)
init_default_scope("mmdet3d")

FRAMES = 4
SIZE = (192, 640)
P2 = np.array([[370.0, 0, 320, 23], [0, 370, 90, 0.1], [0, 0, 1, 0.0027], [0, 0, 0, 1]])
LIDAR2CAM = np.array(
    [[0.008, -1, -0.002, 0], [0.015, 0.002, -1, -0.07], [1, 0.008, 0.015, -0.27], [0, 0, 0, 1]]
)
LIDAR2CAM[:3, :3] = Rotation.from_matrix(LIDAR2CAM[:3, :3]).as_matrix()
DEPTH = (11.0, 3.0)
"""Metres, mean and deviation: boxes are high enough in the picture to count."""
CLASSES = ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc")


def model_of(name: str) -> Any:
    """The shipped architecture for KITTI's classes, with a small backbone and random weights that say different things."""
    if name == "smoke":
        model = Config.fromfile(parts.SHIPPED / "_base_" / "models" / "smoke.py").model
        model.backbone.init_cfg = None
        model.bbox_head.bbox_coder.base_depth = DEPTH
        model.test_cfg.update(topK=30, max_per_img=30)
        return model
    if name == "pgd":
        model = Config.fromfile(
            parts.SHIPPED / "pgd" / "pgd_r101-caffe_fpn_head-gn_4xb3-4x_kitti-mono3d.py"
        ).model
        model.bbox_head.update(depth_range=(0, 24), depth_unit=3)
        model.bbox_head.bbox_coder.base_depths = (DEPTH,)
    else:  # as of nuScenes, without its velocities and attributes
        model = Config.fromfile(parts.SHIPPED / "_base_" / "models" / "fcos3d.py").model
        model.bbox_head.update(num_classes=3, bbox_code_size=7, pred_attrs=False, pred_velo=False)
        model.bbox_head.update(group_reg_dims=(2, 1, 3, 1), reg_branch=((256,), (256,), (256,), (256,)))
        coder = {"base_depths": (DEPTH,), "base_dims": ((0.8, 1.7, 0.6), (1.8, 1.7, 0.6), (3.9, 1.6, 1.6))}
        model.bbox_head.bbox_coder.update(type="FCOS3DBBoxCoder", code_size=7, **coder)
        model.train_cfg.code_weight = [1.0] * 7
    model.backbone.update(depth=18, style="pytorch", init_cfg=None, frozen_stages=-1)
    model.neck.in_channels = [64, 128, 256, 512]
    model.bbox_head.dcn_on_last_conv = False
    model.test_cfg.update(score_thr=0.0, nms_pre=200, max_per_img=30, nms_thr=0.6)
    return model


def write_frames(folder: Path, instances: list[list[dict[str, Any]]]) -> None:
    """Pictures and infos as MMDetection3D's converter writes them."""
    camera = {"height": SIZE[0], "width": SIZE[1], "cam2img": P2.tolist(), "lidar2cam": LIDAR2CAM.tolist()}
    infos = []
    for index in range(FRAMES):
        own = {**camera, "img_path": f"{index:06d}.png"}
        info: dict[str, Any] = {"sample_idx": index, "images": {"CAM2": own}, "instances": instances[index]}
        infos.append({**info, "cam_instances": {"CAM2": instances[index]}})
    categories = {name: k for k, name in enumerate(CLASSES)}
    content = {"metainfo": {"categories": categories}, "data_list": infos}
    (folder / "infos.pkl").write_bytes(pickle.dumps(content))


def write_pictures(folder: Path) -> None:
    picture = cv2.imread(str(PICTURE))
    (folder / "image").mkdir(parents=True)
    for index in range(FRAMES):
        part = picture[120 * index : 120 * index + 480]
        cv2.imwrite(str(folder / "image" / f"{index:06d}.png"), cv2.resize(part, SIZE[::-1]))


def runner_of(name: str, folder: Path, evaluator: Any, hooks: list[Any]) -> Runner:
    resize = {"type": "mmdet.Resize", "scale_factor": 1.0}
    pipeline = [{"type": "LoadImageFromFileMono3D"}, resize, {"type": "Pack3DDetInputs", "keys": ["img"]}]
    if name == "smoke":  # its own tells the head where the picture lies in its input
        pipeline[1] = {"type": "AffineResize", "img_scale": SIZE[::-1], "down_ratio": 4}
    dataset = {
        "type": "KittiDataset",
        "data_root": str(folder),
        "ann_file": "infos.pkl",
        "data_prefix": {"img": "image"},
        "pipeline": pipeline,
        "modality": {"use_lidar": False, "use_camera": True},
        "load_type": "fov_image_based",
        "metainfo": {"classes": parts.KITTI},
        "test_mode": True,
        "box_type_3d": "Camera",
    }
    loader = {"batch_size": 2, "num_workers": 0, "dataset": dataset}
    runner = Runner(
        model_of(name),
        str(folder / "work"),
        val_dataloader={**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        val_cfg={},
        val_evaluator=evaluator,
        custom_hooks=hooks,
        default_scope="mmdet3d",
        randomness={"seed": 0},
        log_level="ERROR",
        experiment_name=f"{name}{len(hooks)}",
    )
    generator = torch.Generator().manual_seed(1)
    for one, value in runner.model.bbox_head.named_parameters():
        if one.startswith(("conv_cls.", "conv_regs.", "cls_head.", "reg_head.", "conv_reg", "conv_dir_cls.")):
            scale = (0.1 if "cls" in one else 0.05) if value.ndim > 1 else 0.1
            value.data.normal_(0, scale, generator=generator)
    return runner


def instance(box: Any, drawn: Any, label: int) -> dict[str, Any]:
    """A true box in the camera's frame as MMDetection3D's converter writes it."""
    facts = {"difficulty": 0, "truncated": 0.0, "occluded": 0, "num_lidar_pts": 5, "index": 0, "group_id": 0}
    alpha = float(box[6] - np.arctan2(box[0], box[2]))
    where = {"bbox_3d": [float(one) for one in box], "bbox": [float(one) for one in drawn], "alpha": alpha}
    labels = {"bbox_label": label, "bbox_label_3d": label}
    return {**facts, **where, **labels, "center_2d": [0.0, 0.0], "depth": float(box[2]), "score": 0.0}


def some_of(sample: Any, rng: Any) -> list[dict[str, Any]]:
    """True boxes of a frame: some of its predictions, moved about and of a class that is now and then another."""
    found = sample["pred_instances_3d"]
    boxes = found["bboxes_3d"].tensor.numpy()[:, :7]
    corners = points_cam2img(found["bboxes_3d"].corners, torch.tensor(P2, dtype=torch.float32)).numpy()
    low, high = corners.min(axis=1).clip(0), np.minimum(corners.max(axis=1), SIZE[::-1])
    fits = (boxes[:, 2] > 6) & (high - low > [4, 42]).all(axis=1)
    made = []
    for row in np.flatnonzero(fits)[::2][:12]:
        label = int(found["labels_3d"][row]) if rng.random() > 0.15 else 2
        box = boxes[row] + rng.normal(0, 0.05, 7) * [*boxes[row, 3:6], 0, 0, 0, 1]
        made.append(instance(box, [*low[row], *high[row]], label))
    return made


@pytest.mark.parametrize(
    "name",
    [pytest.param("fcos3d", marks=pytest.mark.heavy), pytest.param("pgd", marks=pytest.mark.heavy), "smoke"],
)
def test_ap40_is_kitti_metrics(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    kernel = types.ModuleType("rotate_iou")  # theirs needs a CUDA driver
    kernel.rotate_iou_gpu_eval = camera_iou
    monkeypatch.setitem(sys.modules, "mmdet3d.evaluation.functional.kitti_utils.rotate_iou", kernel)
    write_pictures(tmp_path)
    anything = instance(np.array([0, 1.5, 20, 4, 1.5, 1.7, 0]), [1, 2, 30, 40], 2)
    write_frames(tmp_path, [[anything]] * FRAMES)
    kept = parts.Kept()
    runner_of(name, tmp_path, ComposedEvaluator([kept]), []).val()
    rng = np.random.default_rng(0)
    instances = [some_of(one, rng) for one in kept.answers]
    assert min(len(one) for one in instances) > 3
    write_frames(tmp_path, instances)
    metric = {"type": "KittiMetric", "ann_file": str(tmp_path / "infos.pkl"), "metric": "bbox"}
    theirs = runner_of(name, tmp_path, metric, [MLDebuggerHook(class_names=parts.KITTI)]).val()
    (run,) = [one for one in (tmp_path / "store").iterdir() if one.is_dir()]
    ours = Evaluator(run.name, "v1").request_evaluation(n_epoch=None).metrics_summary(full=True).iloc[0]
    known = {parts.KITTI[row["bbox_label"]] for one in instances for row in one}
    for kind, their in (("3d", "3D"), ("bev", "BEV"), ("image", "2D")):
        names = [f"{one}_{their}_AP40_moderate_strict" for one in sorted(known)]
        expected = np.mean([theirs[f"Kitti metric/pred_instances_3d/KITTI/{one}"] for one in names]) / 100
        print(f"| {name} | {kind} | {sorted(known)} | {expected:.4f} | {ours[f'ap40_{kind}_moderate']:.4f} |")
        assert expected > 0.02
        assert ours[f"ap40_{kind}_moderate"] == pytest.approx(expected, abs=1e-5), kind
