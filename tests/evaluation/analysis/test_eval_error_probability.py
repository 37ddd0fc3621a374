"""The error estimator: guards, fall-backs, determinism, what it may and may not see."""

from dataclasses import replace

import numpy as np
import pytest

from mld_core.evaluation.analysis import error_probability
from mld_core.evaluation.analysis.analysis import analyse
from mld_core.evaluation.analysis.answers import AnalysisOptions
from mld_core.evaluation.analysis.error_probability import fit_sample, guard
from mld_core.evaluation.analysis.projection import project_units
from mld_core.evaluation.analysis.stack_features import StackInputs
from mld_core.evaluation.classification.diagnoses import DIAGNOSES
from mld_core.evaluation.codes.categories import CRITICAL, HOTSPOT
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.classification import auroc
from mld_core.evaluation.space.arrays import EpochArrays, SplitArrays, score_logits
from mld_core.evaluation.statistics.logistic import fit_logistic

QUICK = AnalysisOptions(replicates=0, threads=2, salts=("0",), diagnoses=DIAGNOSES)


@pytest.fixture(scope="module")
def split(make_split):
    return make_split()


@pytest.fixture(scope="module")
def result(split):
    return analyse(split[0], options=replace(QUICK, keep_model=True))


def test_errors_of_the_slice_are_found_where_confidence_is_blind(split, result):
    _, hit = split
    wrong = result.errors == 1
    assert result.estimate.source == "cse"
    assert auroc(result.error_proba, wrong) > auroc(1 - result.msp, wrong) + 0.1
    assert np.isin(result.category[hit & wrong], [HOTSPOT, CRITICAL]).mean() > 0.8
    assert result.metrics["error_proba_ece"] < 0.05
    assert result.facts["code_counts"]["C20"] > 0


def test_figures_do_not_depend_on_the_number_of_threads(make_split):
    arrays, _ = make_split(700, seed=3)
    one = analyse(arrays, options=replace(QUICK, threads=1, replicates=5))
    two = analyse(arrays, options=replace(QUICK, threads=2, replicates=5))
    assert np.array_equal(one.error_proba, two.error_proba)
    assert np.array_equal(one.density.low, two.density.low)
    assert np.array_equal(one.category, two.category)
    assert np.array_equal(one.label_quality, two.label_quality)
    assert one.metrics == two.metrics
    assert one.ratios == two.ratios


def test_the_own_label_is_never_seen(split, result):
    """Changing one unit's label moves the estimate of its neighbours at most, never its own through its own row."""
    arrays, _ = split
    row = int(np.flatnonzero(result.errors == 0)[0])
    labels = arrays.labels.copy()
    labels[row] = (labels[row] + 1) % arrays.n_class
    changed = analyse(replace(arrays, labels=labels), options=QUICK)
    assert changed.errors[row] == 1
    assert abs(changed.error_proba[row] - result.error_proba[row]) < 0.05


def test_permuted_errors_make_no_hotspot(split):
    null = analyse(split[0], options=replace(QUICK, permute_errors=True))
    assert np.isin(null.category, [HOTSPOT, CRITICAL]).mean() <= 0.005
    assert null.estimate.source == "msp_isotonic"
    assert np.array_equal(null.error_proba, null.estimate.baseline_risk)
    assert null.errors.sum() == (null.prediction != split[0].labels).sum()


@pytest.mark.parametrize(("permuted", "fits"), [(False, 15), (True, 5)])
def test_what_loses_at_the_first_repeat_is_not_repeated(split, monkeypatch, permuted, fits):
    made = []
    real = error_probability.fit_pair
    monkeypatch.setattr(error_probability, "fit_pair", lambda *args: made.append(1) or real(*args))
    thrice = replace(QUICK, salts=("0", "1", "2"), permute_errors=permuted)
    found = analyse(split[0], options=thrice)
    assert len(made) == fits
    assert found.estimate.source == ("msp_isotonic" if permuted else "cse")
    assert (found.estimate.guard_z < 0) == permuted
    assert len(found.estimate.looks) == (1 if permuted else 3)


def test_no_errors():
    n = 200
    labels = np.arange(n) % 3
    logits = np.eye(3)[labels].astype(np.float32) * 5
    made = analyse(SplitArrays(logits, labels), options=QUICK)
    assert made.estimate.source == "constant"
    assert np.allclose(made.error_proba, 1 / (n + 2))
    assert made.metrics["error_proba_auroc"] is None
    assert set(np.unique(made.category)) <= {0, 1}


def test_nothing_but_errors():
    labels = np.zeros(50, np.int64)
    logits = np.tile([0.0, 3.0], (50, 1)).astype(np.float32)
    made = analyse(SplitArrays(logits, labels), options=QUICK)
    assert made.estimate.source == "constant"
    assert np.allclose(made.error_proba, 51 / 52)


def test_few_errors_fall_back_to_the_softmax_risk(make_split):
    arrays, _ = make_split(400, slice_share=0.0, noise=0.03)
    made = analyse(arrays, options=QUICK)
    assert 0 < (made.errors == 1).sum() < 30
    assert made.estimate.source == "msp_isotonic"
    assert "30 of each" in made.estimate.reason
    assert np.array_equal(made.error_proba, made.baseline_risk)


@pytest.mark.parametrize("n", [1, 2, 7, 19])
def test_tiny_splits_have_an_answer(n):
    rng = np.random.default_rng(n)
    labels = rng.integers(0, 2, n)
    made = analyse(SplitArrays(rng.normal(size=(n, 2)).astype(np.float32), labels), options=QUICK)
    assert np.isfinite(made.error_proba).all()
    assert made.category.min() >= 0
    assert sum(
        made.ratios[f"{name}_ratio"]
        for name in (
            "stable_coverage",
            "operational_coverage",
            "hotspot",
            "recessive_hotspot",
            "critical_hotspot",
            "aleatoric_hotspot",
        )
    ) == pytest.approx(1)


def test_one_class():
    labels = np.zeros(60, np.int64)
    made = analyse(SplitArrays(np.ones((60, 1), np.float32), labels), options=QUICK)
    assert made.estimate.source == "constant"
    assert (made.error_proba == 1 / 62).all()


def test_two_classes(make_split):
    arrays, _ = make_split(800, n_class=2)
    made = analyse(arrays, options=QUICK)
    assert made.estimate.source == "cse"
    with Workers(1) as workers:
        assert score_logits(arrays.logits, workers).columns.shape[1] == 7  # without pNorm


def test_more_classes_than_one_hot_columns():
    rng = np.random.default_rng(0)
    n, k = 900, 70
    labels = rng.integers(0, k, n)
    bad = labels < 20
    answer = np.where(bad & (rng.random(n) < 0.8), (labels + 1) % k, labels)
    logits = rng.normal(size=(n, k)).astype(np.float32)
    logits[np.arange(n), answer] += 6
    # The class is all there is to learn from: the features are noise.
    arrays = SplitArrays(logits, labels, {"noise": rng.normal(size=(n, 4))})
    made = analyse(arrays, options=replace(QUICK, keep_model=True))
    assert auroc(made.error_proba, made.errors == 1) > 0.85
    assert np.isfinite(project_units(arrays, made, options=QUICK).error_proba).all()


def test_everything_in_one_group(make_split):
    arrays, _ = make_split(300)
    made = analyse(replace(arrays, groups=np.zeros(300, np.int64)), options=QUICK)
    assert np.isfinite(made.error_proba).all()
    assert made.estimate.source == "msp_isotonic"


def test_nonfinite_logits_are_wrong_and_scored(make_split):
    arrays, _ = make_split(600)
    logits = arrays.logits.copy()
    logits[:5] = np.nan
    made = analyse(replace(arrays, logits=logits), options=QUICK)
    assert (made.prediction[:5] == -1).all()
    assert (made.errors[:5] == 1).all()
    assert np.isfinite(made.error_proba).all()


def test_unlabelled_units_are_scored_and_have_no_category(split, result):
    arrays, _ = split
    labels = arrays.labels.copy()
    labels[1_000:] = -1
    made = analyse(replace(arrays, labels=labels), options=QUICK)
    rest = slice(1_000, None)
    assert (made.category[rest] == -1).all()
    assert (made.projected[rest] >= 0).all()
    assert np.isnan(made.label_quality[rest]).all()
    assert auroc(made.error_proba[rest], result.errors[rest] == 1) > 0.85


def test_projection_onto_new_units(make_split, split, result):
    fresh, hit = make_split(600, seed=5)
    made = project_units(replace(fresh, labels=np.full(600, -1)), result, options=QUICK)
    wrong = fresh.logits.argmax(1) != fresh.labels
    assert auroc(made.error_proba, wrong) > 0.85
    assert np.isin(made.category[hit], [HOTSPOT]).mean() > 0.6
    assert not made.flags.error.any()
    with pytest.raises(ValueError, match="keep_model"):
        project_units(fresh, analyse(fresh, options=QUICK))


def test_no_label_at_all_is_an_error_with_the_way_out(split):
    arrays, _ = split
    with pytest.raises(ValueError, match="project it onto this one"):
        analyse(replace(arrays, labels=np.full(arrays.rows, -1)), options=QUICK)


def test_given_errors_and_extra_columns_are_used(make_split):
    """Detection units: errors come from the matching, and box columns carry the signal."""
    arrays, _ = make_split(900, train=False)
    rng = np.random.default_rng(0)
    size = rng.random(900)
    errors = (rng.random(900) < np.where(size < 0.2, 0.8, 0.05)).astype(np.int8)
    made = analyse(replace(arrays, errors=errors, extra=size[:, None]), options=QUICK)
    assert made.estimate.source == "cse"
    assert auroc(made.error_proba, errors == 1) > 0.8


def test_other_epochs_enter(make_split):
    arrays, _ = make_split(500)
    rng = np.random.default_rng(0)
    epochs = EpochArrays(rng.integers(0, 4, (4, 500)), rng.random((4, 500)))
    made = analyse(replace(arrays, epochs=epochs), options=QUICK)
    assert "C42" in made.facts["code_counts"]


def test_guard_is_a_paired_test_over_groups():
    rng = np.random.default_rng(0)
    truth = rng.random(4_000)
    errors = (rng.random(4_000) < truth).astype(np.int8)
    flat = np.full(4_000, 0.5)
    assert guard(truth, flat, errors, np.arange(4_000)) > 10
    assert guard(flat, truth, errors, np.arange(4_000)) < -10
    assert guard(flat, flat, errors, np.arange(4_000)) == 0
    # The same gains in one group are one observation.
    assert guard(truth, flat, errors, np.zeros(4_000, np.int64)) == 0


def test_sample_keeps_the_rarer_outcome_and_halves_the_cap_where_both_are_many():
    errors = (np.arange(10_000) % 50 == 0).astype(np.int8)
    rows, shift = fit_sample(errors, np.arange(10_000), 0, cap=2_000)
    assert errors[rows].sum() == 200
    assert 1_800 < len(rows) < 2_200
    assert shift == pytest.approx(np.log(1_800 / 9_800))
    both, shift = fit_sample((np.arange(10_000) % 2).astype(np.int8), np.arange(10_000), 0, cap=2_000)
    assert 1_800 < len(both) < 2_200
    assert shift == 0
    assert fit_sample(errors, np.arange(10_000), 0, cap=10_000)[0].tolist() == list(range(10_000))


def test_model_of_a_sample_drawn_by_the_outcome_is_as_calibrated_as_one_of_all_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60_000, 3))
    truth = 1 / (1 + np.exp(3.5 - x[:, 0] - x[:, 1]))
    errors = (rng.random(60_000) < truth).astype(np.int8)
    rows, shift = fit_sample(errors, np.arange(60_000), 0, cap=6_000)
    assert shift < -1
    with Workers(2) as workers:
        fitted = fit_logistic(x[rows], errors[rows], np.ones(len(rows)), c=1.0, workers=workers)
    z, true = fitted.logit(x) + shift, np.log(truth / (1 - truth))
    assert np.sqrt(((z - true) ** 2).mean()) < 0.1
    order = np.argsort(z)
    for tenth in np.split(order, 10):
        assert (1 / (1 + np.exp(-z[tenth]))).mean() == pytest.approx(truth[tenth].mean(), rel=0.1)


def test_fits_beyond_the_limit_see_a_sample_and_tell_errors_as_well(make_split, monkeypatch):
    arrays, _ = make_split(3_000)
    whole = analyse(arrays, options=QUICK)
    seen = []
    fit = error_probability.fit_pair
    monkeypatch.setattr(error_probability, "WHOLE", 1_000)
    monkeypatch.setattr(error_probability, "FIT_ROWS", 1_200)
    monkeypatch.setattr(
        error_probability, "fit_pair", lambda x, *rest: (seen.append(len(x)), fit(x, *rest))[1]
    )
    made = analyse(arrays, options=QUICK)
    assert max(seen) < 1_400
    wrong = made.errors == 1
    assert auroc(made.error_proba, wrong) > auroc(whole.error_proba, wrong) - 0.02
    assert made.error_proba.mean() == pytest.approx(wrong.mean(), abs=0.01)


def test_logistic_reaches_scikit_learns_optimum():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6))
    y = (x[:, 0] + rng.normal(size=500) > 0.5).astype(np.int8)
    weight = rng.uniform(0.5, 2, 500)
    with Workers(2) as workers:
        ours = fit_logistic(x, y, weight, c=0.05, workers=workers, standardise=False)
    theirs = LogisticRegression(C=0.05, tol=1e-10, max_iter=1_000).fit(x, y, sample_weight=weight)
    assert np.allclose(ours.coefficients, theirs.coef_[0], atol=1e-5)
    assert ours.intercept == pytest.approx(theirs.intercept_[0], abs=1e-5)


def test_calibration_of_bins_is_that_of_units(monkeypatch):
    rng = np.random.default_rng(2)
    z = rng.normal(-2, 2.5, 60_000)
    errors = (rng.random(60_000) < 1 / (1 + np.exp(-1.3 * z - 0.4))).astype(np.int8)
    folds = rng.integers(0, 5, 60_000).astype(np.int8)
    inputs = StackInputs(np.empty((60_000, 0), np.float32), folds, folds, 2, errors, np.arange(60_000), None)
    made = []
    for whole in (60_000, 1_000):
        monkeypatch.setattr(error_probability, "WHOLE", whole)
        with Workers(2) as workers:
            made.append(error_probability._platt(z, inputs, folds, workers))
    assert not np.array_equal(*made)
    assert 1 / (1 + np.exp(-made[0])) == pytest.approx(1 / (1 + np.exp(-made[1])), abs=1e-4)
