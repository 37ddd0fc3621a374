"""The columns of the error estimator that boxes tell by themselves."""

import numpy as np
import pytest

from mld_core.evaluation.detection import analysis
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.metrics.boxes import Predictions


@pytest.mark.parametrize("rows", [1, 7, 50, 399, 400, 10_000])
def test_columns_of_boxes_are_the_same_however_their_frames_are_cut(monkeypatch, rows):
    rng = np.random.default_rng(0)
    frame = np.sort(rng.integers(0, 60, 400))
    corner, size = rng.random((400, 2)) * 50, 5 + rng.random((400, 2)) * 40
    predictions = Predictions(
        frame, rng.integers(0, 3, 400), rng.random(400), np.concatenate([corner, corner + size], axis=1)
    )
    whole = analysis.box_columns(predictions)
    monkeypatch.setattr(analysis, "_ROWS", rows)
    with Workers(2) as workers:
        cut = analysis.box_columns(predictions, workers)
    assert np.array_equal(whole, cut)
    assert whole[:, -1].max() > 0


def test_columns_of_no_boxes_have_their_width():
    one = Predictions(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1), np.array([[0.0, 0, 5, 5]]))
    assert analysis.box_columns(one.take(slice(0))).shape == (0, analysis.box_columns(one).shape[1])
