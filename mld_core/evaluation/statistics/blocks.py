"""Threads and blocks for array work whose result is the same to the last bit for any number of threads.

Work is cut into blocks of a fixed size, every block is computed with one BLAS thread, and block results are
folded in the order of the blocks. How many run at once changes the time, never a figure.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
R = TypeVar("R")

FLOAT16_MAX = 65_504.0
"""What an infinite feature becomes: the largest float16, so that an overflow stays an extreme value."""


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


def usable_threads() -> int:
    """Cores this process may use, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, usable)


_inside = threading.local()


def _enter_worker() -> None:
    """Start of a worker: the number of OpenMP threads is a property of the thread that asks for them."""
    _inside.worker = True
    threadpool_limits(1, user_api="openmp")


class Workers:
    """A pool of threads with BLAS and OpenMP held at one thread inside; use it as a context.

    Example:
        >>> with Workers(2) as workers:
        ...     list(workers.map(lambda x: x * x, range(4)))
        [0, 1, 4, 9]
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads}: expected a whole number of at least 1, or None")
        self.threads = threads or usable_threads()
        self._pool: ThreadPoolExecutor | None = None
        self._limit: Any = None

    def __enter__(self) -> Self:
        self._limit = threadpool_limits(1, user_api="blas")
        self._pool = ThreadPoolExecutor(self.threads, initializer=_enter_worker)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pool is not None
        self._pool.shutdown(cancel_futures=True)
        self._pool = None
        self._limit.__exit__(kind, error, trace)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply `work` to every item; answers come in the order of the items, few items are held at once.

        Inside a worker (work that maps work) the items are taken one after the other: no thread waits for
        the pool it stands in.
        """
        if self._pool is None:
            raise RuntimeError("Workers is not open: use it as `with Workers() as workers:`")
        if getattr(_inside, "worker", False):
            yield from map(work, items)
            return
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(work, item))
                if len(waiting) > 2 * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for ticket in waiting:
                ticket.cancel()

    def each(self, work: Callable[[T], object], items: Iterable[T]) -> None:
        """Apply `work` to every item for its effect."""
        for _ in self.map(work, items):
            pass


def spans(count: int, rows: int) -> list[slice]:
    """Cut `count` rows into slices of `rows` rows.

    Example:
        >>> spans(5, 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


def row_blocks(vectors: Vectors, rows: int) -> Iterator[NDArray[np.float32]]:
    """Walk over (N, D) vectors in float32 blocks of exactly `rows` rows (the last may be shorter).

    NaN becomes 0 and infinity the largest float16, so that one overflow does not erase a covariance.
    """
    if isinstance(vectors, np.ndarray):
        for span in spans(len(vectors), rows):
            yield finite_float32(vectors[span])
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
                yield finite_float32(np.concatenate(kept))
                kept, have = [], 0
    if have:
        yield finite_float32(np.concatenate(kept))


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
