"""The writer thread: builds batches, rolls parts, seals.

The protocol stands in mld_core.records.write.writer.
"""

import errno
import time

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import SealManifest
from mld_core.records.format.options import WriterOptions
from mld_core.records.format.parts import DamagedPartError
from mld_core.records.write.intake import (
    FlushItem,
    Intake,
    Item,
    OpenItem,
    PutItem,
    SealItem,
    Tables,
    Ticket,
    fail,
)
from mld_core.records.write.openpass import OpenPass, RankTakenError
from mld_core.records.write.retention import keep_last_epochs


class Worker:
    """What the thread does. Its passes are its own; everything shared is in the Intake."""

    def __init__(
        self, intake: Intake, store: Store, run: RunKey, attempt: str, rank: int, options: WriterOptions
    ) -> None:
        self._intake = intake
        self.store, self.run_key, self.attempt, self.rank, self.options = store, run, attempt, rank, options
        self._passes: dict[int, OpenPass] = {}
        self._waiting: list[tuple[Ticket, dict[int, int]]] = []

    def run(self) -> None:
        """Work until the writer is closed and everything is done, or given up."""
        while True:
            with self._intake.lock:
                while not self._intake.queue and not self._intake.given_up:
                    pause = self._pause()
                    if pause is not None and pause <= 0:
                        break
                    if self._intake.closing and not self._passes:
                        return
                    self._intake.idle = True
                    self._intake.wake.wait(pause)
                    self._intake.idle = False
                if self._intake.given_up:
                    return
                item = self._intake.queue.popleft() if self._intake.queue else None
            try:
                if item is not None:
                    self._handle(item)
                del item  # not to hold a batch while waiting for the next
                self._tend()
            except Exception as error:  # noqa: BLE001 - the thread must outlive a bug of ours
                self._intake.tell(
                    f"writer:{type(error).__name__}", f"the record writer stumbled: {error!r}; it goes on"
                )
                time.sleep(0.1)
            self._intake.account.thread_cpu_seconds = time.thread_time()

    def _pause(self) -> float | None:
        """Seconds until something is due, None if nothing will be."""
        due = [at for opened in self._passes.values() if (at := opened.due_at()) is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _handle(self, item: Item) -> None:
        if isinstance(item, PutItem):
            self._build(item)
        elif isinstance(item, OpenItem):
            folder = self.store.rank_dir(self.run_key, item.key, self.attempt, self.rank)
            generation = self.store.generation
            opened = OpenPass(folder, item.manifest, self.options, lambda: generation(self.run_key))
            self._passes[item.handle] = opened
        elif isinstance(item, FlushItem):
            for opened in self._passes.values():
                opened.force_seq = item.seq
            self._waiting.append((item.ticket, dict.fromkeys(self._passes, item.seq)))
        elif item.handle not in self._passes:
            self._end(item.handle, "its folder could not be made")
        elif isinstance(item, SealItem):
            self._seal(item)
        elif item.discard:
            self._discard(self._passes[item.handle])
        else:
            self._passes[item.handle].leaving = True

    def _seal(self, item: SealItem) -> None:
        meta = item.meta() if callable(item.meta) else item.meta
        if meta is None:
            with self._intake.lock:
                ticket = self._intake.tickets.pop(item.handle, None)
            if ticket is not None and not ticket.done():
                ticket.set_result(None)
            self._discard(self._passes[item.handle])
            return
        self._passes[item.handle].sealing = meta
        if item.key is not None:
            folder = self.store.rank_dir(self.run_key, item.key, self.attempt, self.rank)
            self._passes[item.handle].rename(folder, item.key)

    def _discard(self, opened: OpenPass) -> None:
        """Forget rows that are not on disk; `_advance` removes those that are."""
        opened.leaving = opened.unwanted = True
        with self._intake.lock:
            for pending in opened.pending:
                self._intake.freed(pending.nbytes)
                if not self._intake.given_up:
                    self._intake.account.rows_put -= pending.rows
        opened.pending.clear()
        opened.pending_bytes = 0

    def _build(self, item: PutItem) -> None:
        opened = self._passes.get(item.handle)
        reason = "the pass could not be opened"
        if opened is not None:
            try:
                built = dict(item.build())
                if not built:
                    self._forget(item)
                    return
                nbytes = _bytes(built, item.nbytes)
                opened.append(built, rows=item.rows, nbytes=nbytes, since=item.since, seq=item.seq)
            except Exception as error:  # noqa: BLE001 - build is the caller's code; its rows are lost, not the thread
                reason = f"rows could not be built: {type(error).__name__}: {error}"
                self._intake.tell(
                    f"build:{type(error).__name__}", f"{reason}; these rows are lost, recording goes on"
                )
            else:
                with self._intake.lock:
                    self._intake.freed(item.nbytes - nbytes)
                return
        with self._intake.lock:
            self._intake.lose_late(item.handle, item.rows, reason)
            self._intake.freed(item.nbytes)

    def _forget(self, item: PutItem) -> None:
        """There were no rows after all."""
        with self._intake.lock:
            self._intake.account.rows_put -= item.rows
            self._intake.freed(item.nbytes)

    def _tend(self) -> None:
        """Do everything that is due."""
        now = time.monotonic()
        for handle, opened in list(self._passes.items()):
            while (at := opened.due_at()) is not None and at <= now and not self._intake.given_up:
                if not self._advance(handle, opened):
                    break
        pending = sum(opened.pending_bytes for opened in self._passes.values())
        if pending > self.options.queue_bytes // 2:
            # Many passes at once: none is large enough to roll, together they would fill the queue.
            largest = max(self._passes.values(), key=lambda opened: opened.pending_bytes)
            largest.force_seq = self._intake.seq
        self._resolve()

    def _advance(self, handle: int, opened: OpenPass) -> bool:
        """One step of one pass; False if it has to wait or is over."""
        over = False
        try:
            if opened.pending:
                self._wrote(opened, handle)
            elif opened.sealing is not None:
                told: list[str] = []
                with self._intake.lock:
                    losses = dict(self._intake.ended.get(handle, {}))
                manifest = opened.seal(losses, told)
                for line in told:
                    self._intake.tell("compact", f"{line}; nothing is lost")
                self._end(handle, None, manifest)
                self._keep(opened)
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
            self._intake.tell("rank taken", f"{error}; the rows of this process are lost")
            self._end(handle, str(error))
            over = True
        except (OSError, MemoryError) as error:
            self._refused(opened, error)
            return False
        except Exception as error:  # noqa: BLE001 - a bug of ours: tried again like a disk error, told once
            self._intake.tell(f"writer:{type(error).__name__}", f"the record writer stumbled: {error!r}")
            opened.failed(repr(error), hurry=self._intake.closing)
            return False
        opened.succeeded()
        return not over

    def _keep(self, opened: OpenPass) -> None:
        """Drop feature vectors of older epochs, if that was asked for; the seal is done by then."""
        keep = self.options.keep_vectors
        if keep is None:
            return
        split = opened.manifest.dataset_type
        try:
            keep_last_epochs(
                self.store, self.run_key, keep, dataset_type=split, rank=self.rank, options=self.options
            )
        except (OSError, MemoryError, DamagedPartError) as error:
            self._intake.tell(
                "keep_vectors", f"old feature vectors could not be dropped ({error}); nothing is lost"
            )

    def _wrote(self, opened: OpenPass, handle: int) -> None:
        reason = None
        try:
            done = opened.write_one()
        except (OSError, MemoryError, RankTakenError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever Arrow says of these rows, the next ones may be fine
            done = opened.drop_one()
            reason = f"rows could not be encoded: {type(error).__name__}: {error}"
            self._intake.tell(
                f"encode:{type(error).__name__}", f"{reason}; these rows are lost, recording goes on"
            )
        with self._intake.lock:
            if reason is not None:
                self._intake.lose_late(handle, done.rows, reason)
            elif not self._intake.given_up:
                self._intake.account.rows_written += done.rows
                self._intake.account.bytes_written += done.disk_bytes
                self._intake.account.parts += 1 if done.disk_bytes else 0
            self._intake.trouble = None
            self._intake.freed(done.nbytes)

    def _refused(self, opened: OpenPass, error: OSError | MemoryError) -> None:
        number = error.errno if isinstance(error, OSError) else None
        kind = errno.errorcode.get(number, "error") if number else type(error).__name__
        text = f"{kind}: {error.strerror or error}" if isinstance(error, OSError) else kind
        opened.failed(text, hurry=self._intake.closing)
        with self._intake.lock:
            self._intake.trouble = text
        self._intake.tell(
            f"write:{kind}",
            f"records can not be written to {opened.folder} ({text}); they are kept in memory and tried "
            f"again, up to {self.options.queue_mb:g} MiB, then dropped and counted. "
            "Free the disk or make it writable.",
        )

    def _end(self, handle: int, why_not: str | None, manifest: SealManifest | None = None) -> None:
        """Forget a pass; its rows that are still pending are lost."""
        opened = self._passes.pop(handle, None)
        with self._intake.lock:
            for item in opened.pending if opened is not None else ():
                self._intake.freed(item.nbytes)
                self._intake.lose_late(handle, item.rows, f"the pass could not be opened: {why_not}")
            ticket = self._intake.tickets.pop(handle, None)
            self._intake.ended.pop(handle, None)
        if ticket is None:
            return
        if manifest is not None and not ticket.done():
            ticket.set_result(manifest)
        else:
            fail(ticket, f"pass {handle} was not sealed: {why_not}")

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
            with self._intake.lock:
                self._intake.flushes.remove(ticket)
            ticket.set_result(None)
        self._waiting = rest


def _bytes(built: Tables, told: int) -> int:
    """Size of built tables. The quick sum counts whole buffers, so slices of large ones are looked at."""
    quick = sum(table.get_total_buffer_size() for table in built.values())
    return quick if quick <= 2 * told + 65536 else sum(table.nbytes for table in built.values())
