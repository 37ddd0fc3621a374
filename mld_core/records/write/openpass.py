"""One pass of one rank while it is being written: its pending rows, its parts, its seal.

Only the writer thread uses this. Every method that touches the disk can be called again after an OSError and
goes on where it stopped; no row is written twice.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mld_core.records.format.layout import PassKey
from mld_core.records.format.manifest import (
    ATTEMPT_FILE,
    SEAL_FILE,
    AttemptManifest,
    PartInfo,
    SealManifest,
    fsync_dir,
    make_dirs,
    read_attempt,
    utc_now,
    write_json,
)
from mld_core.records.format.options import WriterOptions
from mld_core.records.format.parts import joined, write_part
from mld_core.records.format.vectors import is_vector
from mld_core.records.write.compact import Schemas, compact, same_schemas

Built = dict[str, pa.Table]
_FIRST_BACKOFF = 0.5
_LAST_BACKOFF = 8.0


class RankTakenError(ValueError):
    """Another process already writes this rank of this attempt."""


@dataclass
class Pending:
    """Rows that were built and are not yet on disk. `group` changes whenever a schema changes."""

    tables: Built
    rows: int
    nbytes: int
    since: float
    seq: int
    group: int


@dataclass
class Written:
    """One part just written: rows, queue bytes it frees, bytes on disk."""

    rows: int
    nbytes: int
    disk_bytes: int


class OpenPass:
    """See the module docstring."""

    def __init__(
        self,
        folder: Path,
        manifest: AttemptManifest,
        options: WriterOptions,
        generation: Callable[[], int] = lambda: 0,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._generation = generation
        self.options = options
        self.pending: list[Pending] = []
        self.pending_bytes = 0
        self.seen_seq = 0
        self.force_seq = -1
        self.retry_at = 0.0
        self.error: str | None = None
        self.sealing: dict[str, Any] | None = None
        self.leaving = False
        self.unwanted = False
        self._renamed: Path | None = None
        self._backoff = 0.0
        self._made = False
        self._ready = False
        self._next_part = 0
        self._schemas: Schemas = {}
        self._group = 0
        self._parts: list[tuple[PartInfo, Schemas]] = []
        self._unconfirmed: tuple[PartInfo, list[Pending], Schemas] | None = None
        self._sealed_parts: list[PartInfo] | None = None
        self._seal: SealManifest | None = None

    # -- opening ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the rank folder and write `attempt.json`; does nothing once that is done.

        Raises:
            OSError: the disk refused; call again. RankTakenError: the folder is somebody else's.
        """
        if self._ready:
            return
        if not self._made:
            self.options.step("open:mkdir")
            make_dirs(self.folder.parent, fsync=self.options.fsync)
            try:
                self.folder.mkdir()
            except FileExistsError:
                raise self._taken(self.folder) from None
            self._made = True
            if self.options.fsync:
                fsync_dir(self.folder.parent)
        self.options.step("open:manifest")
        # Read here, not when the pass was asked for: the training thread never touches the disk.
        self.manifest = dataclasses.replace(self.manifest, generation=self._generation())
        write_json(self.folder / ATTEMPT_FILE, dataclasses.asdict(self.manifest), fsync=self.options.fsync)
        self.options.step("open:done")
        self._ready = True

    def _taken(self, folder: Path) -> RankTakenError:
        other = read_attempt(folder)
        who = f"process {other.pid} on {other.host}" if other else "another process"
        return RankTakenError(
            f"{folder} is already written by {who}; two processes can not be the same rank of one attempt: "
            "give each its own rank, or start one of them under its own attempt name"
        )

    # -- rows ------------------------------------------------------------------------------------------------

    def append(self, tables: Built, *, rows: int, nbytes: int, since: float, seq: int) -> None:
        """Add rows in memory."""
        schemas = {family: table.schema for family, table in tables.items()}
        if not same_schemas(self._schemas, schemas):
            self._group += 1
            self._schemas = {}
        self._schemas = {**schemas, **self._schemas}
        self.pending.append(Pending(tables, rows, nbytes, since, seq, self._group))
        self.pending_bytes += nbytes

    def due_at(self) -> float | None:
        """When the next step is due (`time.monotonic()`), None if there is nothing to do."""
        if not self.pending:
            return self.retry_at if self.sealing is not None or self.leaving or not self._ready else None
        first = self.pending[0]
        at_once = (
            self.sealing is not None
            or self.leaving
            or first.seq <= self.force_seq
            or self.pending_bytes >= self.options.roll_bytes
            or first.group != self.pending[-1].group
        )
        return max(self.retry_at, 0.0 if at_once else first.since + self.options.roll_seconds)

    def _take(self) -> list[Pending]:
        """The rows of the next part: one schema, about the size at which a part is rolled."""
        taken: list[Pending] = []
        size = 0
        for item in self.pending:
            if taken and (item.group != taken[0].group or size >= self.options.roll_bytes):
                break
            taken.append(item)
            size += item.nbytes
        return taken

    def write_one(self) -> Written:
        """Write the next part and forget its rows.

        Raises:
            OSError: the disk refused; the rows are kept, call again.
            pyarrow.ArrowException: the rows can not be encoded; see `drop_one`.
        """
        self.open()
        if self._unconfirmed is None:
            taken = self._take()
            tables = joined([item.tables for item in taken])
            raw_bytes = sum(item.nbytes for item in taken)
            if not any(table.num_rows for table in tables.values()):
                return self._forget(taken, 0)
            schemas = {family: table.schema for family, table in tables.items()}
            self._unconfirmed = (self._write(tables, raw_bytes), taken, schemas)
        # The part has its name by now; should this fsync fail, only this fsync is done again.
        if self.options.fsync:
            fsync_dir(self.folder)
        self.options.step("part:done")
        info, taken, schemas = self._unconfirmed
        self._unconfirmed = None
        self._parts.append((info, schemas))
        return self._forget(taken, info.disk_bytes)

    def _write(self, tables: dict[str, pa.Table], raw_bytes: int) -> PartInfo:
        while True:
            name = f"part-{self._next_part:06d}"
            self._next_part += 1
            if not os.path.lexists(self.folder / name):
                break
        try:
            return write_part(self.folder, name, tables, self.options, raw_bytes)
        except OSError:
            self._next_part -= 1
            raise

    def drop_one(self) -> Written:
        """Give up the rows of the next part."""
        return self._forget(self._take(), 0)

    def _forget(self, taken: list[Pending], disk_bytes: int) -> Written:
        del self.pending[: len(taken)]
        nbytes = sum(item.nbytes for item in taken)
        self.pending_bytes -= nbytes
        return Written(rows=sum(item.rows for item in taken), nbytes=nbytes, disk_bytes=disk_bytes)

    # -- errors ----------------------------------------------------------------------------------------------

    def failed(self, error: str, *, hurry: bool) -> None:
        """Note a refusal of the disk and when to try again."""
        self.error = error
        self._backoff = min(max(2 * self._backoff, _FIRST_BACKOFF), 1.0 if hurry else _LAST_BACKOFF)
        self.retry_at = time.monotonic() + self._backoff

    def succeeded(self) -> None:
        """Note that the disk works."""
        self.error = None
        self._backoff = 0.0
        self.retry_at = 0.0

    # -- the end ---------------------------------------------------------------------------------------------

    def rename(self, folder: Path, key: PassKey) -> None:
        """From the seal on this is the pass `key`, in `folder`."""
        self._renamed = folder
        self.manifest = dataclasses.replace(
            self.manifest, dataset_type=key.dataset_type, n_epoch=key.n_epoch, pass_no=key.pass_no
        )

    def _move(self) -> None:
        """Move the folder to its new name; can be called again after an OSError."""
        if self._renamed is None:
            return
        if self.folder != self._renamed:
            make_dirs(self._renamed.parent, fsync=self.options.fsync)
            self.options.step("seal:rename")
            if os.path.lexists(self._renamed):
                raise self._taken(self._renamed)
            self.folder.rename(self._renamed)
            old, self.folder = self.folder, self._renamed
            if self.options.fsync:
                fsync_dir(self.folder.parent)
            _prune(old)
        write_json(self.folder / ATTEMPT_FILE, dataclasses.asdict(self.manifest), fsync=self.options.fsync)
        self._renamed = None

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        if self._made:
            shutil.rmtree(self.folder, ignore_errors=True)
            _prune(self.folder)

    def seal(self, losses: dict[str, int], told: list[str]) -> SealManifest:
        """Compact small parts, write `seal.json`, remove the parts that no longer count.

        Args:
            losses: reason -> rows of this pass that were lost.
            told: gets a line if compaction was given up (the parts are then sealed as they are).

        Raises:
            OSError: `seal.json` could not be written; call again.
        """
        self.open()
        self._move()
        if self._sealed_parts is None:
            try:
                self._sealed_parts = compact(self.folder, self._parts, self.options)
            except (OSError, MemoryError, pa.ArrowException, ValueError) as error:
                told.append(f"small parts were left as they are ({type(error).__name__}: {error})")
                self._sealed_parts = [info for info, _ in self._parts]
        if self._seal is None:
            rows: dict[str, int] = {}
            for part in self._sealed_parts:
                for family, info in part.files.items():
                    rows[family] = rows.get(family, 0) + info.rows
            self._seal = SealManifest(
                attempt=self.manifest,
                parts=self._sealed_parts,
                rows=rows,
                losses=dict(losses),
                sealed_at=utc_now(),
                widths=self._widths(),
                meta=self.sealing or {},
            )
        self.options.step("seal:manifest")
        write_json(self.folder / SEAL_FILE, dataclasses.asdict(self._seal), fsync=self.options.fsync)
        self.options.step("seal:stale")
        listed = {part.name for part in self._sealed_parts}
        for part, _ in self._parts:
            if part.name not in listed:
                shutil.rmtree(self.folder / part.name, ignore_errors=True)
        self.options.step("seal:done")
        return self._seal

    def _widths(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for _, schemas in self._parts:
            for field in schemas.get("vectors", ()):
                if is_vector(field):
                    shape = json.loads(field.metadata[b"shape"])
                    found[field.name] = {"shape": shape, "dtype": field.metadata[b"dtype"].decode()}
        return found


def _prune(folder: Path) -> None:
    """Remove the attempt, pass, epoch and split folders around a rank's folder, as far as they are empty."""
    with contextlib.suppress(OSError):
        for parent in list(folder.parents)[:4]:
            parent.rmdir()
