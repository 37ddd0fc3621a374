"""Routes of evaluations: begin one, see how far it is, end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from mld_core.app.asking import Evaluations, Lib, answer
from mld_core.app.jobs.protocol import Job, OfPass, Wish
from mld_core.app.library import epoch_text
from mld_core.app.problems import ProblemError


class Umap(BaseModel):
    """A pass of a result; an empty epoch is the last."""

    result: str = Field(max_length=4_000)
    split: str = Field(max_length=1_000)
    epoch: str = Field(default="", max_length=24)


class Start(BaseModel):
    """An evaluation that a page wants.

    Attributes:
        model: Model.
        version: Its version.
        like: A result of the run: the same epochs, method and options are evaluated again.
        epoch: Which epoch, where nothing is `like` it; None = the last.
        umap: The UMAP of a pass of a result instead, as the address names it: result, split, epoch.
    """

    model: str = Field(max_length=1_000)
    version: str = Field(max_length=1_000)
    like: str | None = Field(default=None, max_length=4_000)
    epoch: int | None = None
    umap: Umap | None = None


routes = APIRouter()


@routes.get("/jobs")
def listed(jobs: Evaluations) -> Response:
    """The last evaluations, newest first."""
    there = jobs.listed()
    return answer({"jobs": [_said(one, left(one, there)) for one in there]})


@routes.post("/jobs")
def start(library: Lib, jobs: Evaluations, said: Start) -> Response:
    """Begin an evaluation, or wait for its turn."""
    run = library.run(said.model, said.version)
    wish = Wish(run) if said.epoch is None else Wish(run, said.epoch)
    if said.umap:
        if not jobs.maps:
            fix = "Make it where the records are: mld map MODEL VERSION --method umap"
            raise ProblemError(400, "No maps are made at this server.", fix=fix)
        place = library.place(said.model, said.version, said.umap.result, said.umap.split, said.umap.epoch)
        name, units = place.result.result_name, place.units
        wish = Wish(run, umap=OfPass(name, units.index, units.dataset, epoch_text(units.n_epoch)))
    elif said.like:
        made = library.result(run, said.like).info
        wish = Wish(run, made.get("n_epoch"), str(made["method_name"]), dict(made.get("options") or {}))
    return answer(_said(jobs.start(wish)))


@routes.get("/jobs/{job_id}")
def one(jobs: Evaluations, job_id: str) -> Response:
    """How far an evaluation is."""
    return _answer(jobs.find(job_id))


@routes.delete("/jobs/{job_id}")
def cancel(jobs: Evaluations, job_id: str) -> Response:
    """End an evaluation; one that has ended stays as it is."""
    return _answer(jobs.cancel(job_id))


def _answer(job: Job | None) -> Response:
    if job is None:
        raise ProblemError(404, "There is no such evaluation.")
    return answer(_said(job))


def left(job: Job, others: Sequence[Job]) -> float | None:
    """Seconds that an evaluation will take on, as far as others that are done tell of it; None = not known.

    The last of the same run counts, by its seconds for a row; what takes longer has no end in sight.

    Args:
        job: The evaluation.
        others: Those that are remembered, newest first.
    """
    same = [one for one in others if (one.run, one.kind) == (job.run, job.kind)]
    done = (one for one in same if one.state == "done" and one.seconds)
    before = next(done, None)
    if job.state != "running" or job.seconds is None or before is None or before.seconds is None:
        return None
    ratio = job.rows / before.rows if job.rows and before.rows else 1.0
    rest = ratio * before.seconds - job.seconds
    return round(rest, 1) if rest > 0 else None


def _said(job: Job, seconds_left: float | None = None) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "model": job.run.model_name,
        "version": job.run.version_name,
        "state": job.state,
        "stage": job.stage,
        "progress": job.progress,
        "seconds": None if job.seconds is None else round(job.seconds, 1),
        "result": job.result,
        "reason": job.reason,
        "rows": job.rows,
        "kind": job.kind,
        "umap": {name: getattr(job.umap, name) for name in ("result", "split", "epoch")}
        if job.umap
        else None,
        "left": seconds_left,
    }
