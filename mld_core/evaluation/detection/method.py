"""Detection from the records of a run to the tables of a result: `od_v1`, and `od3d_v1` with 3D's profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mld_core.evaluation.analysis.stages import Split, SplitGroup
from mld_core.evaluation.detection.analysis import frame_keys, logit_figures
from mld_core.evaluation.detection.epochs import OtherEpochs, look_at_epochs
from mld_core.evaluation.detection.events import (
    DEFAULT_THRESHOLD,
    PassMatch,
    best_thresholds,
    events_of,
    match_pass,
)
from mld_core.evaluation.detection.metrics import (
    BOX_CLASS_SCHEMA,
    BOX_METRICS_SCHEMA,
    box_metrics,
    class_rows,
    confusion_table,
)
from mld_core.evaluation.detection.objects import Unlabelled, candidates, look_for_objects
from mld_core.evaluation.detection.profile import IMAGES, Profile
from mld_core.evaluation.detection.records import BoxRecords, class_logits, read_boxes, vector_rows
from mld_core.evaluation.detection.stage import BoxAnalysis, BoxPass
from mld_core.evaluation.detection.units import BoxUnits, unit_table
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.engine.passes import problem, record_problems
from mld_core.evaluation.metrics.boxes import Floats, Ints
from mld_core.evaluation.results.evaluated import EvaluatedPass, Method, evaluate_passes
from mld_core.evaluation.results.store import ResultStore
from mld_core.evaluation.results.tables import read_facts
from mld_core.records.read.reader import PassSelection


@dataclass(frozen=True)
class _Read:
    """A pass whose recorded predictions are all matched, and the slot of its split."""

    records: BoxRecords
    match: PassMatch
    split: Split


def evaluate_boxes(
    results: ResultStore,
    selections: Sequence[PassSelection],
    folder: Path,
    engine: Workers,
    *,
    options: dict[str, Any],
    profile: Profile = IMAGES,
) -> dict[str, Any]:
    """Evaluate some passes of a detection run, whose boxes are those of `profile`; see `evaluate_passes`."""
    info = results.store.run_info(results.run)
    method = Method(
        lambda group: measure_boxes(group, info, engine, profile),
        (BoxAnalysis(),),
        BOX_METRICS_SCHEMA,
        BOX_CLASS_SCHEMA,
        ("frames",),
    )
    return evaluate_passes(method, selections, folder, engine, info=info, options=options)


def measure_boxes(
    group: SplitGroup, info: dict[str, Any], engine: Workers, profile: Profile
) -> list[EvaluatedPass]:
    """Match all splits of a group, then judge each at the thresholds of its reference split."""
    read = {}
    for split in group.splits:
        with engine.stage(f"matching ({split.dataset})"):
            read[split.dataset] = _match(split, info, profile)
    limits = {name: _thresholds(read[group.reference(one.split).dataset]) for name, one in read.items()}
    # Every split needs its reference's counts of all predictions; only then are they those of the events.
    return [
        _judge(read[split.dataset], limits[split.dataset], profile, group, engine) for split in group.splits
    ]


def _match(split: Split, info: dict[str, Any], profile: Profile) -> _Read:
    records = read_boxes(split.selection, info)
    match = match_pass(records, profile.geometry)
    split.n_class = records.n_class
    counted = ~match.ignored
    split.labeled = int(counted.sum())
    split.errors = int((counted & ~match.right).sum())
    return _Read(records, match, split)


def _thresholds(read: _Read) -> Floats:
    """(K,) operating score thresholds from the recorded predictions of a split."""
    records, match = read.records, read.match
    truths = records.truths
    use = truths.counts & (truths.label < records.n_class)
    counts = np.bincount(truths.label[use], minlength=records.n_class)
    predictions = records.predictions
    return best_thresholds(predictions.label, predictions.score, match.right, match.ignored, counts)


def _judge(
    read: _Read, thresholds: Floats, profile: Profile, group: SplitGroup, engine: Workers
) -> EvaluatedPass:
    """Events at the thresholds, the unit table, and the metrics of a pass."""
    records, match, split = read.records, read.match, read.split
    predictions = records.predictions
    if len(thresholds) < records.n_class:
        thresholds = np.append(thresholds, np.full(records.n_class - len(thresholds), DEFAULT_THRESHOLD))
    inside = (predictions.label >= 0) & (predictions.label < records.n_class)
    limit = thresholds[np.clip(predictions.label, 0, records.n_class - 1)]
    kept = np.flatnonzero(inside & (predictions.score >= limit))
    events = events_of(records, kept, profile.geometry)
    judged = ~events.ignored & records.labelled[predictions.frame[kept]]
    missed = np.flatnonzero(records.truths.counts & ~events.met)
    epochs, unlabelled = _other_opinions(read, kept, thresholds, profile, group, engine)
    units = BoxUnits(kept, missed, judged, events, _weak(unlabelled, kept))
    logits = class_logits(records, kept, vector_rows(records, kept), split.units.parent)
    label = np.where(events.said_of >= 0, events.said_of, records.n_class)
    # For the loss a box that found nothing is background, however close the next truth.
    label = np.where(events.matched, label, records.n_class)
    of_logits = logit_figures(logits, np.where(judged, label, -1))
    table = unit_table(records, units, profile.columns, of_logits)
    pq.write_table(table, split.units, compression="zstd", row_group_size=65_536)
    split.rows, split.errors = units.rows, int(units.wrong.sum())
    split.labeled = int(judged.sum())
    split.scratch["boxes"] = BoxPass(records, units, match, thresholds, profile, epochs, unlabelled)
    figures = profile.figures(records)
    metrics = box_metrics(records, units, match, of_logits) | read_facts(split.selection)
    if figures is not None:
        found = figures.summary()
        metrics |= {"auprc": found.pop("map"), **found, "profile": profile.name}
    metrics["error_rate"] = split.errors / split.labeled if split.labeled else None
    return EvaluatedPass(
        split,
        metrics,
        class_rows(records, units, match, figures, thresholds),
        confusion_table(records, units),
        record_problems(split.selection) + _problems(records, units),
    )


def _other_opinions(
    read: _Read, kept: Ints, thresholds: Floats, profile: Profile, group: SplitGroup, engine: Workers
) -> tuple[OtherEpochs, Unlabelled | None]:
    """What other epochs say, and which boxes without a truth look like objects."""
    records, split = read.records, read.split
    said = records.predictions
    use = records.labelled[said.frame] & (said.label >= 0) & (said.label < records.n_class)
    some = candidates(said, use, read.match.closest, kept, profile.geometry, weak=profile.weak)
    asked = np.empty(0, np.int64) if some is None else some.rows
    with engine.stage(f"other epochs ({split.dataset})"):
        epochs = look_at_epochs(
            records, kept, profile.geometry, thresholds, asked=asked, keep=profile.keep_epochs
        )
    if some is None:
        return epochs, None
    with engine.stage(f"unlabelled objects ({split.dataset})"), engine as workers:
        keys = frame_keys(records, group.options.get("group_key"))
        return epochs, look_for_objects(records, some, epochs.votes, keys, split.units.parent, workers)


def _weak(found: Unlabelled | None, kept: Ints) -> Ints:
    """Rows below the threshold among twice as many of the likeliest objects as are expected."""
    if found is None:
        return np.empty(0, np.int64)
    first = np.argsort(-found.odds, kind="stable")[: 2 * found.expected]
    return np.setdiff1d(found.rows[first], kept)


USUAL_SCORE = 0.05
"""Detectors that are made to be measured keep boxes from about this score on."""


def _problems(records: BoxRecords, units: BoxUnits) -> list[dict[str, Any]]:
    selection = records.selection
    found = []
    if records.frames.num_rows == 0:
        return [problem("empty", "the pass holds no rows", selection)]
    unknown = int((~records.labelled).sum())
    if unknown:
        count = records.frames.num_rows
        text = f"the truth of {unknown} of {count} frames is not known: metrics are over the others"
        found.append(problem("unlabelled", text, selection, severity="note"))
    found += [problem("boxes", text, selection, severity="note") for text in records.notes]
    if not records.has_logits:
        text = "no logits are stored: the entropies and probabilities stand on the scores alone"
        found.append(problem("no_logits", text, selection))
    cut = _score_cut(records)
    if cut > USUAL_SCORE:
        text = f"only boxes that score {cut:.3g} or more are recorded: mAP is that of those alone"
        found.append(problem("score_thresh", text, selection, severity="note"))
    if len(records.predictions) == 0:
        found.append(problem("no_predictions", "no prediction is recorded in any frame", selection))
    elif len(units.kept) == 0:
        found.append(problem("no_kept", "no prediction reaches its class's score threshold", selection))
    return found


def _score_cut(records: BoxRecords) -> float:
    """The score below which the user or the model left boxes out; 0 where it is not recorded."""
    if "score_thresh" not in records.frames.column_names:
        return 0.0
    known = np.asarray(records.frames["score_thresh"].drop_null().to_numpy(), np.float64)
    return round(float(np.median(known)), 6) if len(known) else 0.0
