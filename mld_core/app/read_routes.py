"""Routes that read an evaluation: summary, samples, facets, matrices, columns."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from mld_core.app.asking import Evaluations, Filter, Lib, Name, Named, Pics, Sort, answer, place_of, told
from mld_core.app.library import Place
from mld_core.app.pictures import Pictures
from mld_core.app.problems import ProblemError
from mld_core.evaluation.errors import FilterError
from mld_core.views import box_charts, matrices
from mld_core.views import facets as facet_views
from mld_core.views.cards import MOST_AT_ONCE, cards
from mld_core.views.columns.feature_map import feature_map
from mld_core.views.columns.packed import packed
from mld_core.views.columns.umap import umap_of
from mld_core.views.detail import find_row, sample
from mld_core.views.evaluation import boxed, evaluation
from mld_core.views.reviewing import summary
from mld_core.views.units import passes_of
from mld_core.views.words.sentences import chips, filter_sentence

MOST_COLUMNS = 24


class EvaluationNote(BaseModel):
    """A note on an evaluation, and whether its review is done."""

    model: str
    version: str
    result: str
    note: str = Field(default="", max_length=10_000)
    review_state: str = Field(default="open", pattern="^(open|done)$")


routes = APIRouter()


def shown(pictures: Pictures, place: Place, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cards with whether there is a picture."""
    return pictures.marked(place.run, place.units.dataset, rows)


@routes.get("/evaluation")
def read_evaluation(
    library: Lib, pictures: Pics, request: Request, names: Named, condition: Filter = ""
) -> Response:
    """What the page of an evaluation holds."""
    place = place_of(library, names)
    heard = told(library, place.run, request)
    body = evaluation(place.units, condition, heard)
    shown(pictures, place, body["first"]["rows"])
    own = (library.shelf.info(place.run).get("evaluations") or {}).get(place.result.result_name) or {}
    verdicts = {**summary(heard, place.units.dataset), "changed": changed(place)}
    return answer(
        {
            "place": place.says(),
            **body,
            "verdicts": verdicts,
            "note": own.get("note", ""),
            "review_state": own.get("review_state", "open"),
        }
    )


@routes.post("/evaluation/note")
def note(library: Lib, said: EvaluationNote) -> Response:
    """Keep a note on an evaluation, and whether its review is done."""
    run = library.run(said.model, said.version)
    library.result(run, said.result)
    held = dict(library.shelf.info(run).get("evaluations") or {})
    held[said.result] = {"note": said.note, "review_state": said.review_state}
    library.update(run, evaluations=held)
    return answer(held[said.result])


@routes.get("/filter")
def read_filter(library: Lib, names: Named, condition: Filter = "") -> Response:
    """A filter in words and parts, and how many units it asks for."""
    place = place_of(library, names)
    classes = place.result.class_names
    total = len(place.units.chosen(condition))
    return answer(
        {
            "sentence": filter_sentence(condition, classes),
            "chips": chips(condition, classes),
            "total": total,
            "of": place.units.rows,
        }
    )


@routes.get("/samples")
def samples(
    library: Lib,
    pictures: Pics,
    request: Request,
    names: Named,
    condition: Filter = "",
    sort: Sort = "",
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_AT_ONCE)] = 60,
) -> Response:
    """A page of the units of a filter, in an order."""
    place = place_of(library, names)
    rows = place.units.chosen(condition, sort)
    badge = _badge(place, sort)
    page = cards(place.units, rows[offset : offset + limit], told(library, place.run, request), badge)
    return answer(
        {
            "place": place.says(),
            "total": len(rows),
            "of": place.units.rows,
            "offset": offset,
            "limit": limit,
            "pages": -(-len(rows) // limit),
            "sort": sort or "worst",
            "filter_sentence": filter_sentence(condition, place.result.class_names),
            "rows": shown(pictures, place, page),
        }
    )


@routes.get("/position")
def position(library: Lib, names: Named, row: int, condition: Filter = "", sort: Sort = "") -> Response:
    """Where a row stands in a selection."""
    rows = place_of(library, names).units.chosen(condition, sort)
    found = np.flatnonzero(rows == row)
    return answer({"index": int(found[0]) if len(found) else None, "total": len(rows)})


@routes.get("/sample")
def one(
    library: Lib,
    pictures: Pics,
    request: Request,
    names: Named,
    row: int | None = None,
    id: Annotated[str | None, Query(max_length=4_000)] = None,  # noqa: A002  as in the address
) -> Response:
    """A unit with its evidence."""
    place = place_of(library, names)
    if row is None and id is None:
        raise ProblemError(400, "which sample? give row or id")
    chosen = row if row is not None else find_row(place.units, str(id))
    others = [one for one in passes_of(place.result) if one.dataset != place.units.dataset]
    last = {one.dataset: one for one in others}
    body = sample(place.units, chosen, told(library, place.run, request), list(last.values()))
    shown(pictures, place, [body["sample"]])
    for near in body["neighbours"]:
        split = near["split"] or place.units.dataset
        near["picture"] = pictures.has(place.run, split, [near["id"]])[0]
    if body["frame"] is not None:
        shown(pictures, place, body["frame"]["units"])
    return answer({"place": place.says(), **body, "picture": {"has": body["sample"]["picture"]}})


@routes.get("/facets")
def facets(library: Lib, names: Named, condition: Filter = "") -> Response:
    """Each field as a filter."""
    place = place_of(library, names)
    key = ("facets", condition)
    return answer(place.units.memo.get_or(key, lambda: facet_views.facets(place.units, condition)))


@routes.get("/columns-info")
def columns_info(library: Lib, names: Named) -> Response:
    """What a filter or an order may name."""
    return answer({"columns": facet_views.columns_info(place_of(library, names).units)})


@routes.get("/confusion")
def confusion(
    library: Lib, names: Named, condition: Filter = "", top: Annotated[int, Query(ge=1, le=50)] = 5
) -> Response:
    """Truth against prediction."""
    place = place_of(library, names)
    key = ("confusion", condition, top)
    return answer(place.units.memo.get_or(key, lambda: matrices.confusion(place.units, condition, top)))


@routes.get("/heatmap")
def heatmap(
    library: Lib,
    names: Named,
    x: str = "prediction",
    y: str = "gt",
    value: str = "error_rate",
    condition: Filter = "",
) -> Response:
    """A grid over two columns."""
    place = place_of(library, names)
    key = ("heatmap", x, y, value, condition)
    return answer(place.units.memo.get_or(key, lambda: matrices.heatmap(place.units, x, y, value, condition)))


@routes.get("/curves")
def curves(library: Lib, names: Named) -> Response:
    """Precision and box errors by recall; null where the records are gone."""
    place = place_of(library, names)
    if not boxed(place.result):
        return answer(None)
    return answer(place.units.memo.get_or("curves", lambda: box_charts.curves(place.units)))


@routes.get("/map")
def map_of_features(library: Lib, jobs: Evaluations, names: Named, colour: Name = None) -> Response:
    """What the map of the features needs beside its points, which `/columns` gives."""
    place = place_of(library, names)
    key = ("map", colour)
    found = place.units.memo.get_or(key, lambda: feature_map(place.units, colour or ""))
    return answer({**found, "umap": umap_of(place.units) if jobs.maps else None})


@routes.get("/columns")
def columns(
    library: Lib,
    names: Named,
    columns: Annotated[str, Query(alias="names", max_length=2_000)] = "row",
    condition: Filter = "",
    sort: Sort = "",
    limit: Annotated[int | None, Query(ge=1)] = None,
) -> Response:
    """Columns of a selection as bytes."""
    place = place_of(library, names)
    wanted = columns.split(",")
    if len(wanted) > MOST_COLUMNS:
        raise FilterError(f"{len(wanted)} columns: at most {MOST_COLUMNS} at once")
    rows = place.units.chosen(condition, sort)[:limit]
    return Response(packed(place.units, rows, wanted), media_type="application/octet-stream")


def changed(place: Place) -> dict[str, Any] | None:
    """What became of the samples that were reviewed before this evaluation."""
    told = place.result.info.get("verdicts") or []
    return next((one for one in told if one["dataset"] == place.units.dataset), None)


def _badge(place: Place, sort: str) -> str:
    """The column whose value stands beside each sample: the one that orders them."""
    first = sort.partition(",")[0].strip().lstrip("-").strip("`")
    return first if first in place.units.names else ""
