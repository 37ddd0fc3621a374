"""The nearest of a block of queries, and what is counted among them: against a full sort and plain loops."""

import tracemalloc

import numpy as np
import pytest

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space import selection
from mld_core.evaluation.space.neighbourhood import Nearest
from mld_core.evaluation.space.selection import Coded, LeftOut, Members, Points, select, squared_norms


def sorted_fully(queries, points, k, out=None):
    distance = (queries * np.float32(-2)) @ points.T
    distance += squared_norms(points)
    if out is not None:
        distance[out] = np.inf
    order = np.lexsort((np.broadcast_to(np.arange(len(points)), distance.shape), distance), axis=1)[:, :k]
    return np.where(np.isfinite(np.take_along_axis(distance, order, axis=1)), order, -1)


def of(points):
    return Points.of(points, squared_norms(points))


def test_labels_around_are_counted_in_little_memory():
    rng = np.random.default_rng(3)
    index, labels = rng.integers(-1, 500, (60_000, 32), np.int32), rng.integers(-1, 3, 500)
    rows = rng.permutation(60_000)
    tracemalloc.start()
    counts = Nearest(index, np.zeros((60_000, 2), np.float32), None).label_counts(labels, 3, 24, rows)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    near = np.where(index >= 0, labels[index], -1)[rows, :24]
    assert np.array_equal(counts, np.stack([(near == label).sum(axis=1) for label in range(3)], axis=1))
    assert most < 8 * 2**20


@pytest.mark.parametrize("kind", ["scattered", "in order", "few values", "all one"])
def test_selection_equals_a_full_sort(kind):
    rng = np.random.default_rng(0)
    points = rng.integers(-40, 40, (9_000, 8)).astype(np.float32)
    if kind == "in order":
        points = points[np.argsort(points[:, 0])]
    elif kind == "few values":
        points = points[rng.integers(0, 40, 9_000)]
    elif kind == "all one":
        points[:] = 3
    found, squared = select(points[:200], of(points), 24)
    assert np.array_equal(found, sorted_fully(points[:200], points, 24))
    offset = points[:200, None, :] - points[found]
    assert np.allclose(squared, (offset**2).sum(axis=2), atol=1e-2)


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 9, 15, 16, 40])
def test_few_points_and_few_neighbours(k, width):
    points = np.random.default_rng(4).integers(-40, 40, (width, 3)).astype(np.float32)
    found, _ = select(points, of(points), k)
    assert np.array_equal(found[:, :width], sorted_fully(points, points, k))


@pytest.mark.parametrize("size", [1, 7, 2_500, 9_000])
def test_own_group_is_left_out_whatever_its_size(size):
    rng = np.random.default_rng(1)
    points = rng.integers(-40, 40, (9_000, 8)).astype(np.float32)
    groups = np.arange(9_000) // size
    members = Members.of(groups)
    inside = np.sort(rng.permutation(9_000)[:6_000])
    for rows in (None, inside):
        some, codes = (points, groups) if rows is None else (points[rows], groups[rows])
        dropped = members.left_out(groups[:200], rows)
        found, squared = select(points[:200], of(some), 24, dropped)
        wanted = sorted_fully(points[:200], some, 24, groups[:200, None] == codes)
        assert np.array_equal(found, wanted)
        assert np.array_equal(np.isinf(squared), wanted < 0)
    assert isinstance(members.left_out(groups[:200], None), LeftOut if size < 1_000 else Coded)


def test_memory_of_a_selection_does_not_grow_with_the_points():
    rng = np.random.default_rng(2)
    most = []
    for count in (60_000, 240_000):
        # One in two is one and the same point: every limit lets through far too many.
        points = rng.normal(size=(count, 8)).astype(np.float32)
        points[::2] = 0
        everyone = of(points)
        tracemalloc.start()
        select(points[: selection.ROWS], everyone, 64)
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert most[1] < 1.5 * most[0]
    assert most[1] < 64 * 2**20


def test_counts_equal_plain_loops():
    rng = np.random.default_rng(3)
    index = rng.integers(-1, 300, (500, 128)).astype(np.int32)
    values = rng.integers(0, 2, 300).astype(np.float32)
    values[rng.random(300) < 0.3] = np.nan
    rows = rng.permutation(500)[:200]
    kept = rng.random((6, 300)) < 0.5
    with Workers(2) as workers:
        around = Nearest(index, np.zeros((500, 2), np.float32), workers)
        total, count = around.sums(values, (8, 96, 128), rows)
        everyone, size = around.sums(np.nan_to_num(values), (8, 128))
        with pytest.raises(ValueError, match="counts"):
            around.sums(np.full(300, 0.5), (8,))
        bad, seen = around.within(values == 1, kept, 32)(rows)
    for place, row in enumerate(rows):
        near = index[row][index[row] >= 0]
        there = values[near][np.isfinite(values[near])]
        assert total[place].tolist() == [there[:k].sum() for k in (8, 96, 128)]
        assert count[place].tolist() == [min(k, len(there)) for k in (8, 96, 128)]
        assert everyone[row].tolist() == [np.nan_to_num(values)[near[:k]].sum() for k in (8, 128)]
        assert size[row].tolist() == [min(k, len(near)) for k in (8, 128)]
        first = index[row, :32][index[row, :32] >= 0]
        assert seen[:, place].tolist() == kept[:, first].sum(axis=1).tolist()
        assert bad[:, place].tolist() == (kept[:, first] & (values[first] == 1)).sum(axis=1).tolist()
