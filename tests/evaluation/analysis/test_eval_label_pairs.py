"""Labels of one class that were given to another, and models that confuse two classes by themselves."""

import numpy as np
import pytest

from mld_core.evaluation.analysis.labels.pairs import find_pairs, thins_out, true_odds
from mld_core.evaluation.analysis.labels.pool import fit_pool
from mld_core.evaluation.analysis.labels.quality import PoolState, posterior_of
from mld_core.evaluation.engine.executor import Workers

N, K = 1_500, 6


def said(seed, skill=3.5):
    """Log-probabilities of two witnesses that agree about as often as they are right, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, N)
    members = []
    for _ in range(2):
        z = rng.normal(size=(N, K))
        z[np.arange(N), truth] += skill
        members.append(1.5 * z - np.log(np.exp(1.5 * z).sum(axis=1, keepdims=True)))
    return members, truth, rng


def found(members, labels):
    own = [False] * len(members)
    return find_pairs(members, labels, own, fit_pool(members, labels, own, noise=False))[0]


def swapped(labels, rng, true, given, share):
    return np.where((labels == true) & (rng.random(N) < share), given, labels)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.25, 0.4])
def test_a_class_that_carries_the_labels_of_another_is_found(seed, share):
    members, truth, rng = said(seed)
    assert found(members, swapped(truth, rng, 2, 3, share)) == [(3, 2)]


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_found_one_after_the_other(seed):
    members, truth, rng = said(seed)
    labels = swapped(swapped(truth, rng, 2, 3, 0.4), rng, 0, 5, 0.3)
    assert set(found(members, labels)) == {(3, 2), (5, 0)}


@pytest.mark.parametrize("seed", range(3))
def test_right_labels_have_no_pair(seed):
    members, truth, _ = said(seed)
    assert found(members, truth) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lost", [5.0, 7.0])
def test_a_model_that_reads_one_class_as_another_is_no_reason_to_doubt_labels(seed, lost):
    """Both witnesses lean to 2 where 3 is the case: two or four in five of the 3s are read as 2."""
    members, truth, _ = said(seed)
    three = truth == 3
    for member in members:
        member[three, 2] += lost
        member[three] -= np.log(np.exp(member[three]).sum(axis=1, keepdims=True))
    assert found(members, truth) == []


def test_labels_that_thin_out_are_told_from_even_ones_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    likeness = np.arange(200.0)
    # A share of 0.4 that falls to none in step with the rank: rejected in at most one in twenty.
    thinning = [thins_out(likeness, rng.random(200) < 0.4 * (1 - likeness / 200)) for _ in range(400)]
    even = [thins_out(likeness, rng.random(200) < 0.2) for _ in range(400)]
    assert np.mean(np.array(thinning) <= 0.05) <= 0.08
    assert np.mean(np.array(even) <= 0.05) >= 0.95


def test_units_that_are_all_alike_say_nothing():
    assert thins_out(np.ones(50), np.arange(50) < 20) == 1.0
    assert thins_out(np.arange(50.0), np.zeros(50, bool)) == 1.0


def test_odds_of_a_pair_find_the_share_that_was_exchanged():
    rng = np.random.default_rng(0)
    true = rng.random(600) < 0.5
    odds = np.where(true, 4.0, -4.0) + rng.normal(size=600)
    carried = ~true | (rng.random(600) < 0.3)
    fitted = true_odds(odds[None], carried)
    assert ((fitted > 0) == true).mean() > 0.98


def test_a_pair_that_explains_every_wrong_label_leaves_the_weights_finite():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 60)
    sure = np.log(np.full((180, 3), 0.05))
    sure[np.arange(180), truth] = np.log(0.9)
    labels = np.where((truth == 2) & (rng.random(180) < 0.4), 1, truth)
    made = fit_pool([sure, sure + rng.normal(size=sure.shape) / 9], labels, [False, False], pairs=[(1, 2)])
    assert made.shares[0] == pytest.approx((labels != truth).sum() / 60, abs=0.03)
    assert made.weights.max() < 5


def test_where_a_pair_is_wrong_no_other_label_is():
    """0s called 1, and a network that reads half of the 2s as 0: those labels are right."""
    said = np.log(np.array([[0.98, 0.01, 0.01]] * 6))
    labels, folds = np.array([1, 1, 1, 2, 2, 2]), np.zeros(6, np.int8)
    factors = np.ones((3, 3), np.float32)
    factors[1, 0] = 6
    state = PoolState(np.ones((5, 1)), np.full(5, 0.2), (factors,) * 5, 1.0, ((1, 0),))
    with Workers(1) as workers:
        made = posterior_of([lambda rows: said[rows]], labels, folds, 3, state, 100.0, workers)
    assert (made.wrong[labels == 1] > 0.9).all()
    assert not made.wrong[labels == 2].any()
    assert made.n_hat == 3
