"""What one kind of boxes brings to the evaluation of a pass; `IMAGES` is that of boxes in an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis.units import Column
from mld_core.evaluation.codes.diagnosis import Diagnosis
from mld_core.evaluation.detection.diagnoses import DIAGNOSES, BoxDiagnoses
from mld_core.evaluation.detection.events import Figures, PassMatch, walk
from mld_core.evaluation.detection.evidence import BoxEvidence
from mld_core.evaluation.detection.labels import Spread
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import IMAGE_COLUMNS, BoxColumns, BoxUnits
from mld_core.evaluation.metrics.coco import CocoMetrics, CocoState, coco_metrics, match_coco
from mld_core.evaluation.metrics.matching import BoxGeometry, ImageBoxes


@dataclass(frozen=True)
class Findings:
    """The diagnoses of a pass, and what else a profile has to say about it.

    Attributes:
        diagnoses: What applies to which unit.
        columns: Further columns of the unit table.
        metrics: Further cells of the row in the metrics table.
        facts: Further facts of the split.
        notes: Further sentences about it.
    """

    diagnoses: BoxDiagnoses
    columns: Mapping[str, Column] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _no_facts(_input_ids: Sequence[str | None]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Told:
    """What parts of a pass are told of all of it, and what there is to say of all of it.

    Attributes:
        geometry: How close boxes are, by what is usual in the pass.
        overlaps: Of right boxes with their truths.
        own: What the kind's own diagnoses read.
        metrics: See `Findings`.
        facts: Likewise, given the input ids of the frames.
        notes: See `Findings`.
    """

    geometry: BoxGeometry
    overlaps: Spread
    own: Any
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    facts: Callable[[Sequence[str | None]], Mapping[str, Any]] = _no_facts
    notes: tuple[str, ...] = ()


class Gathering(Protocol):
    """How it is gathered what a kind of boxes reads of a whole pass; one object, plain data."""

    def recorded(self, records: BoxRecords, match: PassMatch) -> Any:
        """What every recorded box of a part says."""
        ...

    def kept(self, records: BoxRecords, units: BoxUnits, first_frame: int) -> Any:
        """What the kept predictions of a part say, whose first frame has that number in the pass."""
        ...

    def told(self, recorded: Sequence[Any], kept: Sequence[Any], class_names: Sequence[str]) -> Told:
        """What that of all parts comes to, in their order; there is one at least."""
        ...


@dataclass(frozen=True)
class Profile:
    """One kind of boxes.

    Attributes:
        name: `profile` in the metrics table: whose metrics they are.
        geometry: How close two boxes are.
        columns: What the unit table says about a box.
        state: What the metrics of some frames, a pass or a part of it, are computed from, over every recorded
            prediction; None without frames.
        figures: The metrics of the frames of some states, in their order, given the names of the classes.
        diagnose: Given the evidence and what applies to boxes of any kind, what applies to these.
        registry: Answers with every diagnosis that is asked; predicates cannot be sent to another process.
        keep_epochs: Whether `diagnose` reads the boxes of other epochs.
        weak: Whether boxes below the threshold that may be objects without a label are units too.
        gathering: How parts are told what is usual in a pass; None: no more than of any boxes.
        not_in_rounds: What is not computed where a pass is evaluated in rounds over its parts, in words.
    """

    name: str
    geometry: BoxGeometry
    columns: BoxColumns
    state: Callable[[BoxRecords], Any]
    figures: Callable[[Sequence[Any], Sequence[str]], Figures]
    diagnose: Callable[[BoxEvidence, BoxDiagnoses], Findings]
    registry: Callable[[], Sequence[Diagnosis[Any]]]
    keep_epochs: bool = False
    weak: bool = False
    gathering: Gathering | None = None
    not_in_rounds: tuple[str, ...] = ()

    def figures_of(self, records: BoxRecords) -> Figures | None:
        """The metrics of a pass; None without frames."""
        state = self.state(records)
        return None if state is None else self.figures([state], records.class_names)


def areas_of(records: BoxRecords) -> NDArray[np.float64] | None:
    """(G,) areas of the truths as the data set has them, NaN unknown; None where none is recorded.

    Of rotated boxes their own.
    """
    rotated = records.truths.rotated
    if rotated is not None:
        return np.asarray(rotated[:, 2].astype(np.float64) * rotated[:, 3])
    if "area" not in records.truth_columns.column_names:
        return None
    column = records.truth_columns["area"]
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return None
    return np.asarray(column.cast(pa.float64()).to_numpy())


def coco_state(records: BoxRecords) -> CocoState | None:
    """COCO's matches of every recorded prediction of a pass; None without frames."""
    area = areas_of(records)
    states = [
        match_coco(step.predictions, step.truths, records.n_class, None if area is None else area[step.span])
        for step in walk(records)
    ]
    return CocoState.merge(states) if states else None


def coco_figures(states: Sequence[CocoState], class_names: Sequence[str]) -> CocoMetrics:  # noqa: ARG001
    """COCO's metrics of some frames."""
    return coco_metrics(CocoState.merge(states))


def found_alone(evidence: BoxEvidence, found: BoxDiagnoses) -> Findings:  # noqa: ARG001
    """Nothing beside what applies to boxes of any kind."""
    return Findings(found)


def box_registry() -> Sequence[Diagnosis[Any]]:
    """The diagnoses of boxes of any kind."""
    return DIAGNOSES


IMAGES = Profile(
    "coco",
    ImageBoxes(),
    IMAGE_COLUMNS,
    coco_state,
    coco_figures,
    found_alone,
    box_registry,
    weak=True,
    not_in_rounds=(
        "boxes below the score thresholds are no units",
        "no suspected missing labels (D20), wrong classes (D22) and spurious labels (D23)",
    ),
)
