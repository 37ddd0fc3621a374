"""What is written of a run on one rank: passes opened, sealed, waited for, uploaded; needs no PyTorch."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.schema import HASH_KIND
from mld_core.records.write.writer import Account, Writer, WriterOptions
from mld_core.tracing.batch.hashing_host import KIND
from mld_core.tracing.guard import Guard
from mld_core.tracing.run.beside.live import live_for
from mld_core.tracing.run.beside.uploads import uploads_for
from mld_core.tracing.run.options import RecorderOptions
from mld_core.tracing.tables.columns import PassState

if TYPE_CHECKING:
    from mld_core.tracing.batch.batches import Batch


def new_launch_id() -> str:
    """UTC time with microseconds and six random hex digits: sorts by time, never repeats."""
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ") + secrets.token_hex(3)


def attempt_name(launch_id: str, restart: int | str) -> str:
    """The attempt's folder name.

    >>> attempt_name("20261121T020000000000Zab12cd", "2")
    '20261121T020000000000Zab12cd-002'
    """
    return f"{launch_id}-{int(restart):03d}"


@dataclass
class OpenPass:
    """A pass that has begun. `muted`: its events are followed, nothing is recorded.

    `dataset`: the loader's, and `size`, its samples, where the loader tells. `settled`: how its batches are
    read, once known. `repeats`: what its loader's sampler repeats, where that is known. `shared`: an
    evaluation that several ranks walk. `limit_range`: what the framework's metric drops 3D boxes beyond.
    """

    key: PassKey
    mode: str
    muted: bool = False
    continues: str | None = None
    resume_step: int | None = None
    tap: Any = None
    repeats: Any = None
    shared: bool = False
    max_ahead: int | None = None
    provisional: bool = False
    final_key: PassKey | None = None
    handle: int | None = None
    context: PassState | None = None
    settled: Any = None
    units: int = 0
    batches: int = 0
    size: int | None = None
    dataset: Any = None
    limit_range: Sequence[float] | None = None

    def draw(self, n: int | None) -> tuple[Any, int]:
        """The next batch leaves the loader: ids by the loader's order, and how many at its end are repeats.

        Args:
            n: samples in it; None: not known.
        """
        ids = None if self.tap is None else self.tap.pop(-1 if n is None else n, self.max_ahead)
        return ids, 0 if self.repeats is None else self.repeats.pop(n)

    def place(self, batch: Batch, n: int | None) -> Any:
        """`draw` of a batch that is recorded: what it tells is noted there; returns the ids."""
        drawn, batch.repeats = self.draw(n)
        batch.places = drawn if self.shared else None
        return drawn


class RunWriter:
    """Writer, seals and uploads of one run on this rank, and the evaluation beside it.

    Args:
        options: the recorder's options.
        guard: tells and counts problems.
        store: where records go.
        run: the run's names.
        attempt: the attempt all passes of this launch belong to.
        rank: this process's rank, of `world_size`.
    """

    def __init__(
        self,
        options: RecorderOptions,
        guard: Guard,
        store: Store,
        run: RunKey,
        *,
        attempt: str,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.options = options
        self.guard = guard
        self.store = store
        self.run = run
        self.attempt = attempt
        self.rank, self.world_size = rank, world_size
        self.unsupported = ""
        self.tickets: dict[int | None, list[Future[Any]]] = {}
        place: dict[str, Any] = {"attempt": attempt, "rank": rank, "world_size": world_size}
        self.uploads = uploads_for(options, guard, store, run, **place)
        self.live = live_for(options, guard, store, run, rank=rank)
        self._writer = Writer(
            store,
            run,
            **place,
            options=WriterOptions(
                queue_mb=options.queue_mb,
                on_full="drop" if options.on_full == "drop" else "block",
                roll_mb=options.roll_mb,
                roll_seconds=options.roll_seconds,
                keep_vectors=options.keep_vectors,
            ),
            on_problem=self.tell,
        )

    def tell(self, key: str, message: str) -> None:
        """Tells a message once."""
        self.guard.tell_once(key, message)

    def open(self, open_pass: OpenPass, meta: dict[str, Any]) -> None:
        """Opens a pass on disk."""
        meta = {HASH_KIND: KIND, **meta}
        open_pass.handle = self._writer.open(
            open_pass.key, continues=open_pass.continues, resume_step=open_pass.resume_step, meta=meta
        )

    def put(
        self,
        open_pass: OpenPass,
        job: Callable[[], Any],
        *,
        rows: int,
        nbytes: int,
        hurry: bool = False,
    ) -> bool:
        """Hands a batch to the writer thread; False: it was dropped, and counted."""
        assert open_pass.handle is not None
        open_pass.batches += 1
        return self._writer.put(open_pass.handle, job, rows=rows, nbytes=nbytes, hurry=hurry)

    def seal(self, open_pass: OpenPass, meta: Any = None) -> None:
        """Seals a pass in the background, under its final key where it got one."""
        assert open_pass.handle is not None
        key = None if open_pass.final_key == open_pass.key else open_pass.final_key
        ticket = self._writer.seal(open_pass.handle, meta=meta, key=key)
        self.tickets.setdefault(open_pass.key.n_epoch, []).append(ticket)
        for beside in (self.uploads, self.live):
            if beside is not None:
                ticket.add_done_callback(beside.sealed)

    def abandon(self, open_pass: OpenPass) -> None:
        """Flushes a pass and leaves it unsealed."""
        if open_pass.handle is not None:
            self._writer.abandon(open_pass.handle)
            open_pass.handle = None

    def discard(self, open_pass: OpenPass) -> None:
        """Removes a pass that turned out not to be wanted."""
        if open_pass.handle is not None:
            self._writer.discard(open_pass.handle)
            open_pass.handle = None

    def wait(self, n_epoch: int | None, timeout: float | None, *, every: bool = False) -> bool:
        """Waits until the sealed passes of an epoch (or of all) are durable on this rank."""
        return self._writer.wait(self._tickets(n_epoch, every=every), timeout)

    def _tickets(self, n_epoch: int | None, *, every: bool) -> list[Future[Any]]:
        if every:
            return [t for group in self.tickets.values() for t in group]
        return list(self.tickets.get(n_epoch, []))

    def failure(self, n_epoch: int | None, *, every: bool = False) -> BaseException | None:
        """Why a pass of that epoch could not be sealed, None if none failed (yet)."""
        done = [ticket for ticket in self._tickets(n_epoch, every=every) if ticket.done()]
        return next((error for ticket in done if (error := ticket.exception()) is not None), None)

    def wait_for_save(self, n_epoch: int | None, timeout: float | None) -> None:
        """Waits until an epoch's sealed passes (None: all) are durable and, with an endpoint, uploaded.

        Raises:
            TimeoutError: not durable, or not uploaded, in time; both go on in the background.
            PermissionError, RuntimeError: see `RunUploads.wait`; a pass could not be sealed.
        """
        begun, every = time.monotonic(), n_epoch is None
        if self.wait(n_epoch, timeout, every=every):
            if self.uploads is not None:
                rest = None if timeout is None else max(0.0, timeout - (time.monotonic() - begun))
                self.uploads.wait(self._tickets(n_epoch, every=every), rest)
            return
        failed = self.failure(n_epoch, every=every)
        if failed is not None:
            raise RuntimeError(f"epoch {n_epoch} is not sealed: {failed}") from failed
        raise TimeoutError(
            f"epoch {n_epoch} was not durable after {timeout} s; writing goes on in the background to "
            f"{self.store.root}. Give a longer timeout, or look at the disk."
        )

    def flush(self, timeout: float | None) -> bool:
        """Writes what is queued, sealed or not."""
        return self._writer.flush(timeout)

    def account(self) -> Account:
        """The writer's account so far."""
        return self._writer.account()

    def close(self, timeout: float | None) -> Account:
        """Flushes, stops the writer; what is not uploaded yet goes in the background."""
        account = self._writer.close(timeout)
        for beside in (self.uploads, self.live):
            if beside is not None:
                beside.finish()
        return account

    @property
    def unlabelled(self) -> int:
        """Rows recorded so far without a label."""
        return 0

    @property
    def spills(self) -> int:
        """Batches that found no ring slot large enough or free (CUDA)."""
        return 0


def check_traced(n_epoch: int | None, traced: Collection[int | None]) -> None:
    """Whether an epoch that is waited for was traced.

    Raises:
        ValueError: it was not; the message lists those that were.
    """
    if n_epoch is not None and n_epoch not in traced:
        known = sorted(e for e in traced if e is not None)
        raise ValueError(f"epoch {n_epoch} was never traced; traced epochs: {known or 'none'}.")
