"""The label posterior and the estimated number of wrong labels."""

import numpy as np
import pytest

from mld_core.evaluation.analysis.labels.quality import (
    fit_pool,
    label_posterior,
    log_softmax_member,
    pool,
    probability_member,
    probe_member,
    suspected_labels,
)
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.classification import auroc
from mld_core.evaluation.statistics.folds import assign_folds

N, K = 3_000, 5


@pytest.fixture(scope="module")
def noisy():
    """A good network, 5 % of the labels flipped."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, K, N)
    logits = rng.normal(size=(N, K))
    logits[np.arange(N), truth] += 5
    flipped = rng.random(N) < 0.05
    labels = np.where(flipped, (truth + 1) % K, truth).astype(np.int64)
    return logits, labels, flipped


def posterior_of(logits, labels, threads=2, members=None):
    with Workers(threads) as workers:
        folds = assign_folds(np.arange(len(labels)), "0")
        return label_posterior(
            members or [log_softmax_member(logits)], labels, folds, logits.shape[1], workers
        )


def test_flipped_labels_have_the_lowest_quality(noisy):
    logits, labels, flipped = noisy
    made = posterior_of(logits, labels)
    assert auroc(-made.given, flipped) > 0.99
    assert made.n_hat == pytest.approx(flipped.sum(), rel=0.25)
    errors = (logits.argmax(1) != labels).astype(np.int8)
    suspected = suspected_labels(made, labels, errors)
    assert flipped[suspected].mean() > 0.85
    assert suspected[flipped].mean() > 0.85
    assert (made.best[suspected] != labels[suspected]).all()


def test_clean_labels_are_hardly_suspected():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, K, N)
    logits = rng.normal(size=(N, K))
    logits[np.arange(N), truth] += 4
    assert posterior_of(logits, truth.astype(np.int64)).n_hat <= 0.025 * N


def test_a_model_that_knows_nothing_claims_no_wrong_label():
    rng = np.random.default_rng(3)
    made = posterior_of(rng.normal(size=(N, K)) * 2, rng.integers(0, K, N))
    assert made.n_hat == 0
    assert not made.wrong.any()


def test_a_witness_of_the_split_itself_counts_a_tenth():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 800)
    said = np.log(np.full((800, 3), 0.2))
    said[np.arange(800), labels] = np.log(0.6)
    echo = np.log(np.full((800, 3), 0.01))
    echo[np.arange(800), labels] = np.log(0.98)
    weights = fit_pool([said, echo], labels, [False, True]).weights
    assert weights[1] <= 0.1 * weights[0] + 1e-9
    assert fit_pool([said, echo], labels, [False, False]).weights[1] > weights[1]


def test_weights_are_the_maximum_and_not_negative():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 800)
    good = np.log(np.full((800, 3), 0.1))
    good[np.arange(800), labels] = np.log(0.8)
    noise = np.log(rng.dirichlet(np.ones(3), 800))
    found = fit_pool([good, noise], labels, [False, False])
    weights, share = found.weights, found.noise
    assert (weights >= 0).all()
    assert weights[0] > 10 * weights[1]

    def value(w):
        q = pool([good, noise], np.asarray(w))[np.arange(800), labels]
        return np.log((1 - share) * q + share / 3).mean()

    for step in ([0.2, 0], [-0.2, 0], [0, 0.2]):
        assert value(weights) >= value(np.maximum(weights + np.array(step), 0)) - 1e-5


def test_posterior_sums_to_one_and_ignores_threads(noisy):
    logits, labels, _ = noisy
    one, two = posterior_of(logits, labels, 1), posterior_of(logits, labels, 2)
    assert np.array_equal(one.given, two.given)
    assert np.array_equal(one.weights, two.weights)
    assert ((one.best_proba > 0) & (one.best_proba <= 1)).all()


def test_unlabelled_units_get_a_label_but_no_quality(noisy):
    logits, labels, _ = noisy
    some = labels.copy()
    some[:100] = -1
    made = posterior_of(logits, some)
    assert np.isnan(made.given[:100]).all()
    assert (made.best[:100] == logits[:100].argmax(1)).mean() > 0.95


def test_probe_and_given_probabilities_are_members(noisy):
    logits, labels, flipped = noisy
    folds = assign_folds(np.arange(N), "0")
    probe = probe_member(logits.astype(np.float32), labels, folds, K)
    rows = np.arange(50)
    assert np.allclose(np.exp(probe(rows)).sum(axis=1), 1, atol=1e-4)
    p = np.exp(log_softmax_member(logits)(np.arange(N)))
    made = posterior_of(logits, labels, members=[probability_member(p), probe])
    assert made.weights.shape == (5, 2)
    assert auroc(-made.given, flipped) > 0.98


def test_nonfinite_logits_say_nothing():
    logits = np.full((4, 3), np.nan)
    assert np.allclose(np.exp(log_softmax_member(logits)(np.arange(4))), 1 / 3)
