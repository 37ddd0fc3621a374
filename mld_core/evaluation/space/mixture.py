"""Slices that are no cluster of their own: components of a mixture over features, labels and predictions.

A component explains where units lie, what their labels are and what the model says, all at once, so that a
part of a cluster that fails in its own way becomes a component (Eyuboglu et al., 2022). It is fitted on half
of the groups and believed only where its units of the other half fail too; who belongs to it is read from
features and label alone (of a box, from features and prediction), so that an error makes no unit a member.
A label that is no other's where it lies is an error all the same: of wrong labels alone a component would
fail. So what lies where a component does has to fail, too, whatever its label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.cells import beta_quantile
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import hash_order, hash_uniform, mix
from mld_core.evaluation.statistics.significance import benjamini_hochberg, binomial_upper

COMPONENTS = 20
SAMPLE = 20_000
DIMENSIONS = 32
LABEL_WEIGHT = 10.0
"""How much more a label or prediction counts than a feature; as many as the literature's choice."""

MEMBER = 0.5
SMALLEST = 10

_STEPS, _TOLERANCE = 60, 1e-6
_PRIOR = 0.5
_ROWS = 16_384


@dataclass(frozen=True)
class Mixture:
    """A fitted mixture of C components; the small state of the stage.

    Attributes:
        weight: (C,) log share of each.
        mean: (C, D) means.
        precision: (C, D) one over the variances.
        label: (C, K) log probability of each label.
        prediction: (C, K) log probability of each prediction.
    """

    weight: NDArray[np.float64]
    mean: NDArray[np.float64]
    precision: NDArray[np.float64]
    label: NDArray[np.float64]
    prediction: NDArray[np.float64]

    def log_parts(
        self,
        points: NDArray[np.floating],
        labels: NDArray[np.int64] | None,
        prediction: NDArray[np.int64] | None,
    ) -> NDArray[np.float64]:
        """(n, C) log density of units with each component; without labels or predictions, of the rest."""
        x = points[:, : self.mean.shape[1]].astype(np.float64)
        scaled = self.mean * self.precision
        square = (x * x) @ self.precision.T - 2 * x @ scaled.T + (self.mean * scaled).sum(axis=1)
        made = self.weight + (np.log(self.precision).sum(axis=1) - square) / 2
        if labels is not None:
            made = made + LABEL_WEIGHT * self.label[:, labels].T
        if prediction is not None:
            made = made + LABEL_WEIGHT * self.prediction[:, prediction].T
        return np.asarray(made, dtype=np.float64)


def fit_mixture(
    points: NDArray[np.floating],
    labels: NDArray[np.int64],
    prediction: NDArray[np.int64],
    n_class: int,
    components: int = COMPONENTS,
) -> Mixture:
    """Expectation maximisation from the cells of the confusion matrix.

    Args:
        points: (n, D) coordinates, of which the first 32 are used.
        labels: (n,) labels.
        prediction: (n,) predictions.
        n_class: Number of classes.
        components: How many; the commonest wrong pairs start one each, the commonest labels the others.
    """
    x = points[:, :DIMENSIONS].astype(np.float64)
    part = np.zeros((len(x), components))
    part[np.arange(len(x)), _start(labels, prediction, components)] = 1
    part = 0.9 * part + 0.1 / components
    floor = 1e-2 * x.var(axis=0) + 1e-9
    best = -np.inf
    for _ in range(_STEPS):
        made = _maximised(x, labels, prediction, part, n_class, floor)
        joint = made.log_parts(x, labels, prediction)
        top = joint.max(axis=1, keepdims=True)
        part = np.exp(joint - top)
        total = part.sum(axis=1, keepdims=True)
        part /= total
        value = float((np.log(total) + top).mean())
        if value - best < _TOLERANCE * max(1.0, abs(value)):
            break
        best = value
    return made


def _start(labels: NDArray[np.int64], prediction: NDArray[np.int64], components: int) -> NDArray[np.int64]:
    """(n,) first component of each unit."""
    wrong = labels != prediction
    pairs = labels * (int(prediction.max(initial=0)) + 1) + prediction
    distinct, where = np.unique(np.where(wrong, pairs, -1 - labels), return_inverse=True)
    where = where.reshape(-1)
    count = np.bincount(where)
    kinds = (np.flatnonzero(distinct >= 0), np.flatnonzero(distinct < 0))
    kept = [kind[np.argsort(-count[kind], kind="stable")] for kind in kinds]
    half = components // 2
    chosen = [*kept[0][:half], *kept[1][: components - half]]
    place = np.full(len(distinct), -1)
    place[chosen] = np.arange(len(chosen))
    found = place[where]
    # What starts none is dealt out, and empty components get their share of it by hash.
    loose = np.flatnonzero(found < 0)
    found[loose] = (mix(loose.astype(np.uint64), 41) % np.uint64(components)).astype(np.int64)
    return found


def _maximised(
    x: NDArray[np.float64],
    labels: NDArray[np.int64],
    prediction: NDArray[np.int64],
    part: NDArray[np.float64],
    n_class: int,
    floor: NDArray[np.float64],
) -> Mixture:
    size = part.sum(axis=0) + 1e-9
    mean = part.T @ x / size[:, None]
    variance = np.maximum(part.T @ (x * x) / size[:, None] - mean**2, 0) + floor
    tables = []
    for said in (labels, prediction):
        table = np.zeros((n_class, part.shape[1]))
        np.add.at(table, said, part)
        table = table.T + _PRIOR / n_class
        tables.append(np.log(table / table.sum(axis=1, keepdims=True)))
    return Mixture(np.log(size / size.sum()), mean, 1 / variance, *tables)


def score_mixture(
    points: NDArray[np.floating],
    labels: NDArray[np.int64] | None,
    state: Mixture,
    prediction: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """(n,) component that holds more than half of a unit by its features and label; -1 = none.

    Where there are no labels its features and prediction say.
    """
    joint = state.log_parts(points, labels, prediction)
    part = np.exp(joint - joint.max(axis=1, keepdims=True))
    share = part.max(axis=1) / part.sum(axis=1)
    return np.where(share > MEMBER, joint.argmax(axis=1), -1)


@dataclass(frozen=True)
class Components:
    """A mixture and which of its components fail; the small state of the stage.

    Attributes:
        mixture: Of C components.
        fails: (C,) which do.
        by_label: Whether labels say who belongs to a component, or predictions in their place.
    """

    mixture: Mixture
    fails: NDArray[np.bool_]
    by_label: bool = True

    def of(
        self,
        points: NDArray[np.floating],
        labels: NDArray[np.int64],
        prediction: NDArray[np.int64],
        usable: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """(n,) number of the failing component a unit belongs to, -1 = none; of those that are usable."""
        made = np.full(len(labels), -1, np.int64)
        rows = np.flatnonzero(usable)
        member = self.members(points[rows], labels[rows], prediction[rows])
        made[rows] = np.where((member >= 0) & self.fails[member], member, -1)
        return made

    def members(
        self, points: NDArray[np.floating], labels: NDArray[np.int64], prediction: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """(n,) component of each unit, failing or not, -1 = none."""
        if self.by_label:
            return score_mixture(points, labels, self.mixture)
        return score_mixture(points, None, self.mixture, prediction)


def fit_components(
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
    prediction: NDArray[np.int64],
    errors: NDArray[np.int8],
    hashes: NDArray[np.uint64],
    t2: float,
    n_class: int,
    workers: Workers,
    *,
    by_label: bool = True,
) -> Components | None:
    """The mixture of half of the groups, and which of its components fail in the other; None of too few.

    Args:
        points: (N, D) coordinates.
        labels: (N,) labels, -1 where unlabelled.
        prediction: (N,) predictions, -1 where there is none.
        errors: (N,) 1 wrong, 0 right, -1 unknown.
        hashes: (N,) hashes of the group keys: a group is fitted on or judged by as a whole.
        t2: Error rate that a component must lie above: the 5 % quantile of its rate among units that took no
            part in the fit, and significantly so after Benjamini-Hochberg over the components; above that of
            all units in any case, or errors at random would do where these fail more often than `t2`. Where
            labels say who belongs, what lies there with any label must fail so, too.
        n_class: Number of classes.
        workers: Open pool.
        by_label: Whether a label says something of its unit alone. That of a box depends on what it found:
            its prediction says in place of it which component it belongs to, or all boxes that found nothing
            would be one, which cannot but fail.
    """
    usable = np.flatnonzero(usable_units(labels, prediction, errors))
    fitting = hash_uniform(hashes[usable], 43) < 0.5
    rows = usable[fitting]
    rows = np.sort(rows[hash_order(len(rows), 47)[:SAMPLE]])
    components = min(COMPONENTS, len(rows) // SMALLEST)
    if components < 2 or not (errors[rows] == 1).any():
        return None
    floor = max(t2, float((errors[usable] == 1).mean()))
    fitted = fit_mixture(points[rows], labels[rows], prediction[rows], n_class, components)
    state = Components(fitted, np.zeros(components, np.bool_), by_label)
    held = usable[~fitting]
    member = np.empty(len(held), np.int64)

    def one(span: slice) -> None:
        some = held[span]
        member[span] = state.members(points[some], labels[some], prediction[some])

    workers.each(one, spans(len(held), _ROWS))
    by_place = _p_by_place(fitted, points, errors, held, floor) if by_label else None
    held, member = held[member >= 0], member[member >= 0]
    size = np.bincount(member, minlength=components).astype(np.float64)
    bad = np.bincount(member, weights=errors[held] == 1, minlength=components)
    p = np.where(size >= SMALLEST, binomial_upper(bad, size, floor), np.nan)
    fails = benjamini_hochberg(p) & (beta_quantile(bad + 0.5, size - bad + 0.5) > floor)
    if by_place is not None:
        fails = benjamini_hochberg(np.where(fails, by_place, np.nan))
    return Components(fitted, fails, by_label)


def _p_by_place(
    fitted: Mixture,
    points: NDArray[np.float32],
    errors: NDArray[np.int8],
    held: NDArray[np.int64],
    floor: float,
) -> NDArray[np.float64]:
    """(C,) p-value of units failing no more often than `floor` where a component lies.

    Each unit counts as far as it lies there; they are as many as their shares are worth (Kish).
    """
    sums = np.zeros((3, len(fitted.weight)))
    for span in spans(len(held), _ROWS):
        joint = fitted.log_parts(points[held[span]], None, None)
        part = np.exp(joint - joint.max(axis=1, keepdims=True))
        part /= part.sum(axis=1, keepdims=True)
        sums += np.stack(
            [part.sum(axis=0), (part * part).sum(axis=0), part[errors[held[span]] == 1].sum(axis=0)]
        )
    share, square = np.maximum(sums[:2], 1e-30)
    size = share * share / square
    return binomial_upper(size * sums[2] / share, size, floor)


def usable_units(
    labels: NDArray[np.int64], prediction: NDArray[np.int64], errors: NDArray[np.int8]
) -> NDArray[np.bool_]:
    """(N,) units whose label, prediction and error are known."""
    return np.asarray((labels >= 0) & (prediction >= 0) & (errors >= 0))


def failing_components(
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
    prediction: NDArray[np.int64],
    errors: NDArray[np.int8],
    hashes: NDArray[np.uint64],
    t2: float,
    n_class: int,
    workers: Workers,
    *,
    by_label: bool = True,
) -> NDArray[np.int64]:
    """(N,) number of the failing component a unit belongs to, -1 = none; see `fit_components`."""
    made, usable = np.full(len(labels), -1, np.int64), usable_units(labels, prediction, errors)
    found = fit_components(
        points, labels, prediction, errors, hashes, t2, n_class, workers, by_label=by_label
    )
    if found is not None:

        def one(span: slice) -> None:
            made[span] = found.of(points[span], labels[span], prediction[span], usable[span])

        workers.each(one, spans(len(labels), _ROWS))
    return made
