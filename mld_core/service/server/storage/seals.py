"""Sealing: a rank's manifest is checked against its blobs and committed with all its files, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy import or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mld_core.records.format.manifest import AttemptManifest, attempt_from_json
from mld_core.records.format.schema import FAMILIES, TASKS, base_schema
from mld_core.service import protocol
from mld_core.service.server.problems import ProblemError
from mld_core.service.server.storage.backends import Storage
from mld_core.service.server.storage.checks import Checks
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.manifests import NamedFile
from mld_core.service.server.storage.models import Blob, Pass, Removal, Run, Seal, new_id
from mld_core.service.server.storage.removals import check_removed, of_run, release
from mld_core.service.server.storage.rows import (
    BlobLike,
    RunLike,
    StoredBlob,
    note_pass,
    note_seal,
    sealed_ranks,
    stored_blobs,
)

_CHUNK = 500
_CHECK_SECONDS = 45.0
_KEYS = frozenset({"unit", "rank_"})


@dataclass(frozen=True)
class SealRequest:
    """A seal whose manifest was read by a check process, and agrees with its run.

    Attributes:
        manifest: digest of the blob with its seal.json.
        opening: its attempt.json.
        opened: the same.
        files: the files that count.
        rows: their rows by family.
    """

    manifest: str
    opening: dict[str, Any]
    opened: AttemptManifest
    files: list[NamedFile]
    rows: dict[str, int]

    @property
    def epoch(self) -> str:
        """The epoch as it is stored."""
        n_epoch = self.opened.n_epoch
        return "none" if n_epoch is None else str(n_epoch)

    @property
    def digest(self) -> str:
        """What makes two seals of a rank the same: the files that count."""
        return digest_of(self.files)


def digest_of(files: Iterable[Any]) -> str:
    """What makes two seals of a rank the same."""
    names = sorted((one.part, one.family, one.sha256, one.rows) for one in files)
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def invalid(where: str, value: Any, expectation: str) -> ProblemError:
    """A manifest that is not one."""
    return ProblemError(
        "invalid",
        f"{where}: expected {expectation}",
        value=value,
        expectation=expectation,
        fix="send seal.json and attempt.json of the rank as the writer left them on disk",
    )


def request_of(run: RunLike, manifest: str, found: Mapping[str, Any]) -> SealRequest:
    """A seal from what a check process found in its manifest.

    Raises:
        ProblemError: it is none, or is of another run.
    """
    if not found["ok"]:
        raise invalid(*found.get("invalid", ("manifest", None, f"a manifest; {found.get('reason')}")))
    for name in ("model_name", "version_name"):
        if found["opening"].get(name) != getattr(run, name):
            raise invalid(
                f"manifest.attempt.{name}",
                found["opening"].get(name),
                f"{getattr(run, name)!r}, as the run says",
            )
    opening, files = found["opening"], [NamedFile(*one) for one in found["files"]]
    opened = attempt_from_json(opening, Path("manifest.attempt"))
    return SealRequest(manifest, opening, opened, files, found["rows"])


def blobs_of(session: Session, organization_pk: int, digests: Iterable[str]) -> dict[str, Blob]:
    """The blobs of an organization among these digests."""
    wanted = sorted(set(digests))
    found: dict[str, Blob] = {}
    for start in range(0, len(wanted), _CHUNK):
        query = select(Blob).where(
            Blob.organization_pk == organization_pk, Blob.sha256.in_(wanted[start : start + _CHUNK])
        )
        found.update({blob.sha256: blob for blob in session.scalars(query)})
    return found


def _place(run: RunLike, request: SealRequest) -> tuple[Any, ...]:
    """What is true of the pass a seal belongs to."""
    where = (
        Pass.run_pk == run.pk,
        Pass.dataset_type == request.opened.dataset_type,
        Pass.epoch == request.epoch,
    )
    return (*where, Pass.pass_no == request.opened.pass_no)


class Sealer:
    """Commits seals."""

    def __init__(self, database: Database, storage: Storage, checks: Checks) -> None:
        self._database = database
        self._storage = storage
        self._checks = checks

    def known(self, run: RunLike, manifest: str) -> Seal | None:
        """The seal of a run that was made of this very manifest, also where samples were removed since."""
        query = select(Seal).join(Pass, Pass.pk == Seal.pass_pk).join(Blob, Blob.pk == Seal.manifest_blob_pk)
        this = or_(Blob.sha256 == manifest, Seal.first_manifest == manifest)
        with self._database.read() as session:
            return session.scalar(query.where(Pass.run_pk == run.pk, this))

    def sealed_before(self, run: RunLike, request: SealRequest) -> Seal | None:
        """The seal of a rank from which samples may have been removed since: nothing is stored anew.

        Raises:
            ProblemError: its run or pass was removed, or it is sealed with other files.
        """
        with self._database.read() as session:
            if session.scalar(select(Removal.pk).where(*of_run(run)).limit(1)) is None:
                return None
            opened = request.opened
            check_removed(session, run, opened.dataset_type, request.epoch, opened.started_at)
        return self.existing(run, request)

    def _let_go(self, principal: Principal, request: SealRequest) -> None:
        """Files that were sent again, of a rank from which samples were removed since, are nobody's."""
        digests = {request.manifest, *(one.sha256 for one in request.files)}
        with self._database.write() as session:
            found = blobs_of(session, principal.organization_pk, digests)
            release(session, principal.organization_pk, [blob.pk for blob in found.values()])

    def read(self, principal: Principal, run: Run, manifest: str) -> SealRequest:
        """Read a manifest, in a process that it can not harm.

        Raises:
            ProblemError: it is not there, is none, or is of another run.
        """
        try:
            path = self._storage.local(principal.organization_id, manifest)
        except FileNotFoundError:
            raise missing_blobs({manifest}, 1) from None
        found = self._checks.manifest(path, sha256=manifest)
        if found.get("mismatch") or found.get("gone"):
            mine = (principal.organization_pk, principal.organization_id)
            self._checks.wait(*mine, [manifest], _CHECK_SECONDS)  # which discards it
            raise missing_blobs({manifest}, 1)
        return request_of(run, manifest, found)

    def seal(self, principal: Principal, run: RunLike, request: SealRequest) -> tuple[protocol.Seal, bool]:
        """Commit a seal; (what is answered, whether it is new).

        Raises:
            ProblemError: files are missing, unchecked or refused, or the rank is sealed with other files.
        """
        stored = self.sealed_before(run, request) or self.existing(run, request)
        if stored is not None:
            if stored.first_digest is not None:
                self._let_go(principal, request)
            return self.told(stored), False
        raise_refused(request, self._checked(principal, request), run)

        def work(session: Session) -> protocol.Seal:
            # Once more: what nobody needed may have been removed since it was looked at.
            digests = {request.manifest, *(one.sha256 for one in request.files)}
            return insert_seal(
                session, run, request, stored_blobs(session, principal.organization_pk, digests)
            )

        return self.committed(run, request, work)

    def committed(
        self, run: RunLike, request: SealRequest, work: Callable[[Session], protocol.Seal]
    ) -> tuple[protocol.Seal, bool]:
        """Do the work that inserts a seal, once more where somebody was faster; as `seal`."""
        try:
            return self._database.together(work), True
        except IntegrityError:  # somebody sealed it, made the pass, or noted or removed a file, a moment ago
            stored = self.existing(run, request)
            return (self.told(stored), False) if stored is not None else (self._database.together(work), True)

    def told(self, seal: Seal) -> protocol.Seal:
        """What is answered of a seal that is there."""
        with self._database.read() as session:
            pass_id = session.scalars(select(Pass.id).where(Pass.pk == seal.pass_pk)).one()
            return _answer(session, seal.id, seal.pass_pk, pass_id, seal.attempt, seal.world_size)

    def existing(self, run: RunLike, request: SealRequest) -> Seal | None:
        """The seal of this rank that is there.

        Raises:
            ProblemError: it is of other files.
        """
        query = (
            select(Seal)
            .join(Pass, Pass.pk == Seal.pass_pk)
            .where(
                *_place(run, request),
                Seal.attempt == request.opened.attempt,
                Seal.rank_no == request.opened.rank,
            )
        )
        with self._database.read() as session:
            found = session.scalar(query)
        if found is not None and request.digest not in {found.digest, found.first_digest}:
            raise ProblemError(
                "seal-conflict",
                f"rank {request.opened.rank} of attempt {request.opened.attempt} is sealed with other files",
                value=request.opened.attempt,
                expectation="the files of the first seal",
                fix="nothing: the first seal stands",
            )
        return found

    def _checked(self, principal: Principal, request: SealRequest) -> dict[str, Blob]:
        digests = {request.manifest, *(one.sha256 for one in request.files)}
        with self._database.read() as session:
            blobs = blobs_of(session, principal.organization_pk, digests)
        if digests - set(blobs):
            raise missing_blobs(digests - set(blobs), len(digests))
        waiting = [sha256 for sha256, blob in blobs.items() if blob.state == "stored"]
        if not waiting:
            return blobs
        self._checks.wait(principal.organization_pk, principal.organization_id, waiting, _CHECK_SECONDS)
        with self._database.read() as session:
            blobs |= blobs_of(session, principal.organization_pk, waiting)
        left = {sha256 for sha256, blob in blobs.items() if blob.state == "stored"}
        gone = {sha256 for sha256 in left if not self._checks.there(principal.organization_id, sha256)}
        if gone:
            raise missing_blobs(gone, len(digests))
        if left:
            raise check_pending(len(left), len(digests))
        return blobs


def insert_seal(
    session: Session, run: RunLike, request: SealRequest, blobs: Mapping[str, StoredBlob]
) -> protocol.Seal:
    """Add a seal with all its files, in the transaction of a session.

    Raises:
        ProblemError: files are missing or unchecked. IntegrityError: it was sealed a moment ago.
    """
    digests = {request.manifest, *(one.sha256 for one in request.files)}
    if digests - set(blobs):
        raise missing_blobs(digests - set(blobs), len(digests))
    left = sum(blob.state == "stored" for blob in blobs.values())
    if left:
        raise check_pending(left, len(digests))
    opened = request.opened
    check_removed(session, run, opened.dataset_type, request.epoch, opened.started_at)
    pass_pk, pass_id = note_pass(
        session,
        run_pk=run.pk,
        dataset_type=opened.dataset_type,
        epoch=request.epoch,
        pass_no=opened.pass_no,
    )
    seal = {
        "id": new_id("seal"),
        "pass_pk": pass_pk,
        "attempt": opened.attempt,
        "rank_no": opened.rank,
        "world_size": opened.world_size,
        "manifest_blob_pk": blobs[request.manifest].pk,
        "opening": request.opening,
        "rows": request.rows,
        "bytes": sum(one.bytes for one in request.files),
        "digest": request.digest,
    }
    files = (
        {"blob_pk": blobs[one.sha256].pk, "part": one.part, "family": one.family, "rows": one.rows}
        for one in request.files
    )
    note_seal(session, seal, files)
    return _answer(session, str(seal["id"]), pass_pk, pass_id, opened.attempt, opened.world_size)


def _answer(
    session: Session, seal_id: str, pass_pk: int, pass_id: str, attempt: str, world_size: int
) -> protocol.Seal:
    ranks = sealed_ranks(session, pass_pk, attempt)
    return {
        "seal_id": seal_id,
        "pass_id": pass_id,
        "sealed_ranks": ranks,
        "world_size": world_size,
        "complete": set(range(world_size)) <= set(ranks),
    }


def missing_blobs(digests: set[str], total: int) -> ProblemError:
    """Files of a seal that have to be uploaded first."""
    missing = sorted(digests)
    return ProblemError(
        "missing-blobs",
        f"{len(missing)} of {total} files are not there, or came with other bytes; nothing was sealed",
        value=missing[0],
        expectation="all files of the manifest, complete",
        fix="upload the digests in `missing`, then seal again",
        missing=missing,
    )


def check_pending(count: int, total: int) -> ProblemError:
    """Files that are not checked yet."""
    return ProblemError(
        "check-pending",
        f"{count} of {total} files are not checked yet",
        value=count,
        expectation="checked files",
        fix="send the seal again",
        retry_after=2,
    )


def raise_refused(request: SealRequest, blobs: Mapping[str, BlobLike], run: RunLike) -> None:
    """Raise ProblemError where files are not what their manifest says, or not what we accept."""
    refused = _compare(request, blobs, run.task or "classification")
    if refused:
        raise ProblemError(
            "refused-part",
            f"{len(refused)} of {len(request.files)} files are refused: {refused[0]['reason']}",
            value=refused[0]["sha256"],
            expectation="Parquet files as the recorder writes them, with the rows the manifest says",
            fix="upload the files of the records as they are; `mld doctor` finds damaged ones",
            refused=refused[:100],
        )


def _compare(request: SealRequest, blobs: Mapping[str, BlobLike], task: str) -> list[dict[str, str]]:
    """The files that are not what the manifest says, or not Parquet we accept."""
    refused = []
    schemas = _schemas(task if task in TASKS else "classification")
    for one in request.files:
        blob = blobs[one.sha256]
        reason = _reason(one, blob, schemas[one.family])
        if reason:
            refused.append({"sha256": one.sha256, "part": one.part, "family": one.family, "reason": reason})
    return refused


@cache
def _schemas(task: str) -> dict[str, pa.Schema]:
    return {family: base_schema(family, task) for family in FAMILIES}


def _reason(one: NamedFile, blob: BlobLike, schema: pa.Schema) -> str:
    facts = blob.facts or {}
    if facts.get("manifest"):
        return "it is a manifest"
    if blob.state == "refused":
        return str(facts.get("reason", "it was refused"))
    if blob.size != one.bytes:
        return f"it has {blob.size} bytes, the manifest says {one.bytes}"
    if facts.get("rows") != one.rows:
        return f"it has {facts.get('rows')} rows, the manifest says {one.rows}"
    return schema_reason(dict(facts.get("schema", [])), schema)


def schema_reason(columns: Mapping[str, str], schema: pa.Schema) -> str:
    """Why columns (name -> Arrow type as text) are not those of a family; empty if they are."""
    for item in schema:
        kind = columns.get(item.name)
        if kind is None:
            if item.name in _KEYS:
                return f"it has no column {item.name!r}"
        elif kind not in _same(item.type):
            return f"column {item.name!r} is {kind}, expected {item.type}"
    return ""


def _same(kind: pa.DataType) -> set[str]:
    """The types as which a column may come back from Parquet, as text."""
    text = str(kind)
    if pa.types.is_dictionary(kind):
        return {text, "string", "dictionary<values=string, indices=int8, ordered=0>"}
    return {text, text.replace("item:", "element:"), text.replace("element:", "item:")}
