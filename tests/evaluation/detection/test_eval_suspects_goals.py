"""The goals of suspected labels on the harder simulated detector: ten seeds at both strengths, as the docs' table."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "faults"))

import suspects

PRECISE = 0.8

FEW = 5
"""Flagged units of 400 frames up to which a code is next to silent."""

MISSED = {("missing", 0): 0.65}
"""What the docs say is missed, 0.69 of 0.70, and what it may not fall below."""


@pytest.mark.heavy
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("place", range(len(suspects.SKILLS)))
def test_planted_faults_rank_first_and_what_is_flagged_is_planted(place):
    found = suspects.figures(suspects.SKILLS[place], range(20, 30), epochs=3, frames=400)
    for fault, goals in suspects.GOALS.items():
        ours, rule, flagged = (np.mean(found[fault][name]) for name in ("ours", "rule", "flagged"))
        assert ours >= MISSED.get((fault, place), goals[place]), fault
        assert ours >= rule, fault
        assert flagged <= FEW or suspects.of_all(found[fault]) >= PRECISE, fault
