"""Precision and true-positive errors of 3D boxes by recall, matched anew from the records of the pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mld_core.evaluation.detection.records import read_boxes
from mld_core.evaluation.detection3d.profile import nuscenes_figures
from mld_core.evaluation.metrics.nuscenes import DISTANCES, ERRORS, NuscenesMetrics
from mld_core.records.format.layout import RunKey
from mld_core.views.tables import class_label, plain
from mld_core.views.units import PassUnits, rounded

MAX_CURVES = 20


def curves(units: PassUnits, names: Sequence[str] | None) -> dict[str, Any] | None:
    """Curves of the classes with most truths; None where the records are gone or hold no truth.

    Returns:
        `distances`, `errors` (names of the known ones), and for each class its name, truths, AP by distance
        (`ap`), `error` by name, `precision` (4 lists of 101 values at recalls 0 to 1) and `curve` (a list of
        101 for each error, None where the recall is not reached).
    """
    selection = units.records
    if selection is None:
        return None
    run = RunKey(units.result.model_name, units.result.version_name)
    records = read_boxes(selection, units.result.store.run_info(run))
    found = nuscenes_figures(records)
    if found is None or not records.truths.counts.any() or not len(records.predictions):
        return None
    order = np.argsort(-found.truths, kind="stable")
    classes = [int(one) for one in order if found.truths[one] > 0]
    known = [name for name in ERRORS if name != "ave" or found.velocities]
    return {
        "distances": list(DISTANCES),
        "errors": known,
        "classes": [_of_class(found, one, names, known) for one in classes[:MAX_CURVES]],
        "left_out": max(0, len(classes) - MAX_CURVES),
    }


def _of_class(
    found: NuscenesMetrics, number: int, names: Sequence[str] | None, known: Sequence[str]
) -> dict[str, Any]:
    def line(name: str) -> list[float | None]:
        return rounded(found.curve[ERRORS.index(name), number], 3)

    return {
        "name": class_label(number, names),
        "truths": int(found.truths[number]),
        "ap": rounded(found.ap[:, number]),
        "error": {name: plain(float(found.error[ERRORS.index(name), number])) for name in known},
        "precision": [rounded(found.precision[t, number], 3) for t in range(len(DISTANCES))],
        "curve": {name: line(name) for name in known},
    }
