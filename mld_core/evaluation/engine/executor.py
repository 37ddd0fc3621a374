"""The one executor: threads whose work gives the same result, to the last bit, for any number of them.

Work is cut into blocks of a fixed size, every block is computed with one BLAS and one OpenMP thread, and the
answers are taken in the order of the blocks, never in the order of completion (numpy releases the
interpreter lock inside its loops). How many run at once changes the time, never a figure.

Over records the evaluation walks in rounds of map, merge and broadcast: a round maps a *kernel* over record
batches, `kernel(batch, broadcast) -> (batch or None, state)`, and folds the states with `State.merge`, which
is associative and commutative. What one round found is the broadcast of the next. Kernels are module-level
functions and broadcasts are plain data, so another executor can ship both to other machines.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import pyarrow as pa
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S", bound="State")
Sink = Callable[[pa.RecordBatch], None]


class State(Protocol):
    """What a kernel learned from one batch; merging is associative and commutative."""

    def merge(self: S, other: S) -> S:  # noqa: PYI019  typing.Self needs Python 3.11
        """Return the state of both batches together; may reuse either operand."""
        ...


@dataclass(frozen=True)
class Round(Generic[S]):
    """One walk over the rows of a split.

    Attributes:
        name: What the progress bar shows, e.g. "scalars".
        kernel: `(batch, broadcast) -> (output batch or None, state)`; a module-level function. A batch is
            whatever a walk gives.
        zero: The state of no rows at all.
        broadcast: What every call of the kernel is given: plain data from earlier rounds.
    """

    name: str
    kernel: Callable[[Any, Any], tuple[pa.RecordBatch | None, S]]
    zero: S
    broadcast: Any = None


class Reporter:
    """Progress of the stages on stderr: what is done and what is left on a terminal, nothing elsewhere.

    Args:
        expected: How many stages there will be, for the line of the whole.
        enabled: Whether to show it; None = on a terminal.
    """

    def __init__(self, expected: int = 0, *, enabled: bool | None = None) -> None:
        console = Console(stderr=True)
        show = console.is_terminal if enabled is None else enabled
        self._progress: Progress | None = None
        if show:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _LeftColumn())
            self._progress = Progress(*columns, console=console, transient=True)
            self._whole = self._progress.add_task("evaluation, stages", total=expected or None)

    def __enter__(self) -> Reporter:  # noqa: PYI034  the same
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def stage(self, name: str, total: int | None = None) -> Stage:
        """Open a line for a stage; `total` is in rows, None where it is unknown."""
        if self._progress is None:
            return Stage(name, total)
        return Stage(name, total, self._progress, self._whole)


class _LeftColumn(TimeRemainingColumn):
    """The time a stage still takes, where its size is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task).append(" left")


class Stage(AbstractContextManager["Stage"]):
    """One line of the progress display; `advance` may be called from the mapping thread only."""

    def __init__(
        self, name: str, total: int | None, progress: Progress | None = None, whole: TaskID | None = None
    ) -> None:
        self.name = name
        self._progress = progress
        self._whole = whole
        self._task = progress.add_task(name, total=total) if progress is not None else None

    def advance(self, rows: int) -> None:
        """Count `rows` more as done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            if self._whole is not None:
                self._progress.advance(self._whole)


_inside = threading.local()


def enter_worker() -> None:
    """Start of a worker: the number of OpenMP threads is a property of the thread that asks for them."""
    _inside.worker = True
    threadpool_limits(1, user_api="openmp")


def _at_once(work: Callable[[], T]) -> Future[T]:
    done: Future[T] = Future()
    done.set_result(work())
    return done


class Workers:
    """A pool of threads; opened as a context it is kept, else each walk opens one of its own.

    Example:
        >>> with Workers(2) as workers:
        ...     list(workers.map(lambda x: x * x, range(4)))
        [0, 1, 4, 9]
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Total:
        ...     value: int
        ...     def merge(self, other):
        ...         return Total(self.value + other.value)
        >>> def add_up(batch, scale):
        ...     return None, Total(scale * sum(batch["x"].to_pylist()))
        >>> batches = [pa.RecordBatch.from_pydict({"x": [1, 2]}), pa.RecordBatch.from_pydict({"x": [3]})]
        >>> Workers(2).run(Round("total", add_up, Total(0), broadcast=10), batches).value
        60

    Args:
        threads: None = one for each usable core, at most 16.
        reporter: Where progress goes.
    """

    def __init__(self, threads: int | None = None, reporter: Reporter | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads}: expected a whole number of at least 1, or None")
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = threads or min(16, usable)
        self.reporter = reporter or Reporter(enabled=False)
        self._depth = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._limit: Any = None

    def __enter__(self) -> Self:
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._limit = threadpool_limits(1, user_api="blas")
                self._pool = ThreadPoolExecutor(self.threads, initializer=enter_worker)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth or self._pool is None:
                return
            pool, limit, self._pool = self._pool, self._limit, None
        pool.shutdown(cancel_futures=True)  # what still runs in it may open it itself: not under the lock
        limit.__exit__(kind, error, trace)

    @contextmanager
    def beside(self) -> Iterator[Callable[[Callable[[], Any]], Future[Any]]]:
        """What has work done beside the caller, in order; with one thread, and in a worker, at once.

        Where the caller fails, what is under way ends with its next item.

        Example:
            >>> with Workers(2) as workers, workers.beside() as beside:
            ...     total = beside(lambda: sum(workers.map(abs, [-1, -2])))
            ...     total.result()
            3
        """
        if self.threads == 1 or getattr(_inside, "worker", False):
            yield _at_once
            return
        left = threading.Event()
        with ThreadPoolExecutor(1, initializer=setattr, initargs=(_inside, "left", left)) as thread:
            try:
                yield thread.submit
            except BaseException:
                left.set()
                thread.shutdown(wait=False, cancel_futures=True)
                raise

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply `work` to every item; answers come in the order of the items, few items are held at once.

        Inside a worker (work that maps work) the items are taken one after the other: no thread waits for
        the pool it stands in.
        """
        if getattr(_inside, "worker", False):
            yield from map(work, items)
            return
        waiting: deque[Future[R]] = deque()
        left: threading.Event | None = getattr(_inside, "left", None)
        with self:
            assert self._pool is not None
            try:
                for item in items:
                    if left is not None and left.is_set():
                        raise CancelledError
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

    def run(
        self,
        work: Round[S],
        batches: Iterable[pa.RecordBatch],
        *,
        sink: Sink | None = None,
        rows: int | None = None,
    ) -> S:
        """Map `work` over `batches`, hand output batches to `sink` in order, return the merged state."""

        def one(batch: pa.RecordBatch) -> tuple[int, tuple[pa.RecordBatch | None, S]]:
            return batch.num_rows, work.kernel(batch, work.broadcast)

        state: S | None = None
        with self.stage(work.name, rows) as stage:
            for size, (output, part) in self.map(one, batches):
                if sink is not None and output is not None:
                    sink(output)
                stage.advance(size)
                state = part if state is None else state.merge(part)
        return work.zero if state is None else state

    def stage(self, name: str, total: int | None = None) -> Stage:
        """Open a line of progress; `total` is in rows, None where it is unknown."""
        return self.reporter.stage(name, total)
