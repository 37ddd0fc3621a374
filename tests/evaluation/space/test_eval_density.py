"""Local density, risk bins and ambiguity, against frozen arrays and scipy's distributions."""

import numpy as np
import pytest
from scipy import stats

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.cells import (
    K_GRID,
    M_GRID,
    ambiguity_of,
    beta_quantile,
    choose_density,
    density_of,
    local_density,
)
from mld_core.evaluation.space.neighbourhood import Nearest


def test_r_lo_is_the_beta_quantile_frozen():
    total, count = np.array([0.0, 2, 8, 16]), np.full(4, 16.0)
    made = density_of(total, count, 16, 4.0, 0.1)
    wanted = stats.beta.ppf(0.05, 0.4 + total, 3.6 + 16 - total)
    assert np.allclose(made.low, wanted)
    assert made.low.round(4).tolist() == FROZEN_R_LO
    assert np.allclose(made.rate, (0.4 + total) / 20)


FROZEN_R_LO = [0.0, 0.0284, 0.2472, 0.6655]


def test_without_structure_nothing_is_dense():
    made = density_of(np.array([0.0, 8.0]), np.array([8.0, 8.0]), 8, float("inf"), 0.2)
    assert made.low.tolist() == [0.2, 0.2]


def test_k_and_m_maximise_the_leave_one_out_likelihood():
    rng = np.random.default_rng(0)
    errors = (rng.random(400) < 0.3).astype(np.int8)
    count = np.tile(np.array(K_GRID, float), (400, 1))
    total = np.floor(count * np.where(errors[:, None] == 1, 0.7, 0.1))
    k, m = choose_density(total, count, errors, 0.3)

    def likelihood(k, m):
        place = K_GRID.index(k)
        p = np.full(400, 0.3) if np.isinf(m) else (m * 0.3 + total[:, place]) / (m + count[:, place])
        return np.where(errors == 1, np.log(p), np.log(1 - p)).sum()

    best = max(likelihood(a, b) for a in K_GRID for b in M_GRID)
    assert likelihood(k, m) == pytest.approx(best)
    assert m < 16


def test_ties_go_to_the_larger_m_then_the_larger_k():
    zero = np.zeros((10, 5))
    assert choose_density(zero, zero, np.array([0, 1] * 5), 0.5) == (128, float("inf"))


def test_permuted_errors_have_no_dense_neighbourhood():
    rng = np.random.default_rng(1)
    errors = (rng.random(2_000) < 0.15).astype(np.int8)
    index = np.stack([rng.permutation(2_000)[:128] for _ in range(2_000)]).astype(np.int32)
    with Workers(1) as workers:
        around = Nearest(index, np.zeros((2_000, 2), np.float32), workers)
        pi = (errors.sum() + 1) / 2_002
        made = local_density(around, errors, np.arange(2_000), float(pi))
    assert (made.low > pi).mean() <= 0.005


def ambiguity(counts, sizes=None):
    """Of the same counts whatever the number of neighbours."""
    table = np.asarray(counts, float)
    many = np.full(table.shape[1], 1_000.0) if sizes is None else np.asarray(sizes, float)
    return ambiguity_of(lambda k, rows: table[rows].copy(), many, np.arange(len(table)))


def test_ambiguity_needs_a_tie_that_holds_a_majority():
    counts = np.array([[16, 14, 2, 0], [24, 8, 0, 0], [8, 7, 9, 8], [32, 0, 0, 0], [0, 0, 0, 0]], float)
    made = ambiguity(counts)
    # 17 of 32 are a majority, but four labels at random make as much of one.
    assert made.tie.tolist() == [True, False, False, False, False]
    assert made.rejected.tolist() == [False, True, False, True, False]
    assert made.majority.tolist() == [True, True, True, True, False]
    assert made.first.tolist() == [0, 0, 2, 0, -1]
    assert made.a[:2].tolist() == [0.5, 0.25]
    tail = stats.binom.sf(23, 32, 0.5)
    assert tail < 0.05
    assert not ambiguity([[8.0, 7, 8, 9]]).rejected[0]


def test_of_a_small_class_fewer_neighbours_are_compared():
    """12 units of two classes each: of 32 neighbours most must be others, of 6 none need be."""
    near = np.array([0] * 11 + [1] * 12 + [2] * 9)

    def counted(k, rows):
        return np.bincount(near[:k], minlength=3)[None].repeat(len(rows), axis=0).astype(np.float32)

    small = ambiguity_of(counted, np.array([12, 12, 40]), np.arange(2))
    assert small.k.tolist() == [0, 0]
    assert not small.tie.any()
    assert small.majority.all()
    middle = ambiguity_of(counted, np.array([20, 20, 40]), np.arange(2))
    assert middle.k.tolist() == [8, 8]
    assert middle.rejected.all()
    large = ambiguity_of(counted, np.array([64, 64, 64]), np.arange(2))
    assert large.tie.all()


def test_mixed_is_what_stands_out_of_the_split():
    pure, halves = [32.0, 0], [17.0, 15]
    assert ambiguity([pure] * 300 + [halves] * 5).mixed.tolist() == [False] * 300 + [True] * 5
    assert not ambiguity([halves] * 300).mixed.any()


def test_soft_labels_count_as_fractions():
    hard = ambiguity([[10.0, 9.0, 1.0]])
    soft = ambiguity([[10.2, 9.1, 0.7]])
    assert hard.tie[0]
    assert soft.tie[0]


def test_one_class_is_never_ambiguous():
    made = ambiguity([[32.0]])
    assert not made.tie[0]
    assert made.a[0] == 0


def test_beta_quantile_of_many_equal_pairs():
    a = np.tile([1.0, 2.0], 500)
    assert np.allclose(beta_quantile(a, a[::-1]), stats.beta.ppf(0.05, a, a[::-1]))
