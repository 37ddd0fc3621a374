"""Between the rounds: everything that is fitted, on the sample and on the tables of the cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis import halves
from mld_core.evaluation.analysis.answers import Reference
from mld_core.evaluation.analysis.labels.by_heart import falling, joined, suspected_up_to
from mld_core.evaluation.analysis.labels.quality import (
    FIT_UNITS,
    LabelPosterior,
    PoolState,
    fit_posterior,
    log_softmax_member,
    posterior_of,
)
from mld_core.evaluation.classification.rounds.block import Block, Draw
from mld_core.evaluation.classification.rounds.cells import Around, CellTables, Ground
from mld_core.evaluation.classification.rounds.codes import CodeFits, pairs_of, stable_codes
from mld_core.evaluation.classification.rounds.estimator import (
    Estimator,
    fit_estimator,
    fixed_columns,
    held_out_columns,
)
from mld_core.evaluation.classification.rounds.regions import RegionSample, fit_regions
from mld_core.evaluation.classification.rounds.scoring import (
    Fits,
    LabelFits,
    Looked,
    Mixed,
    Placed,
    evidence,
    judge,
    look_around,
    mixed_p,
    posterior,
)
from mld_core.evaluation.codes import categories
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.cells import (
    ALPHA,
    AMBIGUITY_KS,
    Density,
    beta_quantile,
    choose_density,
    density_of,
)
from mld_core.evaluation.space.neighbourhood import K_GRID
from mld_core.evaluation.statistics.folds import hash_uniform
from mld_core.evaluation.statistics.risk import RankedRisk
from mld_core.evaluation.statistics.significance import (
    LEVEL,
    benjamini_hochberg,
    two_sided_z,
)

_WITNESS = 4_096


@dataclass(frozen=True)
class Sample:
    """The sample that the driver holds.

    Attributes:
        block: Its units, all labelled.
        draw: How it was drawn.
        raw: (n,) how many units each stands for.
        weight: (n,) the same, as many together as they are worth (Kish).
        thin: (n,) those that a draw regardless of errors would have.
    """

    block: Block
    draw: Draw
    raw: NDArray[np.float64]
    weight: NDArray[np.float64]
    thin: NDArray[np.bool_]

    @classmethod
    def of(cls, block: Block, draw: Draw) -> Sample:
        """Weigh the drawn units."""
        raw = draw.weights(block.errors)
        return cls(block, draw, raw, raw * raw.sum() / (raw * raw).sum(), draw.thinned(block))


@dataclass(frozen=True)
class Joined:
    """What joins over the keys of all units found; see `CodeFits`."""

    conflicting: NDArray[Any]
    leaked: NDArray[Any] | None
    hashed: bool

    def codes(self, n_class: int, miscalibrated: NDArray[np.bool_]) -> CodeFits:
        """What the diagnoses need, but what they find in the sample."""
        return CodeFits(n_class, (), self.conflicting, self.leaked, miscalibrated, self.hashed)


@dataclass(frozen=True)
class Fitting:
    """What everything is fitted on.

    Attributes:
        sample: Of the labelled units.
        ground: Space and cells.
        tables: What the cells hold, of all units.
        joined: What joins found.
        reference: Thresholds of the reference split, None = this one is it.
        options: Of the request.
    """

    sample: Sample
    ground: Ground
    tables: CellTables
    joined: Joined
    reference: Reference | None
    options: Mapping[str, Any]


class Refine(Protocol):
    """What a task makes of the error estimator: another one, and its error probabilities of the sample."""

    def __call__(
        self,
        estimator: Estimator,
        proba: NDArray[np.float64],
        columns: Callable[[NDArray[np.int64], int], NDArray[np.float32]],
        sample: Sample,
        workers: Workers,
    ) -> tuple[Estimator, NDArray[np.float64]]:
        """`columns` are those of some units of the sample with a fold kept out, in the first repeat."""
        ...


def fit(fitting: Fitting, workers: Workers) -> Fits:
    """Fit everything to the sample and the tables, and what the diagnoses need."""
    fits, placed = fit_scores(fitting, workers)
    judged = judge(placed, fits, workers)
    found = evidence(placed, judged, fits)
    codes = replace(fits.codes, pairs=pairs_of(found, judged.replays.kept, fits.split.n_class))
    codes = stable_codes(found, judged.replays, judged.posterior, judged.region, codes, len(fits.regions))
    return replace(fits, codes=codes)


def fit_scores(fitting: Fitting, workers: Workers, refine: Refine | None = None) -> tuple[Fits, Placed]:
    """Fit all that scores units, and score the sample.

    Args:
        fitting: What it is fitted on.
        workers: Open pool.
        refine: What the task makes of the error estimator.
    """
    sample, ground, tables, reference = fitting.sample, fitting.ground, fitting.tables, fitting.reference
    block, split = sample.block, sample.draw.split
    points, cell = ground.place(block.layers, workers)
    around = Around.of(tables, ground.near)
    distance = ground.distances(points, cell, workers)
    fixed = fixed_columns(block, split.n_class, points, cell, distance, around)
    with workers.stage(f"error probability ({split.context.dataset})"):
        estimator, proba, looks = fit_estimator(
            block, fixed, cell, around, sample.draw, sample.weight, workers
        )
        if refine is not None:

            def columns(rows: NDArray[np.int64], fold: int) -> NDArray[np.float32]:
                return np.column_stack([fixed[rows], held_out_columns(block, rows, cell, around, 0, fold)])

            estimator, proba = refine(estimator, proba, columns, sample, workers)
            looks = (proba,)
    own = _own_reference(sample, tables, proba, fitting.options)
    used = own.thresholds if reference is None else reference.thresholds
    density, lows, frequent, state = _densities(
        sample, tables, around, used, looks, own=reference is None, workers=workers
    )
    placed = Placed(block, points, cell, proba, looks)
    drawn = RegionSample(block, points, cell, sample.raw, sample.thin, split.labels_tell)
    fits = Fits(
        split,
        ground,
        around,
        estimator,
        own,
        used,
        density,
        lows,
        frequent,
        state,
        _label_fits(sample, tables, placed, around, workers),
        fit_regions(drawn, tables, ground.near, used.t2, workers),
        fitting.joined.codes(split.n_class, _miscalibrated(tables)),
    )
    return fits, placed


def _own_reference(
    sample: Sample, tables: CellTables, proba: NDArray[np.float64], options: Mapping[str, Any]
) -> Reference:
    units, wrong = (int(one) for one in tables.counts.sum(axis=0))
    errors = sample.block.errors
    limits = categories.thresholds(
        proba,
        errors,
        reference=sample.draw.split.context.dataset,
        risk_tolerance=options.get("risk_tolerance"),
        weight=sample.weight,
        pi=(wrong + 1) / (units + 2),
    )
    return Reference(limits, RankedRisk.of(proba, errors).curve(sample.weight))


def _densities(
    sample: Sample,
    tables: CellTables,
    around: Around,
    used: categories.Thresholds,
    looks: tuple[NDArray[np.float64], ...],
    *,
    own: bool,
    workers: Workers,
) -> tuple[Density, NDArray[np.float32], NDArray[np.float64], halves.Halves]:
    """Local error rates by cell and by what a unit adds, of all units and of the halves."""
    steps = [around.reach(k) for k in K_GRID]
    right, wrong = tables.counts[:, 0] - tables.counts[:, 1], tables.counts[:, 1]
    by_k = [around.own(around.counts[:, step]) for step in steps]
    # One line for the right units of a cell and one for its wrong ones, each as often as it is there.
    total = np.concatenate([np.stack([one[0][:, mine] for one in by_k], axis=1) for mine in (0, 1)])
    count = np.concatenate([np.stack([one[1][:, mine] for one in by_k], axis=1) for mine in (0, 1)])
    errors = np.repeat(np.array([0, 1], np.int8), len(right))
    k, m = choose_density(total, count, errors, used.pi, np.concatenate([right, wrong]))
    place = K_GRID.index(k)
    density = _table_density(*by_k[place], k, m, used.pi)
    block = sample.block
    kept = np.stack([halves.kept_groups(block.digests, half) for half in range(halves.HALVES)])
    state = halves.fit_halves(looks, block.errors, kept, used, own=own, workers=workers, weight=sample.weight)
    lows = np.empty((halves.HALVES, *density.low.shape), np.float32)
    for half, limits in enumerate(state.thresholds):
        figures = around.own(around.halves[half][:, steps[place]])
        lows[half] = _table_density(*figures, k, m, limits.pi).low
    if np.isinf(m):
        lows[:] = halves.flat_lows(state)[:, None, None]
    frequent = np.stack([_highest(*around.own(around.counts[:, around.reach(k)])) for k in AMBIGUITY_KS])
    return density, lows, frequent, state


def _table_density(
    total: NDArray[np.float32], count: NDArray[np.float32], k: int, m: float, pi: float
) -> Density:
    flat = density_of(total.ravel(), count.ravel(), k, m, pi)
    return Density(k, m, flat.rate.reshape(total.shape), flat.low.reshape(total.shape))


def _highest(wrong: NDArray[np.float32], size: NDArray[np.float32]) -> NDArray[np.float64]:
    """Upper bounds of the error rate; see `space.cells.rate_at_most`."""
    a, b = wrong.astype(np.float64).ravel() + 0.5, (size - wrong).astype(np.float64).ravel() + 0.5
    return beta_quantile(a, b, 1 - ALPHA).reshape(wrong.shape)


def _miscalibrated(tables: CellTables) -> NDArray[np.bool_]:
    """(J,) cells of C50: mean confidence and accuracy differ significantly."""
    size = np.maximum(tables.stated[:, 0], 1)
    gap, spread = tables.stated[:, 1] / size, np.sqrt(np.maximum(tables.stated[:, 2], 0)) / size
    return benjamini_hochberg(two_sided_z(gap, spread))


# -- labels ----------------------------------------------------------------------------------------------


def _label_fits(
    sample: Sample, tables: CellTables, placed: Placed, around: Around, workers: Workers
) -> LabelFits:
    block, split = sample.block, sample.draw.split
    sizes, units = tables.labels.sum(axis=0), int(tables.labels.sum())
    looked = look_around(block, placed.cell, around, sizes)
    rows = np.flatnonzero(sample.thin & block.known)
    rows = rows[hash_uniform(block.rows[rows].astype(np.uint64), 401) < FIT_UNITS / max(len(rows), 1)]
    values = [log_softmax_member(block.logits)(rows), looked.near[looked.where[rows]]]
    pool = fit_posterior(values, block.labels[rows], block.folds[0, rows], [False, True])
    fits = LabelFits(sizes, _mixed(sample, looked), pool, pool.gain * units, 1)
    found = posterior(block, looked, fits, split.n_class, workers)
    fits = replace(fits, gain=found.gain)
    if split.is_train:
        alone = fit_posterior(values[1:], block.labels[rows], block.folds[0, rows], [False])
        fits = replace(fits, alone=alone, **_witness(sample, looked, found, alone, units, workers))
        found = posterior(block, looked, fits, split.n_class, workers)
    suspect = found.best != block.labels
    return replace(fits, n_hat=round(float((sample.raw * found.wrong)[suspect].sum())))


def _witness(
    sample: Sample, looked: Looked, pooled: LabelPosterior, state: PoolState, units: int, workers: Workers
) -> dict[str, Any]:
    """What the witness that finds more says of wrong labels, by label quality; see `by_heart.judged_by`."""
    block, raw = sample.block, sample.raw
    alone = posterior_of(
        [lambda rows: looked.near[looked.where[rows]]],
        block.labels,
        block.folds[0],
        looked.near.shape[1],
        state,
        units,
        workers,
    )
    both = joined(pooled, alone, block.labels)
    count = [float((raw * one.wrong)[one.best != block.labels].sum()) for one in (pooled, alone)]
    told = pooled if count[0] > count[1] else alone
    level, asked = falling(both.given, told.wrong, raw), both.best != block.labels
    order = np.argsort(both.given, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, _WITNESS).astype(np.int64))]
    return {
        "gain": told.gain,
        "witness": np.stack([both.given[shown].astype(np.float64), level[shown]]),
        "limit": suspected_up_to(both.given[asked], level[asked], raw[asked]),
    }


def _mixed(sample: Sample, looked: Looked) -> Mixed:
    """Benjamini-Hochberg over all units, from the weighted sample; see `Ambiguity.mixed`."""
    view, raw = looked.view, sample.raw
    there = view.k > 0
    if not there.any():
        return Mixed(0.0, -1.0)
    share = float(np.average((view.second / np.maximum(view.k, 1))[there], weights=raw[there]))
    p = mixed_p(view, share)
    some = np.flatnonzero(there & (view.second > 0))
    order = some[np.argsort(p[some], kind="stable")]
    mass = np.cumsum(raw[order])
    passed = np.flatnonzero(p[order] <= LEVEL * mass / max(float(mass[-1]) if len(mass) else 0.0, 1.0))
    return Mixed(share, float(p[order[passed[-1]]]) if len(passed) else -1.0)
