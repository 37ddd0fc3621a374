"""Requests to one service: sent as the protocol says, tried again with jitter, with a timeout on everything.

It goes through `requests`, so that proxies (`HTTPS_PROXY`, `NO_PROXY`) and certificates
(`REQUESTS_CA_BUNDLE`) of the user's machine hold. The key travels in the `Authorization` header only, never
follows a redirect, and shows in no message. Bodies are streamed: memory does not grow with a file's size.
Safe to use from several threads.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from mld_core import __version__
from mld_core.evaluation.errors import AuthenticationError
from mld_core.explained import explained
from mld_core.service.client.errors import NoServiceError, ServiceError, ServiceUnreachableError, describe
from mld_core.service.protocol import (
    HEADER_PROTOCOL,
    MAX_JSON_BYTES,
    MAX_PAGE,
    PROTOCOL,
    PROTOCOL_MAJOR,
    RETRYABLE,
    SEARCHES_SINCE,
    Problem,
    parse_protocol,
    problem_name,
)

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
SLOW_READ_SECONDS = 90.0  # a seal may wait 45 s for the check of its files; a large file for its fsync
_LONG = 1 << 20
_LONGEST_PAUSE = 30.0
_LONGEST_RETRY_AFTER = 300.0
_KEY = re.compile(r"[\x21-\x7e]+")

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Patience:
    """How long to go on trying.

    Attributes:
        seconds: no new try is begun after so many seconds without success.
        first: the longest first pause; it doubles from try to try.
    """

    seconds: float
    first: float = 0.25


class Waiting:
    """The pauses between the tries of one thing."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.reset()

    def reset(self) -> None:
        """Something got through: patience begins anew."""
        self._tries, self._since = 0, time.monotonic()

    def after(self, error: ServiceUnreachableError) -> None:
        """Pause after a failure: what the service asked for, at least, with jitter on top.

        Raises:
            ServiceUnreachableError: the error, where patience is at its end or trying again is no use.
        """
        longest = min(_LONGEST_PAUSE, self._patience.first * 2 ** min(self._tries, 16))
        jitter = random.uniform(0.5, 1.0) * longest  # noqa: S311 - spreads load, keeps no secret
        pause = jitter if error.retry_after <= 0 else error.retry_after + jitter / 4
        if (
            isinstance(error, NoServiceError)
            or time.monotonic() + pause - self._since > self._patience.seconds
        ):
            raise error
        self._tries += 1
        time.sleep(pause)


INTERACTIVE = Patience(4.0)
"""For a person who waits: a service that is down is said within seconds."""
STEADY = Patience(90.0)
"""For work that is under way: a restart of the service goes by unnoticed."""


class _Bearer(AuthBase):
    """The key as a header. As `auth`, it also keeps requests from sending what stands in ~/.netrc."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def check_address(url: str) -> str:
    """The address without a trailing slash.

    Raises:
        ValueError: it is no http or https address.

    >>> check_address("https://mld.example.org/")
    'https://mld.example.org'
    """
    parts = urlsplit(url)
    try:
        known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or 1)
    except ValueError:  # the port is no number
        known = False
    if not known or parts.username or parts.query or parts.fragment:
        raise ValueError(
            f"the address of the service is {url!r}: expected http://HOST[:PORT] or https://HOST[:PORT], "
            "without user, query and fragment; set MLD_API_ENDPOINT (or api_endpoint)"
        )
    return url.rstrip("/")


class Transport:
    """Talks to one service with one key.

    Args:
        url: address of the service.
        api_key: the key; None = none is sent.
        patience: how long a request is tried.

    Attributes:
        minor: the minor protocol version of the service, once it has answered.

    Raises:
        ValueError: the address is none.
        AuthenticationError: the key holds characters no key has.
    """

    def __init__(self, url: str, api_key: str | None, patience: Patience = STEADY) -> None:
        self.url = check_address(url)
        self.patience = patience
        self._key = api_key.strip() if api_key else None
        if self._key and _KEY.fullmatch(self._key) is None:
            raise AuthenticationError(
                "the API key holds spaces, line ends or other characters no key has: copy it anew into "
                "MLD_API_KEY"
            )
        self._local = threading.local()
        self.minor = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:  # a Session belongs to one thread
            session = requests.Session()
            session.auth = _Bearer(self._key)
            session.headers.update(
                {
                    HEADER_PROTOCOL: PROTOCOL,
                    "User-Agent": f"ml-debugger/{__version__}",
                    "Accept-Encoding": "identity",
                }
            )
            self._local.session = session
        return session

    # -- one request -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        read_seconds: float = READ_SECONDS,
    ) -> Iterator[requests.Response]:
        """Send one request, once; the answer is good (below 300) and not read yet.

        What is short is read to its end afterwards, wanted or not: only then the connection takes the next.

        Raises:
            ServiceUnreachableError: no answer, or one that says to come back later.
            NoServiceError: the answer is none of a service we know.
            AuthenticationError: 401 or 403.
            ServiceError: any other answer that is no success.
        """
        try:
            response = self._session.request(
                method,
                self.url + path,
                params=dict(params) if params else None,
                json=body,
                data=data,
                headers=dict(headers or {}),
                timeout=(CONNECT_SECONDS, read_seconds),
                allow_redirects=False,
                stream=True,
            )
        except (requests.RequestException, OSError) as error:
            raise self._unreachable(error) from error
        try:
            self._judge(method, response)
            yield response
            if _is_short(response):
                response.raw.drain_conn()
        except requests.RequestException as error:  # the connection broke while the body was read
            raise self._unreachable(error) from error
        finally:
            response.close()

    def _unreachable(self, error: Exception) -> ServiceUnreachableError:
        # The cause is named by its class: its text can hold the whole request.
        return ServiceUnreachableError(
            explained(
                f"cannot reach the service at {self.url} ({type(error).__name__}); look whether it runs and "
                "MLD_API_ENDPOINT is right, or unset that (pass no api_endpoint) to use the local store"
            )
        )

    def _judge(self, method: str, response: requests.Response) -> None:
        """Raise for every answer that is no success."""
        status = response.status_code
        ours = parse_protocol(response.headers.get(HEADER_PROTOCOL, ""))
        if ours is not None and ours[0] != PROTOCOL_MAJOR:
            raise NoServiceError(
                f"the service at {self.url} speaks protocol {ours[0]}.{ours[1]}, this release {PROTOCOL}: "
                f"upgrade {'ml-debugger here' if ours[0] > PROTOCOL_MAJOR else 'the server'}"
            )
        if 200 <= status < 300 and ours is not None:
            self.minor = ours[1]
            return
        problem = _problem(response) if method != "HEAD" else {}
        if status in {401, 403}:
            raise AuthenticationError(self._refused(status, problem))
        if status in RETRYABLE:
            reason = describe(problem) or response.reason
            raise ServiceUnreachableError(
                f"the service at {self.url} cannot do it now (HTTP {status}: {reason})",
                _retry_after(response),
                problem_name(problem),
            )
        if ours is None or status < 400:
            where = " to " + _host(response.headers["Location"]) if "Location" in response.headers else ""
            if ours is None and status == 413:  # a proxy's limit; the caller sends smaller pieces
                raise ServiceError(f"something before the service at {self.url} takes no such body", status)
            raise NoServiceError(
                f"{self.url} answers{where} (HTTP {status}), but is no ml_debugger service: set "
                "MLD_API_ENDPOINT to the address of one, or unset it (pass no api_endpoint) to use the local "
                "store"
            )
        said = describe(problem) or f"HTTP {status} {response.reason}"
        raise ServiceError(f"the service at {self.url} answered: {said}", status, problem)

    def _refused(self, status: int, problem: Problem) -> str:
        if not self._key:
            given = "wants an API key: set MLD_API_KEY"
        elif status == 403:
            given = (
                "did not accept the API key for this; make one with the scope it needs (`mld keys create`)"
            )
        else:
            given = "did not accept the API key: look at MLD_API_KEY, and at `mld keys list` on the server"
        said = describe(problem)
        return f"the service at {self.url} {given} (HTTP {status}{': ' if said else ''}{said})"

    # -- requests that may be sent again ---------------------------------------------------------------------

    def again(self, try_once: Callable[[], Any], patience: Patience | None = None) -> Any:
        """Call `try_once` until it does not raise ServiceUnreachableError, within the patience.

        Raises:
            ServiceUnreachableError: the last one.
        """
        waiting = Waiting(patience or self.patience)
        while True:
            try:
                return try_once()
            except ServiceUnreachableError as error:  # noqa: PERF203 - trying again is what this is for
                waiting.after(error)

    def json(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        """As `json_status`, without the status."""
        return self.json_status(method, path, **how)[1]

    def json_status(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        once: bool = False,
        patience: Patience | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """A request whose answer is a JSON object.

        Args:
            method: HTTP method.
            path: from the root of the service.
            params: of the query.
            body: sent as JSON.
            once: not to be sent again where it is unknown whether it arrived.
            patience: instead of the client's own.

        Returns:
            The HTTP status, which tells 201 (made now) from 200 (was there), and the object.

        Raises:
            As `send`; NoServiceError also where the answer is no JSON object.
        """

        def try_once() -> tuple[int, dict[str, Any]]:
            wait = SLOW_READ_SECONDS if body is not None else READ_SECONDS
            with self.send(method, path, params=params, body=body, read_seconds=wait) as response:
                return response.status_code, self.read_object(response)

        found: tuple[int, dict[str, Any]] = try_once() if once else self.again(try_once, patience)
        return found

    def read_object(self, response: requests.Response) -> dict[str, Any]:
        """The body of an answer from `send`, which must be a JSON object.

        Raises:
            ServiceUnreachableError: it is cut. NoServiceError: it is no JSON object of a sensible size.
        """
        text = _text(response)
        if len(text) > MAX_JSON_BYTES:
            raise NoServiceError(f"the service at {self.url} answers without end")
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ServiceUnreachableError(f"the service at {self.url} answered with half a JSON") from error
        if not isinstance(found, dict):
            raise NoServiceError(f"the service at {self.url} answered with JSON that is no object")
        return found

    def page(self, path: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The first page of a list: all of it where the service is too old to order and search it."""
        found = self.json("GET", path, params=params)
        items: list[dict[str, Any]] = list(found.get("items", []))
        return items if self.minor >= SEARCHES_SINCE else list(self.pages(path))

    def pages(self, path: str, params: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page."""
        cursor: str | None = None
        while True:
            more = {"limit": MAX_PAGE, **(params or {}), **({"cursor": cursor} if cursor else {})}
            page = self.json("GET", path, params=more)
            yield from page.get("items", [])
            following = page.get("next")
            if not following or following == cursor:
                return
            cursor = str(following)


def _is_short(response: requests.Response) -> bool:
    length = response.headers.get("Content-Length", "")
    return response.request.method == "HEAD" or (length.isdigit() and int(length) < _LONG)


def _text(response: requests.Response) -> bytes:
    """A whole answer, or a little more than the most we read."""
    text = bytearray()
    for piece in response.iter_content(1 << 16):
        text += piece
        if len(text) > MAX_JSON_BYTES:
            break
    return bytes(text)


def _problem(response: requests.Response) -> Problem:
    """The body of a problem answer, empty where it is none of ours."""
    if "json" not in response.headers.get("Content-Type", ""):
        return {}
    with contextlib.suppress(requests.RequestException, ValueError):
        text = _text(response)
        found = json.loads(text) if len(text) <= MAX_JSON_BYTES else None
        if isinstance(found, dict):
            return found  # type: ignore[return-value]  # any member may be missing
    return {}


def _retry_after(response: requests.Response) -> float:
    """Seconds of a Retry-After header (a number or a date), 0 without one."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return 0.0
    seconds = 0.0
    if text.replace(".", "", 1).isdigit():
        seconds = float(text)
    else:
        with contextlib.suppress(TypeError, ValueError):
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)


def _host(location: str) -> str:
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else "another path"
