"""The queue of evaluations, in the database.

Organizations take turns: a worker claims the oldest queued job of the one whose last job was begun longest
ago, by setting its state, and keeps a lease on it by setting `lease_until` again and again, by the database's
clock. A job whose lease ran out is queued once more; the second time it fails, with the reason. What a worker
writes about a job counts only while it holds the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from mld_core import __version__
from mld_core.records.format.manifest import utc_now
from mld_core.service.server.problems import ProblemError
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import (
    Job,
    Organization,
    Pass,
    Removal,
    Result,
    Run,
    SaidVerdict,
    Seal,
    new_id,
)
from mld_core.service.server.storage.removals import of_run

MAX_ATTEMPTS = 2
_ACTIVE = ("queued", "running")
_LOOK_BACK = 50


@dataclass(frozen=True)
class Claim:
    """A job in a worker's hands, with what it needs to know."""

    job_pk: int
    job_id: str
    run_pk: int
    organization_pk: int
    organization_id: str
    model_name: str
    version_name: str
    info: dict[str, Any]
    request: dict[str, Any]
    attempts: int


def name_taken(name: str) -> ProblemError:
    """The answer where a result of that name exists or is on its way."""
    return ProblemError(
        "name-taken",
        f"result {name!r} exists, or is being made, and results are never changed",
        value=name,
        expectation="a free result_name",
        fix="pass another result_name, or none (one is made)",
    )


def _held(claim: Claim, worker: str) -> tuple[Any, ...]:
    """What is true of a job for as long as it is this worker's."""
    ours = (Job.pk == claim.job_pk, Job.state == "running", Job.worker == worker)
    return (*ours, Job.attempts == claim.attempts)


class Jobs:
    """Queue, claim, report, cancel."""

    def __init__(self, database: Database, lease_seconds: float, most: int = 100) -> None:
        self._database = database
        self._lease = lease_seconds
        self._most = most

    def add(self, run: Run, request: Mapping[str, Any]) -> Job:
        """Queue an evaluation; one that asks for the same of the same records is answered with that job.

        Raises:
            ProblemError: the result's name is taken, or the organization has too many on their way.
        """
        name = request.get("result_name")
        request = {**request, "release": __version__}  # another release may find something else
        with self._database.write() as session:
            if name is None:
                same = self._same(session, run, request)
                if same is not None:
                    return same
            else:
                taken = session.scalar(
                    select(Result.pk).where(Result.run_pk == run.pk, Result.result_name == name)
                )
                waiting = session.scalars(select(Job).where(Job.run_pk == run.pk, Job.state.in_(_ACTIVE)))
                if taken is not None or any(job.request.get("result_name") == name for job in waiting):
                    raise name_taken(str(name))
            self._check_count(session, run.organization_pk)
            fresh = {"state": "queued", "progress": 0.0, "stage": "", "attempts": 0, "cancel": False}
            names = {"id": new_id("job"), "run_pk": run.pk, "created_at": utc_now()}
            job = Job(**names, request=dict(request), **fresh)
            session.add(job)
        return job

    @staticmethod
    def _same(session: Session, run: Run, request: Mapping[str, Any]) -> Job | None:
        """A job that asks for this very thing, if nothing was sealed, removed or reviewed since."""
        sealed = select(func.max(Seal.created_at)).join(Pass, Pass.pk == Seal.pass_pk)
        newest = session.scalar(sealed.where(Pass.run_pk == run.pk)) or ""
        newest = max(newest, session.scalar(select(func.max(Removal.created_at)).where(*of_run(run))) or "")
        said = select(func.max(SaidVerdict.created_at)).where(SaidVerdict.run_pk == run.pk)
        newest = max(newest, session.scalar(said) or "")
        since = (Job.run_pk == run.pk, Job.created_at > newest, Job.cancel.is_(False))
        ready = Job.state.in_(_ACTIVE) | (Job.state == "done") & Job.result_pk.is_not(None)
        found = session.scalars(select(Job).where(*since, ready).order_by(Job.pk.desc()).limit(_LOOK_BACK))
        return next((job for job in found if job.request == request), None)

    def _check_count(self, session: Session, organization_pk: int) -> None:
        of_organization = (Run.organization_pk == organization_pk, Job.state.in_(_ACTIVE))
        active = session.scalar(select(func.count()).select_from(Job).join(Run).where(*of_organization)) or 0
        if active >= self._most:
            raise ProblemError(
                "too-many-requests",
                f"the organization has {active} evaluations on their way",
                value=active,
                expectation=f"at most {self._most}",
                fix="wait until some are done, or cancel some: `mld jobs list`, `mld jobs cancel`",
                retry_after=30,
            )

    def claim(self, worker: str) -> Claim | None:
        """Take the oldest queued job of the organization whose turn it is; None if there is none."""
        turn = (
            select(func.min(Job.pk))
            .join(Run, Run.pk == Job.run_pk)
            .join(Organization, Organization.pk == Run.organization_pk)
            .where(Job.state == "queued")
            .group_by(Organization.pk, Organization.last_job_at)
            .order_by(func.coalesce(Organization.last_job_at, ""))
        )
        with self._database.read() as session:
            candidates = [pk for pk in session.scalars(turn.limit(5)) if pk is not None]
        for pk in candidates:
            with self._database.write() as session:
                taken = session.execute(
                    update(Job)
                    .where(Job.pk == pk, Job.state == "queued")
                    .values(
                        state="running",
                        worker=worker,
                        attempts=Job.attempts + 1,
                        lease_until=self._database.now + self._lease,
                        started_at=utc_now(),
                        progress=0.0,
                        stage="starting",
                    )
                )
                if taken.rowcount == 1:  # type: ignore[attr-defined]
                    return self._claimed(session, pk)
        return None

    @staticmethod
    def _claimed(session: Session, pk: int) -> Claim:
        job, run, organization = session.execute(
            select(Job, Run, Organization)
            .join(Run, Run.pk == Job.run_pk)
            .join(Organization, Organization.pk == Run.organization_pk)
            .where(Job.pk == pk)
        ).one()
        organization.last_job_at = utc_now()
        return Claim(
            job_pk=pk,
            job_id=job.id,
            run_pk=run.pk,
            organization_pk=organization.pk,
            organization_id=organization.id,
            model_name=run.model_name,
            version_name=run.version_name,
            info=run.whole_info,
            request=dict(job.request),
            attempts=job.attempts,
        )

    def counted(self, claim: Claim, worker: str, rows: int | None) -> None:
        """Note how many sample rows the evaluation looks at."""
        with self._database.write() as session:
            session.execute(update(Job).where(*_held(claim, worker)).values(rows=rows))

    def beat(self, claim: Claim, worker: str, stage: str, progress: float) -> bool:
        """Keep the lease and tell how far it is; False if the job was cancelled or taken away."""
        with self._database.write() as session:
            kept = session.execute(
                update(Job)
                .where(*_held(claim, worker), Job.cancel.is_(False))
                .values(lease_until=self._database.now + self._lease, stage=stage[:200], progress=progress)
            )
        return bool(kept.rowcount == 1)  # type: ignore[attr-defined]

    def end(
        self,
        session: Session,
        claim: Claim,
        worker: str,
        state: str,
        result_pk: int | None = None,
        **more: Any,
    ) -> bool:
        """Finish a job in a session of the caller's.

        False if it is no longer this worker's, or would be done although somebody cancelled it: whoever was
        told that it is cancelled must not find its result afterwards.
        """
        values: dict[str, Any] = {"state": state, "finished_at": utc_now(), "lease_until": None}
        values["result_pk"] = result_pk
        if state == "done":
            values |= {"progress": 1.0, "stage": "done"}
        elif state == "queued":
            values |= {"worker": None, "stage": "queued again"}
        values |= more
        ours = [*_held(claim, worker)]
        if state == "done":
            ours.append(Job.cancel.is_(False))
        ended = session.execute(update(Job).where(*ours).values(**values))
        return bool(ended.rowcount == 1)  # type: ignore[attr-defined]

    def fail(self, claim: Claim, worker: str, reason: str, error: str | None = None) -> None:
        """The evaluation said no: final."""
        with self._database.write() as session:
            self.end(session, claim, worker, "failed", reason=reason, error=error)

    def died(self, claim: Claim, worker: str, reason: str) -> None:
        """The evaluation's process died: once more, then final."""
        if claim.attempts >= MAX_ATTEMPTS:
            self.fail(claim, worker, f"{reason} ({claim.attempts} attempts)", "WorkerDied")
            return
        with self._database.write() as session:
            self.end(session, claim, worker, "queued", finished_at=None)

    def give_back(self, claim: Claim, worker: str, stage: str = "queued again") -> None:
        """The worker can not run it now: queue the job again without counting the attempt."""
        with self._database.write() as session:
            again: dict[str, Any] = {"finished_at": None, "attempts": claim.attempts - 1, "stage": stage}
            self.end(session, claim, worker, "queued", **again)

    def cancelled(self, claim: Claim, worker: str) -> None:
        """The evaluation was stopped because somebody asked for it."""
        with self._database.write() as session:
            self.end(session, claim, worker, "cancelled", reason="cancelled on request")

    def cancel(self, job: Job) -> None:
        """Ask for a job's end: at once if it is queued, soon if it is running."""
        with self._database.write() as session:
            session.execute(
                update(Job)
                .where(Job.pk == job.pk, Job.state == "queued")
                .values(state="cancelled", reason="cancelled on request", finished_at=utc_now(), cancel=True)
            )
            session.execute(update(Job).where(Job.pk == job.pk, Job.state == "running").values(cancel=True))

    def reap(self) -> int:
        """Queue the jobs of dead workers once more, or fail them; return how many there were."""
        late = (Job.state == "running", Job.lease_until < self._database.now)
        with self._database.read() as session:
            if session.scalar(select(func.count()).select_from(Job).where(*late)) == 0:
                return 0
        with self._database.write() as session:
            cancelled = session.execute(
                update(Job)
                .where(*late, Job.cancel.is_(True))
                .values(state="cancelled", reason="cancelled on request", finished_at=utc_now())
            )
            failed = session.execute(
                update(Job)
                .where(*late, Job.attempts >= MAX_ATTEMPTS)
                .values(
                    state="failed",
                    reason=f"the worker died while it ran this ({MAX_ATTEMPTS} attempts)",
                    error="WorkerDied",
                    finished_at=utc_now(),
                )
            )
            again = session.execute(update(Job).where(*late).values(state="queued", worker=None))
        return int(cancelled.rowcount + failed.rowcount + again.rowcount)  # type: ignore[attr-defined]

    def counts(self) -> dict[str, int]:
        """Number of jobs in each state."""
        with self._database.read() as session:
            rows = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
        return {str(state): int(count) for state, count in rows}
