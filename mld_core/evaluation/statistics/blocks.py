"""Blocks of rows: work is cut into them, and vectors on disk are walked over in them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FLOAT16_MAX = 65_504.0
"""What an infinite feature becomes: the largest float16, so that an overflow stays an extreme value."""

_NUMBERS = 2**22
_ROWS = 2**16


class VectorSource(Protocol):
    """(N, D) vectors that can only be walked over, such as those of a pass on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Walk over the vectors, about `rows` at a time."""
        ...


Vectors = NDArray[Any] | VectorSource
"""(N, D) floats of any width: an array, a memory map, or a source that is walked over."""


def spans(count: int, rows: int) -> list[slice]:
    """Cut `count` rows into slices of `rows` rows.

    Example:
        >>> spans(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def rows_at_once(width: int, *, least: int = 64) -> int:
    """How many rows of so many numbers each are worked on at once: few columns leave work for every thread.

    Example:
        >>> rows_at_once(10), rows_at_once(1_000), rows_at_once(10**6)
        (65536, 4194, 64)
    """
    return max(least, min(_ROWS, _NUMBERS // max(width, 1)))


def row_blocks(vectors: Vectors, rows: int) -> Iterator[NDArray[np.float32]]:
    """Walk over (N, D) vectors in float32 blocks of exactly `rows` rows (the last may be shorter).

    NaN becomes 0 and infinity the largest float16, so that one overflow does not erase a covariance.
    """
    yield from map(finite_float32, stored_blocks(vectors, rows))


def stored_blocks(vectors: Vectors, rows: int) -> Iterator[NDArray[Any]]:
    """The same blocks as they are stored, for whoever makes numbers of them in another thread."""
    if isinstance(vectors, np.ndarray):
        for span in spans(len(vectors), rows):
            yield vectors[span]
            let_go(vectors)
        return
    kept: list[NDArray[Any]] = []
    have = 0
    for piece in vectors.blocks(rows):
        rest = piece
        while len(rest):
            take = rest[: rows - have]
            kept.append(take)
            have += len(take)
            rest = rest[len(take) :]
            if have == rows:
                yield np.concatenate(kept) if len(kept) > 1 else kept[0]
                kept, have = [], 0
    if have:
        yield np.concatenate(kept)


def let_go(values: NDArray[Any]) -> None:
    """Give back the pages of a memory map: what was read of a large file does not stay resident.

    They come back from the system's cache when they are read again. What is no map of a file, or a private
    one whose changes are nowhere else, is left as it is.
    """
    if isinstance(values, np.memmap) and values.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        held: Any = values
        while isinstance(held, np.memmap):
            held = held.base
        if isinstance(held, mmap.mmap):
            held.madvise(mmap.MADV_DONTNEED)


def finite_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """The values as float32 with NaN as 0 and infinity as the largest float16.

    Example:
        >>> finite_float32(np.array([1.0, np.nan, -np.inf])).tolist()
        [1.0, 0.0, -65504.0]
    """
    wide = np.asarray(values, dtype=np.float32)
    if np.isfinite(wide).all():
        return wide
    return np.nan_to_num(wide, nan=0.0, posinf=FLOAT16_MAX, neginf=-FLOAT16_MAX)
