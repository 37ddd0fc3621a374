"""How sure an answer is: the decisions taken again on random halves of the groups.

A group (scene, patient, input) is kept or left out as a whole, fixed by its hash. In every half the
thresholds, the risk curve and the local error rates are estimated anew, from the kept units only; the
repeats of the error estimator take turns. Half-samples have the spread of the bootstrap (McCarthy, 1969), and
show besides what half of the data would have been enough for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.codes import categories
from mld_core.evaluation.codes.categories import Flags, Thresholds
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.cells import Density, density_of
from mld_core.evaluation.space.neighbourhood import Counted, Neighbourhood
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.folds import hash_uniform
from mld_core.evaluation.statistics.risk import RankedRisk, RiskCurve

HALVES = 20
DENSE = 0.75
"""Share of the halves in which errors must be dense for a unit to count as lying among dense errors."""

_STREAM = 2_000
_ROWS = 65_536


@dataclass(frozen=True)
class Halves:
    """What was estimated on each half; the small state of the stage.

    Attributes:
        thresholds: One for each half.
        curves: (halves,) risk curve of each half.
        repeat: (halves,) which repeat of the error estimator each half looks at.
    """

    thresholds: tuple[Thresholds, ...]
    curves: tuple[RiskCurve, ...]
    repeat: tuple[int, ...]


@dataclass(frozen=True)
class Replays:
    """The decisions of every half, (halves, N) each.

    Attributes:
        kept: Whose errors were counted; False where unlabelled.
        dense: Errors are dense around the unit.
        category: Category numbers, -1 where unlabelled.
    """

    kept: NDArray[np.bool_]
    dense: NDArray[np.bool_]
    category: NDArray[np.int8]

    def membership(self, category: NDArray[np.int8]) -> NDArray[np.float32]:
        """(N,) share of the halves that say the same category; NaN where unlabelled."""
        share = (self.category == category).mean(axis=0)
        return np.where(category >= 0, share, np.nan).astype(np.float32)


def kept_groups(hashes: NDArray[np.uint64], half: int) -> NDArray[np.bool_]:
    """(G,) which groups a half keeps.

    Example:
        >>> kept_groups(np.arange(1_000, dtype=np.uint64), 0).mean().round(1).item()
        0.5
    """
    return np.asarray(hash_uniform(hashes, _STREAM + half) < 0.5)


def fit_halves(
    repeats: tuple[NDArray[np.floating], ...],
    errors: NDArray[np.int8],
    kept: NDArray[np.bool_],
    used: Thresholds,
    *,
    own: bool,
    workers: Workers,
    weight: NDArray[np.floating] | None = None,
) -> Halves:
    """Thresholds and risk curves of every half.

    Args:
        repeats: (n,) error probabilities of the labelled units, one array for each repeat.
        errors: (n,) 1 wrong, 0 right.
        kept: (halves, n) which of them each half keeps.
        used: Thresholds of the split; they stand in every half where another split gave them.
        own: Whether the split is its own reference.
        workers: Open pool.
        weight: (n,) weights of units that were sampled; None = 1.
    """
    ranked = [RankedRisk.of(proba, errors) for proba in repeats]
    turns = tuple(half % len(repeats) for half in range(len(kept)))

    def one(half: int) -> tuple[Thresholds, RiskCurve]:
        rows = kept[half]
        limits = used
        if own:
            limits = categories.thresholds(
                repeats[turns[half]][rows],
                errors[rows],
                reference=used.reference,
                risk_tolerance=used.risk_tolerance,
                weight=None if weight is None else weight[rows],
                pi=None if weight is None else rate_of(errors[rows], weight[rows]),
            )
        return limits, ranked[turns[half]].curve(rows if weight is None else rows * weight)

    found = list(workers.map(one, range(len(kept))))
    return Halves(tuple(limits for limits, _ in found), tuple(curve for _, curve in found), turns)


def rate_of(errors: NDArray[np.int8], weight: NDArray[np.floating]) -> float:
    """Share of wrong ones among weighted units, (E + 1) / (n + 2).

    Example:
        >>> rate_of(np.array([1, 0], np.int8), np.array([1.0, 7.0]))
        0.2
    """
    return float((weight[errors == 1].sum() + 1) / (weight.sum() + 2))


def half_densities(
    around: Neighbourhood,
    base_errors: NDArray[np.int8],
    base_kept: NDArray[np.bool_],
    density: Density,
    state: Halves,
    rows: NDArray[np.int64],
) -> NDArray[np.float32]:
    """(halves, n) lower bounds of the local error rate of some units, from the kept ones within its reach.

    Args:
        around: Surroundings.
        base_errors: (M,) 1 wrong, 0 right.
        base_kept: (halves, M) which of them each half keeps.
        density: k and m of the whole.
        state: Thresholds of the halves.
        rows: The units asked about.
    """
    counted = around.within(base_errors == 1, base_kept, density.k)
    return lows_of(counted, density, state, rows)


def lows_of(
    counted: Counted, density: Density, state: Halves, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(halves, n) lower bounds of the local error rate of some units, from what each half counts."""
    made = np.empty((len(state.thresholds), len(rows)), np.float32)
    if np.isinf(density.m):
        made[:] = flat_lows(state)[:, None]
        return made
    wrong, size = counted(rows)
    for half, limits in enumerate(state.thresholds):
        made[half] = density_of(wrong[half], size[half], density.k, density.m, limits.pi).low
    return made


def flat_lows(state: Halves) -> NDArray[np.float64]:
    """(halves,) lower bounds where errors have no spatial structure: nowhere above the half's threshold."""
    return np.array([min(limits.pi, limits.t2) for limits in state.thresholds])


def steady_density(lows: NDArray[np.float32], density: Density, used: Thresholds) -> NDArray[np.float64]:
    """(N,) the lower bound that three in four halves reach; without spatial structure none is dense.

    There the overall rate of a half may be above that of all units by chance, and would be so everywhere.
    """
    low = steady_low(lows)
    return np.minimum(low, used.t2) if np.isinf(density.m) else low


def steady_low(lows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N,) the lower bound that three in four halves reach.

    Example:
        >>> steady_low(np.array([[0.1], [0.2], [0.3], [0.4]], np.float32)).round(2).tolist()
        [0.2]
    """
    place = len(lows) - int(np.ceil(DENSE * len(lows)))
    return np.asarray(np.partition(lows, place, axis=0)[place], dtype=np.float64)


def dense_in(lows: NDArray[np.float32], state: Halves) -> NDArray[np.bool_]:
    """(halves, n) whether each half finds errors dense around some units."""
    limits = np.array([one.t2 for one in state.thresholds], np.float32)
    return np.asarray(lows > limits[:, None])


def score_halves(
    flags: Flags,
    dense: NDArray[np.bool_],
    repeats: tuple[NDArray[np.floating], ...],
    used: Thresholds,
    labelled: NDArray[np.bool_],
    state: Halves,
) -> NDArray[np.int8]:
    """(halves, n) categories of some units.

    What is not estimated anew stays against the thresholds it was estimated with: the error probabilities
    and what the monitor says would move with them.
    """
    made = np.full(dense.shape, -1, np.int8)
    for half, (limits, curve) in enumerate(zip(state.thresholds, state.curves, strict=True)):
        proba = repeats[state.repeat[half]]
        again = Flags(
            flags.error,
            dense[half],
            curve.lower_bound(proba) > limits.t2,
            flags.covered,
            flags.ambiguous,
            proba <= used.t1,
        )
        made[half] = np.where(labelled, categories.categorise(again), -1)
    return made


def replay_density(
    around: Neighbourhood,
    errors: NDArray[np.int8],
    known: NDArray[np.int64],
    kept: NDArray[np.bool_],
    density: Density,
    used: Thresholds,
    state: Halves,
    workers: Workers,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Where each half finds dense errors, (halves, N), and what `steady_density` says of every unit, (N,).

    Both are read off block by block: the lower bounds themselves would be four bytes a unit and half.
    """
    dense, low = np.empty((len(kept), len(errors)), bool), np.empty(len(errors))
    counted = around.within(errors[known] == 1, kept_of(kept, known), density.k)

    def one(span: slice) -> None:
        lows = lows_of(counted, density, state, np.arange(span.start, span.stop))
        dense[:, span], low[span] = dense_in(lows, state), steady_density(lows, density, used)

    workers.each(one, spans(len(errors), _ROWS))
    return dense, low


def kept_of(kept: NDArray[np.bool_], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(halves, n) which labelled units each half keeps; no copy where all are labelled."""
    return kept if len(known) == kept.shape[1] else kept[:, known]


def replay(
    flags: Flags,
    dense: NDArray[np.bool_],
    repeats: tuple[NDArray[np.floating], ...],
    used: Thresholds,
    kept: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    state: Halves,
    workers: Workers,
) -> Replays:
    """The decisions of every half for every unit, block by block."""
    category = np.empty(dense.shape, np.int8)

    def one(span: slice) -> None:
        some = Flags(*(value[span] for value in vars(flags).values()))
        parts = tuple(proba[span] for proba in repeats)
        category[:, span] = score_halves(some, dense[:, span], parts, used, labelled[span], state)

    workers.each(one, spans(len(labelled), _ROWS))
    return Replays(kept if labelled.all() else kept & labelled, dense, category)
