"""Who may ask: the token of the address becomes a session cookie; Host, CSRF and headers of every answer."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Protocol
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mld_core.app.problems import problem

CSRF = "x-mld-csrf"
MOST_BODY = 2_000_000
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "connect-src 'self'",
    "worker-src 'self' blob:",
    "font-src 'self'",
    "base-uri 'none'",
    "form-action 'self'",
)
_SAFE = frozenset({"GET", "HEAD"})


class SignIn(Protocol):
    """Who is asking: `mld ui` knows one person, a team's server those who hold a key.

    Attributes:
        cookie: Name of the session cookie.
    """

    cookie: str

    def author(self, cookie: str | None) -> str | None:
        """The name under which the holder of a session cookie reviews; None = no session."""
        ...

    def csrf(self, cookie: str) -> str:
        """What the header of a writing request of this session must hold."""
        ...

    def redeem(self, token: str) -> str | None:
        """The session cookie a token of an address is worth; None = none (any more)."""
        ...


class LocalSignIn:
    """The one person at this machine.

    Args:
        author: The name under which they review.

    Attributes:
        token: What the address must carry; it opens one session.
    """

    def __init__(self, author: str) -> None:
        # A browser holds one cookie for all ports of a host: two such servers keep their sessions.
        self.cookie = f"mld_session_{secrets.token_hex(4)}"
        self._author = author
        self.token = secrets.token_urlsafe(24)
        self._spent = False
        self._session = secrets.token_urlsafe(32)
        self._csrf = secrets.token_urlsafe(24)

    def author(self, cookie: str | None) -> str | None:
        """See `SignIn`."""
        return self._author if cookie is not None and _same(cookie, self._session) else None

    def csrf(self, cookie: str) -> str:
        """See `SignIn`."""
        return self._csrf if _same(cookie, self._session) else ""

    def redeem(self, token: str) -> str | None:
        """See `SignIn`; a token is worth one session."""
        if self._spent or not _same(token, self.token):
            return None
        self._spent = True
        return self._session


def _same(given: str, known: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), known.encode())


def policy(frames: Sequence[str]) -> str:
    """The content security policy of the page.

    Args:
        frames: Origins that may show it in a frame.
    """
    ancestors = " ".join(frames) or "'none'"
    return "; ".join([*_POLICY, f"frame-ancestors {ancestors}"])


class Gate:
    """ASGI middleware, the outermost: no request gets past it without a known Host and a session.

    Args:
        app: The application.
        sign_in: Who is asking.
        hosts: Names by which the server may be asked, beside those of this machine.
        frames: Origins that may show the pages in a frame.
        base: Path under which the pages lie, e.g. "/ui".
    """

    def __init__(
        self,
        app: ASGIApp,
        sign_in: SignIn,
        hosts: Sequence[str] = (),
        frames: Sequence[str] = (),
        base: str = "/ui",
    ) -> None:
        self._app = app
        self._sign_in = sign_in
        self._hosts = frozenset(name.lower() for name in (*LOOPBACK, *hosts))
        self._frames = tuple(frames)
        self._base = base
        self._policy = policy(frames)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        answer = self._refused(scope, headers)
        told = self._telling(send)
        if answer is not None:
            await answer(scope, receive, told)
            return
        await self._app(scope, _limited(receive), told)

    def _refused(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        """The answer of a request that may not pass; None = it may."""
        if not self._host_known(headers.getlist("host")):
            return problem(
                403, "this server is not asked by that name", fix="start it with --allow-host NAME"
            )
        path = str(scope["path"])
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        token = next((value for name, value in query if name == "token"), None)
        if token is not None and scope["method"] in _SAFE and path.rstrip("/") == self._base:
            return self._redeemed(path, token, [one for one in query if one[0] != "token"], headers)
        cookie = self._cookie(headers)
        author = self._sign_in.author(cookie)
        if author is None or cookie is None:
            return problem(
                401, "There is no session.", fix="Open the address that `mld ui` printed, or start it again."
            )
        scope["state"] = {**scope.get("state", {}), "author": author, "csrf": self._sign_in.csrf(cookie)}
        if scope["method"] not in _SAFE:
            return self._unsafe(headers, cookie)
        return None

    def _unsafe(self, headers: Headers, cookie: str) -> ASGIApp | None:
        if not _same(headers.get(CSRF, ""), self._sign_in.csrf(cookie)):
            return problem(403, f"a request that changes something carries the header {CSRF}")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return problem(415, "expected a body of application/json")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MOST_BODY:
            return problem(413, f"a body holds at most {MOST_BODY:,} bytes")
        return None

    def _redeemed(self, path: str, token: str, rest: list[tuple[str, str]], headers: Headers) -> ASGIApp:
        """The page's own address without the token, with the cookie."""
        cookie = self._sign_in.redeem(token)
        if cookie is None and self._sign_in.author(self._cookie(headers)) is None:
            fix = "Start `mld ui` again; each address opens one session."
            return problem(401, "This address was used before.", fix=fix)
        own = "./" if path.endswith("/") else f"./{self._base.rpartition('/')[2]}/"
        answer = RedirectResponse(f"{own}{'?' + urlencode(rest) if rest else ''}", 303)
        if cookie is not None:
            # No Path: the browser takes the folder that it asked, a proxy's prefix with it.
            answer.headers["set-cookie"] = f"{self._sign_in.cookie}={cookie}; HttpOnly; SameSite=Strict"
        return answer

    def _host_known(self, given: Sequence[str]) -> bool:
        if len(given) != 1:
            return False
        name = given[0].lower()
        bare = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name
        return bare in self._hosts

    def _cookie(self, headers: Headers) -> str | None:
        try:
            found = SimpleCookie("; ".join(headers.getlist("cookie"))).get(self._sign_in.cookie)
        except CookieError:
            return None
        return None if found is None else found.value

    def _telling(self, send: Send) -> Send:
        """`send` with the headers that every answer carries."""

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["cross-origin-resource-policy"] = "same-origin"
                headers.setdefault("content-security-policy", self._policy)
                headers.setdefault("cache-control", "no-store")
                if not self._frames:
                    headers["x-frame-options"] = "DENY"
            await send(message)

        return tell


def _limited(receive: Receive) -> Receive:
    """A body that grows beyond the bound ends the connection."""
    got = 0

    async def more() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        return {"type": "http.disconnect"} if got > MOST_BODY else message

    return more
