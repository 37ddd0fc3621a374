"""What happened to every kept prediction and every truth: event, TIDE error, and error code.

Codes are tried in the order A, M (matched), SP, SG, M (TIDE Loc), D, ON, N; where none fits it is U. SP and
SG come before the Loc half of M: nearly every piece of a split truth is a Loc error too, which says less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.metrics import tide
from mld_core.evaluation.metrics.boxes import Bools, Floats, FrameState, Ints, Pairs, Predictions, Truths
from mld_core.evaluation.metrics.matching import COVERED, BoxGeometry, Matched, best_pairs, match_events

CODES = ("A", "M", "SP", "SG", "D", "ON", "N", "U")
A, M, SP, SG, D, ON, N, U = range(8)
NO_PREDICTION = "no_prediction"
BACKGROUND = -1


@dataclass(frozen=True)
class BoxEvents(FrameState):
    """Events of some frames at the operating threshold; (N,) kept predictions, (G,) truths.

    Attributes:
        right: (N,) matched within its class.
        ignored: (N,) counts neither as right nor as wrong.
        code: (N,) int8 number in `CODES`.
        type: (N,) int8 TIDE error, see `metrics.tide`.
        truth: (N,) truth it is judged by: the matched one (of any class), else the one of a TIDE Loc error,
            else the closest, else -1.
        said_of: (N,) class of that truth, -1 for background.
        matched: (N,) whether it found a truth of any class.
        quality: (N,) IoU (3D: aligned IoU) with that truth, 0 without.
        found: (G,) truths found within their class.
        met: (G,) truths found by a prediction of any class.
        best: (G,) closeness of the closest kept prediction of any class.
    """

    right: Bools
    ignored: Bools
    code: NDArray[np.int8]
    type: NDArray[np.int8]
    truth: Ints
    said_of: Ints
    matched: Bools
    quality: Floats
    found: Bools
    met: Bools
    best: Floats


def find_events(predictions: Predictions, truths: Truths, geometry: BoxGeometry) -> BoxEvents:
    """Judge the predictions that reach the operating threshold, and the truths, of some frames."""
    pairs = geometry.close(predictions, truths)
    own = match_events(pairs, predictions, truths, geometry.event)
    errors = tide.classify(pairs, own, predictions, truths, geometry.event, geometry.background)
    real = pairs.take(truths.counts[pairs.right])
    rest = _leftovers(real, own, predictions, truths, geometry.event)
    right = (own.truth >= 0) & ~own.ignored
    matched = right | (rest.truth >= 0)
    closest, near = best_pairs(real, real.value >= geometry.background, len(predictions))
    # A badly localised box is judged by the truth of its class, even where another lies closer.
    loc = np.flatnonzero(errors.type == tide.LOC)
    closest[loc], near[loc] = errors.truth[loc], errors.value[loc]
    truth = np.select([right, rest.truth >= 0], [own.truth, rest.truth], default=closest)
    there = np.flatnonzero(truth >= 0)
    value = np.where(right, own.closeness, np.where(rest.truth >= 0, rest.closeness, near))[there]
    judged = Pairs(there, truth[there], value)
    quality = np.zeros(len(predictions))
    quality[there] = geometry.quality(predictions, truths, judged)
    aligned = np.zeros(len(predictions), np.bool_)
    aligned[there] = geometry.aligned(predictions, truths, judged)
    free = ~matched & ~own.ignored
    met = (own.prediction >= 0) | (rest.prediction >= 0)
    code = _codes(
        real, predictions, truths, geometry, aligned & matched, matched, free, met, errors.type, truth
    )
    best = np.zeros(len(truths))
    np.maximum.at(best, pairs.right, pairs.value)
    return BoxEvents(
        right,
        own.ignored,
        code,
        errors.type,
        truth,
        np.append(truths.label, BACKGROUND)[truth],
        matched,
        quality,
        own.prediction >= 0,
        met,
        best,
    )


def _leftovers(pairs: Pairs, own: Matched, predictions: Predictions, truths: Truths, event: float) -> Matched:
    """Match what is left on both sides, whatever the classes."""
    free = (own.truth < 0)[pairs.left] & (own.prediction < 0)[pairs.right]
    return match_events(pairs.take(free), predictions, truths, event, any_class=True)


def _codes(
    pairs: Pairs,
    predictions: Predictions,
    truths: Truths,
    geometry: BoxGeometry,
    aligned: Bools,
    matched: Bools,
    free: Bools,
    met: Bools,
    errors: NDArray[np.int8],
    closest: Ints,
) -> NDArray[np.int8]:
    rows = len(predictions)
    pieces = pairs.take(
        free[pairs.left]
        & ~met[pairs.right]
        & (pairs.value >= geometry.background)
        & (predictions.label[pairs.left] == truths.label[pairs.right])
    )
    several = np.bincount(pieces.right, minlength=len(truths)) >= 2
    pieces = pieces.take(several[pieces.right])
    split = np.zeros(rows, np.bool_)
    split[pieces.left[geometry.together(predictions, truths, pieces)]] = True
    own = pairs.take(free[pairs.left])
    covers = geometry.covered(predictions, truths, own) >= COVERED
    group = np.bincount(own.left[covers], minlength=rows) >= 2
    alone = np.flatnonzero(free & (closest < 0))
    crowded = np.zeros(rows, np.bool_)
    crowded[alone[geometry.shared(predictions, alone)]] = True
    rules = [
        (aligned, A),
        (matched, M),
        (split, SP),
        (group, SG),
        (free & (errors == tide.LOC), M),
        (free & (errors == tide.DUPE), D),
        (crowded, ON),
        (free & (closest < 0), N),
    ]
    return np.select([rule for rule, _ in rules], [code for _, code in rules], default=U).astype(np.int8)


def box_code(code: int, truth: int, prediction: int, *, unsure: bool = False) -> str:
    """Write one error code; a negative class is background.

    Example:
        >>> box_code(M, 3, 5)
        'DET:M:CLS3->5'
        >>> box_code(N, -1, 2, unsure=True)
        'DET:N*:CLSbg->2'
    """
    classes = ("bg" if truth < 0 else truth, "bg" if prediction < 0 else prediction)
    return f"DET:{CODES[code]}{'*' if unsure else ''}:CLS{classes[0]}->{classes[1]}"


def box_codes(
    code: NDArray[np.integer], truth: Ints, prediction: Ints, unsure: Bools, known: Bools
) -> pa.Array:
    """Write the codes of (N,) predictions; null where `known` is False."""
    # As one number each: rows of several are far slower to sort.
    parts = [np.unique(part, return_inverse=True) for part in (code, truth, prediction, unsure, known)]
    sizes = [max(len(values), 1) for values, _ in parts]
    keys = np.ravel_multi_index(tuple(place.reshape(-1) for _, place in parts), tuple(sizes))
    distinct, where = np.unique(keys, return_inverse=True)
    places = np.unravel_index(distinct, tuple(sizes))
    told = zip(*(values[place] for (values, _), place in zip(parts, places, strict=True)), strict=True)
    names = [
        box_code(int(c), int(t), int(y), unsure=bool(star)) if ok else None for c, t, y, star, ok in told
    ]
    return pa.array(names, pa.string()).take(pa.array(where.reshape(-1), pa.int64()))
