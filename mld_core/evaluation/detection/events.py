"""From the records of a pass to its events: matching, thresholds, and what every kept box is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection.codes import BoxEvents, find_events
from mld_core.evaluation.detection.epochs import Said, said_about
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import BoxUnits
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics import tide
from mld_core.evaluation.metrics.boxes import NO_PAIRS, Bools, Floats, Ints, Predictions, Truths
from mld_core.evaluation.metrics.matching import BoxGeometry, match_events

CHUNK_BOXES = 50_000
DEFAULT_THRESHOLD = 0.5
"""Score threshold of a class without truths in the reference split."""


@dataclass(frozen=True)
class Step:
    """The boxes of some frames, and which of the pass they are.

    Attributes:
        predictions: Predictions.
        truths: Truths of the same frames.
        rows: Rows of the predictions.
        span: Rows of the truths.
    """

    predictions: Predictions
    truths: Truths
    rows: Ints
    span: slice


def steps(frames: int, predictions: Predictions, truths: Truths) -> Iterator[Step]:
    """Cut a pass between frames, about 50,000 boxes at a time."""
    p_ends = np.searchsorted(predictions.frame, np.arange(frames), side="right")
    t_ends = np.searchsorted(truths.frame, np.arange(frames), side="right")
    total = p_ends + t_ends
    start, p, t = 0, 0, 0
    while start < frames:
        stop = max(start + 1, int(np.searchsorted(total, p + t + CHUNK_BOXES, side="right")))
        rows, span = np.arange(p, int(p_ends[stop - 1])), slice(t, int(t_ends[stop - 1]))
        yield Step(predictions.take(rows), truths.take(span), rows, span)
        start, p, t = stop, p + len(rows), span.stop


def walk(records: BoxRecords) -> Iterator[Step]:
    """Every recorded prediction of the labelled frames of a pass, some frames at a time."""
    judged = np.flatnonzero(records.labelled[records.predictions.frame])
    for step in steps(records.frames.num_rows, records.predictions.take(judged), records.truths):
        yield replace(step, rows=judged[step.rows])


class Figures(Protocol):
    """The metrics of a pass: COCO's, nuScenes', ..."""

    def summary(self) -> dict[str, float | None]:
        """The headline figures, `map` among them; None where undefined."""
        ...

    def of_class(self, number: int) -> dict[str, float | None]:
        """The figures of one class, `map` or `ap` among them."""
        ...


@dataclass(frozen=True)
class PassMatch:
    """Every recorded prediction of a pass against its truths; (N,) predictions, (G,) truths.

    Attributes:
        right: (N,) matched within its class.
        ignored: (N,) counts neither as right nor as wrong, frames without known truth included.
        found: (G,) found within its class by a prediction of any score.
        near: (G,) closeness of the closest prediction of any class and score.
        closest: (N,) closeness of the closest truth of any class.
        said: What the recorded boxes say about each truth.
        tide: What the TIDE costs are computed from; None without frames, or where it was not asked for.
    """

    right: Bools
    ignored: Bools
    found: Bools
    near: Floats
    closest: Floats
    said: Said
    tide: tide.TideState | None

    @property
    def costs(self) -> dict[str, float | None]:
        """TIDE costs."""
        return costs_of(self.tide)


def costs_of(state: tide.TideState | None) -> dict[str, float | None]:
    """TIDE costs of some frames; None throughout without any."""
    return dict.fromkeys(("ap", *tide.TYPES)) if state is None else tide.tide_costs(state)


def match_pass(
    records: BoxRecords, geometry: BoxGeometry, workers: Workers | None = None, *, costs: bool = True
) -> PassMatch:
    """Match every recorded prediction of labelled frames; `costs`: whether TIDE costs will be asked for.

    Without workers on this thread.
    """
    right = np.zeros(len(records.predictions), np.bool_)
    ignored = np.ones(len(records.predictions), np.bool_)
    found, near = np.zeros(len(records.truths), np.bool_), np.zeros(len(records.truths))
    closest = np.zeros(len(records.predictions))

    def one(step: Step) -> tuple[Said, tide.TideState | None]:
        pairs = geometry.close(step.predictions, step.truths)
        matched = match_events(pairs, step.predictions, step.truths, geometry.event)
        right[step.rows] = (matched.truth >= 0) & ~matched.ignored
        ignored[step.rows] = matched.ignored
        found[step.span] = matched.prediction >= 0
        np.maximum.at(near[step.span], pairs.right, pairs.value)
        np.maximum.at(closest, step.rows[pairs.left], pairs.value)
        said = said_about(step.predictions, step.truths, pairs, geometry)
        return said, _tide(step.predictions, step.truths, geometry, records.n_class) if costs else None

    made = list((map if workers is None else workers.map)(one, walk(records)))
    said, tides = [said for said, _ in made], [one for _, one in made if one is not None]
    merged = tide.TideState.merge(tides) if tides else None
    nothing = said_about(records.predictions.take(slice(0)), records.truths, NO_PAIRS, geometry)
    return PassMatch(right, ignored, found, near, closest, Said.merge(said or [nothing]), merged)


def _tide(p: Predictions, t: Truths, geometry: BoxGeometry, n_class: int) -> tide.TideState:
    kept = p.take(tide.within_cap(p))
    known = (kept.label >= 0) & (kept.label < n_class)
    kept = kept if known.all() else kept.take(np.flatnonzero(known))
    pairs = geometry.close(kept, t)
    matched = match_events(pairs, kept, t, geometry.event)
    errors = tide.classify(pairs, matched, kept, t, geometry.event, geometry.background)
    return tide.TideState.of(errors, kept, t, n_class)


def best_thresholds(
    label: Ints, score: NDArray[np.floating], right: Bools, ignored: Bools, truths: Ints
) -> Floats:
    """(K,) score of each class from which on its F1 is largest (of equal ones the larger score).

    Args:
        label: (N,) predicted classes.
        score: (N,) scores.
        right: (N,) found a truth.
        ignored: (N,) does not count.
        truths: (K,) truths; a class without gets 0.5.

    Example:
        >>> one = np.zeros(3, int)
        >>> hits = np.array([True, False, True])
        >>> best_thresholds(one, np.array([0.9, 0.8, 0.7]), hits, ~np.ones(3, bool), np.array([1])).tolist()
        [0.9]
    """
    made = np.full(len(truths), DEFAULT_THRESHOLD)
    use = np.flatnonzero(~ignored & (label >= 0) & (label < len(truths)))
    order = use[np.lexsort((-score[use].astype(np.float64), label[use]))]
    starts = np.searchsorted(label[order], np.arange(len(truths) + 1))
    for k in np.flatnonzero(truths > 0).tolist():
        rows = order[starts[k] : starts[k + 1]]
        if len(rows) == 0:
            continue
        found = np.cumsum(right[rows])
        f1 = 2 * found / (np.arange(1, len(rows) + 1) + truths[k])
        last = np.append(score[rows[1:]] != score[rows[:-1]], True)
        best = int(np.argmax(np.where(last, f1, -1.0)))
        made[k] = float(score[rows[best]])
    return made


def events_of(records: BoxRecords, kept: Ints, geometry: BoxGeometry) -> BoxEvents:
    """Judge the kept predictions of a pass; `truth` counts over the truths of the pass."""
    predictions, truths = records.predictions.take(kept), records.truths
    some = list(steps(records.frames.num_rows, predictions, truths))
    if len(some) < 2:
        return find_events(predictions, truths, geometry)
    # What is usual in a class is that of the pass, which is known once every prediction has its truth.
    found = _step_by_step(some, geometry)
    whole = geometry.of_pass(predictions, truths, found.truth)
    return found if whole is geometry else _step_by_step(some, whole)


def _step_by_step(some: list[Step], geometry: BoxGeometry) -> BoxEvents:
    parts = []
    for step in some:
        found = find_events(step.predictions, step.truths, geometry)
        parts.append(replace(found, truth=np.where(found.truth >= 0, found.truth + step.span.start, -1)))
    return BoxEvents.merge(parts)


def for_classes(thresholds: Floats, n_class: int) -> Floats:
    """(K,) score thresholds, the default one for classes that the reference split does not know."""
    return np.append(thresholds, np.full(max(0, n_class - len(thresholds)), DEFAULT_THRESHOLD))


def judged_units(records: BoxRecords, thresholds: Floats, geometry: BoxGeometry) -> BoxUnits:
    """The units at the operating thresholds, without weak boxes."""
    predictions = records.predictions
    inside = (predictions.label >= 0) & (predictions.label < records.n_class)
    limit = thresholds[np.clip(predictions.label, 0, records.n_class - 1)]
    kept = np.flatnonzero(inside & (predictions.score >= limit))
    events = events_of(records, kept, geometry)
    judged = ~events.ignored & records.labelled[predictions.frame[kept]]
    return BoxUnits(kept, np.flatnonzero(records.truths.counts & ~events.met), judged, events)
