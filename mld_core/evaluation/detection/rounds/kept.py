"""The third round: events at the operating thresholds; and the kept predictions of a part as a walk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mld_core.evaluation.detection.analysis import box_arrays, label_for_loss, logit_figures
from mld_core.evaluation.detection.events import judged_units
from mld_core.evaluation.detection.metrics import Events
from mld_core.evaluation.detection.profile import Profile
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.rounds.block import block_table
from mld_core.evaluation.detection.rounds.parts import BoxWalk
from mld_core.evaluation.detection.units import BoxUnits
from mld_core.evaluation.engine.passes import ROW
from mld_core.evaluation.metrics.boxes import Floats
from mld_core.evaluation.space.arrays import SplitArrays


@dataclass(frozen=True)
class Judging:
    """The broadcast of the third round.

    Attributes:
        profile: Kind of the boxes.
        thresholds: (K,) operating score thresholds.
        layers: Alias -> width and dtype of the features.
        group_key: The user's column that keeps boxes together, or None.
    """

    profile: Profile
    thresholds: Floats
    layers: dict[str, tuple[int, str]]
    group_key: str | None


@dataclass
class Kept:
    """What parts keep.

    Attributes:
        events: At the operating thresholds.
        judged: Kept predictions that are right or wrong.
        wrong: Those that are wrong.
        truths: Truths that count, and those of them that were not found in their class.
        featured: Whether features are stored for any kept prediction.
        by_part: Kept predictions of each part.
        own: What the kind of boxes gathers of each, see `Gathering`.
    """

    events: Events
    judged: int = 0
    wrong: int = 0
    truths: tuple[int, int] = (0, 0)
    featured: bool = False
    by_part: list[int] = field(default_factory=list)
    own: list[Any] = field(default_factory=list)

    def merge(self, other: Kept) -> Kept:
        """Of both."""
        return Kept(
            self.events.merge(other.events),
            self.judged + other.judged,
            self.wrong + other.wrong,
            (self.truths[0] + other.truths[0], self.truths[1] + other.truths[1]),
            self.featured or other.featured,
            self.by_part + other.by_part,
            self.own + other.own,
        )


def keep_kernel(walk: BoxWalk, asked: Judging) -> tuple[None, Kept]:
    """Third round: judge a part."""
    records = walk.records()
    units = judged_units(records, asked.thresholds, asked.profile.geometry)
    arrays = _arrays(walk, records, units, asked)
    figures = logit_figures(np.asarray(arrays.logits), label_for_loss(records, units))
    counts, gathering = records.truths.counts, asked.profile.gathering
    own = [] if gathering is None else [gathering.kept(records, units, walk.first_frame)]
    return None, Kept(
        Events.of(records, units, figures),
        int(units.judged.sum()),
        int(units.wrong.sum()),
        (int(counts.sum()), int((counts & ~units.events.found).sum())),
        bool(arrays.features),
        [len(units.kept)],
        own,
    )


def _arrays(walk: BoxWalk, records: BoxRecords, units: BoxUnits, asked: Judging) -> SplitArrays:
    folder = Path(tempfile.gettempdir())  # only where the vectors of a part do not fit into memory
    return box_arrays(records, units, folder, group_key=asked.group_key, first_frame=walk.first_frame)


def kept_batches(
    walk: BoxWalk, records: BoxRecords, units: BoxUnits, asked: Judging, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """The kept predictions of a part as `BoxSplit.read` reads them, numbered as in the pass."""
    arrays = _arrays(walk, records, units, asked)
    table = block_table(arrays, units, asked.layers, label_for_loss(records, units))
    rows = pa.array(np.arange(walk.first, walk.first + len(table)), pa.int64())
    schema = table.schema.append(pa.field(ROW, pa.int64()))
    whole = pa.RecordBatch.from_arrays([*table.columns, rows], schema=schema)
    for start in range(0, len(whole), batch_rows):
        yield whole.slice(start, batch_rows)


@dataclass(frozen=True)
class KeptWalk:
    """The kept predictions of a part as a walk, judged anew: no machine needs a file of another one.

    Attributes:
        walk: The part.
        asked: By what it is judged.
        batch_rows: Rows of a batch.
    """

    walk: BoxWalk
    asked: Judging
    batch_rows: int

    @property
    def number(self) -> int:
        """See `Walk`."""
        return self.walk.number

    @property
    def nbytes(self) -> int:
        """See `Walk`."""
        return self.walk.nbytes

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Batches of them."""
        records = self.walk.records()
        units = judged_units(records, self.asked.thresholds, self.asked.profile.geometry)
        yield from kept_batches(self.walk, records, units, self.asked, self.batch_rows)
