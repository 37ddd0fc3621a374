"""Confusion as top, most confused and rest; heatmaps over two columns, every cell with its filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.results.database import units_database
from mld_core.evaluation.results.heatmap import heatmap as grid_of
from mld_core.evaluation.results.view import ALIASES
from mld_core.views.cards import named_class
from mld_core.views.charts import MAX_CLASSES
from mld_core.views.evaluation import boxed
from mld_core.views.selection import HeldUnits, Selection
from mld_core.views.tables import class_label, plain, pseudo_counts
from mld_core.views.units import PassUnits, rounded
from mld_core.views.words.sentences import column_text, literal, title

NOTHING, OTHER = -1, -2
PAIRS = 50
_TEXTS = {
    "classification": {NOTHING: "no prediction", OTHER: "other classes"},
    "boxes": {NOTHING: "(nothing predicted)", OTHER: "other classes"},
}
NO_TRUTH = "(no truth)"


def confusion(units: HeldUnits, condition: str = "", top: int = 5) -> dict[str, Any]:
    """Truth against prediction: a matrix of the classes with most errors, and the pairs by their counts.

    Args:
        units: The pass.
        condition: A filter.
        top: Pairs in the first list.

    Raises:
        FilterError: The filter is not understood.
    """
    chosen, names = Selection.of(units, condition), units.result.class_names
    n_class = int(units.result.info["passes"][units.index]["n_class"])
    boxes = boxed(units.result)
    truth, said = _sides(chosen, boxes=boxes)
    pairs, counts = np.unique(np.stack([truth, said], axis=1), axis=0, return_counts=True)
    wrong = pairs[:, 0] != pairs[:, 1] if len(pairs) else np.zeros(0, np.bool_)
    order = np.argsort(-counts[wrong], kind="stable")
    ranked, n = pairs[wrong][order], counts[wrong][order]
    listed = [
        _pair(truth, said, int(count), int(n.sum()), names)
        for (truth, said), count in zip(ranked[:PAIRS].tolist(), n, strict=False)
    ]
    rest = n[PAIRS:]
    held = n[:top].sum() / n.sum() if n.sum() else 0.0
    return {
        **_matrix(pairs, counts, n_class, names, boxes=boxes),
        "classes": _classes(pairs, counts, n_class, names),
        "pairs": {
            "top": listed[:top],
            "most": listed[top:],
            "rest": {"pairs": len(rest), "n": int(rest.sum()), "filter": None},
        },
        "sentence": f"{min(top, len(n))} of {len(n)} pairs hold {held:.0%} of the errors".replace("%", " %")
        if len(n)
        else "No errors.",
    }


def _sides(chosen: PassUnits, *, boxes: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    truth, said = chosen.truth, chosen.prediction
    if not boxes:
        inside = truth >= 0
        return truth[inside], said[inside]
    # A miss has a truth and no prediction; a false box has no truth.
    missed = np.asarray(chosen.column("unit_kind").cast(pa.string()).to_numpy(zero_copy_only=False)) == "gt"
    judged = chosen.errors >= 0
    return truth[judged], np.where(missed, NOTHING, said)[judged]


def _pair(truth: int, said: int, n: int, total: int, names: Sequence[str] | None) -> dict[str, Any]:
    return {
        "truth": named_class(truth, names),
        "said": named_class(said, names),
        "n": n,
        "share": plain(n / max(total, 1)),
        "filter": f"{_is('gt', truth)} and {_is('prediction', said)}",
    }


def _is(column: str, number: int) -> str:
    if number >= 0:
        return f"{column} = {number}"
    return (
        f"({column} is null or {column} < 0)" if column == "gt" else "(prediction is null or prediction < 0)"
    )


def _classes(
    pairs: NDArray[np.int64], counts: NDArray[np.int64], n_class: int, names: Sequence[str] | None
) -> list[dict[str, Any]]:
    if not len(pairs):
        return []
    known = pairs[:, 0] >= 0
    n = np.bincount(pairs[known, 0], counts[known], n_class)
    right = known & (pairs[:, 0] == pairs[:, 1])
    good = np.bincount(pairs[right, 0], counts[right], n_class)
    return [
        {
            "class": number,
            "name": class_label(number, names),
            "n": int(n[number]),
            "errors": int(n[number] - good[number]),
        }
        for number in np.flatnonzero(n).tolist()
    ]


def _matrix(
    pairs: NDArray[np.int64],
    counts: NDArray[np.int64],
    n_class: int,
    names: Sequence[str] | None,
    *,
    boxes: bool,
) -> dict[str, Any]:
    """The matrix of the classes with most errors; what is left out is gathered in one row and column."""
    shown = np.arange(n_class)
    if n_class > MAX_CLASSES:
        wrong = pairs[:, 0] != pairs[:, 1]
        both = np.concatenate([pairs[wrong, 0], pairs[wrong, 1]])
        weight = np.concatenate([counts[wrong], counts[wrong]])
        involved = np.bincount(both[both >= 0], weight[both >= 0], n_class)
        shown = np.sort(np.argsort(-involved, kind="stable")[:MAX_CLASSES])
    sides = [*shown.tolist(), OTHER, NOTHING]
    place = {number: at for at, number in enumerate(sides)}
    made = np.zeros((len(sides), len(sides)), np.int64)
    for (truth, said), n in zip(pairs.tolist(), counts.tolist(), strict=True):
        made[place.get(truth, place[OTHER]), place.get(said, place[OTHER])] += n
    rows = [at for at, number in enumerate(sides) if number >= 0 or made[at].any()]
    columns = [at for at, number in enumerate(sides) if number >= 0 or made[:, at].any()]
    made = made[rows][:, columns]
    total = made.sum(axis=1, keepdims=True)
    share = np.divide(made, total, out=np.full(made.shape, np.nan), where=total > 0)
    texts = _TEXTS["boxes" if boxes else "classification"]

    def name(number: int, *, row: bool) -> str:
        if number == NOTHING and row:
            return NO_TRUTH
        return texts[number] if number < 0 else class_label(number, names)

    return {
        "rows": [sides[at] for at in rows],
        "columns": [sides[at] for at in columns],
        "labels": [name(sides[at], row=True) for at in rows],
        "column_labels": [name(sides[at], row=False) for at in columns],
        "counts": made.tolist(),
        "share": [rounded(one) for one in share],
        "left_out": n_class - len(shown),
    }


def heatmap(units: HeldUnits, x: str, y: str, value: str, condition: str = "") -> dict[str, Any]:
    """A grid over two columns; of its cells those that hold units, each axis with the filters of its values.

    Args:
        units: The pass.
        x: A column, `confidence:10` for bins.
        y: Another.
        value: "error_rate", "counts", "share" or a numeric column.
        condition: A filter.

    Raises:
        FilterError: A name or filter that is not understood, or too many cells.
    """
    place = (units.dataset, units.n_epoch)
    weights = {place: pseudo_counts(units) or 0.0, (units.dataset, None): pseudo_counts(units) or 0.0}
    spill = units.result.folder.parent / ".spill"
    with units_database(spill, [units.path]) as connection:
        frame = grid_of(connection, units.schema, x, y, value, condition or None, weights)
    across, down = _axis(units, x, frame), _axis(units, y, frame)
    filled = frame[frame["counts"] > 0]
    judged = frame["n"].sum()
    cells = {
        "i": _places(filled[across["column"]], across["values"]),
        "j": _places(filled[down["column"]], down["values"]),
        "n": filled["counts"].tolist(),
        "errors": filled["errors"].tolist(),
        "raw": rounded(filled["raw"]),
        "value": rounded(filled["value"]),
        "lo": rounded(filled["value_lo"]),
        "hi": rounded(filled["value_hi"]),
        "sig": [bool(one) for one in filled["bh_sig"]],
    }
    return {
        "x": {name: across[name] for name in ("name", "title", "labels", "values")},
        "y": {name: down[name] for name in ("name", "title", "labels", "values")},
        "value": value,
        "overall": plain(frame["errors"].sum() / judged) if judged else None,
        "cells": cells,
        "filters": {"x": across["filters"], "y": down["filters"]},
        "presets": presets(units),
        "sentence": _said(cells["sig"], value),
    }


def _said(sig: Sequence[bool], value: str) -> str:
    count = sum(sig)
    if value in {"counts", "share"}:
        return "Counts as they are; a click opens the samples of a cell."
    return (
        f"{count} of {len(sig)} cells are worse than the whole beyond chance (Benjamini-Hochberg, 5 %); "
        "rates of small cells are drawn towards the whole."
    )


def _axis(units: HeldUnits, asked: str, frame: pd.DataFrame) -> dict[str, Any]:
    text = asked if asked in frame.columns else asked.partition(":")[0]
    column = ALIASES.get(text, text)
    kind = units.schema.field(column).type
    values = [_value(one) for one in pd.unique(frame[text])]
    names = units.result.class_names
    written = column_text(column)
    if pa.types.is_floating(kind) or (":" in asked and asked not in units.schema.names):
        step = (values[1] - values[0]) if len(values) > 1 else 1.0
        edges = [(one - step / 2, one + step / 2) for one in values]
        filters = [f"{written} >= {low:.6g} and {written} < {high:.6g}" for low, high in edges]
        if filters:  # what lies beyond the outer bins joins them
            filters[0] = f"{written} < {edges[0][1]:.6g}"
            filters[-1] = f"{written} >= {edges[-1][0]:.6g}" if len(filters) > 1 else f"{written} is not null"
        labels = [f"{one:.3g}" for one in values]
    else:
        filters = [f"{written} = {literal(one)}" for one in values]
        classes = column in {"gt", "prediction", "suggested_label"}
        labels = [
            class_label(int(one), names)
            if classes
            else str(one).replace("_", " ")
            if one in CATEGORIES
            else str(one)
            for one in values
        ]
    return {
        "column": text,
        "name": column,
        "title": title(column),
        "labels": labels,
        "values": values,
        "filters": filters,
    }


def _text(one: Any) -> str:
    return str(one).replace("_", " ") if one in CATEGORIES else str(one)


def _value(one: Any) -> Any:
    return one.item() if isinstance(one, np.generic) else one


def _places(column: pd.Series, values: Sequence[Any]) -> list[int]:
    number = {value: at for at, value in enumerate(values)}
    return [number[_value(one)] for one in column]


def presets(units: HeldUnits) -> list[dict[str, str]]:
    """The grids that make sense for a pass."""
    made = [
        {"x": "prediction", "y": "gt", "value": "share", "title": "Truth × prediction"},
        {"x": "category", "y": "gt", "value": "share", "title": "Category × class"},
        {"x": "confidence:10", "y": "gt", "value": "error_rate", "title": "Confidence × class"},
    ]
    task = units.result.task
    if task == "detection":
        made.append({"x": "center_x:16", "y": "center_y:16", "value": "error_rate", "title": "Image plane"})
        made.append({"x": "size_bucket", "y": "gt", "value": "error_rate", "title": "Size × class"})
    if task == "detection3d":
        made.append({"x": "azimuth:16", "y": "range:10", "value": "error_rate", "title": "Range × azimuth"})
        made.append({"x": "range:10", "y": "gt", "value": "error_rate", "title": "Range × class"})
    if task == "classification":
        made.append({"x": "pca_1:32", "y": "pca_2:32", "value": "error_rate", "title": "Map of the features"})
        made.append({"x": "region_id", "y": "gt", "value": "error_rate", "title": "Region × class"})
    return [one for one in made if _there(units, one["x"]) and _there(units, one["y"])]


def _there(units: HeldUnits, asked: str) -> bool:
    column = asked.partition(":")[0]
    return column in units.names and units.has(column)
