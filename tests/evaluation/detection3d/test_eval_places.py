"""Range from the ego vehicle, image boxes and attributes, as far as the records say how frames stand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from boxes_store import write
from scipy.spatial.transform import Rotation

from mld_core.evaluation.detection.records import read_boxes
from mld_core.evaluation.detection3d.figures import nuscenes_state
from mld_core.evaluation.detection3d.places import ego_places, image_boxes_of
from mld_core.evaluation.detection3d.profile import place_columns
from mld_core.evaluation.metrics.camera import image_boxes, in_camera
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select

CAMERA = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
PROJECT = np.array([[700, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0.0]])


@pytest.fixture
def records(tmp_path):
    return recorded(tmp_path)


def recorded(tmp_path, **more):
    """Two cars 25 and 45 m ahead of a sensor that stands 10 m before the vehicle's origin, each found exactly."""
    box = np.array([[25, 0, 0, 2, 4, 1.5, 0], [45, 0, 0, 2, 4, 1.5, 0.0]])
    calibration = {"lidar2ego": [[1, 0, 0, 10], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]}
    calibration |= {
        "lidar2cam": CAMERA.tolist(),
        "cam2img": PROJECT[:, :3].tolist(),
        "image_size": [370, 1240],
        **more,
    }
    true = {"box": box, "label": np.zeros(2, int)}
    aside = np.concatenate([box, [[10, 40, 0, 2, 4, 1.5, 0], [-10, 0, 0, 2, 4, 1.5, 0]]])
    found = {"box": aside, "label": np.zeros(4, int), "score": np.array([0.9, 0.8, 0.3, 0.2])}
    frame = {"input_id": "a", "calibration": json.dumps(calibration), "truths": true, "detections": found}
    store, run = Store(tmp_path), RunKey("cars", "v1")
    write(store, run, "val", [frame], "detection3d", class_names=["car"])
    (selection,) = select(store, run, n_epoch=0)
    return read_boxes(selection, store.run_info(run))


def test_range_is_the_vehicles(records):
    frame, box = records.truths.frame, records.truths.box
    np.testing.assert_allclose(ego_places(records, frame, box), [[35, 0], [55, 0]])
    columns = place_columns(records, frame, box, np.zeros(2))
    assert columns["range"].to_pylist() == [35, 55]
    assert columns["range_bin"].to_pylist() == ["30-40 m", "50-60 m"]
    assert nuscenes_state(records).truths.tolist() == [1], "nuScenes asks for cars up to 50 m"


def test_predictions_outside_the_image_are_none_of_kittis(records):
    image, inside = image_boxes_of(records, records.predictions)
    assert inside.tolist() == [True, True, False, False]
    assert image[0] == pytest.approx(
        [600 - 700 / 23, 180 - 525 / 23, 600 + 700 / 23, 180 + 525 / 23], rel=1e-5
    )


def test_in_a_run_of_openpcdet_they_are_pressed_into_its_edge(tmp_path):
    """Its `boxes3d_kitti_camera_to_imageboxes` clips both corners to the pixels there are; all boxes count.

    It divides by the depth of a corner, whatever the last number of the projection.
    """
    project = PROJECT.copy()
    project[2, 3] = 0.5
    found = recorded(tmp_path, pressed=True, cam2img=project.tolist())
    image, inside = image_boxes_of(found, found.predictions)
    assert inside.all()
    assert image[2].tolist() == pytest.approx([0, 180 - 525 / 8, 0, 180 + 525 / 8], rel=1e-5)
    # Behind the camera, mirrored: as they are.
    assert image[3] == pytest.approx([600 - 700 / 8, 180 - 525 / 8, 600 + 700 / 8, 180 + 525 / 8], rel=1e-5)


def test_corners_behind_the_camera_are_mirrored_in_kittis_figures_alone():
    """MMDetection3D and OpenPCDet divide by whatever depth a corner has; a file's image box is around what is seen."""
    beside = np.array([[0, 3, 0, 2, 4, 1.5, 0.0]])  # from 2 m behind to 2 m before the camera
    assert image_boxes(beside, CAMERA, PROJECT)[0] == pytest.approx([-800, -82.5, -100, 442.5])
    assert image_boxes(beside, CAMERA, PROJECT, behind=True)[0] == pytest.approx([-800, -82.5, 2000, 442.5])


def test_a_yaw_turns_with_a_camera_that_looks_aside():
    """KITTI's LiDARs look where the camera does, to a degree: their yaw stays. Another's does not."""
    box = np.array([[10, 0, 0, 2, 4, 1.5, 0.3]])
    for degrees, turned in ((1, 0), (40, 40)):
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
        x, y, z, *_, yaw = in_camera(box, CAMERA @ turn)[0]
        angle = np.radians(degrees)
        assert [x, y, z] == pytest.approx([10 * np.cos(angle), 10 * np.sin(angle), 0])
        assert yaw == pytest.approx(0.3 + np.radians(turned))
