"""Whole ranks: all files of a small one come in one body, are checked together and committed with their seal.

The body is a line of JSON, `{"files": [["<sha256>", <bytes>], ...]}`, then the bytes of those files one after
another, the rank's seal.json last. It is kept as it came, a *pack*, and made durable by one fsync; the files
are then laid into the storage without any, and database rows and seal follow in one transaction. A moment
later, off every request, the files are made durable too and the pack goes. A server that starts lays out
again what the packs it finds hold, so that not even a machine that lost its power has lost a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from mld_core.records.format.manifest import TMP_PREFIX, fsync_dir, tmp_name, utc_now
from mld_core.service import protocol
from mld_core.service.protocol import MAX_RANK_HEAD, SHA256
from mld_core.service.server.json_text import loads
from mld_core.service.server.problems import ProblemError, not_found
from mld_core.service.server.settings import Settings
from mld_core.service.server.storage.backends import Storage
from mld_core.service.server.storage.checks import Checks
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.models import Blob, Organization
from mld_core.service.server.storage.people import sees
from mld_core.service.server.storage.removals import wanted_again
from mld_core.service.server.storage.rows import KnownRun, NewBlob, known_run, note_blobs, traces_of
from mld_core.service.server.storage.seals import (
    Sealer,
    SealRequest,
    blobs_of,
    check_pending,
    insert_seal,
    raise_refused,
    request_of,
)
from mld_core.service.server.storage.uploads import Uploads, full_disk_told

log = logging.getLogger("mld.server")

_AT_ONCE = 4
_PACK = "pack-"
_SETTLE_MANY = 24
"""More files than this are made durable by one sync of the machine instead of an fsync each."""


@dataclass(frozen=True)
class PackedFile:
    """One file of a pack, and where it stands in it."""

    sha256: str
    start: int
    bytes: int


def read_head(path: Path) -> list[PackedFile]:
    """The files of a pack, the manifest last.

    Raises:
        ProblemError: it is no pack, or its bytes are not those it names.
    """
    with path.open("rb") as file:
        line = file.readline(MAX_RANK_HEAD + 1)
        size = os.fstat(file.fileno()).st_size
    try:
        named = loads(line)["files"] if line.endswith(b"\n") else []
        files = [(str(sha256), size) for sha256, size in named]
    except (ValueError, KeyError, TypeError):
        files = []
    if not files or any(
        SHA256.fullmatch(sha256) is None or type(count) is not int or count < 0 for sha256, count in files
    ):
        raise _no_rank("its first line does not name its files")
    at, found = len(line), []
    for sha256, count in files:
        found.append(PackedFile(sha256, at, count))
        at += count
    if at != size:
        raise _no_rank(f"it has {size} bytes, its files and their line {at}")
    return found


def _no_rank(detail: str) -> ProblemError:
    return ProblemError(
        "bad-request",
        f"the body is no rank: {detail}",
        expectation='a line {"files": [["<sha256>", <bytes>], ...]}, then the bytes of those files',
        fix="send the files of one rank, its seal.json last",
    )


def unpacked(path: Path, files: Iterable[PackedFile]) -> dict[str, bytes]:
    """The bytes of files of a pack, by digest.

    Raises:
        ProblemError: bytes have another digest than their name.
    """
    whole = memoryview(path.read_bytes())
    found = {}
    for one in files:
        content = bytes(whole[one.start : one.start + one.bytes])
        if hashlib.sha256(content).hexdigest() != one.sha256:
            raise ProblemError(
                "digest-mismatch",
                "the bytes of a file have another SHA-256 than its name; nothing was kept",
                value=one.sha256,
                expectation="the bytes the rank was sealed with",
                fix="read the file again and send the rank again",
            )
        found[one.sha256] = content
    return found


class _Together:
    """One fsync of a folder for all who wait for it at the same time."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._through = 0

    def sync(self, folder: Path) -> None:
        """Return when an fsync that began after this call is through."""
        seen = self._through
        with self._turn:
            if self._through < seen + 2:  # else the last one began while this call waited
                fsync_dir(folder)
                self._through += 1


class Ranks:
    """Takes whole ranks. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        storage: Storage,
        uploads: Uploads,
        checks: Checks,
        sealer: Sealer,
    ) -> None:
        self._database, self._storage = database, storage
        self._uploads, self._checks, self._sealer = uploads, checks, sealer
        self._root = settings.folder("spool")
        self._folders: dict[str, _Together] = {}
        self._turns: dict[int, asyncio.Semaphore] = {}
        self._lock = threading.Lock()
        self._unsettled: list[tuple[Path, list[Path]]] = []

    def turn(self, principal: Principal) -> asyncio.Semaphore:
        """What to hold while a rank is worked on: one organization's slow ones hold up no other's."""
        return self._turns.setdefault(principal.organization_pk, asyncio.Semaphore(_AT_ONCE))

    def add(self, principal: Principal, run_id: str, body: Path) -> tuple[protocol.Seal, bool]:
        """Seal the rank a body holds; (what is answered, whether it is new). The body is moved away.

        Raises:
            ProblemError: as `Sealer.seal`, or there is no such run, the body is no rank, or a file is not
                what its name says.
        """
        run, files = self._asked(principal, run_id, body)
        manifest = files[-1].sha256
        if run.sealed or run.removed:
            seal = self._sealer.known(run, manifest)
            if seal is not None:
                return self._sealer.told(seal), False
        self._uploads.check_room(principal, manifest, sum(one.bytes for one in files), 0)
        with full_disk_told():
            contents = unpacked(body, files)
            found = self._checks.rank(body, [(one.sha256, one.start, one.bytes) for one in files])
            request = request_of(run, manifest, found["manifest"])
            seal = self._sealer.sealed_before(run, request) if run.removed else None
            if seal is not None:
                return self._sealer.told(seal), False
            missing = {one.sha256 for one in request.files} - contents.keys()
            if missing:
                raise _no_rank(f"the manifest names {len(missing)} files that are not in it")
            blobs = {one.sha256: _blob(principal, one, found["verdicts"][one.sha256]) for one in files}
            raise_refused(request, blobs, run)
            pack = self._kept(principal, body)
            paths: list[Path | None] = []
            try:
                old = self._keep_old(principal, set(contents))
                place = principal.organization_id
                paths.extend(self._storage.lay(place, *named) for named in contents.items())
                sealed = self._committed(run, request, blobs)
                # Bytes that came before under the same name, and were wrong, may have gone just now.
                gone = [name for name in old if not self._storage.exists(place, name)]
                paths.extend(self._storage.lay(place, name, contents[name]) for name in gone)
                return sealed
            finally:
                with self._lock:
                    self._unsettled.append((pack, [path for path in paths if path is not None]))

    def _asked(self, principal: Principal, run_id: str, body: Path) -> tuple[KnownRun, list[PackedFile]]:
        """The run, which the principal must see, and the files of a body."""
        try:
            files, wrong = read_head(body), None
        except ProblemError as error:
            files, wrong = [], error
        with self._database.read() as session:
            manifest = files[-1].sha256 if files else ""
            run = known_run(session, principal.organization_pk, run_id, manifest)
        if run is None or not sees(principal.models, run.model_name):
            raise not_found("run", run_id)
        if wrong is not None:
            raise wrong
        return run, files

    def _kept(self, principal: Principal, body: Path) -> Path:
        """Make a body durable, as a pack."""
        with body.open("rb") as file:
            os.fsync(file.fileno())
        pack = body.parent / f"{_PACK}{tmp_name('rank')}"
        body.rename(pack)
        with self._lock:
            together = self._folders.setdefault(principal.organization_id, _Together())
        together.sync(body.parent)
        return pack

    def _keep_old(self, principal: Principal, digests: set[str]) -> list[str]:
        """The files that were there before: perhaps about to be removed as nobody's, they are needed now."""
        with self._database.read() as session:
            old, garbage = traces_of(session, principal.organization_pk, digests)
        if garbage:
            wanted_again(self._database, principal.organization_pk, garbage)
        if old:
            mine = (Blob.organization_pk == principal.organization_pk, Blob.sha256.in_(digests))
            with self._database.write() as session:
                session.execute(update(Blob).where(*mine).values(created_at=utc_now()))
        return old

    def _committed(
        self, run: KnownRun, request: SealRequest, blobs: Mapping[str, NewBlob]
    ) -> tuple[protocol.Seal, bool]:
        def work(session: Session) -> protocol.Seal:
            noted = note_blobs(session, run.organization_pk, blobs)
            if noted is None:  # other bytes under one of the names, which are about to be discarded
                raise check_pending(1, len(blobs))
            return insert_seal(session, run, request, noted)

        return self._sealer.committed(run, request, work)

    # -- durable, a moment later ---------------------------------------------------------------------------

    def settle(self) -> None:
        """Make the files of the packs so far durable, and remove those."""
        with self._lock:
            packs, self._unsettled = self._unsettled, []
        paths = [path for _, found in packs for path in found]
        if len(paths) > _SETTLE_MANY:
            os.sync()
        else:
            _made_durable(paths)
        for pack, _ in packs:
            pack.unlink(missing_ok=True)

    def recover(self) -> None:
        """Lay out what the packs hold that a server before left, as far as the database knows it."""
        for path in self._root.glob(f"*/{TMP_PREFIX}-*"):
            path.unlink()
        for pack in self._root.glob(f"*/{_PACK}*"):
            try:
                self._laid_again(pack)
            except ProblemError as error:  # never answered: it was not durable yet
                log.info("%s is no whole pack (%s)", pack.name, error.name)
            pack.unlink()

    def _laid_again(self, pack: Path) -> None:
        organization_id = pack.parent.name
        files = {one.sha256: one for one in read_head(pack)}
        with self._database.read() as session:
            organization = session.scalar(select(Organization).where(Organization.id == organization_id))
            known = blobs_of(session, organization.pk, files) if organization is not None else {}
        contents = unpacked(pack, [files[name] for name in known])
        paths = [self._storage.lay(organization_id, *named) for named in contents.items()]
        _made_durable([path for path in paths if path is not None])


def _made_durable(paths: list[Path]) -> None:
    """Sync files, and the folders that were perhaps made for them: <storage>/<organization>/<two digits>."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:  # removed meanwhile
            os.fsync(file.fileno())
    for folder in {folder for path in paths for folder in path.parents[:3]}:
        fsync_dir(folder)


def _blob(principal: Principal, file: PackedFile, verdict: dict[str, Any]) -> NewBlob:
    state = "checked" if verdict["ok"] else "refused"
    return NewBlob(principal.organization_pk, file.sha256, file.bytes, state, verdict, utc_now())
