"""The metrics of a pass of 3D boxes, nuScenes' and KITTI's, and the states of parts that they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection.events import walk
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection3d.places import ego_places, image_boxes_of
from mld_core.evaluation.metrics.kitti import KittiFrames, KittiState, kitti_precisions
from mld_core.evaluation.metrics.nuscenes import (
    NuscenesMetrics,
    NuscenesProfile,
    NuscenesState,
    match_nuscenes,
    nuscenes_metrics,
)

NO_DIFFICULTY = -2
"""In place of a difficulty that is not recorded; counts as harder than hard."""


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


def nuscenes_figures(states: Sequence[NuscenesState], class_names: Sequence[str]) -> NuscenesMetrics:
    """NuScenes' metrics of some frames."""
    return nuscenes_metrics(NuscenesState.merge(states), NuscenesProfile.of(class_names))


def kitti_state(records: BoxRecords) -> KittiState | None:
    """What KITTI's metrics are computed from; None where the truths' difficulty is not recorded.

    Image boxes are not recorded: there is no image metric. Where every judged frame has its calibration,
    predictions are projected as KITTI's tools do: what lies outside the image is left out, what is too low
    in it is ignored.
    """
    if "difficulty" not in records.truth_columns.column_names:
        return None
    level = records.truth_columns["difficulty"].fill_null(NO_DIFFICULTY).to_numpy().astype(np.int64)
    predictions = records.predictions.take(np.flatnonzero(records.labelled[records.predictions.frame]))
    image, inside = image_boxes_of(records, predictions)
    if image is None and not records.labelled.any():
        image = np.zeros((0, 4))  # a part without judged frames lacks no camera
    frames = KittiFrames(predictions, records.truths, level, records.class_names, image)
    return KittiState.of(frames, number=records.frames.num_rows, seen=inside)


def kitti_figures(states: Sequence[KittiState | None], class_names: Sequence[str]) -> dict[str, float | None]:
    """KITTI's AP40 of some frames, nothing where no truth has a difficulty."""
    known = [one for one in states if one is not None]
    if not any((one.level != NO_DIFFICULTY).any() for one in known):
        return {}
    found = kitti_precisions(KittiState.merge(known), class_names).summary()
    return {name: value for name, value in found.items() if "image" not in name}
