"""Labels that slipped to the runner-up: told by which class they say, not by how likely they are."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.analysis.labels import slips
from mld_core.evaluation.analysis.labels.slips import Others, find_slips
from mld_core.evaluation.metrics.classification import average_precision
from mld_core.evaluation.statistics.folds import assign_folds

FILE = Path(__file__).with_name("strangers.py")
spec = importlib.util.spec_from_file_location("mld_tests_strangers", FILE)
strangers = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
if not hasattr(strangers, "table"):
    spec.loader.exec_module(strangers)

N, K = 3_000, 6


def world(seed, *, slipped=0.0, sure=1.0, n_class=K):
    """Log-odds of a pool that is as sure as it is right (at `sure` 1), labels, and which of them slipped."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(N, n_class))
    z[np.arange(N), rng.integers(0, n_class, N)] += 1 + rng.exponential(4, N)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = np.minimum((p.cumsum(axis=1) < rng.random(N)[:, None]).sum(axis=1), n_class - 1)
    doubt = 1.05 - p.max(axis=1)
    hit = (rng.random(N) < slipped * doubt / doubt.mean()) & (labels == p.argmax(axis=1))
    labels = np.where(hit, np.argsort(-p, axis=1)[:, 1], labels)
    return sure * np.log(p), labels, hit


def found(z, labels, known=None):
    folds, best = assign_folds(np.arange(N), "0"), z.argmax(axis=1)
    known = np.zeros(N, bool) if known is None else known
    values = [z - np.log(np.exp(z).sum(axis=1, keepdims=True))]
    made = find_slips(values, z, labels, folds, best, [False], known)
    if made is None:
        return None, np.zeros(N)
    return made, made.wrong(made.likelier(values, z, best, labels, folds), folds)


@pytest.mark.parametrize("sure", [1.0, 2.5])
@pytest.mark.parametrize("seed", range(5))
def test_right_labels_do_not_slip_however_sure_the_model_is(seed, sure):
    made, _ = found(*world(seed, sure=sure)[:2])
    assert made is None or not made.claimed


@pytest.mark.parametrize("seed", range(3))
def test_slips_are_found_and_claimed_are_those(seed):
    z, labels, hit = world(seed, slipped=0.06)
    made, wrong = found(z, labels)
    assert made.claimed
    assert hit[wrong > 0.5].mean() > 0.7
    differs = labels != z.argmax(axis=1)
    assert (wrong[~differs] == 0).all()
    assert average_precision(wrong, hit) > 1.1 * average_precision(np.where(differs, z.max(axis=1), -99), hit)


def test_labels_drawn_as_the_wrong_ones_made_them_look_do_not_slip():
    """Less sure until its labels are as frequent as slips made them: of which class they are is as before."""
    for seed in range(5):
        z, _, _ = world(seed)
        p = np.exp(0.7 * z) / np.exp(0.7 * z).sum(axis=1, keepdims=True)
        labels = (p.cumsum(axis=1) > np.random.default_rng(seed).random(N)[:, None]).argmax(axis=1)
        made, _ = found(z, labels)
        assert made is None or not made.claimed


@pytest.mark.parametrize("seed", range(5))
def test_a_model_that_errs_where_it_is_sure_has_no_slips(seed):
    """Its own errors go on at an even rate, their classes as likely as it says: that is no one's slip."""
    z, labels, _ = world(seed)
    rng = np.random.default_rng(seed)
    p = np.exp(z)
    p[np.arange(N), z.argmax(axis=1)] = 0
    p /= p.sum(axis=1, keepdims=True)
    other = (p.cumsum(axis=1) > rng.random(N)[:, None]).argmax(axis=1)
    made, _ = found(z, np.where(rng.random(N) < 0.04, other, labels))
    assert made is None or not made.claimed


def test_labels_that_are_any_class_do_not_slip():
    for seed in range(3):
        z, labels, _ = world(seed)
        rng = np.random.default_rng(seed)
        made, _ = found(z, np.where(rng.random(N) < 0.05, rng.integers(0, K, N), labels))
        assert made is None or not made.claimed


def test_what_is_known_to_be_wrong_is_not_claimed_twice():
    z, labels, hit = world(0, slipped=0.06)
    assert not found(z, labels, hit)[0].claimed


def test_two_classes_and_labels_that_never_differ_tell_nothing():
    assert found(*world(0, slipped=0.06, n_class=2)[:2])[0] is None
    z, _, _ = world(0)
    assert found(z, z.argmax(axis=1))[0] is None


def test_a_label_beyond_the_likeliest_classes_is_any_class():
    z = -np.arange(50.0)[None].repeat(2, axis=0)
    others = Others.of(z, np.array([0, 0]), np.array([1, 49]))
    assert others.second.tolist() == [1, 0]
    assert others.likely.shape == (2, slips.LIKELIEST)
    share = others.share(1.0, 0.1)[0]
    assert share[1] == pytest.approx(0.1 / 49)
    assert share[0] == pytest.approx(0.9 * (1 - np.exp(-1)) + 0.1 / 49)


def test_classes_that_tie_are_each_a_part_of_the_runner_up():
    others = Others.of(np.array([[2.0, 1, 1, 0], [2.0, 1, 0, 0]]), np.array([0, 0]), np.array([1, 1]))
    assert others.second.tolist() == [0.5, 1]


def test_a_pool_that_knows_nothing_claims_nothing():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, N)
    noise, flat = rng.normal(size=(N, K)), np.zeros((N, K))
    folds, none = assign_folds(np.arange(N), "0"), np.zeros(N, bool)
    for z in (flat, noise):
        made = find_slips([noise], z, labels, folds, z.argmax(axis=1), [False], none)
        assert made is None or not made.claimed


def test_the_slopes_are_those_of_the_likelihood(monkeypatch):
    z, labels, _ = world(0, slipped=0.06)
    differs = labels != z.argmax(axis=1)
    others = Others.of(z[differs], z.argmax(axis=1)[differs], labels[differs])
    seen = []
    import scipy.optimize

    monkeypatch.setattr(
        scipy.optimize, "minimize", lambda loss, start, **_: seen.append((loss, start)) or Nothing
    )
    slips._fit_classes(others)
    slips._fit_slips(z.max(axis=1)[None] + 2, differs, others, [np.array([0.1, 0.8, 0.05, 1.2, 0.1])])
    for loss, start in seen:
        slope = approx_fprime(np.array(start), lambda x, loss=loss: loss(x)[0], 1e-6)
        assert loss(np.array(start))[1] == pytest.approx(slope, rel=1e-3, abs=0.05)


class Nothing:
    fun, x = 0.0, (0.0,)


@pytest.mark.parametrize(
    ("name", "seed"),
    [("digits", 1), *(pytest.param(*one, marks=pytest.mark.heavy) for one in (("crowd", 4), ("blobs", 4)))],
)
def test_what_slipped_is_ranked_before_a_models_own_errors(name, seed):
    right, _ = strangers.recorded(name, seed)
    arrays, hit = strangers.instance_noise(right, 0.05, seed)
    made, clean = (analyse(one, options=strangers.QUICK) for one in (arrays, right))
    p = np.exp(arrays.logits - arrays.logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    mine = p[np.arange(len(p)), arrays.labels]
    p[np.arange(len(p)), arrays.labels] = 0
    margin = average_precision(p.max(axis=1) - mine, hit)
    assert average_precision(-made.label_quality, hit) > margin + 0.01
    flagged = made.diagnoses.masks["C01"]
    assert flagged.sum() >= 10
    assert hit[flagged].mean() >= 0.8
    assert clean.diagnoses.masks["C01"].mean() <= 0.005
