"""Classes that a model reads as others, beside labels that are any label at all."""

import numpy as np
import pytest

from mld_core.evaluation.analysis.labels.confusions import find_confusions, stays_even
from mld_core.evaluation.analysis.labels.pool import fit_pool, handed_on
from mld_core.evaluation.analysis.labels.quality import label_posterior
from mld_core.evaluation.engine.executor import Workers

N, K = 1_500, 6


def said(seed):
    """Two witnesses that take every 3 for a 2, neighbours of the split itself that know it, and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, N)
    made = []
    for read in (np.where(truth == 3, 2, truth),) * 2 + (truth,):
        z = rng.normal(size=(N, K))
        z[np.arange(N), read] += 4
        made.append(1.5 * z - np.log(np.exp(1.5 * z).sum(axis=1, keepdims=True)))
    return made[:2], made[2], truth, rng


def posterior(members, around, labels):
    folds = np.arange(N).astype(np.int8) % 5
    asked = [lambda rows, one=one: one[rows] for one in (*members, around)]
    with Workers(1) as workers:
        return label_posterior(asked[:2], labels, folds, K, workers, around=asked[2])


@pytest.mark.parametrize("seed", range(3))
def test_right_labels_of_a_class_that_the_model_never_says_are_no_wrong_ones(seed):
    members, around, truth, _ = said(seed)
    right, wrong = (fit_pool(members, truth, [False, False], noise=noise).value for noise in (False, True))
    assert (wrong - right) * N > 50  # Any label at all explains them far better.
    assert posterior(members, around, truth).n_hat == 0


@pytest.mark.parametrize("seed", range(3))
def test_beside_such_a_class_wrong_labels_of_any_kind_are_found(seed):
    members, around, truth, rng = said(seed)
    hit = rng.random(N) < 0.08
    labels = np.where(hit, (truth + rng.integers(1, K, N)) % K, truth)
    made = posterior(members, around, labels)
    flagged = (made.best != labels) & (made.wrong > 0.5)
    assert flagged[truth == 3].sum() < 0.2 * (truth == 3).sum()
    others = truth != 3
    assert hit[flagged & others].mean() > 0.9
    assert flagged[hit & others].mean() > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_wrong_labels_of_any_kind_are_no_confusion(seed):
    members, around, truth, rng = said(seed)
    shown = truth != 3
    labels = np.where(rng.random(N) < 0.1, (truth + rng.integers(1, K, N)) % K, truth)[shown]
    values, near = [member[shown] for member in members], around[shown]
    assert find_confusions(values, labels, [False, False], near)[0] == []


def test_even_labels_are_called_thinning_at_most_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    for rank in (np.arange(200.0), np.minimum(np.arange(200.0), 40)):
        for share in (0.05, 0.2, 0.8):
            even = [stays_even(rank, rng.random(200) < share) for _ in range(400)]
            assert np.mean(np.array(even) <= 0.05) <= 0.05
    thinning = [
        stays_even(np.arange(200.0), rng.random(200) < 0.4 * (1 - np.arange(200) / 200)) for _ in range(400)
    ]
    assert np.mean(np.array(thinning) <= 0.05) > 0.8


def test_most_labels_of_the_other_class_are_judged_by_those_that_are_left():
    rng = np.random.default_rng(0)
    rank = np.arange(300.0)
    assert stays_even(rank, rng.random(300) > 0.4 * rank / 300) < 0.01
    assert stays_even(rank, rng.random(300) < 0.8) > 0.05


def test_units_that_are_all_alike_say_nothing():
    assert stays_even(np.ones(50), np.arange(50) < 20) == 1.0
    assert stays_even(np.arange(50.0), np.zeros(50, bool)) == 1.0


def test_what_a_class_hands_on_is_never_more_than_it_has():
    q = handed_on(np.array([[0.0, 0.0, 1.0]]), [(0, 2), (1, 2)], np.array([[0.7, 0.6]]))
    assert (q >= 0).all()
    assert q.sum() == pytest.approx(1)
