"""Detectors whose boxes are in a camera's or a depth sensor's frame: FCOS3D, PGD, SMOKE, VoteNet.

Runs in .venv-mmdet3d (`.ci/mmdet3d-env` builds it) and is skipped elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")

import mmdet3d_parts as parts
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import (
    Box3DMode,
    CameraInstance3DBoxes,
    DepthInstance3DBoxes,
    Det3DDataSample,
    LiDARInstance3DBoxes,
)
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.detection3d.layouts import lidar_rows
from mld_core.adapters.registry import find_adapter
from mld_core.geometry.conventions import to_standard

init_default_scope("mmdet3d")
K = [[200.0, 0, 64, 0], [0, 200, 32, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
LIDAR2CAM = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.3], [1, 0, 0, 0.2], [0, 0, 0, 1.0]])


def model_of(name: str) -> Any:
    """The shipped architecture with a small backbone and random weights."""
    base = Config.fromfile(parts.SHIPPED / "_base_" / "models" / f"{name}.py").model
    if name == "smoke":
        base.backbone.init_cfg = None
        base.test_cfg.update(topK=20, max_per_img=20)
    else:
        base.backbone.update(depth=18, style="pytorch", init_cfg=None, frozen_stages=-1)
        base.neck.in_channels = [64, 128, 256, 512]
        base.bbox_head.dcn_on_last_conv = False
        base.test_cfg.update(score_thr=0.0, nms_pre=20, max_per_img=20)
    torch.manual_seed(0)
    return MODELS.build(base).eval()


@pytest.mark.parametrize("name", ["fcos3d", "pgd", "smoke"])
def test_monocular_detectors_are_read_in_the_lidar_frame(name: str) -> None:
    model = model_of(name)
    sample = Det3DDataSample()
    meta = {"cam2img": K, "lidar2cam": LIDAR2CAM, "img_shape": (64, 128), "ori_shape": (64, 128)}
    meta |= {"scale_factor": (1.0, 1.0), "pad_shape": (64, 128), "trans_mat": np.eye(3, dtype=np.float32)}
    modes = {"box_type_3d": CameraInstance3DBoxes, "box_mode_3d": Box3DMode.CAM}
    sample.set_metainfo({**meta, **modes, "img_path": "a.png"})
    true = CameraInstance3DBoxes(torch.tensor([[1.0, 1.5, 20, 4, 1.5, 1.7, 0.3]]))
    sample.eval_ann_info = {"gt_bboxes_3d": true, "gt_labels_3d": np.array([1])}
    image = torch.randint(0, 255, (3, 64, 128), dtype=torch.uint8)
    with torch.no_grad():
        (made,) = model.test_step({"inputs": {"img": [image]}, "data_samples": [sample]})
    adapter = find_adapter(model)
    assert (adapter.task, adapter.n_class()) == ("detection3d", model.bbox_head.num_classes)
    kept = adapter.keep(None, Call((), {}, [made]))
    parsed = adapter.parse(ModelCall(kept.args, kept.kwargs, kept.output), Thresholds())
    boxes = made.pred_instances_3d.bboxes_3d
    assert len(parsed.output.boxes[0]) == len(boxes) > 0
    inverse = np.linalg.inv(LIDAR2CAM)
    centres = boxes.gravity_center.numpy() @ inverse[:3, :3].T + inverse[:3, 3]
    np.testing.assert_allclose(parsed.output.boxes[0][:, :3], centres, rtol=1e-4, atol=1e-3)
    if name == "fcos3d":
        assert parsed.output.attributes[0].tolist() == made.pred_instances_3d.attr_labels.tolist()
    (truth,) = adapter.truths(ModelCall((), {}, None), [sample])
    np.testing.assert_allclose(truth.boxes[0, :3], [20 - 0.2, -(1 - 0.1), -(1.5 - 0.75 + 0.3)], atol=1e-5)


def test_votenets_boxes_stand_in_a_lidars_axes() -> None:
    """Its own operators need CUDA: the model is built, its answer made here."""
    base = Config.fromfile(parts.SHIPPED / "_base_" / "models" / "votenet.py").model
    scannet = Config.fromfile(parts.SHIPPED / "votenet" / "votenet_8xb8_scannet-3d.py").model
    model = MODELS.build({**base, **scannet})
    adapter = find_adapter(model)
    assert (adapter.task, adapter.n_class()) == ("detection3d", 18)
    sample = Det3DDataSample()
    boxes = DepthInstance3DBoxes(torch.tensor([[1.0, 3, 0.5, 0.4, 0.6, 0.8, 0.25]]))
    sample.pred_instances_3d = InstanceData(
        bboxes_3d=boxes, scores_3d=torch.tensor([0.5]), labels_3d=torch.tensor([2])
    )
    kept = adapter.keep(None, Call((), {}, [sample]))
    box = adapter.parse(ModelCall(kept.args, kept.kwargs, kept.output), Thresholds()).output.boxes[0][0]
    # x right, y ahead, z up: 3 ahead, 1 to the right; the centre is half its height above the bottom.
    np.testing.assert_allclose(box, [3, -1, 0.9, 0.6, 0.4, 0.8, 0.25 - np.pi / 2], atol=1e-5)


def test_velocities_of_camera_boxes_turn_with_them() -> None:
    boxes = CameraInstance3DBoxes(torch.tensor([[1.0, 1.5, 20, 4, 1.5, 1.7, 0.3, 2.0, 5.0]]), box_dim=9)
    for meta in ({}, {"lidar2cam": LIDAR2CAM}):
        rows, convention = lidar_rows(boxes, meta)
        _, velocity = to_standard(rows, convention)
        np.testing.assert_allclose(velocity, [[5.0, -2.0]], atol=1e-6)
    lidar = LiDARInstance3DBoxes(torch.zeros(1, 7))
    assert lidar_rows(lidar, {})[0] is lidar.tensor or torch.equal(lidar_rows(lidar, {})[0], lidar.tensor)
