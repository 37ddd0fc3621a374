"""Runs, passes and seals."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer
from starlette.concurrency import run_in_threadpool

from mld_core.records.format.manifest import plain, utc_now
from mld_core.service import protocol
from mld_core.service.server.jobs.materialise import parse_epoch
from mld_core.service.server.problems import ProblemError
from mld_core.service.server.routes import forms
from mld_core.service.server.routes.deps import (
    BoundedRoute,
    PrincipalDep,
    ServiceDep,
    answer,
    bounded_json,
    hide,
    in_order,
    may_see,
    own_pass,
    own_run,
    page,
    page_answer,
    shown,
)
from mld_core.service.server.service import Service
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.models import Blob, Pass, Run, RunTag, Seal, SealFile, new_id
from mld_core.service.server.storage.people import seen_runs
from mld_core.service.server.storage.seals import request_of
from mld_core.service.server.storage.uploads import full_disk_told

_MAX_INFO = 16 << 10
_MAX_NAMES = 256 << 10
_MAX_SEARCH = 601
_SMALL = 256 << 10
_PIECE = 256 << 10
_NO_KEY = 1 << 62
_MANIFESTS = 1 << 20
"""Bytes of manifests in one answer; the others are named by their digests, and are blobs."""

router = APIRouter(prefix="/v1", tags=["records"], route_class=BoundedRoute)


def run_out(session: Session, run: Run) -> protocol.Run:
    """What a client sees of a run."""
    tags = _tags(session, [run])[run.pk]
    return shown(run, protocol.Run, run_id=run.id, info=run.whole_info, tags=tags)


def _tags(session: Session, runs: list[Run]) -> dict[int, list[str]]:
    """The tags of runs by their keys."""
    found: dict[int, list[str]] = {run.pk: [] for run in runs}
    query = select(RunTag.run_pk, RunTag.tag).where(RunTag.run_pk.in_(found)).order_by(RunTag.tag)
    for run_pk, tag in session.execute(query):
        found[run_pk].append(tag)
    return found


def _keep(run: Run, info: dict[str, Any]) -> None:
    """Set the whole info of a run; what is large in it stands by itself."""
    run.class_names = info.pop("class_names", None)
    for what, value, most in (("info", info, _MAX_INFO), ("class_names", run.class_names, _MAX_NAMES)):
        size = len(json.dumps(value))
        if size > most:
            raise ProblemError(
                "too-large",
                f"the {what} of the run is too large",
                value=size,
                expectation=f"at most {most} bytes of JSON",
                fix="keep facts in the info, and records in parts",
            )
    run.info, run.task = info, str(info.get("task") or "")
    run.updated_at = utc_now()


def _find_or_create(service: Service, principal: Principal, form: forms.RunForm) -> tuple[Run, bool]:
    names = {"model_name": form.model_name, "version_name": form.version_name}
    may_see(principal, form.model_name)
    with service.database.write() as session:
        run = session.scalar(select(Run).filter_by(organization_pk=principal.organization_pk, **names))
        info = plain(form.info.given())
        if run is None:
            place = {"id": new_id("run"), "organization_pk": principal.organization_pk, **names}
            owner = principal.person or principal.key_name
            search = f"{form.model_name}\n{form.version_name}".lower()[:_MAX_SEARCH]
            run = Run(**place, created_at=utc_now(), note="", archived=False, owner=owner, search=search)
            _keep(run, info)
            session.add(run)
            return run, True
        there = run.whole_info
        if info.keys() - there.keys():
            _keep(run, {**info, **there})
        return run, False


@router.post("/runs", status_code=201, responses={200: {"description": "It was there"}})
def create_run(
    form: forms.RunForm, service: ServiceDep, principal: PrincipalDep, response: Response
) -> protocol.Run:
    """Find or create a run of the key's organization; members of `info` that are not there yet are added."""
    try:
        run, made = _find_or_create(service, principal, form)
    except IntegrityError:  # somebody made it a moment ago
        run, made = _find_or_create(service, principal, form)
    response.status_code = 201 if made else 200
    with service.database.read() as session:
        return run_out(session, run)


@router.get("/runs", response_model=dict[str, Any])
def list_runs(
    service: ServiceDep,
    principal: PrincipalDep,
    model_name: forms.NameFilter = None,
    version_name: forms.NameFilter = None,
    name: Annotated[forms.NameFilter, Query(description="Part of the model's or version's name")] = None,
    tag: forms.NameFilter = None,
    owner: forms.NameFilter = None,
    since: Annotated[str | None, Query(max_length=40, description="ISO 8601, UTC")] = None,
    archived: bool | None = None,
    order: Literal["oldest", "newest"] = "oldest",
    limit: forms.Limit = forms.PAGE,
    cursor: forms.Cursor = None,
) -> Response:
    """The runs of the key's organization, in the order they were made or the other way round."""
    query = select(Run.pk)
    if model_name is not None:
        query = query.where(Run.model_name == model_name)
    if version_name is not None:
        query = query.where(Run.version_name == version_name)
    if name is not None:
        place = func.instr if service.database.is_sqlite else func.strpos
        query = query.where(place(Run.search, name.lower()) > 0)
    if tag is not None:
        query = query.where(Run.pk.in_(select(RunTag.run_pk).where(RunTag.tag == tag)))
    if owner is not None:
        query = query.where(Run.owner == owner)
    if since is not None:  # runs are made in the order of their keys
        mine = Run.organization_pk == principal.organization_pk
        first = select(func.min(Run.pk)).where(mine, Run.created_at >= since)
        query = query.where(Run.pk >= func.coalesce(first.scalar_subquery(), _NO_KEY))
    if archived is not None:
        query = query.where(Run.archived.is_(archived))
    with service.database.read() as session:

        def brief(runs: list[Run]) -> list[protocol.Run]:
            tags = _tags(session, runs)
            return [
                shown(run, protocol.Run, run_id=run.id, info={"task": run.task or None}, tags=tags[run.pk])
                for run in runs
            ]

        # The keys first: those of a part of a name are found in an index alone, without the rows.
        newest = order == "newest"
        keys = in_order(session, query.where(seen_runs(session, principal)), Run, cursor, newest=newest)
        rows = select(Run).where(Run.pk.in_(keys.limit(limit + 1)))
        rows = rows.options(defer(Run.info), defer(Run.class_names))
        return page_answer(session, rows, Run, limit, None, brief, newest=newest)


@router.get("/runs/{run_id}", response_model=protocol.Run)
def get_run(run_id: forms.RunId, service: ServiceDep, principal: PrincipalDep) -> Response:
    """One run."""
    with service.database.read() as session:
        return answer(run_out(session, own_run(session, principal, run_id)))


@router.patch("/runs/{run_id}")
def patch_run(
    run_id: forms.RunId, form: forms.RunPatchForm, service: ServiceDep, principal: PrincipalDep
) -> protocol.Run:
    """Set members of a run's info, its tags, its note, whether it is archived."""
    with service.database.write() as session:
        run = own_run(session, principal, run_id, lock=True)
        _keep(run, {**run.whole_info, **plain(form.info.given())})
        if form.note is not None:
            run.note = form.note
        if form.archived is not None:
            run.archived = form.archived
        if form.tags is not None:
            session.execute(delete(RunTag).where(RunTag.run_pk == run.pk))
            session.add_all(RunTag(run_pk=run.pk, tag=tag) for tag in sorted(set(form.tags)))
        session.flush()
        return run_out(session, run)


@router.post(
    "/runs/{run_id}/seals",
    status_code=201,
    responses={200: {"description": "It was there"}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/SealForm"}}},
        }
    },
)
async def create_seal(
    run_id: forms.RunId, request: Request, service: ServiceDep, principal: PrincipalDep, response: Response
) -> protocol.Seal:
    """Seal one rank of a pass: all files of its manifest, or none.

    Clients of protocol 1.0 send the manifest itself, which may be large: it is read by no one but the process
    that reads manifests.
    """
    with service.uploads.scratch(principal) as path:
        rest = await _spooled(request, path)
        seal, made = await run_in_threadpool(_sealed, service, principal, run_id, path, rest)
    response.status_code = 201 if made else 200
    if made:
        service.metrics.seals.inc()
    return seal


@router.post(
    "/runs/{run_id}/ranks",
    status_code=201,
    response_model=protocol.Seal,
    responses={200: {"description": "It was there"}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def create_rank(
    run_id: forms.RunId, request: Request, service: ServiceDep, principal: PrincipalDep
) -> Response:
    """Take all files of a small rank in one body, and seal it: whole, or nothing of it."""
    with service.uploads.scratch(principal) as path:
        rest = await _spooled(request, path)
        async with service.ranks.turn(principal):
            seal, made = await run_in_threadpool(_ranked, service, principal, run_id, path, rest)
    if made:
        service.metrics.seals.inc()
    return answer(seal, 201 if made else 200)


def _ranked(
    service: Service, principal: Principal, run_id: str, path: Path, rest: bytearray
) -> tuple[protocol.Seal, bool]:
    service.metrics.received.inc(_append(path, rest))
    return service.ranks.add(principal, run_id, path)


async def _spooled(request: Request, path: Path) -> bytearray:
    """Write a body to a file, but for its end, which whoever reads the file appends first."""
    rest = bytearray()
    async for piece in request.stream():
        rest += piece
        if len(rest) >= _PIECE:
            await run_in_threadpool(_append, path, rest)
            rest = bytearray()
    return rest


def _append(path: Path, piece: bytearray) -> int:
    """Append to a file; its size then."""
    with full_disk_told(), path.open("ab") as file:
        file.write(piece)
        return file.tell()


def _sealed(
    service: Service, principal: Principal, run_id: str, path: Path, rest: bytearray
) -> tuple[protocol.Seal, bool]:
    size = _append(path, rest)
    with service.database.read() as session:
        run = own_run(session, principal, run_id)
    body = bounded_json(path.read_bytes()) if size <= _SMALL else None
    if isinstance(body, dict) and "manifest_sha256" in body:
        try:
            manifest = forms.SealForm.model_validate(body).manifest_sha256
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        seal = service.sealer.known(run, manifest)
        if seal is not None and seal.first_manifest != manifest:
            return service.sealer.told(seal), False
        hide(service, principal, {manifest})
        request = service.sealer.read(principal, run, manifest)
        hide(service, principal, {one.sha256 for one in request.files})
        return service.sealer.seal(principal, run, request)
    found = service.checks.manifest(path, "seal of 1.0")
    text = found.pop("manifest", "").encode()
    manifest = hashlib.sha256(text).hexdigest()
    asked = request_of(run, manifest, found)
    hide(service, principal, {one.sha256 for one in asked.files})
    service.uploads.keep(principal, manifest, text)
    return service.sealer.seal(principal, run, asked)


def pass_out(run_id: str, owner: Pass, seals: list[Any]) -> protocol.Pass:
    """What a client sees of a pass; `seals` have attempt, rank_no, world_size, rows, bytes."""
    attempts: dict[str, protocol.PassAttempt] = {}
    for seal in sorted(seals, key=lambda one: (one.attempt, one.rank_no)):
        found = attempts.setdefault(
            seal.attempt,
            {
                "attempt": seal.attempt,
                "world_size": seal.world_size,
                "sealed": False,
                "ranks": [],
                "rows": {},
                "bytes": 0,
            },
        )
        found["ranks"].append(seal.rank_no)
        found["bytes"] += seal.bytes
        for family, rows in seal.rows.items():
            found["rows"][family] = found["rows"].get(family, 0) + rows
        found["sealed"] = len(found["ranks"]) == found["world_size"]
    return {
        "pass_id": owner.id,
        "run_id": run_id,
        "dataset_type": owner.dataset_type,
        "n_epoch": parse_epoch(owner.epoch),
        "pass_no": owner.pass_no,
        "sealed": any(one["sealed"] for one in attempts.values()),
        "attempts": list(attempts.values()),
    }


def _seals_of(session: Session, passes: list[int]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    columns = (Seal.pass_pk, Seal.attempt, Seal.rank_no, Seal.world_size, Seal.rows, Seal.bytes)
    for row in session.execute(select(*columns).where(Seal.pass_pk.in_(passes))):
        found.setdefault(row.pass_pk, []).append(row)
    return found


@router.get("/runs/{run_id}/passes", response_model=dict[str, Any])
def list_passes(
    run_id: forms.RunId,
    service: ServiceDep,
    principal: PrincipalDep,
    limit: forms.Limit = forms.PAGE,
    cursor: forms.Cursor = None,
) -> Response:
    """The passes of a run, in the order in which they were first sealed."""
    with service.database.read() as session:
        query = select(Pass).where(Pass.run_pk == own_run(session, principal, run_id).pk)
        rows, after = page(session, query, Pass, limit, cursor)
        seals = _seals_of(session, [row.pk for row in rows])
    return answer({"items": [pass_out(run_id, row, seals.get(row.pk, [])) for row in rows], "next": after})


@router.get("/runs/{run_id}/passes/{pass_id}", response_model=dict[str, Any])
def get_pass(
    run_id: forms.RunId, pass_id: forms.PassId, service: ServiceDep, principal: PrincipalDep
) -> Response:
    """One pass with everything that is needed to lay it out on disk: manifests and files of each rank."""
    with service.database.read() as session:
        owner = own_pass(session, own_run(session, principal, run_id), pass_id)
        query = select(Seal).where(Seal.pass_pk == owner.pk).order_by(Seal.attempt, Seal.rank_no)
        seals = list(session.scalars(query))
        left = _MANIFESTS
        ranks: list[protocol.PassRank] = []
        for seal in seals:
            manifest, digest, size = _manifest(session, service, principal, seal, left)
            left -= size
            place: Any = {"attempt": seal.attempt, "rank": seal.rank_no, "opening": seal.opening}
            place |= {"manifest": manifest, "manifest_sha256": digest, "files": _files(session, seal)}
            ranks.append(place)
    return answer({**pass_out(run_id, owner, seals), "ranks": ranks})


def _manifest(
    session: Session, service: Service, principal: Principal, seal: Seal, left: int
) -> tuple[dict[str, Any] | None, str | None, int]:
    """A manifest, where the answer has room for it; its digest, where it is a blob; its bytes."""
    blob = session.get(Blob, seal.manifest_blob_pk) if seal.manifest_blob_pk is not None else None
    if blob is None:
        return seal.manifest, None, 0
    if blob.size > left:
        return None, blob.sha256, 0
    text = b"".join(service.storage.read(principal.organization_id, blob.sha256, 0, blob.size))
    return json.loads(text), blob.sha256, blob.size


def _files(session: Session, seal: Seal) -> list[protocol.PassFile]:
    rows = session.execute(
        select(SealFile.part, SealFile.family, SealFile.rows, Blob.sha256, Blob.size)
        .join(Blob, Blob.pk == SealFile.blob_pk)
        .where(SealFile.seal_pk == seal.pk)
        .order_by(SealFile.pk)
    )
    return [
        {"part": part, "family": family, "sha256": sha256, "bytes": size, "rows": count}
        for part, family, count, sha256, size in rows
    ]
