"""Units unlike the train split: by distance, direction and direction among equal variances, together.

A distance alone says little: what the network has never seen often has small features. So three views are
taken: the Mahalanobis distance, and the angles to the nearest train units (Sun et al., 2022) in the space as
it is and after whitening. A unit's p-value in each is its rank among train units that were held back
(split conformal), and their sum of logarithms (Fisher) is ranked among the same units again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import hash_order, hash_uniform
from mld_core.evaluation.statistics.significance import LEVEL

REFERENCE_UNITS = 1_024
CALIBRATION_UNITS = 20_000
LEAST = 100
"""Train units below which nothing is said."""

_NEAR = 3
_STREAM = 3_001
_ROWS = 2_048


@dataclass(frozen=True)
class NoveltyState:
    """What is kept of the train split.

    Attributes:
        mean: (D,) of the reference units.
        whitening: (D, D) turns centred coordinates into ones of equal variance.
        plain: (R, D) directions of the reference units.
        white: (R, D) the same after whitening.
        views: (3, C) scores of the units held back, each row rising.
        joint: (C,) their joint scores, rising.
    """

    mean: NDArray[np.float32]
    whitening: NDArray[np.float32]
    plain: NDArray[np.float32]
    white: NDArray[np.float32]
    views: NDArray[np.float32]
    joint: NDArray[np.float64]


def fit_novelty(
    points: NDArray[np.float32], groups: NDArray[np.int64] | None, workers: Workers
) -> NoveltyState | None:
    """Half of the train split's groups is the reference, the other half calibrates.

    Args:
        points: (M, D) coordinates of train units.
        groups: (M,) group codes, or None = each unit its own.
        workers: Open pool.

    Returns:
        The state, or None for fewer than 100 units or one half without any.
    """
    from sklearn.covariance import ledoit_wolf

    rows = hash_order(len(points), _STREAM)
    keys = np.arange(len(points)) if groups is None else groups
    first = hash_uniform(keys[rows].astype(np.uint64), _STREAM) < 0.5
    chosen, held = rows[first][:REFERENCE_UNITS], rows[~first][:CALIBRATION_UNITS]
    if len(points) < LEAST or min(len(chosen), len(held)) < _NEAR:
        return None
    reference = points[np.sort(chosen)].astype(np.float64)
    mean = reference.mean(axis=0)
    centred = reference - mean
    values, axes = np.linalg.eigh(ledoit_wolf(centred, assume_centered=True)[0])
    whitening = axes / np.sqrt(np.maximum(values, np.finfo(np.float32).tiny))
    plain, white = (_directions(one.astype(np.float32)) for one in (centred, centred @ whitening))
    state = NoveltyState(
        mean.astype(np.float32),
        whitening.astype(np.float32),
        plain,
        white,
        np.empty((3, 0), np.float32),
        np.empty(0),
    )
    own = _all_views(state, points[np.sort(held)], workers)
    views = np.sort(own, axis=1)
    # A unit held back is there itself where it is ranked; another one comes to them.
    joint = np.sort(
        -sum(np.log(_above(ranked, one) / len(ranked)) for ranked, one in zip(views, own, strict=True))
    )
    return NoveltyState(state.mean, state.whitening, plain, white, views, joint)


def score_novelty(state: NoveltyState, block: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) conformal p-values of units, small = novel."""
    return _ranks(state.joint, _joint(state.views, _views(state, block)))


def novel_units(
    points: NDArray[np.float32],
    train_points: NDArray[np.float32],
    train_groups: NDArray[np.int64] | None,
    workers: Workers,
) -> NDArray[np.bool_]:
    """(N,) units that are rather novel than not; none where the train split is too small to say."""
    state = fit_novelty(train_points, train_groups, workers)
    if state is None:
        return np.zeros(len(points), np.bool_)
    p_values = np.empty(len(points))

    def one(span: slice) -> None:
        p_values[span] = score_novelty(state, points[span])

    workers.each(one, spans(len(points), _ROWS))
    return rather_novel(p_values, len(state.joint))


def rather_novel(p_values: NDArray[np.float64], calibrated: int) -> NDArray[np.bool_]:
    """(N,) units whose p-values are at least twice as frequent as those of known units.

    Known units have uniform p-values, so that half of such units at least are novel. The density is
    Grenander's, falling. It is believed where there are significantly (5 %) more small p-values than among
    the units held back: where that is looked at, the data did not choose.

    Args:
        p_values: (N,) conformal p-values.
        calibrated: How many units they were ranked among.
    """
    from scipy.optimize import isotonic_regression

    if len(p_values) == 0 or _chance(p_values, calibrated) >= LEVEL:
        return np.zeros(len(p_values), np.bool_)
    places, where, count = np.unique(p_values, return_inverse=True, return_counts=True)
    width = np.diff(places, prepend=0.0)
    density = isotonic_regression(count / len(p_values) / width, weights=width, increasing=False).x
    return np.asarray(density[where] >= 2)


def _chance(p_values: NDArray[np.float64], calibrated: int) -> float:
    """The probability of as many small p-values by chance.

    Fisher's exact test at the cuts that leave 0, 1, 3, 7, ... of the units held back, up to half of them; the
    smallest of its values, times their number (Bonferroni).
    """
    from scipy.stats import hypergeom

    known = 2 ** np.arange(max(calibrated // 2 + 1, 1).bit_length()) - 1
    cuts = (known + 1.5) / (calibrated + 1)  # between two values that a p-value can have
    found = np.searchsorted(np.sort(p_values), cuts)
    tails = hypergeom.sf(found - 1, len(p_values) + calibrated, found + known, len(p_values))
    return float(tails.min() * len(known))


def _directions(block: NDArray[np.float32]) -> NDArray[np.float32]:
    size = np.linalg.norm(block, axis=1, keepdims=True)
    return np.asarray(block / np.maximum(size, np.finfo(np.float32).tiny), dtype=np.float32)


def _views(state: NoveltyState, block: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, n) scores, large = far."""
    centred = block - state.mean
    white = np.asarray(centred @ state.whitening, dtype=np.float32)
    made = [np.linalg.norm(white, axis=1)]
    for some, reference in ((centred, state.plain), (white, state.white)):
        alike = _directions(some) @ reference.T
        made.append(-np.partition(alike, alike.shape[1] - _NEAR, axis=1)[:, -_NEAR])
    return np.asarray(made, dtype=np.float32)


def _all_views(state: NoveltyState, points: NDArray[np.float32], workers: Workers) -> NDArray[np.float32]:
    made = np.empty((3, len(points)), np.float32)

    def one(span: slice) -> None:
        made[:, span] = _views(state, points[span])

    workers.each(one, spans(len(points), _ROWS))
    return made


def _above(ranked: NDArray[np.floating], scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """How many of the units held back score at least as high."""
    return np.asarray(len(ranked) - np.searchsorted(ranked, scores, side="left"), dtype=np.int64)


def _ranks(ranked: NDArray[np.floating], scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of the units that score at least as high, among those held back and the unit itself."""
    return np.asarray((1 + _above(ranked, scores)) / (1 + len(ranked)), dtype=np.float64)


def _joint(views: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    pairs = zip(views, scores, strict=True)
    return np.asarray(-sum(np.log(_ranks(ranked, own)) for ranked, own in pairs), dtype=np.float64)
