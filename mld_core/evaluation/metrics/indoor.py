"""Figures of rooms (SUN RGB-D, ScanNet): average precision and recall at two overlaps of 3D boxes.

As MMDetection3D 1.4's `indoor_eval` has them, which follows VoteNet's authors and PASCAL VOC: by falling
score a prediction finds the truth of its class and frame that it overlaps most, if by more than the bound
and if no other found it before; else it is false, even where it overlaps another truth enough. AP is the
area under the falling envelope of precision over recall. Means are over the classes that have truths; of a
class that is predicted and has none `indoor_eval` makes NaN of the whole mean. Ignored truths, which it
does not know, take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.boxes import (
    Bools,
    FrameState,
    Ints,
    Predictions,
    Truths,
    footprints,
    ordinal,
)
from mld_core.evaluation.metrics.matching import best_pairs
from mld_core.geometry.iou import iou_3d_aligned

OVERLAPS = (0.25, 0.5)


@dataclass(frozen=True)
class IndoorState(FrameState):
    """What the figures of some frames are computed from; states of further frames are appended with `merge`.

    Attributes:
        label: (N,) predicted classes.
        score: (N,) scores.
        right: (N, 2) whether it found a truth at each of `OVERLAPS`.
        truths: (K,) truths of each class.
        rooms: Whether all frames are of rooms; no figures else.
    """

    label: Ints
    score: NDArray[np.floating]
    right: Bools
    truths: Ints
    rooms: bool = True

    @classmethod
    def of(cls, predictions: Predictions, truths: Truths, n_class: int) -> IndoorState:
        """The state of some frames."""
        known = np.flatnonzero((predictions.label >= 0) & (predictions.label < n_class))
        real = truths.counts & (truths.label >= 0) & (truths.label < n_class)
        found, true = predictions.take(known), truths.take(real)
        (pairs,) = footprints(found.box, found.frame, true.box, true.frame, iou_3d_aligned)
        own = found.label[pairs.left] == true.label[pairs.right]
        best, value = best_pairs(pairs, own, len(found))
        right = np.zeros((len(found), len(OVERLAPS)), np.bool_)
        for k, overlap in enumerate(OVERLAPS):
            rows = np.flatnonzero(value > overlap)
            rows = rows[np.lexsort((rows, -found.score[rows].astype(np.float64), best[rows]))]
            right[rows[ordinal(best[rows]) == 0], k] = True
        return cls(found.label, found.score, right, np.bincount(true.label, minlength=n_class))

    @classmethod
    def none(cls, n_class: int, *, rooms: bool) -> IndoorState:
        """That of no boxes."""
        no = np.zeros((0, len(OVERLAPS)), np.bool_)
        return cls(np.empty(0, np.int64), np.empty(0, np.float32), no, np.zeros(n_class, np.int64), rooms)


def indoor_figures(states: Sequence[IndoorState]) -> dict[str, float | None]:
    """`indoor_map_25`, `indoor_mar_25`, `indoor_map_50`, `indoor_mar_50` of some frames.

    Nothing where a frame is of no room, and where no class has truths.

    Example:
        >>> one, right = np.zeros(2, int), np.array([[False, False], [True, False]])
        >>> found = indoor_figures([IndoorState(one, np.array([0.9, 0.8]), right, np.array([1]))])
        >>> found["indoor_map_25"], found["indoor_mar_25"], found["indoor_map_50"]
        (0.5, 1.0, 0.0)
    """
    state = IndoorState.merge(states) if states else IndoorState.none(0, rooms=False)
    classes = np.flatnonzero(state.truths)
    if not state.rooms or not len(classes):
        return {}
    order = np.argsort(-state.score.astype(np.float64), kind="stable")
    label, right = state.label[order], state.right[order]
    made: dict[str, float | None] = {}
    for k, overlap in enumerate(OVERLAPS):
        hits = [right[label == one, k] for one in classes]
        number = state.truths[classes].tolist()
        made[f"indoor_map_{100 * overlap:.0f}"] = float(np.mean([*map(_area, hits, number)]))
        made[f"indoor_mar_{100 * overlap:.0f}"] = float(
            np.mean([h.sum() / n for h, n in zip(hits, number, strict=True)])
        )
    return made


def _area(right: Bools, truths: int) -> float:
    """Area under the envelope of precision over recall, of predictions by falling score."""
    hits = np.flatnonzero(right)
    precision = np.arange(1, len(hits) + 1) / (hits + 1)
    return float(np.maximum.accumulate(precision[::-1]).sum() / truths)
