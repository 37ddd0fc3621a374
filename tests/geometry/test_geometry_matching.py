"""Greedy and optimal matching against plain loops in the words of COCO and nuScenes, and brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mld_core.geometry import matching


def coco_loop(overlaps, scores, threshold, ignore, crowd):
    """The matching of COCO's evaluation, written out: truths that count come first, later ties win."""
    order = np.argsort(ignore, kind="stable")
    truth = np.full(len(scores), -1)
    taken = set()
    for d in np.argsort(-scores, kind="stable"):
        best, found = min(threshold, 1 - 1e-10), -1
        for g in order:
            if g in taken and not crowd[g]:
                continue
            if found >= 0 and not ignore[found] and ignore[g]:
                break
            if overlaps[d, g] < best:
                continue
            best, found = overlaps[d, g], g
        if found >= 0:
            truth[d] = found
            taken.add(found)
    return truth


def nuscenes_loop(distances, scores, threshold):
    """The matching of nuScenes' accumulate: the nearest truth not taken yet, if it is near enough."""
    truth, taken = np.full(len(scores), -1), set()
    for d in np.argsort(-scores, kind="stable"):
        least, found = np.inf, -1
        for g in range(distances.shape[1]):
            if g not in taken and distances[d, g] < least:
                least, found = distances[d, g], g
        if least < threshold:
            taken.add(found)
            truth[d] = found
    return truth


def case(seed, ties):
    rng = np.random.default_rng(seed)
    d, g = rng.integers(0, 12), rng.integers(0, 8)
    matrix = rng.integers(0, 6, (d, g)) / 5 if ties else rng.random((d, g))
    scores = rng.integers(0, 4, d) / 4 if ties else rng.random(d)
    crowd = rng.random(g) < 0.2
    return matrix, scores, crowd | (rng.random(g) < 0.3), crowd


@pytest.mark.parametrize("ties", [False, True])
def test_greedy_is_cocos_loop(ties):
    for seed in range(400):
        matrix, scores, ignore, crowd = case(seed, ties)
        threshold = [0.2, 0.5, 0.8][seed % 3]
        expected = coco_loop(matrix, scores, threshold, ignore, crowd)
        found = matching.greedy_match(matrix, scores, threshold, ignore=ignore, crowd=crowd)
        assert np.array_equal(found.truth, expected)
        assert np.array_equal(found.ignored, [g >= 0 and ignore[g] for g in expected])
        for g in range(matrix.shape[1]):
            mine = np.flatnonzero(expected == g)
            best = mine[np.argsort(-scores[mine], kind="stable")][:1].tolist() or [-1]
            assert found.detection[g] == best[0]


@pytest.mark.parametrize("ties", [False, True])
def test_greedy_is_nuscenes_loop(ties):
    for seed in range(400):
        matrix, scores, _, _ = case(seed, ties)
        found = matching.greedy_match(matrix * 4, scores, 2.0, distance=True)
        assert np.array_equal(found.truth, nuscenes_loop(matrix * 4, scores, 2.0))
        assert not found.ignored.any()


def test_optimal_is_the_best_of_all_matchings():
    for seed in range(150):
        rng = np.random.default_rng(seed)
        d, g = rng.integers(1, 6), rng.integers(1, 5)
        matrix = rng.random((d, g))
        for distance in (False, True):
            allowed = matrix < 0.6 if distance else matrix >= 0.4
            best = (0, 0.0)
            for choice in itertools.product(range(-1, g), repeat=d):
                used = [(i, j) for i, j in enumerate(choice) if j >= 0]
                if len({j for _, j in used}) == len(used) and all(allowed[p] for p in used):
                    total = sum(-matrix[p] if distance else matrix[p] for p in used)
                    best = max(best, (len(used), total))
            found = matching.optimal_match(matrix, 0.6 if distance else 0.4, distance=distance)
            pairs = [(i, j) for i, j in enumerate(found.truth) if j >= 0]
            total = sum(-matrix[p] if distance else matrix[p] for p in pairs)
            assert len(pairs) == best[0]
            assert total == pytest.approx(best[1])
            assert all(found.detection[j] == i for i, j in pairs)


def test_optimal_is_scipys_assignment_where_all_pairs_are_allowed():
    assign = pytest.importorskip("scipy.optimize").linear_sum_assignment
    rng = np.random.default_rng(1)
    matrix = rng.random((40, 25))
    rows, columns = assign(matrix, maximize=True)
    found = matching.optimal_match(matrix, 0.0)
    assert np.array_equal(found.truth[rows], columns)
    assert (found.truth >= 0).sum() == 25


def test_optimal_prefers_truths_that_count():
    matrix = np.array([[0.9, 0.6], [0.8, 0.0], [0.7, 0.0], [0.0, 0.1]])
    found = matching.optimal_match(matrix, 0.5, ignore=np.array([True, False]))
    assert found.truth.tolist() == [1, 0, -1, -1]
    assert found.ignored.tolist() == [False, True, False, False]
    found = matching.optimal_match(matrix, 0.5, crowd=np.array([True, False]))
    assert found.truth.tolist() == [1, 0, 0, -1]
    assert found.ignored.tolist() == [False, True, True, False]
    assert found.detection.tolist() == [1, 0]


def test_nan_never_matches():
    matrix = np.array([[np.nan, 0.2], [np.nan, np.nan]])
    for distance in (False, True):
        for found in (
            matching.greedy_match(
                matrix, np.array([0.9, 0.8]), 0.2 if not distance else 1.0, distance=distance
            ),
            matching.optimal_match(matrix, 0.2 if not distance else 1.0, distance=distance),
        ):
            assert found.truth.tolist() == [1, -1]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_both_are_matchings_and_optimal_matches_no_fewer(seed, threshold):
    matrix, scores, _, _ = case(seed, ties=False)
    greedy, optimal = (
        matching.greedy_match(matrix, scores, threshold),
        matching.optimal_match(matrix, threshold),
    )
    for found in (greedy, optimal):
        pairs = np.flatnonzero(found.truth >= 0)
        assert len(set(found.truth[pairs])) == len(pairs)
        assert (matrix[pairs, found.truth[pairs]] >= threshold).all()
    assert (optimal.truth >= 0).sum() >= (greedy.truth >= 0).sum()


def test_tensors_and_what_is_refused():
    matrix = torch.tensor([[0.6, 0.7], [0.8, 0.0]])
    found = matching.greedy_match(matrix, torch.tensor([0.9, 0.8]), 0.5, ignore=torch.tensor([False, True]))
    assert isinstance(found.truth, torch.Tensor)
    assert found.truth.tolist() == [0, -1]
    assert found.ignored.dtype == torch.bool
    assert matching.optimal_match(matrix, 0.5).truth.tolist() == [1, 0]
    overlaps = matching.coco_overlaps(
        torch.tensor([[0, 0, 2.0, 2.0]]), torch.tensor([[0, 0, 4.0, 4.0]]), torch.tensor([True])
    )
    assert overlaps.tolist() == [[1.0]]
    with pytest.raises(ValueError, match="one per row"):
        matching.greedy_match(np.ones((2, 2)), np.ones(3), 0.5)
    with pytest.raises(ValueError, match="crowd has shape"):
        matching.greedy_match(np.ones((2, 2)), np.ones(2), 0.5, crowd=np.ones(3, bool))
    with pytest.raises(ValueError, match="pass \\(detections, truths\\)"):
        matching.optimal_match(np.ones(2), 0.5)
