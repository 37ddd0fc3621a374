"""Which labels get mistaken for which."""

import numpy as np
import pytest

from mld_core.evaluation.analysis.labels.quality import fit_posterior, judged_labels
from mld_core.evaluation.analysis.labels.swaps import fit_swaps, of_pairs, swapped_share

N, K = 3_000, 6


def evidence(seed, flip):
    """Posteriors of a model that is not sure of itself, and labels after a flip."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, K)) * 1.5
    truth = rng.integers(0, K, N)
    logits[np.arange(N), truth] += 3
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    drawn = (q.cumsum(axis=1) > rng.random((N, 1))).argmax(axis=1)
    return q, flip(drawn, rng)


def paired(q, labels, noise):
    found = fit_swaps(q, labels, noise)
    return of_pairs(found.counts, found.expected)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.05])
def test_without_a_structure_all_swaps_are_as_frequent(seed, share):
    def any_label(labels, rng):
        return np.where(rng.random(N) < share, rng.integers(0, K, N), labels)

    assert not paired(*evidence(seed, any_label), max(share, 1e-6))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_swap_that_is_frequent_stands_out_and_takes_the_blame(seed):
    def two_to_three(labels, rng):
        return np.where((labels == 2) & (rng.random(N) < 0.3), 3, labels)

    q, labels = evidence(seed, two_to_three)
    assert paired(q, labels, 0.05)
    factors = fit_swaps(q, labels, 0.05).factors
    assert factors.argmax() == 3 * K + 2
    assert np.array_equal(np.diag(factors), np.ones(K))
    # Equal evidence against both labels: 3 may well have been a 2, 4 hardly a 1.
    doubt = np.full((2, K), 0.01)
    doubt[[0, 1], [2, 1]], doubt[[0, 1], [3, 4]] = 0.5, 0.46
    quality, wrong = judged_labels(doubt, np.array([3, 4]), 0.05, factors)
    assert quality[0] < quality[1]
    assert wrong[0] > 2 * wrong[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_classes_that_the_model_itself_confuses_are_no_swap_beside_labels_of_any_kind(seed):
    """A model sees 5 in a third of the 4s; of all labels three in twenty are any label."""

    def any_label(labels, rng):
        return np.where(rng.random(N) < 0.15, rng.integers(0, K, N), labels)

    q, labels = evidence(seed, any_label)
    seen = (labels == 4) & (np.random.default_rng(seed + 9).random(N) < 0.33)
    q[seen] = 0.02
    q[seen, 5], q[seen, 4] = 0.86, 0.06
    q /= q.sum(axis=1, keepdims=True)
    assert not paired(q, labels, 0.15)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_folds_agree_whether_pairs_hold_most_of_the_wrong_labels(seed):
    """Three pairs of ten classes and labels of any kind, about as many of each: what a fold sees may tip it."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 10, 6_000)
    logits = rng.normal(size=(6_000, 10))
    logits[np.arange(6_000), truth] += 3
    p = np.exp(1.5 * logits)
    labels = truth.copy()
    for one, other in ((0, 1), (2, 3), (4, 5)):
        labels[(truth == one) & (rng.random(6_000) < 0.3)] = other
    stray = rng.random(6_000) < 0.1
    labels[stray] = rng.integers(0, 10, stray.sum())
    folds = np.random.default_rng(99).integers(0, 5, 6_000).astype(np.int8)
    state = fit_posterior([np.log(p / p.sum(axis=1, keepdims=True))], labels, folds, [False])
    assert len({bool((factors == 1).all()) for factors in state.swaps}) == 1


def test_equal_factors_leave_the_posterior_of_the_label():
    q = np.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]])
    labels = np.array([1, 2])
    assert swapped_share(q, labels, np.ones((3, 3), np.float32)) == pytest.approx([0.8, 0.4])
    assert judged_labels(q, labels, 0.1, np.ones((3, 3), np.float32))[0] == pytest.approx([0.2, 0.6])


def test_very_many_classes_are_not_paired():
    q = np.full((2, 2_001), 1 / 2_001)
    assert (fit_swaps(q, np.array([0, 1]), 0.1).factors == 1).all()
