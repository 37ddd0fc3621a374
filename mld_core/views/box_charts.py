"""The figures behind the charts of boxes: precision and recall, box errors, kinds of error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.detection.profile import coco_state
from mld_core.evaluation.detection.records import BoxRecords, read_boxes
from mld_core.evaluation.detection3d.figures import nuscenes_figures, nuscenes_state
from mld_core.evaluation.metrics.coco import (
    RECALLS,
    CocoState,
    coco_metrics,
    needed,
)
from mld_core.evaluation.metrics.nuscenes import DISTANCES, ERRORS, TP_DISTANCE
from mld_core.records.format.layout import RunKey
from mld_core.views.tables import class_label, plain
from mld_core.views.units import PassUnits, rounded
from mld_core.views.words.texts_detection import TIDE_TEXTS

MAX_CURVES = 40
IOUS = {0: 0.5, 5: 0.75}
"""Places in the thresholds of COCO, and what they are."""

_AREAS = 4
_ERROR = {
    "ate": ("Translation error", "m"),
    "ase": ("Scale error", "1 - IoU"),
    "aoe": ("Orientation error", "rad"),
    "ave": ("Velocity error", "m/s"),
}
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


# --- precision and recall -----------------------------------------------------------------------------------


def curves(units: PassUnits) -> dict[str, Any] | None:
    """Precision and, of 3D boxes, their errors by recall: matched anew from the records of the pass.

    Returns:
        `lines` (what each line is: an IoU or a distance), `errors` (name, title and unit of the known ones),
        `recall` (101), `classes` (name, class, truths, `ap` and `precision` by line, `errors` by name; all
        together first, then those with most truths) and how many classes are `left_out`. None where the
        records are gone or hold no truth.
    """
    selection = units.records
    if selection is None:
        return None
    run = RunKey(units.result.model_name, units.result.version_name)
    records = read_boxes(selection, units.result.store.run_info(run))
    if not records.truths.counts.any():
        return None
    solid = units.result.task == "detection3d"
    found = _solid_figures(records) if solid else _flat_figures(records)
    if found is None:
        return None
    lines, truths, ap, precision, errors = found
    order = [int(one) for one in np.argsort(-truths, kind="stable") if truths[one] > 0]
    names = units.result.class_names
    return {
        "lines": lines,
        "errors": [{"name": name, "title": _ERROR[name][0], "unit": _ERROR[name][1]} for name in errors],
        "at": f"within {TP_DISTANCE:g} m" if solid else "",
        "recall": rounded(RECALLS, 3),
        "classes": [
            {
                "name": "all classes" if len(one) > 1 else class_label(one[0], names),
                "class": None if len(one) > 1 else one[0],
                "truths": int(truths[one].sum()),
                "ap": rounded(ap[:, one].mean(axis=1)),
                "precision": [rounded(line, 3) for line in precision[:, one].mean(axis=1)],
                "errors": {name: rounded(_mean(curve[one]), 3) for name, curve in errors.items()},
            }
            for one in [*([order] if len(order) > 1 else []), *([one] for one in order[:MAX_CURVES])]
        ],
        "left_out": max(0, len(order) - MAX_CURVES),
    }


_Figures = tuple[list[str], Ints, Floats, Floats, dict[str, Floats]]
"""Lines, (K,) truths, (L, K) average precision, (L, K, 101) precision, (K, 101) errors by name."""


def _flat_figures(records: BoxRecords) -> _Figures | None:
    state = coco_state(records)
    if state is None:
        return None
    found = coco_metrics(state)
    precision = np.stack([precision_at_recalls(state, place) for place in IOUS])
    lines = [f"IoU {iou:.2f}" for iou in IOUS.values()]
    return lines, found.truths[:, 0], found.precision[list(IOUS), :, 0], precision, {}


def _solid_figures(records: BoxRecords) -> _Figures | None:
    state = nuscenes_state(records) if len(records.predictions) else None
    if state is None:
        return None
    found = nuscenes_figures([state], records.class_names)
    known = [name for name in ERRORS if name != "ave" or found.velocities]
    errors = {name: found.curve[ERRORS.index(name)] for name in known}
    return [f"{one:g} m" for one in DISTANCES], found.truths, found.ap, found.precision, errors


def _mean(curves: Floats) -> Floats:
    """(101,) mean of the (K, 101) curves that reach a recall, NaN where none does."""
    known = np.isfinite(curves)
    n = known.sum(axis=0)
    total = np.where(known, curves, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0))


def precision_at_recalls(state: CocoState, threshold: int) -> Floats:
    """(K, 101) interpolated precision of every class over all sizes; its mean is the average precision.

    Args:
        state: What matching found.
        threshold: Place of the IoU in COCO's thresholds.
    """
    bit = np.uint64(1) << np.uint64(threshold * _AREAS)
    counts = (state.ignored & bit) == 0
    right = (state.right & bit) > 0
    need = needed(state.truths[:, 0])
    made = np.zeros((len(state.truths), len(RECALLS)))
    order = np.lexsort((-state.score, state.label))
    order = order[counts[order]]
    edges = np.searchsorted(state.label[order], np.arange(len(state.truths) + 1))
    for k in range(len(state.truths)):
        hit = np.flatnonzero(right[order[edges[k] : edges[k + 1]]])
        if len(hit) and state.truths[k, 0]:
            precision = np.arange(1, len(hit) + 1) / (hit + 1)
            best = np.maximum.accumulate(precision[::-1])[::-1]
            reached = need[k] <= len(hit)
            made[k, reached] = best[need[k, reached] - 1]
    return made


# --- kinds of error -----------------------------------------------------------------------------------------


def tide_rows(units: PassUnits) -> list[dict[str, Any]]:
    """What each kind of error costs in AP, what it means, and how many units carry it; empty if unknown."""
    row = _metrics_row(units)
    counted = pc.value_counts(units.column("tide_error").cast("string")).to_pylist()
    n = {one["values"]: one["counts"] for one in counted}
    made = [
        {**vars(text), "dap": plain(row.get(f"dap_{text.name}")), "n": int(n.get(text.name, 0))}
        for text in TIDE_TEXTS
    ]
    return made if any(one["dap"] is not None for one in made) else []


def _metrics_row(units: PassUnits) -> dict[Any, Any]:
    return dict(units.result.metrics_summary(full=True).to_dict("records")[units.index])
