"""Removing runs, passes, results and samples: said and done in one transaction, then the bytes go.

* A run, passes or results lose their rows at once, in the database and in the quota. The files that nobody
  else names are noted as garbage in the same transaction: from then on they are not there for anybody, and a
  moment later they are deleted. What was recorded of a run or a pass before that is not taken again.
* A sample is noted by the SHA-256 of its id: from then on evaluations leave it out, results that hold it are
  gone, and files that may hold it are not given out. `mld_core.service.server.storage.sweeps` then takes it
  out of the files. A rank that comes later with such rows is looked through in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from mld_core.evaluation.results.store import table_holds
from mld_core.records.format.manifest import utc_now
from mld_core.records.format.removals import id_digest
from mld_core.records.write.removal import rows_of
from mld_core.service.server.problems import ProblemError, not_found
from mld_core.service.server.storage.backends import Storage
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import (
    Blob,
    Garbage,
    Job,
    Organization,
    Pass,
    Removal,
    Result,
    ResultFile,
    Run,
    RunTag,
    SaidVerdict,
    Seal,
    SealFile,
    new_id,
)
from mld_core.service.server.storage.rows import RunLike

_CHUNK = 500


@dataclass(frozen=True)
class Wanted:
    """What is to be removed of a run: samples, results, passes, or (nothing named) all of it.

    Attributes:
        dataset_type: only of this split; None = of all.
        epochs: the epochs, as they are stored; None = all.
        input_ids: the samples.
        results: names of the results.
    """

    dataset_type: str | None = None
    epochs: tuple[str, ...] | None = None
    input_ids: tuple[str, ...] = ()
    results: tuple[str, ...] = ()


@dataclass
class Found:
    """What goes, or would: sample rows, files, their bytes, names of results."""

    rows: int = 0
    files: int = 0
    bytes: int = 0
    results: tuple[str, ...] = ()


def of_run(run: RunLike) -> tuple[ColumnElement[bool], ...]:
    """What is true of the removals of a run."""
    names = (Removal.model_name == run.model_name, Removal.version_name == run.version_name)
    return (Removal.organization_pk == run.organization_pk, *names)


def samples_of(session: Session, run: Run) -> list[tuple[str, str | None, str]]:
    """The removed samples of a run: (digest, split or None, when)."""
    columns = (Removal.input, Removal.dataset_type, Removal.created_at)
    query = select(*columns).where(*of_run(run), Removal.input.is_not(None)).order_by(Removal.pk)
    return [(str(digest), split, at) for digest, split, at in session.execute(query)]


def is_about(said: Mapping[str, Any], samples: Iterable[tuple[str, str | None, str]]) -> bool:
    """Whether a verdict is about one of the removed samples."""
    names = [digest for digest, split, _ in samples if split in {None, said["dataset_type"]}]
    return bool(names) and id_digest(str(said["input_id"])) in names


def unswept() -> ColumnElement[bool]:
    """What is true of a seal (joined with its pass and run) that may hold a removed sample's rows."""
    concerns = (
        Removal.organization_pk == Run.organization_pk,
        Removal.model_name == Run.model_name,
        Removal.version_name == Run.version_name,
        Removal.input.is_not(None),
        or_(Removal.dataset_type.is_(None), Removal.dataset_type == Pass.dataset_type),
        or_(Seal.swept_at.is_(None), Seal.swept_at < Removal.created_at),
    )
    return exists().where(*concerns)


_GONE = select(Removal.created_at).where(
    Removal.organization_pk == bindparam("organization_pk"),
    Removal.model_name == bindparam("model_name"),
    Removal.version_name == bindparam("version_name"),
    Removal.input.is_(None),
    or_(Removal.dataset_type.is_(None), Removal.dataset_type == bindparam("dataset_type")),
    or_(Removal.epoch.is_(None), Removal.epoch == bindparam("epoch")),
    Removal.before > bindparam("started_at"),
)


def check_removed(session: Session, run: RunLike, dataset_type: str, epoch: str, started_at: str) -> None:
    """Raise ProblemError where a rank was recorded before its run or pass was removed."""
    names = {"model_name": run.model_name, "version_name": run.version_name}
    place = {"organization_pk": run.organization_pk, **names, "dataset_type": dataset_type, "epoch": epoch}
    gone = session.scalar(_GONE, {**place, "started_at": started_at})
    if gone is not None:
        raise ProblemError(
            "removed",
            f"what was recorded of this before {gone} was removed from the service",
            value=started_at,
            expectation="a recording that began later",
            fix="`mld rm` removes it on this machine, too",
        )


def release(session: Session, organization_pk: int, blobs: Iterable[int]) -> int:
    """Let go of the files of these keys that nothing names any more; their bytes."""
    freed, pks = 0, sorted(set(blobs))
    for start in range(0, len(pks), _CHUNK):
        unneeded = (
            Blob.pk.in_(pks[start : start + _CHUNK]),
            ~exists().where(SealFile.blob_pk == Blob.pk),
            ~exists().where(ResultFile.blob_pk == Blob.pk),
            ~exists().where(Seal.manifest_blob_pk == Blob.pk),
        )
        rows = session.execute(select(Blob.pk, Blob.sha256, Blob.size).where(*unneeded)).all()
        session.execute(delete(Blob).where(Blob.pk.in_([row.pk for row in rows])))
        place = {"organization_pk": organization_pk, "created_at": utc_now()}
        session.add_all(Garbage(sha256=row.sha256, **place) for row in rows)
        freed += sum(row.size for row in rows)
    less = Organization.blob_bytes - freed
    session.execute(update(Organization).where(Organization.pk == organization_pk).values(blob_bytes=less))
    return freed


def wanted_again(database: Database, organization_pk: int, digests: Iterable[str]) -> None:
    """Files of these digests are about to be stored: none of them is garbage."""
    names = sorted(set(digests))
    mine = (Garbage.organization_pk == organization_pk, Garbage.sha256.in_(names))
    with database.read() as session:
        found = session.scalar(select(Garbage.pk).where(*mine).limit(1))
    if found is not None:
        with database.write() as session:
            session.execute(delete(Garbage).where(*mine))


def removed_since(session: Session, job_pk: int) -> bool:
    """Whether samples were removed from a job's run since it was taken to be run."""
    mine = select(Run, Job.started_at).join(Job, Job.run_pk == Run.pk).where(Job.pk == job_pk)
    found = session.execute(mine).one_or_none()
    if found is None:
        return False
    run, began = found
    later = (*of_run(run), Removal.input.is_not(None), Removal.created_at >= (began or ""))
    return bool(session.scalar(select(exists().where(*later))))


class Remover:
    """Says and does what is removed."""

    def __init__(self, database: Database, storage: Storage) -> None:
        self._database = database
        self._storage = storage

    def held_back(self, organization_pk: int, sha256: str) -> bool:
        """Whether a file may hold rows of removed samples: it is not given out until it was swept."""
        mine = select(Removal.pk).where(
            Removal.organization_pk == organization_pk, Removal.input.is_not(None)
        )
        named = (
            select(Seal.pk)
            .join(Pass, Pass.pk == Seal.pass_pk)
            .join(Run, Run.pk == Pass.run_pk)
            .join(SealFile, SealFile.seal_pk == Seal.pk)
            .join(Blob, Blob.pk == SealFile.blob_pk)
            .where(Blob.organization_pk == organization_pk, Blob.sha256 == sha256, unswept())
        )
        with self._database.read() as session:
            if session.scalar(mine.where(Removal.input.is_not(None)).limit(1)) is None:
                return False
            return session.scalar(named.limit(1)) is not None

    def find(self, organization_id: str, run: Run, wanted: Wanted) -> Found:
        """What would go.

        Raises:
            ProblemError: a result of that name is not there.
        """
        with self._database.read() as session:
            results = self._results(session, organization_id, run, wanted)
            names = tuple(result.result_name for result in results)
            found = Found(results=names)
            if wanted.results:
                return self._with_results(session, found, results)
            seals = self._seals(session, run, wanted)
            if wanted.input_ids:
                self._count_samples(session, organization_id, seals, wanted, found)
                return self._with_results(session, found, results)
            files = select(func.count(), func.coalesce(func.sum(Blob.size), 0)).select_from(SealFile)
            for start in range(0, len(seals), _CHUNK):
                some = [seal.pk for seal in seals[start : start + _CHUNK]]
                query = files.join(Blob, Blob.pk == SealFile.blob_pk).where(SealFile.seal_pk.in_(some))
                count, size = session.execute(query).one()
                found.files, found.bytes = found.files + int(count), found.bytes + int(size)
            found.rows = sum(seal.rows.get("samples", 0) for seal in seals)
            return self._with_results(session, found, results)

    def remove(self, organization_id: str, run: Run, wanted: Wanted) -> Found:
        """Remove it: nobody sees it from the return on.

        Raises:
            ProblemError: a result of that name is not there.
        """
        found = self.find(organization_id, run, wanted) if not wanted.input_ids else Found()
        with self._database.write() as session:
            results = self._results(session, organization_id, run, wanted)
            if wanted.input_ids:
                self._with_results(session, found, results)
                found.results = tuple(result.result_name for result in results)
            gone = self._drop_results(session, [result.pk for result in results])
            if not wanted.results:
                self._note(session, run, wanted)
                self._drop_verdicts(session, run, wanted)
            if not wanted.results and not wanted.input_ids:
                gone |= self._drop_passes(session, self._seals(session, run, wanted))
                if wanted == Wanted():
                    session.execute(delete(Job).where(Job.run_pk == run.pk))
                    session.execute(delete(RunTag).where(RunTag.run_pk == run.pk))
                    session.execute(delete(Run).where(Run.pk == run.pk))
            release(session, run.organization_pk, gone)
        return found

    @staticmethod
    def _with_results(session: Session, found: Found, results: Sequence[Result]) -> Found:
        query = (
            select(func.count(), func.coalesce(func.sum(Blob.size), 0))
            .select_from(ResultFile)
            .join(Blob, Blob.pk == ResultFile.blob_pk)
            .where(ResultFile.result_pk.in_([result.pk for result in results]))
        )
        count, size = session.execute(query).one()
        found.files, found.bytes = found.files + int(count), found.bytes + int(size)
        return found

    def _results(self, session: Session, organization_id: str, run: Run, wanted: Wanted) -> list[Result]:
        """The results that go with what is wanted."""
        there = list(session.scalars(select(Result).where(Result.run_pk == run.pk)))
        if wanted.results:
            missing = set(wanted.results) - {result.result_name for result in there}
            if missing:
                raise not_found("result", min(missing))
            return [result for result in there if result.result_name in wanted.results]
        if wanted.input_ids:
            digests = frozenset(map(id_digest, wanted.input_ids))
            return [one for one in there if self._mentions(session, organization_id, one, digests)]
        return there if wanted == Wanted() else []

    def _mentions(
        self, session: Session, organization_id: str, result: Result, digests: frozenset[str]
    ) -> bool:
        query = select(Blob.sha256).join(ResultFile, ResultFile.blob_pk == Blob.pk)
        tables = query.where(ResultFile.result_pk == result.pk, ResultFile.name.like("%.parquet"))
        return any(
            table_holds(self._storage.local(organization_id, sha256), digests)
            for sha256 in session.scalars(tables)
        )

    @staticmethod
    def _seals(session: Session, run: Run, wanted: Wanted) -> list[Seal]:
        query = select(Seal).join(Pass, Pass.pk == Seal.pass_pk).where(Pass.run_pk == run.pk)
        if wanted.dataset_type is not None:
            query = query.where(Pass.dataset_type == wanted.dataset_type)
        if wanted.epochs is not None:
            query = query.where(Pass.epoch.in_(wanted.epochs))
        return list(session.scalars(query))

    def _count_samples(
        self, session: Session, organization_id: str, seals: Sequence[Seal], wanted: Wanted, found: Found
    ) -> None:
        """Look through the samples of the seals."""
        digests = frozenset(map(id_digest, wanted.input_ids))
        for seal in seals:
            query = select(SealFile.part, SealFile.family, Blob.sha256, Blob.size)
            query = query.join(Blob, Blob.pk == SealFile.blob_pk).where(SealFile.seal_pk == seal.pk)
            files = session.execute(query).all()
            for one in files:
                if one.family == "samples":
                    rows = rows_of(self._storage.local(organization_id, one.sha256), digests)
                    own = [file for file in files if file.part == one.part] if rows else []
                    found.rows += rows
                    found.files += len(own)
                    found.bytes += sum(file.size for file in own)

    @staticmethod
    def _note(session: Session, run: Run, wanted: Wanted) -> None:
        now = utc_now()
        place: dict[str, Any] = {"organization_pk": run.organization_pk, "dataset_type": wanted.dataset_type}
        place |= {"model_name": run.model_name, "version_name": run.version_name, "created_at": now}
        for input_id in dict.fromkeys(wanted.input_ids):
            session.add(Removal(id=new_id("removal"), input=id_digest(input_id), before=now, **place))
        if not wanted.input_ids:
            for epoch in wanted.epochs or (None,):
                session.add(Removal(id=new_id("removal"), epoch=epoch, before=now, **place))

    @staticmethod
    def _drop_verdicts(session: Session, run: Run, wanted: Wanted) -> None:
        """What was said of the samples that go; epochs have none of their own."""
        mine = SaidVerdict.run_pk == run.pk
        if wanted == Wanted():
            session.execute(delete(SaidVerdict).where(mine))
        elif wanted.input_ids:
            session.flush()
            samples = samples_of(session, run)
            for row in session.scalars(select(SaidVerdict).where(mine)):
                if is_about(row.said, samples):
                    session.delete(row)

    @staticmethod
    def _drop_results(session: Session, results: Sequence[int]) -> set[int]:
        of_these = ResultFile.result_pk.in_(results)
        blobs = set(session.scalars(select(ResultFile.blob_pk).where(of_these)))
        session.execute(delete(ResultFile).where(of_these))
        session.execute(update(Job).where(Job.result_pk.in_(results)).values(result_pk=None))
        session.execute(delete(Result).where(Result.pk.in_(results)))
        return blobs

    @staticmethod
    def _drop_passes(session: Session, seals: Sequence[Seal]) -> set[int]:
        blobs = {seal.manifest_blob_pk for seal in seals if seal.manifest_blob_pk is not None}
        owners = {seal.pass_pk for seal in seals}
        for start in range(0, len(seals), _CHUNK):
            some = [seal.pk for seal in seals[start : start + _CHUNK]]
            blobs |= set(session.scalars(select(SealFile.blob_pk).where(SealFile.seal_pk.in_(some))))
            session.execute(delete(SealFile).where(SealFile.seal_pk.in_(some)))
            session.execute(delete(Seal).where(Seal.pk.in_(some)))
        session.execute(delete(Pass).where(Pass.pk.in_(owners)))
        return blobs
