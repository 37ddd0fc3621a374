"""The metrics and per-class rows of a detection pass at its operating thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.detection.events import Figures, PassMatch
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import BoxUnits, typed
from mld_core.evaluation.metrics.boxes import Floats, Ints
from mld_core.evaluation.metrics.classification import auroc, macro, ratio
from mld_core.evaluation.metrics.nuscenes import ERRORS
from mld_core.evaluation.metrics.tide import TYPES, average_precisions
from mld_core.evaluation.results.tables import CLASS_SCHEMA, CONFUSION_SCHEMA, METRICS_SCHEMA

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
    records: BoxRecords, units: BoxUnits, match: PassMatch, logits_figures: dict[str, Floats]
) -> dict[str, Any]:
    """The row of the metrics table, without what the profile and the analysis add.

    `counts` are frames; `accuracy` is TP / (TP + FP + FN) at the operating thresholds; `auroc` is the macro
    AUC of the score (TP against FP) over every recorded prediction.
    """
    counted = event_counts(records, units)
    gt, tp, fp, fn = (int(value) for value in counted.sum(axis=0))
    labelled = int(records.labelled.sum())
    row: dict[str, Any] = {
        "counts": records.frames.num_rows,
        "count_labeled": labelled,
        "count_error": len(wrong_frames(records, units)),
        "count_distinct_input": _distinct(records),
        "auroc": macro(class_aurocs(records, match)),
        "error_rate": ratio(fp, tp + fp),
        "frame_error_rate": ratio(len(wrong_frames(records, units)), labelled),
        **_rates(gt, tp, fp, fn),
        "n_gt": gt,
        "n_pred": len(units.kept),
        "n_missed": len(units.missed),
        "n_recorded": len(records.predictions),
        **{f"dap_{name}": match.costs[name] for name in TYPES},
        "ranking_method": "exact",
    }
    if labelled == 0:
        for name in ("accuracy", "error_rate", "precision", "recall", "f1", "frame_error_rate"):
            row[name] = None
    return row | _entropies(logits_figures, records.n_class)


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


def _entropies(figures: dict[str, Floats], n_class: int) -> dict[str, float | None]:
    loss, spread = figures["loss"], figures["entropy"]
    known = ~np.isnan(loss)
    mean = ratio(float(spread.sum()), len(spread))
    return {
        "net_entropy_loss": float(loss[known].sum()) if known.any() else None,
        "net_entropy": float(spread.sum()) if len(spread) else None,
        "net_entropy_loss_mean": ratio(float(loss[known].sum()), int(known.sum())),
        "net_entropy_mean": mean,
        "net_entropy_norm": None if mean is None else mean / float(np.log(n_class + 1)),
    }


def _distinct(records: BoxRecords) -> int:
    hashes = records.frames["input_hash"].cast(pa.string()).to_pylist()
    ids = records.frames["input_id"].cast(pa.string()).to_pylist()
    return len({one or other for one, other in zip(hashes, ids, strict=True)})


def wrong_frames(records: BoxRecords, units: BoxUnits) -> Ints:
    """Frames with a false positive or a truth that was not found in its class."""
    truths = records.truths
    missed = truths.frame[truths.counts & ~units.events.found]
    return np.union1d(records.predictions.frame[units.kept[units.wrong]], missed)


def class_aurocs(records: BoxRecords, match: PassMatch) -> list[float | None]:
    """AUC of the score, true against false positives, of each class over every recorded prediction."""
    use = np.flatnonzero(~match.ignored)
    label, score, right = records.predictions.label[use], records.predictions.score[use], match.right[use]
    order = np.argsort(label, kind="stable")
    edges = np.searchsorted(label[order], np.arange(records.n_class + 1))
    made = []
    for k in range(records.n_class):
        rows = order[edges[k] : edges[k + 1]]
        made.append(auroc(score[rows], right[rows]))
    return made


def class_rows(
    records: BoxRecords, units: BoxUnits, match: PassMatch, figures: Figures | None, thresholds: Floats
) -> list[dict[str, Any]]:
    """One row for each class with a truth or a prediction."""
    counted = event_counts(records, units)
    aurocs = class_aurocs(records, match)
    use = ~match.ignored
    predictions = records.predictions
    inside = use & (predictions.label >= 0) & (predictions.label < records.n_class)
    ap_50 = average_precisions(
        predictions.label[inside], predictions.score[inside], match.right[inside], counted[:, 0]
    )
    key = records.selection.key
    rows = []
    for number in range(records.n_class):
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


def confusion_table(records: BoxRecords, units: BoxUnits) -> pa.Table:
    """Counts of (truth, prediction) over matched boxes; no truth or no prediction is null (background)."""
    events = units.events
    said = records.predictions.label[units.kept]
    judged = np.flatnonzero(units.judged)
    truth = np.where(events.matched, events.said_of, -1)[judged]
    pairs = np.stack([truth, said[judged]], axis=1)
    lost = records.truths.label[units.missed]
    pairs = np.concatenate([pairs, np.stack([lost, np.full(len(lost), -1)], axis=1)])
    distinct, counts = np.unique(pairs, axis=0, return_counts=True)
    key, rows = records.selection.key, len(distinct)
    columns = [
        pa.repeat(pa.scalar(key.dataset_type, pa.string()), rows),
        pa.repeat(pa.scalar(key.n_epoch, pa.int32()), rows),
        pa.array(distinct[:, 0], pa.int32(), mask=distinct[:, 0] < 0),
        pa.array(distinct[:, 1], pa.int32(), mask=distinct[:, 1] < 0),
        pa.array(counts, pa.int64()),
    ]
    return pa.Table.from_arrays(columns, schema=CONFUSION_SCHEMA)
