"""The map of the features: where its points lie, what colours them, whose points may lie on one map."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mld_core.evaluation.errors import FilterError, near
from mld_core.views.facets import facet
from mld_core.views.selection import HeldUnits
from mld_core.views.words.sentences import title

AXES = ("pca_1", "pca_2")
_COLOURS = (
    *("category", "projected_category", "is_error", "primary_code", "gt", "prediction"),
    *(
        "error_proba",
        "confidence",
        "severity",
        "label_quality",
        "suggested_label",
        "loss",
        "entropy",
        "region_id",
        "error_code",
    ),
    *("tide_error", "size_bucket", "iou", "range", "azimuth"),
)


def feature_map(units: HeldUnits, colour: str = "") -> dict[str, Any]:
    """What the map of a pass needs beside its points.

    Args:
        units: The pass.
        colour: The column that colours the points; empty = the first of those that may.

    Returns:
        `there`: whether the pass has coordinates; `colours`: columns that may colour them; `legend`: the
        chosen one as a facet, None where it cannot colour; `shared`: splits whose points lie in the same
        space; `note`: why no others do.

    Raises:
        FilterError: An unknown column.
    """
    held = _filled(units)
    names = [name for name in (*_COLOURS, *_own(units)) if name in held]
    colour = colour or (names[0] if names else "category")
    if colour not in units.names:
        raise FilterError(f"colour {colour!r}: there is no such column{near(colour, names)}")
    shared = _shared(units)
    return {
        "axes": list(AXES),
        "there": set(AXES) <= held,
        "colour": colour,
        "colours": [{"name": name, "title": title(name)} for name in names],
        "legend": facet(colour, units, units),
        "shared": shared,
        "note": "" if shared else _note(units),
    }


def _own(units: HeldUnits) -> list[str]:
    """Fields that came with the samples."""
    return [
        item.name
        for item in units.schema
        if item.name.startswith("field_") and not pa.types.is_nested(item.type)
    ]


def _filled(units: HeldUnits) -> set[str]:
    """Columns that hold a value, as far as the file's own statistics say; nothing of them is read."""
    meta = pq.read_metadata(units.path)
    found = set()
    for group in range(meta.num_row_groups):
        for place in range(meta.num_columns):
            column = meta.row_group(group).column(place)
            counted = column.statistics if column.is_stats_set else None
            if counted is None or not counted.has_null_count or counted.null_count < column.num_values:
                found.add(column.path_in_schema)
    return found


def _shared(units: HeldUnits) -> list[str]:
    """Splits of the same epoch in whose space this pass was placed: those it was projected from."""
    return [
        str(one["projected_from"])
        for one in units.result.info.get("facts") or []
        if one["dataset"] == units.dataset
        and one["n_epoch"] == units.n_epoch
        and one.get("projected_from") is not None
    ]


def _note(units: HeldUnits) -> str:
    others = [one for one in units.result.datasets if one != units.dataset]
    if not others:
        return ""
    return (
        f"Axes: the two main directions of the features of {units.dataset}, at this epoch alone. Those of "
        f"{', '.join(others)} are others, so that its points cannot be laid over these."
    )
