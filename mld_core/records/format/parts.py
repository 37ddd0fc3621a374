"""One part: a folder with one Parquet file per family, all or nothing.

Each family is encoded, hashed and written page by page under a `.tmp` name; files and folder are fsynced and
the folder is renamed once. `part.json` in it says what belongs to it, so that a part that was torn later (a
copy that broke off, a disk that lost blocks) is seen without decoding it.
"""

import contextlib
import dataclasses
import errno
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.records.format.bucket import BucketPath, UnreachableStoreError
from mld_core.records.format.manifest import (
    FORMAT,
    PART_FILE,
    FileInfo,
    PartInfo,
    read_json,
    work_folder,
    write_json,
)
from mld_core.records.format.options import WriterOptions

SAMPLE_ROW_GROUP = 65536
VECTOR_ROW_GROUP = 8192
# Ids and hashes differ from row to row: a dictionary of them is only a detour.
_LOOK = 1 << 15  # bytes of a column that are compressed to see what it would win
_WORTH = 0.85
_NO_DICTIONARY = frozenset({"input_id", "input_hash"})


UNDECODABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError)
"""What Arrow says of changed bytes: a name in a footer may be no text. That memory ran out is no damage."""


class DamagedPartError(ValueError):
    """A part whose content can not be read although its size is right."""


def file_name(family: str) -> str:
    """The file of a family inside a part folder."""
    return f"{family}.parquet"


def write_options(family: str, schema: pa.Schema, codec: str) -> dict[str, Any]:
    """The Parquet settings of a family: vectors and images plain, without statistics; scalars with both."""
    if family == "media":  # PNGs are compressed already
        codec = "none"
    options: dict[str, Any] = {"compression": codec}
    if codec == "zstd":
        options["compression_level"] = 1
    if family in {"vectors", "media"}:
        plain = {"use_dictionary": False, "write_statistics": False, "row_group_size": VECTOR_ROW_GROUP}
        return {**options, **plain}
    options["row_group_size"] = SAMPLE_ROW_GROUP
    texts = [item for item in schema if pa.types.is_string(item.type) or pa.types.is_dictionary(item.type)]
    repeated = [item.name for item in texts if item.name not in _NO_DICTIONARY]
    return {**options, "use_dictionary": repeated or False, "write_statistics": True}


def _compression(table: pa.Table, codec: str) -> dict[str, Any]:
    """The codec of each column of `vectors`: none where a look at its first values says that nothing is won.

    Features behind a ReLU shrink to half; those of a linear layer, and logits, by a tenth, and writing takes
    nearly twice the time for it.
    """
    if codec == "none":
        return {}
    codecs = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        chunk = next((chunk for chunk in column.chunks if len(chunk)), None)
        width = getattr(column.type, "byte_width", 0) if pa.types.is_fixed_size_binary(column.type) else 0
        codecs[name] = codec
        if chunk is not None and width:
            start = chunk.offset * width
            sample = chunk.buffers()[1].slice(start, min(len(chunk) * width, _LOOK))
            if pa.compress(sample, codec).size > _WORTH * sample.size:
                codecs[name] = "none"
    levels = {name: 1 for name, used in codecs.items() if used == "zstd"}
    return {"compression": codecs, "compression_level": levels or None}


class _HashingFile(io.RawIOBase):
    """An unbuffered file that hashes what is written to it, page by page while it is in the CPU's cache."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def write_family(path: Path, family: str, table: pa.Table, options: WriterOptions) -> FileInfo:
    """Write one family as a new Parquet file; it is durable on return (unless `options.fsync` is off).

    Raises:
        OSError: the disk refused. pyarrow.ArrowException: the rows can not be encoded.
    """
    # Many short scalar columns are written five times faster in one chunk. Vectors are not worth the copy.
    whole = table if family in {"vectors", "media"} else table.unify_dictionaries().combine_chunks()
    with contextlib.closing(_HashingFile(path)) as file:
        with pa.PythonFile(file, mode="w") as sink:
            settings = write_options(family, table.schema, options.codec)
            if family == "vectors":
                settings |= _compression(whole, options.codec)
            pq.write_table(whole, sink, **settings)
            if options.fsync:
                options.step("part:fsync")
                os.fsync(file.fileno())
        return FileInfo(bytes=file.size, rows=table.num_rows, sha256=file.hexdigest())


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex, read in pieces."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def publish(tmp: Path, target: Path, info: PartInfo, options: WriterOptions) -> None:
    """Add `part.json` to a finished temporary folder and give it its name.

    The new name is durable once the caller has fsynced the parent folder.

    Raises:
        OSError: the disk refused; `tmp` is still there. FileExistsError: `target` is taken by something else.
    """
    write_json(tmp / PART_FILE, {"format": FORMAT, **dataclasses.asdict(info)}, fsync=options.fsync)
    options.step("part:rename")
    try:
        tmp.rename(target)
    except OSError as error:
        # A network disk may report a failure for a rename that it did: then the part under that name is this
        # one.
        if read_part_info(target) == info:
            return
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise FileExistsError(errno.EEXIST, "part folder is taken", str(target)) from error
        raise


def write_part(
    rank_dir: Path, name: str, tables: dict[str, pa.Table], options: WriterOptions, raw_bytes: int
) -> PartInfo:
    """Write one part folder, whole or not at all.

    Args:
        rank_dir: an existing rank folder.
        name: name of the part folder.
        tables: family -> rows.
        options: codec, fsync, test hook.
        raw_bytes: size of the tables in memory.

    Returns:
        What was written.

    Raises:
        OSError: the disk refused; nothing visible was left.
        pyarrow.ArrowException: the rows can not be encoded.
    """
    options.step("part:write")
    with work_folder(rank_dir, name) as tmp:
        files = {
            family: write_family(tmp / file_name(family), family, table, options)
            for family, table in tables.items()
        }
        info = PartInfo(name=name, files=files, raw_bytes=raw_bytes)
        publish(tmp, rank_dir / name, info, options)
    return info


def read_part_info(part_dir: Path) -> PartInfo | None:
    """What `part.json` says, or None if it is missing or torn."""
    data = read_json(part_dir / PART_FILE)
    if data is None:
        return None
    try:
        return dataclasses.replace(PartInfo.from_json(data), name=part_dir.name)
    except (KeyError, TypeError, ValueError):
        return None


def torn_reason(part_dir: Path, info: PartInfo | None) -> str | None:
    """Why a part does not count, by sizes and footers; None if it looks whole."""
    if info is None:
        return f"{part_dir}: {PART_FILE} is missing or torn"
    reasons = (_torn_file(part_dir / file_name(family), expected) for family, expected in info.files.items())
    return next((reason for reason in reasons if reason is not None), None)


def _torn_file(path: Path, expected: FileInfo) -> str | None:
    try:
        with contextlib.ExitStack() as stack:
            # Opening an object says how large it is: nothing is asked for twice.
            source = stack.enter_context(path.source()) if isinstance(path, BucketPath) else None
            size = path.stat().st_size if source is None else source.size()
            if size != expected.bytes:
                return f"{path}: {size} bytes, expected {expected.bytes}"
            file = stack.enter_context(_parquet(path, source))
            rows = file.metadata.num_rows
    except UnreachableStoreError:
        raise
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    except UNDECODABLE as error:
        return f"{path}: the Parquet footer can not be read ({error})"
    return None if rows == expected.rows else f"{path}: {rows} rows, expected {expected.rows}"


def joined(pieces: Sequence[Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    """One table for each family of several pieces, chunk after chunk, nothing copied."""
    families = dict.fromkeys(family for piece in pieces for family in piece)
    return {
        family: pa.concat_tables([piece[family] for piece in pieces if family in piece])
        for family in families
    }


def open_family(part_dir: Path, family: str) -> pq.ParquetFile:
    """Open one family of a part for reading.

    Raises:
        FileNotFoundError: the part is gone. DamagedPartError: it is no Parquet file.
    """
    path = part_dir / file_name(family)
    try:
        return _parquet(path)
    except UnreachableStoreError:
        raise
    except UNDECODABLE as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's word, not Arrow's
            raise
        raise damaged(path, error) from error


def _parquet(path: Path, opened: Any = None) -> pq.ParquetFile:
    if not isinstance(path, BucketPath):
        return pq.ParquetFile(str(path))
    try:
        return pq.ParquetFile(path.source() if opened is None else opened)
    except OSError as error:
        raise path.unreachable(error) or error from error


def damaged(path: Path, error: Exception) -> DamagedPartError | UnreachableStoreError:
    """The error for a part that is there but can not be decoded, or whose bucket went away meanwhile."""
    gone = path.unreachable(error) if isinstance(path, BucketPath) else None
    if gone is not None:
        return gone
    return DamagedPartError(
        f"{path} is damaged ({error}); `mld doctor` lists damaged parts, and moving the folder {path.parent} "
        "away lets the rest be read"
    )


def read_family(part_dir: Path, family: str, columns: list[str] | None = None) -> pa.Table:
    """Read one family of a part (only `columns`, if given), on the calling thread.

    Raises:
        FileNotFoundError: the part is gone. DamagedPartError: it can not be decoded.
    """
    with open_family(part_dir, family) as file:
        try:
            return file.read(columns=columns, use_threads=False)
        except UNDECODABLE as error:
            raise damaged(part_dir / file_name(family), error) from error
