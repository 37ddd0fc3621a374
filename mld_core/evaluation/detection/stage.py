"""The stage that turns the kept boxes of a pass into error probabilities, categories, codes and diagnoses."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis.answers import Reference, SplitAnalysis
from mld_core.evaluation.analysis.error_probability import ErrorProbability
from mld_core.evaluation.analysis.issue_columns import answer_columns, diagnosis_columns, named
from mld_core.evaluation.analysis.issue_tables import (
    analysis_notes,
    analysis_options,
    category_row,
    plain_facts,
    region_rows,
    slice_rows,
)
from mld_core.evaluation.analysis.stages import Rows, Split, SplitGroup, StageOutput
from mld_core.evaluation.analysis.units import Column
from mld_core.evaluation.detection.analysis import BoxAnswers, analyse_boxes, as_train, box_arrays, frame_keys
from mld_core.evaluation.detection.codes import A
from mld_core.evaluation.detection.diagnoses import DETAILS, BoxDiagnoses, diagnose_boxes
from mld_core.evaluation.detection.epochs import OtherEpochs
from mld_core.evaluation.detection.events import PassMatch
from mld_core.evaluation.detection.evidence import BoxEvidence, Judgements
from mld_core.evaluation.detection.metrics import wrong_frames
from mld_core.evaluation.detection.misses import estimate_misses
from mld_core.evaluation.detection.objects import Unlabelled
from mld_core.evaluation.detection.profile import Profile
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import BoxUnits, error_codes
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.boxes import Bools, Floats, FrameState
from mld_core.evaluation.metrics.classification import auroc, average_precision
from mld_core.evaluation.space.arrays import SplitArrays
from mld_core.evaluation.space.regions import Region
from mld_core.evaluation.statistics.bootstrap import bootstrap
from mld_core.evaluation.statistics.folds import FOLDS, SALTS, folds_of, group_codes, key_hashes
from mld_core.records.format.layout import PassKey

ERROR_PROBA_THRESH = 0.8
"""Below it no error code is certain enough: the code carries a `*`."""

NO_T2 = 0.5
NO_TRUTH = "the truth of no frame is known: errors, codes and diagnoses need it"
NONE_JUDGED = "no kept prediction can be judged: there are no error probabilities and categories"


@dataclass(frozen=True)
class BoxPass:
    """One detection pass with its events; what a split carries in `scratch["boxes"]`."""

    records: BoxRecords
    units: BoxUnits
    match: PassMatch
    thresholds: Floats
    profile: Profile
    epochs: OtherEpochs
    unlabelled: Unlabelled | None


def miss_t2_of(truths: int, missed: int, tolerance: float | None) -> float:
    """Threshold of risk of the truths: their rate of misses, at most a half, or the user's."""
    return min((missed + 1) / (truths + 2), 0.5) if tolerance is None else float(tolerance)


class BoxAnalysis:
    """Error probabilities, categories, codes, diagnoses and regions of the boxes of a split."""

    name = "issues"

    def __call__(self, split: Split, group: SplitGroup, engine: Workers) -> StageOutput:
        """Analyse one split."""
        made: BoxPass = split.scratch["boxes"]
        if made.units.rows == 0:
            return StageOutput()
        if not made.records.labelled.any():
            return StageOutput(notes=(NO_TRUTH,))
        return _Run(split, group, engine, made).output()


class _Run:
    """The analysis of one split, step by step."""

    def __init__(self, split: Split, group: SplitGroup, engine: Workers, made: BoxPass) -> None:
        self.split, self.group, self.engine = split, group, engine
        self.records, self.units, self.match = made.records, made.units, made.match
        self.profile, self.thresholds = made.profile, made.thresholds
        self.epochs, self.unlabelled = made.epochs, made.unlabelled
        self.keys = frame_keys(made.records, group.options.get("group_key"))
        self.options = analysis_options(group.options)

    def progress(self, name: str) -> AbstractContextManager[Any]:
        return self.engine.stage(f"{name} ({self.split.dataset})")

    def output(self) -> StageOutput:
        with self.engine as workers, workers.beside() as beside:
            told, interval = beside(lambda: self.misses(workers)), beside(self.accuracy_interval)
            arrays, answers = self.analysis()
            with self.progress("missed truths"):
                misses: ErrorProbability | None = told.result()
        epochs = self.epochs
        evidence = BoxEvidence(
            self.records,
            self.units,
            self.match,
            None if answers is None else Judgements.of(answers),
            None if misses is None else misses.error_proba,
            epochs,
            NO_T2 if answers is None else answers.analysis.used.t2,
            self.miss_t2(),
            self.unlabelled,
        )
        with self.progress("diagnoses"):
            more = self.profile.diagnose(evidence, diagnose_boxes(evidence))
            found = more.diagnoses
        columns = self.columns(answers, misses, found) | dict(more.columns)
        metrics = self.metrics(answers, misses) | interval.result() | dict(more.metrics)
        facts: dict[str, Any] = {"labeled": self.split.labeled, "other_epochs": epochs.count}
        facts["score_thresholds"] = [round(float(value), 6) for value in self.thresholds]
        notes: tuple[str, ...] = ()
        tables: dict[str, Rows] = {"frames": self.frames(columns)}
        categories: dict[str, Any] = {"counts": int(self.units.judged.sum())}
        if answers is not None and arrays is not None:
            analysis = answers.analysis
            facts |= plain_facts(analysis.facts)
            notes = tuple(analysis_notes(self.split, analysis))
            categories |= category_row(analysis)
            tables["regions"] = region_rows(self.split, self.regions(analysis, found))
            tables["slices"] = slice_rows(self.split, analysis.slices)
        else:
            notes = (NONE_JUDGED,)
        facts["not_computable"] = dict(found.found.not_computable)
        facts["code_counts"] = dict(found.found.counts)
        facts |= plain_facts(more.facts)
        return StageOutput(columns, metrics, categories, facts, (*notes, *more.notes), tables)

    def misses(self, workers: Workers) -> ErrorProbability | None:
        """How probable it is that each truth is missed."""
        salts = self.options.salts or SALTS
        return estimate_misses(self.records, ~self.units.events.found, self.keys, salts, workers)

    def analysis(self) -> tuple[SplitArrays | None, BoxAnswers | None]:
        """The analysis of the kept predictions; None where none is judged."""
        if not self.units.judged.any():
            return None, None
        with self.progress("reading vectors"):
            key = self.group.options.get("group_key")
            arrays = box_arrays(
                self.records,
                self.units,
                self.split.units.parent,
                group_key=key,
                train=self.train(),
                workers=self.engine,
            )
        other = self.group.reference(self.split)
        reference = None if other is self.split else other.scratch.get("reference")
        answers = analyse_boxes(
            arrays,
            self.units,
            options=self.options,
            reference=reference if isinstance(reference, Reference) else None,
            workers=self.engine,
        )
        self.split.scratch["reference"] = answers.analysis.reference
        return arrays, answers

    def train(self) -> Any:
        """The train split's boxes as a reference, where it is evaluated with this one."""
        other = self.group.get("train")
        if other is None or other is self.split or "boxes" not in other.scratch:
            return None
        made: BoxPass = other.scratch["boxes"]
        if not made.units.judged.any():
            return None
        arrays = box_arrays(
            made.records, made.units, self.split.units.parent, group_key=self.group.options.get("group_key")
        )
        return as_train(arrays)

    def miss_t2(self) -> float:
        """Threshold of risk of the truths: their rate of misses, at most a half, or the user's."""
        counts = self.records.truths.counts
        missed = int((counts & ~self.units.events.found).sum())
        return miss_t2_of(int(counts.sum()), missed, self.group.options.get("risk_tolerance"))

    # -- columns -------------------------------------------------------------------------------------------

    def columns(
        self, answers: BoxAnswers | None, misses: ErrorProbability | None, found: BoxDiagnoses
    ) -> dict[str, Column]:
        made: dict[str, Column] = {
            **diagnosis_columns(found.found),
            "suspicion": found.suspicion,
            "detail": named(DETAILS, found.detail),
        }
        if misses is not None:
            miss_proba = np.append(misses.error_proba, np.nan)[self.units.truth]
            miss_proba[: len(self.units.kept)] = np.nan
            made["miss_proba"] = miss_proba
        if answers is not None:
            made |= self.analysis_columns(answers, found)
        return made

    def analysis_columns(self, answers: BoxAnswers, found: BoxDiagnoses) -> dict[str, Column]:
        analysis, parts = answers.analysis, answers.probabilities
        thresh = float(self.group.options.get("error_proba_thresh") or ERROR_PROBA_THRESH)
        best = np.where(analysis.suggested_label == self.records.n_class, -1, analysis.suggested_label)
        best = np.append(best, found.suggested[len(best) :])
        made: dict[str, Column] = {
            **answer_columns(analysis, self.split),
            "det_error_proba": parts.det_error,
            "cls_error_proba": parts.cls_error,
            "code_certainty": parts.certainty,
        }
        others = self.units.rows - len(self.units.kept)
        return {name: padded(column, others) for name, column in made.items()} | {
            "suggested_label": pa.array(best, pa.int32(), mask=best < 0),
            "error_code": error_codes(self.records, self.units, parts.certainty < thresh),
            "frame_error_proba": self.frame_column(analysis),
        }

    def frame_column(self, analysis: SplitAnalysis) -> NDArray[np.float64]:
        """(U,) probability that the unit's frame holds an error."""
        self.frame_errors = FrameErrors.of(self.records, self.units, analysis.error_proba, self.keys)
        self.frame_proba = self.frame_errors.proba()
        return self.frame_proba[self.units.frame(self.records)]

    def frames(self, columns: Mapping[str, Column]) -> pa.Table:
        """One row for each frame: its boxes, errors and probabilities, null where it has no kept box."""
        table = frame_rows(self.records.selection.key, self.records, self.units, columns)
        if hasattr(self, "frame_proba"):
            table["frame_error_proba"] = self.frame_proba
        return pa.table({name: pa.array(one.to_numpy(), from_pandas=True) for name, one in table.items()})

    def regions(self, analysis: SplitAnalysis, found: BoxDiagnoses) -> list[Region]:
        """The regions with the codes of the detection catalogue."""
        made, most = [], 1 + max((one.region_id for one in analysis.regions), default=-1)
        region = self.units.padded(analysis.region, fill=-1)
        inside = np.flatnonzero(region >= 0)
        of_code = {
            code: np.bincount(region[inside[mask[inside]]], minlength=most)
            for code, mask in found.found.masks.items()
        }
        for one in analysis.regions:
            counts = {code: int(count[one.region_id]) for code, count in of_code.items()}
            top = sorted((code for code in counts if counts[code]), key=lambda code: (-counts[code], code))
            classes = [number for number in one.top_classes if number < self.records.n_class]
            label = named_background(one.label, self.records.n_class)
            made.append(replace(one, top_codes=top[:3], top_classes=classes, label=label))
        return made

    # -- metrics -------------------------------------------------------------------------------------------

    def metrics(
        self, answers: BoxAnswers | None, misses: ErrorProbability | None
    ) -> dict[str, float | int | str | None]:
        made: dict[str, float | int | str | None] = {}
        judged, events = self.units.judged, self.units.events
        if answers is not None:
            made |= answers.analysis.metrics
            made["error_proba_source"] = answers.analysis.estimate.source
            parts = answers.probabilities
            loose = events.code[judged] != A
            made["det_error_proba_auroc"] = auroc(parts.det_error[judged], loose)
            met = judged & events.matched
            confused = events.said_of[met] != self.records.predictions.label[self.units.kept[met]]
            made["cls_error_proba_auroc"] = auroc(parts.cls_error[met], confused)
            made["frame_error_proba_auroc"] = self.frame_errors.auroc(self.frame_proba)
        if misses is not None:
            use = self.records.truths.counts
            missed = ~events.found[use]
            made["miss_proba_auroc"] = auroc(misses.error_proba[use], missed)
            made["miss_proba_auprc"] = average_precision(misses.error_proba[use], missed)
        return made

    def accuracy_interval(self) -> dict[str, float | None]:
        """95 % interval of the accuracy, frames or groups drawn together."""
        records, units = self.records, self.units
        lost = records.truths.frame[records.truths.counts & ~units.events.found]
        frame = np.append(records.predictions.frame[units.kept[units.judged]], lost)
        right = np.append(units.events.right[units.judged], np.zeros(len(lost), np.bool_))
        if len(frame) == 0:
            return {}
        # Frames are fewer than boxes, and texts are dear to sort.
        names, groups = group_codes(self.keys)

        def accuracy(weight: NDArray[np.float64]) -> dict[str, float | None]:
            mass = float(weight.sum())
            return {"accuracy": float(weight[right].sum()) / mass if mass else None}

        with self.engine as workers:
            found = bootstrap(accuracy, key_hashes(names, "0"), groups[frame], workers)
        low, high = found.get("accuracy", (None, None))
        return {"accuracy_lo": low, "accuracy_hi": high}


def named_background(label: str, background: int) -> str:
    """A region's "truth->prediction @ metadata" with `bg` for the background's number."""
    pair, at, where = label.partition(" @ ")
    sides = ["bg" if side == str(background) else side for side in pair.split("->")]
    return "->".join(sides) + at + where


def padded(column: Column, others: int) -> Column:
    """A column of the kept predictions with nothing for the other units."""
    if isinstance(column, np.ndarray):
        return np.append(column.astype(np.float64), np.full(others, np.nan))
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return pa.concat_arrays([*chunks, pa.nulls(others, column.type)])


def frame_rows(
    key: PassKey, records: BoxRecords, units: BoxUnits, columns: Mapping[str, Column]
) -> pd.DataFrame:
    """One row for each frame of a pass, or of a part of it; `frame_error_proba` is not filled in."""
    count = records.frames.num_rows
    frame = records.predictions.frame[units.kept]

    def per_frame(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.bincount(rows, minlength=count)

    truths = records.truths
    use = truths.counts
    table = pd.DataFrame(
        {
            "dataset": key.dataset_type,
            "n_epoch": key.n_epoch,
            "input_id": records.frames["input_id"].to_pylist(),
            "labelled": records.labelled,
            "n_gt": per_frame(truths.frame[use]),
            "n_pred": per_frame(frame),
            "n_tp": per_frame(frame[units.judged & units.events.right]),
            "n_fp": per_frame(frame[units.wrong]),
            "n_fn": per_frame(truths.frame[use & ~units.events.found]),
        }
    )
    table["frame_error_proba"] = np.full(count, np.nan)
    for name in ("error_proba", "det_error_proba", "cls_error_proba"):
        if name in columns:
            values = pd.Series(np.asarray(columns[name], np.float64)[: len(frame)]).groupby(frame)
            table[f"{name}_mean"] = values.mean().reindex(range(count)).to_numpy()
            table[f"{name}_max"] = values.max().reindex(range(count)).to_numpy()
    return table


@dataclass(frozen=True)
class FrameErrors(FrameState):
    """What the probability that a frame holds an error is made from; (F,) frames.

    Attributes:
        raw: 1 - prod(1 - error probability) over its kept predictions.
        wrong: Whether it holds one.
        labelled: Whether that is known.
        fold: Its fold.
    """

    summed = ()

    raw: Floats
    wrong: Bools
    labelled: Bools
    fold: NDArray[np.int8]

    @classmethod
    def of(
        cls, records: BoxRecords, units: BoxUnits, proba: Floats, keys: NDArray[np.generic]
    ) -> FrameErrors:
        """Of a pass, or of a part of it, given the error probabilities of the kept predictions."""
        count = records.frames.num_rows
        frame = records.predictions.frame[units.kept]
        fine = np.bincount(frame, weights=np.log1p(-np.clip(proba, 0, 1 - 1e-9)), minlength=count)
        wrong = np.zeros(count, np.bool_)
        wrong[wrong_frames(records, units)] = True
        names, groups = group_codes(keys)
        return cls(1 - np.exp(fine), wrong, records.labelled, folds_of(key_hashes(names, "0"))[groups])

    def proba(self) -> Floats:
        """(F,) probability that a frame holds an error: isotonic, cross-fitted."""
        from sklearn.isotonic import IsotonicRegression

        made = self.raw.copy()
        for fold in range(FOLDS):
            train = np.flatnonzero(self.labelled & (self.fold != fold))
            test = np.flatnonzero(self.fold == fold)
            if len(train) and len(test):
                model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
                made[test] = model.fit(self.raw[train], self.wrong[train]).predict(self.raw[test])
        return made

    def auroc(self, proba: Floats) -> float | None:
        """How well that ranks the frames whose truth is known."""
        return auroc(proba[self.labelled], self.wrong[self.labelled])
