"""Errors as problem+json: one exception, and what the application does with those that are not ours."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from mld_core.records.format.manifest import plain
from mld_core.service.protocol import PROBLEM_JSON, PROBLEM_TYPE, PROBLEMS

log = logging.getLogger("mld.server")

_TITLES = {status: name for name, status in reversed(list(PROBLEMS.items()))}
_MAX_VALUE = 200


class ProblemError(HTTPException):
    """An answer of 400 or above.

    Args:
        name: one of `protocol.PROBLEMS`.
        detail: what is wrong, in one sentence.
        value: what came.
        expectation: what was expected.
        fix: what to do.
        retry_after: seconds for the `Retry-After` header.
        headers: further headers.
        members: further members of the body (`offset`, `missing`, ...).
    """

    def __init__(
        self,
        name: str,
        detail: str,
        *,
        value: Any = None,
        expectation: str = "",
        fix: str = "",
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        more = dict(headers or {})
        if retry_after is not None:
            more["Retry-After"] = str(max(1, round(retry_after)))
        super().__init__(PROBLEMS[name], detail, more)
        self.name = name
        self.body = {
            "type": PROBLEM_TYPE + name,
            "title": name.replace("-", " "),
            "status": self.status_code,
            "detail": detail,
            "value": _short(value),
            "expectation": expectation,
            "fix": fix,
            **members,
        }

    def response(self, request_id: str) -> Response:
        """The answer."""
        body = json.dumps(plain({**self.body, "request_id": request_id}))
        return Response(body, self.status_code, self.headers, PROBLEM_JSON)


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _MAX_VALUE else value[:_MAX_VALUE] + "…"
    return value if value is None or isinstance(value, bool | int | float) else _short(repr(value))


def not_found(kind: str, value: str) -> ProblemError:
    """What is not there, or belongs to somebody else: the two look alike."""
    return ProblemError(
        "not-found",
        f"there is no {kind} {_short(value)!r} in this organization",
        value=value,
        expectation=f"the id of a {kind} of the key's organization",
        fix="list what is there, or use a key of the organization that owns it",
    )


def database_problem(error: BaseException) -> ProblemError:
    """The answer where the database failed."""
    text = str(getattr(error, "orig", error))
    if "disk is full" in text or "No space left" in text:
        return ProblemError(
            "storage-full",
            "the server's disk is full",
            expectation="free space for the database",
            fix="free space on the server, then send the request again",
            retry_after=30,
        )
    return ProblemError(
        "unavailable",
        "the server cannot reach its database",
        expectation="a database that answers",
        fix="send the request again in a moment; if it stays, look at the server's log",
        retry_after=1,
    )


def is_outage(error: BaseException) -> bool:
    """Whether the database, not the statement, is at fault."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.OperationalError):
        return True
    return error.connection_invalidated or type(error).__name__ in {"OperationalError", "InterfaceError"}


def request_id_of(request: Request) -> str:
    """The id the gate gave the request."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def install(app: FastAPI) -> None:
    """Make every error of the application a problem."""

    async def problem(request: Request, error: Exception) -> Response:
        if not isinstance(error, ProblemError):
            error = translate(error)
        return error.response(request_id_of(request))

    for kind in (HTTPException, RequestValidationError, DBAPIError, PoolTimeoutError, Exception):
        app.add_exception_handler(kind, problem)


def translate(error: BaseException) -> ProblemError:
    """The problem for an exception that is not one of ours."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, RequestValidationError):
        return _validation(error)
    if isinstance(error, HTTPException):
        name = _TITLES.get(error.status_code, "bad-request")
        return ProblemError(
            name,
            str(error.detail),
            expectation="a request as the OpenAPI document says",
            fix="see /v1/openapi.json",
            headers=error.headers,
        )
    if isinstance(error, ClientDisconnect):  # nobody reads this answer
        return ProblemError("bad-request", "the client went away", fix="send the request again")
    if is_outage(error):
        log.warning("the database failed", extra={"error": type(error).__name__})
        return database_problem(error)
    log.error("unexpected error", exc_info=error)
    return ProblemError(
        "internal",
        "the server failed on this request",
        expectation="none: this is a fault of the server",
        fix="send it again; if it stays, give the request id to whoever runs the server",
    )


def _validation(error: RequestValidationError) -> ProblemError:
    found: list[dict[str, Any]] = [dict(one) for one in error.errors()]
    first = found[0] if found else {}
    where = ".".join(str(part) for part in first.get("loc") or ())
    return ProblemError(
        "invalid",
        f"{where}: {first.get('msg', 'not valid')}",
        value=first.get("input") if isinstance(first.get("input"), str | int | float) else None,
        expectation=str(first.get("msg", "")),
        fix=f"correct {where or 'the request'}; /v1/openapi.json has the form of every request",
    )
