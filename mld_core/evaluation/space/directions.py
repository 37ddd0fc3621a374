"""Slices that are no cluster: the units furthest along one direction of the feature space.

What a model has not learned may be a matter of degree (dark, far, long), and the units that have most of it
lie at one side of every cluster. The direction is that of a logistic regression of the errors beside an error
rate that all units share, which takes up what fails elsewhere. It is fitted to four of five folds of groups,
and so is how far along the slice begins; who belongs to it is asked in the fifth, so that no error makes its
own unit a member.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mld_core.evaluation.space.cells import beta_quantile
from mld_core.evaluation.space.merged import told
from mld_core.evaluation.space.mixture import DIMENSIONS, SAMPLE, SMALLEST
from mld_core.evaluation.statistics.folds import FOLDS, hash_order, hash_uniform
from mld_core.evaluation.statistics.significance import binomial_upper

LEVEL = 0.001
"""Significance from which on the direction is believed: errors at random lie along some direction, too."""

_STEEP = 4.0
_FAR = 0.9
_LEAST = 1e-4


@dataclass(frozen=True)
class Direction:
    """A failing direction, one for each held-out fold of groups; the small state of the stage.

    Attributes:
        slopes: (5, D).
        begins: (5,) from where along it units belong to the slice.
    """

    slopes: NDArray[np.float64]
    begins: NDArray[np.float64]

    def inside(
        self, points: NDArray[np.floating], hashes: NDArray[np.uint64], usable: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """(n,) whether units belong to the slice, asked by what was fitted without their group."""
        made, fold = np.zeros(len(points), np.bool_), _fold_of(hashes)
        for kept_out in range(FOLDS):
            asked = np.flatnonzero(usable & (fold == kept_out))
            along = points[asked, : self.slopes.shape[1]] @ self.slopes[kept_out]
            made[asked] = along >= self.begins[kept_out]
        return made


def _fold_of(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (hash_uniform(hashes, 53) * FOLDS).astype(np.int64)


def find_direction(
    points: NDArray[np.float32],
    errors: NDArray[np.int8],
    hashes: NDArray[np.uint64],
    t2: float,
) -> Direction | None:
    """The direction in which errors grow more frequent, None where none is believed.

    Args:
        points: (N, D) coordinates, of which the first 32 are used.
        errors: (N,) 1 wrong, 0 right, -1 unknown.
        hashes: (N,) hashes of the group keys: a group is in one fold.
        t2: Error rate that the slice must lie above, as `fit_components` asks of a component.
    """
    wrong, usable = errors == 1, np.flatnonzero(errors >= 0)
    floor = max(t2, float(wrong[usable].mean())) if len(usable) else t2
    fold, slopes, begins = _fold_of(hashes)[usable], [], []
    for kept_out in range(FOLDS):
        rows = usable[fold != kept_out]
        rows = np.sort(rows[hash_order(len(rows), 59)[:SAMPLE]])
        count = int(wrong[rows].sum())
        if min(count, len(rows) - count) < SMALLEST // 2:
            return None
        slope, begin = fit_direction(points[rows, :DIMENSIONS], wrong[rows])
        slopes.append(slope)
        begins.append(begin)
    found = Direction(np.stack(slopes), np.array(begins))
    inside = found.inside(points, hashes, errors >= 0)
    size, bad = float(inside.sum()), float(wrong[inside].sum())
    if size < SMALLEST or float(binomial_upper(np.array([bad]), np.array([size]), floor)[0]) > LEVEL:
        return None
    low = float(beta_quantile(np.array([bad + 0.5]), np.array([size - bad + 0.5]))[0])
    return found if low > floor else None


def failing_direction(
    points: NDArray[np.float32],
    errors: NDArray[np.int8],
    hashes: NDArray[np.uint64],
    t2: float,
) -> NDArray[np.int64]:
    """(N,) 0 for the units furthest along the failing direction, -1 = none; see `find_direction`."""
    found = find_direction(points, errors, hashes, t2)
    if found is None:
        return np.full(len(errors), -1, np.int64)
    return np.where(found.inside(points, hashes, errors >= 0), 0, -1)


def fit_direction(x: NDArray[np.floating], wrong: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """The direction, and from where along it units belong to the slice that tells most about the errors.

    p(wrong) = share + (1 - share) sigmoid(slope @ x + shift), a standard normal prior on the slope of
    standardised coordinates.

    Args:
        x: (n, D) coordinates.
        wrong: (n,) whether it is an error; some are and some are not.
    """
    from scipy.optimize import minimize

    spread = x.std(axis=0, dtype=np.float64)
    spread[spread == 0] = 1
    middle = x.mean(axis=0, dtype=np.float64)
    wide, rate = (x - middle) / spread, float(wrong.mean())

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slope, share = point[:-2], point[-1]
        rest = expit(wide @ slope + point[-2])
        p = np.clip(share + (1 - share) * rest, 1e-9, 1 - 1e-9)
        gain = np.where(wrong, 1 / p, -1 / (1 - p))
        steep = (1 - share) * rest * (1 - rest) * gain
        back = [*(slope - wide.T @ steep), -steep.sum(), -((1 - rest) * gain).sum()]
        likelihood = float(np.where(wrong, np.log(p), np.log1p(-p)).sum())
        return float(slope @ slope) / 2 - likelihood, np.array(back)

    apart = wide[wrong].mean(axis=0) - wide[~wrong].mean(axis=0)
    along = wide @ apart
    slope = apart * (_STEEP / max(float(along.std()), 1e-9))
    start = [*slope, -float(np.quantile(wide @ slope, _FAR)), 0.8 * rate]
    free = [(None, None)] * (len(start) - 1)
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[*free, (_LEAST, max(rate, 2 * _LEAST))]
    ).x
    along = wide @ found[:-2]
    order = np.argsort(-along, kind="stable")
    count = np.arange(1, len(order) + 1)
    worth = told(count, np.cumsum(wrong[order]) / count, rate)
    worth[: SMALLEST - 1] = 0
    slope = found[:-2] / spread
    return slope, float(along[order[int(np.argmax(worth))]] + middle @ slope)
