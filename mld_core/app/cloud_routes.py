"""Routes of points: where they come from, and those of a frame."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from mld_core.app.asking import Lib, Named, Points, answer, place_of
from mld_core.app.clouds.formats import CloudError, read_points
from mld_core.app.clouds.points import sent_points
from mld_core.app.file.seen import boxes_of
from mld_core.app.pictures import CHECKED
from mld_core.app.problems import ProblemError
from mld_core.evaluation.errors import NotFoundError


class PointFiles(BaseModel):
    """Where points lie."""

    points: str | None = Field(max_length=4_000)
    columns: int | None = None
    model: str | None = None
    version: str | None = None
    split: str | None = None


routes = APIRouter()


@routes.get("/points")
def said(clouds: Points) -> Response:
    """Where points come from."""
    return answer(clouds.says())


@routes.post("/points")
def set_points(library: Lib, clouds: Points, wish: PointFiles) -> Response:
    """Take points from elsewhere."""
    try:
        clouds.set(wish.points or None, wish.columns)
    except ValueError as error:
        raise ProblemError(400 if clouds.allowed else 403, str(error)) from error
    try:
        run = library.run(wish.model, wish.version)
        split = wish.split or library.first_split(run) or "val"
        ids = library.some_ids(run, split, CHECKED)
    except NotFoundError:
        split, ids = "val", []
    return answer({**clouds.says(), **clouds.check(split, ids)})


@routes.get("/cloud")
def cloud(
    library: Lib,
    clouds: Points,
    request: Request,
    names: Named,
    id: Annotated[str, Query(max_length=4_000)],  # noqa: A002  as in the address
) -> Response:
    """The points of a frame as bytes."""
    place = place_of(library, names)
    try:
        path = clouds.path(place.units.dataset, id)
        if path is None:
            raise ProblemError(404, "there are no points of this frame")
        stamp = clouds.stamp(path, *place.says().values())
        headers = {"etag": stamp, "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == stamp:
            return Response(status_code=304, headers=headers)
        xyz = read_points(path, clouds.columns)
    except CloudError as error:
        raise ProblemError(415, str(error)) from error
    boxes = boxes_of(place.units, [id]).get(id, np.empty((0, 7)))
    return Response(sent_points(xyz, boxes), media_type="application/octet-stream", headers=headers)
