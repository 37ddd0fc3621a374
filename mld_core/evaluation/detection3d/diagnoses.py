"""The diagnoses of 3D boxes, T01 to T22: what each means, and when it applies.

Suspected label faults (T20, T21, T22) also have a suspicion between 0 and 1 by which to rank them. T11 and
T12, which concern the sensor, are in `diagnoses_sensor`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mld_core.evaluation.codes.diagnosis import Diagnosis, diagnose, diagnosis
from mld_core.evaluation.detection3d.diagnoses_sensor import (
    RangeBins,
    SectorDropouts,
    range_drop_off,
    sector_dropout,
)
from mld_core.evaluation.detection3d.evidence import (
    AGREEING_EPOCHS,
    OFFSET_FLOOR,
    Offsets,
    RoadEvidence,
    Votes,
    flipped,
    offsets_of,
    overlapping_truth,
    robust_bound,
    shifted,
    unlabelled,
    votes_of,
)
from mld_core.evaluation.metrics.boxes import Bools, Floats

FEW_POINTS = 5


class Road:
    """The evidence as the predicates read it, each part made once: N kept predictions, then G truths."""

    def __init__(self, e: RoadEvidence) -> None:
        self.e = e
        self.rows = len(e.predictions) + len(e.truths)

    @property
    def missing(self) -> dict[str, str]:
        """What is not there, and why a code that needs it cannot be computed."""
        e = self.e
        points = e.n_points is not None and bool((e.n_points >= 0).any())
        told = self.votes.epochs >= AGREEING_EPOCHS or e.true_velocity is not None
        why = {
            "answers": "the error probability was not estimated" if e.error_proba is None else "",
            "velocity": "velocities are not recorded"
            if e.velocity is None or e.true_velocity is None
            else "",
            "headings": "" if told else "neither velocities nor other epochs are recorded",
            "n_points": "" if points else "the points inside truths are not recorded (n_points)",
            "points_inside": ""
            if e.points_inside is not None
            else "the points inside predicted boxes are not recorded",
            "sectors": self.sectors.reason,
        }
        return {name: text for name, text in why.items() if text}

    def of(self, predictions: Bools | None = None, truths: Bools | None = None) -> Bools:
        """(N + G,) from a mask of either, or both."""
        made = np.zeros(self.rows, np.bool_)
        if predictions is not None:
            made[: len(self.e.predictions)] = predictions
        if truths is not None:
            made[len(self.e.predictions) :] = truths
        return made

    def of_pairs(self, mask: Bools) -> Bools:
        """(N + G,) from a mask of the matched pairs: their predictions."""
        made = np.zeros(self.rows, np.bool_)
        made[self.pairs.row[mask]] = True
        return made

    @cached_property
    def pairs(self) -> Offsets:
        """The matched pairs."""
        return offsets_of(self.e)

    @cached_property
    def off_along(self) -> Bools:
        """(P,) beyond the bound along the sensor's ray."""
        return self.pairs.along > robust_bound(self.pairs.along, self.pairs.label, OFFSET_FLOOR)

    @cached_property
    def off_across(self) -> Bools:
        """(P,) beyond the bound across the ray."""
        return self.pairs.across > robust_bound(self.pairs.across, self.pairs.label, OFFSET_FLOOR)

    @cached_property
    def further(self) -> Bools:
        """(P,) further off along the ray than across."""
        return self.pairs.along > self.pairs.across

    @cached_property
    def off_up(self) -> Bools:
        """(P,) beyond the bound in height."""
        return self.pairs.up > robust_bound(self.pairs.up, self.pairs.label)

    @cached_property
    def off_size(self) -> Bools:
        """(P,) beyond the bound in size."""
        return self.pairs.errors[:, 1] > robust_bound(self.pairs.errors[:, 1], self.pairs.label)

    @cached_property
    def turned(self) -> Floats:
        """(P,) radians, NaN in classes without a front."""
        return np.where(self.e.profile.oriented[self.pairs.label], self.pairs.errors[:, 2], np.nan)

    @cached_property
    def flips(self) -> Bools:
        """(P,) turned by a quarter or more although the class has a front."""
        return (self.turned >= np.pi / 2) & (self.pairs.period > 1.5 * np.pi)

    @cached_property
    def swapped(self) -> Bools:
        """(N,) size errors whose width and length fit the truth's the other way round."""
        said, true = self.e.predictions.box[self.pairs.row], self.e.truths.box[self.pairs.truth]
        with np.errstate(divide="ignore", invalid="ignore"):
            straight = np.abs(np.log(said[:, 3:5] / true[:, 3:5])).sum(axis=1)
            crossed = np.abs(np.log(said[:, 3:5] / true[:, 4:2:-1])).sum(axis=1)
        return self.of_pairs(self.off_size & (crossed < straight))[: len(self.e.predictions)]

    @cached_property
    def votes(self) -> Votes:
        """Of other epochs."""
        return votes_of(self.e, self.pairs)

    @cached_property
    def alone(self) -> Bools:
        """(N,) false, and overlapping no truth."""
        return self.e.counted & (self.e.truth < 0) & ~overlapping_truth(self.e)

    @cached_property
    def bins(self) -> RangeBins:
        """Range bins in which a class fails."""
        e = self.e
        return range_drop_off(e.predictions, e.counted & (e.truth < 0), e.counted, e.truths, e.missed)

    @cached_property
    def sectors(self) -> SectorDropouts:
        """Sectors that fall silent."""
        e = self.e
        return sector_dropout(e.truths, e.silent, e.missed, e.recorded, e.frames, e.n_points)

    @cached_property
    def unlabelled(self) -> tuple[Floats, Bools]:
        """(N,) suspicion and mask of T20; needs the error probability."""
        assert self.e.error_proba is not None
        return unlabelled(self.e, self.alone, self.e.error_proba)

    @cached_property
    def shifted(self) -> tuple[Floats, Bools]:
        """(N,) suspicion and mask of T21."""
        offset = (self.off_along & self.further) | (self.off_across & ~self.further) | self.off_up
        return shifted(self.e, self.pairs, self.votes, offset)

    @cached_property
    def flipped(self) -> tuple[Floats, Bools]:
        """(N,) suspicion and mask of T22."""
        return flipped(self.e, self.pairs, self.votes, self.flips)


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
    road, count = Road(e), len(e.predictions)
    found = diagnose(DIAGNOSES, road)
    suspicion = {"T21": road.shifted[0], "T22": road.flipped[0]}
    if e.error_proba is not None:
        suspicion = {"T20": road.unlabelled[0], **suspicion}
    return RoadDiagnoses(
        {code: mask[:count] for code, mask in found.masks.items()},
        {code: mask[count:] for code, mask in found.masks.items()},
        suspicion,
        dict(found.not_computable),
        road.bins.rows,
        road.sectors.rows,
        road.swapped,
    )


@diagnosis("T01", "Depth error", 3, "Depth supervision; check the calibration.")
def depth_error(r: Road) -> Bools:
    """The offset along the sensor's ray is beyond the class's robust bound, and above the lateral one."""
    return r.of_pairs(r.off_along & r.further)


@diagnosis("T02", "Lateral error", 3, "Check the calibration (extrinsics); finer bird's-eye grid.")
def lateral_error(r: Road) -> Bools:
    """The offset across the ray is beyond the class's robust bound."""
    return r.of_pairs(r.off_across & ~r.further)


@diagnosis("T03", "Vertical error", 2, "Check the ground plane and the pitch.")
def vertical_error(r: Road) -> Bools:
    """The height of the centre is off by more than the class's robust bound."""
    return r.of_pairs(r.off_up)


@diagnosis(
    "T04",
    "Size error",
    2,
    "Size prior; check the mix of classes. `detail` says `swapped` where width and length are exchanged.",
)
def size_error(r: Road) -> Bools:
    """1 - aligned IoU is beyond the class's robust bound."""
    return r.of_pairs(r.off_size)


@diagnosis("T05", "Yaw error", 2, "Orientation loss.")
def yaw_error(r: Road) -> Bools:
    """Turned by more than the class's robust bound, less than a quarter turn."""
    small = r.turned < np.pi / 2
    return r.of_pairs(small & (r.turned > robust_bound(np.where(small, r.turned, np.nan), r.pairs.label)))


@diagnosis("T06", "Yaw flip", 3, "Direction classifier; look at T22 first.")
def yaw_flip(r: Road) -> Bools:
    """Turned by a quarter turn or more, in a class with a front."""
    return r.of_pairs(r.flips)


@diagnosis("T07", "Velocity error", 2, "More sweeps; check the synchronisation.", "velocity")
def velocity_error(r: Road) -> Bools:
    """The velocity is off by more than the class's robust bound."""
    error = np.where(r.e.profile.moves[r.pairs.label], r.pairs.errors[:, 3], np.nan)
    return r.of_pairs(error > robust_bound(error, r.pairs.label))


@diagnosis("T10", "Few-point miss", 2, "More sweeps or fusion; may be out of specification.", "n_points")
def few_point_miss(r: Road) -> Bools:
    """Not found, at most 5 sensor points."""
    assert r.e.n_points is not None
    return r.of(truths=r.e.missed & (r.e.n_points >= 0) & (r.e.n_points <= FEW_POINTS))


@diagnosis(
    "T11", "Range drop-off", 3, "Data at this range; check the range limits of model and post-processing."
)
def drop_off_in_range(r: Road) -> Bools:
    """In a 10 m range bin where its class fails more than elsewhere and than others do there."""
    return r.of(r.bins.predictions, r.bins.truths)


@diagnosis("T12", "Sensor-sector dropout", 5, "Check the sensor's health; exclude the frames.", "sectors")
def sensor_sector_dropout(r: Road) -> Bools:
    """In two or more consecutive 10-degree sectors that fall silent in this frame."""
    return r.of(truths=r.sectors.truths)


@diagnosis("T13", "Ghost", 3, "Negatives with reflections and multipath.", "points_inside")
def ghost(r: Road) -> Bools:
    """Overlaps no truth although sensor points are inside."""
    assert r.e.points_inside is not None
    return r.of(r.alone & (r.e.points_inside > 0))


@diagnosis("T20", "Suspected missing 3D label", 4, "Add the box.", "answers")
def suspected_missing_3d_label(r: Road) -> Bools:
    """False and overlapping no truth, yet its error probability is low and other epochs have it too."""
    return r.of(r.unlabelled[1])


@diagnosis("T21", "Suspected shifted label", 4, "Redraw.")
def suspected_shifted_label(r: Road) -> Bools:
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
def suspected_flipped_label(r: Road) -> Bools:
    """Suspected flipped label."""
    return r.of(r.flipped[1])


DIAGNOSES: tuple[Diagnosis[Road], ...] = tuple(
    one for one in [*globals().values()] if isinstance(one, Diagnosis)
)
"""T01 to T22, beside D01 to D23; T20 takes the place of D20."""
