"""nuScenes metrics: figures worked out by hand, a slow independent matcher, merging, and what is undefined."""

from __future__ import annotations

import numpy as np
import pytest
from frames_3d import NUSCENES, make_frames
from numpy.testing import assert_allclose, assert_array_equal

from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.nuscenes import (
    DISTANCES,
    NuscenesProfile,
    NuscenesState,
    match_by_distance,
    match_nuscenes,
    nuscenes_metrics,
    tp_errors,
)


def boxes(*centres, yaw=0.0):
    return np.array([[x, y, 0.0, 2.0, 4.0, 1.5, yaw] for x, y in centres]).reshape(-1, 7)


def some(centres, scores, *, frame=None, label=0):
    count = len(centres)
    where = np.zeros(count, np.int64) if frame is None else np.asarray(frame)
    return Predictions(where, np.full(count, label), np.asarray(scores, float), boxes(*centres))


def true(centres, *, frame=None, ignore=None, label=0):
    count = len(centres)
    where = np.zeros(count, np.int64) if frame is None else np.asarray(frame)
    ignored = np.zeros(count, bool) if ignore is None else np.asarray(ignore)
    return Truths(where, np.full(count, label), boxes(*centres), ignored, np.zeros(count, bool))


def slow_match(p, t, most):
    """One prediction after the other, as the devkit states it."""
    taken, hits = set(), np.zeros(len(p), bool)
    for i in sorted(range(len(p)), key=lambda k: (-p.score[k], -k)):
        near = [
            (np.hypot(*(p.box[i, :2] - t.box[g, :2])), g)
            for g in range(len(t))
            if t.frame[g] == p.frame[i] and t.label[g] == p.label[i] and g not in taken
        ]
        if near and min(near)[0] < most:
            taken.add(min(near)[1])
            hits[i] = True
    return hits


@pytest.mark.parametrize("seed", range(4))
def test_matching_equals_the_plain_loop(seed) -> None:
    data = make_frames(25, seed=seed, truths=20, detections=40, reach=15.0, ties=seed % 2 == 1)
    right, ignored, at_two = match_by_distance(data.predictions, data.truths, len(NUSCENES))
    for bit, most in enumerate(DISTANCES):
        assert_array_equal(right >> bit & 1 == 1, slow_match(data.predictions, data.truths, most))
    assert not ignored.any()
    assert_array_equal(at_two >= 0, right >> 2 & 1 == 1)
    hit = np.flatnonzero(at_two >= 0)
    assert_array_equal(data.truths.frame[at_two[hit]], data.predictions.frame[hit])
    assert len(set(at_two[hit])) == len(hit), "no truth is found twice"


def test_ap_and_errors_by_hand() -> None:
    """Two truths, the better prediction 0.7 m off and turned by 0.2: right from 1 m on, recall 0.5."""
    found = some([(0.7, 0), (30, 0)], [0.9, 0.8])
    found.box[0, 6] = 0.2
    profile = NuscenesProfile.of(["thing"])
    state = match_nuscenes(found, true([(0, 0), (10, 0)]), profile)
    made = nuscenes_metrics(state, profile)
    at_05, *others = made.ap[:, 0]
    assert at_05 == 0
    # Precision is 1 below recall 0.5, 1/2 at it and 0 beyond: 39 points of 90 hold (1 - 0.1) / 0.9, one (1/2 - 0.1) / 0.9.
    expected = (39 + 0.4 / 0.9) / 90
    assert_allclose(others, expected)
    assert made.mean_ap == pytest.approx(expected * 3 / 4)
    assert made.mean_error("ate") == pytest.approx(0.7)
    assert made.mean_error("aoe") == pytest.approx(0.2)
    assert made.mean_error("ase") == pytest.approx(0)
    assert made.mean_error("ave") is None, "no velocities were given"
    assert made.nds == pytest.approx((5 * expected * 3 / 4 + 0.3 + 1 + 0.8) / 8)
    assert_allclose(made.curve[0, 0, :51], 0.7)
    assert np.isnan(made.curve[0, 0, 51:]).all()


def test_of_equally_scored_predictions_the_later_comes_first_and_of_equally_near_truths_the_first() -> None:
    right, _, at_two = match_by_distance(some([(0, 0), (0, 0)], [0.5, 0.5]), true([(0, 1), (0, -1)]), 1)
    assert at_two.tolist() == [1, 0]
    assert right.tolist() == [0b1100, 0b1100], "exactly 1 m is not below 1 m"


def test_an_ignored_truth_takes_its_prediction_out_of_the_count() -> None:
    found, truths = some([(0, 0), (20, 0)], [0.9, 0.8]), true([(0, 0), (20, 0)], ignore=[True, False])
    profile = NuscenesProfile.of(["thing"])
    made = nuscenes_metrics(match_nuscenes(found, truths, profile), profile)
    assert made.truths.tolist() == [1]
    assert_allclose(made.ap, 1.0)
    counted = nuscenes_metrics(match_nuscenes(found, true([(20, 0)]), profile), profile)
    assert (counted.ap < 1).all(), "without it the first prediction is a false one"


def test_range_points_and_unknown_classes() -> None:
    profile = NuscenesProfile.of(["car", "barrier"])
    state = match_nuscenes(
        some([(49, 0), (51, 0)], [0.9, 0.8]),
        true([(49, 0), (10, 0), (51, 0)]),
        profile,
        n_points=np.array([5, 0, 9]),
    )
    assert state.truths.tolist() == [1, 0]
    assert len(state.label) == 1
    outside = match_nuscenes(some([(1, 0)], [0.9], label=7), true([(1, 0)], label=-1), profile)
    assert len(outside.label) == 0
    assert outside.truths.sum() == 0


def test_rules_of_barriers_and_cones() -> None:
    turned = boxes((0, 0), yaw=np.pi - 0.1)
    assert tp_errors(turned, boxes((0, 0)), np.pi)[0, 2] == pytest.approx(0.1)
    assert tp_errors(turned, boxes((0, 0)))[0, 2] == pytest.approx(np.pi - 0.1)
    profile = NuscenesProfile.of(["car", "barrier", "traffic_cone"])
    rest = np.zeros((1, 2))
    states = [
        match_nuscenes(
            some([(5, 0)], [0.9], label=c),
            true([(5, 0)], label=c),
            profile,
            velocities=rest,
            true_velocities=rest,
        )
        for c in range(3)
    ]
    made = nuscenes_metrics(NuscenesState.merge(states), profile)
    known = [{name for name, value in made.of_class(c).items() if value is None} for c in range(3)]
    assert known == [set(), {"ave"}, {"aoe", "ave"}]
    assert made.mean_error("ave") == pytest.approx(0)


def test_undefined_is_none_and_an_absent_class_counts_by_the_devkits_rule_only_with_its_classes() -> None:
    profile = NuscenesProfile.of(["car", "bus"])
    nothing = nuscenes_metrics(match_nuscenes(some([(1, 0)], [0.9]), true([]), profile), profile)
    assert set(nothing.summary().values()) == {None}
    one = nuscenes_metrics(match_nuscenes(some([(1, 0)], [0.9]), true([(1, 0)]), profile), profile)
    assert one.mean_ap == pytest.approx(0.5), "the devkit counts a class without truths as 0"
    assert one.of_class(1) == dict.fromkeys(one.of_class(1))
    own = NuscenesProfile.of(["Car", "tram"])
    assert nuscenes_metrics(
        match_nuscenes(some([(1, 0)], [0.9]), true([(1, 0)]), own), own
    ).mean_ap == pytest.approx(1)


def test_merging_parts_changes_nothing() -> None:
    data, profile = make_frames(60, seed=3), NuscenesProfile.of(NUSCENES)

    def part(low, high):
        a = slice(*np.searchsorted(data.predictions.frame, (low, high)))
        b = slice(*np.searchsorted(data.truths.frame, (low, high)))
        more = {"velocities": data.velocities[a], "true_velocities": data.true_velocities[b]}
        return match_nuscenes(data.predictions.take(a), data.truths.take(b), profile, **more)

    whole = nuscenes_metrics(part(0, 60), profile)
    parts = nuscenes_metrics(NuscenesState.merge([part(k, k + 7) for k in range(0, 60, 7)]), profile)
    assert whole.summary() == parts.summary()
    assert_array_equal(whole.curve, parts.curve)


def test_nothing_predicted() -> None:
    profile = NuscenesProfile.of(["car"])
    made = nuscenes_metrics(match_nuscenes(some([], []), true([(1, 0)]), profile), profile)
    assert made.mean_ap == 0
    assert made.mean_error("ate") == 1
