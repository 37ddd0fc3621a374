"""Where the frame of 3D boxes lies: pose and calibration, from the batch or the data set's infos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from mld_core.adapters.base import FramePlace, ModelCall
from mld_core.adapters.detection3d.kitti_infos import (
    NEIGHBOURS,
    annotations_of,
    dont_care,
    in_lidar,
    innermost,
    neighbours,
    neighbours_of,
)
from mld_core.adapters.outputs import as_array
from mld_core.adapters.settings import read

_NAMES: Final = ("ego2global", "lidar2ego", "lidar2cam", "cam2img")
_WAYS: Final = ("cam2ego", "lidar2cam")
_PATHS: Final = ("lidar_path", "img_path", "token")
_IDENTITY: Final[dict[str, Any]] = {"pcd_rotation": np.eye(3), "pcd_trans": 0.0, "pcd_scale_factor": 1.0}


def places_of(call: ModelCall, n: int) -> list[FramePlace | None] | None:
    """One entry for each of `n` frames; None where nothing is known of any.

    What the batch does not say is looked up in the data set's infos (MMEngine's `get_data_info`), of the
    frame that has the same path only.
    """
    metas = call.kwargs.get("metas")
    if not isinstance(metas, list) or len(metas) != n:
        return None
    limits = _limits(call.limit_range)
    found = [
        _told(
            place_of(
                {
                    **_info_of(call.dataset, meta),
                    **_given(meta),
                    "limit_range": None if _boxes_of(meta, "Camera") else limits,
                },
                meta,
            ),
            meta,
        )
        for meta in metas
    ]
    return found if any(one is not None for one in found) else None


def place_of(known: Mapping[str, Any], meta: Any) -> FramePlace | None:
    """Pose and calibration from matrices under MMDetection3D's names.

    None where there are none, and where the points were turned, scaled or moved on their way: the boxes are
    not in the sensor's frame then.

    >>> place_of({"ego2global": np.eye(4), "lidar2ego": np.eye(4)}, {}).calibration["lidar2ego"][0]
    [1.0, 0.0, 0.0, 0.0]
    >>> place_of({"lidar2ego": np.eye(4)}, {"pcd_horizontal_flip": True}) is None
    True
    """
    if not any(value is not None for value in known.values()) or _moved(meta):
        return None
    matrices = {name: _numbers(known[name]) for name in _NAMES if known.get(name) is not None}
    matrices = {name: value for name, value in matrices.items() if value is not None}
    calibration: dict[str, Any] = {}
    pose, to_ego = matrices.pop("ego2global", None), matrices.pop("lidar2ego", None)
    if to_ego is not None and to_ego.shape == (4, 4):
        calibration["lidar2ego"] = to_ego.tolist()
    cameras = {name: value for name, value in matrices.items() if value.ndim in {2, 3}}
    if all(value.ndim == 2 for value in cameras.values()):
        calibration.update({name: value.tolist() for name, value in cameras.items()})
    else:
        count = min(len(value) for value in cameras.values() if value.ndim == 3)
        calibration["cameras"] = [
            {name: value[k].tolist() for name, value in cameras.items() if value.ndim == 3}
            for k in range(count)
        ]
    if known.get("dont_care") and "lidar2cam" in calibration:
        calibration["dont_care"] = known["dont_care"]
    if known.get("neighbours") is not None and "lidar2cam" in calibration:
        beside = in_lidar(known["neighbours"], matrices["lidar2cam"])
        calibration |= {} if beside is None else {"neighbours": beside}
    size = None if known.get("image_size") is None else _numbers(known["image_size"])
    if size is not None and size.size >= 2:
        calibration["image_size"] = [int(one) for one in size.reshape(-1)[:2]]
        calibration |= {"pressed": True} if known.get("pressed") is True else {}
    if known.get("limit_range") is not None and "lidar2cam" in calibration:
        calibration["limit_range"] = known["limit_range"]
    posed = pose is not None and pose.shape == (4, 4) and "lidar2ego" in calibration
    if not calibration:
        return None
    return FramePlace(tuple(pose.reshape(-1).tolist()) if posed and pose is not None else None, calibration)


def _told(place: FramePlace | None, meta: Any) -> FramePlace | None:
    """With whether the frame's boxes came in a depth sensor's frame, however the points were moved."""
    if not _boxes_of(meta, "Depth"):
        return place
    known = FramePlace() if place is None else place
    return replace(known, calibration={**known.calibration, "depth_frame": True})


def _given(meta: Any) -> dict[str, Any]:
    """The matrices in a frame's meta; of an image that was resized its intrinsics as they were."""
    if not isinstance(meta, Mapping):
        return {}
    found = {name: meta[name] for name in (*_NAMES, "image_size", "pressed") if meta.get(name) is not None}
    if meta.get("ori_cam2img") is not None:
        found["cam2img"] = meta["ori_cam2img"]
    return found


def _limits(given: Any) -> list[float] | None:
    """Six finite numbers, None of anything else."""
    found = None if given is None else _numbers(given)
    return found.tolist() if found is not None and found.shape == (6,) else None


def _boxes_of(meta: Any, kind: str) -> bool:
    """Whether the framework's boxes of a frame are of that kind; KITTI's metric drops none of a camera's."""
    return kind in str(getattr(read(meta, "box_type_3d"), "__name__", ""))


def _moved(meta: Any) -> bool:
    if not isinstance(meta, Mapping):
        return False
    if meta.get("pcd_horizontal_flip") or meta.get("pcd_vertical_flip"):
        return True
    given = {name: meta[name] for name in _IDENTITY if meta.get(name) is not None}
    return any(not np.allclose(as_array(value), _IDENTITY[name], atol=1e-6) for name, value in given.items())


def _numbers(value: Any) -> Any:
    """A finite float64 array, None of anything else."""
    try:
        found = np.asarray(as_array(value), np.float64)
    except (TypeError, ValueError):
        return None
    return found if found.size and np.isfinite(found).all() else None


def _info_of(dataset: Any, meta: Any) -> dict[str, Any]:
    """What the infos of MMEngine's data sets, or of KITTI in OpenPCDet, hold of a frame, else {}."""
    if isinstance(meta, Mapping) and meta.get("frame_id") is not None:
        known = annotations_of(dataset, meta["frame_id"])
        beside = neighbours_of(known, read(innermost(dataset), "class_names"))
        regions = dont_care(known)
        told: dict[str, Any] = {"dont_care": regions} if regions else {}
        return told if beside is None else {**told, "neighbours": beside}
    dataset = innermost(dataset)
    look_up = read(dataset, "get_data_info")
    index = meta.get("sample_idx") if isinstance(meta, Mapping) else None
    if not callable(look_up) or not isinstance(index, (int, np.integer)) or index < 0:
        return {}
    try:
        info = look_up(int(index))
    except Exception:  # noqa: BLE001 - a data set of the user's; what it does not tell is not known
        return {}
    lidar, cameras = _mapping(info.get("lidar_points")), _mapping(info.get("images"))
    only = _mapping(next(iter(cameras.values()))) if len(cameras) == 1 else {}
    camera = _mapping(cameras.get(read(dataset, "default_cam_key"))) or only
    stated = {"img_path": only.get("img_path"), **info}
    names = [name for name in _PATHS if meta.get(name) is not None and stated.get(name) is not None]
    if not names or any(meta[name] != stated[name] for name in names):
        return {}
    found = {"ego2global": info.get("ego2global"), "lidar2ego": lidar.get("lidar2ego", _to_ego(camera))}
    found |= {name: camera.get(name, info.get(name)) for name in ("lidar2cam", "cam2img")}
    if camera.get("height") and camera.get("width"):
        found["image_size"] = [camera["height"], camera["width"]]
    found["dont_care"] = _dont_care(info.get("instances"))
    found["neighbours"] = _neighbours(info.get("instances"), read(dataset, "metainfo"))
    return {name: value for name, value in found.items() if value is not None}


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value, {} where it is no mapping."""
    return value if isinstance(value, Mapping) else {}


def _to_ego(camera: Mapping[str, Any]) -> Any:
    """(4, 4) from the LiDAR to the vehicle by way of a camera that says how it stands to both, else None.

    MMDetection3D's nuScenes infos name the LiDAR of no single picture; its metric goes by `cam2ego`, too.
    """
    out, there = (_numbers(camera[one]) if camera.get(one) is not None else None for one in _WAYS)
    if out is None or there is None or {out.shape, there.shape} != {(4, 4)}:
        return None
    return out @ there


def _dont_care(instances: Any) -> list[list[float]]:
    """Image boxes of the regions in which KITTI's annotators named no objects: MMDetection3D's class -1."""
    given = instances if isinstance(instances, list) else []
    boxes = [_numbers(one.get("bbox")) for one in given if read(one, "bbox_label") == -1]
    return [box.tolist() for box in boxes if box is not None and box.shape == (4,)]


def _neighbours(instances: Any, told: Any) -> list[dict[str, Any]] | None:
    """Of MMDetection3D's instances, whose labels are those of the infos and not the run's."""
    categories, own = read(told, "categories"), read(told, "classes")
    if not isinstance(categories, Mapping) or own is None or not isinstance(instances, list):
        return None
    names = {str(label): str(name) for name, label in categories.items()}
    if not NEIGHBOURS & {name.lower() for name in names.values()}:
        return None  # another data set than KITTI
    rows = [(str(read(one, "bbox_label")), read(one, "bbox_3d"), read(one, "bbox")) for one in instances]
    return neighbours(((names.get(label), box, drawn) for label, box, drawn in rows), own)
