"""The manifests of a rank's folder, and how small JSON files are written: whole or absent.

`attempt.json` is written when a pass is opened, `seal.json` when it is sealed. Both are UTF-8 JSON with a
`format` number; a reader that meets a higher number leaves the attempt alone and says so.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from mld_core.explained import explained
from mld_core.records.format.bucket import UnreachableStoreError

T = TypeVar("T")
FORMAT = 1
ATTEMPT_FILE = "attempt.json"
SEAL_FILE = "seal.json"
PART_FILE = "part.json"
TMP_PREFIX = ".tmp"
FEATURES_DROPPED = "features_dropped"
"""In the meta of a seal: the rank's feature vectors were dropped afterwards."""

_counter = itertools.count()


class UnknownFormatError(ValueError):
    """A manifest written by a newer release."""


@dataclass(frozen=True)
class FileInfo:
    """One Parquet file of a part: size in bytes, number of rows, SHA-256 in hex."""

    bytes: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class PartInfo:
    """One part folder: its name and its files by family. `raw_bytes` is the size of the columns in memory."""

    name: str
    files: dict[str, FileInfo]
    raw_bytes: int = 0

    def rows_of(self, family: str) -> int:
        """Rows of a family; 0 where the part has none of it."""
        return self.files[family].rows if family in self.files else 0

    @property
    def disk_bytes(self) -> int:
        """Bytes of all Parquet files of this part."""
        return sum(info.bytes for info in self.files.values())

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PartInfo":
        """Build from the parsed JSON form.

        Raises:
            KeyError, TypeError, ValueError: a member is missing or of the wrong kind.
        """
        files = {str(family): FileInfo(**info) for family, info in dict(data["files"]).items()}
        return cls(name=str(data["name"]), files=files, raw_bytes=int(data.get("raw_bytes", 0)))


@dataclass(frozen=True)
class AttemptManifest:
    """What is known when a rank opens a pass (`attempt.json`)."""

    model_name: str
    version_name: str
    dataset_type: str
    n_epoch: int | None
    pass_no: int
    attempt: str
    rank: int
    world_size: int
    generation: int = 0
    launch_id: str = ""
    restart: int = 0
    started_at: str = ""
    pid: int = 0
    host: str = ""
    continues: str | None = None
    resume_step: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class SealManifest:
    """What is known when a rank has finished a pass (`seal.json`): the parts that count, rows, losses."""

    attempt: AttemptManifest
    parts: list[PartInfo]
    rows: dict[str, int]
    losses: dict[str, int]
    sealed_at: str
    widths: dict[str, dict[str, Any]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def utc_now() -> str:
    """The time now, UTC, ISO 8601 with microseconds: sorts as text."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def fsync_dir(path: Path) -> None:
    """Make the names inside a folder durable (no-op where folders can not be opened)."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dirs(path: Path, *, fsync: bool = True) -> None:
    """Create a folder and its parents, and make the new names durable."""
    missing = []
    current = path
    while not current.exists():
        missing.append(current)
        current = current.parent
    path.mkdir(parents=True, exist_ok=True)
    if fsync:
        for made in missing:
            fsync_dir(made.parent)


def tmp_name(stem: str) -> str:
    """A name beside which no other process, thread or earlier crash can have left one."""
    return f"{TMP_PREFIX}-{stem}-{os.getpid()}-{next(_counter)}-{os.urandom(3).hex()}"


@contextlib.contextmanager
def work_folder(parent: Path, stem: str) -> Iterator[Path]:
    """A folder to build something in: it is removed afterwards, unless it was given its name by then."""
    folder = parent / tmp_name(stem)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold; NaN and infinities become text, anything unknown its str()."""
    if value is None or isinstance(value, bool | int | str):
        return value if not isinstance(value, int) or isinstance(value, bool) else int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    return str(value)


def write_json(path: Path, data: dict[str, Any], *, fsync: bool = True) -> None:
    """Write a JSON file that is whole or absent: temporary name, fsync, rename, fsync of the folder."""
    tmp = path.parent / tmp_name(path.name)
    text = json.dumps(plain(data), indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
    try:
        with tmp.open("xb") as file:
            file.write(text)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        tmp.replace(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    if fsync:
        fsync_dir(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None when the file is missing, unreadable, torn or not an object.

    Raises:
        UnreachableStoreError: it lies in a bucket that does not answer, and may well be there.
    """
    try:
        data = json.loads(path.read_bytes())
    except UnreachableStoreError:
        raise
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _read(path: Path, build: Callable[[dict[str, Any], Path], T]) -> T | None:
    """A manifest as `build` makes it; None when it is missing, torn or not one of ours.

    Raises:
        UnknownFormatError: a newer format.
    """
    data = read_json(path)
    if data is None:
        return None
    try:
        return build(data, path)
    except UnknownFormatError:
        raise
    except (KeyError, TypeError, ValueError):
        return None


def _check_format(data: dict[str, Any], path: Path) -> None:
    found = data.get("format")
    if not isinstance(found, int):
        raise ValueError(f"{path} holds no format number: not written by ml_debugger")  # noqa: TRY004 - content
    if found > FORMAT:
        raise UnknownFormatError(
            explained(
                f"{path} has record format {found}, this release reads up to {FORMAT}; upgrade ml-debugger"
            )
        )


def attempt_from_json(data: dict[str, Any], path: Path) -> AttemptManifest:
    """Build an AttemptManifest; members of later releases are ignored.

    Raises:
        UnknownFormatError: a newer format. ValueError: not one of ours.
    """
    _check_format(data, path)
    known = {item.name for item in dataclasses.fields(AttemptManifest)}
    try:
        return AttemptManifest(**{key: value for key, value in data.items() if key in known})
    except TypeError as error:
        raise ValueError(f"{path} is not an attempt manifest: {error}") from error


def _seal_from_json(data: dict[str, Any], path: Path) -> SealManifest:
    _check_format(data, path)
    return SealManifest(
        attempt=attempt_from_json(dict(data["attempt"]), path),
        parts=[PartInfo.from_json(part) for part in data["parts"]],
        rows={str(family): int(rows) for family, rows in dict(data["rows"]).items()},
        losses={str(reason): int(rows) for reason, rows in dict(data.get("losses", {})).items()},
        sealed_at=str(data["sealed_at"]),
        widths=dict(data.get("widths", {})),
        meta=dict(data.get("meta", {})),
        format=int(data["format"]),
    )


def read_attempt(folder: Path) -> AttemptManifest | None:
    """Read `attempt.json` of a rank folder; None and errors as `_read`."""
    return _read(folder / ATTEMPT_FILE, attempt_from_json)


def read_seal(folder: Path) -> SealManifest | None:
    """Read `seal.json` of a rank folder; None and errors as `_read`."""
    return _read(folder / SEAL_FILE, _seal_from_json)
