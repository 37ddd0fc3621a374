"""Evaluations and their results."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from mld_core.service import protocol
from mld_core.service.server.routes import forms
from mld_core.service.server.routes.deps import (
    BoundedRoute,
    PrincipalDep,
    ServiceDep,
    answer,
    own_job,
    own_result,
    own_run,
    page_answer,
    shown,
)
from mld_core.service.server.storage.models import Blob, Job, Result, ResultFile, Run
from mld_core.service.server.storage.people import seen_runs

router = APIRouter(prefix="/v1", tags=["evaluations"], route_class=BoundedRoute)


def job_out(session: Session, job: Job) -> protocol.Job:
    """What a client sees of a job."""
    run_id = session.scalars(select(Run.id).where(Run.pk == job.run_pk)).one()
    result_id = session.scalar(select(Result.id).where(Result.pk == job.result_pk))
    return shown(job, protocol.Job, job_id=job.id, run_id=run_id, result_id=result_id)


def result_out(run_id: str, result: Result) -> protocol.ResultInfo:
    """What a client sees of a result."""
    info = result.info
    return {
        "result_id": result.id,
        "run_id": run_id,
        "result_name": result.result_name,
        "method_name": str(info.get("method_name", "")),
        "n_epoch": info.get("n_epoch"),
        "options": dict(info.get("options") or {}),
        "created_at": str(info.get("created_at", result.created_at)),
        "completed_at": str(info.get("completed_at", result.created_at)),
        "info": info,
    }


@router.post("/runs/{run_id}/evaluations", status_code=202)
def create_evaluation(
    run_id: forms.RunId, form: forms.EvaluationForm, service: ServiceDep, principal: PrincipalDep
) -> protocol.Job:
    """Queue an evaluation of what was sealed so far."""
    with service.database.read() as session:
        run = own_run(session, principal, run_id)
    job = service.jobs.add(run, form.model_dump())
    with service.database.read() as session:
        return job_out(session, job)


@router.get("/jobs", response_model=dict[str, Any])
def list_jobs(
    service: ServiceDep,
    principal: PrincipalDep,
    run_id: Annotated[str | None, Query(pattern=r"^run_[0-9a-f]{24}$")] = None,
    state: protocol.JobState | None = None,
    limit: forms.Limit = forms.PAGE,
    cursor: forms.Cursor = None,
) -> Response:
    """The organization's evaluations, newest first."""
    query = select(Job).join(Run, Run.pk == Job.run_pk)
    if run_id is not None:
        query = query.where(Run.id == run_id)
    if state is not None:
        query = query.where(Job.state == state)
    with service.database.read() as session:
        return page_answer(
            session,
            query.where(seen_runs(session, principal)),
            Job,
            limit,
            cursor,
            lambda jobs: [job_out(session, job) for job in jobs],
            newest=True,
        )


@router.get("/jobs/{job_id}")
def get_job(job_id: forms.JobId, service: ServiceDep, principal: PrincipalDep) -> protocol.Job:
    """How far an evaluation is."""
    with service.database.read() as session:
        return job_out(session, own_job(session, principal, job_id))


@router.delete("/jobs/{job_id}")
def cancel_job(job_id: forms.JobId, service: ServiceDep, principal: PrincipalDep) -> protocol.Job:
    """Cancel an evaluation; one that is finished stays as it is."""
    with service.database.read() as session:
        job = own_job(session, principal, job_id)
    service.jobs.cancel(job)
    with service.database.read() as session:
        return job_out(session, own_job(session, principal, job_id))


@router.get("/runs/{run_id}/results", response_model=dict[str, Any])
def list_results(
    run_id: forms.RunId,
    service: ServiceDep,
    principal: PrincipalDep,
    result_name: forms.NameFilter = None,
    limit: forms.Limit = forms.PAGE,
    cursor: forms.Cursor = None,
) -> Response:
    """The results of a run, oldest first."""
    with service.database.read() as session:
        query = select(Result).where(Result.run_pk == own_run(session, principal, run_id).pk)
        if result_name is not None:
            query = query.where(Result.result_name == result_name)
        return page_answer(
            session, query, Result, limit, cursor, lambda rows: [result_out(run_id, row) for row in rows]
        )


@router.get("/results", response_model=dict[str, Any])
def find_results(
    service: ServiceDep,
    principal: PrincipalDep,
    result_name: forms.NameFilter = None,
    limit: forms.Limit = forms.PAGE,
    cursor: forms.Cursor = None,
) -> Response:
    """The organization's results, newest first."""
    query = select(Result).join(Run, Run.pk == Result.run_pk)
    if result_name is not None:
        query = query.where(Result.result_name == result_name)
    with service.database.read() as session:

        def out(rows: list[Result]) -> list[protocol.ResultInfo]:
            return [result_out(session.get_one(Run, row.run_pk).id, row) for row in rows]

        query = query.where(seen_runs(session, principal))
        return page_answer(session, query, Result, limit, cursor, out, newest=True)


@router.get("/results/{result_id}", response_model=protocol.ResultInfo)
def get_result(result_id: forms.ResultId, service: ServiceDep, principal: PrincipalDep) -> Response:
    """One result."""
    with service.database.read() as session:
        result = own_result(session, principal, result_id)
        run_id = session.scalars(select(Run.id).where(Run.pk == result.run_pk)).one()
    return answer(result_out(run_id, result))


@router.get("/results/{result_id}/files")
def get_result_files(
    result_id: forms.ResultId, service: ServiceDep, principal: PrincipalDep
) -> dict[str, Any]:
    """The files of a result's folder; each is a blob."""
    with service.database.read() as session:
        result = own_result(session, principal, result_id)
        query = (
            select(ResultFile.name, Blob.sha256, Blob.size)
            .join(Blob, Blob.pk == ResultFile.blob_pk)
            .where(ResultFile.result_pk == result.pk)
            .order_by(ResultFile.name)
        )
        files: list[protocol.ResultFile] = [
            {"name": name, "sha256": sha256, "bytes": size} for name, sha256, size in session.execute(query)
        ]
    return {"items": files, "next": None}
