"""Rounds over the parts of a pass: a kernel maps its batches, states are folded in the order of the parts.

One function, `walk_part`, does the work of a part wherever it runs: in a thread here (`PartRounds`), or in a
task of a cluster (`ray_rounds`). Parts are read in place; what travels is where they lie, the broadcast of
the round, and the states. A part that has to be walked again gives the same state and the same file. States
are folded as they come, in the order of the parts: few are held at once, however many parts there are.
"""

from __future__ import annotations

import errno
import pickle
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Round, Stage, State, Workers
from mld_core.evaluation.engine.passes import ROW, layer_column, unit_file

if TYPE_CHECKING:
    from mld_core.records.read.parts import PassPart

S = TypeVar("S", bound=State)

ENGINES = ("memory", "rounds", "ray")
"""Values of the option `engine`: all in this process's memory; in rounds on its threads; on a Ray cluster."""


class Walk(Protocol):
    """What a round walks over one at a time, shipped as plain data: a part, or what is in it."""

    @property
    def number(self) -> int:
        """Its place among the walks of a round."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        ...

    def batches(self) -> Iterator[Any]:
        """What the kernel is given, one after the other; each has `num_rows`."""
        ...


@dataclass(frozen=True)
class PartWalk:
    """How the batches of a part are read: plain data.

    Attributes:
        part: The part.
        first: Number of its first row in the pass.
        vectors: Columns of its vectors.
        batch_rows: Rows of a batch.
    """

    part: PassPart
    first: int
    vectors: tuple[str, ...]
    batch_rows: int

    @property
    def number(self) -> int:
        """See `Walk`."""
        return self.part.number

    @property
    def nbytes(self) -> int:
        """See `Walk`."""
        return self.part.nbytes

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Batches of all sample columns, the vectors asked for (as `layer_column`) and `ROW`.

        Raises:
            FileNotFoundError: The part is not there any more.
            ValueError: It has not one vector for each sample.
        """
        with gone_is_told(self.part):
            yield from self._batches()

    def _batches(self) -> Iterator[pa.RecordBatch]:
        from itertools import zip_longest

        samples = self.part.batches("samples", None, self.batch_rows)
        pieces: Iterable[tuple[pa.RecordBatch, pa.RecordBatch | None]] = ((one, None) for one in samples)
        if self.vectors:
            pieces = zip_longest(samples, self.part.batches("vectors", list(self.vectors), self.batch_rows))
        start = self.first
        for left, right in pieces:
            if left is None or (right is not None and right.num_rows != left.num_rows):
                raise ValueError("a part has not one vector for each sample: run `mld doctor` on the store")
            if right is None and self.vectors:
                raise ValueError("a part has not one vector for each sample: run `mld doctor` on the store")
            columns, fields = list(left.columns), list(left.schema)
            if right is not None:
                columns += list(right.columns)
                fields += [one.with_name(layer_column(one.name)) for one in right.schema]
            columns.append(pa.array(np.arange(start, start + left.num_rows), pa.int64()))
            yield pa.RecordBatch.from_arrays(columns, schema=pa.schema([*fields, pa.field(ROW, pa.int64())]))
            start += left.num_rows


@contextmanager
def gone_is_told(part: PassPart) -> Iterator[None]:
    """Say what to do where a part is not there any more.

    Raises:
        FileNotFoundError: So it is.
    """
    try:
        yield
    except FileNotFoundError as error:
        where = part.source.folder.path / part.part.name
        text = "a part was joined with others or removed since the evaluation began: evaluate again"
        raise FileNotFoundError(errno.ENOENT, text, str(where)) from error


@dataclass
class Walked(Generic[S]):
    """What the walk over a part brought, and what it took.

    Attributes:
        state: The folded state of its batches.
        rows: How many it read.
        cpu_seconds: Processor time of the walk.
        peak_bytes: Largest resident memory of the process so far.
        sent: Bytes of the state, as another process would send it; 0 where none does.
        written: Bytes of the file of its output.
        table: That file, where it was made on another machine.
    """

    state: S
    rows: int
    cpu_seconds: float
    peak_bytes: int
    sent: int = 0
    written: int = 0
    table: NDArray[np.uint8] | None = None


@dataclass
class Cost:
    """What a round took: rows, processor seconds of the parts' walks, wall seconds, and bytes."""

    name: str
    rows: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    read: int = 0
    broadcast: int = 0
    states: int = 0
    written: int = 0
    peak_bytes: int = 0

    def add(self, one: Walked[Any]) -> None:
        """Count a part."""
        self.rows += one.rows
        self.cpu_seconds += one.cpu_seconds
        self.states += one.sent
        self.written += one.written
        self.peak_bytes = max(self.peak_bytes, one.peak_bytes)


def walk_part(walk: Walk, work: Round[S], target: Path | None, *, measure: bool = False) -> Walked[S]:
    """Walk over one part: fold the states of its batches in their order, write what the kernel gives back.

    Args:
        walk: The part, or another walk.
        work: The round.
        target: Parquet file for the kernel's batches; there only once it is whole.
        measure: Also tell how large the state is.
    """
    clock = time.thread_time()
    state, rows, written = work.zero, 0, 0
    begun, writer = False, None
    beside = None if target is None else target.with_name(f".{target.name}.{time.time_ns()}")
    try:
        for batch in walk.batches():
            output, found = work.kernel(batch, work.broadcast)
            state = state.merge(found) if begun else found
            begun, rows = True, rows + batch.num_rows
            if output is not None and beside is not None:
                writer = writer or unit_file(beside, output.schema)
                writer.write_batch(output)
        if writer is not None and beside is not None and target is not None:
            writer.close()
            written = beside.stat().st_size
            beside.replace(target)
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
    sent = len(pickle.dumps(state, protocol=5)) if measure else 0
    return Walked(state, rows, time.thread_time() - clock, _peak_bytes(), sent, written)


def _peak_bytes() -> int:
    """Largest resident memory of this process; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


@dataclass
class Folded(Generic[S]):
    """What a round came to: the state of all parts together, and how many rows each of them has."""

    state: S
    rows: list[int]


class Rounds(Protocol):
    """What walks over parts, and the workers of this machine for everything else; used as a context."""

    workers: Workers
    costs: list[Cost]

    def __enter__(self) -> Rounds:  # noqa: PYI034  typing.Self needs Python 3.11
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def over(self, work: Round[S], walks: Sequence[Walk], folder: Path | None = None) -> Folded[S]:
        """Run a round over some parts.

        Args:
            work: The round.
            walks: The parts.
            folder: Where each part's output goes, as `<number>.parquet`; None = the kernel gives none.
        """
        ...


class PartRounds:
    """Rounds on the threads of this machine.

    Args:
        workers: Its threads.
        measure: Also tell how large broadcasts and states are, though nothing is sent here.
    """

    def __init__(self, workers: Workers, *, measure: bool = False) -> None:
        self.workers = workers
        self.measure = measure
        self.costs: list[Cost] = []

    def __enter__(self) -> PartRounds:  # noqa: PYI034  the same
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is kept from round to round."""

    def over(self, work: Round[S], walks: Sequence[Walk], folder: Path | None = None) -> Folded[S]:
        """See `Rounds.over`."""
        start = time.perf_counter()
        size = len(pickle.dumps(work, protocol=5)) if self.measure else 0
        cost = cost_of(work, walks, size)
        one = partial(_walk, work=work, folder=folder, measure=self.measure)
        with self.workers.stage(work.name, len(walks)) as stage, self.workers:
            found = folded(work, self.workers.map(one, walks), cost, stage)
        cost.seconds = time.perf_counter() - start
        self.costs.append(cost)
        return found


def rounds_of(workers: Workers, options: Mapping[str, Any]) -> Rounds:
    """What walks over parts under the option `engine`: this machine's threads, or a Ray cluster.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: There is no cluster at `ray_address`.
        ValueError: `ray_address` is none, or another than the one this process is connected to.
    """
    if options.get("engine") != "ray":
        return PartRounds(workers)
    from mld_core.evaluation.engine.ray_rounds import RayRounds

    return RayRounds(workers, options.get("ray_address"))


def _walk(walk: Walk, work: Round[S], folder: Path | None, *, measure: bool) -> Walked[S]:
    return walk_part(walk, work, target_of(walk, folder), measure=measure)


def target_of(walk: Walk, folder: Path | None) -> Path | None:
    """The file of a part's output."""
    return None if folder is None else folder / f"{walk.number:06d}.parquet"


def folded(
    work: Round[S], walked: Iterable[Walked[S]], cost: Cost | None = None, stage: Stage | None = None
) -> Folded[S]:
    """Fold what comes of the parts, in their order, and count what it took."""
    # What came from another process is read-only: merging begins with a state of our own.
    found = Folded(deepcopy(work.zero), [])
    for one in walked:
        found.state = found.state.merge(one.state)
        found.rows.append(one.rows)
        if cost is not None:
            cost.add(one)
        if stage is not None:
            stage.advance(1)
    return found


def numbered(walks: Sequence[PartWalk], rows: Sequence[int]) -> list[PartWalk]:
    """The same parts, now that their rows are counted: each knows the number of its first row."""
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(int)
    return [replace(walk, first=int(start)) for walk, start in zip(walks, starts, strict=False)]


def cost_of(work: Round[S], walks: Sequence[Walk], broadcast: int = 0) -> Cost:
    """What a round takes before its parts are walked over."""
    return Cost(work.name, read=sum(walk.nbytes for walk in walks), broadcast=broadcast)
