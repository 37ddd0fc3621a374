"""Logistic regression."""

import numpy as np

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics import logistic


def test_columns_that_are_held_and_columns_made_anew_in_each_step_fit_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40_000, 5)) * [1, 10, 0.1, 3, 0] + 2).astype(np.float32)
    y = (rng.random(40_000) < 1 / (1 + np.exp(x[:, 0] - 2))).astype(np.int8)
    made, kept = [], []
    rows = logistic._Problem.rows
    monkeypatch.setattr(logistic._Problem, "rows", lambda self, span: kept.append(span) or rows(self, span))
    with Workers(2) as workers:
        for most in (logistic._KEPT, 40_000 * 6 - 1):
            monkeypatch.setattr(logistic, "_KEPT", most)
            before = len(kept)
            one = logistic.fit_logistic(x, y, np.ones(40_000), c=1.0, workers=workers)
            made.append((one, len(kept) - before))
    (held, once), (anew, often) = made
    assert np.array_equal(held.coefficients, anew.coefficients)
    assert held.intercept == anew.intercept
    assert once == 3 < often
