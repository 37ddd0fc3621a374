"""What the pages read at the team's server: sealed records and results, laid out as a folder when asked for.

The storage's files are linked, not copied, where that is possible. Which runs somebody sees, and what stands
in them, is asked of the database at every question; the folder is brought up to date before it is answered,
so that what was removed is seen by nobody from then on. `tidy` takes it out of folders that nobody asks for.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session, undefer

from mld_core.app.asking import Shown
from mld_core.app.clouds.points import Clouds
from mld_core.app.library import Held, Library
from mld_core.app.pictures import Pictures
from mld_core.app.problems import ProblemError
from mld_core.app.shelf import Book, Gone, Who
from mld_core.records.format.layout import RUN_FILE, PassKey, RunKey, Store
from mld_core.records.format.manifest import FORMAT, write_json
from mld_core.records.format.names import encode
from mld_core.records.format.removals import Removals
from mld_core.records.store.verdict import Verdict, as_members, of_members, signed, undoing
from mld_core.service.server import problems
from mld_core.service.server.jobs.materialise import generation_of, lay_seal, link, parse_epoch
from mld_core.service.server.pages.team_jobs import TeamJobs
from mld_core.service.server.routes.forms import RunPatchForm
from mld_core.service.server.routes.runs import patch_run
from mld_core.service.server.routes.verdicts import keep_verdicts
from mld_core.service.server.service import Service
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.models import (
    Blob,
    Pass,
    Result,
    ResultFile,
    Run,
    RunTag,
    SaidVerdict,
    Seal,
)
from mld_core.service.server.storage.people import seen_runs
from mld_core.service.server.storage.removals import Wanted, samples_of

LISTED = ("result.json", "metrics.parquet", "categories.parquet")
"""Files of a result that the list of runs reads."""

KEPT_SECONDS = 3600.0
"""A run's folder that nobody asked for is let go of after them."""


@dataclass
class _Laid:
    """What lies in the folder of a run."""

    run_id: str
    seals: dict[int, str | None] = field(default_factory=dict)
    results: dict[int, tuple[str, bool]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    removed: int = 0
    generation: int = 0
    whole: bool = False
    used: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Desk:
    """The folders of all organizations, and what is in memory of them.

    Args:
        service: Where records and results lie.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._root = service.settings.folder("pages")
        self._held = Held()
        self._laid: dict[tuple[str, RunKey], _Laid] = {}
        self._pictures: dict[str, Pictures] = {}
        self._lock = threading.Lock()

    def shown(self, who: Who) -> Shown:
        """What somebody is shown."""
        principal: Principal = who.of
        store = self.store(principal.organization_id)
        with self._lock:
            pictures = self._pictures.setdefault(principal.organization_id, Pictures(store, allowed=False))
        library = Library(TeamShelf(self, principal), self._held)
        return Shown(library, pictures, TeamJobs(self.service, principal), Clouds(store, allowed=False))

    def store(self, organization_id: str) -> Store:
        """The folder of an organization."""
        return Store(self._root / organization_id)

    def bring(self, session: Session, organization_id: str, row: Run, *, whole: bool) -> None:
        """Bring the folder of a run up to date."""
        run = RunKey(row.model_name, row.version_name)
        store = self.store(organization_id)
        with self._lock:
            laid = self._laid.setdefault((organization_id, run), _Laid(row.id))
            if laid.run_id != row.id:  # another run under the same names
                laid = self._laid[organization_id, run] = _Laid(row.id)
                shutil.rmtree(store.run_dir(run), ignore_errors=True)
        with laid.lock:
            laid.used, laid.whole = time.monotonic(), laid.whole or whole
            self._records(session, store, organization_id, row, laid)
            self._results(session, store, organization_id, row, laid)
            self._facts(session, store, row, laid)

    def _records(self, session: Session, store: Store, organization_id: str, row: Run, laid: _Laid) -> None:
        run = RunKey(row.model_name, row.version_name)
        store.run_dir(run).mkdir(parents=True, exist_ok=True)
        removed = samples_of(session, row)
        if len(removed) != laid.removed:
            for split in {split for _, split, _ in removed}:
                Removals(store, run).append((digest for digest, own, _ in removed if own == split), split)
            laid.removed = len(removed)
        there = select(Seal.pk, Seal.swept_at, Pass).join(Pass, Pass.pk == Seal.pass_pk)
        wanted = {
            pk: (swept, owner) for pk, swept, owner in session.execute(there.where(Pass.run_pk == row.pk))
        }
        passes = {one: key_of(owner) for one, (_, owner) in wanted.items()}
        if not laid.whole:
            for key in set(passes.values()):
                store.pass_dir(run, key).mkdir(parents=True, exist_ok=True)
            return
        stale = [pk for pk, swept in laid.seals.items() if pk not in wanted or wanted[pk][0] != swept]
        if stale:  # passes were removed, or rows of samples taken out of them
            for folder in [one for one in store.run_dir(run).iterdir() if not one.name.startswith(".")]:
                if folder.is_dir():
                    shutil.rmtree(folder)
            laid.seals.clear()
        for pk in [one for one in wanted if one not in laid.seals]:
            query = select(Seal, Blob.sha256).outerjoin(Blob, Blob.pk == Seal.manifest_blob_pk)
            seal, manifest = session.execute(query.where(Seal.pk == pk).options(undefer(Seal.manifest))).one()
            lay_seal(
                self.service.database,
                self.service.storage,
                store.rank_dir(run, passes[pk], seal.attempt, seal.rank_no),
                organization_id=organization_id,
                seal=seal,
                manifest=manifest,
            )
            laid.generation = max(laid.generation, generation_of(seal.opening))
            laid.seals[pk] = wanted[pk][0]

    def _results(self, session: Session, store: Store, organization_id: str, row: Run, laid: _Laid) -> None:
        root = store.results_dir(RunKey(row.model_name, row.version_name))
        query = select(Result.pk, Result.result_name).where(Result.run_pk == row.pk)
        wanted = {int(pk): str(name) for pk, name in session.execute(query)}
        for pk in [one for one in laid.results if one not in wanted]:
            shutil.rmtree(root / encode(laid.results.pop(pk)[0]), ignore_errors=True)
        for pk, name in wanted.items():
            if pk in laid.results and (laid.results[pk][1] or not laid.whole):
                continue
            files = select(ResultFile.name, Blob.sha256).join(Blob, Blob.pk == ResultFile.blob_pk)
            folder = root / encode(name)
            folder.mkdir(parents=True, exist_ok=True)
            found = session.execute(files.where(ResultFile.result_pk == pk)).all()
            # Its result.json is the last: with it, the folder is a result.
            for file, sha256 in sorted(found, key=lambda one: str(one[0]) == LISTED[0]):
                if (laid.whole or file in LISTED) and not (folder / file).exists():
                    link(self.service.storage.local(organization_id, sha256), folder / file)
            laid.results[pk] = (name, laid.whole)

    @staticmethod
    def _facts(session: Session, store: Store, row: Run, laid: _Laid) -> None:
        run = RunKey(row.model_name, row.version_name)
        tags = session.scalars(select(RunTag.tag).where(RunTag.run_pk == row.pk).order_by(RunTag.tag))
        whole = row.whole_info
        laid.generation = max(laid.generation, generation_of(whole))
        info = {"format": FORMAT, "created_at": row.created_at, **whole, **asdict(run), "tags": list(tags)}
        info |= {"note": row.note, "archived": row.archived, "generation": laid.generation}
        if info != laid.info or not (store.run_dir(run) / RUN_FILE).exists():
            if laid.generation:
                (store.run_dir(run) / f".generation-{laid.generation}").mkdir(exist_ok=True)
            write_json(store.run_dir(run) / RUN_FILE, info, fsync=False)
            laid.info = info

    def tidy(self) -> None:
        """Take what was removed out of the folders, and let go of those that nobody asks for."""
        for (organization_id, run), laid in list(self._laid.items()):
            with self.service.database.read() as session:
                row = session.scalar(select(Run).where(Run.id == laid.run_id))
                if row is not None and time.monotonic() - laid.used < KEPT_SECONDS:
                    used = laid.used
                    self.bring(session, organization_id, row, whole=False)
                    laid.used = used
                    continue
            with self._lock:
                self._laid.pop((organization_id, run), None)
            with laid.lock:
                shutil.rmtree(self.store(organization_id).run_dir(run), ignore_errors=True)


def key_of(owner: Pass) -> PassKey:
    """The names of a pass."""
    return PassKey(owner.dataset_type, parse_epoch(owner.epoch), owner.pass_no)


class TeamShelf:
    """The runs of an organization that one principal may see.

    Args:
        desk: Where they are laid out.
        principal: Who looks.
    """

    where = "your team's store"

    def __init__(self, desk: Desk, principal: Principal) -> None:
        self._desk = desk
        self._service = desk.service
        self._principal = principal
        self.store = desk.store(principal.organization_id)

    def listed(self) -> tuple[list[RunKey], list[RunKey]]:
        """See `Shelf`."""
        query = select(Run.model_name, Run.version_name, Run.archived).order_by(Run.pk.desc())
        with self._service.database.read() as session:
            found = session.execute(query.where(seen_runs(session, self._principal))).all()
        shown = [RunKey(model, version) for model, version, away in found if not away]
        return shown, [RunKey(model, version) for model, version, away in found if away]

    def newest(self, model: str | None, *, evaluated: bool) -> RunKey | None:
        """See `Shelf`."""
        last = select(func.max(Pass.pk)).where(Pass.run_pk == Run.pk).correlate(Run).scalar_subquery()
        query = select(Run.model_name, Run.version_name)
        if model is not None:
            query = query.where(Run.model_name == model)
        if evaluated:
            query = query.where(Run.pk.in_(select(Result.run_pk)))
        query = query.order_by(func.coalesce(last, 0).desc(), Run.pk.desc()).limit(1)
        with self._service.database.read() as session:
            found = session.execute(query.where(seen_runs(session, self._principal))).one_or_none()
        return None if found is None else RunKey(*found)

    def fetch(self, run: RunKey, *, whole: bool = True) -> bool:
        """See `Shelf`."""
        with self._service.database.read() as session:
            row = self._row(session, run)
            if row is None:
                return False
            self._desk.bring(session, self._principal.organization_id, row, whole=whole)
        return True

    def _row(self, session: Session, run: RunKey) -> Run | None:
        names = (Run.model_name == run.model_name, Run.version_name == run.version_name)
        return session.scalar(select(Run).where(*names, seen_runs(session, self._principal)))

    def _id(self, run: RunKey) -> str:
        with self._service.database.read() as session:
            row = self._row(session, run)
        if row is None:
            raise ProblemError(404, f"{run.model_name} {run.version_name} is not there any more")
        return row.id

    def info(self, run: RunKey) -> dict[str, Any]:
        """See `Shelf`."""
        return self.store.run_info(run)

    def update(self, run: RunKey, **members: Any) -> None:
        """See `Shelf`."""
        own = {name: members.pop(name) for name in ("tags", "note", "archived") if name in members}
        try:
            form = RunPatchForm.model_validate({**own, "info": members})
            patch_run(self._id(run), form, self._service, self._principal)
        except ValidationError as error:
            first = error.errors()[0]
            where = " ".join(map(str, first["loc"]))
            raise ProblemError(400, f"{where}: {first['msg']}") from error
        except problems.ProblemError as error:
            raise ProblemError(error.status_code, str(error.detail), fix=error.body["fix"]) from error

    def remove(self, run: RunKey, *, dry_run: bool) -> Gone:
        """See `Shelf`; its bytes go within seconds."""
        with self._service.database.read() as session:
            row = self._row(session, run)
        if row is None:
            raise ProblemError(404, f"{run.model_name} {run.version_name} is not there any more")
        remover = self._service.remover
        work = remover.find if dry_run else remover.remove
        found = work(self._principal.organization_id, row, Wanted())
        return Gone(found.rows, found.files, found.bytes, len(found.results))

    def book(self, run: RunKey) -> Book:
        """See `Shelf`."""
        return TeamBook(self._service, self._principal, self._id(run))


class TeamBook:
    """What the team said of a run's samples.

    Args:
        service: Where it is kept.
        principal: Who reads and writes.
        run_id: The run.
    """

    def __init__(self, service: Service, principal: Principal, run_id: str) -> None:
        self._service = service
        self._principal = principal
        self._run_id = run_id
        self._mine = select(Run.pk).where(Run.id == run_id).scalar_subquery()

    def read(self) -> tuple[list[Verdict], list[str]]:
        """See `Book`."""
        query = select(SaidVerdict.said).where(SaidVerdict.run_pk == self._mine).order_by(SaidVerdict.pk)
        with self._service.database.read() as session:
            found = [of_members(said) for said in session.scalars(query)]
        return sorted(found, key=lambda one: one.at), []

    def append(self, verdicts: Iterable[Verdict]) -> list[Verdict]:
        """See `Book`."""
        made = signed(verdicts)
        try:
            keep_verdicts(self._service, self._principal, self._run_id, list(map(as_members, made)))
        except problems.ProblemError as error:
            raise ProblemError(error.status_code, str(error.detail), fix=error.body["fix"]) from error
        return made

    def undo(self, verdicts: Iterable[Verdict], *, author: str = "") -> list[Verdict]:
        """See `Book`."""
        return self.append(undoing(verdicts, author))

    def stamp(self) -> Hashable:
        """See `Book`."""
        query = select(func.count(), func.max(SaidVerdict.pk)).where(SaidVerdict.run_pk == self._mine)
        with self._service.database.read() as session:
            return tuple(session.execute(query).one())
