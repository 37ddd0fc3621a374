"""OpenPCDet and its forks (VoxelNeXt): one dict goes in, every module writes into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mld_core.adapters.base import Call, Truth, image_box_column
from mld_core.adapters.detection3d.frames import NativeFrame
from mld_core.adapters.detection3d.heads.base import flat_names, has
from mld_core.adapters.detection3d.kitti_infos import add_facts, annotations_of
from mld_core.adapters.detection3d.layouts import Layout, points_of, tensor, truth_of
from mld_core.adapters.outputs import as_array
from mld_core.adapters.settings import read


class OpenPcdet(Layout):
    """Detectors on `Detector3DTemplate`. Labels, predicted and true, count from 1 there."""

    name: ClassVar[str] = "openpcdet"
    head_paths: ClassVar[tuple[str, ...]] = ("dense_head", "point_head")
    range_paths: ClassVar[tuple[str, ...]] = ("dataset.point_cloud_range", "dense_head.point_cloud_range")

    @staticmethod
    def fits(model: Any) -> bool:
        """What the template's constructor sets."""
        return has(model, "module_topology", "model_cfg", "dataset")

    def roi_head(self) -> Any:
        """`model.roi_head`."""
        return read(self.model, "roi_head")

    def frames(self, output: Any) -> list[NativeFrame] | None:
        """`(pred_dicts, recall_dicts)`; raw scores become probabilities."""
        if isinstance(output, tuple) and output:
            output = output[0]
        if not isinstance(output, (list, tuple)) or not all(
            isinstance(part, Mapping) and "pred_boxes" in part for part in output
        ):
            return None
        raw = bool(read(read(read(self.model, "model_cfg"), "POST_PROCESSING"), "OUTPUT_RAW_SCORE"))
        found = []
        for part in output:
            scores = tensor(part["pred_scores"])
            found.append(
                NativeFrame(
                    tensor(part["pred_boxes"]),
                    scores.sigmoid() if raw else scores,
                    tensor(part["pred_labels"]).long() - 1,
                    "openpcdet",
                )
            )
        return found

    def truths(self, truth: Any) -> list[Truth] | None:
        """`gt_boxes` (B, M, 8 or 10): the class from 1 is the last column, rows of zeros fill up.

        `gt_boxes2d` (B, M, 4) where the data set is asked for them.
        """
        boxes = truth.get("gt_boxes") if isinstance(truth, Mapping) else None
        if boxes is None or getattr(boxes, "ndim", 0) != 3 or boxes.shape[-1] not in {8, 10}:
            return None
        ids = list(frame_ids(truth, len(boxes)))
        flat = truth.get("gt_boxes2d")
        of_image = None if flat is None or flat.shape[:2] != boxes.shape[:2] else as_array(flat)
        frames = []
        for frame, (rows, name) in enumerate(zip(as_array(boxes), ids, strict=True)):
            real = rows[rows[:, -1] > 0]
            points = points_of(truth, frame, real[:, :-1], "openpcdet")
            seen = None if of_image is None else of_image[frame][rows[:, -1] > 0]
            columns = {"n_points": points, **image_box_column(seen, len(real))}
            frames.append(truth_of(real[:, :-1], real[:, -1] - 1, "openpcdet", name, **columns))
        return frames

    def complete(self, found: Sequence[Truth | None], batch: Any, dataset: Any) -> None:
        """KITTI's difficulty, occlusion, truncation and image boxes, by the frame's name."""
        frames = batch.get("frame_id") if isinstance(batch, Mapping) else None
        if frames is None or dataset is None:
            return
        names = self.class_names()
        for truth, frame in zip(found, frames, strict=False):
            if truth is not None:
                add_facts(truth, annotations_of(dataset, frame), names)

    def truth_in(self, call: Call) -> Any:
        """The batch."""
        batch = call.args[0] if call.args else call.kwargs.get("batch_dict")
        return truth_part(batch, "gt_boxes")

    def metas(self, call: Call) -> Any:
        """KITTI's `calib` objects and `image_shape` of the batch, as matrices under MMDetection3D's names."""
        batch = call.args[0] if call.args else call.kwargs.get("batch_dict")
        calibs = batch.get("calib") if isinstance(batch, Mapping) else None
        if calibs is None or batch is None:
            return None
        sizes, frames = batch.get("image_shape"), batch.get("frame_id")
        return [
            {
                **_calibration(one),
                "image_size": None if sizes is None else sizes[index],
                "pressed": True,
                "frame_id": None if frames is None else str(frames[index]),
                **_moves(batch, index),
            }
            for index, one in enumerate(calibs)
        ]

    def class_names(self) -> list[str] | None:
        """`model.class_names`."""
        names = read(self.model, "class_names")
        return flat_names(list(names)) if isinstance(names, (list, tuple)) else None

    def arguments(self, points: Sequence[Tensor], batch: Mapping[str, Any]) -> Any:
        """Voxels as the model's data set makes them, collated, on the model's device."""
        dataset = self.model.dataset
        if not has(dataset, "prepare_data", "collate_batch"):
            return super().arguments(points, batch)
        ids = batch.get("input_ids") or range(len(points))
        items = [
            dataset.prepare_data({"points": as_array(cloud), "frame_id": name})
            for cloud, name in zip(points, ids, strict=True)
        ]
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return (on_device(dataset.collate_batch(items), device),), {}


def _calibration(calib: Any) -> dict[str, Any]:
    """LiDAR to rectified camera (4, 4) and the projection (3, 4) of a KITTI calibration."""
    turn, to_camera, project = read(calib, "R0"), read(calib, "V2C"), read(calib, "P2")
    if turn is None or to_camera is None or project is None:
        return {}
    lidar2cam = np.eye(4)
    lidar2cam[:3] = as_array(turn).reshape(3, 3) @ as_array(to_camera).reshape(3, 4)
    return {"lidar2cam": lidar2cam, "cam2img": as_array(project)}


def _moves(batch: Mapping[str, Any], frame: int) -> dict[str, Any]:
    """What augmentation did to a frame's points, under MMDetection3D's names."""
    flips = [batch[name][frame] for name in ("flip_x", "flip_y") if batch.get(name) is not None]
    turned = batch["noise_rot"][frame] if batch.get("noise_rot") is not None else 0.0
    scale = None if batch.get("noise_scale") is None else batch["noise_scale"][frame]
    return {"pcd_horizontal_flip": any(map(bool, flips)) or bool(turned), "pcd_scale_factor": scale}


_STAYS = ("frame_id", "metadata", "calib", "image_paths", "ori_shape", "img_process_infos")


def on_device(batch: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """A collated batch with its arrays as tensors on a device; names and calibrations stay as they are."""
    out: dict[str, Any] = dict(batch)
    for key, value in batch.items():
        if key not in _STAYS and getattr(getattr(value, "dtype", None), "kind", "O") in "fiub":
            moved = torch.as_tensor(value).to(device)
            out[key] = moved if moved.dtype == torch.int64 or key == "image_shape" else moved.float()
    return out


def truth_part(batch: Any, boxes: str) -> dict[str, Any] | None:
    """Of a batch that every module wrote into, true boxes (cloned: a training writes to them) and names."""
    if not isinstance(batch, Mapping) or not isinstance(batch.get(boxes), Tensor):
        return None
    names = {key: batch[key] for key in ("frame_id", "metadata", "gt_boxes2d") if key in batch}
    return {boxes: batch[boxes].detach().clone(), **names}


def frame_ids(batch: Mapping[str, Any], n: int) -> Iterator[str | None]:
    """`metadata[i]["token"]` (nuScenes), else `frame_id`."""
    metas, names = batch.get("metadata"), batch.get("frame_id")
    for i in range(n):
        token = metas[i].get("token") if metas is not None and isinstance(metas[i], Mapping) else None
        name = token if token is not None else names[i] if names is not None else None
        yield None if name is None else str(name)
