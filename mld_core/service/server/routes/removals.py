"""Removing: runs, passes, results, samples."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import select

from mld_core.service.server.jobs.materialise import parse_epoch
from mld_core.service.server.problems import ProblemError
from mld_core.service.server.routes import forms
from mld_core.service.server.routes.deps import BoundedRoute, PrincipalDep, ServiceDep, own_run, page
from mld_core.service.server.storage.models import Removal
from mld_core.service.server.storage.removals import Wanted

router = APIRouter(prefix="/v1", tags=["removals"], route_class=BoundedRoute)


@router.post("/runs/{run_id}/removals")
def remove(
    run_id: forms.RunId, form: forms.RemovalForm, service: ServiceDep, principal: PrincipalDep
) -> dict[str, Any]:
    """Remove a run, or what of it is named; nobody sees it any more, and its bytes go within seconds.

    The answer: sample rows, files, their bytes, names of results. Rows of samples are counted in a dry run
    only: without it, the answer does not wait for that.
    """
    named = sum(map(bool, (form.epochs, form.input_ids, form.results)))
    if named > 1 or (form.results and form.dataset_type is not None):
        raise ProblemError(
            "invalid",
            "more than one kind of thing is named",
            expectation="epochs, input_ids or results, one of them",
            fix="send a request for each",
        )
    epochs = tuple("none" if one is None else str(one) for one in form.epochs) or None
    wanted = Wanted(form.dataset_type, epochs, tuple(form.input_ids), tuple(form.results))
    with service.database.read() as session:
        run = own_run(session, principal, run_id)
    work = service.remover.find if form.dry_run else service.remover.remove
    found = work(principal.organization_id, run, wanted)
    return {
        "rows": found.rows,
        "files": found.files,
        "bytes": found.bytes,
        "results": list(found.results),
        "dry_run": form.dry_run,
    }


@router.get("/removals", response_model=dict[str, Any])
def list_removals(
    service: ServiceDep,
    principal: PrincipalDep,
    limit: forms.Limit = forms.PAGE,
    cursor: forms.Cursor = None,
) -> dict[str, Any]:
    """What was removed, oldest first; `pending`: files and ranks whose bytes are still to go."""
    query = select(Removal).where(Removal.organization_pk == principal.organization_pk)
    with service.database.read() as session:
        rows, after = page(session, query, Removal, limit, cursor)
    items = [_shown(row) for row in rows]
    return {"items": items, "next": after, "pending": service.sweeper.pending(principal.organization_pk)}


def _shown(row: Removal) -> dict[str, Any]:
    return {
        "removal_id": row.id,
        "model_name": row.model_name,
        "version_name": row.version_name,
        "dataset_type": row.dataset_type,
        "n_epoch": "all" if row.epoch is None else parse_epoch(row.epoch),
        "input_digest": row.input,
        "created_at": row.created_at,
    }
