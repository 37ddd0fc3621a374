"""Exports as COCO, KITTI and nuScenes, read back by the real readers (the devkit's: tests/mmdet3d)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from boxes_store import write
from folders import DATA
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.evaluation.metrics.camera import image_boxes
from mld_core.exchange.export import export_passes
from mld_core.geometry.conventions import to_standard
from mld_core.records.format.layout import RunKey, Store

RUN = RunKey("detector", "v1")


def flat_frames(seed=0, count=12):
    """2D frames at half size: the original image is twice as large."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        n = 0 if k == 3 else int(rng.integers(1, 6))
        corner = rng.uniform(0, 200, (n, 2))
        box = np.column_stack([corner, corner + rng.uniform(10, 60, (n, 2))]).astype(np.float32)
        label = rng.integers(0, 3, n)
        found = (box + rng.normal(0, 2, box.shape)).astype(np.float32)
        frames.append(
            {
                "input_id": f"image {k}.jpg",
                "image": (240, 320),
                "affine": [2, 0, 0, 0, 2, 0],
                "truths": {"box": box, "label": label, "crowd": np.arange(n) == 4},
                "detections": {"box": found, "label": label, "score": rng.random(n)},
            }
        )
    return frames


def test_coco_is_read_back_by_pycocotools(tmp_path, capsys) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pip install pycocotools")
    from pycocotools.cocoeval import COCOeval

    store, frames = Store(tmp_path / "store"), flat_frames()
    write(store, RUN, "val", frames, "detection", class_names=["cat", "dog", "owl"])
    (folder,) = export_passes(store, RUN, "coco", tmp_path / "out")
    truth = coco.COCO(str(folder / "annotations.json"))
    found = truth.loadRes(str(folder / "detections.json"))
    assert [one["name"] for one in truth.loadCats(truth.getCatIds())] == ["cat", "dog", "owl"]
    images = truth.loadImgs(truth.getImgIds())
    assert [one["file_name"] for one in images] == [frame["input_id"] for frame in frames]
    assert {(one["height"], one["width"]) for one in images} == {(480, 640)}
    for image, frame in zip(images, frames, strict=True):
        real = truth.loadAnns(truth.getAnnIds(imgIds=image["id"], iscrowd=None))
        box = frame["truths"]["box"]
        assert_allclose(
            np.array([one["bbox"] for one in real]).reshape(-1, 4),
            2 * np.column_stack([box[:, :2], box[:, 2:] - box[:, :2]]),
            rtol=1e-5,
        )
        assert [one["category_id"] - 1 for one in real] == frame["truths"]["label"].tolist()
        assert [one["iscrowd"] for one in real] == frame["truths"]["crowd"].astype(int).tolist()
        said = found.loadAnns(found.getAnnIds(imgIds=image["id"]))
        assert_allclose([one["score"] for one in said], frame["detections"]["score"], rtol=1e-6)
    evaluator = COCOeval(truth, found, "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert 0.3 < evaluator.stats[0] < 1, capsys.readouterr().out


def read_kitti(path):
    """A KITTI label file as its development kit reads it: 15 or 16 columns, `%s %lf %d %lf ...`."""
    rows = [line.split() for line in path.read_text().splitlines()]
    assert {len(row) for row in rows} <= {15, 16}
    assert all(row[2].lstrip("-").isdigit() for row in rows)
    return [row[0] for row in rows], np.array([[float(value) for value in row[1:]] for row in rows])


def read_calibration(path):
    lines = dict(line.split(": ", 1) for line in path.read_text().splitlines())
    return {name: np.array(text.split(), float) for name, text in lines.items()}


@pytest.mark.parametrize("calibrated", [False, True])
def test_kitti_files_lead_back_to_the_boxes(tmp_path, calibrated) -> None:
    rng = np.random.default_rng(3)
    tilt = np.eye(4)
    if calibrated:
        turn = 0.02
        tilt[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        tilt[:3, 3] = [0.27, 0.1, -0.08]
    ahead = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]) @ tilt
    calibration = json.dumps(
        {"lidar2cam": ahead.tolist(), "cam2img": [[700, 0, 600], [0, 700, 180], [0, 0, 1]]}
    )
    frames = []
    for k in range(4):
        n = 3 + k
        box = np.column_stack(
            [rng.uniform(8, 50, n), rng.uniform(-8, 8, n), rng.normal(-1, 0.1, n), rng.uniform(1, 5, (n, 3))]
        )
        box = np.column_stack([box, rng.uniform(-3.1, 3.1, n)]).astype(np.float32)
        label = rng.integers(0, 3, n)
        frames.append(
            {
                "input_id": f"training/velodyne/{k + 7:06d}.bin",
                "calibration": calibration if calibrated else None,
                "truths": {
                    "box": box,
                    "label": label,
                    "occlusion": np.full(n, 2.0),
                    "truncation": np.full(n, 0.25),
                },
                "detections": {"box": box, "label": label, "score": rng.random(n)},
            }
        )
    store = Store(tmp_path / "store")
    names = ["Car", "Pedestrian", "Cyclist"]
    write(store, RUN, "val", frames, "detection3d", class_names=names)
    (folder,) = export_passes(store, RUN, "kitti", tmp_path / "out")
    index = json.loads((folder / "index.json").read_text())
    assert index == {f"{k + 7:06d}": frame["input_id"] for k, frame in enumerate(frames)}
    for number, frame in zip(index, frames, strict=True):
        known = read_calibration(folder / "calib" / f"{number}.txt")
        transform = np.eye(4)
        transform[:3] = known["Tr_velo_to_cam"].reshape(3, 4)
        for part, width in (("label_2", 14), ("pred", 15)):
            kinds, rows = read_kitti(folder / part / f"{number}.txt")
            assert rows.shape[1] == width
            assert kinds == [names[k] for k in frame["truths"]["label"]]
            # h w l x y z ry, to [x, y, z, l, h, w, ry]
            native = rows[:, [10, 11, 12, 9, 7, 8, 13]]
            boxes, _ = to_standard(native, "kitti_camera", transform)
            assert_allclose(boxes[:, :6], frame["truths"]["box"][:, :6], atol=2e-4)
            if not calibrated:
                assert_allclose(np.cos(boxes[:, 6] - frame["truths"]["box"][:, 6]), 1, atol=1e-6)
            assert_allclose(
                np.cos(rows[:, 2] - (rows[:, 13] - np.arctan2(rows[:, 10], rows[:, 12]))), 1, atol=1e-6
            )
            image = image_boxes(frame["truths"]["box"].astype(float), transform, known["P2"].reshape(3, 4))
            assert_allclose(rows[:, 3:7], image, atol=1e-3)
        assert_allclose(read_kitti(folder / "label_2" / f"{number}.txt")[1][:, :2], [[0.25, 2]] * len(rows))
        assert_allclose(rows[:, 14], frame["detections"]["score"], atol=1e-5)


def test_the_real_kitti_frame_comes_back(tmp_path) -> None:
    if not (DATA / "kitti").is_dir():
        pytest.skip(f"no real frames at {DATA}; set MLD_TEST_DATA to the folder that holds kitti/")
    real = json.loads((DATA / "kitti" / "000008.json").read_text())
    # lidar2img is P2 @ lidar2cam; with the camera's own matrix known, the other follows.
    whole = np.array(real["lidar2img"])
    project = np.array([[721.5377, 0, 609.5593], [0, 721.5377, 172.854], [0, 0, 1]])
    to_camera = np.eye(4)
    to_camera[:3] = np.linalg.solve(project, whole[:3])
    box = np.array([one["box_3d"] for one in real["objects"]], np.float32)
    frame = {
        "input_id": "000008",
        "calibration": json.dumps({"lidar2cam": to_camera.tolist(), "cam2img": project.tolist()}),
        "truths": {"box": box, "label": np.full(len(box), 2)},
        "detections": {"box": box, "label": np.full(len(box), 2), "score": np.full(len(box), 0.9)},
    }
    store = Store(tmp_path / "store")
    write(store, RUN, "val", [frame], "detection3d", class_names=real["class_names"])
    (folder,) = export_passes(store, RUN, "kitti", tmp_path / "out")
    kinds, rows = read_kitti(folder / "label_2" / "000008.txt")
    assert kinds == [one["label"] for one in real["objects"]]
    for row, one in zip(rows, real["objects"], strict=True):
        clipped = np.clip(row[3:7], 0, [1242, 375, 1242, 375])
        if one["truncated"] == 0:
            assert_allclose(clipped, one["bbox_2d"], atol=12, err_msg="the image box was drawn by hand")


def test_nuscenes_form_and_frames(tmp_path) -> None:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]], [100, 200, 1]
    box = np.array([[10, 0, 1, 2, 4, 1.5, 0.5]], np.float32)
    frame = {
        "input_id": "token",
        "ego_pose": pose.ravel().tolist(),
        "truths": {"box": box, "label": [0], "n_points": [7], "velocity": [[3, 0]]},
        "detections": {"box": box, "label": [0], "score": [0.5], "velocity": [[3, 0]]},
    }
    store = Store(tmp_path / "store")
    write(store, RUN, "val", [frame], "detection3d", class_names=["Car"])
    (folder,) = export_passes(store, RUN, "nuscenes", tmp_path / "out")
    made = json.loads((folder / "results.json").read_text())
    (one,) = made["results"]["token"]
    assert made["meta"]["frame"] == "global"
    assert_allclose(one["translation"], [100, 210, 2])
    assert_allclose(one["velocity"], [0, 3], atol=1e-6)
    angle = (0.5 + np.pi / 2) / 2
    assert_allclose(one["rotation"], [np.cos(angle), 0, 0, np.sin(angle)], atol=1e-6)
    assert one["detection_name"] == "car"
    (true,) = json.loads((folder / "truths.json").read_text())["results"]["token"]
    assert true["num_pts"] == 7


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path / "store")
    frame = {
        "input_id": "000001",
        "truths": {"box": np.zeros((0, 7)), "label": []},
        "detections": {"box": np.array([[1, 2, 0, 1, 1, 1, 0.0]]), "label": [1], "score": [0.5]},
    }
    write(store, RUN, "val", [frame], "detection3d", class_names=["Car", "Cyclist"])
    with pytest.raises(ValueError, match=r"nuScenes has no class cyclist; give the names"):
        export_passes(store, RUN, "nuscenes", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()), "nothing half written"
    with pytest.raises(ValueError, match="coco holds detection passes, recorded are detection3d"):
        export_passes(store, RUN, "coco", tmp_path / "out")
    run = CliRunner().invoke(
        app,
        ["export", "detector", "v1", "--format", "nuscenes", "--class-names", "car,bicycle", "--store",
         str(store.root), "-o", str(tmp_path / "cli"), "--json"],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    (folder,) = json.loads(run.stdout)["paths"]
    (one,) = json.loads((Path(folder) / "results.json").read_text())["results"]["000001"]
    assert one["detection_name"] == "bicycle"
    refused = CliRunner().invoke(
        app, ["export", "detector", "v1", "--format", "coco", "--store", str(store.root)]
    )
    assert refused.exit_code != 0
