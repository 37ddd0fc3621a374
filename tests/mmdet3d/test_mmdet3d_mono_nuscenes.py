"""FCOS3D and PGD in a real Runner on nuScenes by single pictures: nuscenes-devkit's figures of each picture are ours.

The picture is real, its parts stand for those of six cameras. With random weights nothing is found, so true boxes are
some of the model's own predictions, moved about. MMDetection3D's own metric suppresses across the six pictures of a
frame first; what comes before that, its way from a picture to the globe and its ranges, is real here.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import DATA

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")

import cv2
import mmdet3d_parts as parts
import torch
from mmdet3d.datasets import NuScenesDataset
from mmdet3d.evaluation.metrics.nuscenes_metric import cam_nusc_box_to_global, output_to_nusc_box
from mmdet3d.structures import CameraInstance3DBoxes
from mmengine.config import Config
from mmengine.evaluator import Evaluator as ComposedEvaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionBox
from scipy.spatial.transform import Rotation

from ml_debugger.evaluator import Evaluator
from ml_debugger.mmengine import MLDebuggerHook
from ml_debugger.records import load

PICTURE = DATA / "nuscenes" / "n015-CAM_FRONT-1532402927612460.jpg"
if not PICTURE.is_file():
    pytest.skip(f"no real picture at {PICTURE}; set MLD_TEST_DATA to its folder", allow_module_level=True)
init_default_scope("mmdet3d")

MOMENTS = 2
SIZE = (192, 352)
ANGLES = {"CAM_FRONT": 0, "CAM_FRONT_RIGHT": -55, "CAM_FRONT_LEFT": 55, "CAM_BACK": 180, "CAM_BACK_LEFT": 110,
          "CAM_BACK_RIGHT": -110}  # fmt: skip
CAMERAS = tuple(ANGLES)
INTRINSICS = [[250.0, 0, 176], [0, 250, 96], [0, 0, 1]]
DEPTH = (28.0, 8.0)
"""Mean and spread of what the head finds: some of it beyond the range of its class."""
DEVKIT = config_factory("detection_cvpr_2019")
ERRORS = {"mate": "trans_err", "mase": "scale_err", "maoe": "orient_err", "mave": "vel_err"}
UNDEFINED = {"orient_err": ("traffic_cone",), "vel_err": ("traffic_cone", "barrier")}
ORDER = NuScenesDataset.METAINFO["classes"]
"""Of labels in infos; the data set maps them to the run's."""
HEAD = ("conv_cls.", "conv_regs.", "conv_dir_cls.", "conv_attr.")


def matrix(turn: Rotation, shift: Any) -> Any:
    made = np.eye(4)
    made[:3, :3], made[:3, 3] = turn.as_matrix(), shift
    return made


LIDAR2EGO = matrix(Rotation.from_euler("z", -90, degrees=True), [0.94, 0, 1.84])


def cam2ego(camera: str) -> Any:
    turn = Rotation.from_euler("z", ANGLES[camera], degrees=True)
    axes = Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    return matrix(turn * axes, [*turn.apply([1.2, 0.2, 0])[:2], 1.5])


def ego2global(moment: int) -> Any:
    return matrix(Rotation.from_euler("z", 30 + 20 * moment, degrees=True), [100.0 + 5 * moment, -50, 2])


def write_pictures(folder: Path) -> None:
    picture = cv2.imread(str(PICTURE))
    (folder / "image").mkdir(parents=True)
    for number in range(6 * MOMENTS):
        part = picture[20 * number : 20 * number + 500, 10 * number :]
        name = f"{number // 6}-{CAMERAS[number % 6]}.png"
        cv2.imwrite(str(folder / "image" / name), cv2.resize(part, SIZE[::-1]))


def write_infos(folder: Path, instances: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """As MMDetection3D's converter writes them; `instances` of each picture."""
    infos: list[dict[str, Any]] = []
    for moment in range(MOMENTS):
        images = {
            camera: {
                "img_path": f"{moment}-{camera}.png",
                "cam2img": INTRINSICS,
                "cam2ego": cam2ego(camera).tolist(),
                "lidar2cam": (np.linalg.inv(cam2ego(camera)) @ LIDAR2EGO).tolist(),
                "height": SIZE[0],
                "width": SIZE[1],
            }
            for camera in CAMERAS
        }
        lidar = {"lidar_path": "none.bin", "num_pts_feats": 5, "lidar2ego": LIDAR2EGO.tolist()}
        own = dict(zip(CAMERAS, instances[6 * moment : 6 * moment + 6], strict=True))
        info: dict[str, Any] = {"sample_idx": moment, "token": f"{moment}", "lidar_points": lidar}
        info |= {"ego2global": ego2global(moment).tolist(), "images": images}
        infos.append({**info, "instances": [], "cam_instances": own})
    numbers = {label: i for i, label in enumerate(ORDER)}
    content = {"metainfo": {"categories": numbers, "version": "v1.0-mini"}, "data_list": infos}
    (folder / "infos.pkl").write_bytes(pickle.dumps(content))
    return infos


def model_of(name: str) -> Config:
    """The shipped configuration with a smaller backbone and without operators that need CUDA."""
    if name == "pgd":
        config = parts.SHIPPED / "pgd" / "pgd_r101-caffe_fpn_head-gn_16xb2-1x_nus-mono3d.py"
        model = Config.fromfile(config).model
        model.bbox_head.bbox_coder.base_depths = (DEPTH,)
    else:
        model = Config.fromfile(parts.SHIPPED / "_base_" / "models" / "fcos3d.py").model
        model.bbox_head.bbox_coder.update(base_depths=(DEPTH,), base_dims=((1.8, 1.7, 0.6),) * 10)
    model.backbone.update(depth=18, style="pytorch", init_cfg=None, frozen_stages=-1, dcn=None)
    model.neck.in_channels = [64, 128, 256, 512]
    model.bbox_head.dcn_on_last_conv = False
    model.test_cfg.update(score_thr=0.0, nms_pre=200, max_per_img=30, nms_thr=0.6)
    return model


def answers_of(name: str, folder: Path, hooks: list[Any]) -> list[dict[str, Any]]:
    """One validation with random weights, the same each time: what the model found in each picture."""
    resize = {"type": "mmdet.Resize", "scale_factor": 1.0}
    dataset = {
        "type": "NuScenesDataset",
        "data_root": str(folder),
        "ann_file": "infos.pkl",
        "load_type": "mv_image_based",
        "data_prefix": {"pts": "", **dict.fromkeys(CAMERAS, "image")},
        "pipeline": [
            {"type": "LoadImageFromFileMono3D"},
            resize,
            {"type": "Pack3DDetInputs", "keys": ["img"]},
        ],
        "modality": {"use_lidar": False, "use_camera": True},
        "metainfo": {"classes": parts.NUSCENES, "version": "v1.0-mini"},
        "test_mode": True,
        "box_type_3d": "Camera",
        "use_valid_flag": True,
    }
    loader = {"batch_size": 3, "num_workers": 0, "dataset": dataset}
    kept = parts.Kept()
    runner = Runner(
        model_of(name),
        str(folder / "work"),
        val_dataloader={**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        val_cfg={},
        val_evaluator=ComposedEvaluator([kept]),
        custom_hooks=hooks,
        default_scope="mmdet3d",
        randomness={"seed": 0},
        log_level="ERROR",
        experiment_name=f"{name}{len(hooks)}",
    )
    generator = torch.Generator().manual_seed(1)
    for one, value in runner.model.bbox_head.named_parameters():
        if one.startswith(HEAD):
            scale = (0.1 if "cls" in one else 0.05) if value.ndim > 1 else 0.1
            value.data.normal_(0, scale, generator=generator)
    runner.val()
    return [one["pred_instances_3d"] for one in kept.answers]


def some_of(found: dict[str, Any], rng: Any) -> list[dict[str, Any]]:
    """True boxes of a picture: half of its predictions, moved about and of a class that is now and then another."""
    boxes, made = found["bboxes_3d"], []
    centres, rows = boxes.gravity_center.numpy(), boxes.tensor.numpy()
    for row in np.argsort(-found["scores_3d"].numpy(), kind="stable")[::2]:
        label = int(found["labels_3d"][row]) if rng.random() > 0.15 else 0
        where = [*(centres[row] + rng.normal(0, 0.5, 3) * [1, 0.2, 1]), *rows[row, 3:6]]
        box = [float(one) for one in (*where, rows[row, 6] + rng.normal(0, 0.2))]
        labels = {"bbox_label": label, "bbox_label_3d": ORDER.index(parts.NUSCENES[label]), "attr_label": 0}
        flat = {"bbox": [1.0, 2, 30, 40], "center_2d": [10.0, 10], "depth": box[2]}
        facts = {"num_lidar_pts": 3, "bbox_3d_isvalid": True}
        velocity = (rows[row, 7:9] + rng.normal(0, 0.3, 2)).tolist()
        made.append({"bbox_3d": box, "velocity": velocity, **labels, **flat, **facts})
    return made


def as_found(things: list[dict[str, Any]]) -> dict[str, Any]:
    """True boxes of a picture as a model answers."""
    rows = torch.tensor([[*one["bbox_3d"], *one["velocity"]] for one in things], dtype=torch.float32)
    return {
        "bboxes_3d": CameraInstance3DBoxes(rows, box_dim=9, origin=(0.5, 0.5, 0.5)),
        "scores_3d": torch.full((len(rows),), -1.0),
        "labels_3d": torch.tensor([parts.NUSCENES.index(ORDER[one["bbox_label_3d"]]) for one in things]),
        "attr_labels": torch.zeros(len(rows), dtype=torch.long),
    }


def devkits(infos: list[dict[str, Any]], pictures: list[dict[str, Any]]) -> EvalBoxes:
    """Boxes of each picture, in range and in the globe's frame, by MMDetection3D's own functions."""
    made = EvalBoxes()
    for number, picture in enumerate(pictures):
        boxes, attributes = output_to_nusc_box(picture)
        place = infos[number // 6], boxes, attributes, parts.NUSCENES, DEVKIT, CAMERAS[number % 6]
        made.add_boxes(f"{number}", [])
        for box in cam_nusc_box_to_global(*place)[0]:
            one = DetectionBox(
                sample_token=f"{number}",
                translation=tuple(box.center),
                size=tuple(box.wlh),
                rotation=tuple(box.orientation.elements),
                velocity=tuple(box.velocity[:2]),
                detection_name=parts.NUSCENES[box.label],
                detection_score=float(box.score),
                attribute_name="",
            )
            made.add_boxes(f"{number}", [one])
    return made


def judged(found: EvalBoxes, true: EvalBoxes) -> dict[str, float]:
    """The devkit's mAP and errors under the names of ours."""
    curves = {
        (name, most): accumulate(true, found, name, center_distance, most)
        for name in parts.NUSCENES
        for most in DEVKIT.dist_ths
    }
    made = {"auprc": float(np.mean([calc_ap(curve, 0.1, 0.1) for curve in curves.values()]))}
    for own, error in ERRORS.items():
        known = [name for name in parts.NUSCENES if name not in UNDEFINED.get(error, ())]
        made[own] = float(np.mean([calc_tp(curves[name, 2.0], 0.1, error) for name in known]))
    return made


@pytest.mark.parametrize("name", [pytest.param("fcos3d"), pytest.param("pgd", marks=pytest.mark.heavy)])
def test_figures_of_pictures_are_the_devkits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "store"))
    write_pictures(tmp_path)
    write_infos(tmp_path, [[] for _ in range(6 * MOMENTS)])
    rng = np.random.default_rng(0)
    instances = [some_of(one, rng) for one in answers_of(name, tmp_path, [])]
    infos = write_infos(tmp_path, instances)
    answers = answers_of(name, tmp_path, [MLDebuggerHook(class_names=parts.NUSCENES)])
    found, true = devkits(infos, answers), devkits(infos, [as_found(one) for one in instances])
    assert 0 < len(found.all) < sum(len(one["scores_3d"]) for one in answers), "some are out of range"
    assert 0 < len(true.all) < sum(map(len, instances))
    theirs = judged(found, true)
    assert theirs["auprc"] > 0.05
    (run,) = [one for one in (tmp_path / "store").iterdir() if one.is_dir()]
    ours = Evaluator(run.name, "v1").request_evaluation(n_epoch=None).metrics_summary(full=True).iloc[0]
    print(name, {key: (round(value, 5), round(float(ours[key]), 5)) for key, value in theirs.items()})
    for key in theirs:
        assert ours[key] == pytest.approx(theirs[key], abs=1e-5), key
    poses = load(run.name, "v1", "samples", "val").to_pandas()["ego_pose"]
    expected = [ego2global(number // 6).reshape(-1) for number in range(6 * MOMENTS)]
    np.testing.assert_allclose(np.stack(list(poses)), expected, atol=1e-9)
