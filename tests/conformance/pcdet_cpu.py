"""OpenPCDet as it stands in a checkout, on a machine without CUDA.

What is replaced is what cannot be there: compiled extensions (suppression and overlaps by mmcv's rotated kernels, the
others are empty and raise where they are called) and `.cuda()`, which returns the tensor itself.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXTENSIONS = ("_cuda", "_ext")
"""How the names of OpenPCDet's compiled modules end."""


class _Compiled(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the extensions that were not compiled."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith("pcdet.ops.") or not name.endswith(EXTENSIONS):
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec: Any) -> Any:
        return types.ModuleType(spec.name)

    def exec_module(self, module: Any) -> None:
        if module.__name__.endswith("iou3d_nms_cuda"):
            module.nms_gpu = _nms
            module.boxes_overlap_bev_gpu = _overlap
        if module.__name__.endswith("bev_pool_ext"):
            module.bev_pool_forward = _pooled


def _bev(boxes: torch.Tensor) -> torch.Tensor:
    return boxes[:, [0, 1, 3, 4, 6]].float()


def _nms(boxes: torch.Tensor, keep: torch.Tensor, threshold: float) -> int:
    """Boxes come by falling score; `keep` takes the rows that stay."""
    from mmcv.ops import nms_rotated

    order = torch.arange(len(boxes), 0, -1, dtype=torch.float32)
    kept = nms_rotated(_bev(boxes), order, threshold)[1].sort().values
    keep[: len(kept)] = kept
    return len(kept)


def _overlap(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    from mmcv.ops import box_iou_rotated

    iou = box_iou_rotated(_bev(a), _bev(b))
    area = (a[:, 3] * a[:, 4])[:, None] + (b[:, 3] * b[:, 4])[None]
    out.copy_(iou * area / (1 + iou))


def _pooled(
    x: torch.Tensor, cells: torch.Tensor, _lengths: Any, _starts: Any, b: int, d: int, h: int, w: int
) -> torch.Tensor:
    """Features (N, C) of pictures summed in their cells (N, 4), x, y, z, frame: (B, D, H, W, C)."""
    x_, y, z, frame = cells.long().T
    made = x.new_zeros(int(b), int(d), int(h), int(w), x.shape[1])
    return made.index_put_((frame, z, x_, y), x, accumulate=True)


def _sparse(original: Any) -> Any:
    """spconv fuses bias and activation into its convolutions in evaluation, which its CPU kernels do not: behind them."""

    def convolved(*args: Any, bias: Any = None, act_type: Any = None, **kwargs: Any) -> torch.Tensor:
        del kwargs["act_alpha"], kwargs["act_beta"]
        assert act_type is None or int(act_type) == 0, act_type
        out: torch.Tensor = original(*args, **kwargs)
        return out if bias is None else out + bias

    return convolved


def on_path(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Make `pcdet` importable from a checkout; what is imported of it stays until the patch is undone."""
    patch.syspath_prepend(str(root))
    version = types.ModuleType("pcdet.version")
    version.__version__ = "0"  # type: ignore[attr-defined]  # a file that its setup.py writes
    patch.setitem(sys.modules, "pcdet.version", version)
    # Needs av2 and kornia, and is imported with every model.
    other = types.ModuleType("pcdet.datasets.argo2.argo2_dataset")
    other.Argo2Dataset = None  # type: ignore[attr-defined]
    patch.setitem(sys.modules, other.__name__, other)
    patch.setattr(sys, "meta_path", [_Compiled(), *sys.meta_path])
    patch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)
    patch.setattr(torch.cuda, "FloatTensor", torch.FloatTensor)
    patch.setattr(np, "int", int, raising=False)  # it is written for a NumPy that had it
    from spconv.pytorch import ops

    patch.setattr(ops, "indice_conv", _sparse(ops.indice_conv))
    patch.chdir(root / "tools")  # its configurations name one another from there


def configured(path: str, voxel: list[float], **changes: Any) -> Any:
    """A configuration of the checkout with coarser voxels; `changes`: dotted name -> value, under MODEL."""
    from easydict import EasyDict
    from pcdet.config import cfg_from_yaml_file

    config = cfg_from_yaml_file(path, EasyDict())
    for step in config.DATA_CONFIG.DATA_PROCESSOR:
        if "VOXEL_SIZE" in step:
            step.VOXEL_SIZE = voxel
        if "NUM_POINTS" in step:
            step.NUM_POINTS = {"train": 6000, "test": 6000}
    for name, value in changes.items():
        *places, end = name.split("__")
        holder = config.MODEL
        for place in places:
            holder = holder[place]
        holder[end] = value
    return config


def borrowed(config: Any, path: str) -> None:
    """Another configuration's model, made for another data set, for the classes and the range of `config`."""
    model = configured(path, [0.1, 0.1, 0.15]).MODEL
    head, range_ = model.DENSE_HEAD, [-10, -50, -5, 80, 50, 3]
    after = head.POST_PROCESSING
    if head.NAME == "TransFusionHead":
        head.NUM_CLASSES, after.POST_CENTER_RANGE = len(config.CLASS_NAMES), range_
        head.TARGET_ASSIGNER_CONFIG.DATASET = "Waymo"  # three classes; nuScenes' has rules for two of ten
        head.SEPARATE_HEAD_CFG.HEAD_ORDER.remove("vel")
        del head.SEPARATE_HEAD_CFG.HEAD_DICT["vel"]
        head.LOSS_CONFIG.LOSS_WEIGHTS.code_weights = [1.0] * 8
    else:
        head.CLASS_NAMES_EACH_HEAD, after.POST_CENTER_LIMIT_RANGE = [list(config.CLASS_NAMES)], range_
        many = after.NMS_CONFIG.NMS_PRE_MAXSIZE  # one for each class, or one
        after.NMS_CONFIG.NMS_PRE_MAXSIZE = [300] * len(many) if isinstance(many, list) else 300
    config.MODEL = model


def vary(model: Any, factor: float = 30) -> None:
    """Scale the layers that make class logits, so that scores of random weights differ."""
    layers = dict(model.named_modules())
    for name, one in model.named_parameters():
        # Biases of 1 in 100 or 1 in 10, as class layers begin with.
        if name.endswith(".bias") and one.numel() and abs(float(one.detach().mean()) + 3.4) < 1.3:
            one.data.zero_()
            layers[name.removesuffix(".bias")].weight.data.mul_(factor)


def cameras_of(size: tuple[int, int], rng: Any) -> dict[str, Any]:
    """Six pictures of noise, and cameras around the LiDAR, as `NuScenesDataset` hands them out."""
    height, width = size
    inner, matrices = np.eye(4, dtype=np.float32), []
    inner[:2, :3] = [[0.6 * width, 0, width / 2], [0, 0.6 * width, height / 2]]
    for turn in np.arange(6) * np.pi / 3:
        sin, cos = np.sin(turn), np.cos(turn)
        made = np.eye(4, dtype=np.float32)  # right, down and ahead of the camera in the LiDAR's frame
        made[:3, :3] = np.array([[sin, -cos, 0], [0, 0, -1], [cos, sin, 0]]).T
        made[:3, 3] = cos, sin, -0.3
        matrices.append(made)
    steps = np.empty((6, 4), object)  # of objects: it is written for a NumPy that stacks lists of any lengths
    steps[:, 0], steps[:, 2], steps[:, 3] = 1.0, False, 0
    steps[:, 1] = [(0, 0, width, height)] * 6
    return {
        "camera_imgs": [rng.integers(0, 255, (height, width, 3)).astype(np.uint8) for _ in matrices],
        "img_process_infos": steps,
        "camera_intrinsics": [inner] * 6,
        "camera2lidar": matrices,
        "lidar2image": [inner @ np.linalg.inv(one) for one in matrices],
    }


def frames_of(config: Any, count: int) -> Any:
    """OpenPCDet's own data set template over frames of noise with some true boxes, and its loader."""
    from pcdet.datasets.dataset import DatasetTemplate

    pictures = config.DATA_CONFIG.get("CAMERA_CONFIG", {}).get("USE_CAMERA")
    columns = len(config.DATA_CONFIG.POINT_FEATURE_ENCODING.src_feature_list)
    low, high = np.reshape(config.DATA_CONFIG.POINT_CLOUD_RANGE, (2, 3))

    class Frames(DatasetTemplate):  # type: ignore[misc]
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> Any:
            rng = np.random.default_rng(index)
            points = rng.uniform(0, 1, (4000, columns)).astype(np.float32)
            points[:, :3] = low + (high - low) * points[:, :3]
            boxes = np.zeros((5, 9 if config.DATA_CONFIG.get("PRED_VELOCITY") else 7), np.float32)
            boxes[:, :3] = low + (high - low) * rng.uniform(0.3, 0.7, (5, 3))
            boxes[:, 3:6], boxes[:, 6] = [4.2, 1.8, 1.6], rng.uniform(-3, 3, 5)
            names = np.array(self.class_names)[rng.integers(0, len(self.class_names), 5)]
            one = {"points": points, "frame_id": f"{index:06d}", "gt_boxes": boxes, "gt_names": names}
            if pictures:
                one |= cameras_of(tuple(config.MODEL.VTRANSFORM.IMAGE_SIZE), rng)
            return self.prepare_data(one)

    data = Frames(config.DATA_CONFIG, config.CLASS_NAMES, training=False, root_path=Path())
    return torch.utils.data.DataLoader(data, batch_size=2, collate_fn=data.collate_batch)
