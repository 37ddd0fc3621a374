"""The writer thread: builds batches, rolls parts, seals.

The protocol stands in mld_core.records.write.writer.
"""

import errno
import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.manifest import AttemptManifest, SealManifest
from mld_core.records.format.options import WriterOptions
from mld_core.records.format.parts import DamagedPartError
from mld_core.records.write.intake import Build, Intake, Rows, SealMeta, Tables, Ticket, fail
from mld_core.records.write.openpass import OpenPass, RankTakenError
from mld_core.records.write.retention import keep_last_epochs

_NO_FOLDER = "its folder could not be made"


@dataclass
class Taken:
    """One batch from the queue; `made` once it was built."""

    handle: int
    build: Build
    rows: int
    nbytes: int
    since: float
    seq: int
    made: Any = None

    @property
    def key(self) -> Any:
        """What batches must have in common to be joined; a batch that came as tables is joined with none."""
        return id(self) if isinstance(self.made, dict) else getattr(self.made, "key", None)


class Worker:
    """What the thread does. Its passes are its own; everything shared is in the Intake.

    `open`, `put`, `seal`, `leave` and `flush` are the jobs in the queue, one for each method of the Writer.
    """

    def __init__(
        self, intake: Intake, store: Store, run: RunKey, attempt: str, rank: int, options: WriterOptions
    ) -> None:
        self._intake = intake
        self.store, self.run_key, self.attempt, self.rank, self.options = store, run, attempt, rank, options
        self._passes: dict[int, OpenPass] = {}
        self._taken: list[Taken] = []
        self._waiting: list[tuple[Ticket, dict[int, int]]] = []

    def run(self) -> None:
        """Work until the writer is closed and everything is done, or given up."""
        while self._sleep():
            self._work()
            self._intake.account.thread_cpu_seconds = time.thread_time()

    def _sleep(self) -> bool:
        """Wait until something is to be done; False if nothing ever will be."""
        with self._intake.lock:
            while not self._intake.given_up:
                due_at = self._due_at()
                pause = due_at - time.monotonic()
                if pause <= 0:
                    return True
                if self._intake.closing and not self._passes:
                    return False
                # To the tick: a put that is due at the very same time must not wake the thread.
                self._intake.sleeps_until = due_at
                self._intake.wake.wait(None if pause == math.inf else pause)
                self._intake.sleeps_until = 0.0
        return False

    def _due_at(self) -> float:
        """When something is to be done (`time.monotonic()`), infinite: never. The lock is held."""
        if self._intake.queue and self._intake.closing:
            return 0.0
        due = [at for opened in self._passes.values() if (at := opened.due_at()) is not None]
        return min([self._intake.due_at, *due])

    def _work(self) -> None:
        """Take one group of jobs, do them and what is due after them."""
        with self._intake.lock:
            jobs = deque(self._intake.take())
        jobs.extend((self._build, self._tend))
        while jobs and not self._intake.given_up:
            # Taken out of the group: a flush is answered when nothing here holds its batches any more.
            job = jobs.popleft()
            try:
                job()
            except Exception as error:  # noqa: BLE001 - the thread must outlive a bug of ours
                self._intake.tell(
                    f"writer:{type(error).__name__}", f"the record writer stumbled: {error!r}; it goes on"
                )
                time.sleep(0.1)

    def open(self, handle: int, key: PassKey, manifest: AttemptManifest) -> None:
        """Begin a pass; its folder is made when `_tend` gets to it."""
        folder = self.store.rank_dir(self.run_key, key, self.attempt, self.rank)
        generation = self.store.generation
        self._passes[handle] = OpenPass(folder, manifest, self.options, lambda: generation(self.run_key))

    def flush(self, ticket: Ticket, seq: int) -> None:
        """Make everything up to `seq` durable."""
        self._build()
        for opened in self._passes.values():
            opened.force_seq = seq
        self._waiting.append((ticket, dict.fromkeys(self._passes, seq)))

    def leave(self, handle: int, *, discard: bool) -> None:
        """Leave a pass unsealed, or remove it."""
        self._build()
        opened = self._passes.get(handle)
        if opened is None:
            self._end(handle, _NO_FOLDER)
        elif discard:
            self._discard(opened)
        else:
            opened.leaving = True

    def seal(self, handle: int, given: SealMeta, key: PassKey | None) -> None:
        """Seal a pass, as `key` if that was not known before; without meta there was none."""
        self._build()
        opened = self._passes.get(handle)
        if opened is None:
            self._end(handle, _NO_FOLDER)
            return
        meta = given() if callable(given) else given
        if meta is None:
            with self._intake.lock:
                ticket = self._intake.tickets.pop(handle, None)
            if ticket is not None and not ticket.done():
                ticket.set_result(None)
            self._discard(opened)
            return
        opened.sealing = meta
        if key is not None:
            opened.rename(self.store.rank_dir(self.run_key, key, self.attempt, self.rank), key)

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

    def put(self, handle: int, build: Build, *, rows: int, nbytes: int, since: float, seq: int) -> None:
        """Take the rows of one batch; they are built with those beside them."""
        self._taken.append(Taken(handle, build, rows, nbytes, since, seq))

    def _build(self) -> None:
        """Make tables of the batches that were taken: one set for neighbours in a pass that can be joined."""
        taken, self._taken = self._taken, []
        groups: dict[int, tuple[Any, list[Taken]]] = {}
        for batch in taken:
            time.sleep(0)  # lets go of the interpreter's lock: the training thread may be waiting for it
            batch.made = self._made(batch)
            if batch.made is None:
                continue
            key, group = batch.key, groups.get(batch.handle)
            if group is not None and key == group[0]:
                group[1].append(batch)
                continue
            if group is not None:
                self._append(group[1])
            groups[batch.handle] = key, [batch]
        for _, neighbours in groups.values():
            self._append(neighbours)

    def _made(self, batch: Taken) -> Tables | Rows | None:
        """What a batch's own code makes of it; None where there are no rows, or they are lost."""
        if batch.handle not in self._passes:
            self._lose([batch], "the pass could not be opened")
            return None
        try:
            made = batch.build()
        except Exception as error:  # noqa: BLE001 - build is the caller's code; its rows are lost, not the thread
            self._lose_unbuilt([batch], error)
            return None
        finally:
            batch.build = dict
        if made:
            return made
        with self._intake.lock:
            self._intake.account.rows_put -= batch.rows
            self._intake.freed(batch.nbytes)
        return None

    def _append(self, group: list[Taken]) -> None:
        """Add the rows of a group to their pass; where they fit together no more, batch by batch."""
        first = group[0].made
        try:
            tables = first if isinstance(first, dict) else first.tables([batch.made for batch in group])
            built = {
                family: table if isinstance(table, pa.Table) else pa.Table.from_batches([table])
                for family, table in tables.items()
            }
            told, rows = sum(batch.nbytes for batch in group), sum(batch.rows for batch in group)
            held = _bytes(built, told)
            opened = self._passes[group[0].handle]
            opened.append(built, rows=rows, nbytes=held, since=group[0].since, seq=group[-1].seq)
        except Exception as error:  # noqa: BLE001 - as in `_made`
            if len(group) > 1:
                for batch in group:
                    self._append([batch])
            else:
                self._lose_unbuilt(group, error)
        else:
            with self._intake.lock:
                self._intake.freed(told - held)

    def _lose_unbuilt(self, group: list[Taken], error: Exception) -> None:
        reason = f"rows could not be built: {type(error).__name__}: {error}"
        self._intake.tell(
            f"build:{type(error).__name__}", f"{reason}; these rows are lost, recording goes on"
        )
        self._lose(group, reason)

    def _lose(self, group: list[Taken], reason: str) -> None:
        with self._intake.lock:
            for batch in group:
                self._intake.lose_late(batch.handle, batch.rows, reason)
                self._intake.freed(batch.nbytes)

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
                over = True
                self._end(handle, None, self._sealed(handle, opened))
                self._keep(opened)
            elif opened.leaving:
                over = True
                if opened.unwanted:
                    opened.remove()
                else:
                    opened.open()
                self._end(handle, "it was discarded" if opened.unwanted else "it was abandoned")
            else:
                opened.open()
        except RankTakenError as error:
            self._intake.tell("rank taken", f"{error}; the rows of this process are lost")
            self._end(handle, str(error))
            return False
        except (OSError, MemoryError) as error:
            self._refused(opened, error)
            return False
        except Exception as error:  # noqa: BLE001 - a bug of ours: tried again like a disk error, told once
            self._intake.tell(f"writer:{type(error).__name__}", f"the record writer stumbled: {error!r}")
            opened.failed(repr(error), hurry=self._intake.closing)
            return False
        opened.succeeded()
        return not over

    def _sealed(self, handle: int, opened: OpenPass) -> SealManifest:
        told: list[str] = []
        with self._intake.lock:
            losses = dict(self._intake.ended.get(handle, {}))
        manifest = opened.seal(losses, told)
        for line in told:
            self._intake.tell("compact", f"{line}; nothing is lost")
        return manifest

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


def _bytes(built: dict[str, pa.Table], told: int) -> int:
    """Size of built tables. The quick sum counts whole buffers, so slices of large ones are looked at."""
    quick = sum(table.get_total_buffer_size() for table in built.values())
    return quick if quick <= 2 * told + 65536 else sum(table.nbytes for table in built.values())
