"""The last round: every kept prediction of a part scored, its units judged, and their rows written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis.issue_columns import (
    answer_columns,
    diagnosis_columns,
    judged_columns,
    named,
)
from mld_core.evaluation.analysis.units import Column, with_columns
from mld_core.evaluation.classification.rounds.estimator import fixed_columns
from mld_core.evaluation.classification.rounds.outcome import Outcome, codes_of, codes_of_regions
from mld_core.evaluation.classification.rounds.scoring import Fits, Judged, Placed, judge
from mld_core.evaluation.codes.diagnosis import Diagnoses, Diagnosis, ranked
from mld_core.evaluation.detection.analysis import frame_keys, logit_figures
from mld_core.evaluation.detection.codes import A
from mld_core.evaluation.detection.diagnoses import DETAILS, diagnose_boxes
from mld_core.evaluation.detection.epochs import OtherEpochs
from mld_core.evaluation.detection.error_probability import BoxProbabilities
from mld_core.evaluation.detection.events import judged_units, match_pass
from mld_core.evaluation.detection.evidence import BoxEvidence, Judgements
from mld_core.evaluation.detection.labels import Usual
from mld_core.evaluation.detection.profile import Findings
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.rounds.block import BoxBlock, BoxSplit
from mld_core.evaluation.detection.rounds.estimator import BoxEstimator
from mld_core.evaluation.detection.rounds.kept import Judging, kept_batches
from mld_core.evaluation.detection.rounds.parts import BoxWalk
from mld_core.evaluation.detection.stage import FrameErrors, frame_rows, padded
from mld_core.evaluation.detection.units import BoxUnits, error_codes, typed, unit_table
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.boxes import Floats
from mld_core.evaluation.metrics.classification import auroc_of_counts
from mld_core.evaluation.statistics.histograms import BINS, log_odds_bin

FRAME = "\0frame"
"""Column of the rows of a part: the number of the frame in the pass."""


@dataclass(frozen=True)
class Scoring:
    """The broadcast of the last round.

    Attributes:
        judging: By what parts are judged.
        split: The pass.
        fits: What was fitted; None where no kept prediction is judged.
        batch_rows: Kept predictions that are scored at once.
        usual: What is usual in the pass.
        t2: Threshold of risk of the kept predictions.
        miss_t2: Threshold of risk of the truths.
        unsure: Certainty below which an error code carries a `*`.
        labelled: Whether the truth of any frame is known.
    """

    judging: Judging
    split: BoxSplit
    fits: Fits | None
    batch_rows: int
    usual: Usual
    t2: float
    miss_t2: float
    unsure: float
    labelled: bool


@dataclass
class Ranks:
    """Units by the log-odds of a probability, and those of them that it is about."""

    total: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    there: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @classmethod
    def of(cls, proba: Floats, there: NDArray[np.bool_]) -> Ranks:
        """Count some units."""
        bins = log_odds_bin(np.log(np.clip(proba, 1e-300, 1)))
        return cls(np.bincount(bins, minlength=BINS), np.bincount(bins[there], minlength=BINS))

    def merge(self, other: Ranks) -> Ranks:
        """The counts of both."""
        return Ranks(self.total + other.total, self.there + other.there)

    def auroc(self) -> float | None:
        """How well the probability ranks."""
        return auroc_of_counts(self.there, self.total)


@dataclass
class Scored:
    """What the units of parts come to.

    Attributes:
        outcome: Of the kept predictions; None where nothing was scored.
        codes: Code -> units that carry it.
        absent: Code -> why it is not computed.
        det: Error probability of the box against boxes that are not aligned.
        cls: That of the class against wrong ones.
        frames: Rows of the table of frames.
        errors: What the frames' probabilities are made from.
    """

    outcome: Outcome | None = None
    codes: dict[str, int] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    det: Ranks = field(default_factory=Ranks)
    cls: Ranks = field(default_factory=Ranks)
    frames: list[pa.Table] = field(default_factory=list)
    errors: list[FrameErrors] = field(default_factory=list)

    def merge(self, other: Scored) -> Scored:
        """Of both."""
        outcomes = [one for one in (self.outcome, other.outcome) if one is not None]
        codes = {
            code: self.codes.get(code, 0) + other.codes.get(code, 0) for code in self.codes | other.codes
        }
        return Scored(
            outcomes[0].merge(outcomes[1]) if len(outcomes) == 2 else next(iter(outcomes), None),
            codes,
            self.absent | other.absent,
            self.det.merge(other.det),
            self.cls.merge(other.cls),
            self.frames + other.frames,
            self.errors + other.errors,
        )


@dataclass(frozen=True)
class _Answers:
    """What was found out about the kept predictions of a part."""

    columns: dict[str, Column]
    best: NDArray[np.int64]
    proba: Floats
    parts: BoxProbabilities
    quality: NDArray[np.float32]
    region: NDArray[np.int32]
    outcome: Outcome


def box_kernel(walk: BoxWalk, asked: Scoring) -> tuple[pa.RecordBatch | None, Scored]:
    """Last round: the rows of the unit table of a part, and what they come to."""
    workers, records = Workers(1), walk.records()
    units = judged_units(records, asked.judging.thresholds, asked.judging.profile.geometry)
    batches = kept_batches(walk, records, units, asked.judging, asked.batch_rows)
    blocks = [asked.split.read(batch, workers) for batch in batches]
    scored, columns = Scored(), dict[str, Column]()
    if asked.labelled:
        registry = asked.judging.profile.registry()
        answers = None if asked.fits is None else _answers(blocks, asked.fits, registry, workers)
        found = _diagnosed(walk, records, units, answers, asked)
        proba = None if answers is None else _frame_errors(walk, records, units, answers, asked)
        columns = _columns(records, units, answers, found, asked)
        scored = _scored(records, units, answers, found.diagnoses.found)
        scored.errors += [] if proba is None else [proba]
    scored.frames.append(_frame_table(records, units, columns, asked))
    return _rows(walk, records, units, blocks, columns, asked), scored


def _rows(
    walk: BoxWalk,
    records: BoxRecords,
    units: BoxUnits,
    blocks: list[BoxBlock],
    columns: Mapping[str, Column],
    asked: Scoring,
) -> pa.RecordBatch | None:
    """The rows of the unit table, each with the number of its frame; ids of units are not theirs yet."""
    figures = [logit_figures(block.logits, block.for_loss) for block in blocks]
    nothing = [np.empty(0)]
    of_logits = {
        name: np.concatenate([one[name] for one in figures] or nothing) for name in ("loss", "entropy")
    }
    table = unit_table(records, units, asked.judging.profile.columns, of_logits)
    if len(table) == 0:
        return None
    made = with_columns(table.combine_chunks().to_batches()[0], columns)
    frame = pa.array(units.frame(records) + walk.first_frame, pa.int64())
    return pa.RecordBatch.from_arrays(
        [*made.columns, frame], schema=made.schema.append(pa.field(FRAME, pa.int64()))
    )


# -- kept predictions ------------------------------------------------------------------------------------


def _answers(
    blocks: list[BoxBlock], fits: Fits, registry: Sequence[Diagnosis[Any]], workers: Workers
) -> _Answers:
    """Score and judge the kept predictions of a part."""
    estimator = fits.estimator
    assert isinstance(estimator, BoxEstimator)
    outcome = Outcome.empty(len(fits.regions), registry)
    made: list[tuple[Placed, BoxProbabilities, Judged]] = []
    for block in blocks:
        points, cell = fits.ground.place(block.layers, workers)
        distance = fits.ground.distances(points, cell, workers)
        fixed = fixed_columns(block, fits.split.n_class, points, cell, distance, fits.around)
        proba, parts = estimator.assess(block, fixed, cell, fits.around)
        placed = Placed(block, points, cell, proba, (proba,))
        judged = judge(placed, fits, workers)
        gap = points - fits.ground.flat[cell]
        none = ranked(registry, {}, {}, len(proba))
        outcome = outcome.merge(Outcome.of(block, judged, none, (gap * gap).sum(axis=1), len(fits.regions)))
        made.append((placed, parts, judged))

    def together(of: Callable[[tuple[Placed, BoxProbabilities, Judged]], NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([of(one) for one in made]) if made else np.empty(0)

    columns = [{**answer_columns(one.answers, None), **judged_columns(one)} for _, _, one in made]
    whole = {name: _joined([one[name] for one in columns]) for name in (columns[0] if columns else ())}
    parts = BoxProbabilities(
        together(lambda one: one[1].det_error),
        together(lambda one: one[1].cls_error),
        together(lambda one: one[1].certainty),
    )
    return _Answers(
        whole,
        together(lambda one: one[2].posterior.best).astype(np.int64),
        together(lambda one: one[0].proba),
        parts,
        together(lambda one: one[2].label_quality),
        together(lambda one: one[2].region).astype(np.int32),
        outcome,
    )


def _joined(columns: list[Column]) -> Column:
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    return pa.concat_arrays(columns)


def _frame_errors(
    walk: BoxWalk, records: BoxRecords, units: BoxUnits, answers: _Answers, asked: Scoring
) -> FrameErrors:
    keys = frame_keys(records, asked.judging.group_key, walk.first_frame)
    return FrameErrors.of(records, units, answers.proba, keys)


# -- units -----------------------------------------------------------------------------------------------


def _diagnosed(
    walk: BoxWalk, records: BoxRecords, units: BoxUnits, answers: _Answers | None, asked: Scoring
) -> Findings:
    """The diagnoses of a part, by what is usual in the pass."""
    match = match_pass(records, asked.judging.profile.geometry, costs=False)
    judgements = None
    if answers is not None and asked.fits is not None:
        n_hat = asked.fits.labels.n_hat
        judgements = Judgements(answers.proba, answers.parts.det_error, answers.quality, n_hat)
    nothing = OtherEpochs(
        0, np.zeros(len(units.kept), np.int64), np.zeros(len(records.truths)), np.empty((0, 0))
    )
    evidence = BoxEvidence(
        records,
        units,
        match,
        judgements,
        None,
        nothing,
        asked.t2,
        asked.miss_t2,
        usual=asked.usual,
        first_frame=walk.first_frame,
    )
    return asked.judging.profile.diagnose(evidence, diagnose_boxes(evidence))


def _columns(
    records: BoxRecords, units: BoxUnits, answers: _Answers | None, found: Findings, asked: Scoring
) -> dict[str, Column]:
    """The columns of the unit table that the analysis fills in."""
    boxes = found.diagnoses
    made: dict[str, Column] = {
        **diagnosis_columns(boxes.found),
        "suspicion": boxes.suspicion,
        "detail": named(DETAILS, boxes.detail),
    }
    if answers is not None and len(units.kept):
        parts, others = answers.parts, units.rows - len(units.kept)
        own: dict[str, Column] = {
            **answers.columns,
            "det_error_proba": parts.det_error,
            "cls_error_proba": parts.cls_error,
            "code_certainty": parts.certainty,
        }
        made |= {name: padded(column, others) for name, column in own.items()}
        best = np.where(answers.best == records.n_class, -1, answers.best)
        best = np.append(best, boxes.suggested[len(best) :])
        made["suggested_label"] = pa.array(best, pa.int32(), mask=best < 0)
        made["error_code"] = error_codes(records, units, parts.certainty < asked.unsure)
    return made | dict(found.columns)


def _scored(records: BoxRecords, units: BoxUnits, answers: _Answers | None, found: Diagnoses) -> Scored:
    """What the units of a part come to, but its frames."""
    made = Scored(codes=dict(found.counts), absent=dict(found.not_computable))
    if answers is None:
        return made
    region, regions = answers.region, len(answers.outcome.of_regions)
    inside = np.flatnonzero(region >= 0)
    made.outcome = replace(
        answers.outcome,
        codes=codes_of(found),
        of_regions=codes_of_regions(found, region, inside, regions),
    )
    judged, events = units.judged, units.events
    made.det = Ranks.of(answers.parts.det_error[judged], events.code[judged] != A)
    met = judged & events.matched
    confused = events.said_of[met] != records.predictions.label[units.kept[met]]
    made.cls = Ranks.of(answers.parts.cls_error[met], confused)
    return made


# -- frames ----------------------------------------------------------------------------------------------


def _frame_table(
    records: BoxRecords, units: BoxUnits, columns: Mapping[str, Column], asked: Scoring
) -> pa.Table:
    """One row for each frame; of every part the same columns."""
    rows = frame_rows(records.selection.key, records, units, columns)
    fields = [
        pa.field("dataset", pa.string()),
        pa.field("n_epoch", pa.int64()),
        pa.field("input_id", pa.string()),
    ]
    fields += [pa.field("labelled", pa.bool_()), *typed(pa.int64(), "n_gt", "n_pred", "n_tp", "n_fp", "n_fn")]
    fields += typed(pa.float64(), "frame_error_proba")
    if asked.fits is not None:
        for name in ("error_proba", "det_error_proba", "cls_error_proba"):
            fields += typed(pa.float64(), f"{name}_mean", f"{name}_max")
    rows = rows.reindex(columns=[one.name for one in fields])
    return pa.Table.from_pandas(rows, pa.schema(fields), preserve_index=False).replace_schema_metadata(None)
