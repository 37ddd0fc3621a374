"""One row of a table of facts about 3D detectors = one case: frameworks, families, conventions, limits, truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import fake_det3d as det
import fake_mmdet3d as mm
import fake_openpcdet as pcd
import numpy as np
import pytest
import torch
from fake_parts3d import RANGE, FakeNewBoxes, FakeOldBoxes, clouds
from folders import DATA
from torch import nn

from mld_core.adapters.base import ModelCall, Thresholds
from mld_core.adapters.detection3d.layouts import box_convention
from mld_core.adapters.registry import find_adapter
from mld_core.geometry.boxes import count_points_in_boxes


def renamed(model: nn.Module, name: str) -> nn.Module:
    """The same stand-in under a class name of a framework or of somebody's derivative."""
    model.__class__ = type(name, (type(model),), {})
    return model


def scattered(model: nn.Module, name: str = "PointPillarsScatter") -> nn.Module:
    model.add_module("scatter", type(name, (mm.FakeTrunk,), {})())
    return model


class FakeOldAnchorHead(nn.Module):
    """A1 of mmdet3d < 1.0: `anchor_generator`."""

    def __init__(self, generator: str = "anchor_generator") -> None:
        super().__init__()
        self.num_classes, self.box_code_size = 3, 7
        setattr(self, generator, SimpleNamespace(sizes=[[1.6, 3.9, 1.56]]))
        self.conv_cls, self.conv_reg = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 14, 1)
        self.conv_dir_cls, self.bbox_coder = nn.Conv2d(6, 4, 1), SimpleNamespace(code_size=7)
        self.test_cfg = mm.FakeConfig(score_thr=0.1, nms_thr=0.01, max_num=50, nms_pre=100)


CAMERA, LIDAR = ["img_backbone"], ["pts_voxel_encoder", "pts_middle_encoder"]
BOTH = [*CAMERA, *LIDAR]
Make = Callable[[], nn.Module]

# models3d 1.1: framework from attributes.
FRAMEWORKS: dict[str, tuple[Make, str]] = {
    "OpenPCDet": (lambda: pcd.FakeTemplate(pcd.FakeAnchorHead()), "openpcdet"),
    "mmdet3d >= 1.1": (lambda: mm.FakeNewDetector(mm.FakeCenterHead()), "mmdet3d>=1.1"),
    "mmdet3d < 1.1": (lambda: mm.FakeOldDetector(mm.FakeCenterHead()), "mmdet3d<1.1"),
    "MIT": (lambda: mm.FakeMitFusion(mm.FakeTransFusionHead()), "mit_bevfusion"),
    "det3d": (det.FakePointPillars, "det3d"),
    "det3d two-stage": (det.FakeTwoStage, "det3d"),
}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_framework(name: str) -> None:
    make, framework = FRAMEWORKS[name]
    model = make()
    assert find_adapter(model, "detection3d").identity.layout.name == framework
    assert find_adapter(nn.parallel.DataParallel(model), "detection3d").model is model
    assert find_adapter(model).task == "detection3d"  # 2D families do not claim it


def test_other_modules_are_no_3d_detectors() -> None:
    for model in (nn.Linear(2, 2), mm.FakeTrunk(), nn.Sequential(nn.Conv2d(3, 3, 1))):
        with pytest.raises(ValueError, match="not a detector of a known family"):
            find_adapter(model, "detection3d")


# models3d 1.2: family from names, then structure; the head is independent of both.
FAMILIES: dict[str, tuple[Make, str]] = {
    "PointPillar (OpenPCDet)": (
        lambda: renamed(pcd.FakeTemplate(pcd.FakeAnchorHead()), "PointPillar"), "PointPillars"),
    "VoxelNet with pillars": (lambda: scattered(mm.FakeOldDetector(
        FakeOldAnchorHead(), head_name="bbox_head", parts=["voxel_encoder", "middle_encoder"])), "PointPillars"),
    "MVXFasterRCNN with pillars": (lambda: scattered(mm.FakeNewDetector(
        FakeOldAnchorHead("prior_generator"), parts=LIDAR)), "PointPillars"),
    "PointPillars++ (no public code)": (lambda: renamed(scattered(
        pcd.FakeTemplate(pcd.FakeAnchorHead()), "PointPillarScatter"), "PointPillarsPP"), "PointPillars"),
    "EFMF-Pillars (no public code)": (lambda: renamed(scattered(
        pcd.FakeTemplate(pcd.FakeAnchorHead()), "PointPillarScatter"), "EFMFNet"), "PointPillars"),
    "SECOND": (lambda: mm.FakeOldDetector(FakeOldAnchorHead(), head_name="bbox_head",
                                          parts=["voxel_encoder", "middle_encoder"]), "Detector3D"),
    "CenterPoint": (lambda: renamed(mm.FakeNewDetector(mm.FakeCenterHead()), "CenterPoint"), "CenterPoint"),
    "det3d PointPillars is a CenterPoint": (
        lambda: renamed(det.FakePointPillars(), "PointPillars"), "CenterPoint"),
    "det3d TwoStageDetector": (lambda: renamed(det.FakeTwoStage(), "TwoStageDetector"), "CenterPoint"),
    "VoxelNeXt": (lambda: renamed(pcd.FakeTemplate(pcd.FakeVoxelNeXtHead()), "VoxelNeXt"), "CenterPoint"),
    "TransFusion (OpenPCDet)": (
        lambda: renamed(pcd.FakeTemplate(pcd.FakeTransFusionHead()), "TransFusion"), "CenterPoint"),
    "TransFusionDetector": (
        lambda: renamed(mm.FakeOldDetector(mm.FakeTransFusionHead()), "TransFusionDetector"), "CenterPoint"),
    "VoxelRCNN with an anchor RPN": (
        lambda: renamed(pcd.FakeTemplate(pcd.FakeAnchorHead(), roi=True), "VoxelRCNN"), "CenterPoint"),
    "VoxelRCNN with a centre RPN": (
        lambda: renamed(pcd.FakeTemplate(pcd.FakeCenterHead(), roi=True), "VoxelRCNN"), "CenterPoint"),
    "BEVFormer": (lambda: renamed(
        mm.FakeOldDetector(mm.FakeQueryHead(), parts=CAMERA), "BEVFormer"), "BEVFormer"),
    "BEVFormer by structure": (lambda: mm.FakeOldDetector(mm.FakeQueryHead(), parts=CAMERA), "BEVFormer"),
    "StreamPETR": (lambda: renamed(
        mm.FakeOldDetector(mm.FakeQueryHead("petr"), parts=CAMERA), "Petr3D"), "BEVFormer"),
    "BEVDet inherits CenterPoint": (lambda: renamed(renamed(mm.FakeOldDetector(
        mm.FakeCenterHead(), parts=[*CAMERA, "img_view_transformer"]), "CenterPoint"), "BEVDet"), "BEVFormer"),
    "BEVDet4D": (lambda: renamed(mm.FakeOldDetector(
        mm.FakeCenterHead(), parts=[*CAMERA, "img_view_transformer"]), "BEVDet4D"), "BEVFormer"),
    "BEVFusion (MIT, TransFusionHead)": (lambda: renamed(
        mm.FakeMitFusion(mm.FakeTransFusionHead()), "BEVFusion"), "BEVFusion"),
    "BEVFusion (MIT, CenterHead)": (lambda: mm.FakeMitFusion(mm.FakeCenterHead(mit=True)), "BEVFusion"),
    "BevFusion (OpenPCDet)": (lambda: renamed(pcd.FakeTemplate(
        pcd.FakeTransFusionHead(), parts=["image_backbone", "vtransform"]), "BevFusion"), "BEVFusion"),
    "BEVF_FasterRCNN (ADLab)": (lambda: renamed(
        mm.FakeOldDetector(FakeOldAnchorHead(), parts=BOTH), "BEVF_FasterRCNN"), "BEVFusion"),
    "BEVF_TransFusion (ADLab)": (lambda: renamed(
        mm.FakeOldDetector(mm.FakeTransFusionHead(), parts=BOTH), "BEVF_TransFusion"), "BEVFusion"),
    "Att-BEVFusion (no public code)": (lambda: renamed(mm.FakeNewDetector(
        mm.FakeTransFusionHead(), head_name="bbox_head", parts=[*BOTH, "fusion_layer"]), "AttBev"), "BEVFusion"),
    "SAMFusion (no public code)": (lambda: renamed(mm.FakeNewDetector(
        mm.FakeTransFusionHead(), head_name="bbox_head", parts=BOTH), "SAMFusion"), "BEVFusion"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    make, family = FAMILIES[name]
    adapter = find_adapter(make(), "detection3d")
    assert adapter.family == family
    assert adapter.uses_nms == (family == "PointPillars")  # iou_thresh acts there only


# models3d 2.2: from a native row to [cx, cy, cz, w, l, h, yaw]. The row is one and the same real car.
CAR = np.array([10.0, 5.0, -0.8, 1.7, 4.2, 1.5, 0.3])  # in our form


def _native(name: str) -> list[float]:
    x, y, z, w, length, h, yaw = CAR
    clockwise = -yaw - np.pi / 2
    return {
        "mmdet3d<1.0": [x, y, z - h / 2, w, length, h, clockwise, 1.0, 2.0],
        "mmdet3d>=1.0": [x, y, z - h / 2, length, w, h, yaw, 1.0, 2.0],
        "mit": [x, y, z, w, length, h, clockwise, 1.0, 2.0],
        "openpcdet": [x, y, z, length, w, h, yaw, 1.0, 2.0],
        "det3d": [x, y, z, w, length, h, clockwise],
        "det3d with velocity": [x, y, z, w, length, h, 1.0, 2.0, clockwise],
    }[name]


def _results(name: str, row: torch.Tensor) -> tuple[nn.Module, Any]:
    """The model and what it returns for one frame with that one box, label "class 1 of 0..2", score 0.9."""
    score, label = torch.tensor([0.9] * len(row)), torch.tensor([1] * len(row))
    if name == "openpcdet":
        found = [{"pred_boxes": row, "pred_scores": score, "pred_labels": label + 1}]
        return pcd.FakeTemplate(pcd.FakeAnchorHead()), (found, {})
    if name.startswith("det3d"):
        return det.FakePointPillars(), [{"box3d_lidar": row, "scores": score, "label_preds": label}]
    if name == "mit":
        found = {"boxes_3d": FakeOldBoxes(row), "scores_3d": score, "labels_3d": label}
        return mm.FakeMitFusion(mm.FakeTransFusionHead()), [found]
    if name == "mmdet3d<1.0":
        found = {"boxes_3d": FakeOldBoxes(row), "scores_3d": score, "labels_3d": label}
        return mm.FakeOldDetector(mm.FakeCenterHead()), [{"pts_bbox": found}]
    instances = SimpleNamespace(bboxes_3d=FakeNewBoxes(row), scores_3d=score, labels_3d=label)
    return mm.FakeNewDetector(mm.FakeCenterHead()), [SimpleNamespace(pred_instances_3d=instances)]


CONVENTIONS = ["mmdet3d<1.0", "mmdet3d>=1.0", "mit", "openpcdet", "det3d", "det3d with velocity"]


@pytest.mark.parametrize("name", CONVENTIONS)
def test_boxes_come_in_one_form(name: str) -> None:
    model, output = _results(name, torch.tensor([_native(name)], dtype=torch.float32))
    adapter = find_adapter(model, "detection3d")
    parsed = adapter.parse(ModelCall((), {}, output), Thresholds(0.1, 0.2, 300))
    np.testing.assert_allclose(parsed.output.boxes[0][0], CAR, atol=1e-5)
    assert parsed.output.labels[0].tolist() == [1]
    assert parsed.output.scores[0][0] == pytest.approx(0.9)
    if name == "det3d":
        assert parsed.output.velocities is None
    else:
        np.testing.assert_allclose(parsed.output.velocities[0][0], [1.0, 2.0])
    assert parsed.activation == "none"  # no call of the head was seen: boxes are read, logits are not


def test_boxes_in_another_frame_say_so() -> None:
    with pytest.raises(ValueError, match="convert them first"):
        box_convention(type("CameraInstance3DBoxes", (FakeNewBoxes,), {})(torch.zeros(1, 7)))


def _frame(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(points, boxes in our form, points in each box as the data set states) of a real frame."""
    file = DATA / path
    if not file.is_file():
        pytest.skip(f"no real LiDAR frames at {DATA}; set MLD_TEST_DATA to the folder that holds kitti/")
    frame = json.loads(file.read_text())
    cloud = np.fromfile(file.parent / frame["points"], np.float32).reshape(-1, len(frame["point_columns"]))
    boxes = np.array([o["box_3d"] for o in frame["objects"]], np.float64)[:, :7]
    return cloud[:, :3], boxes, np.array([o["num_lidar_pts"] for o in frame["objects"]])


def _written(name: str, boxes: np.ndarray) -> np.ndarray:
    """Our boxes as the framework writes them."""
    x, y, z, w, length, h, yaw = boxes.T
    clockwise, none = -yaw - np.pi / 2, np.zeros_like(x)
    rows = {
        "mmdet3d<1.0": [x, y, z - h / 2, w, length, h, clockwise],
        "mmdet3d>=1.0": [x, y, z - h / 2, length, w, h, yaw],
        "mit": [x, y, z, w, length, h, clockwise],
        "openpcdet": [x, y, z, length, w, h, yaw],
        "det3d": [x, y, z, w, length, h, clockwise],
        "det3d with velocity": [x, y, z, w, length, h, none, none, clockwise],
    }[name]
    return np.stack(rows, 1)


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("path", ["kitti/000008.json", "nuscenes/n015.json"])
def test_real_boxes_hold_the_points_they_should(name: str, path: str) -> None:
    points, boxes, stated = _frame(path)
    model, output = _results(name, torch.tensor(_written(name, boxes), dtype=torch.float32))
    parsed = find_adapter(model, "detection3d").parse(ModelCall((), {}, output), Thresholds(0.0, 1.0, 1000))
    counted = count_points_in_boxes(points, parsed.output.boxes[0].astype(np.float64))
    if path.startswith("kitti"):
        assert counted.tolist() == stated.tolist()
    else:  # its points were counted before a rounding; with w and l or z wrong less than half agree
        assert np.minimum(counted, stated).sum() >= 0.97 * stated.sum()


# models3d 5: where limits are read, and that they are set where post-processing reads them.
def _pcdet_limits(head: nn.Module, **kwargs: Any) -> nn.Module:
    return pcd.FakeTemplate(head, **kwargs)


LIMITS: dict[str, tuple[Make, Thresholds, Callable[[Any], list[Any]]]] = {
    "A1": (lambda: mm.FakeOldDetector(FakeOldAnchorHead(), head_name="bbox_head"), Thresholds(0.1, 0.01, 50),
           lambda m: [m.bbox_head.test_cfg["score_thr"], m.bbox_head.test_cfg["max_num"]]),
    "A2": (lambda: pcd.FakeTemplate(pcd.FakeAnchorHead()), Thresholds(0.1, 0.01, 15),
           lambda m: [m.model_cfg.POST_PROCESSING.SCORE_THRESH,
                      m.model_cfg.POST_PROCESSING.NMS_CONFIG.NMS_POST_MAXSIZE]),
    "A3": (lambda: mm.FakeOldDetector(mm.FakeCenterHead()), Thresholds(0.1, None, 166),
           lambda m: [m.pts_bbox_head.bbox_coder.score_threshold, m.pts_bbox_head.test_cfg.score_threshold]),
    "A4": (lambda: pcd.FakeTemplate(pcd.FakeCenterHead()), Thresholds(0.1, None, 166),
           lambda m: [m.dense_head.model_cfg.POST_PROCESSING.SCORE_THRESH]),
    "A5": (lambda: pcd.FakeTemplate(pcd.FakeVoxelNeXtHead()), Thresholds(0.1, None, 166),
           lambda m: [m.dense_head.model_cfg.POST_PROCESSING.SCORE_THRESH]),
    "A6": (det.FakePointPillars, Thresholds(0.1, None, 166), lambda m: [m.test_cfg.score_threshold]),
    "A6 two-stage": (det.FakeTwoStage, Thresholds(0.1, None, 166),
                     lambda m: [m.single_det.test_cfg.score_threshold]),
    "A7": (lambda: det.FakePointPillars(det.FakeCenterHeadIoU1d(n := det.FakeCenterFormerNeck()), n),
           Thresholds(0.1, None, 83), lambda m: [m.neck.score_threshold]),
    "A8": (lambda: mm.FakeOldDetector(mm.FakeTransFusionHead()), Thresholds(0.0, None, 12),
           lambda m: [m.pts_bbox_head.bbox_coder.score_threshold]),
    "A9": (lambda: pcd.FakeTemplate(pcd.FakeTransFusionHead()), Thresholds(0.0, None, 10),
           lambda m: [m.dense_head.model_cfg.POST_PROCESSING.SCORE_THRESH]),
    "A10": (lambda: mm.FakeOldDetector(mm.FakeQueryHead()), Thresholds(None, None, 10),
            lambda m: [m.pts_bbox_head.bbox_coder.max_num]),
    "A11": (lambda: pcd.FakeTemplate(pcd.FakeAnchorHead(), roi=True), Thresholds(0.1, 0.01, 15),
            lambda m: [m.model_cfg.POST_PROCESSING.SCORE_THRESH]),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_read_set_and_put_back(name: str) -> None:
    make, stated, settings = LIMITS[name]
    model = make()
    adapter = find_adapter(model, "detection3d")
    assert adapter.thresholds() == stated
    before = settings(model)
    with adapter.applied(Thresholds(0.35, 0.07, 7)):
        for old, value in zip(before, settings(model), strict=True):
            assert value == (7 if isinstance(old, int) else 0.35)
    assert settings(model) == before


def test_iou_is_set_for_pointpillars_only() -> None:
    model = scattered(mm.FakeOldDetector(FakeOldAnchorHead(), head_name="bbox_head"))
    with find_adapter(model, "detection3d").applied(Thresholds(iou=0.3)):
        assert model.bbox_head.test_cfg["nms_thr"] == 0.3
    assert model.bbox_head.test_cfg["nms_thr"] == 0.01
    plain = pcd.FakeTemplate(pcd.FakeAnchorHead(), roi=True)
    with find_adapter(plain, "detection3d").applied(Thresholds(iou=0.3)):
        assert plain.model_cfg.POST_PROCESSING.NMS_CONFIG.NMS_THRESH == 0.01


def test_limits_beyond_the_models_own_filter_what_it_gave() -> None:
    rows = torch.tensor([_native("openpcdet")[:7]] * 3)
    rows[1, 0] += 0.2  # overlaps the first
    rows[2, 0] += 20
    score, label = torch.tensor([0.9, 0.8, 0.3]), torch.tensor([1, 1, 1])
    output = ([{"pred_boxes": rows, "pred_scores": score, "pred_labels": label}], {})
    model = renamed(pcd.FakeTemplate(pcd.FakeAnchorHead()), "PointPillar")
    model.model_cfg.POST_PROCESSING.NMS_CONFIG.NMS_THRESH = 0.95
    adapter = find_adapter(model, "detection3d")

    def left(limits: Thresholds) -> list[float]:
        return adapter.parse(ModelCall((), {}, output), limits).output.scores[0].round(2).tolist()

    assert left(Thresholds(0.0, 1.0, 300)) == pytest.approx([0.9, 0.8, 0.3])
    assert left(Thresholds(0.5, 1.0, 300)) == pytest.approx([0.9, 0.8])
    assert left(Thresholds(0.0, 0.5, 300)) == pytest.approx([0.9, 0.3])
    assert left(Thresholds(0.0, 1.0, 1)) == pytest.approx([0.9])
    parsed = adapter.parse(ModelCall((), {}, output), Thresholds(0.0, 1.0, 1))
    assert parsed.cap_hit == [True]
    assert parsed.thresholds == Thresholds(0.1, 0.95, 1)


# models3d 6: classes and range.
KNOWN: dict[str, tuple[Make, list[str] | None, list[float] | None]] = {
    "mmdet3d >= 1.1, anchor": (
        lambda: mm.FakeNewDetector(FakeOldAnchorHead("prior_generator")), mm.CLASSES, RANGE),
    "mmdet3d, centre": (lambda: mm.FakeNewDetector(mm.FakeCenterHead()), mm.CLASSES, RANGE),
    "BEVFormer": (lambda: mm.FakeOldDetector(mm.FakeQueryHead(), parts=CAMERA), None, RANGE),
    "MIT": (lambda: mm.FakeMitFusion(mm.FakeCenterHead(mit=True)), mm.CLASSES, RANGE),
    "OpenPCDet": (lambda: pcd.FakeTemplate(pcd.FakeAnchorHead()), pcd.CLASSES, RANGE),
    "det3d": (det.FakePointPillars, mm.CLASSES, None),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_classes_and_range(name: str) -> None:
    make, names, limits = KNOWN[name]
    adapter = find_adapter(make(), "detection3d")
    assert adapter.n_class() == 3
    assert adapter.class_names() == names
    found = adapter.pc_range()
    assert found is None if limits is None else list(found) == pytest.approx(limits)


# models3d 7: truth in each framework's own form.
def _truth(name: str) -> tuple[nn.Module, Any]:
    if name == "openpcdet":
        rows = torch.zeros(1, 2, 10)
        rows[0, 0] = torch.tensor([*_native("openpcdet"), 2.0])
        return pcd.FakeTemplate(pcd.FakeAnchorHead()), pcd.batch_of(clouds(1), rows)
    if name == "det3d":
        x, y, z, w, length, h, yaw = CAR
        rows = torch.zeros(1, 3, 10)
        rows[0, 0] = torch.tensor([x, y, z, w, length, h, -yaw - np.pi / 2, 1.0, 2.0, 2.0])
        return det.FakePointPillars(), {**det.example_of(clouds(1)), "gt_boxes_and_cls": rows}
    row, label = torch.tensor([_native(name)]), torch.tensor([1])
    if name == "mmdet3d>=1.0":
        info = {"gt_bboxes_3d": FakeNewBoxes(row), "gt_labels_3d": label.numpy()}
        sample = SimpleNamespace(eval_ann_info=info, metainfo={"lidar_path": "a.bin"})
        return mm.FakeNewDetector(mm.FakeCenterHead()), [sample]
    found = {"gt_bboxes_3d": [FakeOldBoxes(row)], "gt_labels_3d": [label]}
    if name == "mit":
        return mm.FakeMitFusion(mm.FakeTransFusionHead()), {**found, "metas": [{"token": "tok"}]}
    return mm.FakeOldDetector(mm.FakeCenterHead()), {**found, "img_metas": [{"sample_idx": "tok"}]}


@pytest.mark.parametrize("name", ["mmdet3d>=1.0", "mmdet3d<1.0", "mit", "openpcdet", "det3d"])
def test_truth(name: str) -> None:
    model, truth = _truth(name)
    (found,) = find_adapter(model, "detection3d").truths(ModelCall((), {}, None), truth)
    np.testing.assert_allclose(found.boxes, CAR[None], atol=1e-5)
    assert found.labels.tolist() == [1]
    np.testing.assert_allclose(found.velocities, [[1.0, 2.0]])
    wanted = {"openpcdet": "000000", "det3d": "t0", "mmdet3d>=1.0": "a.bin"}.get(name, "tok")
    assert found.input_id == wanted


def test_truth_of_a_training_batch_and_ignored_labels() -> None:
    row = torch.tensor([_native("mmdet3d>=1.0")] * 2)
    given = SimpleNamespace(bboxes_3d=FakeNewBoxes(row), labels_3d=torch.tensor([0, -1]))
    model = mm.FakeNewDetector(mm.FakeCenterHead())
    sample = SimpleNamespace(gt_instances_3d=given, metainfo={})
    (found,) = find_adapter(model, "detection3d").truths(ModelCall((), {}, None), [sample])
    assert found.columns["ignore"].tolist() == [False, True]
    assert find_adapter(model, "detection3d").truths(ModelCall((), {}, None), [SimpleNamespace()]) == [None]


def test_what_mmdet3ds_data_sets_say_of_true_boxes_is_read() -> None:
    """KITTI's difficulty, occlusion and truncation; nuScenes' points of lidar and radar."""
    row = torch.tensor([_native("mmdet3d>=1.0")] * 2)
    info = {
        "gt_bboxes_3d": FakeNewBoxes(row),
        "gt_labels_3d": np.array([1, 0]),
        "num_lidar_pts": np.array([5, 0]),
        "num_radar_pts": np.array([1, 0]),
        "difficulty": np.array([2, -1]),
        "occluded": np.array([1, 3]),
        "truncated": np.array([0.25, 0.0]),
        "depths": np.zeros(7),
        "attr_labels": np.array([6, 8]),  # 8: none
        "gt_bboxes": np.array([[0.0, 1, 2, 3], [4, 5, 6, 7]]),
    }
    model = mm.FakeNewDetector(mm.FakeCenterHead())
    sample = SimpleNamespace(eval_ann_info=info, metainfo={"lidar_path": "a.bin"})
    (found,) = find_adapter(model, "detection3d").truths(ModelCall((), {}, None), [sample])
    assert {name: values.tolist() for name, values in found.columns.items()} == {
        "n_points": [6, 0],
        "difficulty": [2, -1],
        "occlusion": [1, 3],
        "truncation": [0.25, 0.0],
        "attribute": [6, -1],
        "image_box": [[0, 1, 2, 3], [4, 5, 6, 7]],
    }


def test_openpcdets_image_boxes_are_read_with_their_boxes() -> None:
    model, truth = _truth("openpcdet")
    truth["gt_boxes2d"] = torch.tensor([[[1.0, 2, 3, 4], [0, 0, 0, 0]]])
    (found,) = find_adapter(model, "detection3d").truths(ModelCall((), {}, None), truth)
    assert found.columns["image_box"].tolist() == [[1, 2, 3, 4]]
    truth["gt_boxes2d"] = truth["gt_boxes2d"][:, :1]  # not one for each row
    (found,) = find_adapter(model, "detection3d").truths(ModelCall((), {}, None), truth)
    assert "image_box" not in found.columns


@pytest.mark.parametrize("name", ["openpcdet", "det3d"])
def test_points_are_counted_where_the_data_set_does_not_say(name: str) -> None:
    model, truth = _truth(name)
    inside = torch.tensor(CAR[:3]) + torch.tensor([[0.0, 0, 0], [0.1, 0.1, 0.1], [0, 0, 50]])
    cloud = torch.cat([torch.zeros(3, 1), inside, torch.zeros(3, 1)], 1)
    other = torch.tensor([[1.0, *CAR[:3].tolist(), 0]])  # of the next frame
    truth = {**truth, "points": torch.cat([cloud, other])}
    (found,) = find_adapter(model, "detection3d").truths(ModelCall((), {}, None), truth)
    assert found.columns["n_points"].tolist() == [2]
