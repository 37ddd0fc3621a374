"""The fourth round: every unit scored from the broadcast, its row written, and all of it counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis import halves
from mld_core.evaluation.analysis.answers import Reference, UnitAnswers
from mld_core.evaluation.analysis.evidence import CellEvidence, Evidence
from mld_core.evaluation.analysis.halves import Halves, Replays
from mld_core.evaluation.analysis.issue_columns import answer_columns, diagnosis_columns, judged_columns
from mld_core.evaluation.analysis.labels.by_heart import joined
from mld_core.evaluation.analysis.labels.quality import (
    LabelPosterior,
    PoolState,
    log_softmax_member,
    posterior_of,
    smoothed,
    suspected_labels,
)
from mld_core.evaluation.analysis.units import with_columns
from mld_core.evaluation.classification.rounds.block import Block, RoundSplit
from mld_core.evaluation.classification.rounds.cells import Around, Ground, own_part
from mld_core.evaluation.classification.rounds.codes import CodeFits, diagnosed
from mld_core.evaluation.classification.rounds.estimator import Estimator, fixed_columns
from mld_core.evaluation.classification.rounds.outcome import Outcome
from mld_core.evaluation.classification.rounds.regions import Regions
from mld_core.evaluation.classification.scalars import scalars_kernel
from mld_core.evaluation.codes import categories
from mld_core.evaluation.codes.categories import Flags, Thresholds
from mld_core.evaluation.codes.notation import suffixed_codes
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.cells import AMBIGUITY_KS, Ambiguity, Density, ambiguity_of
from mld_core.evaluation.space.layers import close_classes
from mld_core.evaluation.statistics.significance import binomial_upper


@dataclass(frozen=True)
class Mixed:
    """When the second label around a unit is significantly more frequent than it is around all units."""

    share: float
    highest_p: float

    def of(self, view: Ambiguity) -> NDArray[np.bool_]:
        """(n,) units for which it is."""
        return np.asarray(mixed_p(view, self.share) <= self.highest_p)


def mixed_p(view: Ambiguity, share: float) -> NDArray[np.float64]:
    """(n,) p-value of the second label's count, 1 where nothing is said of a unit."""
    p = binomial_upper(view.second.astype(np.float64), view.k.astype(np.float64), share)
    return np.where((view.k > 0) & (view.second > 0), p, 1.0)


@dataclass(frozen=True)
class LabelFits:
    """What judges labels.

    Attributes:
        sizes: (K,) labelled units of each class.
        mixed: See there.
        pool: Weights of the network and of the labels around.
        gain: Log-likelihood that wrong labels explain, of all labelled units.
        n_hat: Estimated number of wrong labels.
        witness: (2, m) label quality, and the probability that the label is wrong, which falls with it, where
            the network has learned the labels by heart (train); else None.
        alone: There the pool of the labels around alone; else None.
        limit: There the label quality up to which labels are suspected; else None.
    """

    sizes: NDArray[np.int64]
    mixed: Mixed
    pool: PoolState
    gain: float
    n_hat: int
    witness: NDArray[np.float64] | None = None
    alone: PoolState | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Fits:
    """The broadcast of the fourth round: all that is known of a pass but its units.

    Attributes:
        split: The pass.
        ground: Its space and cells.
        around: What the cells hold.
        estimator: The error estimator.
        own: What this split would hand to others.
        used: The thresholds it is judged by.
        density: k and m; rate and low are (J, 3), by cell and by what a unit adds itself.
        lows: (H, J, 3) lower bounds of the halves.
        frequent: (3, J, 3) upper bounds of the error rate among 8, 16 and 32 neighbours.
        state: Thresholds and risk curves of the halves.
        labels: What judges labels.
        regions: Where errors are dense.
        codes: What the diagnoses need.
    """

    split: RoundSplit
    ground: Ground
    around: Around
    estimator: Estimator
    own: Reference
    used: Thresholds
    density: Density
    lows: NDArray[np.float32]
    frequent: NDArray[np.float64]
    state: Halves
    labels: LabelFits
    regions: Regions
    codes: CodeFits


@dataclass(frozen=True)
class Placed:
    """A block in its space: coordinates, cells, and error probabilities, of each repeat too."""

    block: Block
    points: NDArray[np.float32]
    cell: NDArray[np.int32]
    proba: NDArray[np.float64]
    looks: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class Looked:
    """The labels around the units of a block, one line for each distinct pair of cell and own label."""

    view: Ambiguity
    close: NDArray[np.int32]
    near: NDArray[np.floating]
    where: NDArray[np.int64]


def look_around(block: Block, cell: NDArray[np.int32], around: Around, sizes: NDArray[np.int64]) -> Looked:
    """Count the labels around the units of a block."""
    n_class = len(sizes)
    own = np.where(block.known, block.labels, -1)
    pairs, where = np.unique(cell.astype(np.int64) * (n_class + 1) + own + 1, return_inverse=True)
    cells, labels = pairs // (n_class + 1), pairs % (n_class + 1) - 1

    def counted(k: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return around.label_counts(k, cells[rows], labels[rows])

    everyone = np.arange(len(pairs))
    view, wide = ambiguity_of(counted, sizes, everyone), counted(AMBIGUITY_KS[-1], everyone)
    near, where = smoothed(wide), where.reshape(-1)
    spread = Ambiguity(*(value[where] for value in vars(view).values()))
    return Looked(spread, close_classes(wide)[where], near, where)


def posterior(
    block: Block, looked: Looked, fits: LabelFits, n_class: int, workers: Workers
) -> LabelPosterior:
    """The label posterior of a block."""
    members = [log_softmax_member(block.logits), lambda rows: looked.near[looked.where[rows]]]
    labels = np.where(block.known, block.labels, -1)
    units = int(fits.sizes.sum())
    made = posterior_of(members, labels, block.folds[0], n_class, fits.pool, units, workers)
    if fits.alone is not None:
        alone = posterior_of(members[1:], labels, block.folds[0], n_class, fits.alone, units, workers)
        made = joined(made, alone, labels)
    wrong = made.wrong
    if fits.witness is not None:
        quality, level = fits.witness
        place = np.clip(np.searchsorted(quality, np.nan_to_num(made.given), side="right") - 1, 0, None)
        wrong = np.where(labels >= 0, level[place], 0).astype(np.float32)
    gain = made.gain if fits.alone is None else fits.gain
    return replace(made, wrong=wrong, n_hat=fits.n_hat, gain=gain, limit=fits.limit)


@dataclass(frozen=True)
class Judged:
    """The decisions about the units of a block; what `answer_columns` and `judged_columns` read."""

    answers: UnitAnswers
    errors: NDArray[np.int8]
    category: NDArray[np.int8]
    projected: NDArray[np.int8]
    membership: NDArray[np.float32]
    ambiguity: NDArray[np.float32]
    label_quality: NDArray[np.float32]
    region: NDArray[np.int32]
    looked: Looked
    replays: Replays
    posterior: LabelPosterior


def judge(placed: Placed, fits: Fits, workers: Workers) -> Judged:
    """Density, flags, categories and labels of a block, and how they come out on halves of the data."""
    block, cell, used = placed.block, placed.cell, fits.used
    mine, known = own_part(block), block.known
    kept = np.stack([halves.kept_groups(block.digests, half) for half in range(len(fits.lows))]) & known
    here = np.where(kept, mine, 2)
    lows = fits.lows[np.arange(len(fits.lows))[:, None], cell, here]
    rate, low = fits.density.rate[cell, mine], fits.density.low[cell, mine]
    steady = halves.steady_density(lows, fits.density, used)
    risk_low = fits.own.risk.lower_bound(placed.proba)
    looked = look_around(block, cell, fits.around, fits.labels.sizes)
    view = looked.view
    place = np.searchsorted(AMBIGUITY_KS, np.maximum(view.k, AMBIGUITY_KS[0]))
    frequent = np.where(view.k > 0, fits.frequent[place, cell, mine], 1.0)
    baseline = fits.estimator.baseline(block.scores.msp)
    flags = Flags(
        block.errors == 1,
        steady > used.t2,
        risk_low > used.t2,
        baseline <= used.t2,
        fits.labels.mixed.of(view) & (frequent >= view.a) & view.tie & (low <= view.explained),
        placed.proba <= used.t1,
    )
    dense = halves.dense_in(lows, fits.state)
    again = halves.score_halves(flags, dense, placed.looks, used, known, fits.state)
    replays = Replays(kept, dense, again)
    category = np.where(known, categories.categorise(flags), -1).astype(np.int8)
    found = posterior(block, looked, fits.labels, fits.split.n_class, workers)
    answers = UnitAnswers(
        prediction=block.scores.prediction,
        msp=block.scores.msp,
        error_proba=placed.proba,
        baseline_risk=baseline,
        risk_low=risk_low,
        density=Density(fits.density.k, fits.density.m, rate, steady),
        flags=flags,
        category=category,
        neighbours=None,
        close_classes=looked.close,
        points=placed.points,
    )
    return Judged(
        answers,
        block.errors,
        category,
        categories.projected(flags),
        replays.membership(category),
        view.a,
        found.given,
        fits.regions.of(block, placed.points, cell),
        looked,
        replays,
        found,
    )


def evidence(placed: Placed, judged: Judged, fits: Fits) -> Evidence:
    """What the diagnoses of a block read; what needs other units is looked up in `CodeFits` instead."""
    block, answers = placed.block, judged.answers
    return Evidence(
        labels=block.labels,
        prediction=block.scores.prediction,
        runner_up=block.scores.runner_up,
        errors=block.errors,
        msp=block.scores.msp,
        error_proba=placed.proba,
        baseline_risk=answers.baseline_risk,
        flags=answers.flags,
        category=judged.category,
        t1=fits.used.t1,
        t2=fits.used.t2,
        suspected=suspected_labels(
            judged.posterior, block.labels, block.errors, is_train=fits.split.is_train
        ),
        neighbours=judged.looked.view,
        layers=(judged.looked.view,),
        cells=CellEvidence(placed.cell, len(fits.regions.cells)),
        hashes=block.hashes,
        is_train=fits.split.is_train,
    )


def place(block: Block, fits: Fits, workers: Workers) -> Placed:
    """Coordinates, cells and error probabilities of a block."""
    points, cell = fits.ground.place(block.layers, workers)
    distance = fits.ground.distances(points, cell, workers)
    fixed = fixed_columns(block, fits.split.n_class, points, cell, distance, fits.around)
    proba, *looks = fits.estimator.score(block, fixed, cell, fits.around)
    return Placed(block, points, cell, proba, tuple(looks))


def score_kernel(batch: pa.RecordBatch, fits: Fits) -> tuple[pa.RecordBatch, Outcome]:
    """Fourth round: the rows of the unit table of a batch, and what they come to."""
    workers, split = Workers(1), fits.split
    units, _ = scalars_kernel(batch, split.context)
    block = split.read(batch, workers)
    placed = place(block, fits, workers)
    judged = judge(placed, fits, workers)
    found = diagnosed(
        evidence(placed, judged, fits), judged.replays, judged.posterior, judged.region, fits.codes
    )
    best = judged.posterior.best
    codes = suffixed_codes(judged.category, block.labels, block.scores.prediction, judged.looked.close, best)
    columns: Mapping[str, Any] = {
        **answer_columns(judged.answers, None),
        **judged_columns(judged),
        **diagnosis_columns(found),
        "suggested_label": best,
        "error_code": pa.array(codes.tolist(), pa.string()),
    }
    gap = placed.points - fits.ground.flat[placed.cell]
    return with_columns(units, columns), Outcome.of(
        block, judged, found, (gap * gap).sum(axis=1), len(fits.regions)
    )
