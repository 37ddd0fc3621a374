"""Removing what was recorded: a run, epochs of it, or every row of a sample.

A run or an epoch is renamed to a `.tmp` name, from which moment on nobody reads it, and then deleted. Of a
sample, first a line says that it is removed (mld_core.records.format.removals), which counts at once; then
the parts that hold rows of it are written anew without them. Whatever is killed half-way is finished by the
next removal or by `mld gc`. Ranks that have not sealed are not written anew: their process may be running.
Readers leave those rows out, and the next removal or `mld gc` takes them out once they are sealed.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.records.format.attempts import RankFolder, list_attempts, list_passes
from mld_core.records.format.layout import PassKey, RunKey, Store, subfolders
from mld_core.records.format.manifest import (
    TMP_PREFIX,
    FileInfo,
    PartInfo,
    SealManifest,
    fsync_dir,
    tmp_name,
)
from mld_core.records.format.options import WriterOptions
from mld_core.records.format.parts import file_digest, read_family, write_options, write_part
from mld_core.records.format.removals import REMOVED, Removals, id_digest, marks, pending
from mld_core.records.write.gc import folder_bytes, is_running, remove
from mld_core.records.write.reseal import locked, reseal

_STEM = "removed"
_PIECE_ROWS, _PIECE_BYTES = 1024, 32 << 20


@dataclass
class Removed:
    """What was removed, or would be.

    Attributes:
        rows: sample rows.
        files: Parquet files that went, or were written anew.
        bytes: bytes freed; before the fact, those of the files that would go or be written anew.
        left: ranks that hold rows and have not sealed: those rows count for nobody, and are still there.
    """

    rows: int = 0
    files: int = 0
    bytes: int = 0
    left: list[Path] = field(default_factory=list)

    def add(self, other: "Removed") -> None:
        """Count another in."""
        self.rows += other.rows
        self.files += other.files
        self.bytes += other.bytes
        self.left += other.left


def _ranks(store: Store, run: RunKey) -> Iterator[tuple[PassKey, RankFolder]]:
    for key in list_passes(store, run):
        for attempt in list_attempts(store, run, key):
            yield from ((key, rank) for rank in attempt.ranks)


def _wanted(key: PassKey, dataset_type: str | None, epochs: Iterable[int | None] | None) -> bool:
    return dataset_type in {None, key.dataset_type} and (epochs is None or key.n_epoch in epochs)


# -- whole folders -------------------------------------------------------------------------------------------


def remove_passes(
    store: Store,
    run: RunKey,
    *,
    dataset_type: str | None = None,
    epochs: Iterable[int | None] | None = None,
    dry_run: bool = False,
) -> Removed:
    """Remove a run with all that lies beside its records, or some of its epochs.

    Args:
        store: the store.
        run: the run.
        dataset_type: only this split; None = all.
        epochs: only these, where None in it is the unknown epoch; None = all.
        dry_run: only say what would go.

    Raises:
        ValueError: some of it is being recorded. OSError: the disk refuses; removing again goes on.
    """
    whole = dataset_type is None and epochs is None
    wanted = None if epochs is None else set(epochs)
    found = Removed()
    folders = {store.run_dir(run)} if whole else set()
    for key, rank in _ranks(store, run):
        if not _wanted(key, dataset_type, wanted):
            continue
        if is_running(rank):
            raise ValueError(
                f"{rank.path} is being recorded by process {rank.opened.pid}: end the training first"
            )
        parts, _ = rank.parts()
        found.rows += sum(part.rows_of("samples") for part in parts)
        found.files += sum(len(part.files) for part in parts)
        if not whole:
            folders.add(store.pass_dir(run, key).parent)
    found.bytes = sum(map(folder_bytes, folders))
    if not dry_run:
        for folder in sorted(folders):
            _hide(folder)
    return found


def _hide(folder: Path) -> None:
    hidden = folder.parent / tmp_name(_STEM)
    with contextlib.suppress(FileNotFoundError):  # somebody else removes it, too
        folder.rename(hidden)
        fsync_dir(folder.parent)
        remove(hidden)


def finish_removed(store: Store) -> None:
    """Delete the runs whose removal was killed half-way; what lies in a run, `mld gc` finds."""
    for model in subfolders(store.root):
        for path in model.glob(f"{TMP_PREFIX}-{_STEM}-*"):
            remove(path)


# -- samples -------------------------------------------------------------------------------------------------


def remove_samples(
    store: Store,
    run: RunKey,
    input_ids: Iterable[str],
    *,
    dataset_type: str | None = None,
    dry_run: bool = False,
    options: WriterOptions | None = None,
) -> Removed:
    """Remove every row of some samples, in all epochs and all families.

    Args:
        store: the store.
        run: the run.
        input_ids: their ids.
        dataset_type: only in this split; None = in all.
        dry_run: only say what would go.
        options: codec and fsync of the parts that are written anew.

    Raises:
        OSError, DamagedPartError: a rank could not be written anew; what is noted counts already, and
            removing again goes on.
    """
    digests = frozenset(map(id_digest, input_ids))
    if dry_run:
        found = Removed()
        for key, rank in _ranks(store, run):
            if _wanted(key, dataset_type, None):
                found.add(_held(rank, pending(rank, digests)))
        return found
    Removals(store, run).append(digests, dataset_type)
    return sweep(store, run, options=options)


def sweep(store: Store, run: RunKey, *, options: WriterOptions | None = None) -> Removed:
    """Take the rows of a run's removed samples out of its sealed parts.

    Raises:
        OSError, DamagedPartError: see `remove_samples`.
    """
    removals = Removals(store, run)
    done = Removed()
    if not removals.folder.is_dir():
        return done
    for key, rank in _ranks(store, run):
        digests = removals.of_split(key.dataset_type)
        if pending(rank, digests):
            done.add(_swept(rank, digests, options or WriterOptions()))
    return done


def _held(rank: RankFolder, digests: frozenset[str]) -> Removed:
    """The rows of some samples in a rank, and the files they are in."""
    found = Removed()
    for part in rank.parts()[0] if digests else ():
        ids = read_family(rank.path / part.name, "samples", ["input_id"])["input_id"]
        rows = int(marks(ids, digests).sum())
        if rows:
            found.add(Removed(rows, len(part.files), part.disk_bytes))
    if found.rows and rank.sealed is None:
        return Removed(rows=found.rows, left=[rank.path])
    return found


def _swept(rank: RankFolder, digests: frozenset[str], options: WriterOptions) -> Removed:
    if rank.sealed is None:
        held = _held(rank, digests)
        return Removed(left=held.left)
    with locked(rank.path):
        rank = rank.reread()
        sealed = rank.sealed
        left = pending(rank, digests)
        if sealed is None or not left:
            return Removed()
        done = Removed()

        def anew(part: PartInfo, names: Iterator[str]) -> PartInfo | None:
            ids = read_family(rank.path / part.name, "samples", ["input_id"])["input_id"]
            rows = int(marks(ids, left).sum())
            if not rows:
                return part
            done.rows += rows
            done.files += len(part.files)
            return _without(rank.path, part, next(names), left, options) if rows < len(ids) else None

        made = reseal(rank, anew, lambda old, parts: _changed(old, parts, digests), options, "remove")
    done.bytes = sum(part.disk_bytes for part in sealed.parts) - sum(part.disk_bytes for part in made)
    return done


def _changed(sealed: SealManifest, parts: list[PartInfo], digests: frozenset[str]) -> dict[str, Any]:
    gone = sorted({*(sealed.meta.get(REMOVED) or ()), *digests})
    rows = {family: sum(part.rows_of(family) for part in parts) for family in sealed.rows}
    return {"rows": rows, "meta": {**sealed.meta, REMOVED: gone}}


def _without(
    folder: Path, part: PartInfo, name: str, digests: frozenset[str], options: WriterOptions
) -> PartInfo:
    """A copy of one part without the rows of some samples."""
    options.step("remove:part")
    tables = {family: rows_without(read_family(folder / part.name, family), digests) for family in part.files}
    raw_bytes = part.raw_bytes * tables["samples"].num_rows // max(1, part.rows_of("samples"))
    return write_part(folder, name, tables, options, raw_bytes)


def rows_of(path: Path, digests: frozenset[str]) -> int:
    """How many rows of a `samples` file are of these samples; read a piece at a time."""
    with pq.ParquetFile(str(path)) as file:
        pieces = file.iter_batches(columns=["input_id"], use_threads=False)
        return sum(int(marks(batch.column(0), digests).sum()) for batch in pieces)


def written_without(source: Path, target: Path, family: str, digests: frozenset[str]) -> FileInfo:
    """Write a file of any family anew without the rows of some samples, a piece at a time; durable on return.

    Raises:
        OSError: the disk refuses.
    """
    rows = 0
    with pq.ParquetFile(str(source)) as file:
        options = write_options(family, file.schema_arrow, WriterOptions().codec)
        group = options.pop("row_group_size")
        with pq.ParquetWriter(str(target), file.schema_arrow, **options) as out:
            held: list[pa.RecordBatch] = []
            for batch in file.iter_batches(_PIECE_ROWS, use_threads=False):
                kept = batch.filter(pa.array(~marks(batch.column("input_id"), digests)))
                held.append(kept)
                rows += kept.num_rows
                full = sum(one.num_rows for one in held) >= group
                if full or sum(one.nbytes for one in held) > _PIECE_BYTES:
                    out.write_table(pa.Table.from_batches(held, file.schema_arrow), row_group_size=group)
                    held = []
            out.write_table(pa.Table.from_batches(held, file.schema_arrow), row_group_size=group)
    with target.open("rb") as done:
        os.fsync(done.fileno())
    return FileInfo(bytes=target.stat().st_size, rows=rows, sha256=file_digest(target))


def rows_without(table: pa.Table, digests: frozenset[str]) -> pa.Table:
    """A table of any family without the rows of some samples."""
    return table.filter(pa.array(~marks(table["input_id"], digests)))
