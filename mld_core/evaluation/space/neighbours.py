"""Nearest neighbours under L2 with a unit's own group left out.

Up to 200,000 base points the search is exact. Beyond that the base is an inverted file (`lists`): queries
look as far around as holds 0.98 of the neighbours of 500 exactly searched ones, and at four times as many
units as are wanted. All of it is numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.lists import Lists, build_lists, search_lists
from mld_core.evaluation.space.selection import ROWS, Dropped, Members, Points, select, squared_norms
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.kmeans import assign

EXACT_LIMIT = 200_000

Consumer = Callable[[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]], None]
"""Called with rows (q,), neighbours (q, k) by rising distance, -1 = none, and squared distances (q, k)."""


@dataclass(frozen=True)
class Base:
    """The points neighbours are taken from.

    Attributes:
        points: (M, D) float32 coordinates.
        norms: (M,) float32 squared norms.
        groups: (M,) int64 codes, or None where nothing is left out.
        lists: The inverted file, or None for an exact search.
    """

    points: NDArray[np.float32]
    norms: NDArray[np.float32]
    groups: NDArray[np.int64] | None
    lists: Lists | None = None

    @cached_property
    def everyone(self) -> Points:
        """All points, as a block of queries is compared with them."""
        return Points.of(self.points, self.norms)

    @cached_property
    def members(self) -> Members | None:
        """Who is of which group."""
        return None if self.groups is None else Members.of(self.groups)

    def regrouped(self, groups: NDArray[np.int64] | None) -> Base:
        """The same points with other group codes."""
        return replace(self, groups=groups)


def make_base(
    points: NDArray[np.float32],
    groups: NDArray[np.int64] | None,
    workers: Workers,
    *,
    k: int = 128,
    exact_limit: int = EXACT_LIMIT,
) -> Base:
    """Prepare points for searches of up to `k` neighbours; beyond `exact_limit` with an inverted file."""
    base = Base(points, squared_norms(points), groups)
    if len(points) <= exact_limit:
        return base

    def exact(rows: NDArray[np.int64], k: int) -> NDArray[np.int32]:
        return _nearest(points[rows], None if groups is None else groups[rows], base, k)[0]

    return replace(base, lists=build_lists(points, groups, exact, k, workers))


def search(
    queries: NDArray[np.float32],
    query_groups: NDArray[np.int64] | None,
    base: Base,
    k: int,
    consume: Consumer,
    workers: Workers,
) -> None:
    """Find the `k` nearest base points of every query and hand them to `consume`, block by block.

    Args:
        queries: (N, D) float32 coordinates.
        query_groups: (N,) codes in the naming of `base.groups`; neighbours of the same code are left out.
        base: From `make_base`.
        k: How many neighbours.
        consume: Called from several threads, with every row once.
        workers: Open pool.
    """
    lists = base.lists
    codes = None if base.groups is None or lists is None else base.groups[lists.order]

    def one(task: tuple[NDArray[np.int64], NDArray[np.int32] | None]) -> None:
        rows, cells = task
        groups = None if query_groups is None else query_groups[rows]
        if lists is None or cells is None:
            consume(rows, *_nearest(queries[rows], groups, base, k))
        else:
            found, squared = search_lists(lists, queries[rows], cells, k, groups, codes)
            consume(rows, found.astype(np.int32), squared)

    workers.each(one, _tasks(queries, base, workers))


def _tasks(
    queries: NDArray[np.float32], base: Base, workers: Workers
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32] | None]]:
    """Blocks of query rows with the cells they lie in."""
    if base.lists is None:
        everyone = np.arange(len(queries))
        for span in spans(len(queries), ROWS):
            yield everyone[span], None
        return
    same = queries is base.points
    cells = base.lists.cells if same else assign(queries, base.lists.centroids, workers)
    order = np.argsort(_turns(base.lists.near)[cells], kind="stable")
    for span in spans(len(order), base.lists.block):
        yield order[span], cells[order[span]]


def _turns(near: NDArray[np.int32]) -> NDArray[np.int64]:
    """(J,) turn of each cell on a walk to the nearest one left: cells of a block look into the same."""
    turn, here = np.full(len(near), -1), 0
    for one in range(len(turn)):
        turn[here] = one
        here = int(near[here][np.argmax(turn[near[here]] < 0)])
    return turn


def _nearest(
    queries: NDArray[np.float32], groups: NDArray[np.int64] | None, base: Base, k: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `k` nearest of all base rows by rising distance, then row."""
    dropped: Dropped = None
    if groups is not None and base.members is not None:
        dropped = base.members.left_out(groups, None)
    columns, values = select(queries, base.everyone, k, dropped)
    return columns.astype(np.int32), values
