"""Hash-seeded cluster bootstrap, error metrics, and the statistics of a comparison."""

from math import factorial

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.results.paired import (
    category_transitions,
    code_rows,
    group_rows,
    mcnemar_exact,
    paired_intervals,
)
from mld_core.evaluation.statistics.bootstrap import RankedErrors, bootstrap, error_metrics, poisson_weights
from mld_core.evaluation.statistics.folds import group_codes, hash_uniform, key_hashes


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(0)
    score = rng.random(2_000).round(2)
    return score, (rng.random(2_000) < score).astype(np.int8)


def test_weights_are_poisson_and_fixed_by_the_key():
    hashes = key_hashes(np.arange(50_000), "0")
    weight = poisson_weights(hashes, 3)
    assert weight.mean() == pytest.approx(1, abs=0.02)
    assert weight.var() == pytest.approx(1, abs=0.04)
    assert np.array_equal(weight[:10], poisson_weights(hashes[:10], 3))
    assert not np.array_equal(weight, poisson_weights(hashes, 4))
    steps = np.cumsum([np.exp(-1) / factorial(n) for n in range(14)])
    drawn = hash_uniform(hashes, 1_003)
    assert np.array_equal(weight, np.searchsorted(steps, drawn, side="right"))


def test_metrics_equal_scikit_learn(scored):
    score, errors = scored
    made = RankedErrors.of(score, errors).metrics()
    assert made["error_proba_auroc"] == pytest.approx(roc_auc_score(errors, score))
    assert made["error_proba_auprc"] == pytest.approx(average_precision_score(errors, score))
    assert made["error_proba_brier"] == pytest.approx(brier_score_loss(errors, score))
    assert made["error_proba_ece"] < 0.05


def test_weighted_metrics_equal_repeated_units(scored):
    score, errors = scored
    weight = np.random.default_rng(1).integers(0, 4, len(score))
    weighted = RankedErrors.of(score, errors).metrics(weight.astype(float))
    repeated = RankedErrors.of(np.repeat(score, weight), np.repeat(errors, weight)).metrics()
    for name, value in repeated.items():
        assert weighted[name] == pytest.approx(value), name


def test_risk_coverage_by_hand():
    # Accepted from the least risky on: right, right, wrong.
    made = RankedErrors.of(np.array([0.1, 0.2, 0.3]), np.array([0, 0, 1])).metrics()
    assert made["aurc"] == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert made["augrc"] == pytest.approx((0 + 0 + 1 / 3) / 3)
    worst = RankedErrors.of(np.array([0.3, 0.2, 0.1]), np.array([0, 0, 1])).metrics()
    assert worst["aurc"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_many_distinct_scores_are_binned_without_harm():
    rng = np.random.default_rng(2)
    score = rng.random(150_000)
    errors = (rng.random(150_000) < score).astype(np.int8)
    made = RankedErrors.of(score, errors)
    assert made.places <= 65_536
    assert made.metrics()["error_proba_auroc"] == pytest.approx(roc_auc_score(errors, score), abs=1e-6)


def test_interval_covers_and_is_wider_for_clusters(scored):
    score, errors = scored
    with Workers(2) as workers:
        keys, codes = group_codes(np.arange(2_000))
        alone = error_metrics(score, errors, key_hashes(keys, "0"), codes, workers)
        keys, codes = group_codes(np.argsort(np.argsort(score)) // 100)
        grouped = error_metrics(score, errors, key_hashes(keys, "0"), codes, workers)
    value = alone["error_proba_brier"]
    assert alone["error_proba_brier_lo"] < value < alone["error_proba_brier_hi"]
    width = [made["error_proba_brier_hi"] - made["error_proba_brier_lo"] for made in (alone, grouped)]
    assert width[1] > 1.5 * width[0]


def test_mean_interval_matches_the_normal_approximation():
    rng = np.random.default_rng(3)
    value = rng.normal(size=4_000)
    hashes = key_hashes(np.arange(4_000), "0")
    with Workers(2) as workers:
        made = bootstrap(
            lambda w: {"mean": float((w * value).sum() / w.sum())}, hashes, np.arange(4_000), workers
        )
    low, high = made["mean"]
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(4_000), rel=0.25)


def test_a_metric_without_a_value_has_no_interval():
    with Workers(1) as workers:
        made = error_metrics(
            np.full(5, 0.1), np.zeros(5, np.int8), key_hashes(np.arange(5), "0"), np.arange(5), workers
        )
        assert (
            error_metrics(
                np.empty(0), np.empty(0, np.int8), np.empty(0, np.uint64), np.empty(0, np.int64), workers
            )["aurc"]
            is None
        )
    assert made["error_proba_auroc"] is None
    assert made["error_proba_auroc_lo"] is None


@pytest.mark.parametrize(("fixed", "regressed"), [(0, 5), (3, 9), (7, 7), (40, 22), (1, 0)])
def test_mcnemar_equals_the_binomial_test(fixed, regressed):
    wanted = stats.binomtest(fixed, fixed + regressed, 0.5).pvalue
    assert mcnemar_exact(fixed, regressed) == pytest.approx(wanted)
    assert mcnemar_exact(regressed, fixed) == pytest.approx(wanted)


def test_paired_intervals_are_narrower_than_unpaired():
    rng = np.random.default_rng(4)
    before = (rng.random(3_000) < 0.3).astype(float)
    after = np.where(rng.random(3_000) < 0.02, 1 - before, before)
    hashes = key_hashes(np.arange(3_000), "0")

    def rate(errors):
        return lambda w: {"error_rate": float((w * errors).sum() / w.sum())}

    with Workers(2) as workers:
        value, (low, high) = paired_intervals(rate(before), rate(after), hashes, np.arange(3_000), workers)[
            "error_rate"
        ]
    assert low <= value <= high
    assert value == pytest.approx(after.mean() - before.mean())
    assert high - low < 2 * 1.96 * np.sqrt(2 * 0.21 / 3_000) / 2


def test_transitions_and_groups():
    before = np.array([1, 1, 1, 1, 1, 1, 0, 0, -1, 1], np.int8)
    after = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, -1], np.int8)
    groups = group_rows("val", "class", np.array([0] * 6 + [1] * 4), before, after)
    assert [(one["class"], one["n"]) for one in groups] == [(0, 6), (1, 2)]
    assert groups[0]["delta"] == -1
    assert groups[0]["p_value"] == pytest.approx(2 / 64)
    assert groups[1]["delta"] == 0.5
    table = category_transitions(np.array([0, 5, 5, -1]), np.array([0, 2, 2, 3]))
    assert table[5, 2] == 2
    assert table.sum() == 3
    assert [one["code"] for one in code_rows("val", {}, {"C90": 1, "C91": 0}) if one["new"]] == ["C90"]
    assert mcnemar_exact(0, 0) is None
