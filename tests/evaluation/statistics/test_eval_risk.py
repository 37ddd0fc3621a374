"""The smooth risk curve: no steps, never 0, and a band that shrinks with the data."""

import numpy as np
import pytest

from mld_core.evaluation.statistics.risk import RankedRisk


def drawn(rng, n):
    proba = rng.beta(1, 6, n)
    return proba, (rng.random(n) < proba).astype(np.int8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bound_rises_with_the_estimate_without_steps_and_is_never_zero(seed):
    proba, errors = drawn(np.random.default_rng(seed), 2_000)
    grid = np.linspace(1e-4, 0.999, 500)
    low = RankedRisk.of(proba, errors).curve().lower_bound(grid)
    assert (np.diff(low) > 0).all()
    assert low[0] > 0
    assert np.diff(low).max() < 0.02


def test_the_bound_of_a_calibrated_estimate_holds_and_closes_in():
    rng = np.random.default_rng(3)
    held, gaps = [], []
    for n in (200, 20_000):
        lows = np.array(
            [RankedRisk.of(*drawn(rng, n)).curve().lower_bound(np.array([0.2])) for _ in range(200)]
        )
        held.append((lows <= 0.2).mean())
        gaps.append(0.2 - lows.mean())
    assert min(held) > 0.9
    assert gaps[1] < gaps[0] / 3


@pytest.mark.parametrize("errors", [np.zeros(60, np.int8), np.ones(60, np.int8)])
def test_one_outcome_alone_is_no_trouble(errors):
    low = RankedRisk.of(np.full(60, 1 / 62), errors).curve().lower_bound(np.array([0.0, 1 / 62, 1.0]))
    assert np.isfinite(low).all()
    assert (low > 0).all()


def test_a_half_is_the_curve_of_its_own_units():
    proba, errors = drawn(np.random.default_rng(4), 1_000)
    kept = np.arange(1_000) % 2 == 0
    one = RankedRisk.of(proba, errors).curve(kept)
    other = RankedRisk.of(proba[kept], errors[kept]).curve()
    assert np.allclose(one.line, other.line, atol=1e-8)
