"""Gathers all that the page of a detection shows; what 2D and what 3D results have in common is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mld_core.evaluation.results.result import Result
from mld_core.report import scenes_3d
from mld_core.report.gallery import gallery_parts
from mld_core.report.outline import (
    Gathered,
    chosen_passes,
    last_of_each_split,
    note_bounds,
    noted_map,
    page_content,
)
from mld_core.views import charts, detection_tables, samples, tables
from mld_core.views.box_charts import box_confusion, box_curves, box_sizes, tide_rows
from mld_core.views.units import PassUnits, passes_of
from mld_core.views.words.texts_detection import COUNTS, DETECTION_METRICS

SOLID = "detection3d"


def detection_content(result: Result, image_fn: samples.ImageFn | None = None) -> dict[str, Any]:
    """All that the page of one detection shows, as plain values.

    Args:
        result: A result of task "detection" or "detection3d".
        image_fn: (dataset, input_id) -> the image, or None; of a 3D result also points (N, >= 3). Images are
            shown at up to 480 pixels, sharper than the thumbnails of the records, which stand in without.
    """
    gathered = Gathered()
    passes = passes_of(result)
    names = result.class_names
    metrics = tables.metric_rows(result, DETECTION_METRICS, COUNTS)
    last = last_of_each_split(passes)
    details = {
        str(place): pass_content(
            passes[place], names, gathered, image_fn, with_samples=last[passes[place].dataset] == place
        )
        for place in chosen_passes(passes, gathered)
    }
    judged = [int(row["n_pred"] or 0) for row in metrics]
    texts = tables.metric_texts(metrics, DETECTION_METRICS)
    return page_content(result, passes, judged, metrics, texts, details, gathered, images={})


def pass_content(
    units: PassUnits,
    names: Sequence[str] | None,
    gathered: Gathered,
    image_fn: samples.ImageFn | None,
    *,
    with_samples: bool,
) -> dict[str, Any]:
    """One pass: tables and matrices; map, curves and images only for the last epoch of a split."""
    n_class = int(units.result.info["passes"][units.index]["n_class"])
    codes, total = detection_tables.code_rows(units, names)
    diagnoses = tables.diagnosis_rows(units)
    note_bounds(gathered, len(codes), total, n_class)
    made: dict[str, Any] = {
        "codes": codes,
        "codes_total": total,
        "diagnoses": diagnoses,
        "steps": detection_tables.first_steps(codes, diagnoses),
        "confusion": box_confusion(units, n_class, names),
        "category_class": charts.category_by_class(units, n_class, names),
        "calibration": charts.calibration(units),
        "tide": tide_rows(units),
        "map": None,
        "regions": tables.region_rows(units, names),
        "slices": tables.slice_rows(units),
        "groups": [],
        "cards": {},
    }
    # Records hold a vector for each prediction: only the coordinates of the unit table are those of units.
    if with_samples and units.has("pca_1"):
        made["map"] = noted_map(units, "boxes", gathered)
    if units.result.task == SOLID:
        made["scenes"] = scenes_3d.scene_parts(
            units, names, gathered, image_fn=image_fn, with_samples=with_samples
        )
        return made
    curves = box_curves(units, names) if with_samples else None
    made["curves"] = curves
    made["sizes"] = box_sizes(units, curves)
    if with_samples:
        made |= gallery_parts(units, codes, gathered, image_fn=image_fn)
    return made
