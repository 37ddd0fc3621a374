"""Labels that are wrong in step with the model's doubt, of which the surest units tell.

Annotators slip where an input is hard, and then to the label that is nearly right: the runner-up. Where both
doubt, such labels are what a model of little knowledge draws, and nothing recorded tells the two apart. They
differ where the pool is sure: there a model's own errors thin out to none, and wrong labels stay, at a rate
of their own (a plateau). Only units where that rate exceeds the model's are claimed, and only where it shows
in the order of the split's own neighbours, which go by the labels that are there, and in that and the pool's
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, chdtri, expit

from mld_core.evaluation.analysis.labels.pairs import thins_out
from mld_core.evaluation.analysis.labels.pool import FLOOR, Pair
from mld_core.evaluation.statistics.folds import FOLDS
from mld_core.evaluation.statistics.significance import BOUNDARY_GAIN, LEVEL

_STEEPEST, _MOST = 20.0, 0.5
_STARTS = (0.02, 0.2)


@dataclass(frozen=True)
class Plateau:
    """How often labels differ from the pool's, however sure it is.

    Attributes:
        points: (5, 2 + members) shift, slopes and share, one row for each held-out fold.
        gain: Log-likelihood per unit that the share explains.
        confused: Pairs that the model confuses: their labels are right.
    """

    points: NDArray[np.float64]
    gain: float
    confused: tuple[Pair, ...] = ()

    def wrong(
        self,
        values: Sequence[NDArray[np.floating]],
        best: NDArray[np.int64],
        labels: NDArray[np.int64],
        folds: NDArray[np.int8],
    ) -> NDArray[np.float64]:
        """(n,) probability that the label is wrong, not the pool's; 0 where they agree.

        Args:
            values: (n, K) log-probabilities of each member.
            best: (n,) most plausible label.
            labels: (n,) given labels, -1 where unlabelled.
            folds: (n,) folds.
        """
        point = self.points[folds]
        sure = point[:, 0] + sum(point[:, 1 + at] * margins(value, best) for at, value in enumerate(values))
        share = point[:, -1]
        asked = differing(labels, best, self.confused, values[0].shape[1]) & (labels >= 0)
        return np.where(asked, share / np.maximum(share + (1 - share) * expit(-sure), FLOOR), 0.0)


def find_plateau(
    values: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    folds: NDArray[np.int8],
    best: NDArray[np.int64],
    own: Sequence[bool],
    around: NDArray[np.floating],
    known: NDArray[np.bool_],
    confused: Sequence[Pair] = (),
) -> Plateau | None:
    """The plateau, or None where labels differ as a model's own errors do.

    Args:
        values: (n, K) log-probabilities of each member.
        labels: (n,) given labels.
        folds: (n,) folds.
        best: (n,) most plausible label.
        own: Which members are of the split itself.
        around: (n, K) log-probabilities of the split's own neighbours.
        known: (n,) labels that are known to be wrong; where they are most of it nothing is added.
        confused: Pairs that the model confuses.
    """
    sure = np.stack([margins(value, best) for value in values])
    differs = differing(labels, best, confused, values[0].shape[1])
    if differs.all() or not differs.any():
        return None
    if not tells_errors(sure[~np.array(own)], differs):
        return None
    none, point = fit_plateau(sure, differs, share=False)
    value, point = fit_plateau(sure, differs, start=point)
    # Where half of all labels would be wrong it is the model that is.
    if value - none < BOUNDARY_GAIN or point[-1] >= _MOST:
        return None
    order = point[0] + point[1:-1] @ sure
    inside = (1 - point[-1]) * expit(-order) < point[-1]
    found = inside & differs
    if 2 * (found & known).sum() >= found.sum():
        return None
    # What annotators get wrong is rarer, too, where the pool is sure: the neighbours have to show an even
    # rate, and both together, by Fisher's method.
    both, near = (thins_out(one[inside], differs[inside]) for one in (order, margins(around, best)))
    if near > LEVEL or float(chdtrc(4, -2 * np.log(max(both * near, FLOOR**2)))) > LEVEL:
        return None
    points = [
        fit_plateau(sure[:, folds != fold], differs[folds != fold], start=point)[1] for fold in range(FOLDS)
    ]
    return Plateau(np.stack(points), (value - none) / len(labels), tuple(confused))


def tells_errors(sure: NDArray[np.float64], differs: NDArray[np.bool_]) -> bool:
    """Whether (members, n) margins tell where labels differ (5 %).

    A model that does not know where it errs is no witness, whatever the split's own neighbours say.
    """
    rate = differs.mean()
    even = float(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) * len(differs)
    alone = fit_plateau(sure, differs, share=False)[0]
    return alone - even >= float(chdtri(len(sure), LEVEL)) / 2


def margins(value: NDArray[np.floating], best: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) log-odds of a label against the likeliest other one.

    Example:
        >>> margins(np.log([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]]), np.array([0, 1])).round(2).tolist()
        [0.69, -0.69]
    """
    rows = np.arange(len(best))
    rest = value.astype(np.float64)
    mine = rest[rows, best]
    rest[rows, best] = -np.inf
    return np.asarray(mine - rest.max(axis=1), dtype=np.float64)


def differing(
    labels: NDArray[np.int64], best: NDArray[np.int64], confused: Sequence[Pair], n_class: int
) -> NDArray[np.bool_]:
    """(n,) whether the label is not the pool's, and the two are no pair that the model confuses."""
    named = [code for a, b in confused for code in (a * n_class + b, b * n_class + a)]
    return np.asarray((labels != best) & ~np.isin(labels * n_class + best, named))


def fit_plateau(
    sure: NDArray[np.float64],
    differs: NDArray[np.bool_],
    *,
    share: bool = True,
    start: NDArray[np.float64] | None = None,
) -> tuple[float, NDArray[np.float64]]:
    """Log-likelihood of labels that differ: share + (1 - share) sigmoid(-(shift + slopes @ sure)), fitted.

    Args:
        sure: (members, n) margins.
        differs: (n,).
        share: Whether there may be a share.
        start: Where to begin.

    Returns:
        The log-likelihood, and (shift, slopes, share).
    """
    from scipy.optimize import minimize

    members = len(sure)

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        rest, floor = expit(-(point[0] + point[1:-1] @ sure)), point[-1]
        p = np.clip(floor + (1 - floor) * rest, 1e-12, 1 - 1e-12)
        told = np.where(differs, 1 / p, -1 / (1 - p))
        steep = (1 - floor) * rest * (1 - rest) * told
        slope = [steep.sum(), *(sure @ steep), -((1 - rest) * told).sum()]
        return -float(np.where(differs, np.log(p), np.log1p(-p)).sum()), np.array(slope)

    begin = np.concatenate([[0.0], np.full(members, 0.5 / members), [0.0]]) if start is None else start
    limits = [(-_STEEPEST, _STEEPEST), *[(0, _STEEPEST)] * members, (0, _MOST if share else 0)]
    found = min(
        (
            minimize(loss, [*begin[:-1], floor], jac=True, method="L-BFGS-B", bounds=limits)
            for floor in ((begin[-1], *_STARTS) if share else (0.0,))
        ),
        key=lambda one: float(one.fun),
    )
    return -float(found.fun), np.asarray(found.x, dtype=np.float64)
