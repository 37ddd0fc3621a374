"""What was removed goes from the storage: files nobody names, and removed samples from files that stay.

Each seal of a run with removed samples is looked through once after each removal. New files are stored before
the transaction in which they take the place of the old ones, together with a new manifest: whenever the
server is killed, a seal is the old one or the new one, and evaluations leave the sample out of either.
Uploaded files were decoded to their end when they came; they are read here a piece at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.orm import Session, undefer

from mld_core.records.format.manifest import FileInfo, make_dirs, tmp_name, utc_now
from mld_core.records.format.removals import REMOVED
from mld_core.records.write.removal import rows_of, written_without
from mld_core.service.server.storage.backends import Storage
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import Blob, Garbage, Organization, Pass, Run, Seal, SealFile
from mld_core.service.server.storage.removals import release, samples_of, unswept, wanted_again
from mld_core.service.server.storage.seals import digest_of

_BATCH = 50


@dataclass
class _File:
    """A file of a seal, or the one that takes its place."""

    part: str
    family: str
    sha256: str
    bytes: int
    rows: int
    facts: dict[str, Any]


class Sweeper:
    """Takes what was removed out of the storage. `sweep` is called by one thread of a server."""

    def __init__(self, database: Database, storage: Storage, folder: Path) -> None:
        self._database = database
        self._storage = storage
        self._folder = folder
        make_dirs(folder)
        for path in folder.iterdir():  # what a killed server left
            path.unlink()

    def pending(self, organization_pk: int) -> int:
        """How many files are to be deleted, and seals to be looked through, of an organization."""
        seals = select(func.count()).select_from(Seal).join(Pass).join(Run, Run.pk == Pass.run_pk)
        files = select(func.count()).select_from(Garbage)
        with self._database.read() as session:
            left = session.scalar(seals.where(Run.organization_pk == organization_pk, unswept())) or 0
            return left + (session.scalar(files.where(Garbage.organization_pk == organization_pk)) or 0)

    def sweep(self) -> int:
        """Do all there is to do; how many seals were written anew and files deleted.

        Raises:
            SQLAlchemyError, OSError: the database or the storage failed; the next time goes on.
        """
        done = 0
        for pk in self._pending():
            done += self._sweep_seal(pk)
        while count := self._delete_garbage():
            done += count
        return done

    def _pending(self) -> list[int]:
        query = select(Seal.pk).join(Pass, Pass.pk == Seal.pass_pk).join(Run, Run.pk == Pass.run_pk)
        with self._database.read() as session:
            return list(session.scalars(query.where(unswept()).order_by(Seal.pk)))

    def _delete_garbage(self) -> int:
        """Delete some files; each goes before the row that says so, so that none is forgotten."""
        query = select(Garbage, Organization.id)
        query = query.join(Organization, Organization.pk == Garbage.organization_pk)
        with self._database.write() as session:
            found = session.execute(
                query.order_by(Garbage.pk).limit(_BATCH).with_for_update(of=Garbage, skip_locked=True)
            ).all()
            for row, organization_id in found:
                there = (Blob.organization_pk == row.organization_pk, Blob.sha256 == row.sha256)
                if not session.scalar(select(exists().where(*there))):  # else it was sent again
                    self._storage.remove(organization_id, row.sha256)
                session.delete(row)
        return len(found)

    def _sweep_seal(self, pk: int) -> int:
        query = select(Seal, Pass.dataset_type, Run, Organization.id).join(Pass, Pass.pk == Seal.pass_pk)
        query = query.join(Run, Run.pk == Pass.run_pk)
        query = query.join(Organization, Organization.pk == Run.organization_pk)
        with self._database.read() as session:
            found = session.execute(query.where(Seal.pk == pk).options(undefer(Seal.manifest))).one_or_none()
            if found is None:  # its run was removed
                return 0
            seal, dataset_type, run, organization_id = found
            samples = samples_of(session, run)
            files = self._files(session, seal)
            manifest = session.get(Blob, seal.manifest_blob_pk) if seal.manifest_blob_pk else None
        digests = frozenset(digest for digest, split, _ in samples if split in {None, dataset_type})
        looked = max(at for _, _, at in samples)
        touched = self._touched(organization_id, files, digests)
        if not touched:
            with self._database.write() as session:
                session.execute(update(Seal).where(Seal.pk == pk).values(swept_at=looked))
            return 0
        old = seal.manifest if manifest is None else self._json(organization_id, manifest)
        fresh = list(self._rewritten(run, organization_id, files, touched, digests))
        empty = {one.part for one in fresh if one.family == "samples" and not one.rows}
        kept = [one for one in files if one.part not in touched]
        kept += [one for one in fresh if one.part not in empty]
        text = json.dumps(_manifest(old, kept, digests), separators=(",", ":")).encode()
        kept.append(self._stored_text(run, organization_id, text))
        self._exchange(seal, run, manifest, kept, looked)
        return 1

    @staticmethod
    def _files(session: Session, seal: Seal) -> list[_File]:
        query = select(SealFile.part, SealFile.family, Blob.sha256, Blob.size, SealFile.rows, Blob.facts)
        query = query.join(Blob, Blob.pk == SealFile.blob_pk).where(SealFile.seal_pk == seal.pk)
        rows = session.execute(query).all()
        return [
            _File(part, kind, name, size, n, dict(facts or {})) for part, kind, name, size, n, facts in rows
        ]

    def _touched(self, organization_id: str, files: list[_File], digests: frozenset[str]) -> set[str]:
        """The parts that hold rows of these samples."""
        samples = [one for one in files if one.family == "samples"]
        local = self._storage.local
        return {one.part for one in samples if rows_of(local(organization_id, one.sha256), digests)}

    def _json(self, organization_id: str, blob: Blob) -> dict[str, Any]:
        pieces = self._storage.read(organization_id, blob.sha256, 0, blob.size)
        found: dict[str, Any] = json.loads(b"".join(pieces))
        return found

    def _rewritten(
        self, run: Run, organization_id: str, files: list[_File], parts: set[str], digests: frozenset[str]
    ) -> Iterator[_File]:
        """The files of some parts without the rows of these samples, stored."""
        for one in files:
            if one.part in parts:
                tmp = self._folder / tmp_name("file")
                source = self._storage.local(organization_id, one.sha256)
                info: FileInfo = written_without(source, tmp, one.family, digests)
                facts = {**one.facts, "rows": info.rows}
                self._take(run, organization_id, info.sha256, tmp)
                yield _File(one.part, one.family, info.sha256, info.bytes, info.rows, facts)

    def _stored_text(self, run: Run, organization_id: str, text: bytes) -> _File:
        tmp = self._folder / tmp_name("manifest")
        with tmp.open("xb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        sha256 = hashlib.sha256(text).hexdigest()
        self._take(run, organization_id, sha256, tmp)
        return _File("", "", sha256, len(text), 0, {"ok": True, "manifest": True})

    def _take(self, run: Run, organization_id: str, sha256: str, path: Path) -> None:
        wanted_again(self._database, run.organization_pk, [sha256])
        self._storage.take(organization_id, sha256, path)

    def _exchange(self, seal: Seal, run: Run, manifest: Blob | None, kept: list[_File], looked: str) -> None:
        """The new files take the place of the old ones, in one transaction."""
        *files, text = kept
        with self._database.write() as session:
            row = session.scalar(select(Seal).where(Seal.pk == seal.pk).with_for_update())
            if row is None or row.digest != seal.digest:  # removed, or another server was faster
                return
            mine = (SealFile.seal_pk == seal.pk,)
            old = set(session.scalars(select(SealFile.blob_pk).where(*mine)))
            old |= {manifest.pk} if manifest is not None else set()
            blobs = {one.sha256: _noted(session, run.organization_pk, one) for one in kept}
            session.execute(delete(SealFile).where(*mine))
            rows = [
                {"blob_pk": blobs[one.sha256], "part": one.part, "family": one.family, "rows": one.rows}
                for one in files
            ]
            if rows:
                session.execute(insert(SealFile).values(seal_pk=seal.pk), rows)
            row.first_digest = row.first_digest or row.digest
            row.first_manifest = row.first_manifest or (manifest.sha256 if manifest is not None else None)
            row.digest = digest_of(files)
            row.manifest_blob_pk, row.manifest = blobs[text.sha256], {}
            row.rows, row.bytes = _rows(files), sum(one.bytes for one in files)
            row.swept_at = looked
            session.flush()
            release(session, run.organization_pk, old)


def _rows(files: list[_File]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in files:
        found[one.family] = found.get(one.family, 0) + one.rows
    return found


def _noted(session: Session, organization_pk: int, one: _File) -> int:
    """The key of a file's row, made where there is none."""
    place = {"organization_pk": organization_pk, "sha256": one.sha256}
    blob = session.scalar(select(Blob).filter_by(**place))
    if blob is None:
        blob = Blob(**place, size=one.bytes, state="checked", facts=one.facts, created_at=utc_now())
        session.add(blob)
        session.flush()
        mine = update(Organization).where(Organization.pk == organization_pk)
        session.execute(mine.values(blob_bytes=Organization.blob_bytes + one.bytes))
    return blob.pk


def _manifest(old: dict[str, Any], files: list[_File], digests: frozenset[str]) -> dict[str, Any]:
    """A seal.json of other files: as the writer's own, without the parts that have no rows left."""
    by_part: dict[str, dict[str, Any]] = {}
    for one in files:
        info = {"bytes": one.bytes, "rows": one.rows, "sha256": one.sha256}
        by_part.setdefault(one.part, {})[one.family] = info
    parts = [{**part, "files": by_part[part["name"]]} for part in old["parts"] if part["name"] in by_part]
    rows = {**dict.fromkeys(old["rows"], 0), **_rows(files)}
    meta = dict(old.get("meta") or {})
    meta[REMOVED] = sorted({*(meta.get(REMOVED) or ()), *digests})
    return {**old, "parts": parts, "rows": rows, "meta": meta}
