"""Regions of a pass in rounds: dense cells, failing components and the end of a failing direction.

Which of them there are, and which goes first where they overlap, is fitted to the sample; a unit is looked up
by its cell, its features and its label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.classification.rounds.block import Block
from mld_core.evaluation.classification.rounds.cells import CellTables
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.cells import beta_quantile
from mld_core.evaluation.space.directions import Direction, find_direction
from mld_core.evaluation.space.merged import first_regions, ranked_regions
from mld_core.evaluation.space.mixture import Components, fit_components, usable_units
from mld_core.evaluation.space.regions import SMALLEST_CELL


@dataclass(frozen=True)
class Regions:
    """What says of which region a unit is.

    Attributes:
        cells: (J,) region of dense cells that each cell is of, -1 outside.
        components: Failing ones of a mixture, None where there are none.
        direction: Along which errors grow more frequent, None where there is none.
        ranked: (way, its number) of each region; a unit is of the first that it belongs to.
    """

    cells: NDArray[np.int32]
    components: Components | None
    direction: Direction | None
    ranked: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.ranked)

    def of(self, block: Block, points: NDArray[np.float32], cell: NDArray[np.int32]) -> NDArray[np.int32]:
        """(n,) regions of some units, -1 outside.

        Args:
            block: The units.
            points: (n, D) their coordinates.
            cell: (n,) their cells.
        """
        return first_regions(self.ways(block, points, cell), self.ranked)

    def ways(
        self, block: Block, points: NDArray[np.float32], cell: NDArray[np.int32]
    ) -> list[NDArray[np.int64]]:
        """Of each way to look for regions the numbers of some units, -1 outside."""
        made = [self.cells[cell].astype(np.int64), *(np.full(len(cell), -1, np.int64) for _ in range(2))]
        if self.components is not None:
            usable = usable_units(block.labels, block.scores.prediction, block.errors)
            made[1] = self.components.of(points, block.labels, block.scores.prediction, usable)
        if self.direction is not None:
            made[2] = np.where(self.direction.inside(points, block.digests, block.known), 0, -1)
        return made


@dataclass(frozen=True)
class RegionSample:
    """The sample that regions are fitted to.

    Attributes:
        block: Its units.
        points: (n, D) their coordinates.
        cell: (n,) their cells.
        raw: (n,) how many units each stands for.
        thin: (n,) those that a draw regardless of errors would have.
        labels_tell: Whether a label says something of its unit alone.
    """

    block: Block
    points: NDArray[np.float32]
    cell: NDArray[np.int32]
    raw: NDArray[np.float64]
    thin: NDArray[np.bool_]
    labels_tell: bool


def fit_regions(
    drawn: RegionSample, tables: CellTables, near: NDArray[np.int32], t2: float, workers: Workers
) -> Regions:
    """The regions of a pass.

    Args:
        drawn: The sample.
        tables: Counts of all units.
        near: (J, <= 9) nearest cells of each, itself first.
        t2: Error rate that they must lie above.
        workers: Open pool.
    """
    block, rows = drawn.block, np.flatnonzero(drawn.thin)
    points, errors, digests = drawn.points[rows], block.errors[rows], block.digests[rows]
    components = fit_components(
        points,
        block.labels[rows],
        block.scores.prediction[rows],
        errors,
        digests,
        t2,
        tables.labels.shape[1],
        workers,
        by_label=drawn.labels_tell,
    )
    direction = find_direction(points, errors, digests, t2)
    found = Regions(dense_regions(tables, near, t2), components, direction, ())
    ways = found.ways(block, drawn.points, drawn.cell)
    ranked = tuple(ranked_regions(ways, block.errors, drawn.raw, parts=1))
    return Regions(found.cells, components, direction, ranked)


def dense_regions(tables: CellTables, near: NDArray[np.int32], t2: float) -> NDArray[np.int32]:
    """(J,) region of each cell, -1 where errors are not dense.

    Dense cells are joined to those of their two nearest cells that are dense too. A cell of fewer units than
    the smallest in memory is judged with as many of its nearest as hold those.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    around = np.cumsum(tables.counts[near], axis=1, dtype=np.float64)
    enough = np.argmax(
        np.append(around[:, :-1, 0], np.full((len(near), 1), np.inf), axis=1) >= SMALLEST_CELL, axis=1
    )
    size, wrong = around[np.arange(len(near)), enough].T
    dense = beta_quantile(wrong + 0.5, size - wrong + 0.5) > t2
    one = np.repeat(np.arange(len(near)), near[:, 1:3].shape[1])
    other = near[:, 1:3].ravel()
    both = dense[one] & dense[other]
    links = coo_matrix((np.ones(both.sum()), (one[both], other[both])), shape=(len(near), len(near)))
    component = connected_components(links, directed=False)[1]
    return np.where(dense, component, -1).astype(np.int32)
