"""Where 3D frames lie: pose and calibration from the batch, or from the data set's own infos."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import fake_mmdet3d as mm
import fake_openpcdet as pcd
import numpy as np
import pytest
import torch
from fake_parts3d import FakeNewBoxes

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.detection3d.places import place_of, places_of
from mld_core.adapters.registry import find_adapter


class _Infos:
    """As MMEngine's data sets: what the batch does not hold of a frame."""

    default_cam_key = "CAM2"

    def get_data_info(self, index: int) -> dict[str, Any]:
        camera = {
            "lidar2cam": np.eye(4).tolist(),
            "cam2img": np.eye(4).tolist(),
            "height": 370,
            "width": 1224,
        }
        return {
            "lidar_path": f"{index}.bin",
            "ego2global": (2 * np.eye(4)).tolist(),
            "lidar_points": {"lidar2ego": np.eye(4).tolist()},
            "images": {"CAM2": camera},
            "instances": [{"bbox_label": 0, "bbox": [0, 0, 9, 9]}, {"bbox_label": -1, "bbox": [1, 2, 3, 4]}],
        }


def _placed(meta: dict[str, Any], dataset: Any = None, limits: Any = None) -> Any:
    """What is read of the place of one frame of MMDetection3D."""
    row = torch.tensor([[10.0, 5, -1.5, 4.2, 1.7, 1.5, 0.3]])
    instances = SimpleNamespace(
        bboxes_3d=FakeNewBoxes(row),
        scores_3d=torch.tensor([0.9]),
        labels_3d=torch.tensor([1]),
        attr_labels=torch.tensor([6]),
    )
    adapter = find_adapter(mm.FakeNewDetector(mm.FakeCenterHead()), "detection3d")
    call = adapter.keep(None, Call((), {}, [SimpleNamespace(pred_instances_3d=instances, metainfo=meta)]))
    made = ModelCall(call.args, call.kwargs, call.output, dataset=dataset, limit_range=limits)
    parsed = adapter.parse(made, Thresholds())
    assert parsed.output.attributes[0].tolist() == [6]
    return None if parsed.places is None else parsed.places[0]


def test_pose_and_calibration_of_mmdet3ds_batch_are_read() -> None:
    turn = np.eye(4)
    turn[0, 3] = 1.5
    found = _placed({"ego2global": 3 * np.eye(4), "lidar2ego": turn, "cam2img": np.eye(4)[:3]})
    assert found.calibration["lidar2ego"] == turn.tolist()
    assert found.calibration["cam2img"] == np.eye(4)[:3].tolist()
    assert found.ego_pose == tuple((3 * np.eye(4)).ravel())
    several = _placed({"lidar2cam": np.stack([np.eye(4)] * 6), "cam2img": np.stack([np.eye(4)] * 6)})
    assert [sorted(one) for one in several.calibration["cameras"]] == [["cam2img", "lidar2cam"]] * 6
    # Without the way to the vehicle its pose says nothing of the boxes.
    assert _placed({"ego2global": np.eye(4)}) is None
    assert _placed({"lidar2ego": turn, "pcd_horizontal_flip": True}) is None
    assert _placed({"lidar2ego": turn, "pcd_scale_factor": 1.05}) is None


def test_what_the_batch_lacks_is_asked_of_the_data_set() -> None:
    found = _placed({"lidar_path": "3.bin", "sample_idx": 3}, SimpleNamespace(dataset=_Infos()))
    assert found.ego_pose == tuple((2 * np.eye(4)).ravel())
    assert found.calibration["image_size"] == [370, 1224]
    assert sorted(found.calibration) == ["cam2img", "dont_care", "image_size", "lidar2cam", "lidar2ego"]
    assert found.calibration["dont_care"] == [[1, 2, 3, 4]], "KITTI's regions without labels"
    assert _placed({"lidar_path": "other.bin", "sample_idx": 3}, _Infos()) is None, "another frame's"


class _Pictures:
    """As NuScenesDataset by single pictures: one camera, no LiDAR, the path beside the camera alone."""

    def get_data_info(self, index: int) -> dict[str, Any]:
        to_camera, to_ego = np.eye(4), np.eye(4)
        to_camera[0, 3], to_ego[0, 3] = 2, 1.5
        camera = {"img_path": f"{index}.png", "lidar2cam": to_camera.tolist(), "cam2ego": to_ego.tolist()}
        return {"ego2global": (2 * np.eye(4)).tolist(), "images": {"CAM_BACK": camera}}


def test_a_picture_stands_to_the_vehicle_as_its_camera_does() -> None:
    found = _placed({"img_path": "3.png", "sample_idx": 3}, _Pictures())
    assert found.ego_pose == tuple((2 * np.eye(4)).ravel())
    assert np.array(found.calibration["lidar2ego"])[:3, 3].tolist() == [3.5, 0, 0]
    assert np.array(found.calibration["lidar2cam"])[:3, 3].tolist() == [2, 0, 0]
    assert _placed({"img_path": "4.png", "sample_idx": 3}, _Pictures()) is None, "another picture's"


@pytest.mark.parametrize(
    "images", [{"CAM_BACK": None}, [{"img_path": "3.png"}], {"CAM_BACK": {"cam2ego": 1}}]
)
def test_infos_of_another_form_say_nothing_of_a_picture(images: Any) -> None:
    dataset = SimpleNamespace(get_data_info=lambda _: {"lidar_path": "3.bin", "images": images})
    assert _placed({"lidar_path": "3.bin", "sample_idx": 3}, dataset) is None


def test_boxes_of_a_depth_sensor_are_told_whatever_the_points_went_through() -> None:
    kind = type("DepthInstance3DBoxes", (), {})
    assert _placed({"box_type_3d": kind}).calibration == {"depth_frame": True}
    assert _placed({"box_type_3d": kind, "pcd_horizontal_flip": True}).calibration == {"depth_frame": True}
    found = _placed({"box_type_3d": kind, "cam2img": np.eye(3)})
    assert sorted(found.calibration) == ["cam2img", "depth_frame"]
    assert _placed({"box_type_3d": type("LiDARInstance3DBoxes", (), {})}) is None


def test_limits_of_the_frameworks_metric_stand_beside_the_camera_of_a_lidars_frame() -> None:
    meta, limits = {"lidar_path": "3.bin", "sample_idx": 3}, [0, -40, -3, 70.4, 40, 0.0]
    assert _placed(meta, _Infos(), limits).calibration["limit_range"] == limits
    assert _placed({**meta, "lidar_path": "other.bin"}, _Infos(), limits) is None
    camera = type("CameraInstance3DBoxes", (), {})
    for more, given in (({"box_type_3d": camera}, limits), ({}, None), ({}, limits[:5]), ({}, "far")):
        assert "limit_range" not in _placed({**meta, **more}, _Infos(), given).calibration


def test_openpcdets_calibration_is_read() -> None:
    matrix = np.arange(12.0).reshape(3, 4)
    calib = SimpleNamespace(R0=2 * np.eye(3), V2C=matrix, P2=matrix + 1)
    batch = {"calib": [calib], "image_shape": np.array([[370, 1224]])}
    layout = find_adapter(pcd.FakeTemplate(pcd.FakeAnchorHead()), "detection3d").identity.layout
    found = place_of((meta := layout.metas(Call((batch,), {}, None))[0]), meta)
    assert np.array(found.calibration["lidar2cam"])[:3].tolist() == (2 * matrix).tolist()
    assert found.calibration["cam2img"] == (matrix + 1).tolist()
    assert found.calibration["image_size"] == [370, 1224]
    (meta,) = layout.metas(Call(({**batch, "flip_x": torch.tensor([True])},), {}, None))
    assert place_of(meta, meta) is None


class _Kitti:
    """OpenPCDet's infos of one frame, as its `get_infos` makes them."""

    def __init__(self) -> None:
        annos = {
            "name": np.array(["Car", "Van", "Cyclist", "DontCare"]),
            "dimensions": np.array([[3.9, 1.5, 1.6], [5, 2, 2], [1.8, 1.7, 0.6], [-1, -1, -1]]),
            "location": np.array([[9.0, 1, 0], [3, 1, 12], [20, 3, 0], [-1000, -1000, -1000]]),
            "rotation_y": np.array([0, -np.pi / 2, 0, -10]),
            "difficulty": np.array([0, 1, 2, -1], np.int32),
            "occluded": np.array([0.0, 1, 2, -1]),
            "truncated": np.array([0.0, 0.3, 0.5, -1]),
            "bbox": np.array([[0, 0, 60, 40], [9, 9, 50, 50], [70, 0, 90, 30], [1, 2, 3, 4.0]]),
        }
        self.class_names = pcd.CLASSES
        self.kitti_infos = [{"point_cloud": {"lidar_idx": "000000"}, "annos": annos}]


class _Counted(list[Any]):
    """Says how often it was walked through."""

    walks = 0

    def __iter__(self) -> Any:
        self.walks += 1
        return super().__iter__()


def test_infos_of_ones_own_lose_no_boxes_and_are_walked_through_once() -> None:
    model = pcd.FakeTemplate(pcd.FakeAnchorHead())
    model.class_names = pcd.CLASSES
    adapter = find_adapter(model, "detection3d")
    batch = {"gt_boxes": torch.tensor([[[9.0, 1, 0, 3.9, 1.6, 1.5, 0, 1]]]), "frame_id": np.array(["000000"])}

    def asked(dataset: Any) -> set[str]:
        (truth,) = adapter.truths(ModelCall((batch,), {}, None, dataset=dataset), batch)
        assert truth.labels.tolist() == [0]
        return set(truth.columns) & {"difficulty", "occlusion", "truncation", "image_box"}

    car = {
        "name": np.array(["Car"]),
        "dimensions": np.array([[3.9, 1.5, 1.6]]),
        "difficulty": np.array([1]),
        "bbox": np.zeros((2, 4)),
    }
    data = _Kitti()
    info = {"point_cloud": {"lidar_idx": "000000"}}
    data.kitti_infos = _Counted([{**info, "annos": car}] * 3)  # as a frame stands there more than once
    for _ in range(5):
        assert asked(data) == {"difficulty"}
    assert data.kitti_infos.walks == 1
    for annos in ({"name": car["name"]}, {**car, "dimensions": car["dimensions"][:0]}, None):
        other = _Kitti()
        other.kitti_infos = [{**info, "annos": annos}]
        assert asked(other) == set()
    endless = _Kitti()
    endless.dataset = endless
    assert asked(endless) == set()


def test_openpcdets_infos_are_asked_for_what_its_batch_lacks() -> None:
    model = pcd.FakeTemplate(pcd.FakeAnchorHead())
    model.class_names = pcd.CLASSES
    adapter = find_adapter(model, "detection3d")
    rows = torch.tensor([[[9.0, 1, 0, 3.9, 1.6, 1.5, 0, 1], [20, 3, 0, 1.8, 0.6, 1.7, 0, 3], [0] * 8]])
    batch = {"gt_boxes": rows, "frame_id": np.array(["000000"])}

    def asked(batch: Any, dataset: Any) -> dict[str, Any]:
        (truth,) = adapter.truths(ModelCall((batch,), {}, None, dataset=dataset), batch)
        return {key: np.asarray(value).tolist() for key, value in truth.columns.items()}

    found = asked(batch, _Kitti())
    assert found["difficulty"] == [0, 2], "the van is no class of the model's"
    assert found["occlusion"] == [0, 2]
    assert found["truncation"] == [0, 0.5]
    assert found["image_box"] == [[0, 0, 60, 40], [70, 0, 90, 30]]
    for other in (
        {**batch, "frame_id": np.array(["000001"])},
        {**batch, "gt_boxes": rows * torch.tensor([1, 1, 1, 1.05, 1.05, 1.05, 1, 1])},
        {**batch, "gt_boxes": rows[:, :1]},
    ):
        assert "difficulty" not in asked(other, _Kitti()), "boxes that were scaled, or of another frame"
    assert "difficulty" not in asked(batch, None)

    calib = SimpleNamespace(R0=np.eye(3), V2C=np.eye(4)[:3], P2=np.eye(4)[:3])
    (meta,) = adapter.identity.layout.metas(Call(({**batch, "calib": [calib]},), {}, None))
    (place,) = places_of(ModelCall((), {"metas": [meta]}, None, dataset=_Kitti()), 1)
    assert place.calibration["dont_care"] == [[1, 2, 3, 4]]
    # The camera of this test looks along the LiDAR's z; a bottom 1 m below it is lifted by half of the height.
    (van,) = place.calibration["neighbours"]
    assert (van["name"], van["row"], van["image_box"]) == ("Van", 1, [9, 9, 50, 50])
    np.testing.assert_allclose(van["box"], [3, 1, 13, 2, 5, 2, 0], atol=1e-9)
    own = _Kitti()
    own.class_names = [*pcd.CLASSES, "Van"]
    (place,) = places_of(ModelCall((), {"metas": [meta]}, None, dataset=own), 1)
    assert place.calibration["neighbours"] == [], "a class of the run has true boxes"
    own.kitti_infos[0]["annos"].pop("location")
    own.class_names = pcd.CLASSES
    assert (
        "neighbours" not in places_of(ModelCall((), {"metas": [meta]}, None, dataset=own), 1)[0].calibration
    )


class _KittiInfos(_Infos):
    """MMDetection3D's, with boxes in the camera's frame and classes that are none of the run's."""

    metainfo: ClassVar[dict[str, Any]] = {
        "classes": ["Car", "Pedestrian"],
        "categories": {"Pedestrian": 0, "Car": 2, "Van": 3, "Person_sitting": 5, "DontCare": -1},
    }

    def get_data_info(self, index: int) -> dict[str, Any]:
        names = {-1: [0.0] * 7, 2: [1, 1, 9, 4, 1.5, 2, 0], 5: [2, 1, 12, 0.8, 1.2, 0.6, 0]}
        things = [{"bbox_label": k, "bbox": [0, 0, 9, 9 + k], "bbox_3d": box} for k, box in names.items()]
        return {**super().get_data_info(index), "instances": things}


def test_mmdet3ds_infos_name_what_kitti_ignores_beside_a_class() -> None:
    found = _placed({"lidar_path": "3.bin", "sample_idx": 3}, _KittiInfos()).calibration
    (sitting,) = found["neighbours"]
    assert (sitting["name"], sitting["row"], sitting["image_box"]) == ("Person_sitting", 1, [0, 0, 9, 14])
    np.testing.assert_allclose(sitting["box"], [2, 1, 12.6, 0.6, 0.8, 1.2, -np.pi / 2], atol=1e-9)
    assert found["dont_care"] == [[0, 0, 9, 8]]
