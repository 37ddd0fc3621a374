"""Errors as problem+json: one sentence, and the command that helps where there is one."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mld_core.evaluation.errors import FilterError, NotFoundError
from mld_core.records.format.parts import DamagedPartError

log = logging.getLogger("mld.app")

TITLES = {
    400: "bad request",
    401: "no session",
    403: "forbidden",
    404: "not found",
    405: "method not allowed",
    409: "conflict",
    413: "too large",
    415: "unsupported media type",
    429: "too many requests",
    500: "failed",
    503: "unreadable",
}


class ProblemError(HTTPException):
    """An answer of 400 or above.

    Args:
        status: The HTTP status.
        detail: What is wrong, in one sentence.
        fix: What to do.
        command: A command that helps, to copy.
    """

    def __init__(self, status: int, detail: str, *, fix: str = "", command: str | None = None) -> None:
        super().__init__(status, detail)
        self.fix = fix
        self.command = command


def problem(
    status: int, detail: str, *, fix: str = "", command: str | None = None, sign_in: bool = False
) -> Response:
    """The answer; `sign_in`: the page asks for a key."""
    title = TITLES.get(status, "failed")
    body: dict[str, Any] = {
        "type": f"about:blank#{title.replace(' ', '-')}",
        "title": title,
        "status": status,
        "detail": detail,
        "fix": fix,
        "command": command,
        **({"sign_in": True} if sign_in else {}),
    }
    text = json.dumps(body).encode("utf-8")  # lone surrogates of a hostile name are escaped
    return Response(text, status, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Let every error of the app leave as a problem."""

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        fix, command = getattr(error, "fix", ""), getattr(error, "command", None)
        return problem(error.status_code, str(error.detail), fix=fix, command=command)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = " ".join(str(part) for part in first["loc"] if part != "body") or "the body"
        return problem(400, f"{where}: {first['msg']}")

    @app.exception_handler(FilterError)
    async def misread(_: Request, error: FilterError) -> Response:
        return problem(400, str(error))

    @app.exception_handler(NotFoundError)
    async def missing(_: Request, error: NotFoundError) -> Response:
        return problem(404, str(error))

    @app.exception_handler(DamagedPartError)
    async def damaged(_: Request, error: DamagedPartError) -> Response:
        return problem(503, str(error), fix="`mld doctor` lists what is damaged", command="mld doctor")

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        log.error("the page's question failed", exc_info=error)
        return problem(500, f"{type(error).__name__}: {error}"[:500], fix="the server's terminal says more")
