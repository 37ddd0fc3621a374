"""Health, metrics, the interface's document, and whose key this is."""

from __future__ import annotations

import shutil
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from mld_core import __version__
from mld_core.service.protocol import PROTOCOL, SCOPES, Role, Whoami
from mld_core.service.server.routes.deps import PrincipalDep, ServiceDep
from mld_core.service.server.settings import MIB

router = APIRouter()


@router.get("/healthz", tags=["system"])
def healthz(service: ServiceDep) -> JSONResponse:
    """Whether database and storage work and take what is written: 200, or 503 and which does not."""
    parts = service.health()
    good = all(parts.values())
    return JSONResponse({"status": "ok" if good else "failing", **parts}, 200 if good else 503)


@router.get("/metrics", tags=["system"], response_class=PlainTextResponse)
def metrics(service: ServiceDep) -> Response:
    """Prometheus metrics of this server; for keys of the root organization."""
    found = service.metrics
    found.uploads_open.set(service.uploads.open_now)
    found.checks_waiting.set(service.checks.waiting)
    found.free.set(shutil.disk_usage(service.settings.data).free)
    counts = service.jobs.counts()
    for state in ("queued", "running", "done", "failed", "cancelled"):
        found.jobs.labels(state).set(counts.get(state, 0))
    return Response(found.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/openapi.json", tags=["system"])
def openapi(request: Request) -> dict[str, Any]:
    """This interface as an OpenAPI document."""
    found: dict[str, Any] = request.app.openapi()
    return found


@router.get("/v1/whoami", tags=["system"])
async def whoami(service: ServiceDep, principal: PrincipalDep) -> Whoami:
    """Whose key this is, what it may do, and what the server takes."""
    return {
        "organization": principal.organization,
        "organization_id": principal.organization_id,
        "key_id": principal.key_id,
        "key_name": principal.key_name,
        "scopes": [scope for scope in SCOPES if scope in principal.scopes],
        "expires_at": principal.expires_at,
        "person": principal.person,
        "role": cast("Role | None", principal.role),
        "models": list(principal.models),
        "server_version": __version__,
        "protocol": PROTOCOL,
        "max_blob_bytes": service.settings.max_blob_mb * MIB,
    }
