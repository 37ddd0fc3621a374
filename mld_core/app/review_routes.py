"""Routes of the review: verdicts given, taken back and accepted at once, what stands, exports."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from mld_core.app.asking import Asked, Filter, Lib, Named, Pics, answer, author, place_of, told
from mld_core.app.library import Library, Place
from mld_core.app.problems import ProblemError
from mld_core.evaluation.errors import NotFoundError
from mld_core.exchange.coco_patch import write_patch
from mld_core.exchange.kitti import write_corrected
from mld_core.exchange.relabel import write_relabel
from mld_core.records.format.layout import RunKey
from mld_core.records.store.verdict import BOX_KINDS, KINDS, TRUE_BOX_KINDS, UNSEEN, Subject, Verdict
from mld_core.records.store.verdict import place as written
from mld_core.views import reviewing
from mld_core.views.cards import BOX, Told, canvas_of, cards, named_class, subject_columns, subject_of

MOST_ITEMS = 1_000
BOX_SAID = (*BOX_KINDS, "ambiguous")
FIRST = 20


Coordinate = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]
Drawn = Annotated[list[Coordinate], Field(min_length=4, max_length=7)]


class Item(BaseModel):
    """One word on one unit; boxes are in the frame in which they were shown.

    Attributes:
        right: Where the true box of the unit lies, for "moved".
        drawn: An object of class `label` without a label, in the image of the unit, for "missing".
        agrees: Of a verdict on this unit, whose word this one repeats.
    """

    row: int = Field(ge=0)
    kind: str
    label: int | None = Field(default=None, ge=0)
    note: str = Field(default="", max_length=4_000)
    right: Drawn | None = None
    drawn: Drawn | None = None
    agrees: str | None = Field(default=None, pattern="^[0-9a-f]{16}$")


class Here(BaseModel):
    """The place."""

    model: str | None = None
    version: str | None = None
    result: str | None = None
    split: str | None = None
    epoch: str | int | None = None

    def asked(self) -> Asked:
        """As the query string would say it."""
        epoch = None if self.epoch is None else str(self.epoch)
        return Asked(self.model, self.version, self.result, self.split, epoch)


class Given(Here):
    """Words on units of a pass."""

    items: list[Item] = Field(min_length=1, max_length=MOST_ITEMS)


class Undone(Here):
    """Which verdicts are taken back."""

    ids: list[str] = Field(default_factory=list, max_length=100_000)
    last: bool = False


class Accepted(Here):
    """How many suspicions are accepted at once."""

    code: str = "C01"
    filter: str = Field(default="", max_length=8_000)
    limit: int = Field(ge=1, le=100_000)
    dry_run: bool = False


routes = APIRouter()


@routes.get("/verdicts")
def listed(
    library: Lib,
    request: Request,
    names: Named,
    show: Annotated[str, Query(pattern="^(all|conflicts|mine)$")] = "all",
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Response:
    """What stands of every reviewed subject."""
    run = library.run(names.model, names.version)
    heard = told(library, run, request)
    classes = library.class_names(run)
    rows = reviewing.verdict_rows(heard, classes, show, names.split)
    page = rows[offset : offset + limit]
    _with_rows(library, names, page)
    return answer(
        {
            "total": len(rows),
            "counts": reviewing.counts(heard, names.split),
            "rows": page,
            "problems": library.verdicts(run).read()[1],
            "authors": sorted({one.author for found in heard.standing.values() for one in found.heard}),
            "class_names": classes,
        }
    )


@routes.post("/verdicts")
def give(library: Lib, request: Request, said: Given) -> Response:
    """Say something of units."""
    place = place_of(library, said.asked())
    verdicts = _agreeing(library, place, said.items, author(request))
    written = library.say(place.run, verdicts, author(request))
    names = place.result.class_names
    return answer(
        {
            "verdicts": [
                {
                    "row": item.row,
                    "id": one.verdict_id,
                    "kind": one.kind,
                    "label": named_class(one.label, names),
                    "author": one.author,
                    "at": one.at,
                }
                for item, one in zip(said.items, written, strict=True)
            ],
            "progress": reviewing.progress(place.units, told(library, place.run, request)),
        }
    )


@routes.post("/verdicts/undo")
def undo(library: Lib, request: Request, said: Undone) -> Response:
    """Take words of one's own back."""
    run = library.run(said.model, said.version)
    book, who = library.verdicts(run), author(request)
    wanted = set(said.ids or (library.last_said(run, who) if said.last else []))
    if not wanted:
        raise ProblemError(409, "there is nothing of yours to take back")
    found = [one for one in book.read()[0] if one.verdict_id in wanted]
    if len(found) < len(wanted):
        raise ProblemError(404, f"{len(wanted) - len(found)} of these verdicts are not there")
    foreign = {one.author for one in found} - {who}
    if foreign:
        raise ProblemError(409, f"that is {', '.join(sorted(foreign))}'s word: give yours beside it")
    library.take_back(run, found, who)
    body: dict[str, Any] = {"undone": len(found)}
    if library.evaluated(run):
        place = place_of(library, said.asked())
        body["progress"] = reviewing.progress(place.units, told(library, run, request))
    return answer(body)


@routes.get("/suspects")
def suspects(
    library: Lib, pictures: Pics, request: Request, names: Named, code: str = "C01", condition: Filter = ""
) -> Response:
    """The suspects of a diagnosis, and how right they were so far."""
    place = place_of(library, names)
    heard = told(library, place.run, request)
    rows = reviewing.suspects(place.units, code, condition)
    return answer(
        {
            **reviewing.progress(place.units, heard, code, condition),
            "first": pictures.marked(place.run, place.units.dataset, cards(place.units, rows[:FIRST], heard)),
        }
    )


@routes.post("/verdicts/accept")
def accept(library: Lib, request: Request, said: Accepted) -> Response:
    """Accept the worst suspects nobody spoke of."""
    place = place_of(library, said.asked())
    heard = told(library, place.run, request)
    before = reviewing.progress(place.units, heard, said.code, said.filter)
    if not before["enough"] and not said.dry_run:
        raise ProblemError(409, before["sentence"])
    items = _acceptable(place, heard, said)
    verdicts = _verdicts(place, items, author(request))
    written = [] if said.dry_run else library.say(place.run, verdicts, author(request))
    after = before if said.dry_run else None
    return answer(
        {
            "accepted": len(items),
            "rows": [one.row for one in items],
            "ids": [one.verdict_id for one in written] if written else None,
            "progress": after
            or reviewing.progress(place.units, told(library, place.run, request), said.code, said.filter),
        }
    )


@routes.get("/export/formats")
def formats(library: Lib, request: Request, names: Named) -> Response:
    """What can be exported, and how corrections are applied."""
    run = library.run(names.model, names.version)
    found = reviewing.counts(told(library, run, request))
    task = library.row(run)["task"]
    boxes, solid = task == "detection", task == "detection3d"
    labels = "annotations.json -o corrected.json" if boxes else "train.csv -o corrected.csv"
    command = f"export -o relabel.json {run_options(run)}" if solid else f"apply {labels} {run_options(run)}"
    return answer(
        {
            "formats": [
                {"name": "relabel", "title": "relabel.json", "available": True, "why": None},
                {"name": "csv", "title": "CSV", "available": True, "why": None},
                {
                    "name": "kitti",
                    "title": "KITTI label_2",
                    "available": solid,
                    "why": None if solid else "KITTI's labels are 3D boxes; this is a " + task + ".",
                },
                {
                    "name": "coco",
                    "title": "COCO patch",
                    "available": boxes,
                    "why": None if boxes else "COCO holds boxes; this is a " + task + ".",
                },
            ],
            "labels": sum(found[kind] for kind in ("relabel", "missing", "nothing", "moved")),
            "conflicts": found["conflicts"],
            "commands": [f"mld review {command}"],
            "python": "from ml_debugger.review import apply\n\nfixed = apply("
            f"dataset, {run.model_name!r}, {run.version_name!r}, {names.split or 'train'!r})",
        }
    )


@routes.get("/export")
def export(library: Lib, request: Request, names: Named, format: str = "relabel") -> Response:  # noqa: A002  the address
    """The labels that stand as corrected, as a file."""
    run = library.run(names.model, names.version)
    found = told(library, run, request).standing.values()
    endings = {"relabel": (".json", "application/json"), "csv": (".csv", "text/csv; charset=utf-8")}
    endings |= {"coco": (".json", "application/json"), "kitti": (".zip", "application/zip")}
    if format not in endings:
        raise ProblemError(400, f"format {format!r}: expected relabel, csv, coco or kitti")
    ending, kind = endings[format]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"labels{ending}"
        if format == "kitti":
            write_corrected(path, library.store, run, found, library.class_names(run))
        elif format == "coco":
            write_patch(path, run, found, library.class_names(run))
        else:
            write_relabel(path, run, found, library.class_names(run))
        data = path.read_bytes()
    name = "relabel.json" if format == "relabel" else f"{format}-labels{ending}"
    head = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type=kind, headers=head)


def _verdicts(place: Place, items: Sequence[Item], who: str) -> list[Verdict]:
    """The words of a request as verdicts; everything is checked before anything is written."""
    corners = BOX.get(place.units.result.task, ())
    read = ["input_hash", "gt", "prediction", "suggested_label", *subject_columns(place.units)]
    read += [f"gt_{name}" for name in corners]
    over = [one.row for one in items if one.row >= place.units.rows]
    if over:
        raise NotFoundError(f"row {over[0]}: the pass has {place.units.rows:,} units")
    n_class = int(place.result.info["passes"][place.units.index]["n_class"])
    units = place.units.take([one.row for one in items], read)
    return [_verdict(place, item, unit, n_class, who) for item, unit in zip(items, units, strict=True)]


def _verdict(place: Place, item: Item, unit: dict[str, Any], n_class: int, who: str) -> Verdict:
    subject = subject_of(place.units, unit)
    corners = BOX.get(place.units.result.task, ())
    seen = [unit[f"gt_{name}"] for name in corners] if subject.truth is not None else None
    said_of: Sequence[str] = KINDS if seen is None else (*KINDS, *TRUE_BOX_KINDS)
    if item.drawn is not None:
        subject = replace(subject, truth=None, box=_recorded(place, item, item.drawn))
    if subject.box is not None:
        said_of = BOX_SAID
    label = _label(item, unit, n_class, said_of=said_of)
    corrects = subject.truth is not None and item.kind in TRUE_BOX_KINDS
    try:
        return Verdict(
            item.kind,
            place.units.dataset,
            subject.input_id,
            subject.truth,
            label=label,
            given=unit["gt"] if subject.box is None else None,
            input_hash=unit["input_hash"],
            note=item.note,
            result_name=place.result.result_name,
            author=who,
            box=subject.box,
            right=None if item.right is None else _recorded(place, item, item.right, seen),
            seen=written(seen) if corrects and seen is not None else None,
        )
    except ValueError as error:
        raise ProblemError(400, str(error)) from error


def _agreeing(library: Library, place: Place, items: Sequence[Item], who: str) -> list[Verdict]:
    """The words of a request, some of which repeat what another person said, to the number.

    Raises:
        ProblemError: Nobody said that of this unit.
    """
    agreed = any(one.agrees for one in items)
    heard = {one.verdict_id: one for one in library.verdicts(place.run).read()[0]} if agreed else {}
    own = iter(_verdicts(place, [one for one in items if one.agrees is None], who))
    verdicts = []
    for item in items:
        other = heard.get(item.agrees or "")
        if item.agrees is None:
            verdicts.append(next(own))
        elif other is None or other.dataset_type != place.units.dataset:
            raise ProblemError(404, "what is agreed with was not said of this split")
        else:
            verdicts.append(replace(other, author=who, note=item.note, at="", verdict_id=""))
    return verdicts


def _recorded(
    place: Place, item: Item, drawn: list[float], before: Sequence[float] | None = None
) -> tuple[float, ...]:
    """A box that was drawn, as the unit table would have it.

    Raises:
        ProblemError: It has another number of numbers than the boxes of this task.
    """
    units = place.units
    wanted = len(BOX.get(units.result.task, ()))
    if len(drawn) != wanted:
        raise ProblemError(400, f"a box of {len(drawn)} numbers: expected {wanted}")
    if units.result.task != "detection":
        return written(drawn)
    canvas = canvas_of(units, str(units.take([item.row], ["input_id"])[0]["input_id"]))
    return written(canvas.recorded(drawn, before))


def _label(item: Item, unit: dict[str, Any], n_class: int, said_of: Sequence[str]) -> int | None:
    """The class that goes with a word: the one that was given, else what the evaluation suggests or predicts.

    Raises:
        ProblemError: That word says nothing of such a unit, or no class is known.
    """
    if item.kind not in said_of:
        about = " of a box where no true one stands" if said_of is BOX_SAID else ""
        raise ProblemError(400, f"verdict {item.kind!r}{about}: expected one of {', '.join(said_of)}")
    if item.kind == "moved":
        _known_class(item, n_class)
        return None if item.label == unit["gt"] else item.label
    if item.kind not in {"relabel", "missing"}:
        return None
    if item.drawn is not None and item.label is None:
        raise ProblemError(400, f"which class has the box that was drawn in {unit['input_id']}?")
    known = unit["suggested_label"] if item.kind == "relabel" else unit["prediction"]
    label: int | None = known if item.label is None else item.label
    if label is None or not 0 <= label < n_class or (item.kind == "relabel" and label == unit["gt"]):
        raise ProblemError(400, f"which class is right for {unit['input_id']}? no other is suggested")
    return label


def _known_class(item: Item, n_class: int) -> None:
    if item.label is not None and item.label >= n_class:
        raise ProblemError(400, f"class {item.label}: the run has {n_class}")


def _acceptable(place: Place, heard: Told, said: Accepted) -> list[Item]:
    """The worst suspects nobody spoke of, with another class suggested."""
    rows = reviewing.suspects(place.units, said.code, said.filter)
    units = place.units.take(rows, ["gt", "suggested_label"])
    subjects = reviewing.subjects_of(place.units, rows)
    items: list[Item] = []
    for row, unit, subject in zip(rows.tolist(), units, subjects, strict=True):
        if len(items) == said.limit:
            break
        known = unit["suggested_label"] is not None and unit["suggested_label"] != unit["gt"]
        if known and subject not in heard.standing:
            items.append(Item(row=row, kind="relabel", label=unit["suggested_label"], note=UNSEEN))
    return items


def _with_rows(library: Library, names: Asked, page: list[dict[str, Any]]) -> None:
    """Where the reviewed samples stand in the newest result, where there is one."""
    for one in page:
        one["row"] = None
    run = library.run(names.model, names.version)
    if not library.evaluated(run):
        return
    for split in {one["split"] for one in page}:
        try:
            place = library.place(run.model_name, run.version_name, names.result, split)
        except NotFoundError:
            continue
        own = [one for one in page if one["split"] == split]
        wanted = [
            Subject(split, one["id"], one["truth"], None if one["box"] is None else tuple(one["box"]))
            for one in own
        ]
        found = library.rows_of(place, wanted)
        for one, subject in zip(own, wanted, strict=True):
            one["row"] = found.get(subject)


def run_options(run: RunKey) -> str:
    """The options of a command that name a run."""
    return f"--model {shlex.quote(run.model_name)} --version {shlex.quote(run.version_name)}"
