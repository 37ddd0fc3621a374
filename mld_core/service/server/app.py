"""The application: routes, errors, the document, and the gate in front of all of it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from mld_core import __version__
from mld_core.service.protocol import PROBLEM_JSON, PROTOCOL, ROUTES, Problem
from mld_core.service.server import problems
from mld_core.service.server.gate import Gate
from mld_core.service.server.routes import admin, blobs, jobs, removals, runs, system, verdicts
from mld_core.service.server.routes.forms import SealForm
from mld_core.service.server.service import Service

_THREADS = 64
_DESCRIPTION = (
    "A team's store of training records. Errors are problem+json: the value, the expectation and the fix. "
    "The docstring of mld_core/service/protocol.py describes uploads and seals step by step."
)


def create_app(service: Service | None) -> FastAPI:
    """The application on a service; None builds one that only knows its document."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        assert service is not None
        service.start()
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(service.stop)

    app = FastAPI(
        title="ml_debugger service",
        version=PROTOCOL,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    for module in (system, runs, verdicts, blobs, jobs, admin, removals):
        app.include_router(module.router)
    problems.install(app)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    if service is not None:
        app.add_middleware(Gate, service=service, pages=_Pages(service))
    return app


class _Pages:
    """The pages; what they need is imported when the first of them is asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._made: ASGIApp | None = None
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        if self._made is None:
            await run_in_threadpool(self._make)
        assert self._made is not None
        await self._made(scope, receive, send)

    def _make(self) -> None:
        from mld_core.app.pages import make_app  # noqa: PLC0415  brings DuckDB with it
        from mld_core.service.server.pages.desk import Desk  # noqa: PLC0415
        from mld_core.service.server.pages.sign_in import TeamSignIn  # noqa: PLC0415

        with self._lock:
            if self._made is None:
                desk = Desk(self._service)
                self._service.tidied.append(desk.tidy)
                sign_in, ending = TeamSignIn(self._service), self._service.ending
                self._made = make_app(desk.shown, sign_in, hosts=None, ending=ending)


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the key, the scopes and the problems in it."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=PROTOCOL,
            description=_DESCRIPTION,
            routes=app.routes,
            openapi_version="3.1.0",
        )
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        problem = TypeAdapter(Problem).json_schema()
        schemas["Problem"] = {**problem, "required": ["type", "title", "status", "detail"]}
        schemas["SealForm"] = SealForm.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        answer = {
            "description": "A problem",
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for route in ROUTES:
            operation = made["paths"][route.path][route.method.lower()]
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = answer
            operation["summary"] = route.summary
            operation["operationId"] = f"{route.method} {route.path}"
            if route.scope is not None:
                operation["security"] = [{"key": []}]
                operation["x-mld-scopes"] = list(route.scopes)
                operation["x-mld-root-only"] = route.root_only
        made["info"]["x-mld-release"] = __version__
        app.openapi_schema = made
    return app.openapi_schema
