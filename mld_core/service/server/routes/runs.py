"""Runs, passes and seals."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Response
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mld_core.records.format.manifest import plain, utc_now
from mld_core.service import protocol
from mld_core.service.server.jobs.materialise import parse_epoch
from mld_core.service.server.problems import ProblemError
from mld_core.service.server.routes import forms
from mld_core.service.server.routes.deps import (
    PrincipalDep,
    ServiceDep,
    answer,
    own_pass,
    own_run,
    page,
    shown,
)
from mld_core.service.server.service import Service
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.models import Blob, Pass, Run, Seal, SealFile, new_id
from mld_core.service.server.storage.seals import parse_seal

_MAX_INFO = 1 << 20

router = APIRouter(prefix="/v1", tags=["records"])


def run_out(run: Run) -> protocol.Run:
    """What a client sees of a run."""
    return shown(run, protocol.Run, run_id=run.id)


def _checked(info: dict[str, Any]) -> dict[str, Any]:
    """The info of a run, which is in every list of runs: it must stay small."""
    size = len(json.dumps(info))
    if size > _MAX_INFO:
        raise ProblemError(
            "too-large",
            "the info of the run is too large",
            value=size,
            expectation=f"at most {_MAX_INFO} bytes of JSON",
            fix="keep facts in the info, and records in parts",
        )
    return info


def _find_or_create(service: Service, principal: Principal, form: forms.RunForm) -> tuple[Run, bool]:
    with service.database.write() as session:
        run = session.scalar(
            select(Run).where(
                Run.organization_pk == principal.organization_pk,
                Run.model_name == form.model_name,
                Run.version_name == form.version_name,
            )
        )
        now = utc_now()
        info = _checked(plain(form.info))
        if run is None:
            names = {"model_name": form.model_name, "version_name": form.version_name}
            place = {"id": new_id("run"), "organization_pk": principal.organization_pk, **names}
            run = Run(**place, info=info, created_at=now, updated_at=now)
            session.add(run)
            return run, True
        merged = {**info, **run.info}
        if merged != run.info:
            run.info = _checked(merged)
            run.updated_at = now
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
    return run_out(run)


@router.get("/runs", response_model=dict[str, Any])
def list_runs(
    service: ServiceDep,
    principal: PrincipalDep,
    model_name: forms.NameFilter = None,
    version_name: forms.NameFilter = None,
    limit: forms.Limit = forms.PAGE,
    cursor: forms.Cursor = None,
) -> Response:
    """The runs of the key's organization, in the order they were made."""
    query = select(Run).where(Run.organization_pk == principal.organization_pk)
    if model_name is not None:
        query = query.where(Run.model_name == model_name)
    if version_name is not None:
        query = query.where(Run.version_name == version_name)
    with service.database.read() as session:
        rows, after = page(session, query, Run, limit, cursor)
    return answer({"items": [run_out(run) for run in rows], "next": after})


@router.get("/runs/{run_id}", response_model=protocol.Run)
def get_run(run_id: forms.RunId, service: ServiceDep, principal: PrincipalDep) -> Response:
    """One run."""
    with service.database.read() as session:
        run = own_run(session, principal, run_id)
    return answer(run_out(run))


@router.patch("/runs/{run_id}")
def patch_run(
    run_id: forms.RunId, form: forms.RunPatchForm, service: ServiceDep, principal: PrincipalDep
) -> protocol.Run:
    """Set members of a run's info."""
    with service.database.write() as session:
        run = own_run(session, principal, run_id, lock=True)
        run.info = _checked({**run.info, **plain(form.info)})
        run.updated_at = utc_now()
    return run_out(run)


@router.post("/runs/{run_id}/seals", status_code=201, responses={200: {"description": "It was there"}})
def create_seal(
    run_id: forms.RunId,
    form: forms.SealForm,
    service: ServiceDep,
    principal: PrincipalDep,
    response: Response,
) -> protocol.Seal:
    """Seal one rank of a pass: all files of its manifest, or none."""
    with service.database.read() as session:
        run = own_run(session, principal, run_id)
    request = parse_seal(run, form.model_dump())
    seal, made = service.sealer.seal(principal, run, request)
    response.status_code = 201 if made else 200
    if made:
        service.metrics.seals.inc()
    with service.database.read() as session:
        owner = session.scalars(select(Pass).where(Pass.pk == seal.pass_pk)).one()
        ranks = session.scalars(
            select(Seal.rank_no).where(Seal.pass_pk == seal.pass_pk, Seal.attempt == seal.attempt)
        ).all()
    return {
        "seal_id": seal.id,
        "pass_id": owner.id,
        "sealed_ranks": sorted(ranks),
        "world_size": seal.world_size,
        "complete": set(range(seal.world_size)) <= set(ranks),
    }


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
        seals = list(
            session.scalars(select(Seal).where(Seal.pass_pk == owner.pk).order_by(Seal.attempt, Seal.rank_no))
        )
        ranks: list[protocol.PassRank] = [
            {
                "attempt": seal.attempt,
                "rank": seal.rank_no,
                "manifest": seal.manifest,
                "opening": seal.opening,
                "files": _files(session, seal),
            }
            for seal in seals
        ]
    return answer({**pass_out(run_id, owner, seals), "ranks": ranks})


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
