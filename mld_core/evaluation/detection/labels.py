"""What labels show by themselves: boxes drawn twice, outside the image, tiny or of an improbable size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import box_size
from mld_core.evaluation.metrics.boxes import (
    Bools,
    Floats,
    Pairs,
    Truths,
    by_class,
    footprints,
    image_pairs,
)
from mld_core.geometry.iou import bev_iou_aligned

MAD_TO_SIGMA = 1.4826
TWICE_IOU = 0.3
"""Overlap of two truths of a class from which on they are compared."""

SAME_IOU = 0.7
"""Overlap from which on two truths are one object drawn twice."""

INSIDE = 0.95
"""Share of a truth inside another of its class, half its size or more, likewise."""

OUTSIDE = 0.5
TINY_PIXELS = 2.0
IMPROBABLE = 6.0
"""Robust deviations of the logarithm of size or aspect from the class's median."""

FEWEST = 20
"""Truths of a class that tell what is usual."""


@dataclass(frozen=True)
class LabelFaults:
    """(G,) truths each.

    Attributes:
        twice: Overlap with another truth of its class, NaN without; the one of the two that stands later.
        duplicate: Drawn twice.
        odd: Robust deviations of size or aspect from the class's usual one.
        improbable: Outside the image, tiny, no box at all, or of an improbable size or aspect.
    """

    twice: Floats
    duplicate: Bools
    odd: Floats
    improbable: Bools


def label_faults(records: BoxRecords) -> LabelFaults:
    """Look at the truths of a pass that count."""
    truths = records.truths
    twice, duplicate = drawn_twice(truths)
    odd = oddity(truths)
    wrong = truths.counts & (odd > IMPROBABLE)
    if truths.box.shape[1] == 4:
        wide = truths.box.astype(np.float64)
        side = (wide[:, 2:] - wide[:, :2]).min(axis=1, initial=np.inf)
        wrong |= truths.counts & ((side < TINY_PIXELS) | (records.outside > OUTSIDE))
    return LabelFaults(twice, duplicate, odd, np.asarray(wrong))


def drawn_twice(truths: Truths) -> tuple[Floats, Bools]:
    """(G,) largest overlap with an earlier truth of the class (NaN below 0.3), and whether the two are one.

    Example:
        >>> box, zero = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10.0]]), np.zeros(3, np.int64)
        >>> [part.tolist() for part in drawn_twice(Truths(zero, zero, box, zero > 0, zero > 0))]
        [[nan, 0.9, nan], [False, True, False]]
    """
    box, frame = truths.box, truths.frame
    pairs = (
        image_pairs(truths, frame, truths, frame, TWICE_IOU)
        if box.shape[1] == 4
        else footprints(box, frame, box, frame, bev_iou_aligned)[0]
    )
    counts = truths.counts
    mine = (pairs.left > pairs.right) & (truths.label[pairs.left] == truths.label[pairs.right])
    pairs = pairs.take(mine & counts[pairs.left] & counts[pairs.right] & (pairs.value >= TWICE_IOU))
    made = np.zeros(len(truths))
    np.maximum.at(made, pairs.left, pairs.value)
    same = np.zeros(len(truths), np.bool_)
    same[pairs.left[(pairs.value >= SAME_IOU) | (_nested(box, pairs) & (pairs.value >= 0.5))]] = True
    return np.where(made > 0, made, np.nan), same


def _nested(box: NDArray[np.floating], pairs: Pairs) -> Bools:
    """(P,) one of the two lies inside the other."""
    area = box_size(box)[0] if box.shape[1] == 4 else box[:, 3].astype(np.float64) * box[:, 4]
    a, b = area[pairs.left], area[pairs.right]
    shared = pairs.value * (a + b) / (1 + pairs.value)
    return np.asarray(shared >= INSIDE * np.minimum(a, b))


def oddity(truths: Truths) -> Floats:
    """(G,) robust deviations of log size and log aspect from those of the class, the larger of the two."""
    made = np.zeros(len(truths))
    label = truths.label
    enough = by_class(label, np.where(truths.counts, 1.0, np.nan), np.sum, 0.0) >= FEWEST
    for value in box_size(truths.box):
        log = np.where(truths.counts, np.log(np.maximum(value, _LEAST)), np.nan)
        middle = by_class(label, log, np.median, np.nan)
        spread = MAD_TO_SIGMA * by_class(label, np.abs(log - middle), np.median, np.nan)
        made = np.fmax(made, np.abs(log - middle) / np.maximum(spread, 0.05))
    return np.where(enough, np.nan_to_num(made), 0.0)


_LEAST = 1e-6
