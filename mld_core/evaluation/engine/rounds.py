"""Rounds of map, merge and broadcast: the only way the evaluation walks over records.

A round maps a *kernel* over record batches, `kernel(batch, broadcast) -> (batch or None, state)`, and folds
the states with `State.merge`, which is associative and commutative. What one round found is the broadcast of
the next. Kernels are module-level functions and broadcasts are plain data, so another engine can ship both to
other machines.

The embedded engine maps with threads (numpy releases the interpreter lock inside its loops). States are
folded and batches are handed on in the order of the batches, never in the order of completion: the result of
a round is the same, to the last bit, for any number of threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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
        kernel: `(batch, broadcast) -> (output batch or None, state)`; a module-level function.
        zero: The state of no rows at all.
        broadcast: What every call of the kernel is given: plain data from earlier rounds.
    """

    name: str
    kernel: Callable[[pa.RecordBatch, Any], tuple[pa.RecordBatch | None, S]]
    zero: S
    broadcast: Any = None


class Reporter:
    """Progress of the stages on stderr: a bar on a terminal, nothing elsewhere."""

    def __init__(self, *, enabled: bool | None = None) -> None:
        console = Console(stderr=True)
        show = console.is_terminal if enabled is None else enabled
        self._progress: Progress | None = None
        if show:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._progress = Progress(*columns, console=console, transient=True)

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
        return Stage(name, total, self._progress)


class Stage(AbstractContextManager["Stage"]):
    """One line of the progress display; `advance` may be called from the mapping thread only."""

    def __init__(self, name: str, total: int | None, progress: Progress | None) -> None:
        self.name = name
        self._progress = progress
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


class Engine(Protocol):
    """Runs rounds; every engine gives the same counts and, to 1e-9 relative, the same sums."""

    def run(
        self,
        work: Round[S],
        batches: Iterable[pa.RecordBatch],
        *,
        sink: Sink | None = None,
        rows: int | None = None,
    ) -> S:
        """Map `work` over `batches`, hand output batches to `sink` in order, return the merged state."""
        ...


@dataclass
class EmbeddedEngine:
    """Maps in this process with threads.

    Attributes:
        threads: Kernels in flight at once; None = one for each usable core, at most 16.
        reporter: Where progress goes.

    Example:
        >>> from dataclasses import dataclass
        >>> import pyarrow as pa
        >>> @dataclass
        ... class Total:
        ...     value: int
        ...     def merge(self, other):
        ...         return Total(self.value + other.value)
        >>> def add_up(batch, scale):
        ...     return None, Total(scale * sum(batch["x"].to_pylist()))
        >>> batches = [pa.RecordBatch.from_pydict({"x": [1, 2]}), pa.RecordBatch.from_pydict({"x": [3]})]
        >>> EmbeddedEngine(threads=2).run(Round("total", add_up, Total(0), broadcast=10), batches).value
        60
    """

    threads: int | None = None
    reporter: Reporter = field(default_factory=lambda: Reporter(enabled=False))

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads={self.threads}: expected a whole number of at least 1, or None")

    @property
    def width(self) -> int:
        """Number of threads in use."""
        if self.threads is not None:
            return self.threads
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(16, usable)

    def run(
        self,
        work: Round[S],
        batches: Iterable[pa.RecordBatch],
        *,
        sink: Sink | None = None,
        rows: int | None = None,
    ) -> S:
        """Map `work` over `batches` with at most `2 * threads` batches in memory."""
        waiting: deque[tuple[int, Future[tuple[pa.RecordBatch | None, S]]]] = deque()
        state: S | None = None

        def take(state: S | None, stage: Stage) -> S:
            size, ticket = waiting.popleft()
            output, part = ticket.result()
            if sink is not None and output is not None:
                sink(output)
            stage.advance(size)
            return part if state is None else state.merge(part)

        with self.reporter.stage(work.name, rows) as stage, ThreadPoolExecutor(self.width) as pool:
            try:
                for batch in batches:
                    waiting.append((batch.num_rows, pool.submit(work.kernel, batch, work.broadcast)))
                    if len(waiting) >= 2 * self.width:
                        state = take(state, stage)
                while waiting:
                    state = take(state, stage)
            finally:
                for _, ticket in waiting:
                    ticket.cancel()
        return work.zero if state is None else state

    def each(self, name: str, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Apply `work` to every item with threads; the answers stand in the order of the items."""
        todo = list(items)
        answers: list[Any] = []
        with self.reporter.stage(name, len(todo)) as stage, ThreadPoolExecutor(self.width) as pool:
            for answer in pool.map(work, todo):
                answers.append(answer)
                stage.advance(1)
        return answers
