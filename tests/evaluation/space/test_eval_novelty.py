"""Units unlike the train split."""

import numpy as np
import pytest

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.classification import auroc
from mld_core.evaluation.space.novelty import fit_novelty, novel_units, rather_novel, score_novelty


def clouds(rng, n, axes):
    """Six clouds; `axes` gives each coordinate its spread."""
    centres = np.random.default_rng(7).normal(size=(6, len(axes))) * 3
    return ((centres[rng.integers(0, 6, n)] + rng.normal(size=(n, len(axes)))) * axes).astype(np.float32)


AXES = np.linspace(2, 0.2, 24)


def flagged(units, train, groups=None):
    with Workers(2) as workers:
        return novel_units(units, train, groups, workers)


@pytest.mark.parametrize("seed", range(4))
def test_units_like_the_train_split_are_not_novel(seed):
    rng = np.random.default_rng(seed)
    assert flagged(clouds(rng, 600, AXES), clouds(rng, 800, AXES)).mean() <= 0.01


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["far", "near the middle", "permuted", "along the least axes"])
def test_units_of_another_kind_are_novel_and_few_others(seed, kind):
    rng = np.random.default_rng(seed)
    train, units = clouds(rng, 1_500, AXES), clouds(rng, 900, AXES)
    hit = rng.random(len(units)) < 0.1
    some = units[hit]
    if kind == "far":
        units[hit] = some * 3
    elif kind == "near the middle":
        units[hit] = train.mean(axis=0) + rng.normal(size=some.shape) * AXES * 0.7
    elif kind == "permuted":
        units[hit] = np.stack([row[rng.permutation(len(row))] for row in some])
    else:
        units[hit] = some + rng.normal(size=some.shape) * 1.5
    found = flagged(units, train)
    assert found[hit].mean() > 0.6
    assert hit[found].mean() > 0.7


def test_groups_are_held_back_as_a_whole():
    """Ten frames of each scene: units of new scenes are novel to frames, not to scenes."""
    rng = np.random.default_rng(0)

    def frames(count):
        return np.repeat(clouds(rng, count, AXES), 10, axis=0) + rng.normal(size=(count * 10, 24)) * 0.05

    train, units = frames(120).astype(np.float32), frames(60).astype(np.float32)
    scenes = np.repeat(np.arange(120), 10)
    assert flagged(units, train, scenes).mean() <= 0.02
    assert flagged(units, train).mean() > 0.5


def test_p_values_are_uniform_and_ignore_blocks_and_threads():
    rng = np.random.default_rng(3)
    train, units = clouds(rng, 4_000, AXES), clouds(rng, 3_000, AXES)
    with Workers(1) as one, Workers(2) as two:
        state, again = fit_novelty(train, None, one), fit_novelty(train, None, two)
    assert np.array_equal(state.joint, again.joint)
    p = score_novelty(state, units)
    assert np.abs(np.quantile(p, [0.05, 0.25, 0.5, 0.75]) - [0.05, 0.25, 0.5, 0.75]).max() < 0.04
    assert auroc(-score_novelty(state, units * 2), np.ones(3_000, bool)) is None


def test_too_few_train_units_say_nothing():
    rng = np.random.default_rng(0)
    assert not flagged(clouds(rng, 300, AXES) * 9, clouds(rng, 60, AXES)).any()
    assert not flagged(clouds(rng, 300, AXES) * 9, clouds(rng, 300, AXES), np.zeros(300, np.int64)).any()


def test_what_is_twice_as_frequent_is_flagged_where_it_is_no_chance():
    p = np.concatenate([np.full(60, 0.001), np.linspace(0.002, 1, 940)])
    assert rather_novel(p, 1_000).sum() >= 60
    assert not rather_novel(np.linspace(0.001, 1, 1_000), 1_000).any()
    assert not rather_novel(np.array([0.02, *np.linspace(0.05, 1, 19)]), 1_000).any()
    assert len(rather_novel(np.empty(0), 10)) == 0


def test_splits_without_anything_novel_stay_calm():
    """What is flagged and whether it is believed come from the same units: the test accounts for it."""
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        held, seen = np.sort(rng.normal(size=100)), rng.normal(size=200)
        p_values = (1 + len(held) - np.searchsorted(held, seen)) / (1 + len(held))
        alarms += bool(rather_novel(p_values, len(held)).any())
    assert alarms <= 0.05 * 200
