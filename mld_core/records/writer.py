"""The background writer: from batches in memory to immutable parts on disk.

The write protocol
------------------
1. One writer thread per process. `put` appends to a queue under a lock and returns; it never touches the disk. The
   queue is bounded in bytes, and the bound covers all that is accepted and not yet durable. When it is full, `put`
   waits up to a deadline, then the rows are dropped and counted; from then on puts are dropped at once until the
   thread has drained half of the bound. So a disk that hangs costs a rank one deadline, not its training.
2. Opening a pass makes `rank-<r>/` exclusively and writes `attempt.json` (temporary name, fsync, rename, fsync of
   the folder, as all JSON files here).
3. Batches are built on the thread and kept as *pending* rows of their pass. They become a part when they reach
   `roll_mb`, when the oldest is `roll_seconds` old (the thread wakes on its own for that), when a schema changes,
   on `flush` and at the end. A SIGKILL loses what is pending and no more.
4. A part is a folder: every family is encoded in memory and hashed (SHA-256), all files and `part.json` are written
   into `.tmp-part-...` and fsynced, the folder is renamed to `part-<seq>`, and `rank-<r>/` is fsynced. A part is
   whole or absent; `.tmp*` is ignored by every reader.
5. When the disk refuses (full, read-only, I/O error), the rows stay pending and are tried again, at growing
   intervals, within the byte bound. Rows that can not be built or encoded are dropped and counted with the reason.
   Each kind of problem is told once through `on_problem`.
6. Sealing writes the rest, joins small neighbouring parts into `merged-<seq>` folders by the same protocol, writes
   `seal.json` with the exact list of parts, and only then removes the parts that were replaced. Readers of a rank
   without `seal.json` list `part-*` only; readers of a rank with one follow it. So a crash at any moment leaves
   every row readable once.
7. A pass is sealed when `seal.json` of all `world_size` ranks is there. Ranks never wait for each other.
8. After a fork the child holds no pass, no queue and no thread; it may open passes of its own. Pickling keeps the
   settings only.
"""

import atexit
import concurrent.futures
import errno
import logging
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from mld_core.records.layout import PassKey, RunKey, Store
from mld_core.records.manifest import AttemptManifest, SealManifest, utc_now
from mld_core.records.openpass import OpenPass, RankTakenError
from mld_core.records.options import Account, WriterOptions

__all__ = ["Account", "Ticket", "Writer", "WriterOptions"]

Tables = dict[str, pa.Table | pa.RecordBatch]
Build = Callable[[], Tables]
Ticket = Future[SealManifest | None]
OnProblem = Callable[[str, str], None]

_log = logging.getLogger(__name__)
_EXIT_SECONDS = 15.0
_live: "weakref.WeakSet[Writer]" = weakref.WeakSet()


@dataclass
class _Open:
    handle: int
    manifest: AttemptManifest
    key: PassKey


@dataclass
class _Put:
    handle: int
    build: Build
    rows: int
    nbytes: int
    since: float
    seq: int


@dataclass
class _Seal:
    handle: int
    meta: dict[str, Any]
    key: PassKey | None = None


@dataclass
class _Abandon:
    handle: int
    discard: bool = False


@dataclass
class _Flush:
    ticket: Ticket
    seq: int


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
        self._reset()

    def _reset(self) -> None:
        """Forget every live thing: at birth, after unpickling and in a forked child."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._space = threading.Condition(self._lock)
        self._queue: deque[_Open | _Put | _Seal | _Abandon | _Flush] = deque()
        self._bytes = 0
        self._seq = 0
        self._idle = False
        self._tripped = False
        self._closing = False
        self._given_up = False
        self._thread: threading.Thread | None = None
        self._account = Account()
        self._told: set[str] = set()
        self._trouble: str | None = None
        self._next_handle = 0
        self._losses: dict[int, dict[str, int]] = {}  # the passes that take rows, with their losses so far
        self._ended: dict[int, dict[str, int]] = {}
        self._tickets: dict[int, Ticket] = {}
        self._flushes: list[Ticket] = []
        self._passes: dict[int, OpenPass] = {}  # the thread's own, like the next
        self._waiting: list[tuple[Ticket, dict[int, int]]] = []
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
            model_name=self.run.model_name,
            version_name=self.run.version_name,
            dataset_type=key.dataset_type,
            n_epoch=key.n_epoch,
            pass_no=key.pass_no,
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
        with self._lock:
            handle = self._next_handle
            self._next_handle += 1
            if not self._closing:
                self._losses[handle] = {}
                self._push(_Open(handle, manifest, key))
        return handle

    def put(self, handle: int, build: Build, *, rows: int, nbytes: int) -> bool:
        """Hand over the rows of one batch. Never raises because of the rows, the disk or the queue.

        Args:
            handle: from `open`.
            build: makes {family: table}; runs once, on the writer thread. What it refers to must stay unchanged.
            rows: sample rows in it, for the account.
            nbytes: size in memory, for the bound of the queue.

        Returns:
            False if the rows were dropped (and counted).
        """
        if self._pid != os.getpid():
            self._reset()
        nbytes = max(0, nbytes)
        with self._lock:
            self._account.rows_put += rows
            reason = self._refusal(handle, nbytes)
            if reason is None:
                self._seq += 1
                self._bytes += nbytes
                self._push(_Put(handle, build, rows, nbytes, time.monotonic(), self._seq))
                return True
            self._lose(handle, rows, reason)
        self._tell(f"lost:{reason}", f"records are dropped and counted: {reason}; training goes on")
        return False

    def seal(self, handle: int, *, meta: dict[str, Any] | None = None, key: PassKey | None = None) -> Ticket:
        """Ask for a pass to be sealed; returns at once.

        Args:
            handle: from `open`; takes no rows from now on.
            meta: plain values for `seal.json`.
            key: the pass this turned out to be, where that was not known at `open`; its folder is renamed.

        Returns:
            A future with the SealManifest; RuntimeError in it if the pass can not be sealed.
        """
        self._here()
        ticket: Ticket = Future()
        with self._lock:
            if handle in self._tickets:
                return self._tickets[handle]
            if handle in self._losses and not self._closing:
                self._ended[handle] = self._losses.pop(handle)
                self._tickets[handle] = ticket
                self._push(_Seal(handle, dict(meta or {}), key))
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
        with self._lock:
            if handle in self._losses:
                self._ended[handle] = self._losses.pop(handle)
                self._push(_Abandon(handle, discard))

    # -- waiting ---------------------------------------------------------------------------------------------

    def wait(self, tickets: Iterable[Ticket] | None = None, timeout: float | None = None) -> bool:
        """Wait until tickets are done; None = all that are outstanding.

        Returns:
            True if every one of them succeeded within `timeout` seconds.
        """
        self._here()
        if tickets is None:
            with self._lock:
                tickets = [*self._tickets.values(), *self._flushes]
        done, late = concurrent.futures.wait(list(tickets), timeout)
        return not late and all(not ticket.cancelled() and ticket.exception() is None for ticket in done)

    def flush(self, timeout: float | None = None) -> bool:
        """Make everything put so far durable, as far as it was not lost.

        Returns:
            False if that took longer than `timeout` seconds; writing goes on in the background.
        """
        self._here()
        ticket: Ticket = Future()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                return not self._queue
            self._flushes.append(ticket)
            self._push(_Flush(ticket, self._seq))
        return self.wait([ticket], timeout)

    def close(self, timeout: float | None = 60.0) -> Account:
        """Write what is left, finish the seals that were asked for, stop the thread.

        Args:
            timeout: seconds; after them the rest is given up and counted as lost. None = no limit.

        Returns:
            The final account. Calling again returns it again.
        """
        self._here()
        with self._lock:
            for handle in list(self._losses):
                self._ended[handle] = self._losses.pop(handle)
                self._queue.append(_Abandon(handle))
            self._closing = True
            thread = self._thread
            self._wake.notify_all()
            self._space.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        with self._lock:
            self._given_up = True
            self._wake.notify_all()
            account = self._account
            left = account.rows_put - account.rows_written - account.rows_lost
            if left:
                self._lose(
                    -1, left, f"not written when the writer was closed ({self._trouble or 'out of time'})"
                )
                self._queue.clear()
            open_tickets = list(self._tickets.values())
        for ticket in open_tickets:
            _fail(ticket, "the writer was closed before the pass was sealed")
        return self.account()

    def account(self) -> Account:
        """What became of the rows so far: a copy."""
        with self._lock:
            return replace(self._account, reasons=dict(self._account.reasons))

    # -- the caller's side -----------------------------------------------------------------------------------

    def _push(self, item: _Open | _Put | _Seal | _Abandon | _Flush) -> None:
        """Queue an item and see to it that the thread runs. The lock is held."""
        self._queue.append(item)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mld-writer", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # the interpreter is shutting down, or no thread is to be had
                self._thread = None
                self._trouble = f"no writer thread: {error}"
        elif self._idle:
            self._idle = False
            self._wake.notify()

    def _refusal(self, handle: int, nbytes: int) -> str | None:
        """Why these rows can not be taken, None if they can. The lock is held; waits for room."""
        limit = self.options.queue_bytes
        if handle not in self._losses:
            return "the writer is closed" if self._closing else "the pass is not open in this process"
        if not self._bytes or (self._bytes + nbytes <= limit and not self._tripped):
            return None
        if not self._tripped and self.options.on_full == "block":
            start = time.monotonic()
            deadline = start + self.options.block_deadline_s
            while self._bytes and self._bytes + nbytes > limit and not self._tripped and not self._closing:
                left = deadline - time.monotonic()
                if left <= 0:
                    self._tripped = True
                    break
                self._space.wait(left)
            self._account.blocked_seconds += time.monotonic() - start
            if handle not in self._losses:
                return "the pass ended while its rows waited for room in the queue"
            if not self._tripped and not self._closing:
                return None
        return f"the queue is full ({self._trouble or 'the disk does not keep up'})"

    def _lose(self, handle: int, rows: int, reason: str) -> None:
        """Count lost rows. The lock is held."""
        self._account.rows_lost += rows
        self._account.reasons[reason] = self._account.reasons.get(reason, 0) + rows
        of_pass = self._losses.get(handle, self._ended.get(handle))
        if of_pass is not None:
            of_pass[reason] = of_pass.get(reason, 0) + rows

    def _lose_late(self, handle: int, rows: int, reason: str) -> None:
        """Count rows lost on the thread, unless close() has given them up already. The lock is held."""
        if not self._given_up:
            self._lose(handle, rows, reason)

    def _tell(self, key: str, message: str) -> None:
        """Report a kind of problem once."""
        with self._lock:
            if key in self._told:
                return
            self._told.add(key)
        try:
            if self.on_problem is None:
                _log.warning("%s", message)
            else:
                self.on_problem(key, message)
        except Exception:  # noqa: BLE001 - the caller's code must not end the thread
            _log.exception("on_problem itself failed for: %s", message)

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._queue and not self._given_up:
                    pause = self._pause()
                    if pause is not None and pause <= 0:
                        break
                    if self._closing and not self._passes:
                        return
                    self._idle = True
                    self._wake.wait(pause)
                    self._idle = False
                if self._given_up:
                    return
                item = self._queue.popleft() if self._queue else None
            try:
                if item is not None:
                    self._handle(item)
                del item  # not to hold a batch while waiting for the next
                self._tend()
            except Exception as error:  # noqa: BLE001 - the thread must outlive a bug of ours
                self._tell(
                    f"writer:{type(error).__name__}", f"the record writer stumbled: {error!r}; it goes on"
                )
                time.sleep(0.1)
            self._account.thread_cpu_seconds = time.thread_time()

    def _pause(self) -> float | None:
        """Seconds until something is due, None if nothing will be."""
        due = [at for opened in self._passes.values() if (at := opened.due_at()) is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _handle(self, item: _Open | _Put | _Seal | _Abandon | _Flush) -> None:
        if isinstance(item, _Put):
            self._build(item)
        elif isinstance(item, _Open):
            folder = self.store.rank_dir(self.run, item.key, self.attempt, self.rank)
            generation = self.store.generation
            opened = OpenPass(folder, item.manifest, self.options, lambda: generation(self.run))
            self._passes[item.handle] = opened
        elif isinstance(item, _Flush):
            for opened in self._passes.values():
                opened.force_seq = item.seq
            self._waiting.append((item.ticket, dict.fromkeys(self._passes, item.seq)))
        elif item.handle not in self._passes:
            self._end(item.handle, "its folder could not be made")
        elif isinstance(item, _Seal):
            self._passes[item.handle].sealing = item.meta
            if item.key is not None:
                folder = self.store.rank_dir(self.run, item.key, self.attempt, self.rank)
                self._passes[item.handle].rename(folder, item.key)
        elif item.discard:
            self._discard(self._passes[item.handle])
        else:
            self._passes[item.handle].leaving = True

    def _discard(self, opened: OpenPass) -> None:
        """Forget rows that are not on disk; `_advance` removes those that are."""
        opened.leaving = opened.unwanted = True
        with self._lock:
            for pending in opened.pending:
                self._bytes -= pending.nbytes
                self._account.rows_put -= pending.rows
        opened.pending.clear()
        opened.pending_bytes = 0

    def _build(self, item: _Put) -> None:
        opened = self._passes.get(item.handle)
        reason = "the pass could not be opened"
        if opened is not None:
            try:
                built = {family: _as_table(table) for family, table in item.build().items()}
                nbytes = sum(table.nbytes for table in built.values())
                opened.append(built, rows=item.rows, nbytes=nbytes, since=item.since, seq=item.seq)
            except Exception as error:  # noqa: BLE001 - build is the caller's code; its rows are lost, not the thread
                reason = f"rows could not be built: {type(error).__name__}: {error}"
                self._tell(
                    f"build:{type(error).__name__}", f"{reason}; these rows are lost, recording goes on"
                )
            else:
                with self._lock:
                    self._bytes += nbytes - item.nbytes
                    self._freed()
                return
        with self._lock:
            self._bytes -= item.nbytes
            self._lose_late(item.handle, item.rows, reason)
            self._freed()

    def _freed(self) -> None:
        """Let waiting callers in, close the circuit again once half is drained. The lock is held."""
        if self._tripped and self._bytes <= self.options.queue_bytes // 2:
            self._tripped = False
        self._space.notify_all()

    def _tend(self) -> None:
        """Do everything that is due."""
        now = time.monotonic()
        for handle, opened in list(self._passes.items()):
            while (at := opened.due_at()) is not None and at <= now and not self._given_up:
                if not self._advance(handle, opened):
                    break
        pending = sum(opened.pending_bytes for opened in self._passes.values())
        if pending > self.options.queue_bytes // 2:
            # Many passes at once: none is large enough to roll, together they would fill the queue.
            largest = max(self._passes.values(), key=lambda opened: opened.pending_bytes)
            largest.force_seq = self._seq
        self._resolve()

    def _advance(self, handle: int, opened: OpenPass) -> bool:
        """One step of one pass; False if it has to wait or is over."""
        over = False
        try:
            if opened.pending:
                self._wrote(opened, handle)
            elif opened.sealing is not None:
                told: list[str] = []
                with self._lock:
                    losses = dict(self._ended.get(handle, {}))
                manifest = opened.seal(losses, told)
                for line in told:
                    self._tell("compact", f"{line}; nothing is lost")
                self._end(handle, None, manifest)
                over = True
            elif opened.leaving and opened.unwanted:
                opened.remove()
                self._end(handle, "it was discarded")
                over = True
            elif opened.leaving:
                opened.open()
                self._end(handle, "it was abandoned")
                over = True
            else:
                opened.open()
        except RankTakenError as error:
            self._tell("rank taken", f"{error}; the rows of this process are lost")
            self._end(handle, str(error))
            over = True
        except (OSError, MemoryError) as error:
            self._refused(opened, error)
            return False
        opened.succeeded()
        return not over

    def _wrote(self, opened: OpenPass, handle: int) -> None:
        reason = None
        try:
            done = opened.write_one()
        except (OSError, MemoryError, RankTakenError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever Arrow says of these rows, the next ones may be fine
            done = opened.drop_one()
            reason = f"rows could not be encoded: {type(error).__name__}: {error}"
            self._tell(f"encode:{type(error).__name__}", f"{reason}; these rows are lost, recording goes on")
        with self._lock:
            self._bytes -= done.nbytes
            if reason is not None:
                self._lose_late(handle, done.rows, reason)
            elif not self._given_up:
                self._account.rows_written += done.rows
                self._account.bytes_written += done.disk_bytes
                self._account.parts += 1 if done.disk_bytes else 0
            self._trouble = None
            self._freed()

    def _refused(self, opened: OpenPass, error: OSError | MemoryError) -> None:
        number = error.errno if isinstance(error, OSError) else None
        kind = errno.errorcode.get(number, "error") if number else type(error).__name__
        text = f"{kind}: {error.strerror or error}" if isinstance(error, OSError) else kind
        opened.failed(text, hurry=self._closing)
        with self._lock:
            self._trouble = text
        self._tell(
            f"write:{kind}",
            f"records can not be written to {opened.folder} ({text}); they are kept in memory and tried again, up to "
            f"{self.options.queue_mb:g} MiB, then dropped and counted. Free the disk or make it writable.",
        )

    def _end(self, handle: int, why_not: str | None, manifest: SealManifest | None = None) -> None:
        """Forget a pass; its rows that are still pending are lost."""
        opened = self._passes.pop(handle, None)
        with self._lock:
            for item in opened.pending if opened is not None else ():
                self._bytes -= item.nbytes
                self._lose_late(handle, item.rows, f"the pass could not be opened: {why_not}")
            ticket = self._tickets.pop(handle, None)
            self._ended.pop(handle, None)
            self._freed()
        if ticket is None:
            return
        if manifest is not None and not ticket.done():
            ticket.set_result(manifest)
        else:
            _fail(ticket, f"pass {handle} was not sealed: {why_not}")

    def _resolve(self) -> None:
        """Finish the flushes whose rows are durable or lost."""
        rest = []
        for ticket, targets in self._waiting:
            behind = {
                handle: seq
                for handle, seq in targets.items()
                if (opened := self._passes.get(handle)) is not None
                and opened.pending
                and opened.pending[0].seq <= seq
            }
            if behind:
                rest.append((ticket, behind))
                continue
            with self._lock:
                self._flushes.remove(ticket)
            ticket.set_result(None)
        self._waiting = rest


def _as_table(table: pa.Table | pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table


def _fail(ticket: Ticket, message: str) -> None:
    if not ticket.done():
        ticket.set_exception(RuntimeError(message))


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
