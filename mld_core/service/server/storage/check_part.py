"""Reads what strangers uploaded, one file after another, in a process with little memory and no way out.

Started by `mld_core.service.server.storage.checks`. Each line on stdin is a request (JSON: path and limits),
each line on stdout its answer. A file is decoded to the end in small batches: what a footer claims about
sizes is not believed. A file that needs more memory or time than allowed takes this process down; the parent
then refuses it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.service.server.children import limit_memory
from mld_core.service.server.storage.manifests import NoManifestError, read_manifest, read_old_seal

_BATCH_ROWS = 1024
_MAX_COLUMNS = 2000
_MAX_ROW_GROUPS = 100_000
_FREE_BYTES = 64 << 20
_MAGIC = b"PAR1"
_THRIFT = {"thrift_string_size_limit": 32 << 20, "thrift_container_size_limit": 4_000_000}


class RefusedError(ValueError):
    """The file is not one we accept."""


def check_file(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """`check_bytes` of a file whose digest is `sha256`; `mismatch` where it is not."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
        if state.hexdigest() != request["sha256"]:
            return {"mismatch": True}
        file.seek(0)
        return check_bytes(file, request)


def check_manifest(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """`read_manifest` of a file whose digest is `sha256`; `mismatch` where it is not."""
    text = path.read_bytes()
    if hashlib.sha256(text).hexdigest() != request["sha256"]:
        return {"mismatch": True}
    return read_manifest(text)


def check_bytes(file: IO[bytes], limits: dict[str, float]) -> dict[str, Any]:
    """Read a Parquet file to the end.

    Args:
        file: the file, open for reading.
        limits: `max_rows`, `max_decoded` (bytes), `max_ratio`.

    Returns:
        `rows`, `decoded` (bytes) and `schema`: [name, Arrow type as text] of each column.

    Raises:
        RefusedError: the reason, fit for the client.
    """
    head, size = file.read(4), file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 4))
    if head[:1] == b"{":  # a manifest: read when a seal names it; no part of a pass may be one
        return {"manifest": True}
    if size < 12 or head != _MAGIC or file.read(4) != _MAGIC:
        raise RefusedError("it is not a Parquet file")
    allowed = min(limits["max_decoded"], max(_FREE_BYTES, limits["max_ratio"] * size))
    try:
        with pq.ParquetFile(file, **_THRIFT) as parquet:
            return _read(parquet, limits, allowed)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, RefusedError):
            raise
        if isinstance(error, MemoryError):
            raise RefusedError("it takes more memory to decode than is allowed") from error
        raise RefusedError(f"it can not be decoded: {str(error)[:200]}") from error


def _read(parquet: pq.ParquetFile, limits: dict[str, float], allowed: float) -> dict[str, Any]:
    meta = parquet.metadata
    if meta.num_rows > limits["max_rows"]:
        raise RefusedError(f"it has {meta.num_rows} rows; at most {int(limits['max_rows'])} are accepted")
    if meta.num_columns > _MAX_COLUMNS or meta.num_row_groups > _MAX_ROW_GROUPS:
        raise RefusedError(f"it has {meta.num_columns} columns in {meta.num_row_groups} row groups: too many")
    schema = parquet.schema_arrow
    for item in schema:
        _check_type(item)
    if len(set(schema.names)) != len(schema.names):
        raise RefusedError("two of its columns have the same name")
    rows = decoded = 0
    for batch in parquet.iter_batches(_BATCH_ROWS, use_threads=False):
        rows += batch.num_rows
        decoded += batch.nbytes
        if decoded > allowed:
            raise RefusedError(f"it decodes to more than {int(allowed)} bytes")
    if rows != meta.num_rows:
        raise RefusedError(f"its footer says {meta.num_rows} rows, it holds {rows}")
    return {"rows": rows, "decoded": decoded, "schema": [[item.name, str(item.type)] for item in schema]}


def _check_type(item: pa.Field) -> None:
    if item.metadata and any(key.startswith(b"ARROW:extension") for key in item.metadata):
        raise RefusedError(f"column {item.name!r} is of an extension type")
    if not _is_plain(item.type, lists=1):
        raise RefusedError(f"column {item.name!r} is of type {item.type}, which is not accepted")


def _is_plain(kind: pa.DataType, lists: int) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_plain(kind.value_type, 0)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return lists > 0 and _is_plain(kind.value_type, lists - 1)
    return any(
        test(kind)
        for test in (
            *(pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating),
            *(pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary),
            *(pa.types.is_fixed_size_binary, pa.types.is_temporal, pa.types.is_decimal),
        )
    )


def check_rank(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Check all `files` of a pack, each [digest, start, bytes]; the last is its manifest."""
    whole = memoryview(path.read_bytes())
    *files, manifest = ((sha256, whole[at : at + count]) for sha256, at, count in request["files"])
    verdicts = {
        sha256: _verdict(partial(check_bytes, io.BytesIO(content), request)) for sha256, content in files
    }
    verdicts[manifest[0]] = {"ok": True, "manifest": True}
    return {"verdicts": verdicts, "manifest": _verdict(lambda: read_manifest(bytes(manifest[1])))}


_KINDS: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "blob": check_file,
    "rank": check_rank,
    "manifest": check_manifest,
    "seal of 1.0": lambda path, _: read_old_seal(path.read_bytes()),
}


def limit_process(memory_bytes: int) -> None:
    """Take away what a check does not need: memory beyond `memory_bytes`, writing files, core dumps."""
    limit_memory(memory_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    os.nice(5)  # an upload that is under way goes first


def allow_cpu(seconds: float) -> None:
    """End this process when it has used so many CPU seconds more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _verdict(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a check finds, or why it finds nothing."""
    try:
        return {"ok": True, **check()}
    except NoManifestError as error:
        return {"ok": False, "invalid": error.facts}
    except MemoryError:
        return {"ok": False, "reason": "it takes more memory to read than is allowed"}
    except RefusedError as error:
        return {"ok": False, "reason": str(error)}
    except FileNotFoundError:
        return {"ok": False, "gone": True, "reason": "the file is gone"}


def main() -> None:
    """Answer requests until stdin ends."""
    limit_process(int(sys.argv[1]))
    sys.stdout.write('{"ready": true}\n')
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        allow_cpu(request["seconds"])
        answer = _verdict(partial(_KINDS[request["kind"]], Path(request["path"]), request))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
