"""Where complete blobs lie: a folder, or a bucket of S3-compatible storage through pyarrow.

A blob's place is made of the organization's opaque id and the digest, never of anything else a client
said.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from mld_core.records.format.manifest import fsync_dir, make_dirs, tmp_name
from mld_core.service.protocol import SHA256
from mld_core.service.server.settings import Settings

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a disk that takes no more."""

_PIECE = 8 << 20
_LOOK_SECONDS = 60.0
_EMPTY = hashlib.sha256(b"").hexdigest()


class Storage(Protocol):
    """Complete blobs of organizations."""

    def take(self, organization_id: str, sha256: str, path: Path) -> None:
        """Store a finished file, which may be moved away; durable on return. Storing twice is harmless."""

    def lay(self, organization_id: str, sha256: str, content: bytes) -> Path | None:
        """Store bytes that can be laid again: the file to be made durable, None where they are already."""

    def local(self, organization_id: str, sha256: str) -> Path:
        """A file with the blob's content, not to be changed. Raises FileNotFoundError."""

    def read(self, organization_id: str, sha256: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` up to `end`, in pieces. Raises FileNotFoundError."""

    def exists(self, organization_id: str, sha256: str) -> bool:
        """Whether the blob's content is there."""

    def remove(self, organization_id: str, sha256: str) -> None:
        """Remove the blob's content; one that is not there is no error."""

    def ready(self) -> bool:
        """Whether the storage answers."""


def _place(organization_id: str, sha256: str) -> str:
    if SHA256.fullmatch(sha256) is None:
        raise ValueError(f"{sha256!r} is not a SHA-256")
    return f"{organization_id}/{sha256[:2]}/{sha256}"


class LocalStorage:
    """Blobs in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_dirs(root)

    def local(self, organization_id: str, sha256: str) -> Path:
        """See `Storage`."""
        path = self.root / _place(organization_id, sha256)
        if not path.is_file():
            raise FileNotFoundError(f"blob {sha256} is not in the storage")
        return path

    def take(self, organization_id: str, sha256: str, path: Path) -> None:
        """See `Storage`; `path` was fsynced."""
        target = self.root / _place(organization_id, sha256)
        make_dirs(target.parent)
        try:
            path.replace(target)
        except OSError:  # another disk
            tmp = target.parent / tmp_name("blob")
            shutil.copyfile(path, tmp)
            with tmp.open("rb") as file:
                os.fsync(file.fileno())
            tmp.replace(target)
            path.unlink()
        fsync_dir(target.parent)

    def lay(self, organization_id: str, sha256: str, content: bytes) -> Path | None:
        """See `Storage`."""
        target = self.root / _place(organization_id, sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        tmp = target.parent / tmp_name("blob")
        tmp.write_bytes(content)
        tmp.replace(target)
        return target

    def read(self, organization_id: str, sha256: str, start: int, end: int) -> Iterator[bytes]:
        """See `Storage`."""
        return read_file(self.local(organization_id, sha256), start, end)

    def exists(self, organization_id: str, sha256: str) -> bool:
        """See `Storage`."""
        return (self.root / _place(organization_id, sha256)).is_file()

    def remove(self, organization_id: str, sha256: str) -> None:
        """See `Storage`."""
        (self.root / _place(organization_id, sha256)).unlink(missing_ok=True)

    def ready(self) -> bool:
        """See `Storage`."""
        return os.access(self.root, os.W_OK)


class S3Storage:
    """Blobs in a bucket; copies of those that were used here lately lie in a folder.

    Args:
        root: `bucket/prefix`.
        filesystem: the bucket's file system.
        cache: folder for local copies.
        cache_bytes: how much of them is kept.
    """

    def __init__(self, root: str, filesystem: pafs.FileSystem, cache: Path, cache_bytes: int) -> None:
        self.root = root.strip("/")
        self._fs = filesystem
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._next_look = 0.0
        make_dirs(cache)

    def _key(self, organization_id: str, sha256: str) -> str:
        return f"{self.root}/{_place(organization_id, sha256)}"

    def take(self, organization_id: str, sha256: str, path: Path) -> None:
        """See `Storage`; an object appears whole or not at all."""
        with path.open("rb") as source, self._fs.open_output_stream(self._key(organization_id, sha256)) as to:
            while piece := source.read(_PIECE):
                to.write(piece)
        target = self._cache / _place(organization_id, sha256)
        make_dirs(target.parent, fsync=False)
        path.replace(target)
        self._shrink()

    def lay(self, organization_id: str, sha256: str, content: bytes) -> Path | None:
        """See `Storage`: what the bucket took is durable."""
        with self._fs.open_output_stream(self._key(organization_id, sha256)) as to:
            to.write(content)
        return None

    def local(self, organization_id: str, sha256: str) -> Path:
        """See `Storage`; fetched into the cache if it is not there."""
        target = self._cache / _place(organization_id, sha256)
        if target.is_file():
            with contextlib.suppress(OSError):
                os.utime(target)
            return target
        make_dirs(target.parent, fsync=False)
        tmp = target.parent / tmp_name("blob")
        try:
            with tmp.open("xb") as to:
                for piece in self._remote(organization_id, sha256, 0, None):
                    to.write(piece)
            tmp.replace(target)
        finally:
            tmp.unlink(missing_ok=True)
        self._shrink(keep=target)
        return target

    def _remote(self, organization_id: str, sha256: str, start: int, end: int | None) -> Iterator[bytes]:
        # Opened at once, so that a missing object is an error here and not later.
        source = self._fs.open_input_file(self._key(organization_id, sha256))
        if source.size() == 0 and sha256 != _EMPTY:
            source.close()
            raise FileNotFoundError(f"blob {sha256} was removed from the storage")

        def pieces() -> Iterator[bytes]:
            at = start
            with source:
                size = source.size() if end is None else end
                source.seek(start)
                while at < size and (piece := source.read(min(_PIECE, size - at))):
                    at += len(piece)
                    yield piece

        return pieces()

    def read(self, organization_id: str, sha256: str, start: int, end: int) -> Iterator[bytes]:
        """See `Storage`."""
        target = self._cache / _place(organization_id, sha256)
        if target.is_file():
            return read_file(target, start, end)
        return self._remote(organization_id, sha256, start, end)

    def exists(self, organization_id: str, sha256: str) -> bool:
        """See `Storage`."""
        info = self._fs.get_file_info(self._key(organization_id, sha256))
        return bool(info.type == pafs.FileType.File) and (info.size > 0 or sha256 == _EMPTY)

    def remove(self, organization_id: str, sha256: str) -> None:
        """See `Storage`; an object without bytes stays and counts as none.

        pyarrow's `delete_file` writes an object for the folder, which some servers then take for a file: no
        blob of that folder could be stored any more.
        """
        with self._fs.open_output_stream(self._key(organization_id, sha256)):
            pass
        (self._cache / _place(organization_id, sha256)).unlink(missing_ok=True)

    def ready(self) -> bool:
        """See `Storage`."""
        try:
            self._fs.get_file_info(self.root.split("/")[0])
        except OSError:
            return False
        return True

    def _shrink(self, keep: Path | None = None) -> None:
        """Drop the copies that were not used for longest; looks at most once a minute."""
        with self._lock:
            if time.monotonic() < self._next_look:
                return
            self._next_look = time.monotonic() + _LOOK_SECONDS
            found = []
            for path in self._cache.rglob("*"):
                with contextlib.suppress(OSError):
                    if path.is_file():
                        found.append((path.stat().st_mtime, path.stat().st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self._cache_bytes:
                    return
                if path != keep:
                    path.unlink(missing_ok=True)
                    total -= size


def read_file(path: Path, start: int, end: int) -> Iterator[bytes]:
    """Bytes of a file in pieces; opened at once, so that a missing file is an error here and not later."""
    file = path.open("rb")

    def pieces() -> Iterator[bytes]:
        with file:
            file.seek(start)
            left = end - start
            while left > 0 and (piece := file.read(min(1 << 20, left))):
                left -= len(piece)
                yield piece

    return pieces()


def open_storage(settings: Settings) -> Storage:
    """The storage the settings name. Access keys of S3 come from `AWS_*` variables or the machine's role.

    Raises:
        ValueError: neither a folder nor `s3://bucket`.
        OSError: the bucket cannot be reached.
    """
    root = settings.blobs_root
    if "://" not in root:
        return LocalStorage(Path(root).absolute())
    parts = urlsplit(root)
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError(f"storage={root!r}: expected a folder or s3://bucket/prefix")
    # Servers other than Amazon's refuse uploads with trailing checksums (411), the newer SDKs' default.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    options: dict[str, Any] = {"region": settings.s3_region, "connect_timeout": 5, "request_timeout": 60}
    if settings.s3_endpoint:
        endpoint = urlsplit(settings.s3_endpoint)
        options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme or "https"}
    cache = settings.folder("cache")
    place = f"{parts.netloc}/{parts.path.strip('/')}".strip("/")
    return S3Storage(place, pafs.S3FileSystem(**options), cache, int(settings.cache_gb * (1 << 30)))
