"""Detection from the records of a run to the tables of a result: `od_v1`, and `od3d_v1` with 3D's profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mld_core.evaluation.analysis.stages import Handed, Split, SplitGroup, SplitStage
from mld_core.evaluation.detection.analysis import frame_keys, label_for_loss, logit_figures
from mld_core.evaluation.detection.epochs import OtherEpochs, look_at_epochs
from mld_core.evaluation.detection.events import (
    Figures,
    PassMatch,
    best_thresholds,
    for_classes,
    judged_units,
    match_pass,
)
from mld_core.evaluation.detection.metrics import (
    BOX_CLASS_SCHEMA,
    BOX_METRICS_SCHEMA,
    Events,
    Measured,
    Recorded,
    Remarks,
    distinct_inputs,
    evaluated_pass,
)
from mld_core.evaluation.detection.objects import Unlabelled, candidates, look_for_objects
from mld_core.evaluation.detection.profile import IMAGES, Profile
from mld_core.evaluation.detection.records import BoxRecords, class_logits, read_boxes, vector_rows
from mld_core.evaluation.detection.rounds.method import evaluate_in_rounds
from mld_core.evaluation.detection.stage import BoxAnalysis, BoxPass
from mld_core.evaluation.detection.units import BoxUnits, unit_table
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.engine.passes import unit_file
from mld_core.evaluation.engine.rounds import rounds_of
from mld_core.evaluation.metrics.boxes import Floats, Ints
from mld_core.evaluation.results.evaluated import EvaluatedPass, Method, evaluate_passes
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.read.reader import PassSelection

Beside = Callable[[Callable[[], Any]], Future[Any]]
"""Of `Workers.beside`."""


@dataclass(frozen=True)
class _Read:
    """A pass whose recorded predictions are all matched, and the slot of its split.

    What its profile measures and the costs of TIDE are under way.
    """

    records: BoxRecords
    match: PassMatch
    split: Split
    figures: Future[Figures | None]
    costs: Future[dict[str, float | None]]
    distinct: Future[int]
    recorded: Recorded


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

    def evaluated(measure: Callable[[SplitGroup], list[EvaluatedPass]], stage: SplitStage) -> dict[str, Any]:
        method = Method(measure, (stage,), BOX_METRICS_SCHEMA, BOX_CLASS_SCHEMA, ("frames",))
        return evaluate_passes(method, selections, folder, engine, info=info, options=options)

    if options.get("engine", "memory") == "memory":
        return evaluated(lambda group: measure_boxes(group, info, engine, profile), BoxAnalysis())
    with rounds_of(engine, options) as rounds:
        return evaluated(lambda group: evaluate_in_rounds(results, group, rounds, info, profile), Handed())


def measure_boxes(
    group: SplitGroup, info: dict[str, Any], engine: Workers, profile: Profile
) -> list[EvaluatedPass]:
    """Match all splits of a group, then judge each at the thresholds of its reference split."""
    # What needs no threshold is one thread's work, beside all that goes on.
    with engine as workers, workers.beside() as beside:
        read = {}
        for split in group.splits:
            with engine.stage(f"matching ({split.dataset})"):
                read[split.dataset] = _match(split, info, profile, workers, beside)
        limits = {name: _thresholds(read[group.reference(one.split).dataset]) for name, one in read.items()}
        # Every split needs its reference's counts of all predictions; only then are they those of the events.
        return [
            _judge(read[split.dataset], limits[split.dataset], profile, group, workers)
            for split in group.splits
        ]


def _match(split: Split, info: dict[str, Any], profile: Profile, workers: Workers, beside: Beside) -> _Read:
    records = read_boxes(split.selection, info)
    figures = beside(lambda: profile.figures_of(records))
    match = match_pass(records, profile.geometry, workers)
    split.n_class = records.n_class
    counted = ~match.ignored
    split.labeled = int(counted.sum())
    split.errors = int((counted & ~match.right).sum())
    recorded = Recorded.of(records, match)
    costs, distinct = beside(lambda: match.costs), beside(lambda: distinct_inputs(records))
    return _Read(records, match, split, figures, costs, distinct, recorded)


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
    thresholds = for_classes(thresholds, records.n_class)
    # Each is one thread's work: the counts beside the table.
    with engine as workers, workers.beside() as beside:
        units = judged_units(records, thresholds, profile.geometry)
        kept = units.kept
        figured = beside(partial(_of_logits, read, units))
        epochs, unlabelled = _other_opinions(read, kept, thresholds, profile, group, engine)
        units = replace(units, weak=_weak(unlabelled, kept))
        of_logits = figured.result()
        events = beside(lambda: Events.of(records, units, of_logits))
        table = unit_table(records, units, profile.columns, of_logits)
        with unit_file(split.units, table.schema) as writer:
            writer.write_table(table, row_group_size=65_536)
        measured = Measured(
            events.result(),
            read.recorded,
            read.costs.result(),
            read.distinct.result(),
            read.figures.result(),
        )
    split.rows, split.errors = units.rows, int(units.wrong.sum())
    split.labeled = int(units.judged.sum())
    split.scratch["boxes"] = BoxPass(records, units, match, thresholds, profile, epochs, unlabelled)
    return evaluated_pass(split, profile.name, measured, thresholds, Remarks.of(records))


def _of_logits(read: _Read, units: BoxUnits) -> dict[str, Floats]:
    """Loss and entropy of the kept predictions."""
    records = read.records
    stored = vector_rows(records, units.kept)
    logits = class_logits(records, units.kept, stored, read.split.units.parent)
    return logit_figures(logits, label_for_loss(records, units))


def _other_opinions(
    read: _Read, kept: Ints, thresholds: Floats, profile: Profile, group: SplitGroup, engine: Workers
) -> tuple[OtherEpochs, Unlabelled | None]:
    """What other epochs say, and which boxes without a truth look like objects."""
    records, split = read.records, read.split
    said = records.predictions
    use = records.labelled[said.frame] & (said.label >= 0) & (said.label < records.n_class)
    some = candidates(said, use, read.match.closest, kept, profile.geometry, engine, weak=profile.weak)
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
