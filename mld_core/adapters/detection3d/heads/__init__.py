"""The eleven kinds of 3D heads, told by their attributes: the detector's class says nothing of its head."""

from __future__ import annotations

from typing import Any, Final

from mld_core.adapters.detection3d.heads.anchor import AnchorHead, PcdetAnchorHead
from mld_core.adapters.detection3d.heads.base import Head
from mld_core.adapters.detection3d.heads.center import (
    CenterHead,
    Det3dCenterHead,
    PcdetCenterHead,
    VoxelNextHead,
)
from mld_core.adapters.detection3d.heads.center_former import CenterFormerHead
from mld_core.adapters.detection3d.heads.query import QueryHead
from mld_core.adapters.detection3d.heads.roi import RoiHead
from mld_core.adapters.detection3d.heads.transfusion import PcdetTransFusionHead, TransFusionHead

# Most particular signature first.
KINDS: Final[tuple[type[Head], ...]] = (
    CenterFormerHead,
    TransFusionHead,
    PcdetTransFusionHead,
    PcdetCenterHead,
    VoxelNextHead,
    CenterHead,
    QueryHead,
    AnchorHead,
    PcdetAnchorHead,
    Det3dCenterHead,
)


def kind_of(module: Any) -> type[Head] | None:
    """The kind of a head, None if it is none of the known ones."""
    return None if module is None else next((kind for kind in KINDS if kind.fits(module)), None)


__all__ = ["KINDS", "Head", "RoiHead", "kind_of"]
