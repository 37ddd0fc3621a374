"""Predicted and true boxes of many frames as flat columns, and the pairs of them that share a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mld_core.geometry.iou import bev_iou_aligned

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

Measure = Callable[[NDArray[np.floating], NDArray[np.floating]], Any]

PAIR_BLOCK = 1 << 21
"""Pairs whose overlap is computed at once: temporaries of about 16 MiB each."""

MEASURED = 1 << 16
"""Pairs of turned boxes that are measured at once."""


@dataclass(frozen=True)
class Columns:
    """Columns of equal length, a row for each box or pair."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def take(self, rows: NDArray[Any] | slice) -> Self:
        """Some rows, by number or by mask."""
        known = {name: column for name, column in vars(self).items() if column is not None}
        return replace(self, **{name: column[rows] for name, column in known.items()})


@dataclass(frozen=True)
class Predictions(Columns):
    """Predicted boxes, frames in rising order.

    Attributes:
        frame: (N,) number of the frame, rising.
        label: (N,) predicted classes.
        score: (N,) float32 or float64 confidences.
        box: (N, 4) xyxy pixels or (N, 7) cx, cy, cz, w, l, h, yaw.
        rotated: (N, 5) of rotated 2D boxes cx, cy, w, h, angle, `box` being around them; None: upright ones.
    """

    frame: Ints
    label: Ints
    score: NDArray[np.floating]
    box: NDArray[np.floating]
    rotated: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class Truths(Columns):
    """True boxes, frames in rising order.

    Attributes:
        frame: (G,) number of the frame, rising.
        label: (G,) true classes.
        box: (G, 4) or (G, 7).
        ignore: (G,) a prediction that finds it counts neither as right nor as wrong.
        crowd: (G,) ignored, and found by any number of predictions.
        rotated: (G, 5) as of predictions.
    """

    frame: Ints
    label: Ints
    box: NDArray[np.floating]
    ignore: Bools
    crowd: Bools
    rotated: NDArray[np.floating] | None = None

    @property
    def counts(self) -> Bools:
        """(G,) truths that must be found: neither ignored nor a crowd."""
        return ~(self.ignore | self.crowd)


@dataclass(frozen=True)
class Pairs(Columns):
    """Some pairs of a left and a right box.

    Attributes:
        left: (P,) rows of the left boxes, rising.
        right: (P,) rows of the right boxes, rising within a left box.
        value: (P,) float64 overlap, or whatever the pairs were measured by.
    """

    left: Ints
    right: Ints
    value: Floats

    @classmethod
    def of(cls, blocks: Iterable[Pairs]) -> Pairs:
        """The pairs of all blocks."""
        every = [(one.left, one.right, one.value) for one in blocks]
        return cls(*(np.concatenate(column) for column in zip(*every, strict=True))) if every else NO_PAIRS


@dataclass(frozen=True)
class FrameState:
    """What a metric keeps of some frames; states of further frames are appended with `merge`."""

    summed: ClassVar[tuple[str, ...]] = ("truths",)

    @classmethod
    def merge(cls, states: Sequence[Self]) -> Self:
        """The state of all frames, in the order given (which decides between equal scores)."""
        if len(states) == 1:
            return states[0]
        made: dict[str, Any] = {}
        for name, first in vars(states[0]).items():
            values = [getattr(one, name) for one in states]
            if isinstance(first, bool):
                made[name] = all(values)
            else:
                made[name] = np.sum(values, axis=0) if name in cls.summed else np.concatenate(values)
        return replace(states[0], **made)


NO_PAIRS = Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


def group_pairs(left: Ints, right: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Walk over all pairs of rows with the same group, some two million at a time.

    Args:
        left: (N,) groups.
        right: (M,) groups, rising.

    Example:
        >>> [(i.tolist(), j.tolist()) for i, j in group_pairs(np.array([0, 2]), np.array([0, 0, 1, 2]))]
        [([0, 0, 1], [0, 1, 3])]
    """
    if len(left) == 0 or len(right) == 0:
        return
    first = np.searchsorted(right, left, side="left")
    count = np.searchsorted(right, left, side="right") - first
    some = np.flatnonzero(count)
    total = np.cumsum(count[some])
    start, base = 0, 0
    while start < len(some):
        stop = max(start + 1, int(np.searchsorted(total, base + PAIR_BLOCK, side="right")))
        rows, size = some[start:stop], count[some[start:stop]]
        i = np.repeat(rows, size)
        ends = np.cumsum(size)
        j = np.arange(ends[-1]) + np.repeat(first[rows] - ends + size, size)
        yield i, j
        start, base = stop, int(total[stop - 1])


def columns_of(box: NDArray[np.floating]) -> tuple[Floats, ...]:
    """x1, y1, x2, y2 and area of (N, 4) boxes as contiguous float64; what is no box becomes a point at 0."""
    wide = box.astype(np.float64)
    bad = ~(np.isfinite(wide).all(axis=1) & (wide[:, 2:] >= wide[:, :2]).all(axis=1))
    if bad.any():
        wide[bad] = 0.0
    x1, y1, x2, y2 = (np.ascontiguousarray(wide[:, k]) for k in range(4))
    return x1, y1, x2, y2, (x2 - x1) * (y2 - y1)


def overlap_blocks(
    left: NDArray[np.floating],
    left_group: Ints,
    right: NDArray[np.floating],
    right_group: Ints,
    least: float,
    *,
    crowd: Bools | None = None,
) -> Iterator[Pairs]:
    """`overlapping` some two million candidates at a time."""
    order = np.argsort(right_group, kind="stable")
    ax1, ay1, ax2, ay2, a_area = columns_of(left)
    bx1, by1, bx2, by2, b_area = columns_of(right[order])
    many = None if crowd is None else crowd[order]
    for i, j in group_pairs(left_group, right_group[order]):
        width = np.minimum(ax2[i], bx2[j]) - np.maximum(ax1[i], bx1[j])
        near = np.flatnonzero(width > 0)
        i, j, width = i[near], j[near], width[near]  # noqa: PLW2901
        height = np.minimum(ay2[i], by2[j]) - np.maximum(ay1[i], by1[j])
        near = np.flatnonzero(height > 0)
        i, j, shared = i[near], j[near], width[near] * height[near]  # noqa: PLW2901
        whole = a_area[i] + b_area[j] - shared
        if many is not None:
            whole = np.where(many[j], a_area[i], whole)
        value = shared / whole
        kept = np.flatnonzero(value >= least)
        yield Pairs(i[kept], order[j[kept]], value[kept])


def overlapping(
    left: NDArray[np.floating],
    left_group: Ints,
    right: NDArray[np.floating],
    right_group: Ints,
    least: float,
    *,
    crowd: Bools | None = None,
) -> Pairs:
    """Pairs of one group whose IoU is at least `least` and above 0.

    Args:
        left: (N, 4) xyxy boxes.
        left_group: (N,) their groups (frames, or frames and classes).
        right: (M, 4) boxes.
        right_group: (M,) their groups, in any order.
        least: Smallest overlap that is kept.
        crowd: (M,) boxes for which the overlap is the share of the left box inside them.

    Example:
        >>> boxes = np.array([[0, 0, 2, 2.0]])
        >>> overlapping(boxes, np.zeros(1, int), boxes + [1, 0, 1, 0], np.zeros(1, int), 0.1).value.round(4)
        array([0.3333])
    """
    return Pairs.of(overlap_blocks(left, left_group, right, right_group, least, crowd=crowd))


def image_pairs(
    left: Predictions | Truths, left_group: Ints, right: Predictions | Truths, right_group: Ints, least: float
) -> Pairs:
    """Pairs of boxes of one group with their IoU: of the rotated boxes where both sides have them.

    Args:
        left: Boxes.
        left_group: (N,) their groups.
        right: Boxes; a crowd's column is the share of the left box inside it, where boxes are upright.
        right_group: (M,) their groups.
        least: Smallest overlap that is kept.
    """
    a, b = left.rotated, right.rotated
    if a is None or b is None:
        crowd = right.crowd if isinstance(right, Truths) else None
        return overlapping(left.box, left_group, right.box, right_group, least, crowd=crowd)
    pairs = overlapping(left.box, left_group, right.box, right_group, 0.0)
    value = measured(bev_iou_aligned, _footprint(a[pairs.left]), _footprint(b[pairs.right]))
    return replace(pairs, value=value).take(value > max(least - 1e-12, 0.0))


def _footprint(rotated: NDArray[np.floating]) -> Floats:
    """Rotated boxes as those 3D boxes whose footprints they are: the length is what the angle is of."""
    cx, cy, w, h, angle = rotated.astype(np.float64).T
    zero, one = np.zeros_like(cx), np.ones_like(cx)
    return np.stack([cx, cy, zero, h, w, one, angle], axis=1)


def near_pairs(
    left: NDArray[np.floating],
    left_group: Ints,
    right: NDArray[np.floating],
    right_group: Ints,
    limit: float,
) -> Pairs:
    """Pairs of one group whose centres are closer than `limit` in the ground plane, with their distance.

    Args:
        left: (N, >= 2) rows that begin with x, y.
        left_group: (N,) groups.
        right: (M, >= 2) rows likewise.
        right_group: (M,) groups, rising.
        limit: metres.
    """
    ax, ay = (np.ascontiguousarray(left[:, k], np.float64) for k in (0, 1))
    bx, by = (np.ascontiguousarray(right[:, k], np.float64) for k in (0, 1))
    found = []
    for i, j in group_pairs(left_group, right_group):
        dx = ax[i] - bx[j]
        close = np.flatnonzero(np.abs(dx) < limit)
        i, j, dx = i[close], j[close], dx[close]  # noqa: PLW2901
        dy = ay[i] - by[j]
        distance = np.sqrt(dx * dx + dy * dy)
        close = np.flatnonzero(distance < limit)
        found.append(Pairs(i[close], j[close], distance[close]))
    return Pairs.of(found)


def footprints(
    left: NDArray[np.floating],
    left_frame: Ints,
    right: NDArray[np.floating],
    right_frame: Ints,
    *measures: Measure,
) -> list[Pairs]:
    """Pairs of 3D boxes of a frame whose footprints may touch, once for each measure of their overlap.

    Args:
        left: (N, 7) boxes.
        left_frame: (N,) their frames.
        right: (M, 7) boxes.
        right_frame: (M,) their frames, in any order.
        measures: `bev_iou_aligned`, `iou_3d_aligned`: from the boxes of (P,) pairs to their overlaps.
    """
    order = np.argsort(right_frame, kind="stable")
    a, b = left.astype(np.float64), right.astype(np.float64)
    reach, other = np.hypot(a[:, 3], a[:, 4]) / 2, np.hypot(b[:, 3], b[:, 4]) / 2
    found = []
    for i, at in group_pairs(left_frame, right_frame[order]):
        j = order[at]
        close = np.hypot(a[i, 0] - b[j, 0], a[i, 1] - b[j, 1]) < reach[i] + other[j]
        found.append(Pairs(i[close], j[close], np.zeros(int(close.sum()))))
    pairs = Pairs.of(found)
    return [replace(pairs, value=measured(one, a[pairs.left], b[pairs.right])) for one in measures]


def measured(measure: Measure, a: NDArray[np.floating], b: NDArray[np.floating]) -> Floats:
    """(P,) overlaps of the boxes of pairs, some 65,536 at a time."""
    made = np.zeros(len(a))
    for start in range(0, len(a), MEASURED):
        span = slice(start, start + MEASURED)
        made[span] = measure(a[span].astype(np.float64), b[span].astype(np.float64))
    return made


@dataclass(frozen=True)
class ByClass:
    """A statistic of the values of each class; (K,) classes of which any value is known.

    Attributes:
        label: (K,) classes, rising.
        value: (K,) their statistic.
        otherwise: that of any other class.
    """

    label: Ints
    value: Floats
    otherwise: float

    @classmethod
    def of(
        cls, label: Ints, values: NDArray[np.floating], statistic: Callable[[Floats], float], otherwise: float
    ) -> ByClass:
        """Of (N,) values, NaN left out."""
        known = np.flatnonzero(~np.isnan(values))
        known = known[np.argsort(label[known], kind="stable")]
        classes, starts = np.unique(label[known], return_index=True)
        parts = np.split(values[known], starts[1:]) if len(classes) else []
        return cls(
            classes.astype(np.int64), np.array([statistic(one) for one in parts], np.float64), otherwise
        )

    def rows(self, label: NDArray[np.integer]) -> Floats:
        """(N,) the statistic of each row's class."""
        place = np.searchsorted(self.label, label)
        there = np.append(self.label, -1)[place] == label
        there &= place < len(self.label)
        return np.append(self.value, self.otherwise)[np.where(there, place, len(self.label))]


def by_class(
    label: Ints, values: NDArray[np.floating], statistic: Callable[[Floats], float], otherwise: float
) -> Floats:
    """(N,) a statistic of the values of each row's class, NaN left out; `otherwise` where none is known.

    Example:
        >>> by_class(np.array([0, 0, 1]), np.array([1.0, 3, np.nan]), np.median, 0.0).tolist()
        [2.0, 2.0, 0.0]
    """
    return ByClass.of(label, values, statistic, otherwise).rows(label)


def ordinal(groups: Ints) -> Ints:
    """(N,) place of every row within its run of equal groups.

    Example:
        >>> ordinal(np.array([4, 4, 7, 7, 7])).tolist()
        [0, 1, 0, 1, 2]
    """
    if len(groups) == 0:
        return np.empty(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(groups[1:] != groups[:-1]) + 1])
    size = np.diff(np.append(starts, len(groups)))
    return np.asarray(np.arange(len(groups)) - np.repeat(starts, size), dtype=np.int64)
