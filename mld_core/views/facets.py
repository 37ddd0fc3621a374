"""Each field as a filter: its values or its histogram, under a selection and in the whole pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.views.evaluation import category_filter
from mld_core.views.selection import HeldUnits, Selection
from mld_core.views.tables import class_label
from mld_core.views.units import PassUnits
from mld_core.views.words.sentences import CLASS_COLUMNS, column_text, filter_sentence, literal, title

MOST_VALUES = 30
MANY_VALUES = 1_000
"""A text column with more of them is an id, no facet."""

BINS = 20
_SOLID = ("cx", "cy", "cz", "w", "l", "h", "yaw", "vx", "vy")
_HIDDEN = frozenset(
    {"unit_id", "input_id", "input_hash", "id_source", "dataset", "n_epoch", "nonfinite", "neighbour_ids"}
    | {"recommended_action", "flags", "pca_1", "pca_2", "projected_category"}
    | {"truth_id", "det_idx", "gt_idx"}
    | {"local_error_lo", "predicted_risk_lo"}
    | {f"{side}{name}" for side in ("", "gt_") for name in ("x1", "y1", "x2", "y2", *_SOLID)}
)
_FIRST = ("is_error", "category", "gt", "prediction", "diagnosis", "error_code", "confidence", "error_proba")


def facets(units: HeldUnits, condition: str = "") -> dict[str, Any]:
    """The fields of a pass as filters; columns without values are left out.

    Args:
        units: The pass.
        condition: A filter: `n` is under it, `of` in the whole pass.

    Raises:
        FilterError: The filter is not understood.
    """
    chosen = Selection.of(units, condition)
    names = [item.name for item in units.schema if item.name not in _HIDDEN | set(units.axes)]
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    made = [facet(name, units, chosen) for name in names]
    return {"of": chosen.rows, "fields": [one for one in made if one is not None]}


def facet(name: str, units: HeldUnits, chosen: PassUnits) -> dict[str, Any] | None:
    """One column of the table as a filter; None where it holds nothing, or as many texts as ids have."""
    kind = units.schema.field(name).type
    if not units.has(name):
        return None
    if pa.types.is_floating(kind):
        return _histogram(name, units, chosen)
    if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        return _values(name, units, chosen, listed=True)
    if pa.types.is_nested(kind):
        return None
    return _values(name, units, chosen, listed=False)


def _counted(units: PassUnits, name: str, *, listed: bool) -> dict[Any, int]:
    column = units.column(name)
    values = pc.list_flatten(column.combine_chunks()) if listed else column
    return {
        one["values"]: one["counts"]
        for one in pc.value_counts(values).to_pylist()
        if one["values"] is not None
    }


def _values(name: str, units: HeldUnits, chosen: PassUnits, *, listed: bool) -> dict[str, Any] | None:
    of = units.memo.get_or(("facet", name), lambda: _counted(units, name, listed=listed))
    if len(of) > MANY_VALUES:
        return None
    n = of if chosen is units else _counted(chosen, name, listed=listed)
    ranked = sorted(of, key=lambda value: (-n.get(value, 0), -of[value], str(value)))
    return {
        "name": name,
        "title": title(name),
        "kind": "values",
        "values": [
            {
                "value": value,
                "text": value_text(name, value, units),
                "n": n.get(value, 0),
                "of": of[value],
                "filter": value_filter(name, value, units, listed=listed),
            }
            for value in ranked[:MOST_VALUES]
        ],
        "more": max(0, len(ranked) - MOST_VALUES),
    }


def value_text(name: str, value: Any, units: PassUnits) -> str:
    """A value in words."""
    if name in CLASS_COLUMNS:
        return class_label(int(value), units.result.class_names)
    if name in {"diagnosis", "is_error", "category", "primary_code"}:
        said = filter_sentence(f"{name} = {literal(value)}", None)
        return f"{value} {said}" if name in {"diagnosis", "primary_code"} else said
    return str(value)


def value_filter(name: str, value: Any, units: PassUnits, *, listed: bool) -> str:
    """The filter of the units of a value."""
    if name == "category":
        return category_filter(value, units)
    return f"{column_text(name)} {'has' if listed else '='} {literal(value)}"


def _histogram(name: str, units: HeldUnits, chosen: PassUnits) -> dict[str, Any] | None:
    whole = units.floats(name)
    known = whole[np.isfinite(whole)]
    if not len(known):
        return None
    low, high = float(known.min()), float(known.max())
    if name in {"confidence", "error_proba"}:
        low, high = 0.0, 1.0
    # Rounded as the filters are written, before anything is counted.
    steps = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    ends = [f"{one:.6g}" for one in steps]
    edges = np.array([float(one) for one in ends])
    edges[0], edges[-1] = -np.inf, np.inf
    of = np.histogram(known, edges)[0]
    inside = whole if chosen is units else chosen.floats(name)
    n = np.histogram(inside[np.isfinite(inside)], edges)[0]
    written = column_text(name)
    # The outer bins hold what a rounded bound would lose.
    tests = [f"{written} >= {ends[at]} and {written} < {ends[at + 1]}" for at in range(BINS)]
    tests[0], tests[-1] = f"{written} < {ends[1]}", f"{written} >= {ends[-2]}"
    return {
        "name": name,
        "title": title(name),
        "kind": "histogram",
        "low": low,
        "high": high,
        "edges": [float(one) for one in ends],
        "n": n.tolist(),
        "of": of.tolist(),
        "filters": tests,
    }


def columns_info(units: HeldUnits) -> list[dict[str, Any]]:
    """The columns a filter or an order may name."""
    made = []
    for item in units.schema:
        kind = "text"
        if pa.types.is_list(item.type):
            kind = "list"
        elif pa.types.is_nested(item.type):
            continue
        elif pa.types.is_boolean(item.type):
            kind = "boolean"
        elif pa.types.is_integer(item.type) or pa.types.is_floating(item.type):
            kind = "number"
        made.append({"name": item.name, "type": kind, "title": title(item.name), "sortable": kind != "list"})
    return made
