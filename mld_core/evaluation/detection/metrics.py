"""The metrics and per-class rows of a detection pass at its operating thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis.stages import Split
from mld_core.evaluation.detection.events import Figures, PassMatch
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import BoxUnits, typed
from mld_core.evaluation.engine.passes import problem, record_problems
from mld_core.evaluation.metrics.boxes import Bools, Floats, FrameState, Ints
from mld_core.evaluation.metrics.classification import auroc, macro, ratio
from mld_core.evaluation.metrics.nuscenes import ERRORS
from mld_core.evaluation.metrics.tide import TYPES, average_precisions
from mld_core.evaluation.results.evaluated import EvaluatedPass
from mld_core.evaluation.results.tables import CLASS_SCHEMA, CONFUSION_SCHEMA, METRICS_SCHEMA, read_facts
from mld_core.records.format.layout import PassKey
from mld_core.records.read.reader import PassSelection

_COUNTS = ("n_gt", "n_pred", "n_tp", "n_fp", "n_fn", "n_missed", "n_recorded")
_FIGURES = (
    *("precision", "recall", "f1", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"),
    *(f"dap_{name}" for name in TYPES),
    *("miss_proba_auroc", "miss_proba_auprc", "frame_error_proba_auroc", "frame_error_rate"),
    *("det_error_proba_auroc", "cls_error_proba_auroc"),
    *("nds", "mate", "mase", "maoe", "mave", "maae", "map_d05", "map_d1", "map_d2", "map_d4"),
)
BOX_METRICS_SCHEMA = pa.schema(
    [
        *METRICS_SCHEMA,
        pa.field("profile", pa.string()),
        *typed(pa.int64(), *_COUNTS),
        *typed(pa.float64(), *_FIGURES),
    ]
)
BOX_CLASS_SCHEMA = pa.schema(
    [
        *CLASS_SCHEMA,
        *typed(pa.int64(), "n_pred", "n_tp", "n_fp", "n_fn"),
        *typed(pa.float64(), "recall", "f1", "score_threshold", "map_50", "map_75", *ERRORS),
    ]
)


@dataclass(frozen=True)
class Recorded(FrameState):
    """Every recorded prediction of some frames.

    Attributes:
        label: (N,) predicted classes.
        score: (N,) scores.
        right: (N,) found a truth of its class.
        ignored: (N,) counts neither as right nor as wrong.
    """

    summed = ()

    label: NDArray[np.int32]
    score: NDArray[np.float32]
    right: Bools
    ignored: Bools

    @classmethod
    def none(cls) -> Recorded:
        """Those of no frames."""
        return cls(np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, bool), np.empty(0, bool))

    @classmethod
    def of(cls, records: BoxRecords, match: PassMatch) -> Recorded:
        """Those of a pass, or a part of it."""
        said = records.predictions
        return cls(said.label.astype(np.int32), said.score.astype(np.float32), match.right, match.ignored)

    def aurocs(self, n_class: int) -> list[float | None]:
        """AUC of the score, true against false positives, of each class."""
        use = np.flatnonzero(~self.ignored)
        label, score, right = self.label[use], self.score[use], self.right[use]
        order = np.argsort(label, kind="stable")
        edges = np.searchsorted(label[order], np.arange(n_class + 1))
        made = []
        for k in range(n_class):
            rows = order[edges[k] : edges[k + 1]]
            made.append(auroc(score[rows], right[rows]))
        return made

    def average_precisions(self, truths: Ints) -> Floats:
        """(K,) average precision of each class, given the (K,) truths that count."""
        inside = ~self.ignored & (self.label >= 0) & (self.label < len(truths))
        return average_precisions(self.label[inside], self.score[inside], self.right[inside], truths)


@dataclass
class Entropies:
    """Sums over kept predictions, nats: of the loss over those whose label is known, of the entropy."""

    loss: float = 0.0
    losses: int = 0
    entropy: float = 0.0
    entropies: int = 0

    @classmethod
    def of(cls, figures: dict[str, Floats]) -> Entropies:
        """The sums of `analysis.logit_figures`."""
        loss, spread = figures["loss"], figures["entropy"]
        known = ~np.isnan(loss)
        return cls(float(loss[known].sum()), int(known.sum()), float(spread.sum()), len(spread))

    def merge(self, other: Entropies) -> Entropies:
        """The sums of both."""
        return Entropies(*(value + getattr(other, name) for name, value in vars(self).items()))

    def row(self, n_class: int) -> dict[str, float | None]:
        """The cells of the metrics table."""
        mean = ratio(self.entropy, self.entropies)
        return {
            "net_entropy_loss": self.loss if self.losses else None,
            "net_entropy": self.entropy if self.entropies else None,
            "net_entropy_loss_mean": ratio(self.loss, self.losses),
            "net_entropy_mean": mean,
            "net_entropy_norm": None if mean is None else mean / float(np.log(n_class + 1)),
        }


@dataclass
class Events:
    """What the events of some frames come to at the operating thresholds.

    Attributes:
        frames: How many.
        labelled: Those whose truth is known.
        wrong_frames: Those with an error.
        classes: (K, 4) truths that count, and true positives, false positives and false negatives.
        kept: Kept predictions.
        missed: Truths that no kept prediction found, of whatever class.
        recorded: Recorded predictions.
        pairs: (P, 3) truth, prediction and how often, over matched boxes; -1 is none.
        entropies: Of the kept predictions.
    """

    frames: int
    labelled: int
    wrong_frames: int
    classes: NDArray[np.int64]
    kept: int
    missed: int
    recorded: int
    pairs: NDArray[np.int64]
    entropies: Entropies

    @classmethod
    def of(cls, records: BoxRecords, units: BoxUnits, logits_figures: dict[str, Floats]) -> Events:
        """Those of a pass, or a part of it."""
        return cls(
            records.frames.num_rows,
            int(records.labelled.sum()),
            len(wrong_frames(records, units)),
            event_counts(records, units),
            len(units.kept),
            len(units.missed),
            len(records.predictions),
            confusions(records, units),
            Entropies.of(logits_figures),
        )

    @classmethod
    def none(cls, n_class: int) -> Events:
        """Those of no frames."""
        return cls(
            0, 0, 0, np.zeros((n_class, 4), np.int64), 0, 0, 0, np.empty((0, 3), np.int64), Entropies()
        )

    def merge(self, other: Events) -> Events:
        """Those of both."""
        made = {name: value + getattr(other, name) for name, value in vars(self).items() if name in _SUMMED}
        pairs = np.concatenate([self.pairs, other.pairs])
        distinct, where = np.unique(pairs[:, :2], axis=0, return_inverse=True)
        count = np.zeros(len(distinct), np.int64)
        np.add.at(count, where.reshape(-1), pairs[:, 2])
        entropies = self.entropies.merge(other.entropies)
        return Events(**made, pairs=np.column_stack([distinct, count]), entropies=entropies)


_SUMMED = frozenset(["frames", "labelled", "wrong_frames", "classes", "kept", "missed", "recorded"])


def event_counts(records: BoxRecords, units: BoxUnits) -> NDArray[np.int64]:
    """(K, 4) truths that count, and true positives, false positives and false negatives of each class."""
    truths, n_class = records.truths, records.n_class
    label = np.clip(records.predictions.label[units.kept], 0, n_class - 1)
    right = units.judged & units.events.right
    use = truths.counts & (truths.label < n_class)

    def count(labels: Ints) -> Ints:
        return np.bincount(labels, minlength=n_class)

    gt = count(truths.label[use])
    missed = count(truths.label[use & ~units.events.found])
    return np.stack([gt, count(label[right]), count(label[units.wrong]), missed], axis=1)


def box_metrics(
    events: Events,
    aurocs: list[float | None],
    costs: dict[str, float | None],
    distinct: int,
    n_class: int,
) -> dict[str, Any]:
    """The row of the metrics table, without what the profile and the analysis add.

    `counts` are frames; `accuracy` is TP / (TP + FP + FN) at the operating thresholds; `auroc` is the macro
    AUC of the score (TP against FP) over every recorded prediction.

    Args:
        events: At the operating thresholds.
        aurocs: (K,) of each class, see `Recorded`.
        costs: Of TIDE.
        distinct: Distinct inputs.
        n_class: Number of classes.
    """
    gt, tp, fp, fn = (int(value) for value in events.classes.sum(axis=0))
    row: dict[str, Any] = {
        "counts": events.frames,
        "count_labeled": events.labelled,
        "count_error": events.wrong_frames,
        "count_distinct_input": distinct,
        "auroc": macro(aurocs),
        "error_rate": ratio(fp, tp + fp),
        "frame_error_rate": ratio(events.wrong_frames, events.labelled),
        **_rates(gt, tp, fp, fn),
        "n_gt": gt,
        "n_pred": events.kept,
        "n_missed": events.missed,
        "n_recorded": events.recorded,
        **{f"dap_{name}": costs[name] for name in TYPES},
        "ranking_method": "exact",
    }
    if events.labelled == 0:
        for name in ("accuracy", "error_rate", "precision", "recall", "f1", "frame_error_rate"):
            row[name] = None
    return row | events.entropies.row(n_class)


def _rates(gt: int, tp: int, fp: int, fn: int) -> dict[str, int | float | None]:
    """What the counts of events come to."""
    return {
        "n_tp": tp,
        "n_fp": fp,
        "n_fn": fn,
        "accuracy": ratio(tp, tp + fp + fn),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, gt),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
    }


def distinct_inputs(records: BoxRecords) -> int:
    """How many inputs a pass has, by hash, else by id."""
    hashes = records.frames["input_hash"].cast(pa.string()).to_pylist()
    ids = records.frames["input_id"].cast(pa.string()).to_pylist()
    return len({one or other for one, other in zip(hashes, ids, strict=True)})


def wrong_frames(records: BoxRecords, units: BoxUnits) -> Ints:
    """Frames with a false positive or a truth that was not found in its class."""
    truths = records.truths
    missed = truths.frame[truths.counts & ~units.events.found]
    return np.union1d(records.predictions.frame[units.kept[units.wrong]], missed)


def class_rows(
    key: PassKey,
    counted: Ints,
    recorded: Recorded,
    aurocs: list[float | None],
    figures: Figures | None,
    thresholds: Floats,
) -> list[dict[str, Any]]:
    """One row for each class with a truth or a prediction; `counted` as `Events.classes`."""
    ap_50 = recorded.average_precisions(counted[:, 0])
    rows = []
    for number in range(len(counted)):
        gt, tp, fp, fn = (int(value) for value in counted[number])
        if gt + tp + fp == 0:
            continue
        own = {} if figures is None else figures.of_class(number)
        rows.append(
            {
                "dataset": key.dataset_type,
                "n_epoch": key.n_epoch,
                "class": number,
                "counts": gt,
                "count_error": fn,
                "auroc": aurocs[number],
                "auprc": own.get("map", own.get("ap")),
                "n_pred": tp + fp,
                **_rates(gt, tp, fp, fn),
                "score_threshold": float(thresholds[number]),
                "map_50": own.get("map_50", float(ap_50[number]) if gt else None),
                "map_75": own.get("map_75"),
                **{name: own.get(name) for name in ERRORS},
            }
        )
    return rows


def confusions(records: BoxRecords, units: BoxUnits) -> NDArray[np.int64]:
    """(P, 3) truth, prediction and count over matched boxes; no truth or no prediction is -1."""
    events = units.events
    said = records.predictions.label[units.kept]
    judged = np.flatnonzero(units.judged)
    truth = np.where(events.matched, events.said_of, -1)[judged]
    pairs = np.stack([truth, said[judged]], axis=1)
    lost = records.truths.label[units.missed]
    pairs = np.concatenate([pairs, np.stack([lost, np.full(len(lost), -1)], axis=1)])
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    return np.column_stack([distinct, counts]).astype(np.int64)


def confusion_table(key: PassKey, pairs: NDArray[np.int64]) -> pa.Table:
    """The table of `confusions`; no truth or no prediction is null (background)."""
    rows = len(pairs)
    columns = [
        pa.repeat(pa.scalar(key.dataset_type, pa.string()), rows),
        pa.repeat(pa.scalar(key.n_epoch, pa.int32()), rows),
        pa.array(pairs[:, 0], pa.int32(), mask=pairs[:, 0] < 0),
        pa.array(pairs[:, 1], pa.int32(), mask=pairs[:, 1] < 0),
        pa.array(pairs[:, 2], pa.int64()),
    ]
    return pa.Table.from_arrays(columns, schema=CONFUSION_SCHEMA)


# -- the tables of a pass ---------------------------------------------------------------------------------

USUAL_SCORE = 0.05
"""Detectors that are made to be measured keep boxes from about this score on."""


@dataclass(frozen=True)
class Remarks:
    """What else there is to say about the records of a pass.

    Attributes:
        notes: Sentences.
        has_logits: Whether class logits are stored.
        cuts: Scores below which boxes were left out, one of each frame that tells.
    """

    notes: tuple[str, ...]
    has_logits: bool
    cuts: Floats

    @classmethod
    def of(cls, records: BoxRecords) -> Remarks:
        """Those of a pass."""
        return cls(records.notes, records.has_logits, score_cuts(records))


def _problems(selection: PassSelection, events: Events, remarks: Remarks) -> list[dict[str, Any]]:
    found = []
    if events.frames == 0:
        return [problem("empty", "the pass holds no rows", selection)]
    unknown = events.frames - events.labelled
    if unknown:
        text = f"the truth of {unknown} of {events.frames} frames is not known: metrics are over the others"
        found.append(problem("unlabelled", text, selection, severity="note"))
    found += [problem("boxes", text, selection, severity="note") for text in remarks.notes]
    if not remarks.has_logits:
        text = "no logits are stored: the entropies and probabilities stand on the scores alone"
        found.append(problem("no_logits", text, selection))
    cut = round(float(np.median(remarks.cuts)), 6) if len(remarks.cuts) else 0.0
    if cut > USUAL_SCORE:
        text = f"only boxes that score {cut:.3g} or more are recorded: mAP is that of those alone"
        found.append(problem("score_thresh", text, selection, severity="note"))
    if events.recorded == 0:
        found.append(problem("no_predictions", "no prediction is recorded in any frame", selection))
    elif events.kept == 0:
        found.append(problem("no_kept", "no prediction reaches its class's score threshold", selection))
    return found


def score_cuts(records: BoxRecords) -> Floats:
    """The scores below which the user or the model left boxes out, of the frames that tell."""
    if "score_thresh" not in records.frames.column_names:
        return np.empty(0)
    return np.asarray(records.frames["score_thresh"].drop_null().to_numpy(), np.float64)


@dataclass(frozen=True)
class Measured:
    """What the tables say of a pass, in memory or in rounds.

    Attributes:
        events: At the operating thresholds.
        recorded: Every recorded prediction.
        costs: Of TIDE.
        distinct: Distinct inputs.
        figures: The profile's metrics; None without frames.
    """

    events: Events
    recorded: Recorded
    costs: dict[str, float | None]
    distinct: int
    figures: Figures | None


def evaluated_pass(
    split: Split, profile: str, found: Measured, thresholds: Floats, remarks: Remarks
) -> EvaluatedPass:
    """The rows of the tables of a pass."""
    events, n_class, key = found.events, split.n_class, split.selection.key
    aurocs = found.recorded.aurocs(n_class)
    metrics = box_metrics(events, aurocs, found.costs, found.distinct, n_class)
    metrics |= read_facts(split.selection)
    if found.figures is not None:
        summary = found.figures.summary()
        metrics |= {"auprc": summary.pop("map"), **summary, "profile": profile}
    metrics["error_rate"] = split.errors / split.labeled if split.labeled else None
    return EvaluatedPass(
        split,
        metrics,
        class_rows(key, events.classes, found.recorded, aurocs, found.figures, thresholds),
        confusion_table(key, events.pairs),
        record_problems(split.selection) + _problems(split.selection, events, remarks),
    )
