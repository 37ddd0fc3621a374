"""Routes of the page that compares two results, or more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from mld_core.app.asking import Asked, Lib, Name, Named, Pics, answer, asked, place_of
from mld_core.app.library import Library, Place
from mld_core.app.problems import ProblemError
from mld_core.evaluation.results.many import MOST_OTHERS
from mld_core.views.comparing.many import Together, together
from mld_core.views.comparing.page import TaskError, check_tasks, comparison, last_pass, shared_splits
from mld_core.views.comparing.pairs import MOST_AT_ONCE, of_class, pairs
from mld_core.views.selection import Rows

routes = APIRouter()


@dataclass(frozen=True)
class Before:
    """The result that another is compared with."""

    model: str
    version: str
    result: str | None
    epoch: str | None = None


def before(
    a_model: Name = None, a_version: Name = None, a_result: Name = None, a_epoch: Name = None
) -> Before:
    """The result before, of the query string."""
    if not a_model or not a_version:
        raise ProblemError(
            400, "compare with what? give a_model and a_version", fix="Choose two runs at Home."
        )
    return Before(a_model, a_version, a_result or None, a_epoch or None)


Earlier = Annotated[Before, Depends(before)]


def _found(
    library: Library, names: Named, earlier: Before
) -> tuple[Place, Place, dict[str, Any], dict[str, Rows]]:
    """Both places, what changed from one to the other, and which rows did."""
    after = place_of(library, names)
    first = place_of(library, asked(earlier.model, earlier.version, earlier.result))
    try:
        check_tasks(first.result, after.result)
    except TaskError as error:
        raise ProblemError(400, str(error)) from error
    shared = shared_splits(first.result, after.result)
    if not shared:
        raise ProblemError(404, "the two results have no split in common")
    split = after.units.dataset if after.units.dataset in shared else shared[0]
    sides = []
    for one, epoch in ((first, earlier.epoch), (after, names.epoch)):
        last = last_pass(one.result, split).n_epoch
        run, text = one.run, epoch or ("none" if last is None else str(last))
        sides.append(library.place(run.model_name, run.version_name, one.result.result_name, split, text))
    a, b = sides
    key = ("compare", a.key, b.key)
    page, rows = b.units.memo.get_or(key, lambda: comparison(a.units, b.units))
    return a, b, page, rows


@routes.get("/compare")
def compare(library: Lib, names: Named, earlier: Earlier) -> Response:
    """What changed from one result to another."""
    _, b, page, _ = _found(library, names, earlier)
    return answer({"place": b.says(), **page})


@routes.get("/compare/pairs")
def changed(
    library: Lib,
    pictures: Pics,
    names: Named,
    earlier: Earlier,
    kind: Literal["fixed", "regressed"] = "regressed",
    truth: int | None = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_AT_ONCE)] = 24,
) -> Response:
    """The units that were fixed or regressed, before and after."""
    a, b, _, rows = _found(library, names, earlier)
    chosen = of_class(b.units, rows[kind], truth)
    found = pairs(a.units, b.units, chosen, offset, limit)
    for side, place in (("a", a), ("b", b)):
        pictures.marked(place.run, place.units.dataset, [one[side] for one in found])
    places = {"place": b.says(), "before": a.says()}
    return answer({**places, "total": len(chosen), "offset": offset, "limit": limit, "rows": found})


@dataclass(frozen=True)
class Several:
    """More than two results: their places, the splits that all have, and what is said of them together."""

    places: list[Place]
    splits: list[str]
    found: Together


def _several(library: Lib, of: Annotated[str, Query(max_length=40_000)], split: Name = None) -> Several:
    """The passes that are named: `model/version/result/epoch` with commas between, each name percent-encoded.

    An empty result is the newest, an empty epoch the last. The split is that of all, chosen as for two.
    """
    named = [tuple(map(unquote, one.split("/"))) for one in of.split(",") if one]
    if not 2 <= len(named) <= 1 + MOST_OTHERS or any(len(one) != 4 for one in named):
        wanted = f"2 to {1 + MOST_OTHERS} as model/version/result/epoch, with commas between"
        raise ProblemError(400, f"{len(named)} results: which to compare? {wanted}")
    places = [place_of(library, Asked(one[0], one[1], one[2] or None, None, None)) for one in named]
    shared = [one for one in places[0].result.datasets if all(one in each.result.datasets for each in places)]
    if not shared:
        raise ProblemError(404, "the results have no split in common")
    chosen = split if split in shared else places[0].units.dataset
    chosen = chosen if chosen in shared else shared[0]
    found = []
    for one, (*_, text) in zip(places, named, strict=True):
        last = last_pass(one.result, chosen).n_epoch
        epoch = text or ("none" if last is None else str(last))
        run = one.run
        found.append(library.place(run.model_name, run.version_name, one.result.result_name, chosen, epoch))
    key = ("together", *(one.key for one in found))
    try:
        made = found[0].units.memo.get_or(key, lambda: together([one.units for one in found]))
    except TaskError as error:
        raise ProblemError(400, str(error)) from error
    return Several(found, shared, made)


Compared = Annotated[Several, Depends(_several)]


@routes.get("/compare/many")
def compare_more(several: Compared) -> Response:
    """Each result against the first, and what all get wrong, some, or none."""
    return answer({"splits": several.splits, **several.found.page})


@routes.get("/compare/many/rows")
def rows_of_many(
    pictures: Pics,
    several: Compared,
    kind: Literal["all", "some", "none", "fixed", "regressed"] = "some",
    at: Annotated[int, Query(ge=1, le=MOST_OTHERS)] = 1,
    truth: int | None = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_AT_ONCE)] = 24,
) -> Response:
    """The same units in every result, side by side."""
    places, found = several.places, several.found
    chosen = found.chosen(kind, min(at, len(places) - 1), truth)
    rows = found.side_by_side(chosen[offset : offset + limit])
    for number, place in enumerate(places):
        own = [row[number] for row in rows]
        pictures.marked(place.run, place.units.dataset, [one for one in own if one is not None])
    said = [one.says() for one in places]
    return answer({"places": said, "total": len(chosen), "offset": offset, "limit": limit, "rows": rows})
