"""Dense cells of the feature space, merged along the neighbour graph; what regions are called and hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.cells import beta_quantile
from mld_core.evaluation.space.neighbourhood import CELL_SIZE
from mld_core.evaluation.statistics.kmeans import (
    TwoLevel,
    assign,
    fit_centroids,
    two_level_assign,
    two_level_centroids,
)
from mld_core.evaluation.statistics.significance import (
    benjamini_hochberg,
    binomial_upper,
    two_proportions_upper,
)

SMALLEST_CELL = 32
EDGE_SHARE = 0.05
MAX_CELLS = 4_096
TOP = 3


@dataclass(frozen=True)
class Region:
    """Connected cells with dense errors, or a failing component of the mixture.

    Attributes:
        region_id: Number, 0 = what tells most about the errors.
        n: Labelled units.
        errors: Wrong ones.
        rate: errors / n.
        rate_lo: 5 % quantile of Beta(errors + 1/2, n - errors + 1/2).
        p_value: One-sided binomial against the overall error rate.
        bh_sig: Significant after Benjamini-Hochberg over the regions.
        top_classes: Most frequent labels, at most 3.
        top_codes: Most frequent diagnoses, at most 3.
        medoid: Row of the unit nearest to the region's mean.
        label: "class pair @ metadata that differs most".
        membership: Share of its units, over halves of the data, that lie among dense errors.
    """

    region_id: int
    n: int
    errors: int
    rate: float
    rate_lo: float
    p_value: float
    bh_sig: bool
    top_classes: list[int]
    top_codes: list[str]
    medoid: int
    label: str
    membership: float | None = None


@dataclass(frozen=True)
class CellGrid:
    """The feature space cut into cells: `cell` (N,), `centroids` (J, D), and `levels` where there are two."""

    cell: NDArray[np.int32]
    centroids: NDArray[np.float32]
    levels: TwoLevel | None = None

    def cells_of(self, points: NDArray[np.float32], workers: Workers) -> NDArray[np.int32]:
        """(n,) cells of other points of the same space."""
        if self.levels is not None:
            return two_level_assign(points, self.levels, workers)
        return assign(points, self.centroids, workers)


def cut_cells(points: NDArray[np.float32], workers: Workers) -> CellGrid:
    """Cut a split into k-means cells of 256 units, of fewer (at least 32) where there are under 12,800."""
    size = int(np.clip(len(points) // 50, SMALLEST_CELL, CELL_SIZE))
    count = min(MAX_CELLS, max(1, len(points) // size))
    if count > 1_024:
        # One level of so many would cost more than all neighbours do.
        levels = two_level_centroids(points, count, workers)
        return CellGrid(two_level_assign(points, levels, workers), np.concatenate(levels[1]), levels)
    centroids = fit_centroids(points, count, workers)
    return CellGrid(assign(points, centroids, workers), centroids)


def dense_cells(
    cell: NDArray[np.int32], count: int, errors: NDArray[np.int8], t2: float
) -> NDArray[np.bool_]:
    """(J,) cells whose error rate is significantly above the threshold: 5 % Jeffreys quantile > t2."""
    known = errors >= 0
    n = np.bincount(cell[known], minlength=count).astype(np.float64)
    bad = np.bincount(cell[known], weights=errors[known] == 1, minlength=count)
    return np.asarray(beta_quantile(bad + 0.5, n - bad + 0.5) > t2)


def merge_cells(
    cell: NDArray[np.int32], dense: NDArray[np.bool_], neighbours: NDArray[np.int64]
) -> NDArray[np.int32]:
    """(J,) number of each dense cell's connected component along the neighbour graph, -1 for other cells.

    Two dense cells are joined where at least 5 % of the neighbours of one lie in the other.

    Args:
        cell: (N,) cells of the units.
        dense: (J,) which are dense.
        neighbours: (N, k) rows of each unit's neighbours, -1 where there are fewer.
    """
    parent = np.arange(len(dense))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = int(parent[one])
        return one

    rows = np.flatnonzero(dense[cell])
    near = neighbours[rows]
    target = np.where(near >= 0, cell[near], -1)
    source = np.broadcast_to(cell[rows][:, None], near.shape)[target >= 0].astype(np.int64)
    flat, count = np.unique(source * len(dense) + target[target >= 0], return_counts=True)
    total = np.bincount(source, minlength=len(dense))
    for pair, edges in zip(flat, count, strict=True):
        a, b = divmod(int(pair), len(dense))
        if a != b and dense[b] and edges >= EDGE_SHARE * total[a]:
            parent[root(a)] = root(b)
    made = np.full(len(dense), -1, np.int32)
    numbers: dict[int, int] = {}
    for one in np.flatnonzero(dense):
        made[one] = numbers.setdefault(root(int(one)), len(numbers))
    return made


def region_numbers(
    grid: CellGrid, neighbours: NDArray[np.int64], errors: NDArray[np.int8], t2: float
) -> NDArray[np.int32]:
    """(N,) region number of each unit, most errors above what the overall rate explains first; -1 outside."""
    dense = dense_cells(grid.cell, len(grid.centroids), errors, t2)
    component = merge_cells(grid.cell, dense, neighbours)[grid.cell]
    count = int(component.max(initial=-1)) + 1
    known = errors >= 0
    inside = known & (component >= 0)
    n = np.bincount(component[inside], minlength=count).astype(np.float64)
    bad = np.bincount(component[inside], weights=errors[inside] == 1, minlength=count)
    rate = float((errors[known] == 1).mean()) if known.any() else 0.0
    order = np.lexsort((np.arange(count), -(bad - n * rate)))
    numbers = np.empty(count + 1, np.int32)
    numbers[order], numbers[-1] = np.arange(count), -1
    return numbers[component]


def describe_regions(
    points: NDArray[np.float32],
    region: NDArray[np.int32],
    labels: NDArray[np.int64],
    prediction: NDArray[np.int64],
    errors: NDArray[np.int8],
    *,
    masks: Mapping[str, NDArray[np.bool_]] | None = None,
    metadata: pd.DataFrame | None = None,
    dense: NDArray[np.bool_] | None = None,
) -> list[Region]:
    """The table of regions.

    Args:
        points: (N, D) coordinates.
        region: (N,) region of each unit, -1 outside.
        labels: (N,) labels.
        prediction: (N,) predictions.
        errors: (N,) 1 wrong, 0 right, -1 unlabelled.
        masks: Code -> (N,) who carries it.
        metadata: The user's columns.
        dense: (halves, N) around whom halves of the data find dense errors, or None.
    """
    count = int(region.max(initial=-1)) + 1
    known = errors >= 0
    inside = known & (region >= 0)
    n = np.bincount(region[inside], minlength=count).astype(np.float64)
    bad = np.bincount(region[inside], weights=errors[inside] == 1, minlength=count)
    rate = float((errors[known] == 1).mean()) if known.any() else 0.0
    p_values = binomial_upper(bad, n, rate)
    flags = benjamini_hochberg(p_values)
    lows = beta_quantile(bad + 0.5, n - bad + 0.5)
    made, told = [], _coded(metadata)
    for number in range(count):
        rows = np.flatnonzero(region == number)
        made.append(
            Region(
                number,
                int(n[number]),
                int(bad[number]),
                float(bad[number] / max(n[number], 1)),
                float(lows[number]),
                float(p_values[number]),
                bool(flags[number]),
                _most_frequent(labels[rows]),
                _top_codes(rows, masks or {}),
                int(rows[((points[rows] - points[rows].mean(axis=0)) ** 2).sum(axis=1).argmin()]),
                region_name(rows, labels, prediction, errors, told),
                None if dense is None else float(dense[:, rows].mean()),
            )
        )
    return made


def _most_frequent(labels: NDArray[np.int64]) -> list[int]:
    values, count = np.unique(labels[labels >= 0], return_counts=True)
    return [int(values[place]) for place in np.lexsort((values, -count))[:TOP]]


def _top_codes(rows: NDArray[np.int64], masks: Mapping[str, NDArray[np.bool_]]) -> list[str]:
    count = {code: int(mask[rows].sum()) for code, mask in masks.items()}
    return [code for code in sorted(count, key=lambda code: (-count[code], code)) if count[code]][:TOP]


def region_name(
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    prediction: NDArray[np.int64],
    errors: NDArray[np.int8],
    told: list[_Coded],
) -> str:
    """The most frequent wrong (label, prediction) pair @ the metadata value most over-represented inside."""
    wrong = rows[errors[rows] == 1]
    pairs: Counter[tuple[Any, Any]] = Counter(
        zip(labels[wrong].tolist(), prediction[wrong].tolist(), strict=True)
    )
    name = "no errors"
    if pairs:
        (t, y), _ = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        name = f"{t}->{y}"
    where = _telling_value(rows, told)
    return name if where is None else f"{name} @ {where}"


@dataclass(frozen=True)
class _Coded:
    """A column of the metadata with 2 to 50 values.

    Attributes:
        name: The column.
        values: (V,) its values.
        codes: (N,) which of them each unit has, -1 = none.
        count: (V,) how many units have each.
    """

    name: Any
    values: Any
    codes: NDArray[np.int64]
    count: NDArray[np.float64]


def _coded(metadata: pd.DataFrame | None) -> list[_Coded]:
    made: list[_Coded] = []
    if metadata is None:
        return made
    for column in metadata:
        codes, values = pd.factorize(metadata[column], sort=True)
        if 2 <= len(values) <= 50:
            count = np.bincount(codes[codes >= 0], minlength=len(values)).astype(float)
            made.append(_Coded(column, values, codes, count))
    return made


def _telling_value(rows: NDArray[np.int64], told: list[_Coded]) -> str | None:
    """The "column=value" of the largest significant excess of a value's share inside over outside."""
    found: list[tuple[float, str]] = []
    p_values: list[float] = []
    for one in told:
        codes = one.codes[rows]
        here = np.bincount(codes[codes >= 0], minlength=len(one.values)).astype(float)
        there = one.count - here
        p = two_proportions_upper(
            here, np.full(len(here), here.sum()), there, np.full(len(there), there.sum())
        )
        excess = here / max(here.sum(), 1) - there / max(there.sum(), 1)
        p_values += p.tolist()
        found += [(float(gap), f"{one.name}={value}") for gap, value in zip(excess, one.values, strict=True)]
    passed = benjamini_hochberg(np.array(p_values))
    good = [entry for entry, ok in zip(found, passed, strict=True) if ok]
    return min(good, key=lambda entry: (-entry[0], entry[1]))[1] if good else None
