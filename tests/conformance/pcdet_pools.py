"""In place of what OpenPCDet's second stages gather from points by CUDA kernels: features that differ by place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn


def waves(places: torch.Tensor, width: int) -> torch.Tensor:
    """(..., D) numbers to (..., width) features between -1 and 1."""
    turns = torch.linspace(-1, 1, places.shape[-1] * width).reshape(places.shape[-1], width)
    return (places.float() @ turns).sin()


def _grid(head: Any, batch: Any) -> torch.Tensor:
    """Voxel R-CNN and PV-RCNN: (B * N, cells, width)."""
    first = head.shared_fc_layer[0]
    grid = head.pool_cfg.GRID_SIZE if hasattr(head, "pool_cfg") else head.model_cfg.ROI_GRID_POOL.GRID_SIZE
    width = (first.in_features if isinstance(first, nn.Linear) else first.in_channels) // grid**3
    rows = batch["rois"].reshape(-1, batch["rois"].shape[-1])
    if hasattr(head, "pool_cfg"):
        made = (rows.sum(dim=1)[:, None] * torch.linspace(-1, 1, width)).sin()
    else:
        made = waves(rows, width)
    return made[:, None].expand(-1, grid**3, -1).contiguous()


def _parts(head: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Part-A2: two maps (B * N, S, S, S, width)."""
    size = head.model_cfg.ROI_AWARE_POOL.POOL_SIZE
    rows = batch["rois"].reshape(-1, batch["rois"].shape[-1])
    return tuple(  # type: ignore[return-value]
        waves(rows, width)[:, None, None, None].expand(-1, size, size, size, -1).contiguous()
        for width in (4, batch["point_features"].shape[1])
    )


def _cloud(head: Any, batch: Any) -> torch.Tensor:
    """PointRCNN: (B * N, points, 3 + 2 + width)."""
    rows = batch["rois"].reshape(-1, batch["rois"].shape[-1])
    return waves(rows, 5 + batch["point_features"].shape[1])[:, None].expand(-1, 4, -1).contiguous()


def _keypoints(module: Any, batch: Any) -> Any:
    """PV-RCNN's abstraction: every 20th point."""
    points = batch["points"][::20, :4]
    batch["point_features_before_fusion"] = waves(points[:, 1:], module.num_point_features_before_fusion)
    batch["point_features"] = waves(points[:, 1:], module.num_point_features)
    batch["point_coords"] = points
    return batch


def _points(module: Any, batch: Any) -> Any:
    """PointRCNN's backbone, at the points themselves."""
    batch["point_features"] = waves(batch["points"][:, 1:4], module.num_point_features)
    batch["point_coords"] = batch["points"][:, :4]
    return batch


class _Gathered(nn.Module):
    """In place of a set abstraction: the points' mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, places: torch.Tensor, features: torch.Tensor) -> Any:
        return places[:, :1], waves(features.mean(dim=2), self.width)[..., None]


_METHODS = {
    "VoxelRCNNHead": ("roi_grid_pool", _grid),
    "PVRCNNHead": ("roi_grid_pool", _grid),
    "PartA2FCHead": ("roiaware_pool", _parts),
    "PointRCNNHead": ("roipool3d_gpu", _cloud),
    "VoxelSetAbstraction": ("forward", _keypoints),
    "PointNet2MSG": ("forward", _points),
}


def replace(model: Any, patch: pytest.MonkeyPatch) -> None:
    """In the model's classes, until the patch is undone; set abstractions in the model itself."""
    for module in model.modules():
        name, function = _METHODS.get(type(module).__name__, ("", None))
        if function is not None:
            patch.setattr(type(module), name, function)
        if type(module).__name__ == "PointRCNNHead":
            widths = [one[-1] for one in module.model_cfg.SA_CONFIG.MLPS]
            module.SA_modules = nn.ModuleList(_Gathered(width) for width in widths)
