"""A run of one real frame, evaluated, with its calibration; skips where the frames are not here."""

import json

import numpy as np
import pytest
from boxes_store import write
from folders import DATA

from ml_debugger.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store


def real_store(root, name):
    """A run of one real frame whose detector is right, with its calibration; what the data set says of the frame."""
    if not (DATA / name).exists():
        pytest.skip(f"no real frames at {DATA}; set MLD_TEST_DATA to the folder that holds kitti/")
    real = json.loads((DATA / name).read_text())
    box = np.array([one["box_3d"][:7] for one in real["objects"]], np.float32)
    label = [real["class_names"].index(one["label"]) for one in real["objects"]]
    camera = real.get("cam_front")
    if camera is None:  # KITTI: P2 @ lidar2cam, and P2 as the data set has it
        project = np.array([[721.5377, 0, 609.5593], [0, 721.5377, 172.854], [0, 0, 1]])
        to_camera = np.eye(4)
        to_camera[:3] = np.linalg.solve(project, np.array(real["lidar2img"])[:3])
        camera = {"lidar2cam": to_camera.tolist(), "cam2img": project.tolist(), "image_size": [375, 1242]}
    frame = {
        "input_id": real.get("frame_id") or real["token"],
        "calibration": json.dumps({one: camera[one] for one in camera if one != "image"}),
        "truths": {"box": box, "label": label, "n_points": [one["num_lidar_pts"] for one in real["objects"]]},
        "detections": {"box": box, "label": label, "score": np.full(len(box), 0.9)},
    }
    store = Store(root)
    write(store, RunKey("real", "v1"), "val", [frame], "detection3d", class_names=real["class_names"])
    Evaluator("real", "v1", store=root).request_evaluation(
        "one", options={"progress": False, "threads": 2, "repeats": 1}
    )
    return store, real, frame
