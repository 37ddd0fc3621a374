"""The diagnoses of 3D boxes, T01 to T23: what each means, and when it applies.

Suspected label faults (T20, T21, T22) also have a suspicion between 0 and 1 by which to rank them. T11 and
T12, which concern the sensor, are in `diagnoses_sensor`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mld_core.evaluation.codes.diagnosis import Diagnosis, diagnose, diagnosis
from mld_core.evaluation.metrics.boxes import Bools, Floats

if TYPE_CHECKING:
    from mld_core.evaluation.detection3d.evidence import RoadEvidence

FEW_POINTS = 5


@dataclass(frozen=True)
class RoadDiagnoses:
    """What applies where.

    Attributes:
        predictions: code -> (N,) mask.
        truths: code -> (G,) mask.
        suspicion: T20, T21, T22 -> (N,) how likely the label is at fault, NaN where it is not in question.
        not_computable: code -> why.
        drop_offs: (class, range bin) pairs of T11 with their figures.
        dropouts: frames and sectors of T12 with their figures.
        swapped: (N,) T04 whose width and length fit the truth's the other way round.
    """

    predictions: dict[str, Bools]
    truths: dict[str, Bools]
    suspicion: dict[str, Floats]
    not_computable: dict[str, str] = field(default_factory=dict)
    drop_offs: list[dict[str, int | float]] = field(default_factory=list)
    dropouts: list[dict[str, int | float]] = field(default_factory=list)
    swapped: Bools = field(default_factory=lambda: np.empty(0, np.bool_))


def diagnose_roads(e: RoadEvidence) -> RoadDiagnoses:
    """Ask every diagnosis about every kept prediction and every truth."""
    count = len(e.predictions)
    found = diagnose(DIAGNOSES, e)
    suspicion = {"T21": e.shifted[0], "T22": e.flipped[0]}
    if e.error_proba is not None:
        suspicion = {"T20": e.unlabelled[0], **suspicion}
    return RoadDiagnoses(
        {code: mask[:count] for code, mask in found.masks.items()},
        {code: mask[count:] for code, mask in found.masks.items()},
        suspicion,
        dict(found.not_computable),
        e.bins.rows,
        e.sectors.rows,
        e.swapped,
    )


@diagnosis("T01", "Depth error", 3, "Depth supervision; check the calibration.")
def depth_error(r: RoadEvidence) -> Bools:
    """The offset along the sensor's ray is beyond the class's robust bound, and above the lateral one."""
    return r.of_pairs(r.off_along & r.further)


@diagnosis("T02", "Lateral error", 3, "Check the calibration (extrinsics); finer bird's-eye grid.")
def lateral_error(r: RoadEvidence) -> Bools:
    """The offset across the ray is beyond the class's robust bound."""
    return r.of_pairs(r.off_across & ~r.further)


@diagnosis("T03", "Vertical error", 2, "Check the ground plane and the pitch.")
def vertical_error(r: RoadEvidence) -> Bools:
    """The height of the centre is off by more than the class's robust bound."""
    return r.of_pairs(r.off_up)


@diagnosis(
    "T04",
    "Size error",
    2,
    "Size prior; check the mix of classes. `detail` says `swapped` where width and length are exchanged.",
)
def size_error(r: RoadEvidence) -> Bools:
    """1 - aligned IoU is beyond the class's robust bound."""
    return r.of_pairs(r.off_size)


@diagnosis("T05", "Yaw error", 2, "Orientation loss.")
def yaw_error(r: RoadEvidence) -> Bools:
    """Turned by more than the class's robust bound, less than a quarter turn."""
    return r.of_pairs((r.turned < np.pi / 2) & r.beyond(r.turned, r.bounds.yaw))


@diagnosis("T06", "Yaw flip", 3, "Direction classifier; look at T22 first.")
def yaw_flip(r: RoadEvidence) -> Bools:
    """Turned by a quarter turn or more, in a class with a front."""
    return r.of_pairs(r.flips)


@diagnosis("T07", "Velocity error", 2, "More sweeps; check the synchronisation.", "velocity")
def velocity_error(r: RoadEvidence) -> Bools:
    """The velocity is off by more than the class's robust bound."""
    return r.of_pairs(r.beyond(r.pairs.velocity(r.profile), r.bounds.velocity))


@diagnosis("T10", "Few-point miss", 2, "More sweeps or fusion; may be out of specification.", "n_points")
def few_point_miss(r: RoadEvidence) -> Bools:
    """Not found, at most 5 sensor points."""
    assert r.n_points is not None
    return r.of(truths=r.missed & (r.n_points >= 0) & (r.n_points <= FEW_POINTS))


@diagnosis(
    "T11", "Range drop-off", 3, "Data at this range; check the range limits of model and post-processing."
)
def drop_off_in_range(r: RoadEvidence) -> Bools:
    """In a 10 m range bin where its class fails more than elsewhere and than others do there."""
    return r.of(r.bins.predictions, r.bins.truths)


@diagnosis("T12", "Sensor-sector dropout", 5, "Check the sensor's health; exclude the frames.", "sectors")
def sensor_sector_dropout(r: RoadEvidence) -> Bools:
    """In two or more consecutive 10-degree sectors that fall silent in this frame."""
    return r.of(truths=r.sectors.truths)


@diagnosis("T13", "Ghost", 3, "Negatives with reflections and multipath.", "points_inside")
def ghost(r: RoadEvidence) -> Bools:
    """Overlaps no truth although sensor points are inside."""
    assert r.points_inside is not None
    return r.of(r.alone & (r.points_inside > 0))


@diagnosis("T20", "Suspected missing 3D label", 4, "Add the box.", "answers", "pass")
def suspected_missing_3d_label(r: RoadEvidence) -> Bools:
    """Overlaps no truth, and fills a gap in a true box's track, or is believed and other epochs have it."""
    return r.of(r.unlabelled[1])


@diagnosis("T21", "Suspected shifted label", 4, "Redraw.")
def suspected_shifted_label(r: RoadEvidence) -> Bools:
    """T01 to T03, and other epochs agree with the prediction (without them: far more than usual)."""
    return r.of(r.shifted[1])


@diagnosis(
    "T22",
    "Suspected flipped label",
    4,
    "Turn the label round.",
    "headings",
    when="T06, and the motion has the prediction's heading, or other epochs do in a class "
    "whose headings are mostly right",
)
def suspected_flipped_label(r: RoadEvidence) -> Bools:
    """Suspected flipped label."""
    return r.of(r.flipped[1])


@diagnosis("T23", "Label without points", 2, "Remove the box or mark it as ignored.", "n_points")
def label_without_points(r: RoadEvidence) -> Bools:
    """No sensor point lies inside the truth."""
    assert r.n_points is not None
    return r.of(truths=r.truths.counts & (r.n_points == 0))


DIAGNOSES: tuple[Diagnosis[RoadEvidence], ...] = tuple(
    one for one in [*globals().values()] if isinstance(one, Diagnosis)
)
"""T01 to T23, beside D01 to D25; T20 takes the place of D20."""
