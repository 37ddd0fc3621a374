"""What the other epochs say of a matched pair: whether they are with the prediction or with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.boxes import Floats, Ints, Pairs, Predictions, near_pairs
from mld_core.geometry.boxes import wrap_yaw

AGREEMENT_METRES = 0.5
SEARCH_METRES = 4.0


@dataclass(frozen=True)
class Votes:
    """Of each matched pair, over the other epochs.

    Attributes:
        epochs: how many epochs there are.
        seen: (P,) epochs with a box of the class near the prediction or the truth.
        place: (P,) epochs whose box lies within 0.5 m of the prediction and nearer to it than to the truth.
        heading: (P,) epochs whose box has the prediction's heading rather than the truth's.
        steady: (P,) mean over epochs and this one of the offset from the truth: its length, metres.
    """

    epochs: int
    seen: Ints
    place: Ints
    heading: Ints
    steady: Floats


def votes_of(
    boxes: NDArray[np.floating],
    truths: NDArray[np.floating],
    frame: Ints,
    label: Ints,
    epochs: Sequence[Predictions],
) -> Votes:
    """Count the other epochs that are with the prediction, and those with the truth.

    Args:
        boxes: (P, 7) the predictions of the pairs.
        truths: (P, 7) their truths.
        frame: (P,) their frames.
        label: (P,) their class.
        epochs: the predictions of each other epoch, of the same frames.
    """
    seen, place, heading = (np.zeros(len(frame), np.int64) for _ in range(3))
    said, true = boxes.astype(np.float64), truths.astype(np.float64)
    total = said[:, :2] - true[:, :2]
    for other in epochs:
        found = nearest_of_class(frame, label, said, other)
        rows = np.flatnonzero(found >= 0)
        box = other.box[found[rows]].astype(np.float64)
        to_said = np.hypot(*(box[:, :2] - said[rows, :2]).T)
        to_true = np.hypot(*(box[:, :2] - true[rows, :2]).T)
        seen[rows] += 1
        place[rows] += (to_said < AGREEMENT_METRES) & (to_said < to_true)
        heading[rows] += np.abs(wrap_yaw(box[:, 6] - said[rows, 6])) < np.abs(
            wrap_yaw(box[:, 6] - true[rows, 6])
        )
        total[rows] += box[:, :2] - true[rows, :2]
    return Votes(len(epochs), seen, place, heading, np.hypot(*total.T) / (1 + seen))


def nearest_of_class(frame: Ints, label: Ints, box: Floats, other: Predictions) -> Ints:
    """(P,) row of the nearest prediction of the class within 2 m in another epoch, -1 for none."""
    top = 1 + max(int(label.max(initial=0)), int(other.label.max(initial=0)))
    target = other.frame * top + other.label
    order = np.argsort(target, kind="stable")
    near: Pairs = near_pairs(box, frame * top + label, other.box[order], target[order], SEARCH_METRES / 2)
    made = np.full(len(frame), -1, np.int64)
    by_distance = np.lexsort((-near.value, near.left))
    made[near.left[by_distance]] = order[near.right[by_distance]]
    return made
