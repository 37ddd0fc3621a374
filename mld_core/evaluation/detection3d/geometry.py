"""How close upright 3D boxes are: events by centre distance in the ground plane, quality by IoU."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.boxes import (
    Bools,
    ByClass,
    Floats,
    Ints,
    Pairs,
    Predictions,
    Truths,
    by_class,
    footprints,
    measured,
    near_pairs,
)
from mld_core.evaluation.metrics.matching import SHARED_IOU
from mld_core.geometry.iou import bev_iou_aligned

EVENT_METRES = 2.0
ALIGNED_METRES = 0.5
ALIGNED_SHARE = 0.75


@dataclass(frozen=True)
class RoadBoxes:
    """Boxes [cx, cy, cz, w, l, h, yaw]: closeness is 1 - distance / 4 m, so 2 m is 0.5 and 3.6 m is 0.1.

    Attributes:
        usual: The median aligned IoU of each class in the pass of which some frames are looked at; None: it
            is that of the frames that are given.
    """

    usual: ByClass | None = None

    event = 0.5 + 1e-9
    background = 0.1

    def close(self, predictions: Predictions, truths: Truths) -> Pairs:
        """See `BoxGeometry.close`: centres less than 4 m apart."""
        reach = 2 * EVENT_METRES
        pairs = near_pairs(predictions.box, predictions.frame, truths.box, truths.frame, reach)
        return replace(pairs, value=1 - pairs.value / reach)

    def quality(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Floats:
        """See `BoxGeometry.quality`: aligned IoU, the boxes moved and turned onto each other."""
        return aligned_iou(predictions.box[pairs.left], truths.box[pairs.right])

    def aligned(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Bools:
        """See `BoxGeometry.aligned`: within 0.5 m, and 0.75 of the class's median aligned IoU."""
        value = self.quality(predictions, truths, pairs)
        label = truths.label[pairs.right]
        if self.usual is None:
            met = np.where(pairs.value > self.event, value, np.nan)
            usual = by_class(label, met, np.median, 1.0)
        else:
            usual = self.usual.rows(label)
        near = pairs.value > 1 - ALIGNED_METRES / (2 * EVENT_METRES)
        return np.asarray(near & (value >= ALIGNED_SHARE * usual))

    def met(self, predictions: Predictions, truths: Truths, truth: Ints) -> tuple[Ints, Floats]:
        """Class and aligned IoU of predictions whose truth, (N,) rows or -1, is close enough to be found."""
        rows = np.flatnonzero(truth >= 0)
        said, true = (box.astype(np.float64) for box in (predictions.box[rows], truths.box[truth[rows]]))
        dx, dy = said[:, 0] - true[:, 0], said[:, 1] - true[:, 1]
        close = 1 - np.sqrt(dx * dx + dy * dy) / (2 * EVENT_METRES) > self.event
        return truths.label[truth[rows[close]]], aligned_iou(said[close], true[close])

    def of_pass(self, predictions: Predictions, truths: Truths, truth: Ints) -> RoadBoxes:
        """See `BoxGeometry.of_pass`: with the medians of the classes, where it has none."""
        if self.usual is not None:
            return self
        return RoadBoxes(ByClass.of(*self.met(predictions, truths, truth), np.median, 1.0))

    def covered(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Floats:
        """See `BoxGeometry.covered`: share of the truth's footprint."""
        a, b = predictions.box[pairs.left], truths.box[pairs.right]
        iou = measured(bev_iou_aligned, a, b)
        own, other = (box[:, 3].astype(np.float64) * box[:, 4] for box in (a, b))
        return np.asarray(iou * (own + other) / (1 + iou) / np.where(other > 0, other, 1.0))

    def together(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Bools:
        """See `BoxGeometry.together`: the mean of the predictions' centres lies within 2 m of the truth."""
        size = np.maximum(np.bincount(pairs.right, minlength=len(truths)), 1)
        mean = [
            np.bincount(pairs.right, weights=predictions.box[pairs.left, k], minlength=len(truths)) / size
            for k in (0, 1)
        ]
        distance = np.hypot(mean[0] - truths.box[:, 0], mean[1] - truths.box[:, 1])
        return np.asarray(distance[pairs.right] < EVENT_METRES)

    def shared(self, predictions: Predictions, rows: Ints) -> Bools:
        """See `BoxGeometry.shared`: footprints."""
        box, frame = predictions.box, predictions.frame
        (pairs,) = footprints(box[rows], frame[rows], box, frame, bev_iou_aligned)
        made = np.zeros(len(rows), np.bool_)
        made[pairs.left[(rows[pairs.left] != pairs.right) & (pairs.value >= SHARED_IOU)]] = True
        return made


def aligned_iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    """(N,) IoU of 3D boxes put onto each other: of their sizes alone (nuScenes' scale error is 1 - it)."""
    sizes, others = a[:, 3:6].astype(np.float64), b[:, 3:6].astype(np.float64)
    shared = np.minimum(sizes, others).clip(0).prod(axis=1)
    whole = sizes.clip(0).prod(axis=1) + others.clip(0).prod(axis=1) - shared
    return np.asarray(shared / np.where(whole > 0, whole, 1.0))
