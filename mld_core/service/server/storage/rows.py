"""The rows of a seal, by statements that are built once and make no objects.

To build a statement, or an object of a row, takes longer than to run it, and a small rank needs ten of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from sqlalchemy import BindParameter, Table, bindparam, exists, insert, literal, select, union_all, update
from sqlalchemy.orm import Session

from mld_core.records.format.manifest import utc_now
from mld_core.service.server.storage.models import (
    Blob,
    Garbage,
    Organization,
    Pass,
    Removal,
    Run,
    Seal,
    SealFile,
    new_id,
)

_CHUNK = 500
_RUNS = cast("Table", Run.__table__)
_PASSES = cast("Table", Pass.__table__)
_SEALS = cast("Table", Seal.__table__)
_SEAL_FILES = cast("Table", SealFile.__table__)
_BLOBS = cast("Table", Blob.__table__)
_ORGANIZATIONS = cast("Table", Organization.__table__)
_REMOVALS = cast("Table", Removal.__table__)
_GARBAGE = cast("Table", Garbage.__table__)


class RunLike(Protocol):
    """What a seal needs of a run."""

    @property
    def pk(self) -> int:
        """Its key."""

    @property
    def organization_pk(self) -> int:
        """The key of its organization."""

    @property
    def model_name(self) -> str:
        """The model."""

    @property
    def version_name(self) -> str:
        """Its version."""

    @property
    def task(self) -> str:
        """Its task, "" where nobody said."""


@dataclass(frozen=True)
class KnownRun:
    """A run, and what there is of it.

    Attributes:
        sealed: whether a rank with the manifest that was asked for is sealed.
        removed: whether anything was removed from it.
    """

    pk: int
    organization_pk: int
    model_name: str
    version_name: str
    task: str
    sealed: bool
    removed: bool


@dataclass(frozen=True)
class NewBlob:
    """The row of a file that is to be made."""

    organization_pk: int
    sha256: str
    size: int
    state: str
    facts: dict[str, Any] | None
    created_at: str


class BlobLike(Protocol):
    """What a seal needs of a file's row."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def state(self) -> str:
        """As of `Blob`."""

    @property
    def facts(self) -> Mapping[str, Any] | None:
        """What its check found."""


@dataclass(frozen=True)
class StoredBlob:
    """A file that has a row."""

    pk: int
    sha256: str
    size: int
    state: str


_SEALED = exists().where(
    _BLOBS.c.organization_pk == _RUNS.c.organization_pk,
    _BLOBS.c.sha256 == bindparam("manifest"),
    _SEALS.c.manifest_blob_pk == _BLOBS.c.pk,
    _PASSES.c.pk == _SEALS.c.pass_pk,
    _PASSES.c.run_pk == _RUNS.c.pk,
)
_REMOVED = exists().where(
    _REMOVALS.c.organization_pk == _RUNS.c.organization_pk,
    _REMOVALS.c.model_name == _RUNS.c.model_name,
    _REMOVALS.c.version_name == _RUNS.c.version_name,
)
_RUN = select(
    *(_RUNS.c.pk, _RUNS.c.organization_pk, _RUNS.c.model_name, _RUNS.c.version_name, _RUNS.c.task),
    _SEALED,
    _REMOVED,
).where(_RUNS.c.id == bindparam("run_id"), _RUNS.c.organization_pk == bindparam("organization_pk"))


def known_run(session: Session, organization_pk: int, run_id: str, manifest: str) -> KnownRun | None:
    """A run of an organization; None if it has none of that id."""
    asked = {"organization_pk": organization_pk, "run_id": run_id, "manifest": manifest}
    found = session.execute(_RUN, asked).one_or_none()
    return None if found is None else KnownRun(*found)


_WHOSE: BindParameter[int] = bindparam("organization_pk")
_NAMED: BindParameter[list[str]] = bindparam("digests", expanding=True)
_TRACES = union_all(
    select(literal(False), _BLOBS.c.sha256).where(
        _BLOBS.c.organization_pk == _WHOSE, _BLOBS.c.sha256.in_(_NAMED)
    ),
    select(literal(True), _GARBAGE.c.sha256).where(
        _GARBAGE.c.organization_pk == _WHOSE, _GARBAGE.c.sha256.in_(_NAMED)
    ),
)


def traces_of(session: Session, organization_pk: int, digests: Iterable[str]) -> tuple[list[str], list[str]]:
    """The files among these that have a row, and those that are to be deleted."""
    there: list[str] = []
    garbage: list[str] = []
    for some in _chunks(digests):
        rows = session.execute(_TRACES, {"organization_pk": organization_pk, "digests": some})
        for is_garbage, sha256 in rows:
            (garbage if is_garbage else there).append(sha256)
    return there, garbage


_STORED = select(_BLOBS.c.pk, _BLOBS.c.sha256, _BLOBS.c.size, _BLOBS.c.state).where(
    _BLOBS.c.organization_pk == _WHOSE, _BLOBS.c.sha256.in_(_NAMED)
)


def stored_blobs(session: Session, organization_pk: int, digests: Iterable[str]) -> dict[str, StoredBlob]:
    """The files among these that have a row, by digest."""
    found: dict[str, StoredBlob] = {}
    for some in _chunks(digests):
        rows = session.execute(_STORED, {"organization_pk": organization_pk, "digests": some})
        found.update({row.sha256: StoredBlob(*row) for row in rows})
    return found


def _chunks(digests: Iterable[str]) -> Iterable[list[str]]:
    wanted = sorted(set(digests))
    return (wanted[start : start + _CHUNK] for start in range(0, len(wanted), _CHUNK))


_NEW_BLOB = insert(_BLOBS).returning(_BLOBS.c.pk, _BLOBS.c.sha256)
_CHECKED = (
    update(_BLOBS)
    .where(_BLOBS.c.pk == bindparam("blob_pk"))
    .values(state=bindparam("now"), facts=bindparam("found"))
)
_GROWN = (
    update(_ORGANIZATIONS)
    .where(_ORGANIZATIONS.c.pk == bindparam("organization"))
    .values(blob_bytes=_ORGANIZATIONS.c.blob_bytes + bindparam("more"))
)


def note_blobs(
    session: Session, organization_pk: int, blobs: Mapping[str, NewBlob]
) -> dict[str, StoredBlob] | None:
    """The rows of files: made where there was none, with the verdict where they were not checked.

    Returns:
        By digest; None where other bytes stand under one of the names, which are about to be discarded.
    """
    there = stored_blobs(session, organization_pk, blobs)
    for sha256, old in there.items():
        new = blobs[sha256]
        if old.size != new.size:
            return None
        if old.state == "stored":
            session.execute(_CHECKED, {"blob_pk": old.pk, "now": new.state, "found": new.facts})
            there[sha256] = StoredBlob(old.pk, sha256, old.size, new.state)
    made = [blob for sha256, blob in blobs.items() if sha256 not in there]
    if made:
        for pk, sha256 in session.execute(_NEW_BLOB, [vars(blob) for blob in made]):
            there[sha256] = StoredBlob(pk, sha256, blobs[sha256].size, blobs[sha256].state)
        more = sum(blob.size for blob in made)
        session.execute(_GROWN, {"organization": organization_pk, "more": more})
    return there


_PASS = select(_PASSES.c.pk, _PASSES.c.id).where(
    _PASSES.c.run_pk == bindparam("run_pk"),
    _PASSES.c.dataset_type == bindparam("dataset_type"),
    _PASSES.c.epoch == bindparam("epoch"),
    _PASSES.c.pass_no == bindparam("pass_no"),
)
_NEW_PASS = insert(_PASSES).returning(_PASSES.c.pk)


def note_pass(session: Session, **place: Any) -> tuple[int, str]:
    """Key and id of the pass at a place: `run_pk`, `dataset_type`, `epoch`, `pass_no`; made if need be."""
    found = session.execute(_PASS, place).one_or_none()
    if found is not None:
        return found.pk, found.id
    pass_id = new_id("pass")
    made = session.execute(_NEW_PASS, {**place, "id": pass_id, "created_at": utc_now()})
    return made.scalar_one(), pass_id


_NEW_SEAL = insert(_SEALS).returning(_SEALS.c.pk)
_NEW_FILE = insert(_SEAL_FILES)
_RANKS = select(_SEALS.c.rank_no).where(
    _SEALS.c.pass_pk == bindparam("pass_pk"), _SEALS.c.attempt == bindparam("attempt")
)


def note_seal(session: Session, seal: Mapping[str, Any], files: Iterable[Mapping[str, Any]]) -> None:
    """Make the row of a seal, of its columns, and those of its files."""
    pk = session.execute(_NEW_SEAL, {"manifest": {}, "created_at": utc_now(), **seal}).scalar_one()
    rows = [{"seal_pk": pk, **one} for one in files]
    if rows:
        session.execute(_NEW_FILE, rows)


def sealed_ranks(session: Session, pass_pk: int, attempt: str) -> list[int]:
    """The ranks of an attempt that are sealed."""
    return sorted(session.scalars(_RANKS, {"pass_pk": pass_pk, "attempt": attempt}))
