"""The nuScenes export is read back by nuscenes-devkit, and leads to the figures of our own evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from folders import DATA

pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed: run this in .venv-mmdet3d")


from boxes_store import write
from frames_3d import NUSCENES, make_frames
from nuscenes.eval.common.loaders import load_prediction
from nuscenes.eval.common.utils import center_distance
from nuscenes.eval.detection.algo import accumulate, calc_ap
from nuscenes.eval.detection.data_classes import DetectionBox

from mld_core.evaluation.metrics.nuscenes import NuscenesProfile, match_nuscenes, nuscenes_metrics
from mld_core.exchange.export import export_passes
from mld_core.records.format.layout import RunKey, Store

FRAMES = DATA / "nuscenes"
RUN = RunKey("detector", "v1")


def test_the_devkit_finds_the_same_ap_in_the_files(tmp_path) -> None:
    data, frames = make_frames(15, seed=5, unknown=0.0), []
    p, t = data.predictions, data.truths
    for k in range(15):
        a, b = p.frame == k, t.frame == k
        found = {"box": p.box[a], "label": p.label[a], "score": p.score[a], "velocity": data.velocities[a]}
        true = {
            "box": t.box[b],
            "label": t.label[b],
            "n_points": data.n_points[b],
            "velocity": data.true_velocities[b],
        }
        turn = 0.3 * k
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        pose[:3, 3] = [400 + k, 1100, 1]
        frames.append(
            {"input_id": f"sample{k}", "ego_pose": pose.ravel().tolist(), "detections": found, "truths": true}
        )
    store = Store(tmp_path / "store")
    write(store, RUN, "val", frames, "detection3d", class_names=list(NUSCENES))
    (folder,) = export_passes(store, RUN, "nuscenes", tmp_path / "out")
    found, meta = load_prediction(str(folder / "results.json"), 500, DetectionBox)
    true, _ = load_prediction(str(folder / "truths.json"), 500, DetectionBox)
    assert meta["use_lidar"]
    assert set(found.sample_tokens) == {f"sample{k}" for k in range(15)}
    assert len(found.all) == len(p)
    assert [one.num_pts for one in true.all] == data.n_points.tolist()
    profile = NuscenesProfile.of(NUSCENES, limit_range=False)
    mine = nuscenes_metrics(match_nuscenes(p, t, profile), profile)
    for c in (0, 5):
        for k, most in enumerate((0.5, 1.0, 2.0, 4.0)):
            theirs = calc_ap(accumulate(true, found, NUSCENES[c], center_distance, most), 0.1, 0.1)
            assert mine.ap[k, c] == pytest.approx(theirs, abs=1e-5)


def test_the_real_frame_lies_where_nuscenes_has_it(tmp_path) -> None:
    if not FRAMES.is_dir():
        pytest.skip(f"no real frames at {FRAMES}; set MLD_TEST_DATA to the folder that holds nuscenes/")
    real = json.loads((FRAMES / "n015.json").read_text())
    objects = real["objects"]
    box = np.array([one["box_3d"] for one in objects], np.float32)
    part = {
        "box": box,
        "label": np.array([real["class_names"].index(one["label"]) for one in objects]),
        "velocity": np.array([one["velocity"] for one in objects]),
    }
    frame = {
        "input_id": real["token"],
        "ego_pose": np.array(real["ego2global"]).ravel().tolist(),
        "calibration": json.dumps({"lidar2ego": real["lidar2ego"]}),
        "detections": {**part, "score": np.full(len(box), 0.5)},
        "truths": {**part, "n_points": np.array([one["num_lidar_pts"] for one in objects])},
    }
    store = Store(tmp_path / "store")
    write(store, RUN, "val", [frame], "detection3d", class_names=real["class_names"])
    (folder,) = export_passes(store, RUN, "nuscenes", tmp_path / "out")
    made, _ = load_prediction(str(folder / "truths.json"), 500, DetectionBox)
    to_global = np.array(real["ego2global"]) @ np.array(real["lidar2ego"])
    for one, given in zip(made[real["token"]], objects, strict=True):
        centre = to_global @ np.array([*given["box_3d"][:3], 1])
        np.testing.assert_allclose(one.translation, centre[:3], atol=1e-3)
        np.testing.assert_allclose(one.size, given["box_3d"][3:6], rtol=1e-5)
        assert one.num_pts == given["num_lidar_pts"]
        assert one.detection_name == given["label"]
    found, _ = load_prediction(str(folder / "results.json"), 500, DetectionBox)
    curve = accumulate(made, found, "car", center_distance, 0.5)
    assert calc_ap(curve, 0.1, 0.1) == pytest.approx(1)
