"""What 3D boxes bring to the evaluation of a pass: metrics, T-codes, places on the road."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.codes.diagnosis import Diagnosis, ranked
from mld_core.evaluation.detection.diagnoses import DETAILS, BoxDiagnoses
from mld_core.evaluation.detection.diagnoses import DIAGNOSES as BOX_DIAGNOSES
from mld_core.evaluation.detection.evidence import BoxEvidence
from mld_core.evaluation.detection.profile import Findings, Profile
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import BoxColumns, BoxUnits, typed
from mld_core.evaluation.detection3d.bins import points_names, range_bin, range_names, speed_names
from mld_core.evaluation.detection3d.diagnoses import DIAGNOSES, RoadDiagnoses, diagnose_roads
from mld_core.evaluation.detection3d.figures import (
    indoor_state,
    nuscenes_figures,
    nuscenes_state,
    points_in,
)
from mld_core.evaluation.detection3d.gather import RoadGathering, road_evidence, road_facts
from mld_core.evaluation.detection3d.geometry import RoadBoxes
from mld_core.evaluation.detection3d.kitti import kitti_figures, kitti_state
from mld_core.evaluation.detection3d.places import ego_places
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints
from mld_core.evaluation.metrics.indoor import indoor_figures
from mld_core.evaluation.metrics.nuscenes import ERRORS, NuscenesProfile, tp_errors

REPLACED = ("D20",)
"""Codes of boxes in general that a 3D code takes the place of."""

REGISTRY: tuple[Diagnosis[Any], ...] = (
    *(one for one in BOX_DIAGNOSES if one.code not in REPLACED),
    *DIAGNOSES,
)
"""Every diagnosis that 3D boxes are asked."""


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
    both = ranked(REGISTRY, masks, reasons, e.rows)
    return replace(found, found=both, suspicion=suspicion, detail=detail), road


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
    columns = road_columns(e.records, e.units)
    if e.usual is not None:
        return Findings(both, columns)  # a part: of the whole pass `RoadGathering` tells
    names, ids = e.records.class_names, e.records.frames["input_id"].to_pylist()
    figures, notes = kitti_figures([kitti_state(e.records)], names)
    figures |= indoor_figures([indoor_state(e.records)])
    return Findings(both, columns, figures, road_facts(names, road.drop_offs, road.dropouts, ids), notes)


def _float32(values: NDArray[np.floating]) -> pa.Array:
    return pa.array(values.astype(np.float32), pa.float32(), from_pandas=True)


def road_registry() -> Sequence[Diagnosis[Any]]:
    """Every diagnosis that 3D boxes are asked."""
    return REGISTRY


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
    road_registry,
    keep_epochs=True,
    gathering=RoadGathering(),
    not_in_rounds=(
        "no suspected missing labels (T20), wrong classes (D22) and spurious labels (D23)",
        "shifted and flipped labels (T21, T22) are told by this epoch and by the motion alone",
    ),
)
"""3D boxes around a vehicle: events by centre distance in the ground plane."""
