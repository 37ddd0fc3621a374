"""Who may ask: the token of the address becomes a session cookie; Host, CSRF and headers of every answer."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Collection, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Protocol
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mld_core.app.problems import ProblemError, problem
from mld_core.app.shelf import Who

CSRF = "x-mld-csrf"
MOST_BODY = 2_000_000
MOST_KEY = 4_000
SESSION_SECONDS = 7 * 24 * 3600
"""So long a session lasts that was opened with a key."""

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
        public: Whether strangers are shown the page, to sign in there; its data they are not.
        how: What to do without a session.
    """

    cookie: str
    public: bool
    how: str

    async def who(self, scope: Scope, cookie: str | None) -> Who | None:
        """Whose session it is; None = nobody's."""
        ...

    def redeem(self, token: str) -> str | None:
        """The session cookie a token of an address is worth; None = none (any more)."""
        ...

    async def trade(self, scope: Scope, key: str) -> str | None:
        """The session cookie a key is worth; None = it is no key.

        Raises:
            ProblemError: Too many wrong ones came.
        """
        ...

    def leave(self, cookie: str) -> None:
        """End a session."""
        ...


class LocalSignIn:
    """The one person at this machine.

    Args:
        author: The name under which they review.

    Attributes:
        token: What the address must carry; it opens one session.
    """

    public = False
    how = "Open the address that `mld ui` printed, or start it again."

    def __init__(self, author: str) -> None:
        # A browser holds one cookie for all ports of a host: two such servers keep their sessions.
        self.cookie = f"mld_session_{secrets.token_hex(4)}"
        self.token = secrets.token_urlsafe(24)
        self._spent = False
        self._session = secrets.token_urlsafe(32)
        self._who = Who(author, secrets.token_urlsafe(24))

    async def who(self, scope: Scope, cookie: str | None) -> Who | None:  # noqa: ARG002  by its cookie alone
        """See `SignIn`."""
        return self._who if cookie is not None and same(cookie, self._session) else None

    def redeem(self, token: str) -> str | None:
        """See `SignIn`; a token is worth one session."""
        if self._spent or not same(token, self.token):
            return None
        self._spent = True
        return self._session

    async def trade(self, scope: Scope, key: str) -> str | None:  # noqa: ARG002  there are no keys
        """See `SignIn`."""
        return None

    def leave(self, cookie: str) -> None:
        """See `SignIn`: the address stays spent, so the session stays."""


def same(given: str, known: str) -> bool:
    """Whether two secrets are one, in constant time."""
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
        hosts: Names by which the server may be asked, beside those of this machine; None = any: who stands
            before this gate has looked.
        frames: Origins that may show the pages in a frame.
        base: Path under which the pages lie, e.g. "/ui".
    """

    def __init__(
        self,
        app: ASGIApp,
        sign_in: SignIn,
        hosts: Collection[str] | None = (),
        frames: Sequence[str] = (),
        base: str = "/ui",
    ) -> None:
        self._app = app
        self._sign_in = sign_in
        self._hosts = None if hosts is None else frozenset(name.lower() for name in (*LOOPBACK, *hosts))
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
        limited, told = _limited(receive), self._telling(send)
        answer = await self._answered(scope, Headers(scope=scope), limited)
        await (answer or self._app)(scope, limited, told)

    async def _answered(self, scope: Scope, headers: Headers, receive: Receive) -> ASGIApp | None:
        """The answer of a request that goes no further; None = it may pass."""
        if not self._host_known(headers.getlist("host")):
            return problem(
                403, "this server is not asked by that name", fix="start it with --allow-host NAME"
            )
        path, reads = str(scope["path"]), scope["method"] in _SAFE
        if self._sign_in.public:
            if path == f"{self._base}/session" and not reads:
                return await self._signed(scope, headers, receive)
            if reads and not path.startswith(f"{self._base}/api"):
                return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        token = next((value for name, value in query if name == "token"), None)
        cookie = self._cookie(headers)
        who = await self._sign_in.who(scope, cookie)
        if token is not None and reads and path.rstrip("/") == self._base:
            rest = [one for one in query if one[0] != "token"]
            return self._redeemed(path, token, rest, known=who is not None)
        if who is None:
            return problem(401, "There is no session.", fix=self._sign_in.how, sign_in=self._sign_in.public)
        scope["state"] = {**scope.get("state", {}), "who": who}
        return None if reads else self._unsafe(headers, who)

    @staticmethod
    def _unsafe(headers: Headers, who: Who) -> ASGIApp | None:
        if not who.csrf or not same(headers.get(CSRF, ""), who.csrf):
            return problem(403, f"a request that changes something carries the header {CSRF}")
        if "write" not in who.may:
            return problem(
                403, "You may look, and change nothing.", fix="An admin can give you another role."
            )
        return _unfit(headers, MOST_BODY)

    async def _signed(self, scope: Scope, headers: Headers, receive: Receive) -> ASGIApp:
        """The answer to a key, and to a session that ends."""
        if scope["method"] == "DELETE":
            return await self._left(scope, headers)
        unfit = _unfit(headers, MOST_KEY)
        if unfit is not None or scope["method"] != "POST":
            return unfit or problem(405, "a key comes by POST")
        try:
            said = json.loads(await Request(scope, receive).body())
            made = await self._sign_in.trade(scope, str(said["key"]).strip())
        except (ValueError, TypeError, KeyError, ClientDisconnect):
            return problem(400, 'expected {"key": "..."}')
        except ProblemError as error:
            return problem(error.status_code, str(error.detail), fix=error.fix)
        if made is None:
            return problem(401, "This key is wrong, expired or revoked.", fix=self._sign_in.how, sign_in=True)
        # Behind a proxy with TLS, the browser is told so; who makes the header up keeps a cookie less.
        safe = "https" in {scope.get("scheme"), headers.get("x-forwarded-proto")}
        kept = f"; Max-Age={SESSION_SECONDS}{'; Secure' if safe else ''}"
        return Response(status_code=204, headers={"set-cookie": self._set(made, kept)})

    async def _left(self, scope: Scope, headers: Headers) -> ASGIApp:
        """The answer to who signs out."""
        cookie = self._cookie(headers)
        who = await self._sign_in.who(scope, cookie)
        if who is None or cookie is None or not same(headers.get(CSRF, ""), who.csrf):
            return problem(403, f"a request that ends a session carries the header {CSRF}")
        self._sign_in.leave(cookie)
        return Response(status_code=204, headers={"set-cookie": self._set("", "; Max-Age=0")})

    def _set(self, cookie: str, more: str = "") -> str:
        # No Path: the browser takes the folder that it asked, a proxy's prefix with it.
        return f"{self._sign_in.cookie}={cookie}; HttpOnly; SameSite=Strict{more}"

    def _redeemed(self, path: str, token: str, rest: list[tuple[str, str]], *, known: bool) -> ASGIApp:
        """The page's own address without the token, with the cookie."""
        cookie = self._sign_in.redeem(token)
        if cookie is None and not known:
            fix = "Start `mld ui` again; each address opens one session."
            return problem(401, "This address was used before.", fix=fix)
        own = "./" if path.endswith("/") else f"./{self._base.rpartition('/')[2]}/"
        answer = RedirectResponse(f"{own}{'?' + urlencode(rest) if rest else ''}", 303)
        if cookie is not None:
            answer.headers["set-cookie"] = self._set(cookie)
        return answer

    def _host_known(self, given: Sequence[str]) -> bool:
        if self._hosts is None:
            return True
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


def _unfit(headers: Headers, most: int) -> ASGIApp | None:
    """The refusal of a body that is no JSON, or too long."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return problem(415, "expected a body of application/json")
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > most:
        return problem(413, f"a body holds at most {most:,} bytes")
    return None


def _limited(receive: Receive) -> Receive:
    """A body that grows beyond the bound ends the connection."""
    got = 0

    async def more() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        return {"type": "http.disconnect"} if got > MOST_BODY else message

    return more
