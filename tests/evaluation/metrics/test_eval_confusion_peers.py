"""Confusion matrices in the cases that peers test theirs with, on boxes of our own: who found which truth, by hand.

The shapes: nothing said, nothing there, neither; all right; all of another class; a box too far; one box for two
truths and two boxes for one; the right class before the better place; classes swapped between neighbours.
"""

import numpy as np
import pytest

from mld_core.evaluation.detection.codes import find_events
from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.matching import ImageBoxes

A, B, FAR = (10, 10, 60, 60), (100, 100, 180, 160), (300, 300, 340, 340)
A_NEAR, A_HALF, A_OFF = (12, 10, 62, 60), (24, 10, 74, 60), (50, 10, 100, 60)
NONE = "none"

# Predictions (box, class, score), truths (box, class), expected (truth's class, said class) -> count.
CASES = {
    "nothing said": ([], [(A, 0), (B, 1)], {(0, NONE): 1, (1, NONE): 1}),
    "nothing there": ([(A, 0, 0.9), (B, 1, 0.8)], [], {(NONE, 0): 1, (NONE, 1): 1}),
    "neither": ([], [], {}),
    "all right": ([(A_NEAR, 0, 0.9), (B, 1, 0.8)], [(A, 0), (B, 1)], {(0, 0): 1, (1, 1): 1}),
    "all of another class": ([(A, 1, 0.9), (B, 0, 0.8)], [(A, 0), (B, 1)], {(0, 1): 1, (1, 0): 1}),
    "too far": ([(A_OFF, 0, 0.9)], [(A, 0)], {(0, NONE): 1, (NONE, 0): 1}),
    "two boxes for one truth": ([(A_NEAR, 0, 0.5), (A, 0, 0.9)], [(A, 0)], {(0, 0): 1, (NONE, 0): 1}),
    "one box for two truths": ([(A_NEAR, 0, 0.9)], [(A, 0), (A_NEAR, 0)], {(0, 0): 1, (0, NONE): 1}),
    "the right class before the better place": (
        [(A, 1, 0.95), (A_HALF, 0, 0.6)],
        [(A, 0)],
        {(0, 0): 1, (NONE, 1): 1},
    ),
    "one of each": (
        [(A, 0, 0.9), (FAR, 2, 0.4), (B, 2, 0.7)],
        [(A, 0), (B, 1), ((400, 10, 450, 60), 2)],
        {(0, 0): 1, (1, 2): 1, (NONE, 2): 1, (2, NONE): 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_confusion(name):
    said, real, expected = CASES[name]
    zero = np.zeros(len(real), np.bool_)
    predictions = Predictions(
        np.zeros(len(said), np.int64),
        np.array([one[1] for one in said], np.int64),
        np.array([one[2] for one in said], np.float64),
        np.array([one[0] for one in said], np.float64).reshape(-1, 4),
    )
    truths = Truths(
        np.zeros(len(real), np.int64),
        np.array([one[1] for one in real], np.int64),
        np.array([one[0] for one in real], np.float64).reshape(-1, 4),
        zero,
        zero,
    )
    events = find_events(predictions, truths, ImageBoxes())
    found = [
        (int(label) if matched else NONE, int(own))
        for label, matched, own in zip(events.said_of, events.matched, predictions.label, strict=True)
    ]
    found += [(int(label), NONE) for label in truths.label[~events.met]]
    assert {pair: found.count(pair) for pair in found} == expected
