"""Gathers what the page of two detections shows: which truths are found that were missed, and which are lost.

2D and 3D results have all of it in common but the drawings: images with their boxes here, frames from
above in `comparison_frames`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from mld_core.evaluation.results.compare import Comparison
from mld_core.evaluation.results.result import Result
from mld_core.report import gallery
from mld_core.report.compared import (
    CLASS_ROWS,
    KINDS,
    Side,
    Sides,
    class_names,
    diagnosis_changes,
    note_epochs,
    of_dataset,
    of_epoch,
    outer,
    shared_splits,
    split_figures,
)
from mld_core.report.comparison_frames import frame_cards
from mld_core.report.frames_3d import FrameTable
from mld_core.report.outline import IMAGE_BYTES, Gathered
from mld_core.report.paired_truths import Pair, Tables, changed_pairs, paired_truths
from mld_core.views.box_charts import tide_rows
from mld_core.views.detection_tables import code_words
from mld_core.views.pictures import Canvas, Picture, canvases, pictures
from mld_core.views.samples import ImageFn
from mld_core.views.tables import class_label, plain
from mld_core.views.units import PassUnits
from mld_core.views.words.texts_detection import COUNTS, DETECTION_METRICS

CODE_ROWS = 20


def box_comparison(a: Result, b: Result, image_fn: ImageFn | None = None) -> dict[str, Any]:
    """All that the page of two detections of one task shows, as plain values; of each split the last epoch.

    Args:
        a: Before.
        b: After.
        image_fn: As of the page of one result.
    """
    gathered = Gathered()
    compared = a.compare(b)
    sides = (Side(a, DETECTION_METRICS, COUNTS), Side(b, DETECTION_METRICS, COUNTS))
    names = shared_splits(sides)
    splits = [_split(name, compared, sides, gathered, image_fn=image_fn, splits=len(names)) for name in names]
    note_epochs(sides, gathered)
    return {**outer(sides, splits, {}, gathered), "class_names": class_names(sides)}


def _split(
    name: str,
    compared: Comparison,
    sides: Sides,
    gathered: Gathered,
    *,
    image_fn: ImageFn | None,
    splits: int,
) -> dict[str, Any]:
    names = class_names(sides)
    truths = paired_truths(sides[0].units(name), sides[1].units(name))
    tables: Tables = (FrameTable.of(sides[0].units(name)), FrameTable.of(sides[1].units(name)))
    pairs = {kind: changed_pairs(truths, tables, kind) for kind in KINDS}
    first = [_wanted(pairs, side) for side in range(2)]
    rounds = _in_turns(pairs)
    if sides[1].result.task == "detection":
        cards = _image_cards(rounds, tables, first, image_fn, splits, gathered)
    else:
        cards = frame_cards(rounds, tables, first, image_fn, splits, gathered)
    made = {
        **split_figures(name, compared, sides),
        "classes": _classes(sides, name, names, truths, of_dataset(compared.classes, name)),
        "codes": diagnosis_changes(of_dataset(compared.codes, name)),
        "boxes": {
            key: [side.metric(name, column) for side in sides]
            for key, column in (("right", "n_tp"), ("false", "n_fp"), ("truths", "n_gt"))
        },
        "costs": _costs(sides, name),
        "errors": _error_codes(sides, name, names, gathered),
        "cards": cards,
    }
    for kind in KINDS:
        made[kind] = _shown(kind, name, truths, pairs[kind], cards, gathered)
    return made


def _wanted(pairs: Mapping[str, Sequence[Pair]], side: int) -> dict[int, set[int]]:
    """Image of one side -> its changed truths."""
    made: dict[int, set[int]] = {}
    for pair in (one for kind in KINDS for one in pairs[kind]):
        made.setdefault(pair.images[side], set()).update(one[side] for one in pair.truths)
    return made


def _in_turns(pairs: Mapping[str, Sequence[Pair]]) -> list[tuple[int, int]]:
    """The images that are drawn: the worst of each kind before the second of any."""
    most = max(len(one) for one in pairs.values())
    turns = [pairs[kind][place].images for place in range(most) for kind in KINDS if place < len(pairs[kind])]
    return list(dict.fromkeys(turns))


def _shown(
    kind: str,
    name: str,
    truths: pd.DataFrame,
    pairs: Sequence[Pair],
    cards: Mapping[str, Any],
    gathered: Gathered,
) -> dict[str, Any]:
    """The images of a kind that are drawn: `a` and `b` name their cards, `truths` what changed in them."""
    drawn = [pair for pair in pairs if {f"a{pair.images[0]}", f"b{pair.images[1]}"} <= set(cards)]
    own = truths[truths["change"] == kind]
    images = len(own[["input_id_a", "input_id_b"]].drop_duplicates())
    if len(drawn) < images:
        gathered.note(
            f"{name}: {len(drawn)} of {images} images or frames with {kind} boxes are shown, those with the "
            f"most first; Comparison.{kind} has all."
        )
    return {
        "n": len(own),
        "images": images,
        "cards": [
            {
                "a": f"a{one.images[0]}",
                "b": f"b{one.images[1]}",
                "truths": [list(pair) for pair in one.truths],
            }
            for one in drawn
        ],
    }


def _classes(
    sides: Sides, dataset: str, names: Sequence[str] | None, truths: pd.DataFrame, tested: pd.DataFrame
) -> list[dict[str, Any]]:
    """Recall of the paired truths of each class, what changed, and its AP, largest change first."""
    sure = {int(row["class"]): row for row in tested.to_dict("records")}
    precision = [_class_values(side, dataset, "auprc") for side in sides]
    made = []
    for number in sorted(set(truths["gt"].tolist())):
        own = truths[truths["gt"] == number]
        fixed, regressed = (int((own["change"] == kind).sum()) for kind in ("fixed", "regressed"))
        test = sure.get(number, {})
        found = [1 - float(own[f"error_{side}"].mean()) for side in "ab"]
        made.append(
            {
                "name": class_label(number, names),
                "n": len(own),
                "a": plain(found[0]),
                "b": plain(found[1]),
                "delta": plain(found[1] - found[0]),
                "fixed": fixed,
                "regressed": regressed,
                "p": plain(test.get("p_value")),
                "sig": bool(test["bh_sig"]) if "bh_sig" in test else None,
                "ap": [values.get(number) for values in precision],
            }
        )
    made.sort(key=lambda row: (-abs(row["delta"]), -row["fixed"] - row["regressed"], row["name"]))
    return made[:CLASS_ROWS]


def _class_values(side: Side, dataset: str, column: str) -> dict[int, Any]:
    frame = of_epoch(side.result.class_summary(dataset), side.units(dataset).n_epoch)
    if column not in frame.columns:
        return {}
    return {int(row["class"]): plain(row[column]) for row in frame.to_dict("records")}


def _costs(sides: Sides, dataset: str) -> list[dict[str, Any]]:
    """What each kind of error costs in AP on both sides; empty where a side does not know it."""
    before, after = ({row["name"]: row for row in tide_rows(side.units(dataset))} for side in sides)
    return [
        {
            **{key: row[key] for key in ("name", "title", "means")},
            "dap": [before[name]["dap"], row["dap"]],
            "n": [before[name]["n"], row["n"]],
        }
        for name, row in after.items()
        if name in before
    ]


def _error_codes(
    sides: Sides, dataset: str, names: Sequence[str] | None, gathered: Gathered
) -> list[dict[str, Any]]:
    """Units with each error code on both sides, the largest change first."""
    before, after = (_counted(side.units(dataset)) for side in sides)
    codes = sorted({*before, *after}, key=lambda code: (-abs(after[code] - before[code]), code))
    if len(codes) > CODE_ROWS:
        gathered.note(f"{dataset}: the {CODE_ROWS} of {len(codes)} error codes that changed most are listed.")
    return [
        {
            "code": code,
            **{key: code_words(code, names)[key] for key in ("truth", "said", "event")},
            "a": before[code],
            "b": after[code],
        }
        for code in codes[:CODE_ROWS]
    ]


def _counted(units: PassUnits) -> Counter[str]:
    wrong = np.asarray(units.errors == 1)
    found = pc.value_counts(units.column("error_code").cast("string").filter(wrong)).to_pylist()
    return Counter({str(row["values"]): int(row["counts"]) for row in found if row["values"] is not None})


# --- images -------------------------------------------------------------------------------------------------


def _image_cards(
    order: Sequence[tuple[int, int]],
    tables: Tables,
    first: Sequence[Mapping[int, set[int]]],
    image_fn: ImageFn | None,
    splits: int,
    gathered: Gathered,
) -> dict[str, dict[str, Any]]:
    """Both sides of each image as `gallery.cards` makes them, `a<number>` and `b<number>`.

    A picture both sides have in common is held once: that of `a` then says whose it is (`as`).
    """
    ids = [(tables[0].ids[a], tables[1].ids[b]) for a, b in order]
    found, known = _pictures(ids, tables, image_fn, IMAGE_BYTES // splits, gathered)
    made = []
    for side, table in enumerate(tables):
        numbers = list(dict.fromkeys(pair[side] for pair in order))
        room = gallery.BOX_BYTES // splits // 2
        made.append(gallery.cards(table, numbers, found[side], known[side], room, first[side]))
    cards: dict[str, dict[str, Any]] = {}
    for (a, b), (id_a, id_b) in zip(order, ids, strict=True):
        if str(a) not in made[0] or str(b) not in made[1]:
            continue
        before, after = cards[f"a{a}"], cards[f"b{b}"] = made[0][str(a)], made[1][str(b)]
        if before["picture"] is not None and found[0][id_a] is found[1].get(id_b):
            before["picture"] = {**before["picture"], "data": None, "as": f"b{b}"}
        if before["picture"] is None and after["picture"] is None:
            for name in ("width", "height"):
                if known[0].get(id_a, Canvas()).width == known[1].get(id_b, Canvas()).width:
                    before[name] = after[name] = max(before[name], after[name])
    if order and not any(found):
        gathered.note(
            f"{tables[1].units.dataset}: no images are at hand: boxes are drawn on empty canvases. Give the "
            "callback image_fn, or write_comparison an image_fn(dataset, input_id)."
        )
    return cards


def _pictures(
    ids: Sequence[tuple[str, str]], tables: Tables, image_fn: ImageFn | None, budget: int, gathered: Gathered
) -> tuple[list[dict[str, Picture]], list[dict[str, Canvas]]]:
    """The images of both sides and their recorded canvases, by input id.

    The image of one side stands for both where the recorded canvases are the same.
    """
    units = [table.units for table in tables]
    before: dict[str, Picture] = {}
    after, known_after, notes = pictures(units[1], [b for _, b in ids], image_fn, budget)
    known_before = canvases(units[0], [a for a, _ in ids])
    for a, b in ids:
        if b in after and known_before.get(a, Canvas()) == known_after.get(b, Canvas()):
            before[a] = after[b]
    spent = sum(4 * -(-len(one.data) // 3) for one in after.values())
    others = [a for a, _ in ids if a not in before]
    found, _, more = pictures(units[0], others, image_fn, max(0, budget - spent))
    before |= found
    for a, b in ids:
        if a in before and b not in after and known_before.get(a) == known_after.get(b):
            after[b] = replace(before[a])
            before[a] = after[b]
    for note in dict.fromkeys([*notes, *more]):
        gathered.note(note)
    return [before, after], [known_before, known_after]
