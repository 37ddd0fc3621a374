"""Removing complete files that nobody sealed: a client gave up, or a seal was refused.

A blob goes when it is older than the limit and neither a seal nor a result names it. This is safe beside
uploads, seals and other servers on the same database:

* It is first set back to "stored", which no seal takes without a new check. Should the server die after the
  file went and before the row did, the row stands for a file that is not there, and both uploads and seals
  ask for it again.
* Row and file go in one transaction, the file before the commit: whoever sees that the row is gone and
  uploads anew does so after the removal. Seals look the rows up again in their own transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy import delete, exists, select, update
from sqlalchemy.exc import IntegrityError

from mld_core.service.server.storage.backends import Storage
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import Blob, Organization, ResultFile, Seal, SealFile

log = logging.getLogger("mld.server")

_BATCH = 50

Removed = tuple[int, int]
"""Number of blobs, and their bytes."""


def collect(database: Database, storage: Storage, days: float) -> Removed:
    """Remove the unneeded blobs that were completed more than `days` ago.

    Raises:
        SQLAlchemyError, OSError: the database or the storage failed; what is left goes the next time.
    """
    limit = (datetime.now(timezone.utc) - timedelta(days=days)).isoformat(timespec="microseconds")
    count = size = last = 0
    while True:
        with database.read() as session:
            query = select(Blob.pk).where(Blob.pk > last, *_unneeded(limit))
            found = list(session.scalars(query.order_by(Blob.pk).limit(_BATCH)))
        if not found:
            return count, size
        last = found[-1]
        with database.write() as session:
            session.execute(update(Blob).where(Blob.pk.in_(found), *_unneeded(limit)).values(state="stored"))
        try:
            removed = _remove(database, storage, found, limit)
        except IntegrityError:
            log.debug("a blob was sealed while it was to be removed")
            continue
        count, size = count + removed[0], size + removed[1]


def discard(database: Database, storage: Storage, organization_pk: int, sha256: str) -> None:
    """Remove a blob whose bytes turned out to have another digest; one that was found right meanwhile stays.

    Raises:
        SQLAlchemyError, OSError: the database or the storage failed; the next check finds it again.
    """
    wrong = (Blob.organization_pk == organization_pk, Blob.sha256 == sha256, Blob.state == "stored")
    with database.write() as session:
        size = session.scalar(delete(Blob).where(*wrong).returning(Blob.size))
        if size is not None:
            mine = Organization.pk == organization_pk
            less = Organization.blob_bytes - size
            session.execute(update(Organization).where(mine).values(blob_bytes=less))
            storage.remove(session.scalars(select(Organization.id).where(mine)).one(), sha256)


def _unneeded(limit: str) -> tuple[Any, ...]:
    return (
        Blob.created_at < limit,
        ~exists().where(SealFile.blob_pk == Blob.pk),
        ~exists().where(ResultFile.blob_pk == Blob.pk),
        ~exists().where(Seal.manifest_blob_pk == Blob.pk),
    )


def _remove(database: Database, storage: Storage, pks: Sequence[int], limit: str) -> Removed:
    query = (
        select(Blob.pk, Blob.sha256, Blob.size, Organization.pk, Organization.id)
        .join(Organization, Organization.pk == Blob.organization_pk)
        .where(Blob.pk.in_(pks), Blob.state == "stored", *_unneeded(limit))
        .with_for_update(of=Blob, skip_locked=True)
    )
    with database.write() as session:
        rows = session.execute(query).all()
        session.execute(delete(Blob).where(Blob.pk.in_([row[0] for row in rows])))
        for _, sha256, size, organization_pk, organization_id in rows:
            less = Organization.blob_bytes - size
            session.execute(
                update(Organization).where(Organization.pk == organization_pk).values(blob_bytes=less)
            )
            storage.remove(organization_id, sha256)
    return len(rows), sum(row[2] for row in rows)
