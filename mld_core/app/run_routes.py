"""Routes of the first page and of what every page needs: session, runs, pictures, words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from mld_core import __version__
from mld_core.app.asking import Asked, Lib, Name, Named, Pics, Points, answer, author
from mld_core.app.library import Library
from mld_core.app.pictures import CHECKED, kind_of
from mld_core.app.problems import ProblemError
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.errors import NotFoundError
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RunKey
from mld_core.views.evaluation import results_of
from mld_core.views.reviewing import VERDICTS
from mld_core.views.runs import SEARCH_HELP, find_runs, passes_listed
from mld_core.views.tables import class_label
from mld_core.views.words.texts import CATEGORY_TEXTS
from mld_core.views.words.texts_detection import EVENTS

MOST_RUNS = 500
LATELY = 1
"""Runs up to which the page opens with the evaluation of the newest."""

_WIDE = {"cache-control": "private, max-age=3600", "content-security-policy": "default-src 'none'; sandbox"}


class Tags(BaseModel):
    """Tags of a run."""

    model: str
    version: str
    tags: list[Annotated[str, Field(max_length=100)]] = Field(max_length=50)


class Note(BaseModel):
    """A note on a run."""

    model: str
    version: str
    note: str = Field(max_length=10_000)


class RunNames(BaseModel):
    """A run."""

    model: str
    version: str


class Bulk(BaseModel):
    """What is done to several runs at once."""

    runs: list[RunNames] = Field(min_length=1, max_length=MOST_RUNS)
    do: Literal["tag", "untag", "archive", "restore", "remove"]
    tag: str = Field(default="", max_length=100)
    dry_run: bool = False


class Images(BaseModel):
    """Where pictures lie."""

    images: str | None = Field(max_length=4_000)
    model: str | None = None
    version: str | None = None
    split: str | None = None


routes = APIRouter()


@routes.get("/session")
def session(library: Lib, pictures: Pics, clouds: Points, request: Request) -> Response:
    """Who asks, and what the page opens with."""
    runs = library.shelf.listed()[0]
    newest = library.shown_run(None, None) if runs else None
    opens: dict[str, Any] = {"page": "home"}
    if newest is not None and (len(runs) <= LATELY or library.evaluated_lately(newest)):
        page = "evaluation" if library.evaluated(newest) else "training"
        opens = {"page": page, "model": newest.model_name, "version": newest.version_name}
    return answer(
        {
            "csrf": request.state.who.csrf,
            "author": author(request),
            "may": sorted(request.state.who.may),
            "leaves": request.app.state.leaves,
            "local": request.app.state.local,
            "store": str(library.store.root) if request.app.state.local else None,
            "version": __version__,
            "open": opens,
            "runs": len(runs),
            "pictures": pictures.says(newest, None if newest is None else library.first_split(newest)),
            "points": clouds.says(),
            "command": None if runs else "make demo",
        }
    )


@routes.get("/runs")
def runs(
    library: Lib,
    request: Request,
    search: Annotated[str, Query(max_length=1_000)] = "",
    sort: Annotated[str, Query(max_length=200)] = "",
    tag: Name = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    offset: Annotated[int, Query(ge=0)] = 0,
    *,
    archived: bool = False,
) -> Response:
    """The runs of the store: those that are not put away, or those that are.

    A search finds among the runs whose lines are read; how many are not is said as `unread`.
    """
    shown, away = library.shelf.listed()
    every, others = (away, shown) if archived else (shown, away)
    plainly = not search.strip() and not tag and sort in {"", "-created_at"}
    if plainly:  # rows are made of those that are shown alone
        rows = library.rows(every[offset : offset + limit])
        total, unread = len(every), 0
        if request.app.state.local:  # a search may be next
            library.read_beside(every)
    else:
        lines, unread = library.known_rows(every)
        with library.held.beside.resting():
            found = [row for row in find_runs(lines, search, sort) if not tag or tag in row["tags"]]
        rows, total = found[offset : offset + limit], len(found)
    body = {"total": total, "of": len(every), "offset": offset, "search_help": SEARCH_HELP, "runs": rows}
    return answer({**body, "unread": unread, "archived": len(others), "away": archived})


@routes.post("/runs/bulk")
def bulk(library: Lib, request: Request, said: Bulk) -> Response:
    """Do something to several runs; deleting them is done once somebody has seen what goes.

    The answer has a row for each run: what goes, or went, and why not where it did not.
    """
    if said.do == "remove" and "delete" not in request.state.who.may:
        raise ProblemError(403, "You may not delete runs.", fix="Ask an admin.")
    if said.do in {"tag", "untag"} and not said.tag.strip():
        raise ProblemError(400, "which tag?")
    found = [library.run(one.model, one.version) for one in said.runs]  # all are there, or nothing is done
    rows = [_done(library, run, said) for run in dict.fromkeys(found)]
    return answer({"rows": rows, "failed": sum(one["error"] is not None for one in rows)})


def _done(library: Library, run: RunKey, said: Bulk) -> dict[str, Any]:
    row: dict[str, Any] = {"model": run.model_name, "version": run.version_name, "error": None, "gone": None}
    shelf = library.shelf
    try:
        if said.do == "remove":
            row["gone"] = vars(shelf.remove(run, dry_run=said.dry_run))
        elif said.do in {"archive", "restore"}:
            library.update(run, archived=said.do == "archive")
        else:
            there = [str(one) for one in shelf.info(run).get("tags") or [] if one != said.tag.strip()]
            library.update(run, tags=there + [said.tag.strip()] * (said.do == "tag"))
    except (OSError, ValueError, ProblemError) as error:
        row["error"] = str(getattr(error, "detail", error))
    return row


@routes.post("/runs/tags")
def tags(library: Lib, said: Tags) -> Response:
    """Set the tags of a run."""
    run = library.run(said.model, said.version)
    wanted = list(dict.fromkeys(one.strip() for one in said.tags if one.strip()))
    library.update(run, tags=wanted)
    return answer({"tags": wanted})


@routes.post("/runs/note")
def note(library: Lib, said: Note) -> Response:
    """Set the note on a run."""
    run = library.run(said.model, said.version)
    library.update(run, note=said.note)
    return answer({"note": said.note})


@routes.get("/run")
def one(library: Lib, names: Named) -> Response:
    """A run: its results and passes."""
    run = library.run(names.model, names.version)
    row = library.row(run)
    results = results_of(ResultStore(library.store, run))
    classes, n_class = library.class_names(run), library.n_class(run)
    return answer(
        {
            "run": row,
            "results": results,
            "passes": passes_listed(library.store, run),
            "n_class": n_class,
            "class_names": [class_label(number, classes) for number in range(n_class)],
            "command": row["command"],
            "problems": [] if not results else library.result(run, None).problems,
        }
    )


@routes.get("/vocabulary")
def vocabulary() -> Response:
    """Categories, findings and verdicts in words."""
    return answer(
        {
            "categories": [vars(one) for one in CATEGORY_TEXTS],
            "findings": [
                {
                    "code": one.code,
                    "title": one.title,
                    "severity": one.severity,
                    "why": one.when,
                    "action": one.action,
                }
                for one in BY_CODE.values()
            ],
            "verdicts": [
                {"kind": kind, "key": key, "about": about, "title": title, "means": means}
                for kind, key, about, title, means in VERDICTS
            ],
            "events": EVENTS,
        }
    )


@routes.get("/pictures")
def said(library: Lib, pictures: Pics, names: Named) -> Response:
    """Where pictures come from."""
    return answer(pictures.says(*_place(library, names)))


@routes.post("/pictures")
def set_pictures(library: Lib, pictures: Pics, wish: Images) -> Response:
    """Take pictures from elsewhere."""
    names = Asked(wish.model, wish.version, None, wish.split, None)
    run, split = _place(library, names)
    try:
        pictures.set(wish.images or None)
    except ValueError as error:
        raise ProblemError(400 if pictures.allowed else 403, str(error)) from error
    ids = library.some_ids(run, split, CHECKED) if run is not None and split is not None else []
    return answer({**pictures.says(run, split), **pictures.check(split or "val", ids)})


@routes.get("/picture")
def picture(
    library: Lib,
    pictures: Pics,
    names: Named,
    id: Annotated[str, Query(max_length=4_000)],  # noqa: A002  as in the address
    size: str = "thumb",
) -> Response:
    """The picture of a sample."""
    run = library.run(names.model, names.version)
    data = pictures.find(run, names.split or "val", id, full=size == "full")
    kind = None if data is None else kind_of(data)
    if data is None or kind is None:
        raise ProblemError(404, "there is no picture of this sample")
    return Response(data, media_type=kind, headers=_WIDE)


def _place(library: Library, names: Asked) -> tuple[RunKey | None, str | None]:
    try:
        run = library.run(names.model, names.version)
    except NotFoundError:
        return None, None
    return run, names.split or library.first_split(run)
