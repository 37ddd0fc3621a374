"""Columns of the error estimator; none of them is computed from the unit's own label or error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis.train_reference import TrainReference
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.arrays import EpochArrays, LogitScores
from mld_core.evaluation.space.neighbourhood import Neighbourhood
from mld_core.evaluation.statistics.blocks import rows_at_once, spans
from mld_core.evaluation.statistics.folds import FOLDS

ONE_HOT_CLASSES = 64
ERROR_KS = (8, 32, 96)
PCA_COLUMNS = 32
PSEUDO_COUNTS = 4.0
ENCODING_WEIGHT = 20.0

EPOCH_COLUMNS = 2
"""Columns that need at least three epochs: flips of the prediction, deviation of msp."""

_ROWS = 8_192


@dataclass(frozen=True)
class StackInputs:
    """What the estimator is fitted on.

    Attributes:
        fixed: (N, P) float32 columns that no error enters.
        prediction: (N,) predicted classes, -1 where the logits were not finite.
        runner_up: (N,) second classes.
        n_class: Number of classes.
        errors: (N,) 1 wrong, 0 right, -1 unknown.
        base_rows: (M,) rows of the labelled units, the base of `around`.
        around: Surroundings among the labelled units.
    """

    fixed: NDArray[np.float32]
    prediction: NDArray[np.int64]
    runner_up: NDArray[np.int64]
    n_class: int
    errors: NDArray[np.int8]
    base_rows: NDArray[np.int64]
    around: Neighbourhood


def fixed_columns(
    scores: LogitScores,
    n_class: int,
    around: Neighbourhood,
    base_rows: NDArray[np.int64],
    points: NDArray[np.float32],
    workers: Workers,
    *,
    reference: TrainReference | None = None,
    epochs: EpochArrays | None = None,
    extra: NDArray[np.floating] | None = None,
    base_prediction: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Columns that are the same for every fold, as (N, P) float32.

    Args:
        scores: Figures of the logits.
        n_class: Number of classes; up to 64 the predicted class and the runner-up are one-hot.
        around: Surroundings.
        base_rows: Rows of the base units of `around`.
        points: (N, D) PCA coordinates, of which the first 32 enter.
        workers: Open pool.
        reference: Figures against the train split.
        epochs: Other epochs; from three on, prediction flips and the deviation of msp enter.
        extra: (N, F) further columns.
        base_prediction: (M,) predictions of the base units, None = `scores.prediction[base_rows]`.
    """
    base = scores.prediction[base_rows] if base_prediction is None else base_prediction
    same = same_prediction_share(around, base, scores.prediction, n_class, workers)
    return joined_columns(
        scores,
        n_class,
        same,
        around.distance,
        points,
        workers,
        reference=reference,
        epochs=epochs,
        extra=extra,
    )


def joined_columns(
    scores: LogitScores,
    n_class: int,
    same: NDArray[np.float32],
    distance: NDArray[np.float32],
    points: NDArray[np.float32],
    workers: Workers | None = None,
    *,
    reference: TrainReference | None = None,
    epochs: EpochArrays | None = None,
    extra: NDArray[np.floating] | None = None,
) -> NDArray[np.float32]:
    """The columns of `fixed_columns` from what surrounds the units: (N,) `same` and (N, 2) `distance`.

    Without workers on this thread.
    """
    parts: list[NDArray[Any]] = [scores.columns, same[:, None], distance, points[:, :PCA_COLUMNS]]
    if n_class <= ONE_HOT_CLASSES:
        classes = np.arange(n_class)
        parts += [scores.prediction[:, None] == classes, scores.runner_up[:, None] == classes]
    if reference is not None:
        parts.append(reference.stacked())
    if epochs is not None and has_epoch_columns(epochs):
        parts += [prediction_flips(epochs)[:, None], np.std(epochs.msp, axis=0)[:, None]]
    if extra is not None:
        parts.append(np.nan_to_num(extra))
    made = np.empty((len(points), sum(part.shape[1] for part in parts)), np.float32)
    stops = np.cumsum([part.shape[1] for part in parts])

    def one(span: slice) -> None:
        # Some rows of all parts, not all rows of a part: what is written stays in a core's cache.
        for part, stop in zip(parts, stops, strict=True):
            made[span, stop - part.shape[1] : stop] = part[span]

    for _ in (map if workers is None else workers.map)(one, spans(len(points), _ROWS)):
        pass
    return made


def has_epoch_columns(epochs: EpochArrays | None) -> bool:
    """Whether enough epochs are known for the columns that need them."""
    return epochs is not None and len(epochs.predictions) >= 3


def prediction_flips(epochs: EpochArrays) -> NDArray[np.int64]:
    """(N,) how often the prediction changed from one recorded epoch to the next."""
    return np.asarray((np.diff(epochs.predictions, axis=0) != 0).sum(axis=0))


def same_prediction_share(
    around: Neighbourhood,
    base_prediction: NDArray[np.int64],
    prediction: NDArray[np.int64],
    n_class: int,
    workers: Workers,
) -> NDArray[np.float32]:
    """(N,) share of the 32 nearest base units with the unit's prediction."""
    made = np.zeros(len(prediction), np.float32)

    def one(span: slice) -> None:
        rows = np.arange(span.start, span.stop)
        counts = around.label_counts(base_prediction, n_class, 32, rows)
        same = counts[np.arange(len(rows)), np.maximum(prediction[span], 0)]
        made[span] = np.where(prediction[span] >= 0, same / np.maximum(counts.sum(axis=1), 1), 0)

    workers.each(one, spans(len(prediction), rows_at_once(n_class, least=256)))
    return made


def fold_columns(
    inputs: StackInputs, rows: NDArray[np.int64], folds: NDArray[np.int8] | None, held_out: int
) -> NDArray[np.float32]:
    """Columns that depend on errors, from the training folds only.

    The error rates of 8, 32 and 96 neighbours shrunk with 4 pseudo-counts to the mean of the training
    folds, and beyond 64 classes the error rates of the predicted class and the runner-up, for a training
    unit without its fold.

    Args:
        inputs: What the estimator is fitted on.
        rows: The units asked about.
        folds: (N,) folds, None = every labelled unit is a training unit.
        held_out: The fold that is kept out.

    Returns:
        (len(rows), 3 or 5) float32.
    """
    values = inputs.errors[inputs.base_rows].astype(np.float32)
    if folds is not None:
        values = np.where(folds[inputs.base_rows] == held_out, np.float32(np.nan), values)
    rates, mean = neighbour_rates(inputs.around, values, rows)
    if inputs.n_class <= ONE_HOT_CLASSES:
        return rates
    made = folds if folds is not None else np.full(len(inputs.errors), -1, np.int8)
    encoded = [
        _encoded(classes, inputs, made, rows, held_out, mean)
        for classes in (inputs.prediction, inputs.runner_up)
    ]
    return np.column_stack([rates, *encoded]).astype(np.float32)


def neighbour_rates(
    around: Neighbourhood, values: NDArray[np.float32], rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], float]:
    """(len(rows), 3) error rates among 8, 32 and 96 base units with a value, shrunk to the mean; the mean."""
    mean = float(np.nanmean(values))
    total, count = around.sums(values, ERROR_KS, rows)
    return shrunk(total, count, mean), mean


def shrunk(total: NDArray[np.floating], count: NDArray[np.floating], mean: float) -> NDArray[np.float32]:
    """Error rates drawn to the mean by 4 pseudo-counts."""
    return np.asarray((total + PSEUDO_COUNTS * mean) / (count + PSEUDO_COUNTS), dtype=np.float32)


def _encoded(
    classes: NDArray[np.int64],
    inputs: StackInputs,
    folds: NDArray[np.int8],
    rows: NDArray[np.int64],
    held_out: int,
    mean: float,
) -> NDArray[np.float64]:
    """Error rate of each unit's class from training folds other than the unit's own, prior weight 20."""
    shape = (inputs.n_class + 1, FOLDS + 1)
    train = inputs.base_rows[folds[inputs.base_rows] != held_out] if held_out >= 0 else inputs.base_rows
    # Class -1 and fold -1 (everybody) stand in the last row and column.
    flat = classes[train] % shape[0] * shape[1] + folds[train] % shape[1]
    size = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    wrong = np.bincount(flat, weights=inputs.errors[train], minlength=shape[0] * shape[1]).reshape(shape)
    inside = (folds[rows] >= 0).astype(np.float64)
    return class_rates(size, wrong, classes[rows] % shape[0], folds[rows] % shape[1], inside, mean)


def class_rates(
    size: NDArray[np.float64],
    wrong: NDArray[Any],
    own_class: NDArray[np.int64],
    own_fold: NDArray[np.integer],
    inside: NDArray[np.float64],
    mean: float,
) -> NDArray[np.float64]:
    """Error rate of each unit's class, its own fold left out where it is among those counted.

    Args:
        size: (K + 1, folds) units of each class and fold.
        wrong: The wrong ones of them.
        own_class: (n,) class of each unit asked about.
        own_fold: (n,) its fold.
        inside: (n,) 1 where its fold is among those counted.
        mean: What the rate is drawn to, with a weight of 20.
    """
    n = size.sum(axis=1)[own_class] - inside * size[own_class, own_fold]
    e = wrong.sum(axis=1)[own_class] - inside * wrong[own_class, own_fold]
    return np.asarray((e + ENCODING_WEIGHT * mean) / (n + ENCODING_WEIGHT), dtype=np.float64)
