"""Categories and grave codes repeat: half of a split says what the whole says, on data nothing was tuned on."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.analysis.halves import HALVES, kept_groups, steady_low
from mld_core.evaluation.analysis.projection import project_units
from mld_core.evaluation.codes.diagnosis import GRAVE, Diagnosis, diagnose, repeats
from mld_core.evaluation.space.arrays import SplitArrays

spec = importlib.util.spec_from_file_location("mld_tests_strangers", Path(__file__).with_name("strangers.py"))
strangers = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
if not hasattr(strangers, "recorded"):
    spec.loader.exec_module(strangers)


def planted(seed):
    """A model that is right but in one part of one class, which it takes for another, and surely so."""
    arrays = strangers.healthy(6, 300, seed, wrong=0.02)
    rng = np.random.default_rng(seed)
    hit = (arrays.labels == 0) & (rng.random(arrays.rows) < 0.4)
    features, logits = arrays.features["features"].copy(), arrays.logits.copy()
    features[hit] += 4 * rng.normal(size=16) / 2
    fooled = hit & (rng.random(arrays.rows) < 0.9)
    logits[fooled, 0], logits[fooled, 1] = 0, 9
    return replace(arrays, features={"features": features.astype(np.float32)}, logits=logits), fooled


def half_of(arrays, seed):
    rows = np.sort(np.random.default_rng(seed).permutation(arrays.rows)[: arrays.rows // 2])
    features = {name: value[rows] for name, value in arrays.features.items()}
    return replace(arrays, logits=arrays.logits[rows], labels=arrays.labels[rows], features=features), rows


def kappa(a, b):
    chance = sum((a == c).mean() * (b == c).mean() for c in np.unique(a))
    return 1.0 if chance == 1 else ((a == b).mean() - chance) / (1 - chance)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.heavy)])
def test_what_is_grave_on_the_whole_is_grave_on_half_of_it(seed):
    arrays, fooled = planted(seed)
    half, rows = half_of(arrays, seed)
    whole, less = (analyse(one, options=strangers.QUICK) for one in (arrays, half))
    shown, again = whole.diagnoses.severity >= GRAVE, less.diagnoses.severity >= GRAVE
    assert shown[fooled].mean() > 0.9
    assert shown[~fooled].mean() < 0.01
    assert (shown[rows] & again).sum() / (shown[rows] | again).sum() >= 0.75
    assert whole.regions[0].membership > 0.8


def test_categories_agree_between_half_and_whole():
    found = []
    for name, kind in (("digits", "mlp"), ("snippets", "linear"), ("mixture", "mlp")):
        arrays = strangers.recorded(name, 0, kind=kind)[0]
        half, rows = half_of(arrays, 0)
        whole, less = (analyse(one, options=strangers.QUICK) for one in (arrays, half))
        found.append(kappa(whole.category[rows], less.category))
        for made in (whole, less):
            # Sentences that two packages share are conflicting duplicates indeed.
            grave = (made.diagnoses.severity >= GRAVE) & ~made.diagnoses.masks["C03"]
            assert grave.mean() <= 0.005
            assert made.error_proba.min() > 0
            assert made.risk_low.min() > 0
    assert np.mean(found) >= 0.8


@pytest.mark.parametrize(
    ("n_class", "per_class"), [(10, 60), pytest.param(100, 50, marks=pytest.mark.heavy), (3, 200)]
)
def test_a_model_that_is_99_percent_right_alarms_nobody(n_class, per_class):
    for seed in range(2):
        made = analyse(strangers.healthy(n_class, per_class, seed, wrong=0.01), options=strangers.QUICK)
        assert (made.diagnoses.severity >= GRAVE).mean() <= 0.005


def test_membership_is_a_share_of_the_halves():
    made = analyse(planted(0)[0], options=strangers.QUICK)
    assert np.allclose(made.membership * HALVES, np.round(made.membership * HALVES), atol=1e-4)
    assert made.membership.mean() > 0.9
    unlabelled = replace(planted(0)[0])
    labels = unlabelled.labels.copy()
    labels[::7] = -1
    assert np.isnan(
        analyse(replace(unlabelled, labels=labels), options=strangers.QUICK).membership[::7]
    ).all()


def test_a_group_is_kept_or_left_out_as_a_whole():
    arrays = strangers.healthy(3, 100, 0, wrong=0.1)
    groups = np.arange(300) // 3
    made = analyse(replace(arrays, groups=groups), options=strangers.QUICK)
    assert np.isfinite(made.membership).all()
    kept = kept_groups(np.arange(2_000, dtype=np.uint64), 3)
    assert 0.45 < kept.mean() < 0.55
    assert (kept != kept_groups(np.arange(2_000, dtype=np.uint64), 4)).any()


def test_three_in_four_halves_must_reach_the_bound():
    lows = np.arange(20, dtype=np.float32)[:, None]
    assert steady_low(lows).tolist() == [5.0]
    assert (lows >= 5).mean() == 0.75


def test_a_crowd_at_the_edge_is_not_grave_and_a_clear_one_is():
    rng = np.random.default_rng(0)
    again = np.zeros((20, 300), bool)
    again[:, :100] = True
    again[:, 100:200] = rng.random((20, 100)) < 0.6
    again[:, 100:105] = True
    region = np.repeat([0, 1, -1], 100)
    made = repeats(again, region)
    assert made.sure[:100].all()
    assert not made.sure[100:].any()
    assert made.share[100] == 1


class _Evidence:
    """One code's answer, for all and for the halves."""

    def __init__(self, mask):
        self.mask, self.rows, self.missing = mask, len(mask), {}


def test_a_grave_code_that_does_not_repeat_counts_as_a_look():
    registry = [
        Diagnosis("X1", "grave", 5, "stop", "", lambda e: e.mask, varies=True),
        Diagnosis("X2", "other", 4, "relabel", "", lambda e: np.ones(e.rows, bool)),
    ]
    whole = _Evidence(np.array([True, True, False]))
    halves = [_Evidence(np.array([True, half % 2 == 0, False])) for half in range(20)]
    made = diagnose(registry, whole, halves, np.array([0, 1, 1]))
    assert made.severity.tolist() == [5, 4, 4]
    assert made.primary.tolist() == [0, 1, 1]
    assert (made.counts["X1"], made.sure["X1"]) == (2, 1)
    assert made.membership[0] == 1
    alone = diagnose(registry[:1], whole, halves, np.array([0, 1, 1]))
    assert alone.severity.tolist() == [5, 3, 0]
    assert alone.membership.tolist()[1] == pytest.approx(0.5)


def test_without_any_error_nothing_moves():
    arrays = SplitArrays(np.eye(3, dtype=np.float32)[np.arange(90) % 3] * 9, np.arange(90) % 3)
    made = analyse(arrays, options=strangers.QUICK)
    assert (made.membership == 1).all()


@pytest.mark.parametrize("tolerance", [None, 0.05])
def test_without_spatial_structure_no_half_makes_everything_dense(records, tolerance):
    """A half's error rate may be above that of all units; that is no reason to call all of them dense."""
    data = records.make_data(300, classes=2)
    arrays = SplitArrays(data.logits, data.labels, {"pool": data.features}, hashes=np.array(data.hashes))
    options = replace(strangers.QUICK, risk_tolerance=tolerance, keep_model=True)
    found = analyse(arrays, options=options)
    assert np.isinf(found.density.m)
    assert not found.flags.dense.any()
    assert not found.diagnoses.counts.get("C10")
    new = records.make_data(100, classes=2, seed=1)
    other = SplitArrays(
        new.logits, np.full(100, -1), {"pool": new.features}, hashes=np.array(new.hashes), name="new"
    )
    assert not project_units(other, found, options=options).flags.dense.any()


def test_thresholds_of_another_split_do_not_make_everything_dense(records):
    """Single precision may round the reference's error rate up, above the threshold it is equal to."""
    data = records.make_data(300, classes=2)
    arrays = SplitArrays(data.logits, data.labels, {"pool": data.features})
    reference = analyse(arrays, options=strangers.QUICK).reference
    for pi in np.linspace(0.09, 0.1, 8):
        limits = replace(reference.thresholds, pi=float(pi), t2=float(pi))
        found = analyse(arrays, reference=replace(reference, thresholds=limits), options=strangers.QUICK)
        assert np.isinf(found.density.m)
        assert not found.flags.dense.any()
