"""What the callers of the writer and its thread share under one lock: the queue, its bound, the account."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import pyarrow as pa

from mld_core.records.format.manifest import SealManifest
from mld_core.records.format.options import Account, WriterOptions

Tables = dict[str, pa.Table | pa.RecordBatch]


class Rows(Protocol):
    """Rows of one batch that become tables together with those of the batches beside it.

    Attributes:
        key: batches of one pass whose keys are equal are joined.
    """

    key: Hashable

    def tables(self, group: Sequence[Any]) -> Tables:
        """One set of tables for the rows of `group`, in that order; this one is the first of it."""


Build = Callable[[], Tables | Rows]
Ticket = Future[SealManifest | None]
OnProblem = Callable[[str, str], None]
# What is sealed with a pass, or a function that tells it when all rows are built; None: there was no pass.
SealMeta = dict[str, Any] | Callable[[], dict[str, Any] | None]

_log = logging.getLogger(__name__)


# The thread takes batches in groups of so many, or so many bytes, or when the first has waited so long.
GROUP_BATCHES = 64
GROUP_BYTES = 24 << 20
GROUP_SECONDS = 0.5


class Intake:
    """See the module docstring. Methods that say so expect `lock` to be held."""

    def __init__(self, options: WriterOptions, on_problem: OnProblem | None) -> None:
        self.options = options
        self.on_problem = on_problem
        self.lock = threading.Lock()
        self.wake = threading.Condition(self.lock)
        self.space = threading.Condition(self.lock)
        self.queue: deque[tuple[Callable[[], None], int]] = deque()
        self.due_at = math.inf  # when the thread has to look into the queue
        self.sleeps_until = 0.0  # when it will; 0: it is awake
        self.bytes = 0
        self.seq = 0
        self.tripped = False
        self.closing = False
        self.given_up = False
        self.account = Account()
        self.trouble: str | None = None
        self.taking: dict[int, dict[str, int]] = {}  # passes that take rows: losses by reason
        self.ended: dict[int, dict[str, int]] = {}  # passes that take no more and are not done
        self.tickets: dict[int, Ticket] = {}
        self.flushes: list[Ticket] = []
        self._told: set[str] = set()
        self._queued_bytes = 0
        # A fraction of the queue's bound, so that waiting for a group never fills it.
        self._group_bytes = min(GROUP_BYTES, options.roll_bytes, options.queue_bytes // 4)
        # What a SIGKILL can lose stays what the user said.
        self._group_seconds = min(GROUP_SECONDS, options.roll_seconds)

    def push(self, job: Callable[[], None], nbytes: int = 0, *, hurry: bool = True) -> None:
        """Queue a job; one without hurry may wait until a group is there. The lock is held."""
        self.queue.append((job, nbytes))
        self._queued_bytes += nbytes
        whole = hurry or len(self.queue) >= GROUP_BATCHES or self._queued_bytes >= self._group_bytes
        self.need(0.0 if whole else time.monotonic() + self._group_seconds)

    def need(self, due_at: float) -> None:
        """See to it that the thread looks into the queue by then. The lock is held."""
        self.due_at = min(self.due_at, due_at)
        if self.due_at < self.sleeps_until:
            self.sleeps_until = 0.0
            self.wake.notify()

    def take(self) -> list[Callable[[], None]]:
        """The jobs of the next group. The lock is held."""
        taken: list[Callable[[], None]] = []
        size = 0
        while self.queue and len(taken) < GROUP_BATCHES and size < self._group_bytes:
            job, nbytes = self.queue.popleft()
            taken.append(job)
            size += nbytes
        self._queued_bytes -= size
        if not self.queue:
            self.due_at = math.inf
        return taken

    def refusal(self, handle: int, nbytes: int) -> str | None:
        """Why rows can not be taken, None if they can. The lock is held; waits for room."""
        limit = self.options.queue_bytes
        if handle not in self.taking:
            return "the writer is closed" if self.closing else "the pass is not open in this process"
        if not self.bytes or (self.bytes + nbytes <= limit and not self.tripped):
            return None
        if not self.tripped and self.options.on_full == "block":
            self._wait_for_room(nbytes, limit)
            if handle not in self.taking:
                return "the pass ended while its rows waited for room in the queue"
            if not self.bytes or self.bytes + nbytes <= limit:
                return None
        return f"the queue is full ({self.trouble or 'the disk does not keep up'})"

    def _wait_for_room(self, nbytes: int, limit: int) -> None:
        self.need(0.0)
        start = time.monotonic()
        deadline = start + self.options.block_deadline_s
        while self.bytes and self.bytes + nbytes > limit and not self.tripped and not self.closing:
            left = deadline - time.monotonic()
            if left <= 0:
                self.tripped = True
                self.space.notify_all()  # nobody else waits a deadline of their own
                break
            self.space.wait(left)
        self.account.blocked_seconds += time.monotonic() - start

    def freed(self, nbytes: int) -> None:
        """Give back room in the queue; closes the circuit once half is drained. The lock is held."""
        self.bytes -= nbytes
        if self.tripped and self.bytes <= self.options.queue_bytes // 2:
            self.tripped = False
        self.space.notify_all()

    def lose(self, handle: int, rows: int, reason: str) -> None:
        """Count lost rows. The lock is held."""
        self.account.rows_lost += rows
        self.account.reasons[reason] = self.account.reasons.get(reason, 0) + rows
        of_pass = self.taking.get(handle, self.ended.get(handle))
        if of_pass is not None:
            of_pass[reason] = of_pass.get(reason, 0) + rows

    def lose_late(self, handle: int, rows: int, reason: str) -> None:
        """Count rows lost on the thread, unless closing has given them up already. The lock is held."""
        if not self.given_up:
            self.lose(handle, rows, reason)

    def tell(self, key: str, message: str) -> None:
        """Report a kind of problem once. The lock is not held."""
        with self.lock:
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


def fail(ticket: Ticket, message: str) -> None:
    """End a ticket with an error, unless it has ended."""
    if not ticket.done():
        ticket.set_exception(RuntimeError(message))
