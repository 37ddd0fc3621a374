"""Routes of the page that follows trainings: how some runs stand, once or as a stream of what is new."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from urllib.parse import unquote

import anyio
from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mld_core.app.asking import Lib, answer, author
from mld_core.app.problems import ProblemError
from mld_core.app.training.watch import Streams, Watch
from mld_core.records.format.layout import RunKey
from mld_core.views.training.curves import Memory

MOST_RUNS = 10
STREAM_SECONDS = 60.0
"""A stream ends after them, and the page asks for the next: whether it still may is looked at anew."""

QUIET_SECONDS = 15.0
"""So often something is sent, that nobody between takes the stream for dead."""

routes = APIRouter()
_log = logging.getLogger("mld.app")


class Following:
    """What all readers of a server share.

    Args:
        ending: Whether the server is about to end; streams do, too.
        look_seconds: Between two looks at the folders of a run.
    """

    def __init__(self, ending: Callable[[], bool], look_seconds: float) -> None:
        self.ending, self.look_seconds = ending, look_seconds
        self.streams, self.memory = Streams(), Memory()


def _named(library: Lib, runs: Annotated[str, Query(max_length=20_000)]) -> list[RunKey]:
    """The runs of the query string: `model/version` with commas between, each name percent-encoded."""
    pairs = [tuple(map(unquote, one.split("/"))) for one in runs.split(",") if one]
    if not 1 <= len(pairs) <= MOST_RUNS or any(len(one) != 2 for one in pairs):
        raise ProblemError(400, f"which runs? 1 to {MOST_RUNS} as model/version, with commas between")
    return list(dict.fromkeys(library.run(*one) for one in pairs))


Runs = Annotated[list[RunKey], Depends(_named)]


def _following(request: Request) -> Following:
    found: Following = request.app.state.following
    return found


@routes.get("/training")
def training(library: Lib, request: Request, runs: Runs) -> Response:
    """How some runs stand."""
    return answer({"runs": Watch(library, runs, _following(request).memory).look()})


@routes.get("/training/events")
def events(library: Lib, request: Request, runs: Runs) -> Response:
    """The same as server-sent events: all of it, then those runs of which something changed."""
    following, reader = _following(request), author(request)
    following.streams.enter(reader)
    watch = Watch(library, runs, following.memory)
    seen = request.headers.get("last-event-id", "")
    return _Events(_told(watch, following, seen), lambda: following.streams.leave(reader))


class _Events(StreamingResponse):
    """Events; when nobody listens any more, whatever the reason, `left` is called."""

    def __init__(self, content: AsyncIterator[str], left: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._left = left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._left()


async def _told(watch: Watch, following: Following, seen: str) -> AsyncIterator[str]:
    yield "retry: 500\n\n"
    begun = said = time.monotonic()
    while time.monotonic() - begun < STREAM_SECONDS and not following.ending():
        try:
            changed = await run_in_threadpool(watch.look)
        except OSError as error:  # a folder that goes while it is read
            _log.warning("a run could not be looked at: %s", error)
            changed = []
        text = json.dumps({"runs": changed}, allow_nan=False, separators=(",", ":")) if changed else ""
        now, name = time.monotonic(), _name(changed)
        if text and name != seen:
            yield f"id: {name}\ndata: {text}\n\n"
            said = now
        elif now - said > QUIET_SECONDS:
            yield ": nothing is new\n\n"
            said = now
        seen = ""  # of the first event alone: what a stream that was lost has told already
        await anyio.sleep(following.look_seconds)


def _name(changed: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:16]
