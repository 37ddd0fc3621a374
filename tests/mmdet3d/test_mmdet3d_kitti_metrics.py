"""KITTI AP40 equals MMDetection3D's own evaluation; its overlap kernel needs a GPU, so shapely computes overlaps here."""

from __future__ import annotations

import sys
import types
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mmdet3d", reason="mmdet3d is not installed: run this in .venv-mmdet3d")
pytest.importorskip("shapely")


from kitti_frames import NAMES, camera_iou, make_kitti
from mmdet3d.evaluation.functional.kitti_utils import eval as kitti_eval

from mld_core.evaluation.metrics.kitti import kitti_metrics


def annotations(frames, data, extra):
    """KITTI annotation dictionaries: camera x right, y down, z forward; bottom centre; l, h, w; ry."""

    def part(frame, boxes, image, label, rows, **more):
        box = boxes[rows]
        yaw = box[:, 6]
        location = np.column_stack([-box[:, 1], -(box[:, 2] - box[:, 5] / 2), box[:, 0]])
        return {
            "name": np.array([NAMES[k] for k in label[rows]]),
            "bbox": image[rows],
            "location": location,
            "dimensions": box[:, [4, 5, 3]],
            "rotation_y": -yaw - np.pi / 2,
            "alpha": -yaw,
            **more,
        }

    p, t = data.predictions, data.truths
    true, found = [], []
    for number in range(frames):
        rows = np.flatnonzero(t.frame == number)
        one = part(number, t.box, data.true_image_box, t.label, rows)
        # Ignored truths: more occluded than any difficulty takes.
        one |= {"occluded": np.where(t.ignore[rows], 9, extra[0][rows]), "truncated": extra[1][rows]}
        region = data.dontcare[data.dontcare_frame == number]
        blank = {"name": np.array(["DontCare"] * len(region), dtype=str), "bbox": region}
        sizes = {"location": 3, "dimensions": 3}
        for key, value in one.items():
            far = np.full((len(region), sizes[key]) if key in sizes else len(region), -1000.0)
            add = blank.get(key, far) if key in blank else np.abs(far) * 0 + 1 if key == "dimensions" else far
            one[key] = np.concatenate([value, add])
        true.append(one)
        rows = np.flatnonzero(p.frame == number)
        found.append(part(number, p.box, data.image_box, p.label, rows, score=p.score[rows].astype(float)))
    return true, found


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_mmdetection3d(seed, monkeypatch) -> None:
    # Their module cannot even be imported without a CUDA driver.
    kernel = types.ModuleType("rotate_iou")
    kernel.rotate_iou_gpu_eval = camera_iou
    monkeypatch.setitem(sys.modules, "mmdet3d.evaluation.functional.kitti_utils.rotate_iou", kernel)
    frames = 30
    data, extra = make_kitti(frames, seed=seed, ties=bool(seed))
    label = data.predictions.label.copy()
    label[::5] = NAMES.index("Van")  # a class of the run, and ignored beside cars all the same
    data = replace(data, predictions=replace(data.predictions, label=label))
    true, found = annotations(frames, data, extra)
    made = kitti_metrics(data)
    least = np.array([[[0.7, 0.5, 0.5]] * 3])
    for m in range(3):
        theirs = kitti_eval.eval_class(true, found, [0, 1, 2], [0, 1, 2], m, least, compute_aos=True)
        expected = theirs["precision"][:, :, 0, 1:].mean(axis=-1)
        np.testing.assert_allclose(made.ap[m, :3], expected, atol=1e-6)
        np.testing.assert_allclose(
            made.aos[m, :3], theirs["orientation"][:, :, 0, 1:].mean(axis=-1), atol=1e-6
        )
        assert expected[0].min() > 0.05
