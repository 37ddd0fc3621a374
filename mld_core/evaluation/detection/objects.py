"""Boxes that look like objects although no label is near, among all that are recorded, whatever their score.

Two kinds of boxes are told apart: those on a truth, of whatever class, and those far from any. Some of the
latter are objects that nobody labelled: learning from positive and unlabelled examples (Elkan and Noto, KDD
2008). The share of objects without a label is read where boxes look most like objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mld_core.evaluation.analysis.error_probability import MINIMUM
from mld_core.evaluation.analysis.stack_features import ONE_HOT_CLASSES
from mld_core.evaluation.detection.analysis import box_columns
from mld_core.evaluation.detection.records import BoxRecords, feature_vectors, read_vectors, vector_rows
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, Predictions
from mld_core.evaluation.metrics.matching import BoxGeometry
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import FOLDS, folds_of, group_codes, hash_uniform, key_hashes
from mld_core.evaluation.statistics.logistic import fit_logistic

TRAIN_CAP = 20_000
"""Boxes the model is fitted on, and weak boxes that are asked about."""

LANDMARKS = 400
"""Boxes that all others are compared with, at most: one in ten of those the model is fitted on."""

DIMENSIONS = 32
"""Of the features that are read; longer vectors are projected on their principal axes."""

BLOCK = 8_192
"""Boxes that are compared with the landmarks, or projected, at once."""

PENALTY = 10.0
_EDGE = 1e-6


@dataclass(frozen=True)
class Candidates:
    """Which recorded predictions are looked at.

    Attributes:
        rows: (R,) their rows, ascending.
        object: (R,) stands on a truth.
        known: (R,) the model is fitted on it: on a truth, or far from all.
        asked: (R,) far from all truths, and kept or the best-scored box of its place.
        columns: (R, C) what is known without its vectors.
        objects: how many recorded predictions stand on a truth.
    """

    rows: Ints
    object: Bools
    known: Bools
    asked: Bools
    columns: NDArray[np.float32]
    objects: int


@dataclass(frozen=True)
class Unlabelled:
    """How far the boxes without a truth are believed to be objects.

    Attributes:
        rows: (A,) rows of the recorded predictions in question, ascending.
        odds: (A,) odds of an object, for an order.
        belief: (A,) probability of one, rather too small.
        expected: how many labels are missing, by the share of the boxes most like objects that have none.
    """

    rows: Ints
    odds: Floats
    belief: Floats
    expected: int


def candidates(
    predictions: Predictions,
    use: Bools,
    closest: Floats,
    kept: Ints,
    geometry: BoxGeometry,
    workers: Workers | None = None,
    *,
    weak: bool,
) -> Candidates | None:
    """Choose the boxes to look at; None where too few stand on truths or far from them.

    Args:
        predictions: All that are recorded.
        use: (N,) of known classes, in frames whose truth is known.
        closest: (N,) closeness of the closest truth of any class.
        kept: Rows that reach the operating threshold.
        geometry: How close boxes are.
        workers: Open pool; None = this thread.
        weak: Whether boxes below it are in question too.
    """
    on, far = use & (closest >= geometry.event), use & (closest < geometry.background)
    if min(on.sum(), far.sum()) < MINIMUM:
        return None
    columns = box_columns(predictions, workers)
    # The last two: the largest overlap with a better-scored box of its class, and of another.
    first = columns[:, -2:].max(axis=1) < geometry.event
    strong = np.zeros(len(predictions), np.bool_)
    strong[kept] = True
    asked = far & strong
    if weak:
        more = np.flatnonzero(far & first & ~strong)
        asked[more[np.argsort(-predictions.score[more], kind="stable")[:TRAIN_CAP]]] = True
    both = on | far
    draw = hash_uniform(np.arange(len(predictions), dtype=np.uint64), 801)
    known = both & (draw < TRAIN_CAP / max(int(both.sum()), 1))
    rows = np.flatnonzero(known | asked)
    return Candidates(rows, on[rows], known[rows], asked[rows], columns[rows], int(on.sum()))


def look_for_objects(
    records: BoxRecords,
    some: Candidates,
    votes: Floats,
    keys: NDArray[np.generic],
    folder: Path,
    workers: Workers,
) -> Unlabelled:
    """Ask about every candidate that has no truth.

    Args:
        records: The pass.
        some: The candidates.
        votes: (R, V) what other epochs say of them.
        keys: (F,) group key of every frame: a box is judged by models that saw no other of its group.
        folder: For vectors that do not fit into memory.
        workers: Open pool.
    """
    names, groups = group_codes(keys)
    fold = folds_of(key_hashes(names, "0"))[groups][records.predictions.frame[some.rows]]
    return believed(_columns(records, some, votes, folder), some, fold, workers)


def believed(columns: Floats, some: Candidates, fold: NDArray[np.int8], workers: Workers) -> Unlabelled:
    """What (R, P) columns of the candidates say; each is judged by a model that saw nothing of its fold."""
    proba = np.full(len(some.rows), float(some.object[some.known].mean()))

    def one(held: int) -> None:
        train, test = np.flatnonzero(some.known & (fold != held)), np.flatnonzero(fold == held)
        if len(test) and len(np.unique(some.object[train])) == 2:
            proba[test] = _fitted(columns, train, test, some.object, workers)

    workers.each(one, range(FOLDS))
    proba = np.clip(proba, _EDGE, 1 - _EDGE)
    # What looks like the better half of the objects: how many of these have no label?
    alike = some.known & (proba >= np.median(proba[some.known & some.object]))
    count, without = int(alike.sum()), int((alike & ~some.object).sum())
    asked = np.flatnonzero(some.asked)
    odds = proba[asked] / (1 - proba[asked])
    share = (without + 0.5) / (count + 1)
    least = max(without - 2 * without**0.5, 0.0) / count
    return Unlabelled(
        some.rows[asked],
        odds * share / (1 - share),
        np.minimum(odds * least / (1 - least), 1.0),
        round(some.objects * share / (1 - share)),
    )


def _fitted(columns: Floats, train: Ints, test: Ints, target: Bools, workers: Workers) -> Floats:
    """Logistic regression on the likeness to some boxes (Nystroem's approximation of a Gaussian kernel)."""
    mean, scale = columns[train].mean(axis=0), columns[train].std(axis=0)
    points = (columns - mean) / np.where(scale > 0, scale, 1.0)
    order = np.argsort(hash_uniform(train.astype(np.uint64), 802), kind="stable")
    marks = points[train[order[: min(LANDMARKS, len(train) // 10)]]]
    value, vector = np.linalg.eigh(_likeness(marks, marks))
    root = vector / np.sqrt(np.maximum(value, 1e-10))
    model = fit_logistic(
        _likeness(points[train], marks) @ root,
        target[train].astype(np.int8),
        np.ones(len(train)),
        c=PENALTY,
        workers=workers,
        standardise=False,
    )
    made, weight = np.empty(len(test)), root @ model.coefficients
    for span in spans(len(test), BLOCK):
        made[span] = expit(_likeness(points[test[span]], marks) @ weight + model.intercept)
    return made


def _likeness(a: Floats, b: Floats) -> Floats:
    distance = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    return np.asarray(np.exp(-np.maximum(distance, 0.0) / a.shape[1]))


def _columns(records: BoxRecords, some: Candidates, votes: Floats, folder: Path) -> Floats:
    """(R, P) columns of the candidates: their boxes, the votes, their classes, their vectors."""
    parts: list[NDArray[np.floating]] = [some.columns, votes]
    label = records.predictions.label[some.rows]
    if records.n_class <= ONE_HOT_CLASSES:
        parts.append((label[:, None] == np.arange(records.n_class)).astype(np.float64))
    stored = vector_rows(records, some.rows)
    vectors = feature_vectors(records, stored, folder)
    if not vectors and records.has_logits and (stored >= 0).any():
        vectors = {"logits": read_vectors(records, "logits", stored, folder)}
    parts += [_projected(one, some.known) for one in vectors.values()]
    return np.nan_to_num(np.concatenate(parts, axis=1).astype(np.float64), posinf=0.0, neginf=0.0)


def _projected(vectors: Any, known: Bools) -> Floats:
    """(R, at most 32) vectors on their principal axes; as many as there are are never held in float64."""
    if vectors.shape[1] <= DIMENSIONS:
        return _finite(vectors)
    fitted = _finite(vectors[np.flatnonzero(known)])
    mean = fitted.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(fitted - mean, rowvar=False))
    made = np.empty((len(vectors), DIMENSIONS))
    for span in spans(len(vectors), BLOCK):
        made[span] = (_finite(vectors[span]) - mean) @ axes[:, -DIMENSIONS:]
    return made


def _finite(vectors: Any) -> Floats:
    return np.asarray(np.nan_to_num(np.asarray(vectors, np.float64), posinf=0.0, neginf=0.0))
