"""Gaps in tracks of true boxes: labelled in the frame before and the one after, and not in the one between.

Frames are in their order of time. The middle between two places is where the object is seen, also from a
vehicle that drives: a steady motion of either cancels out, a turn by 5 degrees moves it by 0.4 % of its
distance. So no pose is needed. How far a gap is to be believed is read off the pass itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, Predictions, Truths

ALIKE = 0.05
"""Most by which the logarithms of a track's sizes differ: whoever follows an object gives it one size."""

FARTHEST = 24.0
"""Metres between the places before and after."""

NEAR = 2.0
"""Metres from which a box is the one that is looked for, as nuScenes counts."""

OTHERS = range(5, 15)
"""Frames later, of the last ones the first, whose gaps a box is near by chance only."""


@dataclass(frozen=True)
class Middles:
    """Middles between alike truths of the frame before and the one after.

    Attributes:
        frames: of the pass.
        frame: (M,) the frame between.
        label: (M,) their class.
        place: (M, 2) metres.
        gap: (M,) no truth stands there, nor in the middle between either of the two and another.
    """

    frames: int
    frame: Ints
    label: Ints
    place: Floats
    gap: Bools


@dataclass(frozen=True)
class Gaps:
    """What gaps say of some boxes.

    Attributes:
        near: (N,) of its class and closer than 2 m to a gap.
        odds: by how much an object is likelier there than what is none; 1 where gaps tell nothing.
        by_chance: how many would be near one by chance.
    """

    near: Bools
    odds: float
    by_chance: float


def middles_of(truths: Truths, frames: int) -> Middles:
    """Those of a pass of so many frames."""
    order = np.argsort(truths.frame, kind="stable")
    starts = np.searchsorted(truths.frame[order], np.arange(frames + 1))
    of = [order[a:b] for a, b in pairwise(starts)]
    place = truths.box[:, :2].astype(np.float64)
    size = np.log(np.maximum(truths.box[:, 3:6].astype(np.float64), 1e-3))
    made: list[tuple[Ints, Ints, Floats, Bools]] = []
    for frame in range(1, frames - 1):
        before, here, after = of[frame - 1], of[frame], of[frame + 1]
        if not len(before) or not len(after):
            continue
        same = (truths.label[before][:, None] == truths.label[after]) & (truths.label[after] >= 0)
        same &= np.abs(size[before][:, None] - size[after]).max(axis=2) <= ALIKE
        same &= np.linalg.norm(place[before][:, None] - place[after], axis=2) <= FARTHEST
        first, last = np.nonzero(same)
        middle, label = (place[before[first]] + place[after[last]]) / 2, truths.label[before[first]]
        there = np.linalg.norm(middle[:, None] - place[here], axis=2) < NEAR
        taken = (there & (label[:, None] == truths.label[here])).any(axis=1)
        told = np.isin(first, first[taken]) | np.isin(last, last[taken])
        made.append((np.full(len(middle), frame), label.astype(np.int64), middle, ~told))
    if not made:
        none = np.zeros(0, np.int64)
        return Middles(frames, none, none, np.zeros((0, 2)), np.zeros(0, np.bool_))
    frame_of, label_of, places, gap = (np.concatenate(part) for part in zip(*made, strict=True))
    return Middles(frames, frame_of, label_of, places, gap)


def gaps_of(said: Predictions, alone: Bools, right: Ints, middles: Middles) -> Gaps:
    """What the gaps say of predictions.

    Args:
        said: (N,) predictions.
        alone: (N,) those that are false and overlap no truth.
        right: rows of those on a truth of their class: how often an object has a truth before and after.
        middles: of the pass.
    """
    rows, gap = np.flatnonzero(alone), middles.gap
    near = np.zeros(len(said), np.bool_)
    near[rows] = _near(said.take(rows), middles, gap, 0)
    others = [later for later in OTHERS if later % max(middles.frames, 1)] or [0]  # of few frames no own one
    by_chance = float(np.mean([_near(said.take(rows), middles, gap, later).sum() for later in others]))
    followed = _near(said.take(right), middles, np.ones(len(gap), np.bool_), 0).mean() if len(right) else 0.0
    chance = (by_chance + 1) / (len(rows) + 2)
    return Gaps(near, max(float(followed) / chance, 1.0), by_chance)


def _near(said: Predictions, middles: Middles, use: Bools, later: int) -> Bools:
    """(N,) predictions with a middle of their class close to them, so many frames later."""
    made, rows = np.zeros(len(said), np.bool_), np.flatnonzero(use)
    if not len(rows) or not len(said):
        return made
    wide = int(max(middles.label.max(), said.label.max())) + 1
    key = middles.frame[rows] * wide + middles.label[rows]
    rows = rows[np.argsort(key, kind="stable")]
    key = np.sort(key)
    asked = (said.frame.astype(np.int64) + later) % middles.frames * wide + said.label
    first, last = np.searchsorted(key, asked, "left"), np.searchsorted(key, asked, "right")
    count = np.where(said.label >= 0, last - first, 0)
    of = np.repeat(np.arange(len(said)), count)
    at = rows[np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)]
    close = np.linalg.norm(said.box[of, :2].astype(np.float64) - middles.place[at], axis=1) < NEAR
    made[of[close]] = True
    return made
