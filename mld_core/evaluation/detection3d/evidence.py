"""What the 3D diagnoses read: boxes, matched pairs and their offsets, other epochs, suspected labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection.labels import NOT_IN_ROUNDS
from mld_core.evaluation.detection3d.diagnoses_sensor import (
    BinCounts,
    RangeBins,
    SectorDropouts,
    SectorView,
)
from mld_core.evaluation.detection3d.offsets import DEVIATIONS, Bounds, Offsets, UsualOffsets, offsets_of
from mld_core.evaluation.detection3d.tracks import Gaps, gaps_of, middles_of
from mld_core.evaluation.detection3d.usual import RoadUsual
from mld_core.evaluation.detection3d.votes import Votes, nearest_of_class, votes_of
from mld_core.evaluation.metrics.boxes import (
    Bools,
    ByClass,
    Floats,
    Ints,
    Predictions,
    Truths,
    footprints,
)
from mld_core.evaluation.metrics.nuscenes import NuscenesProfile
from mld_core.geometry.iou import bev_iou_aligned

MOVING = 1.0
"""m/s from which the motion tells the heading."""

AGREEING_EPOCHS = 2
MOST_BY_CHANCE = 0.2
"""Share of the boxes near gaps in tracks that would be there by chance, up to which all are named."""

LEAST_OVERLAP = 0.1
"""Footprint IoU from which a prediction is about a truth that is there."""


@dataclass(frozen=True)
class RoadEvidence:
    """Everything the predicates read: N kept predictions, G truths, F frames.

    Attributes:
        predictions: (N,) boxes at the operating threshold.
        truths: (G,) truths.
        truth: (N,) truth of its own class each prediction found closer than 2 m, -1 for none.
        counted: (N,) predictions that are right or wrong; false are those of them without a truth.
        missed: (G,) truths that count and were not found.
        silent: (G,) truths with no prediction of any class and score closer than 2 m.
        profile: what differs between classes.
        frames: F.
        recorded: every recorded prediction, whatever its score.
        velocity: (N, 2) m/s or None.
        true_velocity: (G, 2) m/s or None.
        n_points: (G,) sensor points in the truths, negative unknown, or None.
        points_inside: (N,) sensor points in the predicted boxes, or None.
        error_proba: (N,) probability to be wrong, or None.
        likely: error probability up to which a box is believed (t2).
        epochs: predictions of other epochs under the same frame numbers.
        objects: (N,) odds that a box far from every truth is an object, NaN elsewhere, or None.
        believed: (N,) boxes far from every truth that are rather objects, or None.
        usual: what the whole pass says, where this is a part of it; None: it is all of it.
        first_frame: number of its first frame in the pass.
    """

    predictions: Predictions
    truths: Truths
    truth: Ints
    counted: Bools
    missed: Bools
    silent: Bools
    profile: NuscenesProfile
    frames: int
    recorded: Predictions
    velocity: NDArray[np.floating] | None = None
    true_velocity: NDArray[np.floating] | None = None
    n_points: NDArray[np.integer] | None = None
    points_inside: NDArray[np.integer] | None = None
    error_proba: Floats | None = None
    likely: float = 0.5
    epochs: Sequence[Predictions] = ()
    objects: Floats | None = None
    believed: Bools | None = None
    usual: RoadUsual | None = None
    first_frame: int = 0

    @property
    def rows(self) -> int:
        """N + G."""
        return len(self.predictions) + len(self.truths)

    @property
    def missing(self) -> dict[str, str]:
        """What is not there, and why a code that needs it cannot be computed."""
        points = self.n_points is not None and bool((self.n_points >= 0).any())
        if self.usual is not None:
            points = self.usual.points
        speeds = self.velocity is not None and self.true_velocity is not None
        inside = self.points_inside is not None
        told = self.votes.epochs >= AGREEING_EPOCHS or self.true_velocity is not None
        needs = [
            ("pass", self.usual is None, NOT_IN_ROUNDS),
            ("answers", self.error_proba is not None, "the error probability was not estimated"),
            ("velocity", speeds, "velocities are not recorded"),
            ("headings", told, "neither velocities nor other epochs are recorded"),
            ("n_points", points, "the points inside truths are not recorded (n_points)"),
            ("points_inside", inside, "the points inside predicted boxes are not recorded"),
            ("sectors", not self.sectors.reason, self.sectors.reason),
        ]
        return {name: why for name, there, why in needs if not there}

    @property
    def wrong(self) -> Bools:
        """(N,) predictions that are false."""
        return self.counted & (self.truth < 0)

    def of(self, predictions: Bools | None = None, truths: Bools | None = None) -> Bools:
        """(N + G,) from a mask of either, or both."""
        made = np.zeros(self.rows, np.bool_)
        if predictions is not None:
            made[: len(self.predictions)] = predictions
        if truths is not None:
            made[len(self.predictions) :] = truths
        return made

    def of_pairs(self, mask: Bools) -> Bools:
        """(N + G,) from a mask of the matched pairs: their predictions."""
        made = np.zeros(self.rows, np.bool_)
        made[self.pair_row[mask]] = True
        return made

    @cached_property
    def pair_row(self) -> Ints:
        """(P,) predictions of the matched pairs."""
        return np.flatnonzero(self.truth >= 0)

    @cached_property
    def pair_truth(self) -> Ints:
        """(P,) their truths."""
        return self.truth[self.pair_row]

    @cached_property
    def pairs(self) -> Offsets:
        """The matched pairs."""
        return offsets_of(self)

    @cached_property
    def bounds(self) -> Bounds:
        """What the classes' pairs are judged by."""
        return Bounds.of(self.pairs, self.profile) if self.usual is None else self.usual.bounds

    def beyond(self, values: Floats, bound: ByClass) -> Bools:
        """(P,) values above the bound of their class."""
        return np.asarray(values > bound.rows(self.pairs.label))

    @cached_property
    def off_along(self) -> Bools:
        """(P,) beyond the bound along the sensor's ray."""
        return self.beyond(self.pairs.along, self.bounds.along)

    @cached_property
    def off_across(self) -> Bools:
        """(P,) beyond the bound across the ray."""
        return self.beyond(self.pairs.across, self.bounds.across)

    @cached_property
    def further(self) -> Bools:
        """(P,) further off along the ray than across."""
        return self.pairs.along > self.pairs.across

    @cached_property
    def off_up(self) -> Bools:
        """(P,) beyond the bound in height."""
        return self.beyond(self.pairs.up, self.bounds.up)

    @cached_property
    def off_size(self) -> Bools:
        """(P,) beyond the bound in size."""
        return self.beyond(self.pairs.errors[:, 1], self.bounds.size)

    @cached_property
    def turned(self) -> Floats:
        """(P,) radians, NaN in classes without a front."""
        return self.pairs.turned(self.profile)

    @cached_property
    def flips(self) -> Bools:
        """(P,) turned by a quarter or more although the class has a front."""
        return self.pairs.flips(self.profile)

    @cached_property
    def swapped(self) -> Bools:
        """(N,) size errors whose width and length fit the truth's the other way round."""
        said, true = self.predictions.box[self.pair_row], self.truths.box[self.pair_truth]
        with np.errstate(divide="ignore", invalid="ignore"):
            straight = np.abs(np.log(said[:, 3:5] / true[:, 3:5])).sum(axis=1)
            crossed = np.abs(np.log(said[:, 3:5] / true[:, 4:2:-1])).sum(axis=1)
        return self.of_pairs(self.off_size & (crossed < straight))[: len(self.predictions)]

    @cached_property
    def votes(self) -> Votes:
        """Of other epochs."""
        row = self.pair_row
        said, true = self.predictions.box[row], self.truths.box[self.pair_truth]
        return votes_of(said, true, self.predictions.frame[row], self.pairs.label, self.epochs)

    @cached_property
    def alone(self) -> Bools:
        """(N,) false, and overlapping no truth."""
        return self.wrong & ~overlapping_truth(self)

    @cached_property
    def gaps(self) -> Gaps:
        """Of the boxes alone: which stand in gaps of true boxes' tracks."""
        return gaps_of(self.predictions, self.alone, self.pair_row, middles_of(self.truths, self.frames))

    @cached_property
    def bins(self) -> RangeBins:
        """Range bins in which a class fails."""
        boxes = self.predictions, self.wrong, self.counted, self.truths, self.missed
        flagged = BinCounts.of(*boxes).flagged() if self.usual is None else self.usual.bins
        return flagged.of_boxes(*boxes)

    @cached_property
    def sectors(self) -> SectorDropouts:
        """Sectors that fall silent."""
        if self.usual is not None:
            return self.usual.sectors.of_truths(self.truths, self.missed, self.first_frame)
        view = SectorView.of(self.truths, self.silent, self.recorded, self.frames, self.n_points)
        return view.dead().of_truths(self.truths, self.missed)

    @cached_property
    def unlabelled(self) -> tuple[Floats, Bools]:
        """(N,) suspicion and mask of T20; needs the error probability."""
        assert self.error_proba is not None
        return _unlabelled(self, self.error_proba)

    @cached_property
    def shifted(self) -> tuple[Floats, Bools]:
        """(N,) suspicion and mask of T21."""
        offset = (self.off_along & self.further) | (self.off_across & ~self.further) | self.off_up
        return _shifted(self, offset)

    @cached_property
    def flipped(self) -> tuple[Floats, Bools]:
        """(N,) suspicion and mask of T22."""
        return _flipped(self)


# --- suspected labels ---------------------------------------------------------------------------------------


def overlapping_truth(e: RoadEvidence) -> Bools:
    """(N,) predictions whose footprint overlaps a truth of any class."""
    said, true = e.predictions, e.truths
    (pairs,) = footprints(said.box, said.frame, true.box, true.frame, bev_iou_aligned)
    made = np.zeros(len(said), np.bool_)
    made[pairs.left[pairs.value >= LEAST_OVERLAP]] = True
    return made


def _unlabelled(e: RoadEvidence, error_proba: Floats) -> tuple[Floats, Bools]:
    """A false prediction that overlaps no truth and looks like a right one, here and in other epochs.

    Odds by its error probability, by all recorded boxes (`detection.objects`) and by a gap in a true box's
    track are multiplied.
    """
    rows = np.flatnonzero(e.alone)
    found = e.predictions.take(rows)
    said, box = found.score, found.box.astype(np.float64)
    votes = np.zeros(len(rows))
    for other in e.epochs:
        near = nearest_of_class(found.frame, found.label, box, other)
        there = np.flatnonzero(near >= 0)
        votes[there] += other.score[near[there]] >= said[there] / 2
    belief = np.clip(1 - error_proba[rows], 1e-6, 1 - 1e-6)
    # Each vote counts as one of a coin tossed with a flat prior.
    odds = belief / (1 - belief) * (votes + 1) / (len(e.epochs) - votes + 1)
    suspicion, mask = np.full(len(e.predictions), np.nan), np.zeros(len(e.predictions), np.bool_)
    if e.objects is not None:
        odds *= np.nan_to_num(e.objects[rows], nan=1.0)
    in_gap = e.gaps.near
    odds *= np.where(in_gap[rows], e.gaps.odds, 1.0)
    suspicion[rows] = odds / (1 + odds)
    mask[rows] = (error_proba[rows] <= e.likely) & (votes * 2 >= len(e.epochs))
    if e.believed is not None:
        mask &= e.believed
    if e.gaps.by_chance <= MOST_BY_CHANCE * in_gap.sum():
        mask |= in_gap
    return suspicion, mask


def _belief(e: RoadEvidence, rows: Ints) -> Floats:
    """(P,) how far a prediction is trusted: 1 - error probability, or its score."""
    if e.error_proba is None:
        return np.clip(e.predictions.score[rows].astype(np.float64), 0, 1)
    return 1 - e.error_proba[rows]


def _shifted(e: RoadEvidence, offset: Bools) -> tuple[Floats, Bools]:
    """The offset is far beyond the usual, steadily so in other epochs, and the prediction is believed.

    `offset` (P,) are the pairs of T01 to T03.
    """
    pairs, votes = e.pairs, e.votes
    usual = (UsualOffsets.fit(pairs) if e.usual is None else e.usual.offsets).of(pairs)
    surprise = votes.steady / np.maximum(usual, 0.05)
    suspicion = np.full(len(e.predictions), np.nan)
    suspicion[e.pair_row] = _belief(e, e.pair_row) * surprise / (surprise + DEVIATIONS)
    if votes.epochs >= AGREEING_EPOCHS:
        agreed = (votes.place >= AGREEING_EPOCHS) & (votes.place * 2 > votes.seen)
    else:
        agreed = (surprise > DEVIATIONS) & (_belief(e, e.pair_row) > 1 - e.likely)
    mask = np.zeros(len(e.predictions), np.bool_)
    mask[e.pair_row[offset & agreed]] = True
    return suspicion, mask


def _flipped(e: RoadEvidence) -> tuple[Floats, Bools]:
    """The motion, or the other epochs, have the prediction's heading.

    Epochs agree on a heading that was learned by chance too: their votes count as far as the headings of the
    class are usually right.
    """
    pairs, votes, asked = e.pairs, e.votes, e.flips
    # How far the front is told from the rear in a class: 1 always, 0 not better than a coin.
    share_flipped = e.bounds.flipped.rows(pairs.label)
    known = np.maximum(1 - 2 * share_flipped, 0.0)
    towards = np.full(len(e.pair_row), np.nan)
    if e.true_velocity is not None:
        velocity = e.true_velocity[e.pair_truth].astype(np.float64)
        speed = np.hypot(velocity[:, 0], velocity[:, 1])
        heading = np.arctan2(velocity[:, 1], velocity[:, 0])
        moving = np.nan_to_num(speed) > MOVING
        towards[moving] = np.cos(heading - e.predictions.box[e.pair_row, 6].astype(np.float64))[moving]
    share = np.divide(votes.heading, votes.seen, out=np.full(len(asked), 0.5), where=votes.seen > 0)
    opposite = np.clip(pairs.errors[:, 2] / np.pi * 2 - 1, 0, 1)
    # The motion decides where there is one; else the epochs, one doubtful vote added to either side.
    smoothed = (votes.heading + 1.0) / (votes.seen + 2.0)
    heading_share = np.where(np.isnan(towards), known * smoothed, (1 + np.nan_to_num(towards)) / 2)
    suspicion = np.full(len(e.predictions), np.nan)
    suspicion[e.pair_row[asked]] = (heading_share * (0.5 + 0.25 * (opposite + _belief(e, e.pair_row))))[asked]
    voted = (votes.heading >= AGREEING_EPOCHS) & (share > 0.5) & (known > 0.5)
    sure = np.where(np.isnan(towards), voted, np.nan_to_num(towards) > 0.5)
    mask = np.zeros(len(e.predictions), np.bool_)
    mask[e.pair_row[asked & sure]] = True
    return suspicion, mask
