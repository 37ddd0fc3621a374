"""MMDetection3D before and after 1.1, and the forks built on it; MIT BEVFusion's own trimmed copy."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from mld_core.adapters.base import Call, Truth
from mld_core.adapters.detection3d.frames import NativeFrame
from mld_core.adapters.detection3d.heads.base import has
from mld_core.adapters.detection3d.layouts import (
    Layout,
    Range,
    box_convention,
    facts_of,
    lidar_rows,
    names_of,
    tensor,
    truth_of,
)
from mld_core.adapters.outputs import unpacked
from mld_core.adapters.registry import type_names
from mld_core.adapters.settings import follow, numbers, read

_HEADS = ("pts_bbox_head", "bbox_head")
_RANGES = (
    "data_preprocessor.voxel_layer.point_cloud_range",
    "pts_voxel_layer.point_cloud_range",
    "voxel_layer.point_cloud_range",
    "pts_bbox_head.pc_range",
    "bbox_head.pc_range",
    "pts_bbox_head.bbox_coder.pc_range",
    "pts_voxel_encoder.point_cloud_range",
    "voxel_encoder.point_cloud_range",
    "pc_range",
    "test_cfg.pc_range",
    "test_cfg.pts.pc_range",
)


def _base(model: Any) -> bool:
    return any(name == "Base3DDetector" for _, name in type_names(model))


def _monocular(model: Any) -> bool:
    """FCOS3D, PGD, SMOKE, MonoFlex: mmdet's base, boxes in the camera's frame."""
    return any(name == "SingleStageMono3DDetector" for _, name in type_names(model))


def _three_dimensional(model: Any) -> bool:
    """Structure that 2D detectors of the same framework do not have."""
    heads = [follow(model, path) for path in _HEADS]
    ranged = any(
        has(head, "task_heads")
        or has(head, "conv_dir_cls")
        or has(head, "iou_factor")
        or has(head, "query_labels")
        or has(head, "pc_range")
        for head in heads
        if head is not None
    )
    names = ("voxel_encoder", "pts_voxel_encoder", "pts_bbox_head", "img_view_transformer", "view_transform")
    return ranged or any(follow(model, name) is not None for name in names)


class Mmdet3d(Layout):
    """MMDetection3D 1.1 and later: `forward(inputs, data_samples, mode)`."""

    name: ClassVar[str] = "mmdet3d>=1.1"
    head_paths: ClassVar[tuple[str, ...]] = _HEADS
    range_paths: ClassVar[tuple[str, ...]] = _RANGES

    @staticmethod
    def fits(model: Any) -> bool:
        """A data preprocessor, and predict, loss and _forward."""
        new = has(model, "data_preprocessor", "predict", "loss", "_forward")
        return new and (_base(model) or _monocular(model) or _three_dimensional(model))

    def roi_head(self) -> Any:
        """Not read: second stages of MMDetection3D are none of the known families."""
        return None

    def frames(self, output: Any) -> list[NativeFrame] | None:
        """`pred_instances_3d` of each data sample."""
        if not isinstance(output, Sequence) or isinstance(output, (str, bytes)) or not output:
            return None
        found = []
        for sample in output:
            instances = read(sample, "pred_instances_3d")
            boxes = read(instances, "bboxes_3d")
            if boxes is None:
                return None
            scores, labels = read(instances, "scores_3d"), read(instances, "labels_3d")
            attributes = read(instances, "attr_labels")
            rows, convention = lidar_rows(boxes, read(sample, "metainfo"))
            found.append(NativeFrame(rows, scores, labels, convention, attributes))
        return found

    def truths(self, truth: Any) -> list[Truth | None] | None:
        """`eval_ann_info` (evaluation) or `gt_instances_3d` (training) of data samples."""
        if not isinstance(truth, (list, tuple)) or not truth or isinstance(truth[0], Mapping):
            return None
        frames: list[Truth | None] = []
        for sample in truth:
            info, meta = read(sample, "eval_ann_info"), read(sample, "metainfo")
            given, facts = read(sample, "gt_instances_3d"), {}
            if isinstance(info, Mapping) and info.get("gt_bboxes_3d") is not None:
                boxes, labels = info["gt_bboxes_3d"], info["gt_labels_3d"]
                facts = facts_of(info, len(labels))
            elif read(given, "bboxes_3d") is not None:
                boxes, labels = read(given, "bboxes_3d"), read(given, "labels_3d")
            else:
                frames.append(None)
                continue
            frames.append(truth_of(*_in_order(boxes, labels, meta), _id_of(meta), **facts))
        return frames

    def metas(self, call: Call) -> Any:
        """`metainfo` of the data samples that came out."""
        samples = call.output if isinstance(call.output, (list, tuple)) else ()
        return [read(sample, "metainfo") for sample in samples]

    def class_names(self) -> list[str] | None:
        """`dataset_meta`, which only inferencers set."""
        return names_of(read(self.model, "dataset_meta"))

    def native(self, batch: Mapping[str, Any], training: bool) -> Any:
        """The data preprocessor (unless voxels are there already), then predict or loss."""
        if "mode" in batch or not isinstance(batch.get("inputs"), Mapping):
            return None
        data = batch
        if "voxels" not in batch["inputs"]:
            data = self.model.data_preprocessor(dict(batch), training)
        return (), {**data, "mode": "loss" if training else "predict"}

    def arguments(self, points: Sequence[Tensor], batch: Mapping[str, Any]) -> Any:
        """As `test_step` does: data samples with the box class, the data preprocessor, then predict."""
        structures = sys.modules.get("mmdet3d.structures")
        if structures is None:
            raise ValueError(
                "bare points need mmdet3d.structures, which is not loaded; give the framework's own batch "
                "{'inputs': ..., 'data_samples': ...}"
            )
        metas = batch.get("img_metas") or [{} for _ in points]
        samples = []
        for meta in metas:
            sample = structures.Det3DDataSample()
            boxes = {
                "box_type_3d": structures.LiDARInstance3DBoxes,
                "box_mode_3d": structures.Box3DMode.LIDAR,
            }
            sample.set_metainfo({**boxes, **meta})
            samples.append(sample)
        inputs: dict[str, Any] = {"points": list(points)}
        if batch.get("img") is not None:
            inputs["img"] = list(batch["img"])
        data = self.model.data_preprocessor({"inputs": inputs, "data_samples": samples}, False)
        return (), {**data, "mode": "predict"}


def _in_order(boxes: Any, labels: Any, meta: Any) -> tuple[Tensor, Any, str]:
    rows, convention = lidar_rows(boxes, meta)
    return rows, labels, convention


def _id_of(meta: Any) -> str | None:
    found = read(meta, "token", "lidar_path", "sample_idx", "scene_token") if meta is not None else None
    return None if found is None else str(found)


class _BoxDicts(Layout):
    """Results as dicts with `boxes_3d`, `scores_3d` and `labels_3d`."""

    meta_name: ClassVar[str] = "img_metas"

    def convention(self, boxes: Any) -> str:
        """Of the box object."""
        return box_convention(boxes)

    def frames(self, output: Any) -> list[NativeFrame] | None:
        """One dict per frame, flat or under `pts_bbox`."""
        if not isinstance(output, (list, tuple)) or not output:
            return None
        found = []
        for part in output:
            inner = part.get("pts_bbox", part) if isinstance(part, Mapping) else None
            if not isinstance(inner, Mapping) or "boxes_3d" not in inner:
                return None
            boxes = inner["boxes_3d"]
            frame = NativeFrame(
                tensor(boxes), tensor(inner["scores_3d"]), tensor(inner["labels_3d"]), self.convention(boxes)
            )
            found.append(frame)
        return found

    def truths(self, truth: Any) -> list[Truth] | None:
        """`gt_bboxes_3d` and `gt_labels_3d` of a batch: lists with one entry per frame."""
        if not isinstance(truth, Mapping) or truth.get("gt_bboxes_3d") is None:
            return None
        boxes, labels = (_frames_in(truth.get(key)) for key in ("gt_bboxes_3d", "gt_labels_3d"))
        if boxes is None or labels is None or len(boxes) != len(labels):
            return None
        metas = _frames_in(truth.get(self.meta_name)) or [None] * len(boxes)
        metas = metas if len(metas) == len(boxes) else [None] * len(boxes)
        return [
            truth_of(b, y, self.convention(b), _id_of(meta))
            for b, y, meta in zip(boxes, labels, metas, strict=True)
        ]

    def truth_in(self, call: Call) -> Any:
        """The arguments that hold true boxes."""
        names = ("gt_bboxes_3d", "gt_labels_3d", self.meta_name)
        found = {name: call.kwargs[name] for name in names if call.kwargs.get(name) is not None}
        return found if "gt_bboxes_3d" in found else None

    def metas(self, call: Call) -> Any:
        """The `img_metas` (MIT: `metas`), and of MIT's batch the matrices beside them."""
        metas = _frames_in(call.kwargs.get(self.meta_name))
        return (
            None
            if metas is None
            else [
                {**meta, **_matrices(call.kwargs, index)} if isinstance(meta, Mapping) else None
                for index, meta in enumerate(metas)
            ]
        )

    def class_names(self) -> list[str] | None:
        """`CLASSES` of the model."""
        return names_of(self.model)


_BESIDE: Final = {"lidar2ego": "lidar2ego", "ego2global": "ego2global", "lidar2camera": "lidar2cam",
                  "camera_intrinsics": "cam2img"}  # fmt: skip


def _matrices(batch: Mapping[str, Any], frame: int) -> dict[str, Any]:
    """A frame's rows of the tensors (B, ...) that MIT's batch holds."""
    given = {ours: unpacked(batch.get(name)) for name, ours in _BESIDE.items()}
    return {
        ours: value[frame]
        for ours, value in given.items()
        if isinstance(value, Tensor) and value.ndim >= 3 and frame < len(value)
    }


def _frames_in(value: Any) -> list[Any] | None:
    """One entry per frame, out of DataContainers, TTA lists and (StreamPETR) lists of frames in time."""
    value = unpacked(value)
    if not isinstance(value, (list, tuple)):
        return None
    frames = []
    for item in value:
        inner = unpacked(item)
        # A list in time: the last frame is the one that is predicted.
        frames.append(inner[-1] if isinstance(inner, (list, tuple)) and inner else inner)
    return frames


class OldMmdet3d(_BoxDicts):
    """MMDetection3D before 1.1 (0.x with its old boxes, 1.0.0rc with the new ones) and its forks."""

    name: ClassVar[str] = "mmdet3d<1.1"
    head_paths: ClassVar[tuple[str, ...]] = _HEADS
    range_paths: ClassVar[tuple[str, ...]] = _RANGES

    @staticmethod
    def fits(model: Any) -> bool:
        """simple_test or forward_test, and no data preprocessor."""
        old = (has(model, "simple_test") or has(model, "forward_test")) and not has(
            model, "data_preprocessor"
        )
        return old and (_base(model) or _three_dimensional(model))

    def pc_range(self) -> Range | None:
        """Of BEVDet the bounds of the grid that its view transformer fills."""
        stated = super().pc_range()
        grid = follow(self.model, "img_view_transformer.grid_config")
        bounds = [numbers(read(grid, f"{axis}bound")) for axis in "xyz"]
        if stated is not None or any(bound is None or len(bound) < 2 for bound in bounds):
            return stated
        (x, right), (y, ahead), (z, top) = (bound[:2] for bound in bounds if bound is not None)
        return x, y, z, right, ahead, top

    def native(self, batch: Mapping[str, Any], training: bool) -> Any:
        """As keywords, with `return_loss` where the batch does not say."""
        return (), {"return_loss": training, **({} if training else {"rescale": True}), **batch}

    def arguments(self, points: Sequence[Tensor], batch: Mapping[str, Any]) -> Any:
        """`return_loss=False`; every argument has an outer list, for test-time augmentation."""
        metas = [dict(meta) for meta in batch.get("img_metas") or [{} for _ in points]]
        if any("box_type_3d" not in meta for meta in metas):
            boxes = next(
                (
                    getattr(sys.modules[name], "LiDARInstance3DBoxes", None)
                    for name in ("mmdet3d.core.bbox", "mmdet3d.core")
                    if name in sys.modules
                ),
                None,
            )
            if boxes is None:
                raise ValueError(
                    "img_metas have no box_type_3d, the class every MMDetection3D head makes its boxes of; "
                    "give img_metas=[{'box_type_3d': LiDARInstance3DBoxes, ...}] beside the points"
                )
            metas = [{"box_type_3d": boxes, **meta} for meta in metas]
        kwargs: dict[str, Any] = {"points": [list(points)], "img_metas": [metas]}
        if batch.get("img") is not None:
            kwargs["img"] = [batch["img"]]
        return (), {**kwargs, "return_loss": False, "rescale": True}


class MitBevFusion(_BoxDicts):
    """MIT BEVFusion. Column 2 of its boxes is the gravity centre already, whatever the class says."""

    name: ClassVar[str] = "mit_bevfusion"
    meta_name: ClassVar[str] = "metas"
    head_paths: ClassVar[tuple[str, ...]] = ("heads.object",)
    range_paths: ClassVar[tuple[str, ...]] = (
        "encoders.lidar.voxelize.point_cloud_range",
        "heads.object.bbox_coder.pc_range",
    )

    @staticmethod
    def fits(model: Any) -> bool:
        """`encoders`, `fuser`, `decoder` and `heads`, the last with an object head."""
        heads = read(model, "heads")
        return (
            has(model, "encoders", "fuser", "decoder")
            and isinstance(heads, torch.nn.ModuleDict)
            and "object" in heads
        )

    def convention(self, boxes: Any) -> str:
        """Always its own."""
        del boxes
        return "mit_bevfusion"
