"""Who looks at the pages: the holder of a key, traded for a session, or whom a trusted proxy signed in."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from mld_core.app.problems import ProblemError
from mld_core.app.session import SESSION_SECONDS
from mld_core.app.shelf import Who
from mld_core.service.server.service import Service
from mld_core.service.server.storage.keys import Principal, key_id_of

MOST_SESSIONS = 10_000
PERSON = "mld.person"
REMOTE = "mld.remote"
"""In the scope, as the service's gate found them: whom a trusted proxy signed in, the address of who asks."""


@dataclass(frozen=True)
class _Session:
    key_id: str
    csrf: str
    until: float


class TeamSignIn:
    """Sessions of keys, in memory: a server that starts again asks for the key again.

    Args:
        service: Whose keys they are.
    """

    cookie = "mld_session"
    public = True
    how = "Sign in with your key, the one that `mld keys` made for you."

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._people: OrderedDict[str, str] = OrderedDict()

    async def who(self, scope: Scope, cookie: str | None) -> Who | None:
        """See `SignIn`; a key that is revoked meanwhile ends its sessions."""
        session = self._sessions.get(_name(cookie)) if cookie else None
        if session is not None and session.until > time.monotonic():
            principal = await run_in_threadpool(self._service.keys.by_id, session.key_id)
            return self._who(scope, principal, session.csrf)
        person = scope.get(PERSON, "")
        if not person:
            return None
        principal = await run_in_threadpool(self._service.keys.person, person)
        csrf = self._people.setdefault(person, secrets.token_urlsafe(24)) if principal is not None else ""
        while len(self._people) > MOST_SESSIONS:
            self._people.popitem(last=False)
        return self._who(scope, principal, csrf)

    @staticmethod
    def _who(scope: Scope, principal: Principal | None, csrf: str) -> Who | None:
        if principal is None or "read" not in principal.scopes:
            return None
        if scope.get("mld.connection") is not None:
            scope["mld.connection"].known()
        scope["state"] = {**scope.get("state", {}), "principal": principal}
        may = {"write": "write" in principal.scopes, "delete": "admin" in principal.scopes}
        named = frozenset(name for name, allowed in may.items() if allowed)
        return Who(principal.person or principal.key_name, csrf, named, principal)

    def redeem(self, token: str) -> str | None:  # noqa: ARG002  no address is worth a session here
        """See `SignIn`."""
        return None

    async def trade(self, scope: Scope, key: str) -> str | None:
        """See `SignIn`; wrong ones are counted as the service's gate counts them."""
        header = f"Bearer {key}"
        asker = f"{scope.get(REMOTE, '')} {key_id_of(header)}"
        if self._service.wrong_keys.wait(asker) > 0:
            raise ProblemError(429, "This key came too often, and is wrong.", fix="Wait a moment.")
        principal = await run_in_threadpool(self._service.keys.ask, header)
        if principal is None:
            self._service.metrics.refused.inc()
            self._service.wrong_keys.take(asker)
            return None
        if "read" not in principal.scopes:
            raise ProblemError(
                403, "This key may send records, and read none.", fix="Ask for a key that may."
            )
        cookie = secrets.token_urlsafe(32)
        until = time.monotonic() + SESSION_SECONDS
        self._sessions[_name(cookie)] = _Session(principal.key_id, secrets.token_urlsafe(24), until)
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return cookie

    def leave(self, cookie: str) -> None:
        """See `SignIn`."""
        self._sessions.pop(_name(cookie), None)


def _name(cookie: str) -> str:
    """What a session is kept under: who reads this process' memory has no cookie."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()
