"""Uploads and downloads of blobs."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from mld_core.service.protocol import (
    DIGESTS_LATER_SINCE,
    FALSE,
    HEADER_COMPLETE,
    HEADER_LENGTH,
    HEADER_OFFSET,
    HEADER_PROTOCOL,
    TRUE,
    BlobState,
    parse_protocol,
)
from mld_core.service.server.problems import ProblemError, not_found
from mld_core.service.server.routes import forms
from mld_core.service.server.routes.deps import BoundedRoute, PrincipalDep, ServiceDep
from mld_core.service.server.service import Service
from mld_core.service.server.storage.keys import Principal
from mld_core.service.server.storage.seals import check_pending
from mld_core.service.server.storage.uploads import LATER_BYTES, Upload

router = APIRouter(prefix="/v1", tags=["blobs"], route_class=BoundedRoute)

_PIECE = 1 << 20
_MAX_LENGTH = 1 << 50
_DISK_THREADS = 16
_CHECK_SECONDS = 20.0
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@router.head("/blobs/{sha256}")
def head_blob(sha256: forms.Digest, service: ServiceDep, principal: PrincipalDep) -> Response:
    """How much of a blob is there: `Upload-Offset`, `Upload-Length`, `Upload-Complete`."""
    size = _complete(service, principal, sha256)
    if size is not None:
        return Response(headers=_state(size, size, complete=True))
    partial = service.uploads.partial(principal, sha256)
    if partial is None:
        raise not_found("blob", sha256)
    return Response(headers=_state(*partial, complete=False))


def _complete(service: Service, principal: Principal, sha256: str) -> int | None:
    """The size of a blob that is complete and to be seen, if need be after finishing it now."""
    if service.sight.hidden(principal, [sha256]):
        return None
    size = service.uploads.complete_size(principal, sha256)
    if size is None:
        size = service.uploads.settle(principal, sha256)
        if size is not None:
            service.checks.submit(principal.organization_pk, principal.organization_id, sha256)
    return size


def _state(offset: int, length: int, *, complete: bool) -> dict[str, str]:
    return {
        HEADER_OFFSET: str(offset),
        HEADER_LENGTH: str(length),
        HEADER_COMPLETE: TRUE if complete else FALSE,
    }


def _length(request: Request) -> int:
    text = request.headers.get(HEADER_LENGTH, "")
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) > _MAX_LENGTH:
        raise ProblemError(
            "bad-request",
            f"{HEADER_LENGTH} must say how many bytes the blob has in all",
            value=text or None,
            expectation="a whole number",
            fix=f"send the header {HEADER_LENGTH}",
        )
    return int(text)


def _check_form(request: Request, length: int, offset: int) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError(
            "unsupported-media-type",
            "the body of an upload is the blob's bytes as they are",
            value=request.headers.get("content-encoding"),
            expectation="no Content-Encoding",
            fix="send the bytes uncompressed; Parquet is compressed inside",
        )
    body = request.headers.get("content-length", "")
    if body.isdigit() and offset + int(body) > length:
        raise ProblemError(
            "bad-request",
            f"offset {offset} and a body of {body} bytes go past {HEADER_LENGTH}",
            value=offset + int(body),
            expectation=f"at most {length}",
            fix="send the blob's true size, and the bytes from the offset on",
        )


_DISK = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="disk")


async def _receive(request: Request, service: Service, upload: Upload) -> None:
    """Write the body as it comes: while one piece is hashed and written, the next arrives."""
    loop = asyncio.get_running_loop()
    writing: asyncio.Future[None] | None = None
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            pieces.append(piece)
            size += len(piece)
            if size >= _PIECE:
                if writing is not None:
                    await writing
                service.metrics.received.inc(size)
                writing = loop.run_in_executor(_DISK, upload.write, pieces)
                pieces, size = [], 0
    finally:
        # Also when the connection broke: what arrived is kept.
        if writing is not None:
            await writing
        if pieces and upload.intact:
            await loop.run_in_executor(_DISK, upload.write, pieces)
            service.metrics.received.inc(size)


@router.put(
    "/blobs/{sha256}",
    status_code=200,
    responses={201: {"description": "The blob is complete now"}},
    openapi_extra={
        "parameters": [
            {
                "name": HEADER_LENGTH,
                "in": "header",
                "required": True,
                "schema": {"type": "integer", "minimum": 0},
            },
            {"name": HEADER_COMPLETE, "in": "header", "required": False, "schema": {"enum": [TRUE, FALSE]}},
        ],
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
    },
)
async def put_blob(
    sha256: forms.Digest,
    request: Request,
    service: ServiceDep,
    principal: PrincipalDep,
    response: Response,
    offset: Annotated[int, Query(ge=0, le=_MAX_LENGTH)] = 0,
) -> BlobState:
    """Upload a blob, or go on at `offset`; see `mld_core.service.protocol`."""
    length = _length(request)
    size = await run_in_threadpool(_complete, service, principal, sha256)
    if size is not None:
        return {"offset": size, "complete": True}
    _check_form(request, length, offset)
    # A client that knows it takes the word on a large file's digest with the seal.
    version = parse_protocol(request.headers.get(HEADER_PROTOCOL, "")) or (0, 0)
    later = version[1] >= DIGESTS_LATER_SINCE and principal.sees_all
    upload = await run_in_threadpool(
        lambda: service.uploads.begin(principal, sha256, length, offset, later=later)
    )
    finished = False
    try:
        await _receive(request, service, upload)
        if upload.offset == length:
            finished = True
            await run_in_threadpool(service.uploads.finish, principal, sha256, upload)
    finally:
        if not finished:
            await asyncio.shield(run_in_threadpool(service.uploads.interrupt, principal, sha256, upload))
    if not finished:
        return {"offset": upload.offset, "complete": False}
    service.metrics.blobs.inc()
    service.sight.proved(principal, sha256)
    service.checks.submit(principal.organization_pk, principal.organization_id, sha256)
    response.status_code = 201
    return {"offset": length, "complete": True}


@router.get(
    "/blobs/{sha256}",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        206: {"description": "The asked-for part"},
    },
)
def get_blob(
    sha256: forms.Digest, request: Request, service: ServiceDep, principal: PrincipalDep
) -> Response:
    """Download a blob, or the part a single `Range` names."""
    size = service.uploads.noted_size(principal, sha256)
    if size is None or service.sight.hidden(principal, [sha256]):
        raise not_found("blob", sha256)
    if size >= LATER_BYTES:
        _wait_for_check(service, principal, sha256)
    if service.remover.held_back(principal.organization_pk, sha256):
        raise ProblemError(
            "unavailable",
            "samples are being removed from this file",
            value=sha256,
            expectation="a file of the pass as it is now",
            fix="ask for the pass again in a few seconds",
            retry_after=2,
        )
    start, end = _range(request.headers.get("range"), size)
    try:
        pieces: Any = service.storage.read(principal.organization_id, sha256, start, end)
    except FileNotFoundError:
        raise not_found("blob", sha256) from None
    headers = {
        "Content-Length": str(end - start),
        "Accept-Ranges": "bytes",
        "ETag": f'"{sha256}"',
        "Content-Disposition": "attachment",
    }
    status = 200
    if request.headers.get("range") is not None:
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return StreamingResponse(pieces, status, headers, "application/octet-stream")


def _wait_for_check(service: Service, principal: Principal, sha256: str) -> None:
    """Nobody reads bytes that may not be what their name says."""
    if service.uploads.state(principal, sha256) == "stored":
        mine = (principal.organization_pk, principal.organization_id)
        service.checks.wait(*mine, [sha256], _CHECK_SECONDS)
        state = service.uploads.state(principal, sha256)
        if state == "stored":
            raise check_pending(1, 1)
        if state is None:
            raise not_found("blob", sha256)


def _range(text: str | None, size: int) -> tuple[int, int]:
    """(start, end) of the bytes that were asked for; `end` is exclusive."""
    if text is None:
        return 0, size
    match = _RANGE.fullmatch(text.strip())
    if match is not None and (match[1] or match[2]):
        if match[1]:
            start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
        else:
            start, end = max(0, size - int(match[2])), size
        if start < end:
            return start, end
    raise ProblemError(
        "range-not-satisfiable",
        f"the blob has {size} bytes",
        value=text,
        expectation="bytes=<first>-<last> inside the blob",
        fix="ask for bytes that are there",
        headers={"Content-Range": f"bytes */{size}"},
    )
