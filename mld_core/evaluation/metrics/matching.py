"""Which prediction found which truth at the event threshold, greedily by score, for many frames at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.boxes import (
    Bools,
    Floats,
    Ints,
    Pairs,
    Predictions,
    Truths,
    columns_of,
    image_pairs,
    ordinal,
)

Bits = NDArray[Any]

EVENT_IOU = 0.5
ALIGNED_IOU = 0.75
BACKGROUND_IOU = 0.1
SHARED_IOU = 0.3
COVERED = 0.25


class BoxGeometry(Protocol):
    """How close two boxes are, in 2D and in 3D; closeness is 0 to 1, larger is closer."""

    event: float
    """Closeness from which on a prediction may find a truth."""

    background: float
    """Closeness below which a prediction has nothing to do with a truth."""

    def close(self, predictions: Predictions, truths: Truths) -> Pairs:
        """Closeness of the predictions and truths of one frame that touch or may match."""
        ...

    def aligned(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Bools:
        """(P,) whether the boxes of a pair agree closely (code A)."""
        ...

    def quality(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Floats:
        """(P,) how well the boxes of a pair agree, 0 to 1 (IoU)."""
        ...

    def covered(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Floats:
        """(P,) share of the truth that lies inside the prediction."""
        ...

    def together(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Bools:
        """(P,) whether all predictions paired with the same truth reach the event threshold together."""
        ...

    def shared(self, predictions: Predictions, rows: Ints) -> Bools:
        """(len(rows),) whether a prediction overlaps another of its frame at IoU 0.3 or more."""
        ...

    def of_pass(self, predictions: Predictions, truths: Truths, truth: Ints) -> BoxGeometry:
        """By what some frames of a pass are judged, once (N,) the truth of each of its predictions is known.

        Itself, where nothing that `aligned` asks for is a matter of the pass.
        """
        ...


class ImageBoxes:
    """Axis-aligned boxes in pixels: closeness is IoU."""

    event = EVENT_IOU
    background = BACKGROUND_IOU

    def close(self, predictions: Predictions, truths: Truths) -> Pairs:
        """See `BoxGeometry.close`; a crowd's column is the share of the prediction inside it."""
        return image_pairs(predictions, predictions.frame, truths, truths.frame, 0.0)

    def quality(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Floats:  # noqa: ARG002
        """See `BoxGeometry.quality`."""
        return pairs.value

    def aligned(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Bools:  # noqa: ARG002
        """See `BoxGeometry.aligned`: IoU of 0.75 or more."""
        return np.asarray(pairs.value >= ALIGNED_IOU)

    def covered(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Floats:
        """See `BoxGeometry.covered`."""
        own, other = _area(predictions)[pairs.left], _area(truths)[pairs.right]
        shared = pairs.value * (own + other) / (1 + pairs.value)
        return np.asarray(shared / np.where(other > 0, other, 1.0))

    def together(self, predictions: Predictions, truths: Truths, pairs: Pairs) -> Bools:
        """See `BoxGeometry.together`: IoU of the union of the predictions (at most 6) with the truth.

        Of rotated boxes by the upright ones around them.
        """
        return unions_reach(predictions.box, truths.box, pairs, self.event)

    def shared(self, predictions: Predictions, rows: Ints) -> Bools:
        """See `BoxGeometry.shared`."""
        some = predictions.take(rows)
        pairs = image_pairs(some, some.frame, predictions, predictions.frame, SHARED_IOU)
        other = rows[pairs.left] != pairs.right
        made = np.zeros(len(rows), np.bool_)
        made[pairs.left[other]] = True
        return made

    def of_pass(self, predictions: Predictions, truths: Truths, truth: Ints) -> ImageBoxes:  # noqa: ARG002
        """See `BoxGeometry.of_pass`."""
        return self


def _area(boxes: Predictions | Truths) -> Floats:
    if boxes.rotated is not None:
        return np.asarray(boxes.rotated[:, 2].astype(np.float64) * boxes.rotated[:, 3])
    return columns_of(boxes.box)[4]


MOST_PIECES = 6


def unions_reach(box: NDArray[np.floating], truth: NDArray[np.floating], pairs: Pairs, least: float) -> Bools:
    """(P,) whether the union of the boxes paired with the same truth has an IoU of `least` with it.

    Exact, by cutting the plane at every edge; of more than six boxes the six that overlap most are taken.
    """
    made = np.zeros(len(pairs), np.bool_)
    if len(pairs) == 0:
        return made
    order = np.lexsort((-pairs.value, pairs.right))
    right = pairs.right[order]
    place = ordinal(right)
    first = np.flatnonzero(place == 0)
    number = np.cumsum(place == 0) - 1
    pieces = np.zeros((len(first), MOST_PIECES, 4))
    kept = place < MOST_PIECES
    pieces[number[kept], place[kept]] = box[pairs.left[order][kept]]
    whole = truth[right[first]].astype(np.float64)
    reached = np.zeros(len(first), np.bool_)
    for start in range(0, len(first), 4096):
        span = slice(start, start + 4096)
        reached[span] = _union_iou(pieces[span], whole[span]) >= least
    made[order] = reached[number]
    return made


def _union_iou(pieces: Floats, whole: Floats) -> Floats:
    """(n,) IoU of the union of (n, m, 4) boxes with (n, 4) boxes."""
    every = np.concatenate([pieces, whole[:, None]], axis=1)
    x = np.sort(every[:, :, [0, 2]].reshape(len(every), -1), axis=1)
    y = np.sort(every[:, :, [1, 3]].reshape(len(every), -1), axis=1)
    across, down = (x[:, 1:] + x[:, :-1]) / 2, (y[:, 1:] + y[:, :-1]) / 2
    area = np.diff(x, axis=1)[:, :, None] * np.diff(y, axis=1)[:, None, :]

    def inside(box: Floats) -> Bools:
        wide = (across >= box[:, 0:1]) & (across <= box[:, 2:3])
        high = (down >= box[:, 1:2]) & (down <= box[:, 3:4])
        return np.asarray(wide[:, :, None] & high[:, None, :], dtype=np.bool_)

    union = inside(pieces[:, 0])
    for k in range(1, pieces.shape[1]):
        union |= inside(pieces[:, k])
    true = inside(whole)
    shared, total = (area * (union & true)).sum(axis=(1, 2)), (area * (union | true)).sum(axis=(1, 2))
    return np.asarray(shared / np.where(total > 0, total, 1.0))


@dataclass(frozen=True)
class Matched:
    """Who found whom.

    Attributes:
        truth: (N,) the truth each prediction found, ignored ones among them, -1 for none.
        closeness: (N,) closeness of that pair, 0 for none.
        prediction: (G,) the prediction that found each truth, -1 for none.
        ignored: (N,) predictions that count neither as right nor as wrong.
    """

    truth: Ints
    closeness: Floats
    prediction: Ints
    ignored: Bools


def match_events(
    pairs: Pairs, predictions: Predictions, truths: Truths, event: float, *, any_class: bool = False
) -> Matched:
    """Greedy matching by falling score: each prediction takes the closest truth that is still free.

    A truth that counts goes before an ignored one; a crowd stays free. Equal scores go by row.

    Args:
        pairs: Pairs of one frame.
        predictions: The left boxes.
        truths: The right boxes.
        event: Smallest closeness of a match.
        any_class: Match boxes of different classes too.
    """
    usable = pairs.value >= event
    if not any_class:
        usable &= predictions.label[pairs.left] == truths.label[pairs.right]
    some = pairs.take(usable)
    group = predictions.frame
    if not any_class:
        span = 1 + int(max(predictions.label.max(initial=0), truths.label.max(initial=0)))
        group = group * span + predictions.label
    found, value = _greedy(some, group, predictions.score, ~truths.counts, truths.crowd)
    by = np.full(len(truths), -1, np.int64)
    rows = np.flatnonzero(found >= 0)[::-1]
    by[found[rows]] = rows
    ignored = np.append(~truths.counts, False)[found]
    return Matched(found, value, by, np.asarray(ignored, np.bool_))


def _greedy(
    pairs: Pairs, group: Ints, score: NDArray[np.floating], ignore: Bools, crowd: Bools
) -> tuple[Ints, Floats]:
    """(N,) truth that each prediction finds, -1 for none, and the closeness of the two."""
    place = np.empty(len(group), np.int64)
    place[np.lexsort((-score.astype(np.float64), group))] = np.arange(len(group))
    order = np.lexsort((pairs.right, -pairs.value, ignore[pairs.right], place[pairs.left]))
    left, right = pairs.left[order], pairs.right[order]
    won = order[choose(place[left], right, group[left], np.ones(len(order), np.uint8), crowd) > 0]
    found, value = np.full(len(group), -1, np.int64), np.zeros(len(group))
    found[pairs.left[won]], value[pairs.left[won]] = pairs.right[won], pairs.value[won]
    return found, value


def choose(left: Ints, right: Ints, group: Ints, allowed: Bits, crowd: Bools | None = None) -> Bits:
    """Let the left boxes of every group choose one after the other: (P,) bits under which a pair is made.

    Every bit is a matching of its own, under another threshold. A round is one left box of every group, a
    step one of its pairs: under the bits that are still open to it, it takes what no other has taken.

    Args:
        left: (P,) who chooses, in the order of the turns; the pairs of one stand together, best first.
        right: (P,) what is chosen.
        group: (P,) in which boxes choose one after the other.
        allowed: (P,) bits under which the pair may be made.
        crowd: right boxes that stay free.
    """
    won = np.zeros_like(allowed)
    if len(left) == 0:
        return won
    first = np.flatnonzero(ordinal(left) == 0)
    length = np.diff(np.append(first, len(left)))
    turn = ordinal(group[first])
    taken = np.zeros(int(right.max()) + 1, allowed.dtype)
    by_turn = np.argsort(turn, kind="stable")
    stops = np.searchsorted(turn[by_turn], np.arange(int(turn.max()) + 2))
    every = np.bitwise_or.reduceat(allowed, first)
    for start, stop in pairwise(stops.tolist()):
        heads = by_turn[start:stop]
        open_ = every[heads]
        for k in range(int(length[heads].max())):
            still = np.flatnonzero((length[heads] > k) & (open_ > 0))
            row = first[heads[still]] + k
            chosen = right[row]
            made = allowed[row] & ~taken[chosen] & open_[still]
            won[row] = made
            open_[still] &= ~made
            taken[chosen] |= made if crowd is None else np.where(crowd[chosen], allowed.dtype.type(0), made)
    return won


def choose_counting(
    pairs: Pairs, better: tuple[NDArray[Any], ...], group: Ints, allowed: Bits, ignore: Bits, crowd: Bools
) -> tuple[Bits, Bits]:
    """`choose` among the truths that count first and among the ignored ones then, as COCO and nuScenes do.

    Args:
        pairs: left the predictions, by falling score within a group.
        better: keys of the pairs of a prediction, best first, as of `lexsort`.
        group: (N,) groups of the predictions.
        allowed: (P,) bits under which a pair may be made.
        ignore: (G,) bits under which a truth is ignored.
        crowd: (G,) truths that stay free.

    Returns:
        (P,) bits under which a pair is made with a truth that counts, and with an ignored one.
    """
    both = np.concatenate([allowed & ~ignore[pairs.right], allowed & ignore[pairs.right]])
    rows = np.flatnonzero(both)
    pair = rows % max(len(pairs), 1)
    order = np.lexsort((*(key[pair] for key in better), rows >= len(pairs), pairs.left[pair]))
    rows, pair = rows[order], pair[order]
    left = pairs.left[pair]
    won = np.zeros_like(both)
    won[rows] = choose(left, pairs.right[pair], group[left], both[rows], crowd)
    return won[: len(pairs)], won[len(pairs) :]


def union_of_bits(rows: Ints, bits: Bits, count: int) -> Bits:
    """(count,) every bit that any pair of a row has."""
    made = np.zeros(count, bits.dtype)
    np.bitwise_or.at(made, rows, bits)
    return made


def best_pairs(pairs: Pairs, keep: Bools, rows: int) -> tuple[Ints, Floats]:
    """The closest right box of every left box among the pairs kept: (rows,) row or -1, closeness or 0.

    Example:
        >>> pairs = Pairs(np.array([0, 0]), np.array([3, 4]), np.array([0.2, 0.6]))
        >>> best_pairs(pairs, np.ones(2, bool), 2)[0].tolist()
        [4, -1]
    """
    some = pairs.take(keep)
    order = np.lexsort((some.right, -some.value, some.left))
    left = some.left[order]
    head = order[np.flatnonzero(ordinal(left) == 0)]
    best, value = np.full(rows, -1, np.int64), np.zeros(rows)
    best[some.left[head]], value[some.left[head]] = some.right[head], some.value[head]
    return best, value
