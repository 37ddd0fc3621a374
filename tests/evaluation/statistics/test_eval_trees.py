"""Boosted trees on weighted rows: as good as scikit-learn's own, and unchanged where weights are equal."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from mld_core.evaluation.statistics.trees import BINS, RoundedTrees, _rounded, _values, fit_trees


def trees() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(max_iter=40, early_stopping=False, random_state=0)


def make(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    columns = rng.normal(size=(n, 6)).astype(np.float32)
    columns[:, 5] = columns[:, 5] > 1
    outcome = (columns[:, 0] * columns[:, 5] + columns[:, 1] + rng.normal(size=n) > 1.5).astype(np.int8)
    return columns, outcome, np.where(outcome == 1, 1.0, 3.0)


def test_weighted_rows_are_scored_as_well_as_by_scikit_learn():
    columns, outcome, weight = make(12_000)
    fitted = fit_trees(trees(), columns[:8000], outcome[:8000], weight[:8000])
    assert isinstance(fitted, RoundedTrees)
    assert [one is None for one in fitted.values] == [False] * 5 + [True]
    theirs = trees().fit(columns[:8000], outcome[:8000], sample_weight=weight[:8000])
    mine = fitted.decision_function(columns[8000:])
    other = theirs.decision_function(columns[8000:])
    ours, sklearns = (roc_auc_score(outcome[8000:], z) for z in (mine, other))
    assert ours > sklearns - 0.003
    assert np.corrcoef(mine, other)[0, 1] > 0.95


def test_equal_weights_change_nothing():
    columns, outcome, _ = make(3000)
    fitted = fit_trees(trees(), columns, outcome, np.full(3000, 2.0))
    plain = trees().fit(columns, outcome)
    np.testing.assert_array_equal(fitted.decision_function(columns), plain.decision_function(columns))


def test_columns_keep_at_most_as_many_values_as_there_are_bins():
    column = np.arange(100_000, dtype=np.float32)
    values = _values(column)
    assert values is not None
    assert len(values) == BINS
    made = _rounded(column[:, None], [values])
    assert len(np.unique(made)) == BINS
    assert (np.diff(made[:, 0]) >= 0).all()
    outside = _rounded(np.array([[-1e9], [1e9]], np.float32), [values])
    assert outside[:, 0].tolist() == [values[0], values[-1]]
