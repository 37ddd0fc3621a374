"""What labels show by themselves: boxes drawn twice, outside the image, tiny or of an improbable size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import box_size
from mld_core.evaluation.metrics.boxes import (
    Bools,
    Floats,
    Ints,
    Pairs,
    Truths,
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

TYPICAL = 0.9
"""Share of the pairs of classes that are confused no more than by chance; the others are confusable."""

_LEAST = 1e-6
_EDGE = 1e-6


NOT_IN_ROUNDS = "an evaluation in rounds does not compute it (engine='memory' does)"


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


@dataclass(frozen=True)
class Spread:
    """The median of each class and the usual deviation from it, NaN where nothing is known.

    Attributes:
        label: (K,) classes, rising.
        middle: (K,) medians.
        spread: (K,) median deviations, as standard deviations of a Gaussian.
        count: (K,) values.
    """

    label: Ints
    middle: Floats
    spread: Floats
    count: Ints

    @classmethod
    def of(cls, label: Ints, values: Floats) -> Spread:
        """Of (N,) values, NaN left out.

        Example:
            >>> made = Spread.of(np.array([0, 0, 0, 4]), np.array([1.0, 2, 3, np.nan]))
            >>> made.middle_of(np.array([0, 4, 9])).tolist(), round(float(made.spread[0]), 4)
            ([2.0, nan, nan], 1.4826)
        """
        known = np.flatnonzero(~np.isnan(values))
        known = known[np.argsort(label[known], kind="stable")]
        classes, starts = np.unique(label[known], return_index=True)
        parts = np.split(values[known], starts[1:]) if len(classes) else []
        middle = np.array([np.median(one) for one in parts])
        spread = [np.median(np.abs(one - here)) for one, here in zip(parts, middle, strict=True)]
        return cls(
            classes, middle, MAD_TO_SIGMA * np.array(spread), np.array([len(one) for one in parts], int)
        )

    def middle_of(self, label: Ints) -> Floats:
        """(N,) the median of each row's class."""
        return self._of(label, self.middle, np.nan)

    def spread_of(self, label: Ints) -> Floats:
        """(N,) the usual deviation of each row's class."""
        return self._of(label, self.spread, np.nan)

    def count_of(self, label: Ints) -> Floats:
        """(N,) the values of each row's class."""
        return self._of(label, self.count, 0)

    def _of(self, label: Ints, values: NDArray[Any], otherwise: float) -> Floats:
        place = np.searchsorted(self.label, label)
        there = (
            np.append(self.label, -1)[place] == label if len(self.label) else np.zeros(len(label), np.bool_)
        )
        return np.where(there, np.append(values, otherwise)[np.where(there, place, len(values))], otherwise)


@dataclass(frozen=True)
class Confused:
    """How often boxes say another class than the truth's, in a pass.

    Attributes:
        rate: (K, K) of each truth's class and each class that is said.
        usual: That of the usual pair.
        least: Score (see `evidence.confusion_scores`) from which on a label is suspected.
    """

    rate: Floats
    usual: float
    least: float


@dataclass(frozen=True)
class Usual:
    """What is usual in a pass of which a part is looked at.

    Attributes:
        sizes: Log size and log aspect of the truths.
        overlaps: Of the truths with the boxes on them (3D: of right boxes with their truths).
        small: (K,) area below which one in ten truths of a class lie.
        confused: How often classes are confused; None where that is not known.
        absent: Needs of diagnoses that nothing is known of in a part.
        own: What the diagnoses of the kind of boxes read, see `profile.Told`.
    """

    sizes: tuple[Spread, Spread]
    overlaps: Spread
    small: Floats
    confused: Confused | None
    absent: tuple[str, ...]
    own: Any = None

    def small_of(self, label: Ints) -> Floats:
        """(N,) that area of each row's class."""
        there = (label >= 0) & (label < len(self.small))
        return np.where(there, self.small[np.where(there, label, 0)], -np.inf)


def sizes_of(truths: Truths) -> tuple[Floats, Floats]:
    """(G,) log size and log aspect of the truths that count, NaN of the others."""
    size, aspect = (
        np.where(truths.counts, np.log(np.maximum(value, _LEAST)), np.nan) for value in box_size(truths.box)
    )
    return size, aspect


def label_faults(records: BoxRecords, usual: Sequence[Spread] | None = None) -> LabelFaults:
    """Look at the truths of a pass that count; `usual` as `oddity`."""
    truths = records.truths
    twice, duplicate = drawn_twice(truths)
    odd = oddity(truths, usual)
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


def oddity(truths: Truths, usual: Sequence[Spread] | None = None) -> Floats:
    """(G,) robust deviations of log size and log aspect from those of the class, the larger of the two.

    Args:
        truths: Of a pass, or of a part of it.
        usual: Of both, in the whole pass; None: `truths` are all of them.
    """
    made, label = np.zeros(len(truths)), truths.label
    values = sizes_of(truths)
    told = usual or [Spread.of(label, one) for one in values]
    for log, one in zip(values, told, strict=True):
        made = np.fmax(made, np.abs(log - one.middle_of(label)) / np.maximum(one.spread_of(label), 0.05))
    return np.where(told[0].count_of(label) >= FEWEST, np.nan_to_num(made), 0.0)


# -- how often classes are confused ----------------------------------------------------------------------


def confusion_scores(told: Floats, rate: Floats) -> Floats:
    """How suspect labels are whose boxes say another class: the more, the rarer that is."""
    return np.asarray(told - 2 * np.log(np.maximum(rate, _EDGE)))


def mislabelled(rate: Floats, usual: float, weight: Floats | None = None) -> int:
    """How many of the truths whose boxes say another class are mislabelled, at least."""
    share = np.minimum(1.0, usual / np.maximum(rate, _EDGE))
    return at_least(float((share if weight is None else share * weight).sum()))


def at_least(expected: float) -> int:
    """What a count of that expectation hardly falls below: two deviations of a Poisson count less."""
    return max(int(expected - 2 * expected**0.5), 0)


def class_sizes(label: Ints, n_class: int) -> Ints:
    """(K,) truths of each class."""
    return np.bincount(label[(label >= 0) & (label < n_class)], minlength=n_class)


def confusions(
    label: Ints, said: Ints, over: Bools, sizes: Ints, weight: Floats | None = None
) -> tuple[Floats, float]:
    """(K, K) how often a truth of a class is said to be another one, and the rate of the usual pair.

    Args:
        label: (G,) classes of truths.
        said: (G,) classes that boxes say.
        over: (G,) truths whose boxes say another class rather.
        sizes: (K,) truths of each class.
        weight: (G,) how many truths each stands for.
    """
    n_class = len(sizes)
    inside = over & (label >= 0) & (label < n_class) & (said >= 0) & (said < n_class)
    pair = np.zeros((n_class, n_class))
    np.add.at(pair, (label[inside], said[inside]), 1 if weight is None else weight[inside])
    known = sizes[:, None]
    different = ~np.eye(n_class, dtype=np.bool_) & (known > 0)
    shares = np.sort((pair / np.maximum(known, 1))[different])
    usual = float(shares[: int(np.ceil(TYPICAL * len(shares)))].mean()) if len(shares) else 0.0
    return (pair + 1) / (known + n_class), usual


def rate_of(rates: Floats, label: Ints, said: Ints) -> Floats:
    """(G,) how often a truth of that class is said to be that other one."""
    most = len(rates) - 1
    return np.asarray(rates[np.clip(label, 0, most), np.clip(said, 0, most)])
