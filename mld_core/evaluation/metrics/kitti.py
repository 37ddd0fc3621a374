"""KITTI average precision at 40 recall positions: image, bird's-eye view, 3D, and orientation similarity.

Rules: Geiger et al., "Are we ready for autonomous driving?" (2012), the KITTI object development kit and its
Python form in SECOND and MMDetection3D (`kitti_utils/eval.py`), 40 positions after Simonelli et al. (2019).
Truths of one frame choose in order: first by score, which fixes the score thresholds at recall steps of 1/40,
then at each threshold by overlap. All thresholds of a class are decided at once, as the bits of one integer
for each prediction. Figures are shares, not percent.

As in KITTI, a class with fewer than 41 truths cannot reach 1: it has fewer thresholds than positions.
DontCare regions are image boxes: they absorb false positives of the image metric, as in the Python form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.boxes import (
    Floats,
    Ints,
    Pairs,
    Predictions,
    Truths,
    footprints,
    overlapping,
)
from mld_core.evaluation.metrics.matching import choose
from mld_core.geometry.iou import bev_iou_aligned, iou_3d_aligned

METRICS = ("image", "bev", "3d")
DIFFICULTIES = ("easy", "moderate", "hard")
MIN_HEIGHT = (40.0, 25.0, 25.0)
"""Pixels a truth's image box must exceed, by difficulty; predictions below it are ignored."""

MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.3, 0.5)
POSITIONS = 41
MIN_OVERLAP: Mapping[str, tuple[float, float, float]] = {
    "car": (0.7, 0.7, 0.7),
    "van": (0.7, 0.7, 0.7),
    "truck": (0.7, 0.7, 0.7),
}
"""Overlap a match must exceed in the image, in bird's-eye view and in 3D; the last two after OpenPCDet."""

OTHER_OVERLAP = (0.5, 0.5, 0.5)
LEAST_OVERLAP = 0.5
"""No class asks for less: pairs below it are not kept."""

NEIGHBOURS: Mapping[str, str] = {"car": "van", "pedestrian": "person_sitting"}
"""Classes whose truths are ignored rather than background."""

Bits = NDArray[np.uint64]


@dataclass(frozen=True)
class KittiFrames:
    """Boxes of all frames of a pass, with what KITTI's rules need beside them.

    Attributes:
        predictions: boxes (N, 7) cx, cy, cz, w, l, h, yaw.
        truths: their truths.
        difficulty: (G,) 0 easy, 1 moderate, 2 hard, anything else harder than hard (see `difficulties`).
        class_names: (K,) names; car, pedestrian and cyclist have KITTI's overlaps, others 0.5.
        image_box: (N, 4) xyxy image boxes of the predictions, or None: their height ignores none of them.
        true_image_box: (G, 4) likewise of the truths; with both there is an image metric.
        alpha: (N,) observation angles, or None: yaw stands in.
        true_alpha: (G,) likewise.
        dontcare_frame: (R,) frame of each DontCare region.
        dontcare: (R, 4) xyxy image boxes.
    """

    predictions: Predictions
    truths: Truths
    difficulty: Ints
    class_names: Sequence[str]
    image_box: NDArray[np.floating] | None = None
    true_image_box: NDArray[np.floating] | None = None
    alpha: NDArray[np.floating] | None = None
    true_alpha: NDArray[np.floating] | None = None
    dontcare_frame: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    dontcare: NDArray[np.floating] = field(default_factory=lambda: np.empty((0, 4)))


@dataclass(frozen=True)
class KittiMetrics:
    """AP40 by metric (`METRICS`), class and difficulty; NaN without truths or without image boxes.

    Attributes:
        ap: (3, K, 3) average precision.
        aos: (3, K, 3) the same with each match weighted by (1 + cos of the angle between the headings) / 2.
            KITTI's AOS is that of the image metric.
        precision: (3, K, 3, 41) precision at recalls 0 to 1, falling.
        truths: (K, 3) truths that must be found.
    """

    ap: Floats
    aos: Floats
    precision: Floats
    truths: Ints

    def summary(self) -> dict[str, float | None]:
        """Means over classes with truths: `ap40_3d_moderate`, `ap40_bev_easy`, `aos40_hard`, ...

        `aos40_*` is of the image metric where there are image boxes, else of bird's-eye view.
        """
        made = {
            f"ap40_{name}_{level}": _mean(self.ap[m, :, d])
            for m, name in enumerate(METRICS)
            for d, level in enumerate(DIFFICULTIES)
        }
        image = 1 if np.isnan(self.aos[0]).all() else 0
        return made | {f"aos40_{level}": _mean(self.aos[image, :, d]) for d, level in enumerate(DIFFICULTIES)}


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def difficulties(
    height: NDArray[np.floating], occlusion: NDArray[np.floating], truncation: NDArray[np.floating]
) -> Ints:
    """(G,) KITTI difficulty of truths: 0 easy, 1 moderate, 2 hard, -1 beyond.

    Args:
        height: (G,) pixels of the image box.
        occlusion: (G,) 0 visible, 1 partly, 2 largely, 3 unknown.
        truncation: (G,) share outside the image.

    Example:
        >>> difficulties(np.array([50, 30, 30, 20]), np.array([0, 0, 2, 0]), np.zeros(4)).tolist()
        [0, 1, 2, -1]
    """
    made = np.full(len(height), -1, np.int64)
    for level in (2, 1, 0):
        fits = (height > MIN_HEIGHT[level]) & (occlusion <= MAX_OCCLUSION[level])
        made[fits & (truncation <= MAX_TRUNCATION[level])] = level
    return made


@dataclass(frozen=True)
class KittiState:
    """What the average precisions of some frames are computed from; states of further frames are appended.

    Attributes:
        label: (N,) classes of the predictions.
        score: (N,) their scores.
        turned: (N,) their yaws.
        alpha: (N,) their observation angles, which count in place of yaws where all are known; or None.
        height: (N,) pixels of their image boxes; None: it ignores none of them.
        seen: (N,) predictions that take part: those that lie in the image, all where a height is not known.
        stuff: (N,) largest share of the image box inside a DontCare region; None without image boxes.
        frame: (G,) frames of the truths, rising.
        true_label: (G,) their classes.
        counts: (G,) truths that must be found.
        level: (G,) their difficulties.
        true_turned: (G,) their yaws.
        true_alpha: (G,) their observation angles, or None.
        drawn: truths of the run's classes with an image box.
        told: (F,) frames whose neighbours of other classes are known.
        pairs: of `METRICS`, pairs of a frame that overlap enough for some class; None without image boxes.
        frames: how many.
    """

    label: NDArray[np.int32]
    score: NDArray[np.floating]
    turned: NDArray[np.floating]
    alpha: NDArray[np.floating] | None
    height: Floats | None
    seen: NDArray[np.bool_]
    stuff: Floats | None
    frame: Ints
    true_label: NDArray[np.int32]
    counts: NDArray[np.bool_]
    level: NDArray[np.int8]
    true_turned: NDArray[np.floating]
    true_alpha: NDArray[np.floating] | None
    drawn: NDArray[np.bool_]
    told: NDArray[np.bool_]
    pairs: tuple[Pairs | None, Pairs, Pairs]
    frames: int

    @classmethod
    def of(
        cls,
        frames: KittiFrames,
        *,
        number: int,
        seen: NDArray[np.bool_] | None = None,
        drawn: NDArray[np.bool_] | None = None,
        told: NDArray[np.bool_] | None = None,
    ) -> KittiState:
        """That of `number` frames, of which the predictions in `seen` take part; None: all of them.

        `drawn`: the truths with an image box, where not all have one; None: as `frames` has it. `told`: None
        is none.
        """
        found, truths, image = frames.predictions, frames.truths, frames.image_box
        height = None if image is None else np.abs(image[:, 3] - image[:, 1]).astype(np.float64)
        return cls(
            found.label.astype(np.int32),
            found.score,
            found.box[:, 6],
            frames.alpha,
            height,
            np.ones(len(found), np.bool_) if seen is None else seen,
            _in_dontcare(frames),
            truths.frame,
            truths.label.astype(np.int32),
            truths.counts,
            np.clip(frames.difficulty, -2, 3).astype(np.int8),
            truths.box[:, 6],
            frames.true_alpha,
            np.full(len(truths), frames.true_image_box is not None) if drawn is None else drawn,
            np.zeros(number, np.bool_) if told is None else told,
            _all_pairs(frames),
            number,
        )

    @classmethod
    def merge(cls, states: Sequence[KittiState]) -> KittiState:
        """The state of all frames, in the order given."""
        if len(states) == 1:
            return states[0]
        every = {name: [getattr(one, name) for one in states] for name in vars(states[0])}
        made: dict[str, Any] = {
            name: None if any(part is None for part in parts) else np.concatenate(parts)
            for name, parts in every.items()
            if name not in {"frame", "frames", "pairs"}
        }
        if made["height"] is None:
            made["seen"] = np.ones(len(made["label"]), np.bool_)
        first, left, right = (
            np.cumsum([0, *(len(one) for one in sizes)])
            for sizes in (map(range, every["frames"]), every["label"], every["frame"])
        )
        pairs = [
            None if None in parts else Pairs.of(map(_moved, parts, left, right))
            for parts in zip(*every["pairs"], strict=True)
        ]
        made["frame"] = np.concatenate([one + at for one, at in zip(every["frame"], first, strict=False)])
        return cls(**made, frames=int(first[-1]), pairs=tuple(pairs))  # type: ignore[arg-type]


def _moved(pairs: Pairs, left: int, right: int) -> Pairs:
    return Pairs(pairs.left + left, pairs.right + right, pairs.value)


def kitti_metrics(frames: KittiFrames) -> KittiMetrics:
    """Average precision of every class, metric and difficulty.

    Example:
        >>> box = np.array([[10, 0, 0, 1.6, 4, 1.5, 0.0]])
        >>> frame, zero, no = np.arange(41), np.zeros(41, np.int64), np.zeros(41, bool)
        >>> found = Predictions(frame, zero, np.full(41, 0.9), np.repeat(box, 41, axis=0))
        >>> true = Truths(frame, zero, found.box, no, no)
        >>> made = kitti_metrics(KittiFrames(found, true, zero, ["Car"]))
        >>> made.summary()["ap40_3d_easy"], made.summary()["ap40_image_easy"]
        (1.0, None)
    """
    return kitti_precisions(KittiState.of(frames, number=0), frames.class_names)


def kitti_precisions(state: KittiState, class_names: Sequence[str]) -> KittiMetrics:
    """Average precision of every class, metric and difficulty, from the pairs of some frames."""
    n_class = len(class_names)
    shape = (len(METRICS), n_class, len(DIFFICULTIES))
    ap, aos = np.full(shape, np.nan), np.full(shape, np.nan)
    precision = np.full((*shape, POSITIONS), np.nan)
    truths = np.zeros((n_class, len(DIFFICULTIES)), np.int64)
    turned, true_turned = state.turned, state.true_turned
    if state.alpha is not None and state.true_alpha is not None:
        turned, true_turned = state.alpha, state.true_alpha
    for c in range(n_class):
        for d in range(len(DIFFICULTIES)):
            case = _case(state, class_names, c, d)
            truths[c, d] = int((case.truth_state == 0).sum())
            if truths[c, d] == 0:
                continue
            for m, (name, pairs) in enumerate(zip(METRICS, state.pairs, strict=True)):
                if pairs is None:
                    continue
                usable = _usable(pairs, case, _overlap(class_names[c])[m])
                weight = (1 + np.cos(true_turned[usable.right] - turned[usable.left])) / 2
                stuff = None
                if name == "image" and state.stuff is not None:
                    stuff = np.flatnonzero((case.found_state == 0) & (state.stuff > case.overlap))
                curve = _curves(usable, case, state, weight, stuff)
                precision[m, c, d] = curve[0]
                ap[m, c, d], aos[m, c, d] = (float(one[1:].mean()) for one in curve)
    return KittiMetrics(ap, aos, precision, truths)


def _overlap(name: str) -> tuple[float, float, float]:
    return MIN_OVERLAP.get(name.lower(), OTHER_OVERLAP)


@dataclass(frozen=True)
class _Case:
    """One class at one difficulty: 0 counts, 1 is ignored, -1 does not take part."""

    truth_state: NDArray[np.int8]
    found_state: NDArray[np.int8]
    overlap: float


def _case(boxes: KittiState, class_names: Sequence[str], label: int, level: int) -> _Case:
    names = [str(name).lower() for name in class_names]
    state = np.full(len(boxes.true_label), -1, np.int8)
    beside = NEIGHBOURS.get(names[label])
    if beside in names:
        state[boxes.true_label == names.index(beside)] = 1
    own = boxes.true_label == label
    fits = (boxes.level >= 0) & (boxes.level <= level) & boxes.counts
    state[own] = np.where(fits[own], 0, 1)
    found_state = np.where(boxes.label == label, 0, -1).astype(np.int8)
    if boxes.height is not None:
        # As in the kit, whatever its class: a small box may only be matched, never be false.
        found_state[boxes.height < MIN_HEIGHT[level]] = 1
    found_state[np.isnan(boxes.score) | ~boxes.seen] = -1
    return _Case(state, found_state, _overlap(class_names[label])[0])


def _all_pairs(frames: KittiFrames) -> tuple[Pairs | None, Pairs, Pairs]:
    """Pairs of a frame that overlap, for each metric; left the prediction, right the truth."""
    found, truths = frames.predictions, frames.truths
    image = None
    if frames.image_box is not None and frames.true_image_box is not None:
        image = overlapping(frames.image_box, found.frame, frames.true_image_box, truths.frame, 1e-9)
        image = image.take(image.value > LEAST_OVERLAP)
    turned = footprints(found.box, found.frame, truths.box, truths.frame, bev_iou_aligned, iou_3d_aligned)
    bev, space = (pairs.take(pairs.value > LEAST_OVERLAP) for pairs in turned)
    return image, bev, space


def _usable(pairs: Pairs, case: _Case, least: float) -> Pairs:
    part = (case.found_state[pairs.left] >= 0) & (case.truth_state[pairs.right] >= 0)
    return pairs.take(part & (pairs.value > least))


def _in_dontcare(frames: KittiFrames) -> Floats | None:
    """(N,) the largest share of each prediction's image box that lies in a DontCare region of its frame."""
    if frames.image_box is None:
        return None
    found = frames.predictions
    many = np.ones(len(frames.dontcare), np.bool_)
    shared = overlapping(
        frames.image_box, found.frame, frames.dontcare, frames.dontcare_frame, LEAST_OVERLAP, crowd=many
    )
    made = np.zeros(len(found))
    np.maximum.at(made, shared.left, shared.value)
    return made


def _curves(
    pairs: Pairs, case: _Case, boxes: KittiState, weight: Floats, stuff: Ints | None
) -> tuple[Floats, Floats]:
    """(41,) precision and orientation similarity at the recall positions, falling."""
    score, frame = boxes.score, boxes.frame
    counting = (case.truth_state[pairs.right] == 0) & (case.found_state[pairs.left] == 0)
    by_score = np.lexsort((pairs.left, -score[pairs.left], pairs.right))
    one = np.ones(len(pairs), np.uint64)
    won = _assign(pairs, by_score, one, frame)
    hits = np.flatnonzero(counting & (won > 0))
    limits = recall_thresholds(score[pairs.left[hits]], int((case.truth_state == 0).sum()))
    if len(limits) == 0:
        return np.zeros(POSITIONS), np.zeros(POSITIONS)
    ignored = case.found_state[pairs.left] == 1
    by_overlap = np.lexsort((pairs.left, np.where(ignored, 0.0, -pairs.value), ignored, pairs.right))
    active = _active(score[pairs.left], limits)
    won = _assign(pairs, by_overlap, active, frame)
    some = np.flatnonzero(counting & (won > 0))
    bits = _unpacked(won[some])
    tp, similarity = bits.sum(axis=0), weight[some] @ bits
    own = case.found_state == 0
    there = np.sort(score[own])
    fp = (len(there) - np.searchsorted(there, limits, side="left")).astype(np.float64)
    taken = np.zeros(len(score), np.uint64)
    np.bitwise_or.at(taken, pairs.left, won)
    met = np.flatnonzero(own & (taken > 0))
    fp -= _unpacked(taken[met])[:, : len(limits)].sum(axis=0)
    if stuff is not None and len(stuff):
        fp -= _unpacked(_active(score[stuff], limits) & ~taken[stuff])[:, : len(limits)].sum(axis=0)
    said = tp[: len(limits)] + fp
    return tuple(  # type: ignore[return-value]
        _falling(np.divide(part[: len(limits)], said, out=np.zeros(len(limits)), where=said > 0))
        for part in (tp.astype(np.float64), similarity)
    )


def _falling(values: Floats) -> Floats:
    made = np.zeros(POSITIONS)
    made[: len(values)] = values
    return np.asarray(np.maximum.accumulate(made[::-1])[::-1])


def recall_thresholds(scores: NDArray[np.floating], truths: int) -> NDArray[np.floating]:
    """Scores at which recall comes closest to each step of 1/40, falling; at most 41.

    Args:
        scores: (M,) of the matches.
        truths: truths that must be found.

    Example:
        >>> recall_thresholds(np.linspace(0.1, 0.9, 9), 10).round(1).tolist()
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    """
    falling = np.sort(scores)[::-1]
    kept, recall = [], 0.0
    for i, score in enumerate(falling):
        last = i == len(falling) - 1
        left, right = (i + 1) / truths, (i + 1 if last else i + 2) / truths
        if right - recall < recall - left and not last:
            continue
        kept.append(score)
        recall += 1 / (POSITIONS - 1.0)
    return np.asarray(kept[:POSITIONS], scores.dtype)


def _active(score: NDArray[np.floating], limits: NDArray[np.floating]) -> Bits:
    """Bit k: the score is at least `limits[k]` (falling)."""
    first = len(limits) - np.searchsorted(limits[::-1], score, side="right")
    every = np.uint64((1 << len(limits)) - 1)
    return np.asarray(every & ~((np.uint64(1) << first.astype(np.uint64)) - np.uint64(1)))


def _unpacked(bits: Bits) -> NDArray[np.uint8]:
    """(N, 64) ones and zeros, lowest bit first."""
    rows = np.ascontiguousarray(bits, "<u8").view(np.uint8).reshape(len(bits), 8)
    return np.unpackbits(rows, axis=1, bitorder="little")


def _assign(pairs: Pairs, order: Ints, active: Bits, frame: Ints) -> Bits:
    """Let the truths of every frame choose one after the other; (P,) bits under which a pair was chosen.

    Args:
        pairs: pairs that may match.
        order: (P,) pairs by truth, best first.
        active: (P,) bits under which the pair's prediction is there.
        frame: (G,) frames of the truths, rising.
    """
    won = np.zeros_like(active)
    truth = pairs.right[order]
    won[order] = choose(truth, pairs.left[order], frame[truth], active[order])
    return won
