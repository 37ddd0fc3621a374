"""Confidence and loss of a classifier's rows: those of the whole log-softmax, however many rows go through at once."""

from __future__ import annotations

import numpy as np
import pytest

from mld_core.tracing.batch.labels import normalise_labels
from mld_core.tracing.tables.rows import _AT_ONCE, Scores, log_softmax


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (300, 10), (4000, 100), (3, 2 * _AT_ONCE)])
def test_scores_are_those_of_the_log_softmax_to_the_bit(rows: int, classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits = (rng.normal(size=(rows, classes)) * 8).astype(np.float32)
    logits[0, 1] = 300.0  # the others' exponentials vanish
    truth = rng.integers(0, classes, rows)
    truth[-1] = -100  # no label
    broken = logits.copy()
    broken[rows // 2, 0] = np.nan
    for given in (logits, broken):
        labels = normalise_labels(truth, rows, classes)
        scores = Scores(given, labels)
        finite = np.isfinite(given).all(axis=1)
        log_p = log_softmax(np.where(finite[:, None], given, 0))
        assert scores.finite.tolist() == finite.tolist()
        assert scores.has_loss.tolist() == (finite & (truth >= 0)).tolist()
        np.testing.assert_array_equal(scores.confidence, np.exp(log_p.max(axis=1)).astype(np.float32))
        loss = -log_p[np.arange(rows), np.maximum(truth, 0)]
        np.testing.assert_array_equal(scores.loss, loss.astype(np.float32))
        assert scores.prediction.tolist() == np.where(finite, given.argmax(axis=1), 0).tolist()
