"""Where the errors of 3D boxes are: by range and angle, sensor points and speed; faults of the sensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.detection3d.bins import (
    RANGE_METRES,
    SECTORS,
    bev_heatmap,
    breakdown,
    points_names,
    range_bin,
    range_names,
    sector,
)
from mld_core.evaluation.metrics.nuscenes import ERRORS
from mld_core.views.tables import class_label, plain, pseudo_counts
from mld_core.views.units import PassUnits, rounded

MAX_RINGS = 12
MAX_BIN_CLASSES = 12
WEIGHT = 8.0
"""Pseudo-counts of a cell where the analysis chose none."""

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass
class RoadUnits:
    """The events of a 3D pass: kept predictions and the truths, each truth once.

    Attributes:
        units: The pass.
    """

    units: PassUnits

    @cached_property
    def predicted(self) -> Bools:
        """(N,) units that are predictions."""
        return np.asarray([kind == "pred" for kind in self.units.texts("unit_kind")], np.bool_)

    @cached_property
    def judged(self) -> Bools:
        """(N,) units that are right or wrong."""
        return np.asarray(self.units.errors >= 0)

    @cached_property
    def wrong(self) -> Bools:
        """(N,) false predictions and missed truths."""
        return np.asarray(self.units.errors == 1)

    @cached_property
    def stands(self) -> Bools:
        """(N,) units that stand for a truth that counts; every such truth has one."""
        known = np.asarray(pc.is_valid(self.units.column("truth_id")).to_numpy(), np.bool_)
        return known & self.judged

    @cached_property
    def lost(self) -> Bools:
        """(N,) units whose truth was not found in its class."""
        return self.stands & self.wrong

    def truth_range(self) -> NDArray[np.float64]:
        """(N,) metres of the truth, NaN without."""
        return np.asarray(np.hypot(self.units.floats("gt_cx"), self.units.floats("gt_cy")))


def error_map(road: RoadUnits) -> dict[str, Any] | None:
    """Events by 10 m ring and 10-degree sector; None without an event that is judged.

    Rings end where 99.5 % of the events lie, at most at 120 m; `beyond` counts the others.
    """
    units = road.units
    distance, azimuth = units.floats("range"), np.degrees(units.floats("azimuth"))
    azimuth = np.where(azimuth >= 180, azimuth - 360, azimuth)
    use = road.judged & np.isfinite(distance) & np.isfinite(azimuth)
    if not use.any():
        return None
    rings = min(MAX_RINGS, int(np.quantile(distance[use], 0.995) // RANGE_METRES) + 1)
    farthest = rings * RANGE_METRES
    weight = pseudo_counts(units)
    made = bev_heatmap(
        distance[use],
        azimuth[use],
        road.wrong[use],
        farthest=farthest,
        weight=WEIGHT if weight is None else weight,
    )
    inside = use & (distance < farthest)
    cell = range_bin(distance[inside]) * SECTORS + sector(azimuth[inside])
    missed = np.bincount(cell[~road.predicted[inside]], minlength=rings * SECTORS).reshape(rings, SECTORS)
    where = np.argwhere(made.n > 0)
    at = tuple(where.T)
    return {
        "rings": rings,
        "metres": RANGE_METRES,
        "ring": where[:, 0].tolist(),
        "sector": where[:, 1].tolist(),
        "n": made.n[at].tolist(),
        "errors": made.errors[at].tolist(),
        "missed": missed[at].tolist(),
        "value": rounded(made.value[at]),
        "sig": made.significant[at].astype(int).tolist(),
        "overall": plain(float(road.wrong[inside].mean())) if inside.any() else None,
        "m": plain(WEIGHT if weight is None else weight),
        "beyond": int(use.sum() - inside.sum()),
    }


def error_bins(road: RoadUnits, names: Sequence[str] | None, *, by_class: bool) -> list[dict[str, Any]]:
    """Break-downs by range, sensor points and speed: of all classes, then of those with most truths."""
    everything = np.ones(road.units.rows, np.bool_)
    made = [{"name": "all classes", **_bins(road, everything, everything)}]
    if not by_class:
        return made
    truth, said = road.units.truth, road.units.prediction
    classes, counts = np.unique(truth[road.stands & (truth >= 0)], return_counts=True)
    most = classes[np.argsort(-counts, kind="stable")][:MAX_BIN_CLASSES].tolist()
    return made + [
        {"name": class_label(number, names), **_bins(road, said == number, truth == number)}
        for number in most
    ]


def _bins(road: RoadUnits, found: Bools, true: Bools) -> dict[str, list[dict[str, Any]]]:
    """Break-downs of the predictions in `found` and the truths in `true`."""
    units = road.units
    mine = np.flatnonzero(found & road.predicted & road.judged)
    own = np.flatnonzero(true & road.stands)
    errors = np.stack([units.floats(name) for name in ERRORS], axis=1)[mine]
    right, lost = ~road.wrong[mine], road.lost[own]
    ranges = np.asarray(units.texts("range_bin"), object)
    true_ranges = range_names(range_bin(road.truth_range()))
    speeds = np.asarray(units.texts("speed_bin"), object)
    counts = np.nan_to_num(units.floats("n_points"), nan=-1.0).astype(np.int64)
    points = points_names(np.where(road.stands, counts, -1))
    made = {}
    for name, of_found, of_true in (
        ("range", ranges, true_ranges),
        ("points", points, points),
        ("speed", speeds, speeds),
    ):
        rows = breakdown(of_found[mine], right, of_true[own], lost, errors)
        made[name] = [{key: plain(value) for key, value in row.items()} for row in rows if _any(row)]
    for row in made["points"]:
        # A false prediction has no sensor points on record: only what was missed can be told by them.
        for name in ("n_pred", "n_fp", "precision"):
            row[name] = None
    return made


def _any(row: dict[str, Any]) -> bool:
    return bool(row["n_gt"] or row["n_pred"])


def sensor_findings(units: PassUnits) -> dict[str, Any]:
    """The range bins in which a class falls off (T11) and the silent sectors of frames (T12) of the pass."""
    for one in units.result.info.get("facts", []):
        if one["dataset"] == units.dataset and one["n_epoch"] == units.n_epoch:
            bins = [
                {name: plain(row.get(name)) for name in ("class", "from_m", "to_m", "n", "errors", "p")}
                for row in one.get("range_drop_offs") or []
            ]
            return {"bins": bins, "sectors": list(one.get("sector_dropouts") or [])}
    return {"bins": [], "sectors": []}
