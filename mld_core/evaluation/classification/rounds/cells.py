"""The third round: every unit to its cell; what cells say of a unit without the unit itself.

Cells stand for neighbours as they do beyond five million units in memory (`space.neighbourhood.Cells`). Here
the counts of all units are tables of cells, so that a unit is looked up by its cell, and by what it adds to
the counts itself: a right unit, a wrong one, or one that is not among those counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis import halves
from mld_core.evaluation.analysis.stack_features import ERROR_KS, ONE_HOT_CLASSES
from mld_core.evaluation.classification.rounds.block import Block, RoundSplit
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space import space
from mld_core.evaluation.space.cells import AMBIGUITY_KS
from mld_core.evaluation.space.neighbourhood import (
    cell_distances,
    labels_without_own,
    near_cells,
    steps_of,
    without_own,
)
from mld_core.evaluation.statistics.folds import FOLDS
from mld_core.evaluation.statistics.kmeans import TwoLevel, two_level_assign, two_level_centroids

CELL_UNITS = 64
"""Labelled units for each cell, where there are not more of them than `MOST_CELLS` hold.

A quarter of what cells in memory hold: the nearest cells of so few units are more what neighbours are.
"""
FEWEST_CELLS = 50
"""Cells of a split of few units, as far as `FEWEST_DRAWN` allows.

Three stand for 32 neighbours: of five cells they would be most of all units.
"""
MOST_CELLS = 8_192
FEWEST_DRAWN = 12
"""Drawn units for each cell, on average: of fewer no centroid is known."""
TABLE = 2**23
"""Cells x classes, at most."""

RIGHT, WRONG, ABSENT = 0, 1, 2
"""What a unit adds to the counts of its cell."""
_OWN = np.array([0.0, 1.0, np.nan])


@dataclass(frozen=True)
class Ground:
    """The space and its cells.

    Attributes:
        space: Of the layers.
        centroids: Two levels of them.
        flat: (J, D) the lower level.
        near: (J, <= 9) nearest cells of each, itself first.
    """

    space: space.Space
    centroids: TwoLevel
    flat: NDArray[np.float32]
    near: NDArray[np.int32]

    @classmethod
    def of(cls, layers: dict[str, NDArray[Any]], units: int, n_class: int, workers: Workers) -> Ground:
        """Fit the space and its cells to a sample of `units` units."""
        fitted = space.fit_space(layers, workers)
        points = space.project(fitted, layers, workers)
        most = min(MOST_CELLS, TABLE // max(n_class, 1), len(points) // FEWEST_DRAWN)
        wanted = max(units // CELL_UNITS, FEWEST_CELLS)
        centroids = two_level_centroids(points, max(1, min(wanted, most)), workers)
        flat = np.concatenate(centroids[1])
        return cls(fitted, centroids, flat, near_cells(flat, workers))

    def place(
        self, layers: dict[str, NDArray[Any]], workers: Workers
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """(n, D) coordinates and (n,) cells of some units."""
        points = space.project(self.space, layers, workers)
        return points, two_level_assign(points, self.centroids, workers)

    def distances(
        self, points: NDArray[np.float32], cell: NDArray[np.int32], workers: Workers
    ) -> NDArray[np.float32]:
        """(n, 2) how far away the cells are."""
        return cell_distances(points, cell, self.near, self.flat, workers)


@dataclass
class CellTables:
    """Counts of cells; the last axis of (..., 2) is labelled units and wrong ones.

    Attributes:
        folds: (repeats, folds, J, 2).
        halves: (halves, J, 2) of the units each half keeps.
        labels: (J, K) labels.
        predictions: (J, K) predictions of labelled units.
        classes: (2, repeats, folds, K + 1, 2) of the predicted class and the runner-up, where there are too
            many for one column each; else without entries.
        stated: (J, 3) units, sum of the stated confidence less what was right, and of its variance.
    """

    folds: NDArray[np.int64]
    halves: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    classes: NDArray[np.int64]
    stated: NDArray[np.float64]

    @classmethod
    def empty(cls, split: RoundSplit, cells: int) -> CellTables:
        """The tables of no units."""
        repeats, wide = len(split.salts), split.n_class > ONE_HOT_CLASSES
        return cls(
            np.zeros((repeats, FOLDS, cells, 2), np.int64),
            np.zeros((halves.HALVES, cells, 2), np.int64),
            np.zeros((cells, split.n_class), np.int64),
            np.zeros((cells, split.n_class), np.int64),
            np.zeros((2, repeats, FOLDS, split.n_class + 1 if wide else 0, 2), np.int64),
            np.zeros((cells, 3)),
        )

    def merge(self, other: CellTables) -> CellTables:
        """Add `other` into this one."""
        for one in fields(self):
            mine = getattr(self, one.name)
            mine += getattr(other, one.name)
        return self

    @property
    def counts(self) -> NDArray[np.int64]:
        """(J, 2) labelled units and wrong ones."""
        return np.asarray(self.folds[0].sum(axis=0))


@dataclass(frozen=True)
class Asked:
    """The broadcast of the third round."""

    split: RoundSplit
    ground: Ground


def cells_kernel(batch: pa.RecordBatch, asked: Asked) -> tuple[None, CellTables]:
    """Third round: count the cells of a batch."""
    workers, split = Workers(1), asked.split
    block = split.read(batch, workers)
    cell = asked.ground.place(block.layers, workers)[1].astype(np.int64)
    made = CellTables.empty(split, len(asked.ground.flat))
    known = np.flatnonzero(block.known)
    cell, wrong, n_class = cell[known], block.errors[known] == 1, split.n_class
    for repeat, folds in enumerate(block.folds[:, known].astype(np.int64)):
        made.folds[repeat] = _pairs(folds * len(made.labels) + cell, wrong, made.folds.shape[1:3])
        if made.classes.shape[3]:
            for place, classes in enumerate((block.scores.prediction, block.scores.runner_up)):
                flat = folds * (n_class + 1) + classes[known] % (n_class + 1)
                made.classes[place, repeat] = _pairs(flat, wrong, made.classes.shape[2:4])
    for half in range(halves.HALVES):
        kept = halves.kept_groups(block.digests[known], half)
        made.halves[half] = _pairs(cell[kept], wrong[kept], (len(made.labels),))
    made.labels[:] = _table(cell, block.labels[known], made.labels.shape)
    made.predictions[:] = _table(cell, block.scores.prediction[known], made.labels.shape)
    msp = block.scores.msp[known]
    for column, weight in enumerate((np.ones(len(msp)), msp - ~wrong, msp * (1 - msp))):
        made.stated[:, column] = np.bincount(cell, weights=weight, minlength=len(made.stated))
    return None, made


def _table(cell: NDArray[np.int64], classes: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """(J, K) units of each cell and class, those of no class left out."""
    there = classes >= 0
    flat = cell[there] * shape[1] + classes[there]
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)


def _pairs(place: NDArray[np.int64], wrong: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """(*shape, 2) units and wrong ones at each place."""
    size = int(np.prod(shape))
    both = [np.bincount(place, minlength=size), np.bincount(place[wrong], minlength=size)]
    return np.stack(both, axis=-1).reshape(*shape, 2)


@dataclass(frozen=True)
class Around:
    """What the cells around a unit hold, looked up by cell; the broadcast of the fourth round.

    Attributes:
        folds: (R, F, J, 3, 2) units and wrong ones of each fold, among 8, 32 and 96 neighbours.
        everyone: (J, 3, 2) the same of all folds.
        means: (R, F) error rate of all other folds.
        counts: (J, 9, 2) units and wrong ones of ever more cells.
        halves: (H, J, 9, 2) the same of what each half keeps.
        labels: Entry of `AMBIGUITY_KS` -> (J, K) labels.
        same: (J, K) predictions among 32 neighbours.
        classes: As in `CellTables`.
    """

    folds: NDArray[np.float64]
    everyone: NDArray[np.float64]
    means: NDArray[np.float64]
    counts: NDArray[np.float64]
    halves: NDArray[np.float64]
    labels: dict[int, NDArray[np.float32]]
    same: NDArray[np.float32]
    classes: NDArray[np.int64]

    @classmethod
    def of(cls, tables: CellTables, near: NDArray[np.int32]) -> Around:
        """Sum the tables over ever more cells."""
        total = tables.folds.sum(axis=(1, 2))[:, None] - tables.folds.sum(axis=2)
        reach = [_step(k, near) for k in ERROR_KS]
        labels = {k: _over(tables.labels, near, k) for k in AMBIGUITY_KS}
        return cls(
            _wide(tables.folds, near)[:, :, :, reach],
            _wide(tables.counts, near)[:, reach],
            total[..., 1] / np.maximum(total[..., 0], 1),
            _wide(tables.counts, near),
            _wide(tables.halves, near),
            labels,
            _over(tables.predictions, near, AMBIGUITY_KS[-1]),
            tables.classes,
        )

    def reach(self, k: int) -> int:
        """Place of `k` neighbours among ever more cells."""
        return int(min(steps_of(k), self.counts.shape[1])) - 1

    def own(self, figures: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(J, 3) wrong units, and units, for a unit that adds a right one, a wrong one or nothing."""
        made = [without_own(figures[:, 1:], figures[:, :1], np.full(len(figures), value)) for value in _OWN]
        wrong, size = (np.concatenate([one[place] for one in made], axis=1) for place in (0, 1))
        return np.minimum(wrong, size), size  # nobody of a cell without right units adds one

    def label_counts(self, k: int, cell: NDArray[np.integer], own: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, K) labels among `k` neighbours of units that carry the label `own` themselves."""
        return labels_without_own(self.labels[k][cell], own, k)

    def same_share(
        self, cell: NDArray[np.integer], prediction: NDArray[np.int64], known: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """(n,) share of 32 neighbours with the unit's prediction."""
        there = prediction >= 0
        mine = (there & known).astype(np.float32)
        same = self.same[cell, np.maximum(prediction, 0)] - mine
        share = same / np.maximum(self.same.sum(axis=1)[cell] - mine, 1)
        return np.where(there, np.maximum(share, 0), 0).astype(np.float32)


def _step(k: int, near: NDArray[np.int32]) -> int:
    return int(min(steps_of(k), near.shape[1])) - 1


def _wide(table: NDArray[np.int64], near: NDArray[np.int32]) -> NDArray[np.float64]:
    """(..., J, 9, 2) sums of (..., J, 2) counts over ever more cells."""
    return np.cumsum(table[..., near, :], axis=-2, dtype=np.float64)


def _over(table: NDArray[np.int64], near: NDArray[np.int32], k: int) -> NDArray[np.float32]:
    made = np.zeros(table.shape, np.float64)
    for step in range(_step(k, near) + 1):
        made += table[near[:, step]]
    return made.astype(np.float32)


def own_part(block: Block) -> NDArray[np.int64]:
    """(n,) what each unit adds to the counts of its cell."""
    return np.where(block.errors < 0, ABSENT, np.where(block.errors == 1, WRONG, RIGHT))
