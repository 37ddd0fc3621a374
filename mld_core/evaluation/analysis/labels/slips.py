"""Labels that slipped to the runner-up, told by which class they say.

Where annotators slip is where a model errs, too. But a slip goes to the class that looks right, while a
model's own error has any class as its truth, each about as often as the pool thinks it likely. So the classes
of the labels that differ from the pool's tell the two apart, beside how much rarer they get where it is sure:
two figures say how far the pool knows which of the other classes it is (how steep it is among them, and how
often it is any), one how often a label slips, fitted together. Two classes tell nothing of that kind.

What is fitted orders the labels where it makes them significantly more likely. Labels are claimed wrong where
slips do so beside an even rate of labels of any class, too: a model that is surer than it should be has that
(`plateau`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit

from mld_core.evaluation.analysis.labels.plateau import differing, fit_plateau, margins, tells_errors
from mld_core.evaluation.analysis.labels.pool import FLOOR, Pair
from mld_core.evaluation.statistics.folds import FOLDS
from mld_core.evaluation.statistics.significance import BOUNDARY_GAIN

LIKELIEST = 32
"""Of so many other classes the pool knows how likely they are; a truth beyond them is any class."""

_MOST, _STEEPEST = 0.5, 20.0
_STARTS = (0.01, 0.05)


@dataclass(frozen=True)
class Others:
    """What a pool says of the classes that are not its most plausible one, of units whose label differs.

    Attributes:
        likely: (n, C) log-probabilities of the likeliest, largest first, the largest 0.
        given: (n,) that of the given label, -inf where it is not among them.
        classes: How many others there are.
    """

    likely: NDArray[np.float64]
    given: NDArray[np.float64]
    classes: int

    @classmethod
    def of(cls, z: NDArray[np.floating], best: NDArray[np.int64], labels: NDArray[np.int64]) -> Others:
        """From (n, K) log-odds of the classes, the most plausible one and the label that is another."""
        rows, count = np.arange(len(z)), min(LIKELIEST, z.shape[1] - 1)
        z = z.astype(np.float64)
        given = z[rows, labels]
        z[rows, best] = -np.inf
        likely = -np.sort(np.partition(-z, count - 1, axis=1)[:, :count], axis=1)
        inside = given >= likely[:, -1]
        return cls(likely - likely[:, :1], np.where(inside, given - likely[:, 0], -np.inf), z.shape[1] - 1)

    @property
    def second(self) -> NDArray[np.float64]:
        """(n,) chance that a slip is to the label: 1 for the runner-up, an equal part for each that ties."""
        return np.where(self.given == 0, 1 / (self.likely == 0).sum(axis=1), 0.0)

    def take(self, rows: NDArray[np.bool_]) -> Others:
        """Of some of the units."""
        return Others(self.likely[rows], self.given[rows], self.classes)

    def share(self, steep: float, any_class: float) -> tuple[NDArray[np.float64], ...]:
        """(n,) how likely the label is among the others, and its slopes by both figures."""
        e = np.exp(steep * self.likely)
        total = e.sum(axis=1)
        inside = np.isfinite(self.given)
        given = np.where(inside, self.given, 0.0)
        p = np.where(inside, np.exp(steep * given) / total, 0.0)
        slope = p * (given - (e * self.likely).sum(axis=1) / total)
        return (1 - any_class) * p + any_class / self.classes, (1 - any_class) * slope, 1 / self.classes - p


@dataclass(frozen=True)
class Slips:
    """How often labels slip to the runner-up.

    Attributes:
        points: (5, members + 4) shift, slopes, share, steepness and share of any class, one row for each
            held-out fold.
        gain: Log-likelihood per unit that the share explains.
        claimed: Whether labels may be claimed wrong for it.
        confused: Pairs that the model confuses: their labels are right.
    """

    points: NDArray[np.float64]
    gain: float
    claimed: bool
    confused: tuple[Pair, ...] = ()

    def likelier(
        self,
        values: Sequence[NDArray[np.floating]],
        z: NDArray[np.floating],
        best: NDArray[np.int64],
        labels: NDArray[np.int64],
        folds: NDArray[np.int8],
    ) -> NDArray[np.float64]:
        """(n,) how many times likelier the label is where it slipped than where it is right; 0: it did not.

        Args:
            values: (n, K) log-probabilities of each member.
            z: (n, K) log-odds of the pool.
            best: (n,) most plausible label.
            labels: (n,) given labels, -1 where unlabelled.
            folds: (n,) folds.
        """
        made = np.zeros(len(labels))
        asked = differing(labels, best, self.confused, z.shape[1]) & (labels >= 0)
        for fold in range(FOLDS):
            rows = np.flatnonzero(asked & (folds == fold))
            others = Others.of(z[rows], best[rows], labels[rows])
            to = others.second > 0
            point, rows, others = self.points[fold], rows[to], others.take(to)
            sure = np.stack([margins(value[rows], best[rows]) for value in values])
            right = expit(-(point[0] + point[1:-3] @ sure)) * others.share(*point[-2:])[0]
            made[rows] = others.second / np.maximum((1 - point[-3]) * right, FLOOR)
        return made

    def wrong(self, likelier: NDArray[np.float64], folds: NDArray[np.int8]) -> NDArray[np.float64]:
        """(n,) probability that the label slipped."""
        odds = self.points[folds, -3] * likelier
        return np.asarray(odds / (1 + odds), dtype=np.float64)

    def quality(
        self,
        given: NDArray[np.float64],
        likelier: NDArray[np.float64],
        stray: NDArray[np.float64],
        folds: NDArray[np.int8],
    ) -> NDArray[np.float64]:
        """(n,) label quality where labels slip, or are any label: each kind counts by how frequent it is.

        A runner-up's is lower than the pool's alone, that of a label which is neither higher. It is an order
        of the labels and holds where slips are likely, also where none of them is claimed: a claim asks for
        more, see `find_slips`.

        Args:
            given: (n,) q of the given label against the others; NaN where unlabelled.
            likelier: As above.
            stray: (n,) probability of any one wrong label.
            folds: (n,) folds.
        """
        share = self.points[folds, -3]
        rest = (1 - given) / np.maximum(given, FLOOR**2)
        return np.asarray(1 / (1 + (stray * rest + share * likelier) / (stray + share)), dtype=np.float64)


def find_slips(
    values: Sequence[NDArray[np.floating]],
    z: NDArray[np.floating],
    labels: NDArray[np.int64],
    folds: NDArray[np.int8],
    best: NDArray[np.int64],
    own: Sequence[bool],
    known: NDArray[np.bool_],
    around: NDArray[np.floating] | None = None,
    confused: Sequence[Pair] = (),
) -> Slips | None:
    """How often labels slip, or None where that does not make them significantly more likely (5 %).

    Units that a model misreads have the labels of those around them: what these say is asked beside the
    members.

    Args:
        values: (n, K) log-probabilities of each member.
        z: (n, K) log-odds of the pool.
        labels: (n,) given labels.
        folds: (n,) folds.
        best: (n,) most plausible label.
        own: Which members are of the split itself.
        known: (n,) labels that are known to be wrong; where they are most of it nothing is claimed.
        around: (n, K) log-probabilities of the split's own neighbours, where they are no member.
        confused: Pairs that the model confuses.
    """
    differs = differing(labels, best, confused, z.shape[1])
    if z.shape[1] < 3 or differs.all() or not differs.any():
        return None
    told_by = values if around is None else [*values, around]
    sure = np.stack([margins(value, best) for value in told_by])
    if not tells_errors(sure[: len(values)][~np.array(own)], differs):
        return None
    others = Others.of(z[differs], best[differs], labels[differs])
    none, shape = fit_plateau(sure, differs, share=False)
    even = fit_plateau(sure, differs, start=shape)[0]
    told, classes = _fit_classes(others)
    starts = [np.array([*shape[:-1], share, *classes]) for share in _STARTS]
    value, point = _fit_slips(sure, differs, others, starts)
    # Where half of all labels would be wrong it is the model that is.
    if value - (none + told) < BOUNDARY_GAIN or point[-3] >= _MOST:
        return None
    points, sure = [], sure[: len(values)]
    point = np.append(point[: 1 + len(values)], point[-3:])
    for fold in range(FOLDS):
        some = folds != fold
        points.append(_fit_slips(sure[:, some], differs[some], others.take(some[differs]), [point])[1])
    gain = (value - (none + told)) / len(labels)
    made = Slips(np.stack(points), gain, False, tuple(confused))
    found = made.wrong(made.likelier(values, z, best, labels, folds), folds) > 0.5
    beside = value - (even + told) >= BOUNDARY_GAIN and 2 * (found & known).sum() < found.sum()
    return Slips(made.points, gain, bool(beside), made.confused)


def _fit_classes(others: Others) -> tuple[float, NDArray[np.float64]]:
    """Log-likelihood of which labels those that differ are, none having slipped, and both class figures."""
    from scipy.optimize import minimize

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        p, *slopes = others.share(point[0], point[1])
        p = np.maximum(p, 1e-12)
        return -float(np.log(p).sum()), -np.array([(slope / p).sum() for slope in slopes])

    limits = [(0, _STEEPEST), (0, 1)]
    found = min(
        (minimize(loss, [steep, 0.05], jac=True, method="L-BFGS-B", bounds=limits) for steep in (1.0, 0.3)),
        key=lambda one: float(one.fun),
    )
    return -float(found.fun), np.asarray(found.x, dtype=np.float64)


def _fit_slips(
    sure: NDArray[np.float64],
    differs: NDArray[np.bool_],
    others: Others,
    starts: Sequence[NDArray[np.float64]],
) -> tuple[float, NDArray[np.float64]]:
    """Log-likelihood of all labels of which a share slips, and (shift, slopes, share, both class figures).

    Args:
        sure: (members, n) margins.
        differs: (n,).
        others: Of those that differ.
        starts: Where to begin.
    """
    from scipy.optimize import minimize

    agreed, apart, second = sure[:, ~differs], sure[:, differs], others.second

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slope, share = point[1:-3], point[-3]
        same, rest = point[0] + slope @ agreed, expit(-(point[0] + slope @ apart))
        p, steep, any_class = others.share(point[-2], point[-1])
        q = np.maximum((1 - share) * rest * p + share * second, 1e-12)
        value = np.log1p(-share) * len(same) + log_expit(same).sum() + np.log(q).sum()
        up, down = expit(-same), -(1 - share) * rest * (1 - rest) * p / q
        back = [
            up.sum() + down.sum(),
            *(agreed @ up + apart @ down),
            ((second - rest * p) / q).sum() - len(same) / (1 - share),
            *(((1 - share) * rest * one / q).sum() for one in (steep, any_class)),
        ]
        return -float(value), -np.array(back)

    members = len(sure)
    limits = [(-_STEEPEST, _STEEPEST), *[(0, _STEEPEST)] * members, (0, _MOST), (0, _STEEPEST), (0, 1)]
    found = min(
        (minimize(loss, start, jac=True, method="L-BFGS-B", bounds=limits) for start in starts),
        key=lambda one: float(one.fun),
    )
    return -float(found.fun), np.asarray(found.x, dtype=np.float64)
