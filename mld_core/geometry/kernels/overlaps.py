"""Which axis-aligned boxes overlap, by bit sets: far cheaper than computing the IoU of every pair."""

import numpy as np

from mld_core.geometry.kernels.arrays import FloatArray

WIDTH = 4096  # boxes per table: four tables of WIDTH^2 bits, 8 MiB in all


class OverlapTable:
    """Overlap queries against boxes given as columns (M,), M <= WIDTH.

    For each of x1, x2, y1, y2 there is a table whose row k marks, one bit per box, the k boxes with the
    smallest values. The boxes that overlap a given one then are an AND of four rows: those whose x1 is below
    its x2, whose x2 is not at or below its x1, and so for y.
    """

    def __init__(self, x1: FloatArray, y1: FloatArray, x2: FloatArray, y2: FloatArray) -> None:
        self._count = len(x1)
        self._sides = [_prefixes(values) for values in (x1, y1, x2, y2)]

    def pairs(self, x1: FloatArray, y1: FloatArray, x2: FloatArray, y2: FloatArray) -> FloatArray:
        """Flat positions, in the (queries, M) matrix, of the pairs that share area."""
        limits = (x2, "left"), (y2, "left"), (x1, "right"), (y1, "right")
        rows = [
            table[values.searchsorted(limit, "left" if side == "left" else "right")]
            for (values, table), (limit, side) in zip(self._sides, limits, strict=True)
        ]
        bits = rows[0] & rows[1] & ~(rows[2] | rows[3])
        return np.flatnonzero(np.unpackbits(bits.view(np.uint8), axis=1, count=self._count).view(bool))


def _prefixes(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values in order, and the table (M + 1, words) whose row k marks the first k of that order."""
    order = np.argsort(values)
    marks = np.zeros((len(order) + 1, (len(order) + 63) // 64 * 8), np.uint8)
    marks[np.arange(1, len(order) + 1), order >> 3] = np.left_shift(1, 7 - (order & 7))
    words = marks.view(np.uint64)
    return values[order], np.bitwise_or.accumulate(words, axis=0)
