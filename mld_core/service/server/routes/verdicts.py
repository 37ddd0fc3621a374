"""Verdicts of a run: an append-only list that every member of the team adds to and reads."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from mld_core.records.format.manifest import plain, utc_now
from mld_core.records.store.verdict import BOX_KINDS, KINDS, TRUE_BOX_KINDS, UNDO, Verdict, as_members
from mld_core.service import protocol
from mld_core.service.server.problems import ProblemError
from mld_core.service.server.routes import forms
from mld_core.service.server.routes.deps import (
    BoundedRoute,
    PrincipalDep,
    ServiceDep,
    own_run,
    page_answer,
)
from mld_core.service.server.service import Service
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.models import SaidVerdict, new_id
from mld_core.service.server.storage.removals import is_about, samples_of

MOST_OF_A_RUN = 1_000_000
_INT = 1 << 31

router = APIRouter(prefix="/v1", tags=["review"], route_class=BoundedRoute)

Text = Annotated[str, Field(max_length=4000), AfterValidator(forms.storable)]
Number = Annotated[int, Field(ge=0, lt=_INT)]
Coordinate = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Box = Annotated[list[Coordinate], Field(min_length=4, max_length=9)]
Token = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class VerdictForm(forms.Form):
    """One person's word on a sample or a true box, as `mld_core.records.store.verdict.Verdict`."""

    kind: Annotated[
        str, Field(pattern=f"^({'|'.join(dict.fromkeys((*KINDS, *BOX_KINDS, *TRUE_BOX_KINDS, UNDO)))})$")
    ]
    dataset_type: forms.Name
    input_id: Text
    truth: Number | None = None
    label: Number | None = None
    given: Annotated[int, Field(ge=-_INT, lt=_INT)] | None = None
    input_hash: Annotated[str, Field(max_length=200), AfterValidator(forms.storable)] | None = None
    note: Text = ""
    result_name: forms.ResultName | None = None
    author: forms.Name
    at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT[\d:.]{8,20}\+00:00$")]
    verdict_id: Token
    undoes: Token | None = None
    box: Box | None = None
    right: Box | None = None
    seen: Box | None = None


class VerdictsForm(forms.Form):
    """Verdicts to add; those that are there are left as they are."""

    verdicts: Annotated[list[VerdictForm], Field(min_length=1, max_length=protocol.MAX_PAGE)]


@router.post("/runs/{run_id}/verdicts", status_code=201)
def add_verdicts(
    run_id: forms.RunId, form: VerdictsForm, service: ServiceDep, principal: PrincipalDep
) -> protocol.VerdictsKept:
    """Add what people said of a run's samples; what is there stays, under its `verdict_id`."""
    return keep_verdicts(service, principal, run_id, [_checked(one) for one in form.verdicts])


def keep_verdicts(
    service: Service, principal: Principal, run_id: str, said: list[dict[str, Any]]
) -> protocol.VerdictsKept:
    """Add verdicts, as `as_members` gives them.

    Raises:
        ProblemError: no such run to be seen, or too many verdicts.
    """
    try:
        return _add(service, principal, run_id, said)
    except IntegrityError:  # somebody added the same a moment ago
        return _add(service, principal, run_id, said)


def _checked(one: VerdictForm) -> dict[str, Any]:
    try:
        return as_members(Verdict(**one.model_dump()))
    except ValueError as error:
        raise ProblemError("invalid", str(error), value=one.verdict_id) from error


def _add(
    service: Service, principal: Principal, run_id: str, said: list[dict[str, Any]]
) -> protocol.VerdictsKept:
    with service.database.write() as session:
        run = own_run(session, principal, run_id)
        ids = {str(one["verdict_id"]): one for one in said}
        query = select(SaidVerdict.verdict_id).where(
            SaidVerdict.run_pk == run.pk, SaidVerdict.verdict_id.in_(ids)
        )
        there = set(session.scalars(query))
        gone = samples_of(session, run)
        new = [one for name, one in ids.items() if name not in there and not is_about(one, gone)]
        count = select(func.count()).select_from(SaidVerdict).where(SaidVerdict.run_pk == run.pk)
        if new and int(session.scalar(count) or 0) + len(new) > MOST_OF_A_RUN:
            raise ProblemError("too-large", f"a run holds at most {MOST_OF_A_RUN:,} verdicts")
        session.add_all(
            SaidVerdict(
                id=new_id("verdict"),
                run_pk=run.pk,
                verdict_id=one["verdict_id"],
                said=plain(one),
                created_at=utc_now(),
            )
            for one in new
        )
    return {"added": len(new), "there": len(there)}


@router.get("/runs/{run_id}/verdicts", response_model=dict[str, Any])
def list_verdicts(
    run_id: forms.RunId,
    service: ServiceDep,
    principal: PrincipalDep,
    limit: forms.Limit = forms.PAGE,
    cursor: forms.Cursor = None,
) -> Response:
    """What people said of a run's samples, in the order in which it came."""
    with service.database.read() as session:
        run = own_run(session, principal, run_id)
        query = select(SaidVerdict).where(SaidVerdict.run_pk == run.pk)

        def out(rows: list[SaidVerdict]) -> list[Any]:
            return [row.said for row in rows]

        return page_answer(session, query, SaidVerdict, limit, cursor, out)
