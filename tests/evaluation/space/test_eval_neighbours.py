"""The feature space and the neighbours in it."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space import lists
from mld_core.evaluation.space.lists import search_lists
from mld_core.evaluation.space.neighbourhood import Nearest, look, surroundings
from mld_core.evaluation.space.neighbours import make_base, search
from mld_core.evaluation.space.space import fit_space, project
from mld_core.evaluation.statistics.blocks import row_blocks
from mld_core.evaluation.statistics.kmeans import assign, fit_centroids, two_level_centroids


class Walk:
    """Vectors that can only be walked over, in pieces of an awkward size."""

    def __init__(self, values, piece=777):
        self.values, self.piece = values, piece

    @property
    def shape(self):
        return self.values.shape

    def blocks(self, rows):
        for start in range(0, len(self.values), self.piece):
            yield self.values[start : start + self.piece]


def brute(queries, base, k, query_groups, groups):
    distance = ((queries[:, None, :].astype(np.float64) - base[None, :, :]) ** 2).sum(2)
    distance[query_groups[:, None] == groups[None, :]] = np.inf
    return np.argsort(distance, axis=1, kind="stable")[:, :k]


def found_by(points, groups, k, threads, exact_limit=10**9):
    made = np.empty((len(points), k), np.int32)

    def keep(rows, found, _):
        made[rows] = found

    with Workers(threads) as workers:
        base = make_base(points, groups, workers, k=k, exact_limit=exact_limit)
        search(points, groups, base, k, keep, workers)
    return made, base


def test_exact_search_equals_brute_force_and_leaves_the_own_group_out():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(900, 8)).astype(np.float32)
    groups = np.arange(900) // 3
    found, _ = found_by(points, groups, 20, 2)
    assert (groups[found] != groups[:, None]).all()
    assert np.array_equal(found, brute(points, points, 20, groups, groups))


def test_search_by_lists_reaches_its_recall_and_says_so():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(60, 16)) * 3
    points = (centres[rng.integers(0, 60, 6_000)] + rng.normal(size=(6_000, 16))).astype(np.float32)
    groups = np.arange(6_000)
    exact, _ = found_by(points, groups, 32, 2)
    listed, base = found_by(points, groups, 32, 2, exact_limit=1_000)
    recall = np.mean([np.isin(exact[row], listed[row]).mean() for row in range(0, 6_000, 7)])
    assert base.lists is not None
    assert base.lists.recall >= 0.98
    assert recall >= 0.98


def test_units_of_small_groups_far_away_have_all_their_neighbours_by_lists():
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(60, 16)) * 3
    points = centres[rng.integers(0, 60, 6_000)] + rng.normal(size=(6_000, 16))
    far = np.arange(240) // 12
    points[:240] = rng.normal(size=(20, 16))[far] * 40 + rng.normal(size=(240, 16))
    points = points.astype(np.float32)
    groups = np.arange(6_000)
    exact, _ = found_by(points, groups, 32, 2)
    listed, _ = found_by(points, groups, 32, 2, exact_limit=1_000)
    assert (listed >= 0).all()
    recall = np.mean([np.isin(exact[row], listed[row]).mean() for row in range(240)])
    assert recall >= 0.9


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_units_of_sparse_places_have_their_neighbours_by_lists(share):
    # One ball in 16 directions inside a sparser one: the same distance is near in one and far in the other.
    rng = np.random.default_rng(7)
    sparse = rng.random(8_000) < share
    points = (rng.normal(size=(8_000, 16)) * np.where(sparse, 1.0, 0.3)[:, None]).astype(np.float32)
    groups = np.arange(8_000)
    exact, _ = found_by(points, groups, 32, 2)
    listed, _ = found_by(points, groups, 32, 2, exact_limit=1_000)
    recall = np.array([np.isin(exact[row], listed[row]).mean() for row in range(8_000)])
    assert recall.mean() >= 0.98
    assert recall[sparse].mean() >= 0.95


def test_units_of_a_shifted_split_have_their_neighbours_by_lists():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 24)) * 1.5
    points = (centres[rng.integers(0, 100, 12_000)] + rng.normal(size=(12_000, 24))).astype(np.float32)
    queries, found = points[:600] + np.float32(3), np.empty((600, 16), np.int32)
    with Workers(1) as workers:
        base = make_base(points, None, workers, k=16, exact_limit=1_000)
        search(queries, None, base, 16, lambda rows, near, _: found.__setitem__(rows, near), workers)
        exact = look(queries, None, make_base(points, None, workers), 16, workers).index
    assert np.mean([np.isin(exact[row], found[row]).mean() for row in range(600)]) >= 0.9


def test_memory_of_a_search_by_lists_does_not_grow_with_a_cell():
    # Half of the units are one and the same: their cell is as large as all others together.
    points = np.random.default_rng(6).normal(size=(60_000, 8)).astype(np.float32)
    points[::2] = 0
    with Workers(1) as workers:
        base = make_base(points, None, workers, k=16, exact_limit=1_000)
        largest = int(np.bincount(base.lists.cells).argmax())
        queries = points[base.lists.cells == largest][:400]
        tracemalloc.start()
        _, squared = search_lists(base.lists, queries, np.full(400, largest), 16, None, None)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (squared[~queries.any(axis=1)] == 0).all()
    assert most < 80 * 2**20


def test_limits_of_remote_units_let_through_as_few_as_those_of_others(monkeypatch):
    # One in fifty is ten times as far out: its cell and those around it hold a handful of sampled units.
    rng, k = np.random.default_rng(9), 16
    far = rng.random(20_000) < 0.02
    points = (rng.normal(size=(20_000, 8)) * np.where(far, 10.0, 1.0)[:, None]).astype(np.float32)
    rows, passed, keys_of = np.flatnonzero(far), 0, lists._Batch._keys

    def counted(batch, row, *values):
        nonlocal passed
        passed += len(row)
        return keys_of(batch, row, *values)

    monkeypatch.setattr(lists._Batch, "_keys", counted)
    with Workers(1) as workers:
        base = make_base(points, None, workers, k=k, exact_limit=1_000)
        search(points[rows], None, base, k, lambda *found: None, workers)
    assert passed < 32 * k * len(rows)


def test_queries_of_many_small_cells_are_looked_at_together(monkeypatch):
    points, calls, compare = np.random.default_rng(4).normal(size=(8_000, 8)), [], lists._Batch.compare
    monkeypatch.setattr(
        lists._Batch, "compare", lambda batch, *some: calls.append(len(some[1])) or compare(batch, *some)
    )
    _, base = found_by(points.astype(np.float32), np.arange(8_000), 16, 1, exact_limit=1_000)
    blocks = -(-8_000 // lists.BLOCK)
    assert len(base.lists.centroids) > 80
    assert len(calls) <= 2 * blocks * len(base.lists.centroids)
    assert np.mean(calls) > 300


def test_what_search_by_lists_found_stands_by_distance_however_often_it_is_thinned(monkeypatch):
    rng = np.random.default_rng(12)
    points = rng.integers(-3, 4, (4_000, 6)).astype(np.float32)
    groups = np.arange(4_000) // 3
    whole, base = found_by(points, groups, 24, 2, exact_limit=1_000)
    monkeypatch.setattr(lists, "_KEPT", 3_000)
    thinned, _ = found_by(points, groups, 24, 2, exact_limit=1_000)
    assert np.array_equal(whole, thinned)
    assert (whole >= 0).all()
    assert (groups[whole] != groups[:, None]).all()
    distance = ((points[whole] - points[:, None]) ** 2).sum(axis=2).astype(np.int64)
    assert (np.diff(distance, axis=1) >= 0).all()
    assert base.lists.block == lists.BLOCK


def test_queries_of_a_block_a_distance_and_a_row_fit_in_one_integer():
    one = lists.Lists(**dict.fromkeys(lists.Lists.__dataclass_fields__))
    for rows in (1, 2, 1_000, 2**23, 2**23 + 1, 2**27):
        some = dataclasses.replace(one, order=np.broadcast_to(np.int64(0), rows))
        assert 2**some.bits >= rows
        assert some.block * 2 ** (31 + some.bits) <= 2**64


@pytest.mark.parametrize("exact_limit", [10**9, 500])
def test_neighbours_do_not_depend_on_the_number_of_threads(exact_limit):
    rng = np.random.default_rng(3)
    points = rng.normal(size=(2_000, 12)).astype(np.float32)
    groups = np.arange(2_000) // 2
    one, _ = found_by(points, groups, 16, 1, exact_limit)
    two, _ = found_by(points, groups, 16, 2, exact_limit)
    assert np.array_equal(one, two)


def test_fewer_neighbours_than_asked_for_are_marked():
    points = np.arange(10, dtype=np.float32).reshape(5, 2)
    found, _ = found_by(points, np.array([0, 0, 1, 1, 1]), 8, 1)
    assert (found >= 0).sum(axis=1).tolist() == [3, 3, 2, 2, 2]


def test_space_of_a_stream_equals_the_space_of_an_array():
    rng = np.random.default_rng(4)
    first, second = (
        rng.normal(size=(9_000, 20)).astype(np.float32),
        rng.normal(size=(9_000, 6)).astype(np.float32) * 50,
    )
    with Workers(2) as workers:
        whole = fit_space({"a": first, "b": second}, workers)
        walked = fit_space({"a": Walk(first), "b": Walk(second, 1_234)}, workers)
        points = project(walked, {"a": Walk(first), "b": Walk(second)}, workers)
    assert np.array_equal(whole.pooled, walked.pooled)
    scaled = (np.concatenate([first, second], axis=1) - whole.mean) * whole.scale
    # Each layer counts the same: unit mean squared norm.
    assert np.allclose(
        [(scaled[:, :20] ** 2).sum(1).mean(), (scaled[:, 20:] ** 2).sum(1).mean()], 1, atol=1e-3
    )
    largest = np.abs(whole.pooled).argmax(axis=0)
    assert (whole.pooled[largest, np.arange(whole.pooled.shape[1])] > 0).all()
    assert np.allclose(np.var(points, axis=0)[:3], np.linalg.eigvalsh(np.cov(scaled.T))[::-1][:3], rtol=1e-2)


def test_space_of_many_units_is_that_of_a_sample_in_whatever_order_they_stand(monkeypatch):
    rng = np.random.default_rng(4)
    deep = rng.normal(size=(40_000, 6)) * [9, 7, 5, 3, 2, 1]
    values = (deep @ np.linalg.qr(rng.normal(size=(20, 6)))[0].T).astype(np.float32)
    values = values[np.argsort(values[:, 0])]
    with Workers(2) as workers:
        whole = fit_space({"a": Walk(values)}, workers)
        monkeypatch.setattr("mld_core.evaluation.space.space.FIT_UNITS", 4_000)
        sampled = fit_space({"a": Walk(values)}, workers)
    assert not np.array_equal(whole.pooled, sampled.pooled)
    assert np.abs(whole.pooled[:, :6].T @ sampled.pooled[:, :6]).diagonal().min() > 0.98
    assert sampled.scale == pytest.approx(whole.scale, rel=0.03)


def test_an_overflow_does_not_erase_the_space():
    values = np.random.default_rng(5).normal(size=(300, 4)).astype(np.float16)
    values[3, 1], values[4, 2] = np.inf, np.nan
    blocks = np.concatenate(list(row_blocks(values, 64)))
    assert np.isfinite(blocks).all()
    assert blocks[3, 1] == 65_504
    with Workers(1) as workers:
        assert np.isfinite(fit_space({"a": values}, workers).pooled).all()


def test_missing_layer_is_told_with_both_widths():
    values = np.zeros((10, 4), np.float32)
    with Workers(1) as workers:
        space = fit_space({"a": values}, workers)
        with pytest.raises(ValueError, match="width 3 here and 4"):
            project(space, {"a": values[:, :3]}, workers)


def test_centroids_do_not_depend_on_the_number_of_threads():
    points = np.random.default_rng(6).normal(size=(5_000, 8)).astype(np.float32)
    made = []
    for threads in (1, 2):
        with Workers(threads) as workers:
            centroids = fit_centroids(points, 40, workers)
            made.append((centroids, assign(points, centroids, workers)))
    assert np.array_equal(made[0][0], made[1][0])
    assert np.array_equal(made[0][1], made[1][1])


def test_cells_in_two_levels_do_not_depend_on_the_order_of_rows():
    # Four views in turn: a sample of every fourth row would know one of them.
    rng = np.random.default_rng(8)
    view = np.arange(20_000) % 4
    points = rng.normal(size=(20_000, 4)).astype(np.float32)
    points[:, 0] += view * 12
    with Workers(2) as workers:
        centroids = np.concatenate(two_level_centroids(points, 75, workers)[1])
        cells = assign(points, centroids, workers)
    used = [len(np.unique(cells[view == one])) for one in range(4)]
    assert min(used) >= 10
    assert np.bincount(cells).max() < 2_000


def test_cells_count_halves_as_they_count_each_alone():
    rng = np.random.default_rng(9)
    points = rng.normal(size=(4_000, 4)).astype(np.float32)
    base = np.flatnonzero(rng.random(4_000) < 0.9)
    wrong, kept = rng.random(len(base)) < 0.2, rng.random((3, len(base))) < 0.5
    rows = rng.permutation(4_000)[:700]
    with Workers(1) as workers:
        around = surroundings(points, None, base, workers, cell_limit=1_000).around
        bad, size = around.within(wrong, kept, 32)(rows)
        for half in range(3):
            total, count = around.sums(np.where(kept[half], wrong, np.nan), (32,), rows)
            assert np.array_equal(bad[half], total[:, 0])
            assert np.array_equal(size[half], count[:, 0])


def test_cells_agree_with_neighbours_about_dense_errors():
    rng = np.random.default_rng(7)
    points = rng.normal(size=(20_000, 4)).astype(np.float32)
    errors = (rng.random(20_000) < np.where(points[:, 0] > 1, 0.8, 0.05)).astype(np.float32)
    groups = np.arange(20_000)
    with Workers(2) as workers:
        near = surroundings(points, groups, groups, workers)
        cells = surroundings(points, groups, groups, workers, cell_limit=1_000)
        a, n = near.around.sums(errors, (128,))
        b, m = cells.around.sums(errors, (8,))
        labels = (points[:, 0] > 1).astype(np.int64)
        counts = cells.around.label_counts(labels, 2, 8, np.arange(20_000))
    assert (near.method, cells.method) == ("exact", "cells")
    assert np.corrcoef(a[:, 0] / n[:, 0], b[:, 0] / m[:, 0])[0, 1] > 0.8
    assert (counts.sum(axis=1) <= 8 + 1e-3).all()
    assert counts[labels == 1, 1].mean() > 5 * counts[labels == 0, 1].mean()


def test_blocks_of_rows_share_what_is_counted_of_cells(monkeypatch):
    # Counting anew for each block would cost blocks x units: at ten million an hour of nothing else.
    n = 40_000
    points = np.random.default_rng(8).normal(size=(n, 4)).astype(np.float32)
    labels, weights = np.arange(n) % 10, np.full((n, 10), 0.1, np.float32)
    kept, counted = np.ones((20, n), bool), np.bincount
    with Workers(1) as workers:
        around = surroundings(points, None, np.arange(n), workers, cell_limit=1_000).around
    calls, longest = 0, 0

    def watched(values, *given, **named):
        nonlocal calls, longest
        calls, longest = calls + 1, max(longest, len(values))
        return counted(values, *given, **named)

    monkeypatch.setattr(np, "bincount", watched)
    whole = around.label_counts(labels, 10, 32, np.arange(n))
    soft = around.mixed_counts(weights, 32, np.arange(n))
    assert (calls, longest) == (1, n)
    tracemalloc.start()
    within = around.within(labels == 3, kept, 32)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for start in range(0, n, 2_000):
        rows = np.arange(start, start + 2_000)
        assert np.array_equal(around.label_counts(labels, 10, 32, rows), whole[rows])
        assert np.array_equal(around.mixed_counts(weights, 32, rows), soft[rows])
        within(rows)
    most = tracemalloc.get_traced_memory()[1] - held
    tracemalloc.stop()
    assert calls == 1 + 2 * len(kept)
    # The figures of 156 cells and the errors themselves; a float for each unit and half would be 6.4 MB.
    assert held < 5 * n
    # A block of 2,000 rows x 20 halves is 0.3 MB.
    assert most < 1.2 * 2**20


def test_labels_around_a_unit_are_those_of_its_neighbours_and_cost_no_copy_of_all():
    n, rng = 20_000, np.random.default_rng(10)
    labels, weights = rng.integers(-1, 50, n), rng.random((n, 50), np.float32)
    index = rng.integers(-1, n, (n, 32)).astype(np.int32)
    rows = rng.permutation(n)[:2_000]
    with Workers(1) as workers:
        around = Nearest(index, np.empty((n, 2), np.float32), workers)
        tracemalloc.start()
        counts, mixed = around.label_counts(labels, 50, 16, rows), around.mixed_counts(weights, 16, rows)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    for place, row in enumerate(rows[:200]):
        near = index[row, :16][index[row, :16] >= 0]
        assert counts[place].tolist() == [(labels[near] == label).sum() for label in range(50)]
        assert np.allclose(mixed[place], weights[near].sum(axis=0), rtol=1e-5)
    assert most < weights.nbytes


def test_sums_skip_units_that_are_not_there():
    points = np.arange(6, dtype=np.float32)[:, None]
    with Workers(1) as workers:
        around = look(points, np.arange(6), make_base(points, np.arange(6), workers), 5, workers)
        total, count = around.sums(np.array([1, np.nan, 1, 1, 0, 0]), (2, 8))
    # Unit 0: of 1, 2, 3, 4, 5 the first is missing.
    assert total[0].tolist() == [2, 2]
    assert count[0].tolist() == [2, 4]
