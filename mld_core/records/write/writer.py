"""The background writer: from batches in memory to immutable parts on disk.

The write protocol
------------------
1. One writer thread per process. `put` appends to a queue under a lock and returns; it never touches the
   disk. The queue is bounded in bytes, and the bound covers all that is accepted and not yet durable. When
   it is full, `put` waits up to a deadline, then the rows are dropped and counted; from then on puts are
   dropped at once until the thread has drained half of the bound. So a disk that hangs costs a rank one
   deadline, not its training.
2. Opening a pass makes `rank-<r>/` exclusively and writes `attempt.json` (temporary name, fsync, rename,
   fsync of the folder, as all JSON files here).
3. The thread takes batches in groups (64 batches, 24 MB or half a second; at once on `flush`, at the end of
   a pass and where the queue is full), builds them, neighbours as one table where they allow it, and keeps
   them as *pending* rows of their pass. They become a part when they reach `roll_mb`, when the oldest was
   put `roll_seconds` ago (the thread wakes on its own for that), when a schema changes, on `flush` and at
   the end. A SIGKILL loses what is pending and no more.
4. A part is a folder: every family is encoded, hashed (SHA-256) and written page by page into
   `.tmp-part-...`; all files and `part.json` are fsynced, the folder is renamed to `part-<seq>`, and
   `rank-<r>/` is fsynced. A part is whole or absent; `.tmp*` is ignored by every reader.
5. When the disk refuses (full, read-only, I/O error), the rows stay pending and are tried again, at growing
   intervals, within the byte bound. Rows that can not be built or encoded are dropped and counted with the
   reason. Each kind of problem is told once through `on_problem`.
6. Sealing writes the rest, joins small neighbouring parts into `merged-<seq>` folders by the same protocol,
   writes `seal.json` with the exact list of parts, and only then removes the parts that were replaced.
   Readers of a rank without `seal.json` list `part-*` only; readers of a rank with one follow it. So a crash
   at any moment leaves every row readable once.
7. A pass is sealed when `seal.json` of all `world_size` ranks is there. Ranks never wait for each other.
8. After a fork the child holds no pass, no queue and no thread; it may open passes of its own. Pickling
   keeps the settings only.
"""

import atexit
import concurrent.futures

# Registers itself at interpreter exit when it is imported, which is too late once the exit has begun; pandas
# and pyarrow import it lazily, so rows built by the exit handler below would be lost.
import concurrent.futures.thread
import math
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.manifest import AttemptManifest, utc_now
from mld_core.records.format.options import Account, WriterOptions
from mld_core.records.write.intake import Build, Intake, OnProblem, SealMeta, Tables, Ticket, fail
from mld_core.records.write.worker import Worker

__all__ = ["Account", "Build", "Tables", "Ticket", "Writer", "WriterOptions"]

_EXIT_SECONDS = 15.0
_live: "weakref.WeakSet[Writer]" = weakref.WeakSet()


class Writer:
    """Writes the rows of one rank in the background. All methods are safe to call from any thread.

    Args:
        store: where to write.
        run: the run's names.
        attempt: name of this process group's attempt, "<launch id>-<restart>".
        rank: this process's rank.
        world_size: number of ranks that must seal a pass.
        options: see WriterOptions.
        on_problem: called with (key, message) once per kind of problem, from any thread; default: logging.
        launch_id: the launch id; default: `attempt` up to its last dash.
        restart: the restart count; default: the number after it.
    """

    def __init__(
        self,
        store: Store,
        run: RunKey,
        *,
        attempt: str,
        rank: int = 0,
        world_size: int = 1,
        options: WriterOptions | None = None,
        on_problem: OnProblem | None = None,
        launch_id: str | None = None,
        restart: int | None = None,
    ) -> None:
        if not attempt or "/" in attempt or attempt.startswith("."):
            raise ValueError(f"attempt={attempt!r}: expected '<launch id>-<restart>', without slashes")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} of world_size={world_size}: expected 0 <= rank < world_size")
        head, _, tail = attempt.rpartition("-")
        self.store, self.run, self.attempt, self.rank, self.world_size = store, run, attempt, rank, world_size
        self.launch_id = launch_id if launch_id is not None else head
        self.restart = restart if restart is not None else int(tail) if tail.isdigit() else 0
        self.options = options or WriterOptions()
        self.on_problem = on_problem
        # pyarrow imports pandas at its first conversion of an array: at start-up, please, not on the writer
        # thread, where the import would hold the interpreter's lock against the first training steps.
        pa.array(np.zeros(1))
        self._reset()

    def _reset(self) -> None:
        """Forget every live thing: at birth, after unpickling and in a forked child."""
        self._pid = os.getpid()
        self._intake = Intake(self.options, self.on_problem)
        self._worker = Worker(self._intake, self.store, self.run, self.attempt, self.rank, self.options)
        self._thread: threading.Thread | None = None
        self._next_handle = 0
        _live.add(self)

    def __getstate__(self) -> dict[str, Any]:
        names = ("store", "run", "attempt", "rank", "world_size", "launch_id", "restart")
        return {**{name: getattr(self, name) for name in names}, "options": replace(self.options, steps=None)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.on_problem = None
        self._reset()

    def _here(self) -> None:
        if self._pid != os.getpid():
            self._reset()

    # -- passes ----------------------------------------------------------------------------------------------

    def open(
        self,
        key: PassKey,
        *,
        continues: str | None = None,
        resume_step: int | None = None,
        meta: dict[str, Any] | None = None,
    ) -> int:
        """Open a pass and return its handle at once; the folder is made by the writer thread.

        Args:
            key: the pass.
            continues: the attempt whose rows with `global_step` below `resume_step` stay part of this pass.
            resume_step: see `continues`.
            meta: plain values for `attempt.json`.
        """
        self._here()
        manifest = AttemptManifest(
            **asdict(self.run),
            **asdict(key),
            attempt=self.attempt,
            rank=self.rank,
            world_size=self.world_size,
            launch_id=self.launch_id,
            restart=self.restart,
            started_at=utc_now(),
            pid=os.getpid(),
            host=socket.gethostname(),
            continues=continues,
            resume_step=resume_step,
            meta=dict(meta or {}),
        )
        with self._intake.lock:
            handle = self._next_handle
            self._next_handle += 1
            if not self._intake.closing:
                self._intake.taking[handle] = {}
                self._push(partial(self._worker.open, handle, key, manifest))
        return handle

    def put(self, handle: int, build: Build, *, rows: int, nbytes: int, hurry: bool = False) -> bool:
        """Hand over the rows of one batch. Never raises because of the rows, the disk or the queue.

        Args:
            handle: from `open`.
            build: makes {family: table}, or `Rows` that become tables with those of other batches; runs
                once, on the writer thread, up to half a second later. What it refers to must stay unchanged.
                {} says that there were no rows after all: they count as never put.
            rows: sample rows in it, for the account.
            nbytes: size in memory, for the bound of the queue.
            hurry: build them as soon as can be, not with the next group: what they refer to may change.

        Returns:
            False if the rows were dropped (and counted).
        """
        self._here()
        nbytes = max(0, nbytes)
        with self._intake.lock:
            self._intake.account.rows_put += rows
            reason = self._intake.refusal(handle, nbytes)
            if reason is None:
                self._intake.seq += 1
                self._intake.bytes += nbytes
                put = partial(self._worker.put, handle, build, rows=rows, nbytes=nbytes)
                job = partial(put, since=time.monotonic(), seq=self._intake.seq)
                self._push(job, nbytes, hurry=hurry)
                return True
            self._intake.lose(handle, rows, reason)
        self._intake.tell(f"lost:{reason}", f"records are dropped and counted: {reason}; training goes on")
        return False

    def seal(self, handle: int, *, meta: SealMeta | None = None, key: PassKey | None = None) -> Ticket:
        """Ask for a pass to be sealed; returns at once.

        Args:
            handle: from `open`; takes no rows from now on.
            meta: plain values for `seal.json`, or a function that gives them, called on the writer thread
                when all rows are built. Where it gives None there was nothing to record: the pass is removed.
            key: the pass this turned out to be, where that was not known at `open`; its folder is renamed.

        Returns:
            A future with the SealManifest; RuntimeError in it if the pass can not be sealed.
        """
        self._here()
        ticket: Ticket = concurrent.futures.Future()
        with self._intake.lock:
            if handle in self._intake.tickets:
                return self._intake.tickets[handle]
            if handle in self._intake.taking and not self._intake.closing:
                self._intake.ended[handle] = self._intake.taking.pop(handle)
                self._intake.tickets[handle] = ticket
                given = meta if callable(meta) else dict(meta or {})
                self._push(partial(self._worker.seal, handle, given, key))
                return ticket
        ticket.set_exception(RuntimeError(f"pass {handle} can not be sealed: it is not open in this process"))
        return ticket

    def abandon(self, handle: int) -> None:
        """Write what is there and leave the pass unsealed; it takes no rows from now on."""
        self._leave(handle, discard=False)

    def discard(self, handle: int) -> None:
        """Remove a pass that turned out to be unwanted, with its rows; it takes none from now on."""
        self._leave(handle, discard=True)

    def _leave(self, handle: int, *, discard: bool) -> None:
        self._here()
        with self._intake.lock:
            if handle in self._intake.taking:
                self._intake.ended[handle] = self._intake.taking.pop(handle)
                self._push(partial(self._worker.leave, handle, discard=discard))

    # -- waiting ---------------------------------------------------------------------------------------------

    def wait(self, tickets: Iterable[Ticket] | None = None, timeout: float | None = None) -> bool:
        """Wait until tickets are done; None = all that are outstanding.

        Returns:
            True if every one of them succeeded within `timeout` seconds.
        """
        self._here()
        if tickets is None:
            with self._intake.lock:
                tickets = [*self._intake.tickets.values(), *self._intake.flushes]
        done, late = concurrent.futures.wait(list(tickets), timeout)
        return not late and all(not ticket.cancelled() and ticket.exception() is None for ticket in done)

    def flush(self, timeout: float | None = None) -> bool:
        """Make everything put so far durable, as far as it was not lost.

        Returns:
            False if that took longer than `timeout` seconds; writing goes on in the background.
        """
        self._here()
        ticket: Ticket = concurrent.futures.Future()
        with self._intake.lock:
            if self._thread is None or not self._thread.is_alive():
                return not self._intake.queue
            self._intake.flushes.append(ticket)
            self._push(partial(self._worker.flush, ticket, self._intake.seq))
        return self.wait([ticket], timeout)

    def close(self, timeout: float | None = 60.0) -> Account:
        """Write what is left, finish the seals that were asked for, stop the thread.

        Args:
            timeout: seconds; after them the rest is given up and counted as lost. None = no limit. A disk
                that refuses or hangs, with no row written for `block_deadline_s`, is given up earlier.

        Returns:
            The final account. Calling again returns it again.
        """
        self._here()
        with self._intake.lock:
            for handle in list(self._intake.taking):
                self._intake.ended[handle] = self._intake.taking.pop(handle)
                self._intake.push(partial(self._worker.leave, handle, discard=False))
            self._intake.closing = True
            thread = self._thread
            self._intake.wake.notify_all()
            self._intake.space.notify_all()
        if thread is not None and thread is not threading.current_thread():
            self._join(thread, timeout)
        with self._intake.lock:
            self._intake.given_up = True
            self._intake.wake.notify_all()
            account = self._intake.account
            left = account.rows_put - account.rows_written - account.rows_lost
            if left:
                why = self._intake.trouble or "out of time"
                self._intake.lose(-1, left, f"not written when the writer was closed ({why})")
                self._intake.queue.clear()
            open_tickets = list(self._intake.tickets.values())
        for ticket in open_tickets:
            fail(ticket, "the writer was closed before the pass was sealed")
        return self.account()

    def _join(self, thread: threading.Thread, timeout: float | None) -> None:
        """Wait for the thread to end, for as long as it makes progress."""
        begun = progress_at = time.monotonic()
        seen = -1
        while thread.is_alive():
            now = time.monotonic()
            account = self._intake.account
            done = account.rows_written + account.rows_lost + account.parts
            if done != seen:
                seen, progress_at = done, now
            rest = math.inf if timeout is None else begun + timeout - now
            if self._intake.trouble is not None or self._intake.tripped:
                # The disk refuses or hangs; without that a long compaction may take its time.
                rest = min(rest, progress_at + self.options.block_deadline_s - now)
            if rest <= 0:
                return
            thread.join(min(rest, 1.0))

    def account(self) -> Account:
        """What became of the rows so far: a copy."""
        with self._intake.lock:
            return replace(self._intake.account, reasons=dict(self._intake.account.reasons))

    def _push(self, job: Callable[[], None], nbytes: int = 0, *, hurry: bool = True) -> None:
        """Queue a job and see to it that the thread runs. The lock is held."""
        self._intake.push(job, nbytes, hurry=hurry)
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._main, name="mld-writer", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the interpreter is shutting down, or no thread is to be had
            self._thread = None
            self._intake.trouble = f"no writer thread: {error}"

    def _main(self) -> None:
        # A bound method, so that a writer that nobody holds any more lives until its rows are written.
        self._worker.run()


def _after_fork_in_child() -> None:
    # The parent's lock may be held by a thread that does not exist here, so nothing of it is reused.
    for writer in list(_live):
        writer._reset()  # noqa: SLF001 - same module


def _at_exit() -> None:
    deadline = time.monotonic() + _EXIT_SECONDS
    for writer in list(_live):
        writer.close(max(0.0, deadline - time.monotonic()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
