"""What a whole pass says that a part of it is judged by."""

from __future__ import annotations

from dataclasses import dataclass

from mld_core.evaluation.detection3d.diagnoses_sensor import DeadSectors, FlaggedBins
from mld_core.evaluation.detection3d.offsets import Bounds, UsualOffsets


@dataclass(frozen=True)
class RoadUsual:
    """What is usual in a pass.

    Attributes:
        bounds: By which matched pairs are judged.
        offsets: How far predictions usually lie off their truths.
        bins: Range bins in which a class fails.
        sectors: Sectors that fall silent.
        points: Whether the sensor points inside any truth are known.
    """

    bounds: Bounds
    offsets: UsualOffsets
    bins: FlaggedBins
    sectors: DeadSectors
    points: bool
