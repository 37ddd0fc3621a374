"""Whose model is it: first the framework, then the head, then the family; names first, then structure.

The three are independent: det3d's class `PointPillars` is a CenterPoint, `BEVDet` inherits CenterPoint and
sees cameras only, the same BEVFusion carries any of three heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from mld_core.adapters.detection3d.det3d import Det3d
from mld_core.adapters.detection3d.heads import Head, RoiHead, kind_of
from mld_core.adapters.detection3d.heads.base import has
from mld_core.adapters.detection3d.layouts import Layout
from mld_core.adapters.detection3d.mmdet3d import MitBevFusion, Mmdet3d, OldMmdet3d
from mld_core.adapters.detection3d.openpcdet import OpenPcdet
from mld_core.adapters.registry import type_names
from mld_core.adapters.settings import follow

LAYOUTS: Final[tuple[type[Layout], ...]] = (OpenPcdet, Mmdet3d, Det3d, OldMmdet3d, MitBevFusion)
POINTPILLARS, CENTERPOINT, BEVFORMER, BEVFUSION = "PointPillars", "CenterPoint", "BEVFormer", "BEVFusion"
OTHER: Final = "Detector3D"

_BEVFORMER_NAMES: Final = (
    "BEVFormer", "BEVDet", "BEVDepth", "BEVStereo", "Petr3D", "RepDetr3D", "Detr3D", "StreamPETR", "PETR",
)  # fmt: skip
_CENTER_KINDS: Final = frozenset({
    "center", "center_pcdet", "center_sparse", "center_det3d", "center_former", "transfusion",
    "transfusion_pcdet", "roi",
})  # fmt: skip
_ANCHOR_KINDS: Final = frozenset({"anchor", "anchor_pcdet"})
_CAMERA: Final = ("img_backbone", "image_backbone", "encoders.camera")
_LIDAR: Final = (
    "pts_middle_encoder", "middle_encoder", "pts_voxel_encoder", "voxel_encoder", "backbone_3d", "vfe",
    "encoders.lidar", "reader", "map_to_bev_module", "single_det.reader",
)  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """What a model is.

    Attributes:
        layout: its framework.
        head: reads its head; None: boxes are read, logits are not.
        family: one of the four, or "Detector3D".
    """

    layout: Layout
    head: Head | None
    family: str


def layout_of(model: Any) -> Layout | None:
    """The framework of an unwrapped model, None if it is none of them."""
    return next((kind(model) for kind in LAYOUTS if kind.fits(model)), None)


def head_of(layout: Layout) -> Head | None:
    """Reads the model's head, with its second stage if it has one; None if the head is of no known kind."""
    for module in layout.heads():
        kind = kind_of(module)
        if kind is not None:
            first = kind(layout.model, module)
            second = layout.roi_head()
            return first if second is None else RoiHead(layout.model, second, first)
    return None


def identify(model: Any) -> Identity | None:
    """Framework, head and family of an unwrapped model; None if it is no 3D detector that is known."""
    if not isinstance(model, nn.Module):
        return None
    layout = layout_of(model)
    if layout is None:
        return None
    head = head_of(layout)
    if head is None and layout.name == "det3d" and not any("det3d" in m for m, _ in type_names(model)):
        return None  # reader, backbone, neck, bbox_head are names that others use too
    return Identity(layout, head, family_of(model, head))


def family_of(model: Any, head: Head | None) -> str:
    """The family of a model, from the names of its classes and from what it is built of."""
    names = [name for _, name in type_names(model)]
    kind = "" if head is None else head.kind
    camera = any(follow(model, path) is not None for path in _CAMERA)
    lidar = any(follow(model, path) is not None for path in _LIDAR)
    if any(
        "fusion" in name.lower().replace("transfusion", "") or name.startswith("BEVF_") for name in names
    ) or (camera and lidar and _fused(model)):
        return BEVFUSION
    if any(name.startswith(_BEVFORMER_NAMES) for name in names) or kind == "query" or (camera and not lidar):
        return BEVFORMER
    if kind in _CENTER_KINDS:
        return CENTERPOINT
    if kind in _ANCHOR_KINDS and _has_pillars(model):
        return POINTPILLARS
    return OTHER


def _fused(model: Any) -> bool:
    """Whether cameras reach the bird's-eye view: a view transform, or a fuser."""
    names = ("view_transform", "vtransform", "encoders.camera.vtransform", "lift_splat_shot_vis",
             "fusion_layer", "fuser", "reduc_conv", "img_view_transformer")  # fmt: skip
    return any(follow(model, name) is not None or has(model, name) for name in names)


def _has_pillars(model: Any) -> bool:
    """Whether points are scattered into one layer of pillars."""
    scatters = ("PillarsScatter", "PillarScatter")
    return any(type(m).__name__.endswith(scatters) for m in model.modules()) or any(
        "PointPillar" in name for _, name in type_names(model)
    )
