"""TIDE: what kind of error every prediction is, and what average precision each kind costs.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors" (2020), with the rules of the
authors' `tidecv` 1.0.1: an unmatched prediction is the first of Loc, Cls, Dupe, Bkg that holds, else Both; a
truth that nothing finds and that no Cls or Loc error could be mended to is Miss. An ignored prediction (one
in a crowd) counts nowhere, but mended it could be right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    ordinal,
)
from mld_core.evaluation.metrics.coco import interpolated, needed
from mld_core.evaluation.metrics.matching import Matched, best_pairs

TYPES = ("cls", "loc", "both", "dupe", "bkg", "miss")
RIGHT, CLS, LOC, BOTH, DUPE, BKG = range(6)
IGNORED = -1
MAX_DETECTIONS = 100
RECALLS: Floats = np.arange(101) / 100
"""Not COCO's points: those differ in the last bit, and a recall of exactly 0.35 falls to the other side."""


@dataclass(frozen=True)
class TideErrors:
    """The errors of some frames; (N,) predictions, (G,) truths.

    Attributes:
        type: (N,) int8 RIGHT, CLS, LOC, BOTH, DUPE or BKG; IGNORED where it does not count.
        truth: (N,) the truth a Cls or Loc error points at, or the matched one; -1 elsewhere.
        value: (N,) closeness to the closest truth of the same class, 0 without.
        mended: (N,) a Cls or Loc error that would be right if it were mended: the best claim on a free truth.
        miss: (G,) truths nothing finds and no mending reaches.
        mends: (N,) the type that mending goes by: `type`, of ignored ones what they would be.
        aim: (N,) the truth that is found once mended; -1 elsewhere.
    """

    type: NDArray[np.int8]
    truth: Ints
    value: Floats
    mended: Bools
    miss: Bools
    mends: NDArray[np.int8]
    aim: Ints


def classify(
    pairs: Pairs, matched: Matched, predictions: Predictions, truths: Truths, event: float, background: float
) -> TideErrors:
    """Tell the error of every prediction of some frames.

    Args:
        pairs: Closeness of the predictions and truths of a frame.
        matched: The event matching within classes.
        predictions: The left boxes.
        truths: The right boxes.
        event: Foreground threshold.
        background: Background threshold.
    """
    rows = len(predictions)
    real = truths.counts[pairs.right] & (pairs.value >= background)
    same = predictions.label[pairs.left] == truths.label[pairs.right]
    used = (matched.prediction >= 0)[pairs.right]
    own, own_value = best_pairs(pairs, real & same, rows)
    other, other_value = best_pairs(pairs, real & ~same, rows)
    _, used_value = best_pairs(pairs, real & same & used, rows)
    top = np.maximum(own_value, other_value)
    near = (own >= 0) & (own_value >= background) & (own_value <= event)
    found = (matched.truth >= 0) & ~matched.ignored
    rules = [found, near, other_value >= event, used_value >= event, top <= background]
    mends = np.select(rules, [RIGHT, LOC, CLS, DUPE, BKG], default=BOTH).astype(np.int8)
    kind = np.where(matched.ignored, np.int8(IGNORED), mends)
    aim = np.select([mends == RIGHT, mends == LOC, mends == CLS], [matched.truth, own, other], default=-1)
    claim = np.flatnonzero(((mends == LOC) | (mends == CLS)) & (np.append(matched.prediction, 0)[aim] < 0))
    mended = np.zeros(rows, np.bool_)
    order = claim[np.lexsort((claim, -predictions.score[claim].astype(np.float64), aim[claim]))]
    mended[order[ordinal(aim[order]) == 0]] = True
    reachable = np.zeros(len(truths), np.bool_)
    reachable[aim[claim]] = True
    miss = truths.counts & (matched.prediction < 0) & ~reachable
    truth = np.where(kind == IGNORED, -1, aim)
    return TideErrors(kind, truth, own_value, mended, miss, mends, aim)


@dataclass(frozen=True)
class TideState(FrameState):
    """What the costs are computed from; states of further frames are appended with `merge`.

    Attributes:
        label: (N,) class of each prediction that counts, or would once mended.
        score: (N,) its score.
        type: (N,) its error; IGNORED where it counts once mended only.
        mends: (N,) the type that mending goes by.
        mended_label: (N,) class it would be right with once mended, -1 where mending removes it.
        truths: (K,) truths by class.
        missed: (K,) of them missed.
    """

    summed = ("truths", "missed")

    label: NDArray[np.int32]
    score: NDArray[np.floating]
    type: NDArray[np.int8]
    mends: NDArray[np.int8]
    mended_label: NDArray[np.int32]
    truths: Ints
    missed: Ints

    @classmethod
    def of(cls, errors: TideErrors, predictions: Predictions, truths: Truths, n_class: int) -> TideState:
        """The state of some frames."""
        kept = np.flatnonzero((errors.type != IGNORED) | errors.mended)
        label = np.append(truths.label, -1)[errors.aim]
        return cls(
            predictions.label[kept].astype(np.int32),
            predictions.score[kept],
            errors.type[kept],
            errors.mends[kept],
            np.where(errors.mended, label, -1)[kept].astype(np.int32),
            np.bincount(truths.label[truths.counts], minlength=n_class),
            np.bincount(truths.label[errors.miss], minlength=n_class),
        )


def within_cap(predictions: Predictions, most: int = MAX_DETECTIONS) -> Ints:
    """Rows of the best `most` predictions of every frame, rising."""
    order = np.lexsort((-predictions.score.astype(np.float64), predictions.frame))
    return np.sort(order[ordinal(predictions.frame[order]) < most])


def tide_costs(state: TideState) -> dict[str, float | None]:
    """AP at the event threshold under `ap`, and what mending each type of error would add to it.

    Values are 0 to 1, negative differences count as 0 (they come from the 101 recall points).

    Returns:
        None throughout where no class has a prediction or a truth.
    """
    before = _mean_ap(state)
    if before is None:
        return dict.fromkeys(("ap", *TYPES))
    made: dict[str, float | None] = {"ap": before}
    for number, name in enumerate(TYPES, start=1):
        after = _mean_ap(_mend(state, number))
        made[name] = max((after or 0.0) - before, 0.0)
    return made


def _mend(state: TideState, kind: int) -> TideState:
    """One type of error mended; of equal scores, as in `tidecv`, what was an error goes first."""
    first = np.argsort(state.type == RIGHT, kind="stable")
    rows = {name: getattr(state, name)[first] for name in ("label", "score", "type", "mends", "mended_label")}
    state = replace(state, **rows)
    if kind > BKG:
        return replace(state, truths=state.truths - state.missed)
    mine = state.mends == kind
    right = mine & (state.mended_label >= 0)
    keep = ~mine | right
    return replace(
        state,
        label=np.where(right, state.mended_label, state.label)[keep],
        score=state.score[keep],
        type=np.where(right, np.int8(RIGHT), state.type)[keep],
        mends=state.mends[keep],
        mended_label=state.mended_label[keep],
    )


def _mean_ap(state: TideState) -> float | None:
    """Mean AP over the classes that have a prediction or a truth."""
    counts = state.type != IGNORED
    label = state.label[counts]
    there = (np.bincount(label, minlength=len(state.truths)) > 0) | (state.truths > 0)
    if not there.any():
        return None
    ap = average_precisions(label, state.score[counts], state.type[counts] == RIGHT, state.truths)
    return float(ap[there].mean())


def average_precisions(
    label: NDArray[np.integer], score: NDArray[np.floating], right: Bools, truths: Ints
) -> Floats:
    """(K,) 101-point interpolated average precision of each class, 0 without truths.

    Args:
        label: (N,) predicted classes.
        score: (N,) scores.
        right: (N,) found a truth.
        truths: (K,) truths of each class.

    Example:
        >>> one = np.zeros(2, int)
        >>> average_precisions(one, np.array([0.9, 0.8]), np.array([False, True]), np.array([1])).tolist()
        [0.5]
    """
    order = np.lexsort((-score.astype(np.float64), label))
    own, hit = label[order], right[order]
    starts = np.searchsorted(own, np.arange(len(truths)))
    rows = np.flatnonzero(hit)
    found = np.bincount(own[rows], minlength=len(truths))
    begin = np.cumsum(found) - found
    precision = (np.arange(len(rows)) - begin[own[rows]] + 1) / (rows - starts[own[rows]] + 1)
    ap = interpolated(precision, own[rows], found, begin, needed(truths, RECALLS))
    return np.where(truths > 0, ap, 0.0)
