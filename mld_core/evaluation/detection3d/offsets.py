"""How far matched 3D boxes lie off their truths, and how far such boxes usually do in the pass.

A robust bound is the class median + 3 x 1.4826 x MAD over the matched pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection3d.bins import polar
from mld_core.evaluation.metrics.boxes import Bools, ByClass, Floats, FrameState, Ints
from mld_core.evaluation.metrics.nuscenes import NuscenesProfile, tp_errors
from mld_core.evaluation.statistics.folds import FOLDS, assign_folds
from mld_core.evaluation.statistics.warned import filters_kept

if TYPE_CHECKING:
    from mld_core.evaluation.detection3d.evidence import RoadEvidence

MAD_TO_SIGMA = 1.4826
DEVIATIONS = 3.0
OFFSET_FLOOR = 0.5
"""Metres below which no offset is an error: nuScenes' smallest matching distance."""

LEAST_PAIRS = 50
"""Matched pairs below which offsets are judged by the class alone."""


@dataclass(frozen=True)
class Offsets(FrameState):
    """(P,) differences of matched pairs.

    Attributes:
        along: metres along the ray from the sensor, absolute.
        across: metres across it, absolute.
        up: metres of height, absolute.
        flat: distance in the ground plane.
        errors: (P, 4) as `metrics.nuscenes.tp_errors`.
        label: class.
        columns: (P, 5 or 6) what the usual offset depends on: see `UsualOffsets`.
        fold: fold of the frame.
    """

    summed = ()

    along: Floats
    across: Floats
    up: Floats
    flat: Floats
    errors: Floats
    label: Ints
    columns: Floats
    fold: NDArray[np.int8]

    def turned(self, profile: NuscenesProfile) -> Floats:
        """(P,) radians, NaN in classes without a front."""
        return np.where(profile.oriented[self.label], self.errors[:, 2], np.nan)

    def flips(self, profile: NuscenesProfile) -> Bools:
        """(P,) turned by a quarter or more although the class has a front."""
        return (self.turned(profile) >= np.pi / 2) & (profile.period[self.label] > 1.5 * np.pi)

    def velocity(self, profile: NuscenesProfile) -> Floats:
        """(P,) m/s by which the velocity is off, NaN in classes that do not move."""
        return np.where(profile.moves[self.label], self.errors[:, 3], np.nan)


def offsets_of(e: RoadEvidence) -> Offsets:
    """Differences of the matched pairs, seen from the sensor."""
    row, truth = e.pair_row, e.pair_truth
    said, true = e.predictions.box[row].astype(np.float64), e.truths.box[truth].astype(np.float64)
    gap = said[:, :3] - true[:, :3]
    far = np.hypot(true[:, 0], true[:, 1])
    ray = np.divide(
        true[:, :2], far[:, None], out=np.tile([1.0, 0.0], (len(true), 1)), where=far[:, None] > 0
    )
    along = np.abs((gap[:, :2] * ray).sum(axis=1))
    across = np.abs(gap[:, 1] * ray[:, 0] - gap[:, 0] * ray[:, 1])
    label = e.truths.label[truth]
    errors = tp_errors(
        said,
        true,
        e.profile.period[label],
        e.velocity[row] if e.velocity is not None else None,
        e.true_velocity[truth] if e.true_velocity is not None else None,
    )
    distance, azimuth = polar(said)
    # Of a list of several types mypy tries every way to stack them: a tenth of its time.
    columns: list[NDArray[Any]] = [distance, azimuth, label]
    columns += [np.log(np.maximum(said[:, 3:6], 1e-3)).sum(axis=1), e.predictions.score[row]]
    if e.n_points is not None:
        columns.append(np.log1p(np.maximum(e.n_points[truth], 0)))
    frame = e.predictions.frame[row] + e.first_frame
    return Offsets(
        along,
        across,
        np.abs(gap[:, 2]),
        np.hypot(gap[:, 0], gap[:, 1]),
        errors,
        label,
        np.column_stack(columns),
        assign_folds(frame, "0") if len(frame) else np.empty(0, np.int8),
    )


def robust_bounds(values: Floats, label: Ints, floor: float = 0.0) -> ByClass:
    """Class median + 3 x 1.4826 x MAD, at least `floor`; NaN values are left out."""

    def bound(known: Floats) -> float:
        middle = float(np.median(known))
        return max(middle + DEVIATIONS * MAD_TO_SIGMA * float(np.median(np.abs(known - middle))), floor)

    return ByClass.of(label, values, bound, np.inf)


def robust_bound(values: Floats, label: Ints, floor: float = 0.0) -> Floats:
    """(P,) the bound of each value's class.

    Example:
        >>> robust_bound(np.array([1.0, 2, 3, 4, 5]), np.zeros(5, int)).round(2).tolist()[0]
        7.45
    """
    return robust_bounds(values, label, floor).rows(label)


@dataclass(frozen=True)
class Bounds:
    """What each class is judged by, read off the matched pairs of a pass.

    Attributes:
        along: Metres along the sensor's ray from which on an offset is an error.
        across: Likewise across it.
        up: Likewise of height.
        size: Likewise 1 - aligned IoU.
        yaw: Likewise radians, of pairs that are not turned round.
        velocity: Likewise m/s.
        flipped: Share of the pairs that are turned round.
    """

    along: ByClass
    across: ByClass
    up: ByClass
    size: ByClass
    yaw: ByClass
    velocity: ByClass
    flipped: ByClass

    @classmethod
    def of(cls, pairs: Offsets, profile: NuscenesProfile) -> Bounds:
        """Those of the pairs of a pass."""
        turned, label = pairs.turned(profile), pairs.label
        return cls(
            robust_bounds(pairs.along, label, OFFSET_FLOOR),
            robust_bounds(pairs.across, label, OFFSET_FLOOR),
            robust_bounds(pairs.up, label),
            robust_bounds(pairs.errors[:, 1], label),
            robust_bounds(np.where(turned < np.pi / 2, turned, np.nan), label),
            robust_bounds(pairs.velocity(profile), label),
            ByClass.of(label, pairs.flips(profile).astype(np.float64), np.mean, 0.0),
        )


@dataclass(frozen=True)
class UsualOffsets:
    """How far such a prediction usually lies off its truth, from what does not see the truth.

    Cross-fitted boosted trees over range, azimuth, class, size, score and points of the truth, on the log of
    the distance; the class median with fewer than 50 pairs.

    Attributes:
        of_class: That median, of the log; None where there are trees.
        of_fold: For each fold trees that have not seen it, or a number where too few pairs are left for them.
    """

    of_class: ByClass | None
    of_fold: tuple[Any, ...] = ()

    @classmethod
    def fit(cls, pairs: Offsets) -> UsualOffsets:
        """From the matched pairs of a pass."""
        from sklearn.ensemble import HistGradientBoostingRegressor

        target = np.log(np.maximum(pairs.flat, 0.01))
        if len(target) < LEAST_PAIRS:
            return cls(ByClass.of(pairs.label, target, np.median, 0.0))
        made: list[Any] = []
        for fold in range(FOLDS):
            rest = np.flatnonzero(pairs.fold != fold)
            if len(rest) == len(target) or len(rest) < LEAST_PAIRS:
                made.append(float(np.median(target)))
                continue
            trees = HistGradientBoostingRegressor(
                max_iter=60, max_leaf_nodes=15, min_samples_leaf=40, early_stopping=False, random_state=0
            )
            with filters_kept():
                trees.fit(pairs.columns[rest], target[rest])
            made.append(trees)
        return cls(None, tuple(made))

    def of(self, pairs: Offsets) -> Floats:
        """(P,) metres."""
        if self.of_class is not None:
            return np.exp(self.of_class.rows(pairs.label))
        made = np.empty(len(pairs.label))
        for fold, model in enumerate(self.of_fold):
            held = np.flatnonzero(pairs.fold == fold)
            if len(held):
                made[held] = model if isinstance(model, float) else model.predict(pairs.columns[held])
        return np.exp(made)
