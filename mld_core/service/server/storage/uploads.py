"""Uploads in progress: bytes of unfinished blobs in the spool folder, hashed as they arrive.

A partial blob is a file `spool/<organization id>/<sha256>-<length>`; its size is the offset. What arrived
before a connection broke or the server was killed is kept. When all bytes are there the digest decides:
right, and the file is fsynced, handed to the storage and noted in the database; wrong, and it is removed.
The digest of a large file is left to the process that reads it anyway (`checks`): until then no seal and no
download takes the file, and a wrong one goes as if it had never been there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mld_core.records.format.manifest import make_dirs, tmp_name, utc_now
from mld_core.service.server.problems import ProblemError
from mld_core.service.server.settings import MIB, Settings
from mld_core.service.server.storage.backends import FULL, Storage
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.models import Blob, Organization
from mld_core.service.server.storage.removals import wanted_again

if TYPE_CHECKING:
    from hashlib import _Hash

log = logging.getLogger("mld.server")

LATER_BYTES = 16 << 20
"""From this size on a file's digest is checked after the answer, where the client knows that."""

_HASHES_KEPT = 256
_WRITE_BACK = 8 << 20
"""So much is handed to the disk at a time, while more arrives: the fsync at the end finds little to do."""
_RETRY_FULL = 30.0


class Upload:
    """One open partial blob. Its methods block; only one thread at a time may call them."""

    def __init__(self, path: Path, length: int, offset: int, state: _Hash | None) -> None:
        self.path = path
        self.length = length
        self.offset = offset
        self.hash = state
        self.intact = True
        self._handed = offset
        self._file = path.open("ab", buffering=0)

    def write(self, pieces: Iterable[bytes]) -> None:
        """Append bytes.

        Raises:
            ProblemError: the disk is full, or there are more bytes than `length`.
        """
        for piece in pieces:
            if self.offset + len(piece) > self.length:
                self.intact = False
                raise ProblemError(
                    "bad-request",
                    f"the body goes past Upload-Length ({self.length} bytes)",
                    value=self.offset + len(piece),
                    expectation=f"at most {self.length} bytes in all",
                    fix="send the blob's true size as Upload-Length",
                )
            self._append(piece)

    def _append(self, piece: bytes) -> None:
        rest = memoryview(piece)
        with self._told():
            while rest:
                done = self._file.write(rest)
                if self.hash is not None:
                    self.hash.update(rest[:done])
                self.offset += done
                rest = rest[done:]
        if self.offset - self._handed >= _WRITE_BACK and hasattr(os, "posix_fadvise"):
            count = self.offset - self._handed
            # Of pages that are not written yet, this begins the writing.
            os.posix_fadvise(self._file.fileno(), self._handed, count, os.POSIX_FADV_DONTNEED)
            self._handed = self.offset

    def sync(self) -> None:
        """Make the bytes durable."""
        with self._told():
            os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with full_disk_told():
                yield
        except BaseException:
            self.intact = False
            raise

    def close(self) -> None:
        """Close the file; what it holds stays."""
        self._file.close()


@contextlib.contextmanager
def full_disk_told() -> Iterator[None]:
    """A full disk as the answer that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise storage_full("the server's disk is full") from error
        raise


def storage_full(detail: str) -> ProblemError:
    """The answer where no more bytes can be taken."""
    return ProblemError(
        "storage-full",
        detail,
        expectation="room for the blob",
        fix="free space on the server or raise the quota; the upload then goes on where it stopped",
        retry_after=_RETRY_FULL,
    )


class Uploads:
    """All uploads of this server process. Thread-safe."""

    def __init__(self, settings: Settings, database: Database, storage: Storage) -> None:
        self._settings = settings
        self._database = database
        self._storage = storage
        self._root = settings.folder("spool")
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], Upload | None] = {}
        self._hashes: OrderedDict[Path, tuple[int, _Hash]] = OrderedDict()
        make_dirs(self._root)

    def writable(self) -> bool:
        """Whether there is room for uploads, and they can be written."""
        if shutil.disk_usage(self._root).free <= self._settings.min_free_mb * MIB:
            return False
        path = self._root / tmp_name("probe")
        try:
            path.write_bytes(bytes(4096))
        except OSError:
            return False
        finally:
            path.unlink(missing_ok=True)
        return True

    @property
    def open_now(self) -> int:
        """Uploads that are open at this moment."""
        return len(self._open)

    def noted_size(self, principal: Principal, sha256: str) -> int | None:
        """The size of a complete blob of the organization as the database knows it, None if there is none."""
        mine = (Blob.organization_pk == principal.organization_pk, Blob.sha256 == sha256)
        with self._database.read() as session:
            return session.scalar(select(Blob.size).where(*mine))

    def state(self, principal: Principal, sha256: str) -> str | None:
        """The state of a blob: unless it is "stored", its bytes are what its name says."""
        mine = (Blob.organization_pk == principal.organization_pk, Blob.sha256 == sha256)
        with self._database.read() as session:
            return session.scalar(select(Blob.state).where(*mine))

    def complete_size(self, principal: Principal, sha256: str) -> int | None:
        """The same, but None also where the bytes are gone.

        A row without its bytes (a restored older backup) is mended by uploading again.
        """
        size = self.noted_size(principal, sha256)
        return size if size is not None and self._storage.exists(principal.organization_id, sha256) else None

    def partial(self, principal: Principal, sha256: str) -> tuple[int, int] | None:
        """(bytes there, bytes in all) of a partial blob, None if there is none."""
        found = [
            (path.stat().st_size, int(path.name.partition("-")[2]))
            for path in self._partials(principal, sha256)
        ]
        return max(found, default=None)

    def _partials(self, principal: Principal, sha256: str) -> list[Path]:
        return list((self._root / principal.organization_id).glob(f"{sha256}-*"))

    def begin(
        self, principal: Principal, sha256: str, length: int, offset: int, *, later: bool = False
    ) -> Upload:
        """Open a partial blob to append at `offset`. Every call needs a `finish` or `interrupt`.

        Args:
            principal: whose it is.
            sha256: its digest.
            length: its bytes in all.
            offset: the first of those that come now.
            later: whether the digest of a large file may be left to its check.

        Raises:
            ProblemError: too large, busy, the wrong offset, no room.
        """
        self.check_room(principal, sha256, length, offset)
        place = (principal.organization_id, sha256)
        with self._lock:
            self._check_free(place)
            self._open[place] = None
        try:
            later = later and length >= LATER_BYTES
            upload = self._opened(principal, sha256, length, offset, hashed=not later)
        except BaseException:
            with self._lock:
                self._open.pop(place, None)
            raise
        with self._lock:
            self._open[place] = upload
        return upload

    def _check_free(self, place: tuple[str, str]) -> None:
        if place in self._open:
            raise ProblemError(
                "upload-busy",
                "another connection is uploading this very blob",
                value=place[1],
                expectation="one upload of a blob at a time",
                fix="wait, then ask with HEAD how much is there",
                retry_after=1,
            )
        mine = sum(organization == place[0] for organization, _ in self._open)
        if mine >= self._settings.uploads_at_once:
            raise ProblemError(
                "too-many-requests",
                f"the organization has {mine} uploads open",
                value=mine,
                expectation=f"at most {self._settings.uploads_at_once} at once",
                fix="send the upload again when another has finished",
                retry_after=1,
            )

    def check_room(self, principal: Principal, sha256: str, length: int, offset: int) -> None:
        """Raise ProblemError where there is no room for a blob, or for so many bytes in all."""
        if length > self._settings.max_blob_mb * MIB:
            raise ProblemError(
                "too-large",
                f"the blob has {length} bytes, this server takes {self._settings.max_blob_mb} MiB",
                value=length,
                expectation=f"at most {self._settings.max_blob_mb * MIB} bytes",
                fix="record smaller parts (roll_mb), or raise MLD_SERVER_MAX_BLOB_MB",
            )
        free = shutil.disk_usage(self._root).free - self._settings.min_free_mb * MIB
        if length - offset > free:
            raise storage_full(f"the server's disk has room for {max(0, free)} more bytes only")
        if self._settings.quota_gb > 0:
            with self._database.read() as session:
                used = session.scalar(
                    select(Organization.blob_bytes).where(Organization.pk == principal.organization_pk)
                )
            others = self._spooled(principal, sha256)
            if (used or 0) + others + length > self._settings.quota_gb * (1 << 30):
                raise storage_full(f"the organization's quota of {self._settings.quota_gb} GiB is used up")

    def _spooled(self, principal: Principal, sha256: str) -> int:
        """Bytes of the organization's unfinished uploads, but for those of one blob."""
        total = 0
        for path in (self._root / principal.organization_id).glob("*"):
            if not path.name.startswith(sha256):
                with contextlib.suppress(FileNotFoundError):
                    total += path.stat().st_size
        return total

    def _opened(self, principal: Principal, sha256: str, length: int, offset: int, *, hashed: bool) -> Upload:
        path = self._root / principal.organization_id / f"{sha256}-{length}"
        path.parent.mkdir(exist_ok=True)
        for other in self._partials(principal, sha256):
            if other != path:  # begun with another length: one of the two was wrong
                other.unlink(missing_ok=True)
        there = path.stat().st_size if path.exists() else 0
        if there > length:
            path.unlink()
            there = 0
        if offset != there:
            raise ProblemError(
                "wrong-offset",
                f"offset {offset} was sent, {there} bytes of the blob are there",
                value=offset,
                expectation=f"offset={there}",
                fix=f"continue at {there}",
                offset=there,
            )
        known = self._hashes.pop(path, None)
        if not hashed:
            return Upload(path, length, there, None)
        state = known[1] if known is not None and known[0] == there else _hash_of(path, there)
        return Upload(path, length, there, state)

    def settle(self, principal: Principal, sha256: str) -> int | None:
        """Finish a blob whose last byte had arrived when the server was killed or the database was away.

        Returns:
            Its size if it is complete now, else None (also where the bytes were wrong: they are gone then).
        """
        partial = self.partial(principal, sha256)
        if partial is None or partial[0] < partial[1]:
            return None
        try:
            upload = self.begin(principal, sha256, partial[1], partial[0])
            self.finish(principal, sha256, upload)
        except ProblemError as error:
            log.info("blob %s could not be finished: %s", sha256, error.name)
            return None
        return partial[1]

    def interrupt(self, principal: Principal, sha256: str, upload: Upload) -> None:
        """Stop before the end; what arrived stays, to be continued."""
        upload.close()
        with self._lock:
            self._open.pop((principal.organization_id, sha256), None)
            if upload.intact and upload.hash is not None:
                self._hashes[upload.path] = (upload.offset, upload.hash)
                while len(self._hashes) > _HASHES_KEPT:
                    self._hashes.popitem(last=False)

    def finish(self, principal: Principal, sha256: str, upload: Upload) -> None:
        """All bytes are there: check the digest, store the blob, note it in the database.

        Raises:
            ProblemError: another digest, or no room. Then nothing is noted.
        """
        try:
            if upload.hash is not None:
                _compare(upload, upload.hash, sha256)
            upload.sync()
            wanted_again(self._database, principal.organization_pk, [sha256])
            # The row first, where the digest is checked later: what is noted is not replaced unchecked.
            if upload.hash is None and not self._note(principal, sha256, upload.length):
                _compare(upload, _hash_of(upload.path, upload.length), sha256)
            with full_disk_told():
                self._storage.take(principal.organization_id, sha256, upload.path)
            if upload.hash is not None:
                self._note(principal, sha256, upload.length)
        finally:
            upload.close()
            with self._lock:
                self._open.pop((principal.organization_id, sha256), None)

    def _note(
        self, principal: Principal, sha256: str, size: int, facts: dict[str, Any] | None = None
    ) -> bool:
        """Note a blob; whether it was none yet."""
        try:
            with self._database.write() as session:
                return self._insert(session, principal.organization_pk, sha256, size, facts)
        except IntegrityError:
            log.debug("blob %s was noted by another server", sha256)
            return False

    @staticmethod
    def _insert(
        session: Session, organization_pk: int, sha256: str, size: int, facts: dict[str, Any] | None
    ) -> bool:
        row = session.scalar(
            select(Blob).where(Blob.organization_pk == organization_pk, Blob.sha256 == sha256)
        )
        if row is not None:
            return False
        place = {"organization_pk": organization_pk, "sha256": sha256}
        state = "stored" if facts is None else "checked"
        session.add(Blob(**place, size=size, state=state, facts=facts, created_at=utc_now()))
        grown = Organization.blob_bytes + size
        session.execute(
            update(Organization).where(Organization.pk == organization_pk).values(blob_bytes=grown)
        )
        return True

    @contextlib.contextmanager
    def scratch(self, principal: Principal) -> Iterator[Path]:
        """A file for a body that is no blob; it is gone afterwards."""
        path = self._root / principal.organization_id / tmp_name("body")
        path.parent.mkdir(exist_ok=True)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def keep(self, principal: Principal, sha256: str, content: bytes) -> None:
        """Store a manifest that a client of protocol 1.0 sent within its seal.

        Raises:
            ProblemError: no room.
        """
        if self.complete_size(principal, sha256) is not None:
            return
        self.check_room(principal, sha256, len(content), 0)
        with self.scratch(principal) as path, full_disk_told():
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            wanted_again(self._database, principal.organization_pk, [sha256])
            self._storage.take(principal.organization_id, sha256, path)
            self._note(principal, sha256, len(content), facts={"ok": True, "manifest": True})

    def sweep(self) -> int:
        """Remove partial blobs that nobody continued for `spool_days`; return how many."""
        limit = time.time() - self._settings.spool_days * 86400
        removed = 0
        for path in self._root.glob("*/*"):
            place = (path.parent.name, path.name.partition("-")[0])
            # One that is finished at this moment is gone, and is no error.
            with self._lock, contextlib.suppress(FileNotFoundError):
                if place not in self._open and path.stat().st_mtime < limit:
                    path.unlink()
                    removed += 1
        return removed


def _compare(upload: Upload, state: _Hash, sha256: str) -> None:
    """Remove what arrived, and say so (ProblemError), where its digest is not its name."""
    if state.hexdigest() != sha256:
        upload.path.unlink(missing_ok=True)
        raise ProblemError(
            "digest-mismatch",
            "the bytes that arrived have another SHA-256 than the blob's name; they were discarded",
            value=state.hexdigest(),
            expectation=sha256,
            fix="read the file again and upload it from offset 0",
            offset=0,
        )


def _hash_of(path: Path, size: int) -> _Hash:
    state = hashlib.sha256()
    if size:
        with path.open("rb") as file:
            while piece := file.read(MIB):
                state.update(piece)
    return state
