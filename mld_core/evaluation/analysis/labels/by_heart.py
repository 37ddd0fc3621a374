"""Labels of the train split, which the network has learned by heart.

A network explains the labels it was trained on, wrong ones too, so that a pool it leads knows of few. A
witness that never saw a unit's own label knows nothing where the units around do not tell classes apart. Each
says how many labels are wrong, hardly ever too many: the one that finds more is believed. Which ones they
are, the order of both together says.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mld_core.evaluation.analysis.labels.pool import FLOOR
from mld_core.evaluation.analysis.labels.quality import LabelPosterior, Member, label_posterior
from mld_core.evaluation.engine.executor import Workers

NONE = -1.0
"""Limit of label quality below which there is no label."""


def judged_by(
    witness: Member,
    pooled: LabelPosterior,
    labels: NDArray[np.int64],
    folds: NDArray[np.int8],
    n_class: int,
    workers: Workers,
) -> LabelPosterior:
    """The same posterior, with the number of wrong labels asked of a witness alone, too.

    Args:
        witness: Does not know the unit's own label.
        pooled: The posterior of all members.
        labels: (N,) given labels, -1 where unlabelled.
        folds: (N,) folds.
        n_class: Number of classes.
        workers: Open pool.
    """
    alone = label_posterior([witness], labels, folds, n_class, workers)
    both = joined(pooled, alone, labels)
    told = pooled if pooled.n_hat > alone.n_hat else alone
    wrong, rows = np.zeros(len(labels), np.float32), np.flatnonzero(labels >= 0)
    wrong[rows] = falling(both.given[rows], told.wrong[rows])
    asked = rows[both.best[rows] != labels[rows]]
    limit = suspected_up_to(both.given[asked], wrong[asked])
    return replace(both, wrong=wrong, n_hat=round(float(wrong[asked].sum())), gain=told.gain, limit=limit)


def joined(pooled: LabelPosterior, alone: LabelPosterior, labels: NDArray[np.int64]) -> LabelPosterior:
    """The pool's posterior, the odds of each label times those of a witness that never saw it.

    Two that know a label by other ways are independent evidence. Where the pool says the given label, having
    seen it, the suggested one is the witness's.

    Args:
        pooled: The posterior of all members.
        alone: The posterior of the witness.
        labels: (N,) given labels, -1 where unlabelled.
    """
    odds = [logit(np.clip(one.given.astype(np.float64), FLOOR**2, 1 - FLOOR)) for one in (pooled, alone)]
    seen = pooled.best == labels
    return replace(
        pooled,
        given=expit(odds[0] + odds[1]).astype(np.float32),
        best=np.where(seen, alone.best, pooled.best),
        best_proba=np.where(seen, alone.best_proba, pooled.best_proba),
    )


def falling(
    quality: NDArray[np.floating],
    wrong: NDArray[np.floating],
    weight: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """(n,) `wrong` averaged along label quality so that it never rises with it.

    Example:
        >>> falling(np.array([0.1, 0.2, 0.9]), np.array([0.4, 0.8, 0.1])).round(3).tolist()
        [0.6, 0.6, 0.1]
    """
    from scipy.optimize import isotonic_regression

    made = np.zeros(len(quality))
    if len(quality):
        order = np.argsort(quality, kind="stable")
        weights = None if weight is None else weight[order]
        given = wrong[order].astype(np.float64)
        made[order] = isotonic_regression(given, weights=weights, increasing=False).x
    return made


def suspected_up_to(
    quality: NDArray[np.floating],
    wrong: NDArray[np.floating],
    weight: NDArray[np.float64] | None = None,
) -> float:
    """Label quality of the last label that is suspected, `NONE` where none is.

    The worst are: as many as are expected to be wrong, as long as at least half of them are expected to be.
    The order of both witnesses knows them better than the probabilities, which one of the two spreads over
    all that it doubts.

    Args:
        quality: (n,) of labels that the posterior does not point at.
        wrong: (n,) probability that they are wrong, which falls with it.
        weight: (n,) how many labels each stands for.

    Example:
        >>> suspected_up_to(np.array([0.3, 0.1, 0.2, 0.4]), np.array([0.4, 0.7, 0.5, 0.4]))
        0.2
    """
    if not len(quality):
        return NONE
    order = np.argsort(quality, kind="stable")
    ranked, weights = quality[order], np.ones(len(order)) if weight is None else weight[order]
    count, expected = np.cumsum(weights), np.cumsum(weights * wrong[order])
    last = np.append(ranked[1:] != ranked[:-1], True)  # labels of one quality go together
    fits = np.flatnonzero(last & (count <= round(float(expected[-1]))) & (2 * expected >= count))
    return float(ranked[fits[-1]]) if len(fits) else NONE
