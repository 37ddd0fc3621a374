"""Evaluations that are begun from a page at the team's server: its queue, for who may see the run."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from mld_core.app.jobs.protocol import Job, JobState, Wish
from mld_core.app.problems import ProblemError
from mld_core.records.format.layout import RunKey
from mld_core.records.format.manifest import utc_now
from mld_core.service.server import problems
from mld_core.service.server.routes.forms import EvaluationForm
from mld_core.service.server.service import Service
from mld_core.service.server.storage import models
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.models import Result, Run
from mld_core.service.server.storage.people import seen_runs

MOST_LISTED = 100


class TeamJobs:
    """See `Jobs`.

    Args:
        service: Whose queue it is.
        principal: Who asks.
    """

    maps = False

    def __init__(self, service: Service, principal: Principal) -> None:
        self._service = service
        self._principal = principal

    def start(self, wish: Wish) -> Job:
        """See `Jobs`."""
        names = (Run.model_name == wish.run.model_name, Run.version_name == wish.run.version_name)
        with self._service.database.read() as session:
            run = session.scalar(select(Run).where(*names, seen_runs(session, self._principal)))
        if run is None:
            raise ProblemError(404, f"{wish.run.model_name} {wish.run.version_name} is not there any more")
        try:
            # The form of `/v1`: the same question from there and from here is one job.
            job = self._service.jobs.add(run, EvaluationForm(**wish.request()).model_dump())
        except ValidationError as error:
            raise ProblemError(400, error.errors()[0]["msg"]) from error
        except problems.ProblemError as error:
            raise ProblemError(error.status_code, str(error.detail), fix=error.body["fix"]) from error
        found = self.find(job.id)
        assert found is not None
        return found

    def listed(self) -> list[Job]:
        """See `Jobs`."""
        with self._service.database.read() as session:
            return self._found(session)

    def find(self, job_id: str) -> Job | None:
        """See `Jobs`."""
        with self._service.database.read() as session:
            return next(iter(self._found(session, models.Job.id == job_id)), None)

    def cancel(self, job_id: str) -> Job | None:
        """See `Jobs`."""
        if self.find(job_id) is None:
            return None
        with self._service.database.read() as session:
            job = session.scalars(select(models.Job).where(models.Job.id == job_id)).one()
        self._service.jobs.cancel(job)
        return self.find(job_id)

    def _found(self, session: Session, *where: Any) -> list[Job]:
        query = select(models.Job, Run.model_name, Run.version_name, Result.result_name)
        query = query.join(Run, Run.pk == models.Job.run_pk)
        query = query.outerjoin(Result, Result.pk == models.Job.result_pk)
        query = query.where(seen_runs(session, self._principal), *where).order_by(models.Job.pk.desc())
        return [_shown(*row) for row in session.execute(query.limit(MOST_LISTED))]


def _shown(job: models.Job, model: str, version: str, result: str | None) -> Job:
    waits, seconds = job.state == "queued", None
    if job.started_at is not None and not waits:
        until = datetime.fromisoformat(job.finished_at or utc_now())
        seconds = max(0.0, (until - datetime.fromisoformat(job.started_at)).total_seconds())
    stage = "ending" if job.cancel and job.state == "running" else job.stage
    return Job(
        job_id=job.id,
        run=RunKey(model, version),
        state=cast("JobState", job.state),
        stage=stage,
        progress=job.progress,
        seconds=seconds,
        result=result,
        reason=job.reason,
        rows=job.rows,
    )
