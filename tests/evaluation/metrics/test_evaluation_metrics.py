"""Metrics against scikit-learn and against their definitions."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import beta
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from mld_core.evaluation.metrics import classification as metrics
from mld_core.evaluation.statistics.histograms import BINS, RankHistograms, log_odds_bin


def sample(seed, rows=400, classes=4, decimals=None):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes)) * 2
    logits[np.arange(rows), truth] += 1.0
    if decimals is not None:
        logits = logits.round(decimals)
    return logits.astype(np.float32), truth


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("decimals", [None, 0])
def test_auroc_and_average_precision_equal_sklearn(seed, decimals):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=500)
    if decimals is not None:
        scores = scores.round(decimals)  # many ties
    positive = rng.random(500) < 0.2
    assert metrics.auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert metrics.average_precision(scores, positive) == pytest.approx(
        average_precision_score(positive, scores), abs=1e-12
    )


def test_ranking_metrics_without_both_kinds_have_no_value():
    scores = np.array([0.1, 0.2])
    assert metrics.auroc(scores, np.array([True, True])) is None
    assert metrics.auroc(scores, np.array([False, False])) is None
    assert metrics.average_precision(scores, np.array([False, False])) is None
    assert metrics.average_precision(scores, np.array([True, True])) == 1.0
    assert metrics.auroc(np.empty(0), np.empty(0, bool)) is None


def test_macro_auroc_of_two_classes_is_that_of_class_one():
    assert metrics.macro_auroc([0.4, 0.7]) == 0.7
    assert metrics.macro_auroc([0.4, None, 0.6]) == pytest.approx(0.5)
    assert metrics.macro([None, None]) is None


def test_softmax_is_float64_and_stable():
    logits = np.array([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]], np.float32)
    log_p = metrics.log_softmax(logits)
    assert log_p.dtype == np.float64
    np.testing.assert_allclose(np.exp(log_p), softmax(logits.astype(np.float64), axis=1))
    np.testing.assert_allclose(metrics.entropy(log_p), [0.0, np.log(3)], atol=1e-12)


def test_cross_entropy_equals_sklearn():
    logits, truth = sample(1)
    log_p = metrics.log_softmax(logits)
    mean = -log_p[np.arange(len(truth)), truth].mean()
    assert mean == pytest.approx(log_loss(truth, np.exp(log_p), labels=range(4)), rel=1e-9)


@pytest.mark.parametrize(("errors", "count"), [(0, 10), (3, 10), (10, 10), (500, 1000)])
def test_jeffreys_interval(errors, count):
    low, high = metrics.jeffreys_interval(errors, count)
    exact = beta.ppf([0.025, 0.975], errors + 0.5, count - errors + 0.5)
    assert low == pytest.approx(0.0 if errors == 0 else exact[0])
    assert high == pytest.approx(1.0 if errors == count else exact[1])
    assert metrics.jeffreys_interval(0, 0) == (None, None)


def test_histograms_come_close_to_exact_and_merge_in_any_order():
    logits, truth = sample(2, rows=5000, classes=3)
    log_p = metrics.log_softmax(logits)
    whole = RankHistograms.of(log_p, truth, 0)
    pieces = [RankHistograms.of(log_p[part], truth[part], 0) for part in np.array_split(np.arange(5000), 7)]
    merged = RankHistograms.empty(3)
    for piece in reversed(pieces):
        merged = merged.merge(piece)
    np.testing.assert_array_equal(merged.total, whole.total)
    np.testing.assert_array_equal(merged.positives, whole.positives)
    for index in range(3):
        score = np.exp(log_p[:, index])
        assert whole.auroc()[index] == pytest.approx(metrics.auroc(score, truth == index), abs=1e-5)
        assert whole.average_precision()[index] == pytest.approx(
            metrics.average_precision(score, truth == index), abs=1e-4
        )


def test_histograms_of_a_confident_model_keep_both_tails_apart():
    # Every score is within 1e-4 of 0 or 1: equal bins of p would put all of them into 14 of 65,536 bins.
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 4000)
    logits = np.zeros((4000, 2), np.float32)
    logits[:, 1] = np.where(truth == 1, 1, -1) * rng.normal(12, 1, 4000)
    flipped = rng.random(4000) < 0.02
    logits[flipped] *= -1
    log_p = metrics.log_softmax(logits)
    counted = RankHistograms.of(log_p, truth, 0)
    exact = metrics.auroc(np.exp(log_p[:, 1]), truth == 1)
    assert counted.auroc()[1] == pytest.approx(exact, abs=1e-4)


def test_log_odds_bins_are_monotone_and_bounded():
    log_p = -np.concatenate([np.logspace(-18, 0, 200), np.linspace(1, 200, 200)])
    bins = log_odds_bin(np.sort(log_p))
    assert (np.diff(bins) >= 0).all()
    assert bins.min() == 0
    assert bins.max() == BINS - 1
    assert log_odds_bin(np.array([0.0, -np.inf])).tolist() == [BINS - 1, 0]
