"""Predicted and true boxes of many frames as flat columns, and the pairs of them that share a frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

PAIR_BLOCK = 1 << 21
"""Pairs whose overlap is computed at once: temporaries of about 16 MiB each."""


@dataclass(frozen=True)
class Predictions:
    """Predicted boxes, frames in rising order.

    Attributes:
        frame: (N,) number of the frame, rising.
        label: (N,) predicted classes.
        score: (N,) float32 or float64 confidences.
        box: (N, 4) xyxy pixels or (N, 7) cx, cy, cz, w, l, h, yaw.
    """

    frame: Ints
    label: Ints
    score: NDArray[np.floating]
    box: NDArray[np.floating]

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, rows: NDArray[Any] | slice) -> Predictions:
        """The boxes of some rows."""
        return Predictions(self.frame[rows], self.label[rows], self.score[rows], self.box[rows])


@dataclass(frozen=True)
class Truths:
    """True boxes, frames in rising order.

    Attributes:
        frame: (G,) number of the frame, rising.
        label: (G,) true classes.
        box: (G, 4) or (G, 7).
        ignore: (G,) a prediction that finds it counts neither as right nor as wrong.
        crowd: (G,) ignored, and found by any number of predictions.
    """

    frame: Ints
    label: Ints
    box: NDArray[np.floating]
    ignore: Bools
    crowd: Bools

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, rows: NDArray[Any] | slice) -> Truths:
        """The boxes of some rows."""
        return Truths(self.frame[rows], self.label[rows], self.box[rows], self.ignore[rows], self.crowd[rows])

    @property
    def counts(self) -> Bools:
        """(G,) truths that must be found: neither ignored nor a crowd."""
        return ~(self.ignore | self.crowd)


@dataclass(frozen=True)
class Pairs:
    """Some pairs of a left and a right box.

    Attributes:
        left: (P,) rows of the left boxes, rising.
        right: (P,) rows of the right boxes, rising within a left box.
        value: (P,) float64 overlap, or whatever the pairs were measured by.
    """

    left: Ints
    right: Ints
    value: Floats

    def where(self, keep: Bools) -> Pairs:
        """The pairs that are kept."""
        return Pairs(self.left[keep], self.right[keep], self.value[keep])

    def __len__(self) -> int:
        return len(self.left)


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
    order = np.argsort(right_group, kind="stable")
    ax1, ay1, ax2, ay2, a_area = columns_of(left)
    bx1, by1, bx2, by2, b_area = columns_of(right[order])
    many = None if crowd is None else crowd[order]
    found = []
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
        found.append((i[kept], order[j[kept]], value[kept]))
    if not found:
        return NO_PAIRS
    return Pairs(*(np.concatenate([part[k] for part in found]) for k in range(3)))


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
