"""Slices along a direction of the feature space, which lie at one side of every cluster."""

import numpy as np
import pytest

from mld_core.evaluation.space.directions import failing_direction, fit_direction
from mld_core.evaluation.statistics.folds import key_hashes

N = 2_000


def clusters(seed, share=0.08, background=0.1):
    """Units of ten clusters, errors anywhere and at the far end of one direction, and who is there."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(10, 12)) * 2
    x = (centres[rng.integers(0, 10, N)] + rng.normal(size=(N, 12))).astype(np.float32)
    along = x @ rng.normal(size=12)
    hit = along > np.quantile(along, 1 - share)
    errors = rng.random(N) < np.where(hit, 0.7, background)
    return x, errors.astype(np.int8), hit


def f1(made, hit):
    return 2 * ((made >= 0) & hit).sum() / ((made >= 0).sum() + hit.sum())


def end_of(x, errors, seed=0):
    t2 = ((errors == 1).sum() + 1) / (len(errors) + 2)
    return failing_direction(x, errors, key_hashes(np.arange(len(x)), str(seed)), t2)


@pytest.mark.parametrize("seed", range(3))
def test_the_end_of_a_direction_is_found(seed):
    x, errors, hit = clusters(seed)
    assert f1(end_of(x, errors), hit) > 0.7


@pytest.mark.parametrize("seed", range(3))
def test_units_of_unknown_errors_belong_to_none_and_move_nothing(seed):
    x, errors, hit = clusters(seed)
    unknown = np.random.default_rng(seed).random(N) < 0.2
    made = end_of(x, np.where(unknown, np.int8(-1), errors))
    assert (made[unknown] == -1).all()
    assert f1(made[~unknown], hit[~unknown]) > 0.65


def test_errors_at_random_have_no_direction():
    told = 0
    for seed in range(10):
        x, errors, _ = clusters(seed)
        told += (end_of(x, np.random.default_rng(seed).permutation(errors), seed) >= 0).any()
    assert told == 0


@pytest.mark.parametrize(("rate", "t2"), [(0.7, 0.5), (0.5, 0.3)])
def test_nor_where_more_units_fail_than_are_tolerated(rate, t2):
    told = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, errors = rng.normal(size=(N, 5)).astype(np.float32), (rng.random(N) < rate).astype(np.int8)
        told += (failing_direction(x, errors, key_hashes(np.arange(N), str(seed)), t2) >= 0).any()
    assert told == 0


def test_a_direction_is_found_though_more_units_fail_than_are_tolerated():
    x, errors, hit = clusters(0)
    made = failing_direction(x, errors, key_hashes(np.arange(N), "0"), 0.05)
    assert f1(made, hit) > 0.7


def test_few_errors_and_units_that_are_all_alike_have_none():
    x, errors, _ = clusters(0)
    few = np.zeros(N, np.int8)
    few[:4] = 1
    assert (end_of(x, few) == -1).all()
    assert (end_of(x, np.ones(N, np.int8)) == -1).all()
    assert (end_of(np.zeros_like(x), errors) == -1).all()
    assert len(end_of(x[:0], errors[:0])) == 0


def test_the_slope_is_of_the_coordinates_as_they_are():
    x, errors, hit = clusters(0)
    moved = (100 * x + 7).astype(np.float32)
    one, two = (fit_direction(points, errors == 1) for points in (x, moved))
    ways = [points @ slope >= begin for points, (slope, begin) in ((x, one), (moved, two))]
    assert (ways[0] == ways[1]).mean() > 0.99
    assert (ways[0] & hit).sum() > 0.8 * hit.sum()
