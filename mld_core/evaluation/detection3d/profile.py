"""What 3D boxes bring to the evaluation of a pass: metrics, T-codes, places on the road."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.codes.diagnosis import ranked
from mld_core.evaluation.detection.diagnoses import DETAILS, BoxDiagnoses
from mld_core.evaluation.detection.events import walk
from mld_core.evaluation.detection.evidence import BoxEvidence
from mld_core.evaluation.detection.profile import Findings, Profile
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import BoxColumns, BoxUnits, typed
from mld_core.evaluation.detection3d.bins import points_names, range_bin, range_names, speed_names
from mld_core.evaluation.detection3d.diagnoses import DIAGNOSES, RoadDiagnoses, diagnose_roads
from mld_core.evaluation.detection3d.evidence import RoadEvidence
from mld_core.evaluation.detection3d.geometry import RoadBoxes
from mld_core.evaluation.detection3d.places import ego_places, image_boxes_of
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints
from mld_core.evaluation.metrics.kitti import KittiFrames, KittiState, kitti_precisions
from mld_core.evaluation.metrics.nuscenes import (
    ERRORS,
    NuscenesMetrics,
    NuscenesProfile,
    NuscenesState,
    match_nuscenes,
    nuscenes_metrics,
    tp_errors,
)

REPLACED = ("D20",)
"""Codes of boxes in general that a 3D code takes the place of."""

NEAR = 0.5
"""Closeness of 2 m."""

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


def road_evidence(e: BoxEvidence) -> RoadEvidence:
    """The arrays of a pass as the 3D diagnoses take them."""
    records, units = e.records, e.units
    kept, events = units.kept, units.events
    own = np.where(units.judged & events.right & events.matched, events.truth, -1)
    return RoadEvidence(
        records.predictions.take(kept),
        records.truths,
        own,
        units.judged,
        records.truths.counts & ~events.found,
        e.match.near < NEAR,
        NuscenesProfile.of(records.class_names),
        records.frames.num_rows,
        records.predictions,
        velocity=None if records.velocity is None else records.velocity[kept],
        true_velocity=records.truth_velocity,
        n_points=points_in(records),
        error_proba=None if e.answers is None else e.answers.error_proba,
        likely=e.t2,
        epochs=e.epochs.predictions,
        objects=None if e.unlabelled is None else e.missing_odds[: len(kept)],
        believed=None if e.unlabelled is None else e.missing_label.flagged[: len(kept)],
    )


def with_roads(e: BoxEvidence, found: BoxDiagnoses) -> tuple[BoxDiagnoses, RoadDiagnoses]:
    """Add the 3D codes to the diagnoses of a pass."""
    road = diagnose_roads(road_evidence(e))
    count, missed = len(e.units.kept), e.units.missed
    masks: dict[str, Bools] = {code: mask for code, mask in found.found.masks.items() if code not in REPLACED}
    masks |= {
        code: e.units.padded(np.append(mask, road.truths[code][missed]), fill=False)
        for code, mask in road.predictions.items()
    }
    if "T23" in masks:
        # A truth that was found has a unit too: that of the prediction.
        masks["T23"] = e.on_rows(e.row_of, np.zeros(len(e.row_of)), road.truths["T23"]).flagged
    reasons = {code: why for code, why in found.found.not_computable.items() if code not in REPLACED}
    reasons |= road.not_computable
    suspicion: Floats = found.suspicion.copy()
    if e.unlabelled is not None:
        # D20's own; T20 knows more.
        suspicion[~np.isnan(e.missing_odds)] = np.nan
    for score in road.suspicion.values():
        suspicion[:count] = np.fmax(suspicion[:count], score)
    detail = found.detail.copy()
    detail[:count][road.swapped] = DETAILS.index("swapped")
    registry = (*(one for one in found.found.registry if one.code not in REPLACED), *DIAGNOSES)
    both = ranked(registry, masks, reasons, e.rows)
    return replace(found, found=both, suspicion=suspicion, detail=detail), road


def road_facts(records: BoxRecords, road: RoadDiagnoses) -> dict[str, Any]:
    """The range bins of T11 and the sectors of T12, by class name and input id."""
    ids = records.frames["input_id"].to_pylist()
    bins = [
        {
            "class": records.class_names[int(row["class"])],
            "from_m": int(row["range_bin"]) * 10,
            "to_m": int(row["range_bin"]) * 10 + 10,
            "n": row["n"],
            "errors": row["errors"],
            "p": row["p"],
        }
        for row in road.drop_offs
    ]
    sectors = [{**row, "input_id": ids[int(row["frame"])]} for row in road.dropouts]
    return {"range_drop_offs": bins, "sector_dropouts": sectors}


def road_columns(records: BoxRecords, units: BoxUnits) -> dict[str, pa.Array]:
    """Columns of the unit table for views: errors of right boxes, speed and its bin, the bin of the points.

    Speed and points are those of the truth the unit is about, the speed else the prediction's own.
    """
    count = len(units.kept)
    truth = units.truth
    errors = np.full((units.rows, len(ERRORS)), np.nan)
    right = np.flatnonzero(units.judged & units.events.right & (units.events.truth >= 0))
    true = units.events.truth[right]
    profile = NuscenesProfile.of(records.class_names)
    label = records.truths.label[true]
    known = label < len(profile.period)
    errors[right] = tp_errors(
        records.predictions.box[units.kept[right]],
        records.truths.box[true],
        np.where(known, profile.period[np.where(known, label, 0)], 2 * np.pi),
        None if records.velocity is None else records.velocity[units.kept[right]],
        None if records.truth_velocity is None else records.truth_velocity[true],
    )
    velocity = np.full((units.rows, 2), np.nan)
    if records.velocity is not None:
        velocity[:count] = records.velocity[units.kept]
    if records.truth_velocity is not None:
        there = truth >= 0
        true_velocity = records.truth_velocity[truth[there]]
        velocity[there] = np.where(np.isnan(true_velocity), velocity[there], true_velocity)
    points = np.full(units.rows, -1, np.int64)
    known_points = points_in(records)
    if known_points is not None:
        points[truth >= 0] = known_points[truth[truth >= 0]]
    made = {name: _float32(errors[:, k]) for k, name in enumerate(ERRORS)}
    made["speed"] = _float32(np.hypot(velocity[:, 0], velocity[:, 1]))
    made["speed_bin"] = pa.array(speed_names(velocity).tolist(), pa.string())
    made["points_bin"] = pa.array(points_names(points).tolist(), pa.string())
    return made


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


def place_columns(
    records: BoxRecords, frame: Ints, box: NDArray[np.floating], _volume: Floats
) -> dict[str, pa.Array]:
    """Range in metres, azimuth in radians and the bin of the range of (U, 7) boxes, from the ego vehicle.

    From the frame's origin where nothing says how it stands to the vehicle.
    """
    known = ego_places(records, frame, box)
    place = box[:, :2].astype(np.float64) if known is None else known
    distance = np.hypot(place[:, 0], place[:, 1])
    return {
        "range": _float32(distance),
        "azimuth": _float32(np.arctan2(place[:, 1], place[:, 0])),
        "range_bin": pa.array(range_names(range_bin(distance)).tolist(), pa.string()),
    }


def diagnose(e: BoxEvidence, found: BoxDiagnoses) -> Findings:
    """The 3D codes beside those of boxes of any kind, and what 3D boxes add to the tables."""
    both, road = with_roads(e, found)
    figures = kitti_figures([kitti_state(e.records)], e.records.class_names)
    return Findings(both, road_columns(e.records, e.units), figures, road_facts(e.records, road))


def _float32(values: NDArray[np.floating]) -> pa.Array:
    return pa.array(values.astype(np.float32), pa.float32(), from_pandas=True)


ROADS = Profile(
    "nuscenes",
    RoadBoxes(),
    BoxColumns(
        ("cx", "cy", "cz", "w", "l", "h", "yaw"),
        place_columns,
        (
            *typed(pa.float32(), "range", "azimuth"),
            *typed(pa.string(), "range_bin"),
            *typed(pa.float32(), *ERRORS, "speed"),
            *typed(pa.string(), "speed_bin", "points_bin"),
        ),
        near_is_iou=False,
    ),
    nuscenes_state,
    nuscenes_figures,
    diagnose,
    keep_epochs=True,
)
"""3D boxes around a vehicle: events by centre distance in the ground plane."""
