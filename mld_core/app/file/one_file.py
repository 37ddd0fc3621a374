"""The app in one file: its pages, and beside them every row of a result, for people without a server.

The page carries a content security policy that allows the one script in the file, by its SHA-256, and no
address: nothing is fetched, and no text of a record can run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mld_core import __version__
from mld_core.app.file.packing import Block
from mld_core.app.file.seen import MOST_ROWS, Seen, seen
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.results.result import Result
from mld_core.evaluation.results.view import ALIASES
from mld_core.records.store.verdict import BOX_KINDS, KINDS, TRUE_BOX_KINDS
from mld_core.views import box_charts, detail, facets, matrices
from mld_core.views.cards import BOX, canvas_of, cards, named_class
from mld_core.views.evaluation import boxed, evaluation, splits
from mld_core.views.samples import ImageFn
from mld_core.views.selection import HeldUnits, held
from mld_core.views.stored import probabilities
from mld_core.views.tables import plain
from mld_core.views.units import PassUnits, passes_of
from mld_core.views.words.texts import CATEGORY_TEXTS, PAIR_ACTION

STATIC = Path(__file__).parents[1] / "static" / "file"
DETAILED = 100
OF_FINDING = 12
COMMONEST = 20
SEARCHED = 20_000
"""So many of the worst are looked through for the first of each finding."""

CHUNK = 20_000
_BOXES = {"box": "", "truth_box": "gt_"}
"""Parts of a sample that are boxes, and what the table's names of their columns begin with."""

_SAME = {
    "id": "input_id", "wrong": "is_error", "confidence": "confidence", "error_proba": "error_proba",
    "loss": "loss", "code": "error_code", "severity": "severity",
}  # fmt: skip
"""Parts of a sample that are columns of the table as they stand there."""

_NO_SCRIPT = "The pages are drawn by a script inside the file; your browser has scripts switched off."
_HIDDEN = frozenset({"unit_id", "input_hash", "id_source", "neighbour_ids", "flags"})


class NoPagesError(FileNotFoundError):
    """The app's pages are not built; the message says how."""


@dataclass
class OneFile:
    """A page in the making.

    Attributes:
        result: The result it is about.
        image_fn: (dataset, input_id) -> image of a sample without a recorded thumbnail.
        left_out: Sentences on what is not in it.
        blocks: The compressed columns, by the id of their element.
        seen: Pictures of samples and points of frames, by split.
    """

    result: Result
    image_fn: ImageFn | None = None
    left_out: list[str] = field(default_factory=list)
    blocks: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Say once what is missing."""
        if text not in self.left_out:
            self.left_out.append(text)

    def title(self) -> str:
        """Of the document."""
        return f"{self.result.model_name} {self.result.version_name}: evaluation"

    def first_rows(self, units: HeldUnits) -> list[int]:  # noqa: ARG002  a page of two results has some
        """Rows whose evidence and pictures come before those of the worst."""
        return []

    # -- data -----------------------------------------------------------------------------------------------

    def data(self) -> dict[str, Any]:
        """What the page must know, as plain values; the rows are in `blocks`."""
        result = self.result
        passes = passes_of(result)
        last = {one.dataset: one.index for one in passes}
        made = [
            self._pass(one, passes, shared=len(last), rows=last[one.dataset] == one.index) for one in passes
        ]
        if len(passes) > len(last):
            self.note(
                "Samples are those of the last epoch of each split; of earlier epochs the file has what the "
                "page of an evaluation says of them. `mld ui` has every epoch's samples."
            )
        return {
            "place": {
                "model": result.model_name,
                "version": result.version_name,
                "result": result.result_name,
                "task": result.task,
                "unit": "sample" if result.task == "classification" else "box",
            },
            "aliases": dict(ALIASES),
            "answers": self._answers(passes),
            "passes": made,
            "pictures": {split: one.pictures for split, one in self.seen.items()},
            "points": {split: one.points for split, one in self.seen.items()},
            "cameras": {split: one.cameras for split, one in self.seen.items()},
            "left_out": self.left_out,
        }

    def _pass(
        self, one: PassUnits, passes: Sequence[PassUnits], *, shared: int, rows: bool
    ) -> dict[str, Any]:
        units = held(one)
        page = evaluation(units)
        page["first"] = {**page["first"], "rows": []}
        page |= {"verdicts": None, "note": "", "review_state": "open"}
        made: dict[str, Any] = {
            "split": one.dataset, "epoch": one.n_epoch, "rows": one.rows, "block": None, "columns": [],
            "cards": {}, "pair_action": PAIR_ACTION, "evaluation": page, "confusion": None,
            "heatmaps": [], "facets": None, "columns-info": None, "curves": None,
        }  # fmt: skip
        if not rows:
            return made
        boxes = boxed(self.result)
        made["curves"] = box_charts.curves(units) if boxes else None
        if one.rows > MOST_ROWS:
            what = "boxes" if boxes else "samples"
            self.note(
                f"{one.dataset}: {one.rows:,} {what} are too many for a file (at most {MOST_ROWS:,}); the "
                "page of the evaluation is about all of them, and `mld ui` shows each."
            )
            return made
        siblings = [other for other in passes if other.dataset != one.dataset]
        last = {other.dataset: other for other in siblings}
        wanted = list(dict.fromkeys([*self.first_rows(units), *_worst(units, page)]))
        self._see(units, wanted, shared)
        block = Block()
        made["cards"] = self._columns(units, block, _details(units, wanted, list(last.values())))
        name = f"mld-pass-{one.index}"
        self.blocks[name] = block.text()
        presets = matrices.presets(units)
        return made | {
            "block": name,
            "columns": block.columns,
            "confusion": matrices.confusion(units),
            "heatmaps": [matrices.heatmap(units, one["x"], one["y"], one["value"]) for one in presets],
            "facets": facets.facets(units),
            "columns-info": {"columns": facets.columns_info(units)},
        }

    def _see(self, units: HeldUnits, wanted: Sequence[int], shared: int) -> None:
        """Gather pictures and points of a split; boxes are then drawn in the frames of the pictures."""
        found = seen(units, wanted, self.image_fn, shared)
        for text in found.left_out:
            self.note(text)
        found.place(units)
        self.seen[units.dataset] = found

    def _columns(
        self, units: HeldUnits, block: Block, details: dict[int, dict[str, Any]]
    ) -> dict[str, str | list[str]]:
        """Put the table and the parts of every sample into the block; returns where each part stands."""
        for item in units.schema:
            if item.name not in _HIDDEN:
                block.add(item.name, units.column(item.name))
        held_names = {one["name"] for one in block.columns}
        pictures = self.seen[units.dataset].pictures
        parts: dict[str, list[Any]] = {}
        for start in range(0, units.rows, CHUNK):
            for card in cards(units, np.arange(start, min(start + CHUNK, units.rows), dtype=np.int32)):
                card["picture"] = card["id"] in pictures
                for key, value in card.items():
                    if key not in {"row", "hash", "badge"} and _SAME.get(key) not in held_names:
                        parts.setdefault(key, []).append(value)
        where: dict[str, str | list[str]] = {key: name for key, name in _SAME.items() if name in held_names}
        for key, values in parts.items():
            if key in _BOXES:
                where[key] = _box_columns(block, key, values, units)
            else:
                where[key] = f"card.{key}"
                block.add_values(f"card.{key}", values)
        block.add_json("card.details", [details])
        return where

    # -- answers that are the same whatever is asked --------------------------------------------------------

    def _answers(self, passes: Sequence[PassUnits]) -> dict[str, Any]:
        result = self.result
        where = {"model": result.model_name, "version": result.version_name}
        pictures = {
            "set": None,
            "kind": None,
            "recorded": any(one.pictures for one in self.seen.values()),
            "allowed": False,
            "sentence": "Pictures are those that the file brought along.",
        }
        row = {
            **where, "task": result.task, "created_at": str(result.info["completed_at"]),
            "state": "evaluated", "state_text": "evaluated", "samples": passes[-1].samples if passes else 0,
            "splits": result.datasets, "epochs": len({one.n_epoch for one in passes}), "metric": None,
            "spark": [], "categories": None, "action": None, "results": [result.result_name],
            "result": result.result_name, "tags": [], "note": "", "archived": False,
            "command": None, "headline": None,
        }  # fmt: skip
        problems = [{"severity": one["severity"], "message": one["message"]} for one in result.problems]
        return {
            "session": {
                "csrf": "", "author": "", "local": True, "store": None, "version": __version__,
                "open": {"page": "evaluation", **where}, "pictures": pictures, "runs": 1,
                "points": {"set": None, "columns": None, "allowed": False, "sentence": ""},
                "may": [], "leaves": False,
            },
            "runs": {
                "total": 1, "of": 1, "offset": 0, "search_help": "", "runs": [row],
                "unread": 0, "archived": 0, "away": False,
            },
            "run": {
                "run": row,
                "results": [
                    {
                        "result": result.result_name,
                        "completed_at": result.info["completed_at"],
                        "method": result.method_name,
                        "splits": result.datasets,
                        "epochs": {one["split"]: one["epochs"] for one in splits(result)},
                    }
                ],
                "passes": [],
                "class_names": result.class_names,
                "command": None,
                "problems": problems,
            },
            "vocabulary": {
                "categories": [vars(one).copy() for one in CATEGORY_TEXTS],
                "findings": [_finding(code) for code in BY_CODE],
                "verdicts": [],
                "events": {},
            },
            "verdicts": {
                "total": 0, "counts": dict.fromkeys((*KINDS, *BOX_KINDS, *TRUE_BOX_KINDS, "conflicts"), 0),
                "rows": [], "problems": [], "authors": [],
            },
            "pictures": pictures,
        }  # fmt: skip

    # -- the page -------------------------------------------------------------------------------------------

    def page(self, static: Path = STATIC) -> str:
        """The HTML.

        Raises:
            NoPagesError: The app is not built.
        """
        if self.result.task == "detection3d":  # the one with the 3D view
            static /= "solid"
        script, style = static / "app.js", static / "app.css"
        if not script.is_file():
            raise NoPagesError("the app's pages are not built here: make app (needs Node.js and npm)")
        code = script.read_text("utf-8").replace("</script", "<\\/script").replace("<!--", "<\\!--")
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        policy = (
            f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'"
        )
        data = embedded_json(self.data())
        title = html.escape(self.title())
        parts = [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f'<meta name="generator" content="ml-debugger {__version__}">',
            f'<link rel="icon" href="data:,">\n<title>{title}</title>',
            f"<style>\n{style.read_text('utf-8') if style.is_file() else ''}</style>\n</head>\n<body>",
            f"<noscript>{_NO_SCRIPT}</noscript>",
            '<div id="app"></div>',
            f'<script type="application/json" id="mld-data">{data}</script>',
            *(f'<script type="text/plain" id="{name}">{text}</script>' for name, text in self.blocks.items()),
            f'<script type="module">{code}</script>\n</body>\n</html>\n',
        ]
        return "\n".join(parts)


def embedded_json(value: Any) -> str:
    r"""JSON that may stand inside a script element: no text in it can end the element or begin a comment.

    Example:
        >>> embedded_json({"id": "</script>"})
        '{"id":"\\u003c/script\\u003e"}'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=_plain)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(value: Any) -> Any:
    item: Callable[[], Any] = value.item  # a number of numpy's
    return item()


def _finding(code: str) -> dict[str, Any]:
    one = BY_CODE[code]
    return {"code": code, "title": one.title, "severity": one.severity, "why": one.when, "action": one.action}


def _box_columns(
    block: Block, key: str, values: Sequence[Sequence[float] | None], units: HeldUnits
) -> list[str]:
    """The columns that hold the boxes of all samples: those of the table, or as the pictures show them."""
    names = BOX[units.result.task]
    own = [f"{_BOXES[key]}{name}" for name in names]
    ids = pc.unique(units.column("input_id")).to_pylist()
    if len(names) > 4 or all(canvas_of(units, one).straight for one in ids):
        return own
    lacking = [float("nan")] * len(names)
    table = np.array([lacking if one is None else one for one in values], np.float32)
    own = [f"card.{key}.{place}" for place in range(len(names))]
    for name, column in zip(own, table.T, strict=True):
        block.add(name, pa.chunked_array([pa.array(column)]))
    return own


def _worst(units: HeldUnits, page: dict[str, Any]) -> list[int]:
    """Rows that get details: the first of each finding and of the commonest codes, and the worst of all."""
    rows = [*units.chosen(page["first"]["filter"], page["first"]["sort"])[:DETAILED]]
    order = units.order()
    rows += [*order[:DETAILED]]
    wanted = {one["code"] for one in [*page["findings"], *page["codes"]["rows"][:COMMONEST]]}
    seen: Counter[str] = Counter()
    told = units.take(order[:SEARCHED], ["diagnosis", "error_code", "is_error"])
    for row, one in zip(order, told, strict=False):
        names = wanted.intersection([*(one["diagnosis"] or []), one["error_code"] if one["is_error"] else ""])
        seen.update(names)
        if any(seen[name] <= OF_FINDING for name in names):
            rows.append(row)
    return list(dict.fromkeys(int(row) for row in rows))


def _details(
    units: HeldUnits, rows: Sequence[int], siblings: Sequence[PassUnits]
) -> dict[int, dict[str, Any]]:
    """The evidence of some samples, by row."""
    told = units.take(rows, ["input_id", "neighbour_ids", "recommended_action"])
    boxes = boxed(units.result)
    ids = [str(one["input_id"]) for one in told]
    lines = {} if boxes else _histories(units, rows, ids)
    shown = cards(units, rows)
    names = units.result.class_names
    made = {}
    for row, raw, card in zip(rows, told, shown, strict=True):
        likely = [] if boxes else probabilities(units, row)
        near = detail.neighbours(units, raw["neighbour_ids"] or [], siblings)
        for one in near:
            one["picture"] = True
        truth = card["truth"]["class"] if card["truth"] else None
        made[row] = {
            "text": detail.sentences(card, units),
            "probabilities": [
                {**(named_class(number, names) or {}), "p": p, "truth": number == truth}
                for number, p in likely
            ],
            "probabilities_missing": detail.OF_BOXES if boxes else None if likely else detail.GONE,
            "neighbours": near,
            "history": lines.get(row, []),
            "fields": detail.own_fields(units, row),
        }
    return made


def _histories(units: HeldUnits, rows: Sequence[int], ids: Sequence[str]) -> dict[int, list[dict[str, Any]]]:
    """What the model said of some samples in each evaluated epoch of the split, oldest first."""
    names = units.result.class_names
    made: dict[int, list[dict[str, Any]]] = {row: [] for row in rows}
    wanted = pa.array(ids, pa.string())
    read = ("prediction", "is_error", "confidence", "error_proba", "loss")
    for one in passes_of(units.result):
        if one.dataset != units.dataset:
            continue
        column = one.column("input_id").combine_chunks().cast(pa.string())
        places = pc.index_in(wanted, value_set=column).to_pylist()
        there = [(row, place) for row, place in zip(rows, places, strict=True) if place is not None]
        for (row, _), unit in zip(there, one.take([place for _, place in there], read), strict=True):
            made[row].append(
                {
                    "epoch": one.n_epoch,
                    "said": named_class(unit["prediction"], names),
                    "wrong": unit["is_error"],
                    **{name: plain(unit[name]) for name in ("confidence", "error_proba", "loss")},
                }
            )
    return made
