"""Answers that hold on data the fault suite does not know: healthy models, small classes, perfect splits."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.codes.categories import OPERATIONAL, STABLE
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.metrics.classification import auroc, average_precision
from mld_core.evaluation.space.arrays import SplitArrays


def _sibling(name):
    """A module of this folder, which is no package, loaded by path once."""
    spec = importlib.util.spec_from_file_location(f"mld_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    return sys.modules.get(spec.name) or _loaded(spec)


def _loaded(spec):
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules[spec.name]


strangers = _sibling("strangers")
QUICK = strangers.QUICK
SEEDS = [0, pytest.param(1, marks=pytest.mark.heavy)]  # `make test-all` draws the data once more
HEAVY = pytest.mark.heavy  # the same line on one more set or kind of model
SIZES = [(10, 60), (100, 50), (40, 10), (10, 5), (1, 5)]


@pytest.mark.parametrize(("n_class", "per_class"), SIZES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_that_is_right_gets_no_alarming_advice(n_class, per_class, seed):
    made = analyse(strangers.healthy(n_class, per_class, seed), options=QUICK)
    assert made.diagnoses.counts["C02"] == 0
    assert made.diagnoses.counts["C13"] == 0
    grave = {code for code, count in made.diagnoses.counts.items() if count and BY_CODE[code].severity >= 3}
    assert grave == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_that_tie_are_still_found(seed):
    """Two of six classes are one cloud: which of the two a label says is a coin's toss."""
    arrays = strangers.healthy(6, 150, seed)
    rng = np.random.default_rng(seed)
    labels = arrays.labels.copy()
    both = labels < 2
    labels[both] = rng.integers(0, 2, both.sum())
    features = arrays.features["features"].copy()
    cloud = features[arrays.labels == 0]
    features[both] = cloud[rng.integers(0, len(cloud), both.sum())] + rng.normal(size=(both.sum(), 16)) * 0.3
    logits = arrays.logits.copy()
    logits[both, :2] = 7 + rng.normal(size=(both.sum(), 2)) * 0.3
    made = analyse(SplitArrays(logits, labels, {"features": features.astype(np.float32)}), options=QUICK)
    found = made.diagnoses.masks["C02"]
    assert found[both].mean() > 0.5
    assert found[~both].mean() < 0.01


@pytest.mark.parametrize("seed", SEEDS)
def test_a_layer_that_knows_nothing_makes_no_label_ambiguous(seed):
    arrays = strangers.at_chance(strangers.recorded("digits", seed)[0], seed)
    assert analyse(arrays, options=QUICK).diagnoses.counts["C02"] <= 0.005 * arrays.rows


@pytest.mark.parametrize(("n_class", "per_class"), [(10, 60), (100, 20), (3, 40)])
def test_a_perfect_split_is_stable(n_class, per_class):
    made = analyse(strangers.healthy(n_class, per_class, 0), options=QUICK)
    assert (made.category == STABLE).all()


def test_five_units_without_an_error_are_too_few_to_be_called_stable():
    made = analyse(strangers.healthy(1, 5, 0), options=QUICK)
    assert (made.category == OPERATIONAL).all()


@pytest.mark.parametrize("name", ["wine", "cancer", "digits"])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_fall_back_ranks_as_the_softmax_confidence_does(name, seed):
    arrays, _ = strangers.recorded(name, seed, kind="linear", train=False)
    # So few wrong ones that the estimator itself does not run.
    wrong = np.flatnonzero(arrays.logits.argmax(axis=1) != arrays.labels)
    labels = arrays.labels.copy()
    labels[wrong[25:]] = -1
    made = analyse(replace(arrays, labels=labels), options=QUICK)
    known = made.errors >= 0
    if not 0 < (made.errors == 1).sum() < known.sum():
        pytest.skip("the model makes no errors on this half")
    assert made.estimate.source == "msp_isotonic"
    errors = made.errors[known] == 1
    assert auroc(made.error_proba[known], errors) == auroc(1 - made.msp[known], errors)
    order = np.argsort(made.msp, kind="stable")
    distinct = np.diff(made.msp[order]) > 1e-9
    assert (np.diff(made.error_proba[order])[distinct] < 0).all()
    assert made.error_proba.min() > 0


def test_a_confidence_that_points_the_wrong_way_is_not_turned_round():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    logits = np.zeros((400, 3), np.float32)
    sure = rng.random(400) * 4
    wrong = rng.random(400) < 0.06 * sure / sure.mean()
    logits[np.arange(400), (labels + wrong) % 3] = sure + 0.5
    made = analyse(SplitArrays(logits, labels), options=replace(QUICK, salts=("0",)))
    if made.estimate.source == "msp_isotonic":
        assert auroc(made.error_proba, made.errors == 1) == auroc(1 - made.msp, made.errors == 1)


# --- wrong labels -----------------------------------------------------------------------------------------------


def ranks(arrays, hit, made):
    """AUPRC of our label quality and of the network's confidence in the given label."""
    log_p = arrays.logits - np.log(np.exp(arrays.logits).sum(axis=1, keepdims=True))
    given = log_p[np.arange(arrays.rows), arrays.labels]
    return average_precision(-made.label_quality, hit), average_precision(-given, hit)


@pytest.mark.parametrize("name", ["digits", pytest.param("mixture", marks=HEAVY)])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("noise", ["class", pytest.param("pair", marks=HEAVY), "any"])
def test_structured_noise_is_ranked_as_well_as_by_the_network_alone(name, seed, noise):
    flip = {"class": strangers.class_noise(2, 3, 0.4), "pair": strangers.pair_noise(0.2)}
    arrays, hit = strangers.recorded(name, seed, flip=flip.get(noise, strangers.any_noise(0.05)))
    made = analyse(arrays, options=QUICK)
    ours, theirs = ranks(arrays, hit, made)
    assert ours >= theirs - 0.02
    alone = analyse(replace(arrays, train=None), options=QUICK)
    assert ranks(arrays, hit, alone)[0] >= theirs - 0.04
    if noise == "class" and seed == 0:
        assert ours >= theirs + 0.05  # one pair of classes explains them all
    flagged = made.diagnoses.masks["C01"]
    assert flagged[hit].mean() > 0.6
    assert hit[flagged].mean() > 0.75


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("train", [True, False])
def test_labels_that_only_one_class_lost_are_flagged(seed, train):
    """A tenth of all units, two in five of them wrong: no label of any other class is."""
    flip = strangers.class_noise(2, 3, 0.4)
    arrays, hit = strangers.recorded("digits", seed, train=train, flip=flip)
    flagged = analyse(arrays, options=QUICK).diagnoses.masks["C01"]
    assert flagged[hit].mean() > 0.8
    assert hit[flagged].mean() > 0.8


@pytest.mark.parametrize("name", ["digits", pytest.param("mixture", marks=HEAVY)])
@pytest.mark.parametrize("train", [True, False])
def test_a_model_that_was_taught_to_confuse_two_classes_raises_no_doubt_of_right_labels(name, train):
    """Four in five of the train labels of one class were another's: the model errs, the test labels are right."""
    arrays, _ = strangers.recorded(name, 0, train=train, flip_train=strangers.class_noise(3, 1, 0.8))
    assert analyse(arrays, options=QUICK).diagnoses.counts["C01"] <= 0.01 * arrays.rows


@pytest.mark.parametrize("name", ["digits", pytest.param("snippets", marks=HEAVY)])
@pytest.mark.parametrize("train", [True, False])
def test_right_labels_of_a_class_that_was_taught_nearly_wholly_as_another_are_left_alone(name, train):
    """The model never says that class, nor do its train neighbours: labels of any kind seem to be wrong."""
    arrays, _ = strangers.recorded(name, 0, train=train, flip_train=strangers.class_noise(3, 2, 0.97))
    assert analyse(arrays, options=QUICK).diagnoses.counts["C01"] <= 0.01 * arrays.rows


@pytest.mark.parametrize("name", ["digits", pytest.param("mixture", marks=HEAVY), "cancer", "wine"])
@pytest.mark.parametrize("kind", ["mlp", pytest.param("linear", marks=HEAVY)])
@pytest.mark.parametrize("seed", SEEDS)
def test_clean_labels_are_left_alone(name, kind, seed):
    arrays, _ = strangers.recorded(name, seed, kind=kind)
    assert analyse(arrays, options=QUICK).diagnoses.counts["C01"] <= 0.01 * arrays.rows


@pytest.mark.parametrize("seed", SEEDS)
def test_a_model_at_chance_says_nothing_of_labels(seed):
    arrays = strangers.at_chance(strangers.recorded("digits", seed)[0], seed)
    assert analyse(arrays, options=QUICK).diagnoses.counts["C01"] <= 0.01 * arrays.rows


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_the_network_learned_is_ranked_by_its_epochs(seed):
    arrays, hit, margin = strangers.memorised("digits", seed)
    made = analyse(arrays, options=QUICK)
    assert average_precision(-made.label_quality, hit) >= average_precision(-margin.mean(axis=0), hit)
    flagged = made.diagnoses.masks["C01"]
    assert flagged[hit].mean() > 0.6
    assert hit[flagged].mean() > 0.85
    clean, _, _ = strangers.memorised("digits", seed, share=0.0)
    assert analyse(clean, options=QUICK).diagnoses.counts["C01"] <= 0.01 * clean.rows


@pytest.mark.parametrize("name", ["digits", pytest.param("mixture", marks=HEAVY)])
def test_near_copies_with_another_label_are_in_conflict(name):
    arrays, _ = strangers.recorded(name, 0, train=False)
    assert analyse(arrays, options=QUICK).diagnoses.counts["C03"] <= 0.002 * arrays.rows
    rng = np.random.default_rng(0)
    features, labels = arrays.features["hidden"].copy(), arrays.labels.copy()
    source, copy = np.split(rng.choice(arrays.rows, 80, replace=False), 2)
    features[copy] = features[source] + 1e-3 * features.std() * rng.normal(size=features[source].shape)
    labels[copy] = (labels[source] + 1) % (labels.max() + 1)
    made = analyse(replace(arrays, features={"hidden": features}, labels=labels), options=QUICK)
    found = made.diagnoses.masks["C03"]
    hit = np.isin(np.arange(arrays.rows), [*source, *copy])
    assert found[hit].mean() > 0.75
    assert found[~hit].mean() <= 0.005
    assert made.diagnoses.counts["C05"] == 0


# --- near-duplicates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", pytest.param("mixture", marks=HEAVY), "cancer"])
@pytest.mark.parametrize("kind", ["mlp", pytest.param("linear", marks=HEAVY)])
@pytest.mark.parametrize("seed", SEEDS)
def test_near_copies_of_train_units_are_leakage(name, kind, seed):
    arrays, _ = strangers.recorded(name, seed, kind=kind)
    clean = analyse(arrays, options=QUICK)
    assert clean.diagnoses.counts["C04"] <= 0.005 * arrays.rows
    rng = np.random.default_rng(seed)
    hit = rng.random(arrays.rows) < 0.05
    train, own = arrays.train.features["hidden"], arrays.features["hidden"].copy()
    copied = train[rng.integers(0, len(train), hit.sum())]
    own[hit] = copied + 1e-3 * train.std() * rng.normal(size=copied.shape)
    found = analyse(replace(arrays, features={"hidden": own}), options=QUICK).diagnoses.masks["C04"]
    assert found[hit].mean() > 0.9
    assert found[~hit].mean() <= 0.005


# --- novel inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", pytest.param("mixture", marks=HEAVY)])
@pytest.mark.parametrize("seed", SEEDS)
def test_permuted_inputs_are_novel_and_other_units_are_not(name, seed):
    arrays, hit = strangers.permuted(name, seed)
    found = analyse(arrays, options=QUICK).diagnoses.masks["C30"]
    assert found[hit].mean() > {"digits": 0.6, "mixture": 0.15}[name]
    assert hit[found].mean() > 0.5
    healthy = analyse(strangers.recorded(name, seed)[0], options=QUICK)
    assert healthy.diagnoses.counts["C30"] <= 0.02 * arrays.rows
