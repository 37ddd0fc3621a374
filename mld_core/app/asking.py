"""What the routes share: the place a request is about, who asks, and answers as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from starlette.responses import Response

from mld_core.app.clouds.points import Clouds
from mld_core.app.jobs.protocol import Jobs
from mld_core.app.library import Library, Place
from mld_core.app.pictures import Pictures
from mld_core.app.problems import ProblemError
from mld_core.evaluation.results.result import Result
from mld_core.records.format.layout import RunKey
from mld_core.views.cards import Told
from mld_core.views.runs import evaluate_command

MOST_FILTER = 8_000


@dataclass(frozen=True)
class Shown:
    """What one reader is shown.

    Attributes:
        library: The runs they may see.
        pictures: Where pictures lie that were not recorded.
        jobs: Evaluations that they begin from a page.
        clouds: Where points of frames lie.
    """

    library: Library
    pictures: Pictures
    jobs: Jobs
    clouds: Clouds


def _shown(request: Request) -> Shown:
    found: Shown = request.app.state.shown(request.state.who)
    return found


def _library(request: Request) -> Library:
    return _shown(request).library


def _pictures(request: Request) -> Pictures:
    return _shown(request).pictures


def _clouds(request: Request) -> Clouds:
    return _shown(request).clouds


def _jobs(request: Request) -> Jobs:
    return _shown(request).jobs


Lib = Annotated[Library, Depends(_library)]
Pics = Annotated[Pictures, Depends(_pictures)]
Points = Annotated[Clouds, Depends(_clouds)]
Evaluations = Annotated[Jobs, Depends(_jobs)]
Name = Annotated[str | None, Query(max_length=1_000)]
Filter = Annotated[str, Query(alias="filter", max_length=MOST_FILTER)]
Sort = Annotated[str, Query(max_length=1_000)]


@dataclass(frozen=True)
class Asked:
    """The place that a request names."""

    model: str | None
    version: str | None
    result: str | None
    split: str | None
    epoch: str | None


def asked(
    model: Name = None, version: Name = None, result: Name = None, split: Name = None, epoch: Name = None
) -> Asked:
    """The place of the query string; an empty name is none."""
    return Asked(model or None, version or None, result or None, split or None, epoch or None)


def result_of(library: Library, names: Asked) -> Result:
    """The result; of a run that is not named the newest.

    Raises:
        ProblemError: It is not there; with the command where the run is not evaluated yet.
        NotFoundError: Likewise.
    """
    run = library.shown_run(names.model, names.version)
    if not library.evaluated(run):
        detail = f"{run.model_name} {run.version_name} is recorded and not evaluated yet."
        raise ProblemError(404, detail, fix="Evaluate it:", command=evaluate_command(run))
    return library.result(run, names.result)


def place_of(library: Library, names: Asked) -> Place:
    """The place, found and held.

    Raises:
        ProblemError: See `result_of`.
        NotFoundError: Likewise; or there is no such split or epoch.
    """
    found = result_of(library, names)
    run = (found.model_name, found.version_name)
    return library.place(*run, found.result_name, names.split, names.epoch)


def author(request: Request) -> str:
    """Who is asking."""
    return str(request.state.who.author)


def told(library: Library, run: RunKey, request: Request) -> Told:
    """What people said of the samples of a run, for who is asking."""
    return Told(author(request), library.standing(run))


def answer(content: Any) -> Response:
    """JSON; texts that are no valid Unicode are escaped, numbers that are none are refused."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), default=_plain)
    return Response(text.encode("ascii"), media_type="application/json")


def _plain(value: Any) -> Any:
    item: Callable[[], Any] | None = getattr(value, "item", None)
    if item is None:
        raise TypeError(f"{type(value).__name__} is not JSON")
    return item()


Named = Annotated[Asked, Depends(asked)]
