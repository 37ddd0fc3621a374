"""Label quality: which label the evidence points at, and how many labels are probably wrong.

The label posterior q is a log-opinion pool, q ~ prod_m p_m^w_m, of the network's softmax, the labels of the
neighbours and, for the train split, a logistic probe; its weights are fitted out of fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.neighbourhood import Neighbourhood
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import FOLDS, hash_uniform

NEIGHBOURS = 32
PSEUDO_COUNTS = 1.5
"""Spread over the classes of the neighbours' labels; sharper or flatter makes N_hat larger or smaller."""

FIT_UNITS = 20_000
PROBE_UNITS = 20_000
PROBE_CLASSES = 200
FLOOR = 1e-6
_MIX = 0.95
_CELLS = 2**22

Member = Callable[[NDArray[np.int64]], NDArray[np.floating]]
"""Log-probabilities (len(rows), K) of the units asked about."""


@dataclass(frozen=True)
class LabelPosterior:
    """The label posterior q of every unit.

    Attributes:
        given: (N,) float32 q of the given label; NaN where unlabelled. The label-quality score.
        best: (N,) int64 most plausible label, smallest on a tie.
        best_proba: (N,) float32 its q.
        weights: (5, members) the fitted weights, one row for each held-out fold.
        n_hat: Estimated number of wrong labels.
    """

    given: NDArray[np.float32]
    best: NDArray[np.int64]
    best_proba: NDArray[np.float32]
    weights: NDArray[np.float64]
    n_hat: int


def log_softmax_member(logits: NDArray[Any]) -> Member:
    """The network's own softmax."""

    def member(rows: NDArray[np.int64]) -> NDArray[np.floating]:
        z = np.asarray(logits[rows], dtype=np.float64)
        z = np.where(np.isfinite(z).all(axis=1, keepdims=True), z, 0.0)
        z -= z.max(axis=1, keepdims=True)
        return _floored(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))

    return member


def probability_member(probability: NDArray[np.floating]) -> Member:
    """Probabilities as given, such as the softmax averaged over epochs."""
    return lambda rows: _floored(np.asarray(probability[rows], dtype=np.float64))


def neighbour_member(around: Neighbourhood, base_labels: NDArray[np.int64], n_class: int) -> Member:
    """Labels of the 32 nearest units, own group left out, with 1.5 pseudo-counts spread over the classes."""

    def member(rows: NDArray[np.int64]) -> NDArray[np.floating]:
        counts = around.label_counts(base_labels, n_class, NEIGHBOURS, rows).astype(np.float64)
        return np.asarray(
            np.log((counts + PSEUDO_COUNTS / n_class) / (counts.sum(axis=1, keepdims=True) + PSEUDO_COUNTS))
        )

    return member


def probe_member(
    points: NDArray[np.float32], labels: NDArray[np.int64], folds: NDArray[np.int8], n_class: int
) -> Member:
    """A logistic probe on the first 32 PCA coordinates, cross-fitted over the folds, 20,000 units a fit."""
    x = points[:, :32]
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    fitted: list[tuple[Any, NDArray[np.int64]] | None] = []
    for fold in range(FOLDS):
        train = np.flatnonzero((labels >= 0) & (folds != fold))
        keep = hash_uniform(train.astype(np.uint64), 301 + fold) < PROBE_UNITS / max(len(train), 1)
        rows = train[keep]
        classes = np.unique(labels[rows])
        model = LogisticRegression(max_iter=300).fit(x[rows], labels[rows]) if len(classes) > 1 else None
        fitted.append(None if model is None else (model, classes))

    def member(rows: NDArray[np.int64]) -> NDArray[np.floating]:
        p = np.full((len(rows), n_class), 1 / n_class)
        for fold in range(FOLDS):
            here = np.flatnonzero(folds[rows] == fold)
            pair = fitted[fold]
            if len(here) and pair is not None:
                p[here] = 0
                p[here[:, None], pair[1][None, :]] = pair[0].predict_proba(x[rows[here]])
        return _floored(p)

    return member


def _floored(p: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(np.log(np.maximum(p, FLOOR)))


def pool(members: Sequence[NDArray[np.floating]], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Q of a log-opinion pool.

    Example:
        >>> half = np.log([[0.5, 0.5]])
        >>> pool([half, np.log([[0.8, 0.2]])], np.array([1.0, 1.0])).round(3).tolist()
        [[0.8, 0.2]]
    """
    z = sum(
        (w * member for w, member in zip(weights, members, strict=True)),
        np.zeros_like(members[0], np.float64),
    )
    z = z - z.max(axis=1, keepdims=True)
    q = np.exp(z)
    return np.asarray(q / q.sum(axis=1, keepdims=True), dtype=np.float64)


def fit_weights(members: Sequence[NDArray[np.floating]], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights >= 0 that maximise mean ln(.95 q[y] + .05 / K).

    A label may be wrong, so a miss costs a bounded amount.

    Args:
        members: (n, K) log-probabilities of each member.
        labels: (n,) given labels.
    """
    here = np.arange(len(labels))
    stacked = np.stack(members)
    n_class = stacked.shape[2]

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        q = pool(members, weights)
        own = q[here, labels]
        mixed = _MIX * own + (1 - _MIX) / n_class
        mean = (stacked * q[None]).sum(axis=2)
        slope = _MIX * own * (stacked[:, here, labels] - mean) / mixed
        return -float(np.log(mixed).mean()), -slope.mean(axis=1)

    start = np.full(len(members), 1 / len(members))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(members))
    return np.asarray(found.x, dtype=np.float64)


def label_posterior(
    members: Sequence[Member],
    labels: NDArray[np.int64],
    folds: NDArray[np.int8],
    n_class: int,
    workers: Workers,
) -> LabelPosterior:
    """Pool the members, weights fitted for each fold on the labelled units of the other folds.

    Args:
        members: Each gives log-probabilities of any rows.
        labels: (N,) given labels, -1 where unlabelled; unlabelled units use the weights of fold 0's
            complement.
        folds: (N,) folds.
        n_class: Number of classes.
        workers: Open pool.
    """
    known = np.flatnonzero(labels >= 0)
    keep = hash_uniform(known.astype(np.uint64), 401) < FIT_UNITS / max(len(known), 1)
    sample = known[keep]
    values = [member(sample) for member in members]
    weights = np.full((FOLDS, len(members)), 1 / len(members))
    for fold in range(FOLDS):
        train = folds[sample] != fold
        if train.any():
            weights[fold] = fit_weights([value[train] for value in values], labels[sample[train]])
    given = np.full(len(labels), np.nan, np.float32)
    best = np.empty(len(labels), np.int64)
    best_proba = np.empty(len(labels), np.float32)

    def one(span: slice) -> None:
        rows = np.arange(span.start, span.stop)
        made = [member(rows) for member in members]
        scaled = [value * weights[folds[rows], place][:, None] for place, value in enumerate(made)]
        q = pool(scaled, np.ones(len(scaled)))
        best[span] = q.argmax(axis=1)
        best_proba[span] = q.max(axis=1)
        there = np.flatnonzero(labels[rows] >= 0)
        given[rows[there]] = q[there, labels[rows[there]]]

    workers.each(one, spans(len(labels), max(64, _CELLS // max(n_class, 1))))
    return LabelPosterior(
        given, best, best_proba, weights, estimate_wrong_labels(given, best, best_proba, labels)
    )


def estimate_wrong_labels(
    given: NDArray[np.floating],
    best: NDArray[np.int64],
    best_proba: NDArray[np.floating],
    labels: NDArray[np.int64],
) -> int:
    """N_hat: how many labels are probably wrong.

    max(0, round(sum of 1 - q[y] over disagreeing units - sum of 1 - max q over agreeing ones)):
    disagreement mass, net of the doubt q shows where it agrees.

    Example:
        >>> given, best = np.array([0.1, 0.9, 0.2]), np.array([1, 1, 0])
        >>> estimate_wrong_labels(given, best, np.array([0.9, 0.9, 0.8]), np.array([0, 1, 1]))
        2
    """
    known = labels >= 0
    other = known & (best != labels)
    agree = known & (best == labels)
    mass = (1 - given[other].astype(np.float64)).sum() - (1 - best_proba[agree].astype(np.float64)).sum()
    return max(0, round(float(mass)))


def suspected_labels(
    posterior: LabelPosterior, labels: NDArray[np.int64], errors: NDArray[np.int8]
) -> NDArray[np.bool_]:
    """(N,) units of code C01: wrong, q points elsewhere, among the N_hat worst label qualities of those."""
    rows = np.flatnonzero((errors == 1) & (labels >= 0) & (posterior.best != labels))
    chosen = rows[np.argsort(posterior.given[rows], kind="stable")[: posterior.n_hat]]
    made = np.zeros(len(labels), np.bool_)
    made[chosen] = True
    return made
