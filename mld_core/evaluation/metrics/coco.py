"""COCO average precision and recall, as pycocotools computes them, vectorised over images and thresholds.

Formulas: Lin et al., "Microsoft COCO: Common Objects in Context" (2014), and pycocotools `COCOeval`. Per
class and image, predictions by falling score (at most 100) take the free truth they overlap best; the ten IoU
thresholds and four area ranges are decided at once, as the bits of one integer for each truth and prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.boxes import (
    Bools,
    Floats,
    FrameState,
    Ints,
    Pairs,
    Predictions,
    Truths,
    columns_of,
    image_pairs,
    ordinal,
)
from mld_core.evaluation.metrics.matching import choose_counting, union_of_bits

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")
AREA_BOUNDS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""Square pixels, both ends belong to the range."""

MAX_DETECTIONS = (1, 10, 100)

_T, _A = len(THRESHOLDS), len(AREAS)
Bits = NDArray[np.uint64]


def _all_thresholds(area: int) -> int:
    return sum(1 << (t * _A + area) for t in range(_T))


_OF_AREA = np.array([_all_thresholds(area) for area in range(_A)], np.uint64)
_OF_THRESHOLD = np.array(
    [sum(0b1111 << (t * _A) for t in range(reached)) for reached in range(_T + 1)], np.uint64
)


@dataclass(frozen=True)
class CocoState(FrameState):
    """What matching found in some frames; states of further frames are appended with `merge`.

    Attributes:
        label: (N,) class of each prediction that counts, at most 100 for each image and class.
        score: (N,) its score.
        rank: (N,) its place by falling score among those of its image and class.
        inside: (N,) uint8 bit a: its area lies in range a.
        right: (N,) uint64 bit t * 4 + a: it found a truth at threshold t in range a.
        ignored: (N,) likewise: it found an ignored truth.
        truths: (K, 4) truths that must be found, by class and area range.
    """

    label: NDArray[np.int32]
    score: NDArray[np.floating]
    rank: NDArray[np.int16]
    inside: NDArray[np.uint8]
    right: Bits
    ignored: Bits
    truths: Ints


@dataclass(frozen=True)
class CocoMetrics:
    """Average precision and recall; NaN where a class has no truth.

    Attributes:
        precision: (10, K, 4) average precision by threshold, class and area range.
        recall: (10, K, 4) likewise the recall of at most 100 predictions an image.
        recall_few: (2, 10, K) recall of at most 1 and 10 predictions, all areas.
        truths: (K, 4) truths that must be found.
    """

    precision: Floats
    recall: Floats
    recall_few: Floats
    truths: Ints

    def summary(self) -> dict[str, float | None]:
        """The twelve figures of COCO under short names; None where nothing can be found."""
        p, r = self.precision, self.recall
        return {
            "map": _mean(p[:, :, 0]),
            "map_50": _mean(p[0, :, 0]),
            "map_75": _mean(p[5, :, 0]),
            **{f"map_{AREAS[a]}": _mean(p[:, :, a]) for a in (1, 2, 3)},
            "ar_1": _mean(self.recall_few[0]),
            "ar_10": _mean(self.recall_few[1]),
            "ar_100": _mean(r[:, :, 0]),
            **{f"ar_{AREAS[a]}": _mean(r[:, :, a]) for a in (1, 2, 3)},
        }

    def of_class(self, number: int) -> dict[str, float | None]:
        """Average precision of one class: map, map_50, map_75, and by area."""
        p = self.precision[:, number]
        made = {"map": _mean(p[:, 0]), "map_50": _mean(p[0, 0]), "map_75": _mean(p[5, 0])}
        made |= {f"map_{AREAS[a]}": _mean(p[:, a]) for a in (1, 2, 3)}
        return made | {"ar_100": _mean(self.recall[:, number, 0])}


def _mean(values: Floats | np.floating) -> float | None:
    known = np.asarray(values)[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def match_coco(
    predictions: Predictions, truths: Truths, n_class: int, area: NDArray[np.floating] | None = None
) -> CocoState:
    """Match the predictions of some frames.

    Args:
        predictions: Boxes xyxy in pixels of the original image; equal scores count in the order given.
        truths: Truths of the same frames.
        n_class: Number of classes; predictions and truths of other labels are left out.
        area: (G,) square pixels by which the sizes of the truths are told, as the data set has them (COCO: of
            the segmentation); None or NaN: of their boxes.
    """
    predictions = _known(predictions, n_class)
    group = predictions.frame * n_class + predictions.label
    order = np.lexsort((-predictions.score, group))
    rank = ordinal(group[order])
    if len(rank) and rank.max() >= MAX_DETECTIONS[-1]:
        order = order[rank < MAX_DETECTIONS[-1]]
        rank = ordinal(group[order])
    found = predictions.take(order)
    size = columns_of(truths.box)[4]
    if area is not None:
        size = np.where(np.isnan(area), size, area)
    valid = (truths.label >= 0) & (truths.label < n_class)
    truths, size = truths.take(valid), size[valid]
    wanted = truths.frame * n_class + truths.label
    pairs = image_pairs(found, group[order], truths, wanted, THRESHOLDS[0])
    out = np.stack([(size < low) | (size > high) for low, high in AREA_BOUNDS], axis=1)
    ignore = out | ~truths.counts[:, None]
    counted = np.zeros((n_class, _A), np.int64)
    for a in range(_A):
        counted[:, a] = np.bincount(truths.label[~ignore[:, a]], minlength=n_class)
    right, ignored = _match(
        pairs, group[order], (ignore * _OF_AREA).sum(axis=1, dtype=np.uint64), truths.crowd
    )
    own = columns_of(found.box)[4]
    inside = sum(
        ((own >= low) & (own <= high)).astype(np.uint8) << a for a, (low, high) in enumerate(AREA_BOUNDS)
    )
    return CocoState(
        found.label.astype(np.int32),
        found.score,
        rank.astype(np.int16),
        np.asarray(inside, np.uint8),
        right,
        ignored,
        counted,
    )


def _known(predictions: Predictions, n_class: int) -> Predictions:
    good = (predictions.label >= 0) & (predictions.label < n_class) & ~np.isnan(predictions.score)
    return predictions if good.all() else predictions.take(np.flatnonzero(good))


def _match(pairs: Pairs, group: Ints, ignore: Bits, crowd: Bools) -> tuple[Bits, Bits]:
    """Greedy matching under all thresholds and ranges at once, best overlap first (of equal ones the later).

    Args:
        pairs: Pairs of one group above the lowest threshold; left boxes by falling score within a group.
        group: (N,) group of each left box.
        ignore: (G,) bits of the ranges in which a truth is ignored.
        crowd: (G,) truths that stay free.

    Returns:
        (N,) bits under which a prediction found a truth, and found an ignored one.
    """
    allowed = _OF_THRESHOLD[np.searchsorted(THRESHOLDS, pairs.value, side="right")]
    made = choose_counting(pairs, (-pairs.right, -pairs.value), group, allowed, ignore, crowd)
    right, ignored = (union_of_bits(pairs.left, bits, len(group)) for bits in made)
    return right, ignored


def coco_metrics(state: CocoState) -> CocoMetrics:
    """Average precision and recall of all classes, thresholds and area ranges from the matches."""
    n_class = len(state.truths)
    order = np.lexsort((-state.score, state.label))
    label = state.label[order]
    starts = np.searchsorted(label, np.arange(n_class + 1))
    hit = np.flatnonzero((state.right | state.ignored)[order] > 0)
    there = order[hit]
    curve = _Curve(label[hit], starts, hit, np.searchsorted(label[hit], np.arange(n_class)))
    right, ignored, inside = state.right[there], state.ignored[there], state.inside[there]
    precision = np.full((_T, n_class, _A), np.nan)
    recall = np.full((_T, n_class, _A), np.nan)
    few = np.full((2, _T, n_class), np.nan)
    for a in range(_A):
        known = state.truths[:, a] > 0
        need = needed(state.truths[:, a])
        ahead = np.cumsum(state.inside[order] >> a & 1)
        mine = (inside >> a & 1).astype(np.bool_)
        for t in range(_T):
            bit = np.uint64(t * _A + a)
            tp = (right >> bit & np.uint64(1)).astype(np.bool_)
            ig = (ignored >> bit & np.uint64(1)).astype(np.bool_)
            p, total = curve.average_precision(tp, ig, mine, ahead, need)
            precision[t, known, a] = p[known]
            recall[t, known, a] = total[known] / state.truths[known, a]
            if a == 0:
                for place, most in enumerate(MAX_DETECTIONS[:2]):
                    count = np.bincount(curve.label[tp & (state.rank[there] < most)], minlength=n_class)
                    few[place, t, known] = count[known] / state.truths[known, 0]
    return CocoMetrics(precision, recall, few, state.truths)


def needed(truths: Ints, points: Floats = RECALLS) -> Ints:
    """(K, R) smallest number of found truths whose recall reaches each recall point, at least 1."""
    n = np.maximum(truths, 1)[:, None]
    k = np.ceil(points[None] * n)
    k = np.where((k - 1) / n >= points, k - 1, k)
    return np.maximum(np.where(k / n < points, k + 1, k), 1).astype(np.int64)


@dataclass(frozen=True)
class _Curve:
    """Predictions that found anything, by class and falling score.

    Attributes:
        label: (M,) class.
        starts: (K + 1,) first place of each class among all predictions.
        place: (M,) place among all predictions.
        first: (K,) first row of each class.
    """

    label: NDArray[np.int32]
    starts: Ints
    place: Ints
    first: Ints

    def average_precision(
        self, tp: Bools, ig: Bools, inside: Bools, ahead: Ints, need: Ints
    ) -> tuple[Floats, Ints]:
        """(K,) mean precision over the 101 recall points, and how many truths were found.

        Args:
            tp: (M,) found a truth.
            ig: (M,) found an ignored truth.
            inside: (M,) its area is in the range.
            ahead: (N,) running count of predictions whose area is in the range.
            need: (K, 101) truths needed for each recall.
        """
        n_class = len(self.first)
        # Unmatched predictions count if their area is in the range, matched ones if their truth counts.
        change = np.cumsum((tp & ~inside).astype(np.int64) - (ig & inside))
        rows = np.flatnonzero(tp)
        label = self.label[rows]
        found = np.bincount(label, minlength=n_class)
        begin = np.concatenate([[0], np.cumsum(found)])[:-1]
        before = np.append(0, ahead)[self.starts[label]] + np.append(0, change)[self.first[label]]
        seen = ahead[self.place[rows]] + change[rows] - before
        precision = (np.arange(len(rows)) - begin[label] + 1) / seen
        return interpolated(precision, label, found, begin, need), found


def interpolated(
    precision: Floats, label: NDArray[np.integer], found: Ints, begin: Ints, need: Ints
) -> Floats:
    """(K,) mean over the recall points of the largest precision at that recall or beyond.

    Args:
        precision: (M,) precision at every found truth, classes rising.
        label: (M,) class.
        found: (K,) found truths.
        begin: (K,) first row of each class.
        need: (K, 101) truths needed for each recall.
    """
    if len(precision) == 0:
        return np.zeros(len(found))
    # Precision is in [0, 1]: with steps of two a running maximum cannot leave its class.
    lift = 2.0 * label
    best = np.maximum.accumulate((precision - lift)[::-1])[::-1] + lift
    reached = need <= found[:, None]
    at = np.where(reached, begin[:, None] + need - 1, 0)
    return np.asarray(np.where(reached, best[at], 0.0).mean(axis=1))
