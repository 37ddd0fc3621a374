"""The gate every request passes: host, key, scope, rate, size and speed; then log, metrics and audit.

Nothing behind it can be reached without being named in `protocol.ROUTES`, and nothing but what that list
says is public can be reached without a key: a route that somebody forgets to list is closed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mld_core.records.format.manifest import utc_now
from mld_core.service.protocol import (
    HEADER_PROTOCOL,
    HEADER_REQUEST_ID,
    MAX_BODY_BYTES,
    MAX_RANK_BYTES,
    MAX_RANK_HEAD,
    MAX_SEAL_BYTES,
    PROTOCOL,
    PROTOCOL_MAJOR,
    ROUTES,
    Route,
    parse_protocol,
)
from mld_core.service.server.logs import scrub
from mld_core.service.server.problems import ProblemError, translate
from mld_core.service.server.proxies import FORWARDED, Proxies
from mld_core.service.server.service import Service
from mld_core.service.server.storage.keys import Principal, key_id_of
from mld_core.service.server.storage.models import new_id

log = logging.getLogger("mld.request")

PAGES = "/ui"
_SEAL = "/v1/runs/{run_id}/seals"
_BLOB = "/v1/blobs/{sha256}"
_LIMITS = {_SEAL: MAX_SEAL_BYTES, "/v1/runs/{run_id}/ranks": MAX_RANK_BYTES + MAX_RANK_HEAD}
_BIG_AT_ONCE = 3
"""Seals of one organization at once: another's slow ones hold up nobody."""

_ONCE = {"authorization", "host", "content-length"}
_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (HEADER_PROTOCOL.lower().encode(), PROTOCOL.encode()),
)
_PATTERNS = [(route, re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route.path)))) for route in ROUTES]


def find_route(method: str, path: str) -> tuple[Route | None, list[str]]:
    """The route of a request, and the methods its path has.

    >>> find_route("GET", "/v1/runs/x")[0].summary
    'One run.'
    >>> find_route("TRACE", "/v1/runs/x")
    (None, ['GET', 'PATCH'])
    """
    here = [route for route, pattern in _PATTERNS if pattern.fullmatch(path)]
    found = next((route for route in here if route.method == method), None)
    return found, [route.method for route in here]


class Request:
    """What is known of one request while it runs."""

    def __init__(self, scope: Scope, proxies: Proxies) -> None:
        self.id = new_id("req")
        self.method = str(scope["method"])
        self.path = str(scope["path"])
        self.route, self.methods = find_route(self.method, self.path)
        self.headers = _headers(scope, proxies.user_header)
        self.connection = scope.get("mld.connection")
        self.peer = str((scope.get("client") or ("", 0))[0])
        self.remote = proxies.client(self.peer, self.headers.get(FORWARDED, ""))
        self.person = proxies.person(self.peer, self.headers)
        self.principal: Principal | None = None
        self.is_page = self.path == PAGES or self.path.startswith(f"{PAGES}/")
        self.begun = time.monotonic()
        self.status = 0

    @property
    def name(self) -> str:
        """The route for logs and metrics: never a path a client made up."""
        return PAGES if self.is_page else self.route.path if self.route is not None else "unknown"


def _headers(scope: Scope, user_header: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        text = name.decode("latin-1")
        if text == FORWARDED and text in found:
            found[text] += "," + value.decode("latin-1")
        elif text in _ONCE | {user_header} and text in found:
            found[text] = ""  # two of them: neither counts
        else:
            found[text] = value.decode("latin-1")
    return found


class Gate:
    """ASGI middleware; the outermost.

    Args:
        app: the application.
        service: whose settings, keys and metrics count.
        pages: what answers below `/ui`; it has a gate of its own, for sessions.
    """

    def __init__(self, app: ASGIApp, service: Service, pages: ASGIApp | None = None) -> None:
        self._app = app
        self._pages = pages
        self._service = service
        self._big: dict[int, asyncio.Semaphore] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, self._service.proxies)
        tell = self._telling(request, send)
        try:
            await self._admit(request)
            state = {"request_id": request.id, "principal": request.principal}
            scope["state"] = {**scope.get("state", {}), **state}
            await self._run(request, scope, receive, tell)
        except Exception as error:  # noqa: BLE001  the last resort: an answer is owed for every request
            if request.status == 0:
                await self._answer(request, translate(error), scope, receive, tell)
        finally:
            self._done(request)

    async def _run(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        limited = self._limited(request, receive)
        if request.is_page and self._pages is not None:
            scope.update({"mld.person": request.person, "mld.remote": request.remote})
            await self._pages(scope, limited, send)
            request.principal = scope["state"].get("principal")
            return
        if request.route is None or request.route.path != _SEAL:
            await self._app(scope, limited, send)
            return
        assert request.principal is not None
        big = self._big.setdefault(request.principal.organization_pk, asyncio.Semaphore(_BIG_AT_ONCE))
        async with big:  # manifests are large once parsed
            await self._app(scope, limited, send)

    async def _answer(
        self, request: Request, problem: ProblemError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        response = problem.response(request.id)
        if request.method in {"PUT", "POST", "PATCH"}:
            # The body was not read: what follows on this connection would be taken for the next request.
            response.headers["connection"] = "close"
        await response(scope, receive, send)

    # -- before --------------------------------------------------------------------------------------------

    async def _admit(self, request: Request) -> None:
        self._check_host(request.headers.get("host", ""))
        if request.is_page and self._pages is not None:
            return
        self._check_protocol(request.headers.get(HEADER_PROTOCOL.lower()))
        route = request.route
        if route is not None and route.scope is None:
            return
        request.principal = await self._check_key(request)
        if request.connection is not None:
            request.connection.known()
        if route is None:
            raise _no_route(request)
        self._check_scope(request.principal, route)
        wait = self._service.requests.take(request.principal.key_id)
        if wait > 0:
            raise ProblemError(
                "too-many-requests",
                "this key sends too many requests",
                expectation=f"at most {self._service.settings.requests_per_second:g} a second",
                fix="wait as Retry-After says",
                retry_after=wait,
            )
        _check_size(request)

    def _check_host(self, host: str) -> None:
        name = host.lower()
        name = name.rpartition(":")[0] if re.fullmatch(r".*:\d+", name) else name
        if name not in self._service.settings.hosts:
            raise ProblemError(
                "wrong-host",
                "this server does not go by that name",
                value=host,
                expectation="one of the server's allowed hosts",
                fix="use the server's name, or start it with --allowed-host NAME",
            )

    def _check_protocol(self, text: str | None) -> None:
        version = parse_protocol(text) if text is not None else (PROTOCOL_MAJOR, 0)
        if version is None or version[0] != PROTOCOL_MAJOR:
            raise ProblemError(
                "protocol",
                f"this server speaks protocol {PROTOCOL}",
                value=text,
                expectation=f"{PROTOCOL_MAJOR}.<minor>",
                fix="install the release of ml-debugger that the server has, or upgrade the server",
            )

    async def _check_key(self, request: Request) -> Principal:
        header = request.headers.get("authorization")
        if not header and request.person:
            return await self._check_person(request)
        known = self._service.keys.remembered(header)
        if known is not None:
            return known
        # By key, too: behind a proxy, one person's wrong key must not refuse all others' right ones.
        asker = f"{request.remote} {key_id_of(header)}"
        wait = self._service.wrong_keys.wait(asker) if header else 0.0
        if wait > 0:
            raise ProblemError(
                "too-many-requests",
                "this key came too often from this address, and is wrong",
                expectation="a right key",
                fix="wait as Retry-After says, and check MLD_API_KEY",
                retry_after=wait,
            )
        found = await run_in_threadpool(self._service.keys.ask, header)
        if found is not None:
            return found
        self._service.metrics.refused.inc()
        if header:
            self._service.wrong_keys.take(asker)
        raise ProblemError(
            "unauthorized",
            "the key is wrong, expired or revoked" if header else "no key came with the request",
            expectation="Authorization: Bearer mldbg_...",
            fix="set MLD_API_KEY to a key that `mld keys create` printed",
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _check_person(self, request: Request) -> Principal:
        """The person a trusted proxy signed in."""
        # A page of somebody else's can make a browser send a request, but no header of its own in it.
        if request.method in _WRITES and HEADER_PROTOCOL.lower() not in request.headers:
            raise ProblemError(
                "forbidden",
                f"a change without a key needs the header {HEADER_PROTOCOL}",
                expectation=f"{HEADER_PROTOCOL}: {PROTOCOL}",
                fix="send the header, or a key",
            )
        found = await run_in_threadpool(self._service.keys.person, request.person)
        if found is None:
            self._service.metrics.refused.inc()
            raise ProblemError(
                "unauthorized",
                "the proxy signed somebody in whom this server does not know",
                value=request.person,
                expectation="the name of a person",
                fix="have an admin add them: `mld keys add NAME --role viewer`",
            )
        return found

    @staticmethod
    def _check_scope(principal: Principal, route: Route) -> None:
        missing = principal.scopes.isdisjoint(route.scopes)
        if missing or (route.root_only and not (principal.is_root and principal.sees_all)):
            raise ProblemError(
                "forbidden",
                "the key may not do this",
                value=",".join(sorted(principal.scopes)),
                expectation=f"scope {' or '.join(route.scopes)}"
                + (" of the root organization" if route.root_only else ""),
                fix=f"use a key with this scope: `mld keys create --scope {route.scope}`",
            )

    # -- during --------------------------------------------------------------------------------------------

    def _limited(self, request: Request, receive: Receive) -> Receive:
        """`receive` that gives up on a body that is too slow or too long."""
        settings = self._service.settings
        limit = _json_limit(request)
        waited = 0.0
        total = 0
        ended = False

        async def limited() -> Message:
            nonlocal waited, total, ended
            if ended:  # what comes now is the end of the connection, which may take long
                return await receive()
            begun = time.monotonic()
            message: Message | None = None
            with anyio.move_on_after(settings.idle_timeout):  # no task for each piece, as `wait_for` makes
                message = await receive()
            if message is None:
                raise _too_slow(f"no byte came for {settings.idle_timeout:g} s")
            waited += time.monotonic() - begun
            total += len(message.get("body", b""))
            more = message.get("more_body", False)
            ended = not more
            if more and waited > settings.idle_timeout and total < waited * settings.min_bytes_per_second:
                raise _too_slow(f"{total} bytes came in {waited:.0f} s")
            if limit is not None and total > limit:
                raise _too_large(total, limit)
            return message

        return limited

    def _telling(self, request: Request, send: Send) -> Send:
        """`send` that adds the headers every answer has, and notes the status."""
        own = (*_HEADERS, (HEADER_REQUEST_ID.lower().encode(), request.id.encode()))

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                request.status = int(message["status"])
                names = {name.lower() for name, _ in message.get("headers", [])}
                more = [(name, value) for name, value in own if name not in names]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        return telling

    # -- after ---------------------------------------------------------------------------------------------

    def _done(self, request: Request) -> None:
        seconds = time.monotonic() - request.begun
        status = request.status or 499  # the client went away
        metrics = self._service.metrics
        metrics.requests.labels(request.method if request.methods else "other", request.name, status).inc()
        metrics.seconds.labels(request.method if request.methods else "other", request.name).observe(seconds)
        who = request.principal
        facts: Mapping[str, Any] = {
            "request_id": request.id,
            "method": request.method,
            "route": request.name,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "remote": request.remote,
            "key_id": who.key_id if who else None,
            "organization_id": who.organization_id if who else None,
        }
        log.log(logging.DEBUG if request.name == "/healthz" else logging.INFO, "request", extra=dict(facts))
        if request.method in _WRITES and who is not None:
            self._service.audit(
                at=utc_now(),
                organization_id=who.organization_id,
                key_id=who.key_id,
                request_id=request.id,
                remote=request.remote[:60],
                action=f"{request.method} {request.name}"[:100],
                target=scrub(request.path.encode("ascii", "replace").decode()[:200].replace("\x00", "?")),
                status=status,
            )


def _json_limit(request: Request) -> int | None:
    if request.route is None or request.route.path == _BLOB:
        return None
    return _LIMITS.get(request.route.path, MAX_BODY_BYTES)


def _check_size(request: Request) -> None:
    limit = _json_limit(request)
    length = request.headers.get("content-length", "0")
    if limit is not None and (not length.isdigit() or len(length) > 18 or int(length) > limit):
        raise _too_large(length, limit)


def _too_large(value: Any, limit: int) -> ProblemError:
    return ProblemError(
        "too-large",
        "the request's body is too large",
        value=value,
        expectation=f"at most {limit} bytes",
        fix="send less; files go to /v1/blobs",
        headers={"Connection": "close"},
    )


def _too_slow(detail: str) -> ProblemError:
    return ProblemError(
        "too-slow",
        f"the body came too slowly: {detail}",
        expectation="a body that keeps coming",
        fix="send it again; an upload goes on where it stopped",
        headers={"Connection": "close"},
    )


def _no_route(request: Request) -> ProblemError:
    if request.methods:
        return ProblemError(
            "method-not-allowed",
            f"{request.method} is not possible here",
            value=request.method,
            expectation=" or ".join(request.methods),
            fix="see /v1/openapi.json",
            headers={"Allow": ", ".join(request.methods)},
        )
    return ProblemError(
        "not-found",
        "there is nothing at this address",
        value=request.path.encode("ascii", "replace").decode(),
        expectation="a path of /v1/openapi.json",
        fix="check MLD_API_ENDPOINT: it is the server's address without /v1",
    )
