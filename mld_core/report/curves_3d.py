"""Precision and true-positive errors of 3D boxes by recall, matched anew from the records of the pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mld_core.evaluation.detection.events import frame_chunks
from mld_core.evaluation.detection.records import BoxRecords, read_boxes
from mld_core.evaluation.metrics.nuscenes import (
    DISTANCES,
    ERRORS,
    NuscenesMetrics,
    NuscenesProfile,
    NuscenesState,
    match_nuscenes,
    nuscenes_metrics,
)
from mld_core.records.format.layout import RunKey
from mld_core.report.tables import class_label, plain
from mld_core.report.units import PassUnits, rounded

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
    if not records.truths.counts.any() or not len(records.predictions):
        return None
    found = road_metrics(records)
    order = np.argsort(-found.truths, kind="stable")
    classes = [int(one) for one in order if found.truths[one] > 0]
    known = [name for name in ERRORS if name != "ave" or found.velocities]
    return {
        "distances": list(DISTANCES),
        "errors": known,
        "classes": [_of_class(found, one, names, known) for one in classes[:MAX_CURVES]],
        "left_out": max(0, len(classes) - MAX_CURVES),
    }


def road_metrics(records: BoxRecords) -> NuscenesMetrics:
    """The nuScenes metrics of a pass over every recorded prediction, as the evaluation computed them."""
    profile = NuscenesProfile.of(records.class_names)
    points = None
    if "n_points" in records.truth_columns.column_names:
        points = records.truth_columns["n_points"].fill_null(-1).to_numpy()
    judged = records.labelled[records.predictions.frame]
    states = []
    for chunk in frame_chunks(records.frames.num_rows, records.predictions, records.truths):
        rows = np.arange(chunk.predictions.start, chunk.predictions.stop)
        rows = rows[judged[rows]]
        said, true = records.velocity, records.truth_velocity
        states.append(
            match_nuscenes(
                records.predictions.take(rows),
                records.truths.take(chunk.truths),
                profile,
                velocities=None if said is None else said[rows],
                true_velocities=None if true is None else true[chunk.truths],
                n_points=None if points is None else points[chunk.truths],
            )
        )
    return nuscenes_metrics(NuscenesState.merge(states), profile)


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
