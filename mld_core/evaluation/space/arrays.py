"""What the statistics of a split are computed from: plain arrays, whoever read them.

Classification units are records; detection units are events with `errors` given and their own columns in
`extra`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.classification import log_sigmoid, sigmoid_entropy
from mld_core.evaluation.statistics.blocks import Vectors, let_go, spans

BLOCK = 16_384


@dataclass(frozen=True)
class TrainArrays:
    """The train split as a reference for another split.

    Attributes:
        features: Alias -> (M, D) vectors, same aliases and widths as the evaluated split's.
        labels: (M,) int64, -1 where unlabelled.
        groups: (M,) group keys in the same naming as the split's, or None.
        hashes: (M,) input hashes, or None.
        errors: (M,) 1 wrong, 0 right, -1 unknown, or None where train predictions are not recorded.
    """

    features: Mapping[str, Vectors]
    labels: NDArray[np.int64]
    groups: NDArray[Any] | None = None
    hashes: NDArray[Any] | None = None
    errors: NDArray[np.int8] | None = None


@dataclass(frozen=True)
class EpochArrays:
    """Earlier epochs of the same units, oldest first, the evaluated epoch last.

    Attributes:
        predictions: (T, N) predicted classes, -1 where unknown.
        msp: (T, N) largest probability stated.
        mean_probability: (N, K) softmax averaged over the epochs, or None.
    """

    predictions: NDArray[np.int64]
    msp: NDArray[np.floating]
    mean_probability: NDArray[np.floating] | None = None


@dataclass(frozen=True)
class SplitArrays:
    """One evaluated split.

    Attributes:
        logits: (N, K) floats, any width; rows with NaN or infinity count as wrong.
        labels: (N,) int64 true classes, -1 where unlabelled.
        features: Alias -> (N, D) vectors, earliest layer first; without any, the logits are the only layer.
        groups: (N,) group keys (scene, patient, ...) that never straddle a fold, or None = `hashes`, else
            each its own.
        hashes: (N,) input hashes, or None.
        errors: (N,) 1 wrong, 0 right, -1 unknown; None = prediction differs from the label.
        prediction: (N,) predicted classes where they are not the largest logit (boxes), or None.
        extra: (N, F) further columns for the error estimator (box size, range, ...), or None.
        soft_labels: (N, K) label distributions with NaN rows where there is none, or None.
        train: The train split, or None.
        epochs: Other epochs, or None.
        metadata: The user's columns, one row per unit, or None.
        is_train: Whether this is the train split itself.
        name: The split's name.
        sigmoid: Whether each class was trained by itself: what the model states is its sigmoid.
    """

    logits: NDArray[Any]
    labels: NDArray[np.int64]
    features: Mapping[str, Vectors] = field(default_factory=dict)
    groups: NDArray[Any] | None = None
    hashes: NDArray[Any] | None = None
    errors: NDArray[np.int8] | None = None
    prediction: NDArray[np.int64] | None = None
    extra: NDArray[np.floating] | None = None
    soft_labels: NDArray[np.floating] | None = None
    train: TrainArrays | None = None
    epochs: EpochArrays | None = None
    metadata: pd.DataFrame | None = None
    is_train: bool = False
    name: str = "test"
    sigmoid: bool = False

    @property
    def labels_tell(self) -> bool:
        """Whether a label says something of its unit alone; that of a box depends on what it found."""
        return self.prediction is None

    def __post_init__(self) -> None:
        rows = len(self.labels)
        if self.logits.ndim != 2 or len(self.logits) != rows:
            raise ValueError(f"logits of shape {self.logits.shape} with {rows} labels: expected ({rows}, K)")
        for name in ("groups", "hashes", "errors", "prediction", "extra", "soft_labels", "metadata"):
            value = getattr(self, name)
            if value is not None and len(value) != rows:
                raise ValueError(f"{name} has {len(value)} rows, labels {rows}: give one row for each unit")
        for alias, vectors in self.features.items():
            if vectors.shape[0] != rows:
                raise ValueError(
                    f"features {alias!r} have {vectors.shape[0]} rows, labels {rows}: give one for each unit"
                )

    @property
    def rows(self) -> int:
        """Number of units."""
        return len(self.labels)

    @property
    def n_class(self) -> int:
        """Number of classes."""
        return int(self.logits.shape[1])

    @property
    def layers(self) -> Mapping[str, Vectors]:
        """The feature vectors, or the logits where none is recorded."""
        return self.features or {"logits": self.logits}

    @property
    def group_keys(self) -> NDArray[Any]:
        """(N,) what keeps units together: the groups, else the input hashes, else the row numbers."""
        if self.groups is not None:
            return self.groups
        return np.arange(self.rows) if self.hashes is None else self.hashes


@dataclass(frozen=True)
class LogitScores:
    """Per-unit figures of the logits; no label enters.

    Attributes:
        prediction: (N,) int64 largest logit, smallest class on a tie, -1 where the logits are not finite.
        runner_up: (N,) int64 second class; equals the prediction where K = 1.
        msp: (N,) float64 largest probability, softmax or sigmoid (as of equal logits where not finite).
        columns: (N, 7 or 9) float32: msp, probability margin, logit margin, entropy (of sigmoids summed
            over classes), log-sum-exp, largest logit, sum p^2, and for K > 2 MaxLogit-pNorm with p = 2 and 4
            (Cattelan and Silva, 2024).
    """

    prediction: NDArray[np.int64]
    runner_up: NDArray[np.int64]
    msp: NDArray[np.float64]
    columns: NDArray[np.float32]


def score_logits(logits: NDArray[Any], workers: Workers, *, sigmoid: bool = False) -> LogitScores:
    """Figures of (N, K) logits, softmax (or sigmoids) and log-sum-exp in float64.

    Example:
        >>> with Workers(1) as workers:
        ...     scores = score_logits(np.array([[0.0, 2.0, 1.0], [np.nan, 0.0, 0.0]]), workers)
        >>> scores.prediction.tolist(), scores.runner_up.tolist()
        ([1, -1], [2, 1])
    """
    rows, n_class = logits.shape
    made = LogitScores(
        np.empty(rows, np.int64),
        np.empty(rows, np.int64),
        np.empty(rows, np.float64),
        np.empty((rows, 9 if n_class > 2 else 7), np.float32),
    )

    def one(span: slice) -> None:
        _score_block(np.asarray(logits[span], dtype=np.float64), span, made, sigmoid=sigmoid)
        let_go(logits)

    workers.each(one, spans(rows, BLOCK))
    return made


def _score_block(z: NDArray[np.float64], span: slice, made: LogitScores, *, sigmoid: bool) -> None:
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(z).all(axis=1))
    if not finite.all():
        z = np.where(finite[:, None], z, 0.0)
    here = np.arange(len(z))
    first = z.argmax(axis=1)
    top = z[here, first]
    rest = z.copy()
    rest[here, first] = -np.inf
    second = rest.argmax(axis=1) if z.shape[1] > 1 else first
    shifted = z - top[:, None]
    p = np.exp(shifted)
    total = p.sum(axis=1)
    p /= total[:, None]
    log_total = np.log(total)
    entropy = log_total - (p * shifted).sum(axis=1)
    if sigmoid:
        p, entropy = np.exp(log_sigmoid(z)), sigmoid_entropy(z)
    columns = [
        p[here, first],
        p[here, first] - p[here, second],
        top - z[here, second],
        entropy,
        top + log_total,
        top,
        (p * p).sum(axis=1),
    ]
    if z.shape[1] > 2:
        centred = z - z.mean(axis=1, keepdims=True)
        lead = centred.max(axis=1)
        square = centred * centred
        sizes = np.sqrt(square.sum(axis=1)), np.sqrt(np.sqrt((square * square).sum(axis=1)))
        columns += [lead / np.maximum(size, 1e-12) for size in sizes]
    made.prediction[span] = np.where(finite, first, -1)
    made.runner_up[span] = second
    made.msp[span] = p[here, first]
    made.columns[span] = np.stack(columns, axis=1)


def unit_errors(arrays: SplitArrays, prediction: NDArray[np.int64]) -> NDArray[np.int8]:
    """(N,) 1 wrong, 0 right, -1 unlabelled: what was given, else prediction against label."""
    if arrays.errors is not None:
        return arrays.errors.astype(np.int8)
    wrong = (prediction != arrays.labels).astype(np.int8)
    return np.where(arrays.labels < 0, np.int8(-1), wrong)
