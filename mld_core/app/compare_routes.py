"""Routes of the page that compares two results, or more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from mld_core.app.asking import Asked, Lib, Name, Named, Pics, answer, asked, result_of
from mld_core.app.library import Library, Place, epochs_of, first_split
from mld_core.app.problems import ProblemError
from mld_core.evaluation.errors import TaskError, known
from mld_core.evaluation.results.compare import check_tasks
from mld_core.evaluation.results.many import MOST_OTHERS
from mld_core.views.comparing.many import Together, side_by_side, together
from mld_core.views.comparing.page import comparison
from mld_core.views.comparing.pairs import MOST_AT_ONCE, of_class, pairs
from mld_core.views.selection import Rows

routes = APIRouter()


def before(
    a_model: Name = None, a_version: Name = None, a_result: Name = None, a_epoch: Name = None
) -> Asked:
    """The result before, of the query string."""
    if not a_model or not a_version:
        raise ProblemError(
            400, "compare with what? give a_model and a_version", fix="Choose two runs at Home."
        )
    return asked(a_model, a_version, a_result, None, a_epoch)


Of = Annotated[str, Query(max_length=40_000)]
Earlier = Annotated[Asked, Depends(before)]


def _named(of: str) -> list[Asked]:
    """Passes as the address names them: `model/version/result/epoch` with commas between, percent-encoded.

    An empty result is the newest, an empty epoch the last.
    """
    named = [tuple(map(unquote, one.split("/"))) for one in of.split(",") if one]
    if not 2 <= len(named) <= 1 + MOST_OTHERS or any(len(one) != 4 for one in named):
        wanted = f"2 to {1 + MOST_OTHERS} as model/version/result/epoch, with commas between"
        raise ProblemError(400, f"{len(named)} results: which to compare? {wanted}")
    return [asked(model, version, result, None, epoch) for model, version, result, epoch in named]


def _places(
    library: Library, named: Sequence[Asked], split: str | None, among: Sequence[Asked] = ()
) -> tuple[list[Place], list[str]]:
    """The passes that are named, over one split, and the splits that can be compared.

    Those are the splits that all of them hold in the epochs asked for, and that `among` does, too: what
    stands on the same page.
    """
    every = [*named, *among]
    results = [result_of(library, one) for one in every]
    tasks = [(result.result_name, result.task) for result in results]
    try:
        for other in tasks[1:]:
            check_tasks(tasks[0], other)
    except TaskError as error:
        raise ProblemError(400, str(error)) from error
    held = [epochs_of(result) for result in results]
    shared = [one for one in held[0] if all(one in each for each in held)]
    if not shared:
        raise ProblemError(404, "the results have no split in common")
    if split is not None and split not in shared:
        detail = f"no split {split!r} that all of these results hold (splits: {known(shared)})"
        raise ProblemError(404, detail)
    whole = [
        name
        for name in shared
        if all(one.epoch in {None, *each[name]} for one, each in zip(every, held, strict=True))
    ]
    # Where an epoch is nowhere, finding its pass says so.
    chosen = split or first_split(whole or shared)
    found = []
    for one, result, epochs in zip(named, results, held, strict=False):
        run = (result.model_name, result.version_name, result.result_name)
        found.append(library.place(*run, chosen, one.epoch or epochs[chosen][-1]))
    return found, whole


def _found(
    library: Library, names: Named, earlier: Earlier, of: Of = ""
) -> tuple[Place, Place, dict[str, Any], dict[str, Rows]]:
    """Both places, what changed from one to the other, and which rows did; `of`: all that the page shows."""
    (a, b), splits = _places(library, [earlier, names], names.split, _named(of) if of else ())
    key = ("compare", a.key, b.key)
    page, rows = b.units.memo.get_or(key, lambda: comparison(a.units, b.units))
    return a, b, {**page, "splits": splits}, rows


@routes.get("/compare")
def compare(library: Lib, names: Named, earlier: Earlier, of: Of = "") -> Response:
    """What changed from one result to another."""
    _, b, page, _ = _found(library, names, earlier, of)
    return answer({"place": b.says(), **page})


@routes.get("/compare/pairs")
def changed(
    library: Lib,
    pictures: Pics,
    names: Named,
    earlier: Earlier,
    of: Of = "",
    kind: Literal["fixed", "regressed"] = "regressed",
    truth: int | None = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_AT_ONCE)] = 24,
) -> Response:
    """The units that were fixed or regressed, before and after."""
    a, b, _, rows = _found(library, names, earlier, of)
    chosen = of_class(b.units, rows[kind], truth)
    found = pairs(a.units, b.units, chosen, offset, limit)
    for side, place in (("a", a), ("b", b)):
        pictures.marked(place.run, place.units.dataset, [one[side] for one in found])
    places = {"place": b.says(), "before": a.says()}
    return answer({**places, "total": len(chosen), "offset": offset, "limit": limit, "rows": found})


@dataclass(frozen=True)
class Several:
    """Two results or more: their places, the splits that all hold, and what is said of them together."""

    places: list[Place]
    splits: list[str]
    found: Together


def _several(library: Lib, of: Of, split: Name = None) -> Several:
    """The passes that are named, see `_named`."""
    found, splits = _places(library, _named(of), split or None)
    key = ("together", *(one.key for one in found))
    made = found[0].units.memo.get_or(key, lambda: together([one.units for one in found]))
    return Several(found, splits, made)


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
    places = several.places
    passes = [one.units for one in places]
    chosen = several.found.chosen(passes, kind, min(at, len(places) - 1), truth)
    rows = side_by_side(passes, chosen[offset : offset + limit])
    for number, place in enumerate(places):
        own = [row[number] for row in rows]
        pictures.marked(place.run, place.units.dataset, [one for one in own if one is not None])
    said = [one.says() for one in places]
    return answer({"places": said, "total": len(chosen), "offset": offset, "limit": limit, "rows": rows})
