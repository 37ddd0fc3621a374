"""Wrong labels that follow the model's doubt: found where the model is sure, and nowhere else."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.analysis.labels.plateau import find_plateau
from mld_core.evaluation.statistics.folds import assign_folds

FILE = Path(__file__).with_name("strangers.py")
spec = importlib.util.spec_from_file_location("mld_tests_strangers", FILE)
strangers = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
if not hasattr(strangers, "table"):
    spec.loader.exec_module(strangers)

HEAVY = pytest.mark.heavy
N = 4_000


def suspected(arrays):
    return analyse(arrays, options=strangers.QUICK).diagnoses.masks["C01"]


@pytest.mark.parametrize(
    ("name", "train", "seed"),
    [
        ("digits", True, 0),
        pytest.param("digits", False, 0, marks=HEAVY),
        pytest.param("moons", True, 1, marks=HEAVY),
        pytest.param("blobs", False, 1, marks=HEAVY),
    ],
)
def test_labels_that_follow_the_models_doubt_are_flagged_where_it_is_sure(name, train, seed):
    right, _ = strangers.recorded(name, seed, train=train)
    arrays, hit = strangers.instance_noise(right, 0.05, seed)
    found = suspected(arrays)
    assert found.sum() >= 10
    assert hit[found].mean() >= 0.7
    assert suspected(right).mean() <= 0.005


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("shells", "linear"),
        *(pytest.param(name, "mlp", marks=HEAVY) for name in ("moons", "blobs", "shells")),
    ],
)
def test_right_labels_of_sets_whose_classes_overlap_are_left_alone(name, kind):
    """A linear model of the shells is at chance."""
    arrays, _ = strangers.recorded(name, 0, kind=kind)
    assert suspected(arrays).mean() <= 0.005


def worlds(seed, slipped=0.0):
    """Two witnesses of a class out of four, of the split itself the second; a share of labels is the runner-up."""
    rng = np.random.default_rng(seed)
    evidence = rng.normal(size=(N, 4))
    evidence[np.arange(N), rng.integers(0, 4, N)] += 1 + rng.exponential(5, N)
    p = np.exp(evidence) / np.exp(evidence).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) > rng.random(N)[:, None]).argmax(axis=1)
    second = np.argsort(-p, axis=1)[:, 1]
    hit = (rng.random(N) < slipped) & (labels == p.argmax(axis=1))
    near = np.log(0.99 * p + 0.01 / 4)
    return [np.log(p), near], np.where(hit, second, labels), hit


def plateau(values, labels, own=(False, True)):
    folds = assign_folds(np.arange(len(labels)), "0")
    known = np.zeros(len(labels), bool)
    return find_plateau(values, labels, folds, values[0].argmax(axis=1), own, values[1], known)


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_is_as_sure_as_it_is_right_has_no_plateau(seed):
    values, labels, _ = worlds(seed)
    assert plateau(values, labels) is None


@pytest.mark.parametrize("seed", range(3))
def test_a_plateau_is_as_high_as_the_share_of_wrong_labels(seed):
    values, labels, hit = worlds(seed, slipped=0.04)
    found = plateau(values, labels)
    assert found.points[:, -1] == pytest.approx(0.04, abs=0.015)
    folds = assign_folds(np.arange(N), "0")
    wrong = found.wrong(values, values[0].argmax(axis=1), labels, folds)
    assert hit[wrong > 0.5].mean() > 0.7
    assert (wrong[labels == values[0].argmax(axis=1)] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_known_to_be_wrong_is_not_claimed_twice(seed):
    values, labels, hit = worlds(seed, slipped=0.04)
    folds = assign_folds(np.arange(N), "0")
    assert (
        find_plateau(values, labels, folds, values[0].argmax(axis=1), (False, True), values[1], hit) is None
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_does_not_know_where_it_errs_is_no_witness(seed):
    rng = np.random.default_rng(seed)
    values, labels, _ = worlds(seed, slipped=0.04)
    lost = [values[0][rng.permutation(N)], values[1]]
    assert plateau(lost, labels) is None


def test_a_class_the_model_says_of_another_is_no_plateau():
    """Its labels are right, and the units around carry them too."""
    values, labels, _ = worlds(0)
    taught = values[0].copy()
    taught[labels == 3] = taught[labels == 3][:, [0, 1, 3, 2]]
    near = np.log(0.05 / 4 + 0.95 * np.eye(4)[labels])
    assert plateau([taught, near], labels) is None
