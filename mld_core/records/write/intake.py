"""What the callers of the writer and its thread share under one lock: the queue, its bound, the account."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pyarrow as pa

from mld_core.records.format.manifest import SealManifest
from mld_core.records.format.options import Account, WriterOptions

Tables = dict[str, pa.Table | pa.RecordBatch]
Build = Callable[[], Tables]
Ticket = Future[SealManifest | None]
OnProblem = Callable[[str, str], None]
# What is sealed with a pass, or a function that tells it when all rows are built; None: there was no pass.
SealMeta = dict[str, Any] | Callable[[], dict[str, Any] | None]

_log = logging.getLogger(__name__)


class Intake:
    """See the module docstring. Methods that say so expect `lock` to be held."""

    def __init__(self, options: WriterOptions, on_problem: OnProblem | None) -> None:
        self.options = options
        self.on_problem = on_problem
        self.lock = threading.Lock()
        self.wake = threading.Condition(self.lock)
        self.space = threading.Condition(self.lock)
        self.queue: deque[Callable[[], None]] = deque()
        self.bytes = 0
        self.seq = 0
        self.idle = False
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

    def push(self, job: Callable[[], None]) -> None:
        """Queue a job for the thread and wake it. The lock is held."""
        self.queue.append(job)
        if self.idle:
            self.idle = False
            self.wake.notify()

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
