"""What every route asks for: the service, whose key it is, and rows that belong to that organization.

The first two are coroutines although they wait for nothing: FastAPI sends plain functions to a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from mld_core.service.server.json_text import loads
from mld_core.service.server.problems import ProblemError, not_found
from mld_core.service.server.service import Service
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.models import Base, Job, Pass, Result, Run
from mld_core.service.server.storage.people import seen_runs, sees
from mld_core.service.server.storage.seals import missing_blobs

T = TypeVar("T", bound=Base)
S = TypeVar("S")

_ROWS = 50
PAGE_BYTES = 1 << 20
"""A page of a list ends when it holds so much, whatever its limit."""


async def get_service(request: Request) -> Service:
    """The server's parts."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


async def get_principal(request: Request) -> Principal:
    """Whose key came; the gate has checked it."""
    found = request.scope["state"]["principal"]
    assert isinstance(found, Principal)
    return found


ServiceDep = Annotated[Service, Depends(get_service)]
PrincipalDep = Annotated[Principal, Depends(get_principal)]


class _BoundedRequest(Request):
    """A request whose JSON is read off the event loop, within bounds."""

    async def json(self) -> Any:
        """See `Request`."""
        if not hasattr(self, "_json"):
            self._json = await run_in_threadpool(bounded_json, await self.body())
        return self._json


def bounded_json(body: bytes) -> Any:
    """The value of a body.

    Raises:
        ProblemError: it is no JSON, or too much of it (422).
    """
    try:
        return loads(body)
    except ValueError as error:
        raise ProblemError(
            "invalid",
            f"the body: {error}",
            expectation="JSON as the OpenAPI document says",
            fix="correct the request; /v1/openapi.json has the form of every request",
        ) from None


class BoundedRoute(APIRoute):
    """A route that reads its body so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(_BoundedRequest(request.scope, request.receive))

        return bounded


def answer(content: Any, status: int = 200) -> Response:
    """JSON of our own making, as it is.

    What a handler returns otherwise is checked against the form in the document and turned into JSON on the
    event loop, which for a long list takes longer than to look it up.
    """
    return Response(json.dumps(content, separators=(",", ":")), status, media_type="application/json")


def shown(row: Any, kind: type[S], **more: Any) -> S:
    """What a client sees of a row: the members of a protocol class, from the row but for `more`."""
    names = [name for name in kind.__annotations__ if name not in more]
    found: Any = {**{name: getattr(row, name) for name in names}, **more}
    return found  # type: ignore[no-any-return]


def may_see(principal: Principal, model_name: str) -> None:
    """Refuse a model the principal may not see (403): it is about to be made, so there is nothing to hide."""
    if not sees(principal.models, model_name):
        raise ProblemError(
            "forbidden",
            "this model's name is none you may use",
            value=model_name,
            expectation=f"a name that fits {' or '.join(principal.models)}",
            fix="choose another name, or ask an admin: `mld keys roles NAME --models PATTERN`",
        )


def hide(service: Service, principal: Principal, digests: set[str]) -> None:
    """Answer that files are missing which are there, but are not to be seen: their bytes have to be sent."""
    hidden = service.sight.hidden(principal, digests)
    if hidden:
        raise missing_blobs(hidden, len(digests))


def own_run(session: Session, principal: Principal, run_id: str, *, lock: bool = False) -> Run:
    """A run of the organization, locked until the session's end if it is to be changed.

    Raises:
        ProblemError: there is none (404).
    """
    query = select(Run).where(Run.id == run_id, seen_runs(session, principal))
    return _one(session, Run, query.with_for_update() if lock else query, "run", run_id)


def own_pass(session: Session, run: Run, pass_id: str) -> Pass:
    """A pass of a run, which must be of the organization."""
    return _one(session, Pass, select(Pass).where(Pass.id == pass_id, Pass.run_pk == run.pk), "pass", pass_id)


def own_job(session: Session, principal: Principal, job_id: str) -> Job:
    """A job of the organization."""
    query = select(Job).join(Run, Run.pk == Job.run_pk).where(Job.id == job_id)
    return _one(session, Job, query.where(seen_runs(session, principal)), "job", job_id)


def own_result(session: Session, principal: Principal, result_id: str) -> Result:
    """A result of the organization."""
    query = select(Result).join(Run, Run.pk == Result.run_pk).where(Result.id == result_id)
    return _one(session, Result, query.where(seen_runs(session, principal)), "result", result_id)


def _one(session: Session, model: type[T], query: Any, kind: str, value: str) -> T:
    found = session.scalar(query)
    if found is None:
        raise not_found(kind, value)
    assert isinstance(found, model)
    return found


def page(
    session: Session, query: Any, model: type[T], limit: int, cursor: str | None
) -> tuple[list[T], str | None]:
    """One page of rows in the order they were made, and the cursor of the next (None: this was the last)."""
    query, limit = in_order(session, query, model, cursor), limit + 1
    rows: list[T] = list(session.scalars(query.limit(limit)))
    more = len(rows) == limit
    rows = rows[: limit - 1]
    return rows, (rows[-1].id if more else None)  # type: ignore[attr-defined]  # every listed table has ids


def page_answer(
    session: Session,
    query: Any,
    model: type[T],
    limit: int,
    cursor: str | None,
    out: Callable[[list[T]], list[Any]],
    *,
    newest: bool = False,
) -> Response:
    """One page as an answer, made a few rows at a time and ended early where it gets large."""
    items: list[str] = []
    size, after = 0, None
    last: Any = None
    ordered = in_order(session, query, model, cursor, newest=newest).limit(limit + 1)
    found = session.scalars(ordered.execution_options(yield_per=_ROWS))
    for rows in found.partitions():
        for row, item in zip(rows, out(list(rows)), strict=True):
            if len(items) == limit or size > PAGE_BYTES:
                after = last.id
                break
            items.append(json.dumps(item, separators=(",", ":")))
            size, last = size + len(items[-1]), row
        if after is not None:
            break
    found.close()
    return Response(
        f'{{"items":[{",".join(items)}],"next":{json.dumps(after)}}}', media_type="application/json"
    )


def in_order(
    session: Session, query: Any, model: type[T], cursor: str | None, *, newest: bool = False
) -> Any:
    """A query of rows in the order they were made, or the other way round, from after a cursor on."""
    columns: Any = model
    if cursor is not None:
        pk = session.scalar(query.with_only_columns(columns.pk).where(columns.id == cursor))
        if pk is None:
            raise not_found("cursor", cursor)
        query = query.where(columns.pk < pk if newest else columns.pk > pk)
    return query.order_by(columns.pk.desc() if newest else columns.pk)
