"""NuScenes' metrics of a pass of 3D boxes, those of rooms, and the states of parts that they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection.events import walk
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection3d.places import all_rooms, ego_places
from mld_core.evaluation.metrics.indoor import IndoorState
from mld_core.evaluation.metrics.nuscenes import (
    NuscenesMetrics,
    NuscenesProfile,
    NuscenesState,
    match_nuscenes,
    nuscenes_metrics,
)


def points_in(records: BoxRecords) -> NDArray[np.integer] | None:
    """(G,) sensor points in the truths, -1 unknown; None where they are not recorded."""
    if "n_points" not in records.truth_columns.column_names:
        return None
    return np.asarray(records.truth_columns["n_points"].fill_null(-1).to_numpy())


def nuscenes_state(records: BoxRecords) -> NuscenesState | None:
    """NuScenes' matches of every recorded prediction of a pass; None without frames."""
    profile = NuscenesProfile.of(records.class_names)
    points, said, true = points_in(records), records.velocity, records.truth_velocity
    kinds, true_kinds = records.attribute, records.truth_attribute
    states = [
        match_nuscenes(
            step.predictions,
            step.truths,
            profile,
            velocities=None if said is None else said[step.rows],
            true_velocities=None if true is None else true[step.span],
            n_points=None if points is None else points[step.span],
            attributes=None if kinds is None else kinds[step.rows],
            true_attributes=None if true_kinds is None else true_kinds[step.span],
            places=ego_places(records, step.predictions.frame, step.predictions.box),
            true_places=ego_places(records, step.truths.frame, step.truths.box),
        )
        for step in walk(records)
    ]
    return NuscenesState.merge(states) if states else None


def indoor_state(records: BoxRecords) -> IndoorState:
    """What the figures of rooms are computed from, over every recorded prediction of judged frames."""
    if not all_rooms(records):
        return IndoorState.none(records.n_class, rooms=False)
    judged = np.flatnonzero(records.labelled[records.predictions.frame])
    return IndoorState.of(records.predictions.take(judged), records.truths, records.n_class)


def nuscenes_figures(states: Sequence[NuscenesState], class_names: Sequence[str]) -> NuscenesMetrics:
    """NuScenes' metrics of some frames."""
    return nuscenes_metrics(NuscenesState.merge(states), NuscenesProfile.of(class_names))
