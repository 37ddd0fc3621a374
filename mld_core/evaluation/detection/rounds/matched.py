"""The second round: every recorded prediction of a part against its truths."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.detection.diagnoses import small_limit
from mld_core.evaluation.detection.events import PassMatch, best_thresholds, costs_of, match_pass
from mld_core.evaluation.detection.evidence import overlaps_of
from mld_core.evaluation.detection.labels import Confused, Spread, Usual, class_sizes, sizes_of
from mld_core.evaluation.detection.metrics import Recorded, score_cuts
from mld_core.evaluation.detection.profile import Profile, Told
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.rounds.parts import BoxWalk
from mld_core.evaluation.detection.units import box_size
from mld_core.evaluation.metrics.boxes import Floats, FrameState, Ints
from mld_core.evaluation.metrics.tide import TideState

ABSENT = ("objects", "truths", "epochs", "pairs")
"""Needs of diagnoses that no part tells."""


@dataclass(frozen=True)
class TruthSizes(FrameState):
    """What is usual is read off these; (G,) truths.

    Attributes:
        label: Their classes.
        counts: Whether they must be found.
        area: Areas (3D: volumes).
        size: Logarithms of the areas, NaN where they do not count.
        aspect: Those of the aspects.
        overlap: With the closest box of the class, NaN where none is near (3D: NaN).
    """

    summed = ()

    label: NDArray[np.int32]
    counts: NDArray[np.bool_]
    area: NDArray[np.float64]
    size: Floats
    aspect: Floats
    overlap: Floats

    @classmethod
    def none(cls) -> TruthSizes:
        """Those of no frames."""
        return cls(np.empty(0, np.int32), np.empty(0, np.bool_), *(np.empty(0) for _ in range(4)))

    @classmethod
    def of(cls, records: BoxRecords, match: PassMatch) -> TruthSizes:
        """Those of a part."""
        truths = records.truths
        return cls(
            truths.label.astype(np.int32),
            truths.counts,
            box_size(truths.box)[0],
            *sizes_of(truths),
            overlaps_of(truths, match.said),
        )


@dataclass(frozen=True)
class Found:
    """What the matching of one part found.

    Attributes:
        frames: How many it has.
        recorded: Its recorded predictions.
        truths: Its truths.
        figures: What the profile's metrics are computed from; None without frames.
        tide: What TIDE's costs are; likewise.
        cuts: Scores below which boxes were left out, of the frames that tell.
        own: What the kind of boxes gathers of them, see `Gathering`.
    """

    frames: int
    recorded: Recorded
    truths: TruthSizes
    figures: Any
    tide: TideState | None
    cuts: Floats
    own: Any = None


@dataclass
class Matched:
    """What the matching of parts found, part by part: about 60 bytes a recorded box, 40 a truth."""

    parts: list[Found] = field(default_factory=list)

    def merge(self, other: Matched) -> Matched:
        """Of both."""
        return Matched(self.parts + other.parts)

    def recorded(self) -> Recorded:
        """Every recorded prediction of the pass."""
        return Recorded.merge([Recorded.none(), *(one.recorded for one in self.parts)])

    def truths(self) -> TruthSizes:
        """Every truth of the pass."""
        return TruthSizes.merge([TruthSizes.none(), *(one.truths for one in self.parts)])

    def costs(self) -> dict[str, float | None]:
        """TIDE's costs."""
        states = [one.tide for one in self.parts if one.tide is not None]
        return costs_of(TideState.merge(states) if states else None)

    def figures(self) -> list[Any]:
        """What the profile's metrics are computed from."""
        return [one.figures for one in self.parts if one.figures is not None]

    def own(self) -> list[Any]:
        """What the kind of boxes gathered."""
        return [one.own for one in self.parts]

    def cuts(self) -> Floats:
        """Scores below which boxes were left out."""
        return np.concatenate([one.cuts for one in self.parts] or [np.empty(0)])


def match_kernel(walk: BoxWalk, profile: Profile) -> tuple[pa.RecordBatch, Matched]:
    """Second round: what the metrics over all recorded predictions need; ids of the frames go to a file."""
    records = walk.records()
    match = match_pass(records, profile.geometry)
    found = Found(
        records.frames.num_rows,
        Recorded.of(records, match),
        TruthSizes.of(records, match),
        profile.state(records),
        match.tide,
        score_cuts(records),
        None if profile.gathering is None else profile.gathering.recorded(records, match),
    )
    keys = records.frames.select(["input_id", "input_hash"]).cast(
        pa.schema([("input_id", pa.string()), ("input_hash", pa.string())])
    )
    return keys.combine_chunks().to_batches()[0] if keys.num_rows else _no_keys(keys), Matched([found])


def _no_keys(keys: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=keys.schema)


def thresholds_of(recorded: Recorded, truths: TruthSizes, n_class: int) -> Floats:
    """(K,) operating score thresholds from the recorded predictions of a split."""
    label = truths.label[truths.counts].astype(np.int64)
    sizes = class_sizes(label, n_class)
    return best_thresholds(
        recorded.label.astype(np.int64), recorded.score, recorded.right, recorded.ignored, sizes
    )


def usual_of(
    truths: TruthSizes, n_class: int, told: Told | None = None, confused: Confused | None = None
) -> Usual:
    """What is usual for the classes of a pass, and what else its parts are told."""
    label: Ints = truths.label.astype(np.int64)
    small = np.full(n_class, -np.inf)
    for one in range(n_class):
        area = truths.area[(label == one) & truths.counts]
        if len(area):
            small[one] = small_limit(area)
    absent = tuple(name for name in ABSENT if name != "pairs" or confused is None)
    return Usual(
        (Spread.of(label, truths.size), Spread.of(label, truths.aspect)),
        Spread.of(label, truths.overlap) if told is None else told.overlaps,
        small,
        confused,
        absent,
        None if told is None else told.own,
    )
