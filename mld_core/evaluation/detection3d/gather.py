"""What 3D boxes are told of a whole pass of which parts are looked at: gathered part by part, then merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection.events import PassMatch
from mld_core.evaluation.detection.evidence import BoxEvidence
from mld_core.evaluation.detection.labels import Spread
from mld_core.evaluation.detection.profile import Told
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import BoxUnits
from mld_core.evaluation.detection3d.diagnoses_sensor import BinCounts, SectorView
from mld_core.evaluation.detection3d.evidence import RoadEvidence
from mld_core.evaluation.detection3d.figures import indoor_state, points_in
from mld_core.evaluation.detection3d.geometry import RoadBoxes
from mld_core.evaluation.detection3d.kitti import kitti_figures, kitti_state
from mld_core.evaluation.detection3d.offsets import Bounds, Offsets, UsualOffsets
from mld_core.evaluation.detection3d.usual import RoadUsual
from mld_core.evaluation.metrics.boxes import Bools, ByClass, Floats, Ints
from mld_core.evaluation.metrics.indoor import IndoorState, indoor_figures
from mld_core.evaluation.metrics.kitti import KittiState
from mld_core.evaluation.metrics.nuscenes import NuscenesProfile

NEAR = 0.5
"""Closeness of 2 m."""


def evidence_of(records: BoxRecords, units: BoxUnits, silent: Bools, **more: Any) -> RoadEvidence:
    """The arrays of a pass, or of a part of it, as the 3D diagnoses take them.

    Args:
        records: The boxes.
        units: Its units.
        silent: (G,) truths with no prediction of any class and score closer than 2 m.
        more: Further fields of the evidence.
    """
    kept, events = units.kept, units.events
    return RoadEvidence(
        records.predictions.take(kept),
        records.truths,
        np.where(units.judged & events.right & events.matched, events.truth, -1),
        units.judged,
        records.truths.counts & ~events.found,
        silent,
        NuscenesProfile.of(records.class_names),
        records.frames.num_rows,
        records.predictions,
        velocity=None if records.velocity is None else records.velocity[kept],
        true_velocity=records.truth_velocity,
        n_points=points_in(records),
        **more,
    )


def road_evidence(e: BoxEvidence) -> RoadEvidence:
    """The evidence of boxes of any kind as the 3D diagnoses take it."""
    count = len(e.units.kept)
    return evidence_of(
        e.records,
        e.units,
        e.match.near < NEAR,
        error_proba=None if e.answers is None else e.answers.error_proba,
        likely=e.t2,
        epochs=e.epochs.predictions,
        objects=None if e.unlabelled is None else e.missing_odds[:count],
        believed=None if e.unlabelled is None else e.missing_label.flagged[:count],
        usual=None if e.usual is None else e.usual.own,
        first_frame=e.first_frame,
    )


def road_facts(
    class_names: Sequence[str],
    drop_offs: Sequence[Mapping[str, int | float]],
    dropouts: Sequence[Mapping[str, int | float]],
    input_ids: Sequence[str | None],
) -> dict[str, Any]:
    """The range bins of T11 and the sectors of T12, by class name and input id."""
    bins = [
        {
            "class": class_names[int(row["class"])],
            "from_m": int(row["range_bin"]) * 10,
            "to_m": int(row["range_bin"]) * 10 + 10,
            "n": row["n"],
            "errors": row["errors"],
            "p": row["p"],
        }
        for row in drop_offs
    ]
    sectors = [{**row, "input_id": input_ids[int(row["frame"])]} for row in dropouts]
    return {"range_drop_offs": bins, "sector_dropouts": sectors}


@dataclass(frozen=True)
class RecordedRoads:
    """What every recorded box of a part says.

    Attributes:
        kitti: What KITTI's metrics are computed from, or None.
        indoor: What the figures of rooms are computed from.
        sectors: What dead sectors show in.
        points: Whether the sensor points inside any truth are known.
    """

    kitti: KittiState | None
    indoor: IndoorState
    sectors: SectorView
    points: bool


@dataclass(frozen=True)
class KeptRoads:
    """What the kept predictions of a part say.

    Attributes:
        pairs: How far they lie off their truths.
        bins: Events by class and range.
        met: Classes and aligned IoU of those that are judged by a truth closer than 2 m.
        right: Classes and aligned IoU of the right ones.
    """

    pairs: Offsets
    bins: BinCounts
    met: tuple[Ints, Floats]
    right: tuple[Ints, Floats]


class RoadGathering:
    """See `Gathering`."""

    def recorded(self, records: BoxRecords, match: PassMatch) -> RecordedRoads:
        """See `Gathering.recorded`."""
        points, truths = points_in(records), records.truths
        view = SectorView.of(truths, match.near < NEAR, records.predictions, records.frames.num_rows, points)
        known = points is not None and bool((points >= 0).any())
        return RecordedRoads(kitti_state(records), indoor_state(records), view, known)

    def kept(self, records: BoxRecords, units: BoxUnits, first_frame: int) -> KeptRoads:
        """See `Gathering.kept`."""
        truths, events = records.truths, units.events
        e = evidence_of(records, units, np.zeros(len(truths), np.bool_), first_frame=first_frame)
        right = units.judged & events.right
        return KeptRoads(
            e.pairs,
            BinCounts.of(e.predictions, e.wrong, e.counted, truths, e.missed),
            RoadBoxes().met(e.predictions, truths, events.truth),
            (events.said_of[right], events.quality[right]),
        )

    def told(
        self, recorded: Sequence[RecordedRoads], kept: Sequence[KeptRoads], class_names: Sequence[str]
    ) -> Told:
        """See `Gathering.told`."""
        pairs = Offsets.merge([one.pairs for one in kept])
        own = RoadUsual(
            Bounds.of(pairs, NuscenesProfile.of(class_names)),
            UsualOffsets.fit(pairs),
            BinCounts.merge([one.bins for one in kept]).flagged(),
            SectorView.merge([one.sectors for one in recorded]).dead(),
            any(one.points for one in recorded),
        )
        figures, notes = kitti_figures([one.kitti for one in recorded], class_names)
        figures |= indoor_figures([one.indoor for one in recorded])
        return Told(
            RoadBoxes(ByClass.of(*_together([one.met for one in kept]), np.median, 1.0)),
            Spread.of(*_together([one.right for one in kept])),
            own,
            figures,
            partial(road_facts, tuple(class_names), own.bins.rows, own.sectors.rows),
            notes,
        )


def _together(parts: Sequence[tuple[Ints, Floats]]) -> tuple[NDArray[np.int64], Floats]:
    label, values = zip(*parts, strict=True)
    return np.concatenate(label), np.concatenate(values)
