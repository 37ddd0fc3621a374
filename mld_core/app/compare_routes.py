"""Routes of the page that compares two results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from mld_core.app.asking import Lib, Name, Named, Pics, answer, asked, place_of
from mld_core.app.library import Library, Place
from mld_core.app.problems import ProblemError
from mld_core.views.comparing.page import TaskError, check_tasks, comparison, last_pass, shared_splits
from mld_core.views.comparing.pairs import MOST_AT_ONCE, Rows, of_class, pairs

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
    key = ("compare", str(a.units.path))
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
