"""Labels of the train split that the network has learned by heart: how many are wrong, and which."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.analysis.labels.by_heart import (
    NONE,
    falling,
    joined,
    judged_by,
    suspected_up_to,
)
from mld_core.evaluation.analysis.labels.quality import (
    label_posterior,
    log_softmax_member,
    suspected_labels,
)
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.classification import auroc
from mld_core.evaluation.statistics.folds import assign_folds

FILE = Path(__file__).with_name("strangers.py")
spec = importlib.util.spec_from_file_location("mld_tests_strangers", FILE)
strangers = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
if not hasattr(strangers, "table"):
    spec.loader.exec_module(strangers)

HEAVY = pytest.mark.heavy
N, K = 3_000, 5


def posterior_of(logits, labels):
    with Workers(2) as workers:
        folds = assign_folds(np.arange(len(labels)), "0")
        return label_posterior([log_softmax_member(logits)], labels, folds, logits.shape[1], workers)


def judged(learned, apart, labels):
    with Workers(2) as workers:
        folds = assign_folds(np.arange(len(labels)), "0")
        return judged_by(log_softmax_member(apart), posterior_of(learned, labels), labels, folds, K, workers)


def worlds(seed, apart=2.0, learned=2.0, share=0.1):
    """What a network says that learned the labels, what a witness that never saw them, labels, truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, K, N)
    labels = np.where(rng.random(N) < share, (truth + rng.integers(1, K, N)) % K, truth)
    network, witness = rng.normal(size=(2, N, K))
    witness[np.arange(N), truth] += apart
    network[np.arange(N), truth] += 2
    network[np.arange(N), labels] += learned
    return network, witness, labels, truth


@pytest.mark.parametrize("seed", range(3))
def test_a_network_that_knows_labels_by_heart_and_one_that_never_saw_them_rank_better_together(seed):
    learned, apart, labels, truth = worlds(seed)
    pooled, alone = posterior_of(learned, labels), posterior_of(apart, labels)
    both = joined(pooled, alone, labels)
    wrong = (labels != truth).astype(float)
    each = [auroc(-one.given, wrong) for one in (pooled, alone)]
    assert auroc(-both.given, wrong) > max(each) + 0.01
    # What the network says because it has seen it is no suggestion.
    assert (both.best[pooled.best == labels] == alone.best[pooled.best == labels]).all()


@pytest.mark.parametrize("seed", range(3))
def test_as_many_labels_are_suspected_as_are_wrong_though_the_witness_doubts_many(seed):
    learned, apart, labels, truth = worlds(seed, apart=1.5)
    made = judged(learned, apart, labels)
    found = suspected_labels(made, labels, np.zeros(N, np.int8), is_train=True)
    wrong = labels != truth
    assert found.sum() > 1.3 * ((made.wrong > 0.5) & (made.best != labels)).sum()
    assert 0.9 * made.n_hat <= found.sum() <= made.n_hat
    assert wrong[found].mean() > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_a_network_that_has_not_learned_them_yet_says_how_many_where_the_units_around_know_nothing(seed):
    learned, apart, labels, truth = worlds(seed, apart=0.0, learned=0.5)
    made = judged(5 * learned, apart, labels)
    found = suspected_labels(made, labels, np.zeros(N, np.int8), is_train=True)
    assert found.sum() > 50
    assert (labels != truth)[found].mean() > 0.6


@pytest.mark.parametrize("seed", range(3))
def test_right_labels_are_left_alone(seed):
    learned, apart, labels, _ = worlds(seed, share=0.0)
    made = judged(learned, apart, labels)
    assert not suspected_labels(made, labels, np.zeros(N, np.int8), is_train=True).any()


def test_labels_of_one_quality_go_together_and_half_of_them_are_expected_to_be_wrong():
    wrong = np.array([0.9, 0.6, 0.6, 0.6, 0.3])
    assert suspected_up_to(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), wrong) == 0.3
    assert suspected_up_to(np.array([0.1, 0.2, 0.4, 0.4, 0.5]), wrong) == 0.2
    assert suspected_up_to(np.full(5, 0.2), wrong) == NONE
    assert suspected_up_to(np.array([0.1, 0.2, 0.3]), np.full(3, 0.4)) == NONE
    assert suspected_up_to(np.zeros(0), np.zeros(0)) == NONE
    # A label that stands for ten is not suspected where nine are wrong.
    assert suspected_up_to(np.array([0.1, 0.2]), np.array([0.9, 0.0]), np.array([10.0, 1.0])) == NONE
    assert suspected_up_to(np.array([0.1, 0.2]), np.array([1.0, 0.0]), np.array([10.0, 1.0])) == 0.1
    assert falling(np.zeros(0), np.zeros(0)).tolist() == []


@pytest.mark.parametrize(
    ("name", "recall", "precision"),
    [
        ("shells", 0.5, 0.85),
        ("hastie", 0.3, 0.75),
        *(pytest.param(name, 0.7, 0.8, marks=HEAVY) for name in ("rings", "crowd", "blobs")),
    ],
)
def test_wrong_labels_a_network_has_learned_are_suspected_in_sets_that_did_not_shape_it(
    name, recall, precision
):
    arrays, hit, _ = strangers.memorised(name, 0)
    found = analyse(arrays, options=strangers.QUICK).diagnoses.masks["C01"]
    assert hit[found].mean() >= precision
    assert found[hit].mean() >= recall


@pytest.mark.parametrize(
    "name", ["hastie", *(pytest.param(name, marks=HEAVY) for name in ("shells", "rings", "moons"))]
)
def test_right_labels_a_network_has_learned_are_left_alone(name):
    arrays, _, _ = strangers.memorised(name, 0, share=0.0)
    assert analyse(arrays, options=strangers.QUICK).diagnoses.masks["C01"].mean() <= 0.005
