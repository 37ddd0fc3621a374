"""Gaps in the tracks of true boxes, and what T20 makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from mld_core.evaluation.detection3d.diagnoses import diagnose_roads
from mld_core.evaluation.detection3d.evidence import RoadEvidence
from mld_core.evaluation.detection3d.tracks import gaps_of, middles_of
from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.nuscenes import NuscenesProfile

COUNT = 31


def seen_from_a_turn(frames=30, objects=12, seed=0):
    """Truths of objects that stand or drive, in the frame of a vehicle that drives 6 m and turns 4 degrees a frame."""
    rng = np.random.default_rng(seed)
    start, step = (
        rng.uniform(-40, 40, (objects, 2)),
        rng.normal(0, 2, (objects, 2)) * (rng.random((objects, 1)) < 0.5),
    )
    size = np.exp(rng.normal(0.5, 0.4, (objects, 3)))
    turn = np.radians(4.0) * np.arange(frames)
    at = np.cumsum(6 * np.column_stack([np.cos(turn), np.sin(turn)]), axis=0)
    rows = []
    for frame in range(frames):
        c, s = np.cos(turn[frame]), np.sin(turn[frame])
        own = (start + step * frame - at[frame]) @ np.array([[c, -s], [s, c]])
        rows.append(np.column_stack([own, np.zeros(objects), size, np.zeros(objects)]))
    no = np.zeros(frames * objects, bool)
    label = np.tile(np.arange(objects) % 3, frames)
    return Truths(np.repeat(np.arange(frames), objects), label, np.concatenate(rows), no, no)


def test_a_gap_is_found_from_a_vehicle_that_drives_and_turns() -> None:
    truths = seen_from_a_turn()
    assert not middles_of(truths, 30).gap.any()
    near = np.hypot(*truths.box[:, :2].T) < 40
    inner = np.flatnonzero(near & (truths.frame > 0) & (truths.frame < 29))
    gone = inner[::50]
    made = middles_of(truths.take(np.setdiff1d(np.arange(len(truths)), gone)), 30)
    assert sorted(made.frame[made.gap].tolist()) == sorted(truths.frame[gone].tolist())
    order = np.argsort(made.frame[made.gap])
    assert (
        np.abs(made.place[made.gap][order] - truths.box[gone, :2][np.argsort(truths.frame[gone])]).max() < 0.5
    )
    assert made.label[made.gap][order].tolist() == truths.label[gone][np.argsort(truths.frame[gone])].tolist()


def test_an_object_that_nobody_labelled_leaves_no_gap() -> None:
    truths = seen_from_a_turn()
    left = truths.take(np.flatnonzero(np.arange(len(truths)) % 12 != 5))
    assert not middles_of(left, 30).gap.any()


@pytest.mark.parametrize("frames", [0, 1, 2, 3])
def test_few_frames_and_no_boxes(frames: int) -> None:
    none = seen_from_a_turn().take(np.zeros(0, int))
    made = middles_of(none, frames)
    assert len(made.gap) == 0
    no = np.zeros(0, np.int64)
    said = Predictions(no, no, np.zeros(0), np.zeros((0, 7)))
    gaps = gaps_of(said, np.zeros(0, bool), no, made)
    assert (len(gaps.near), gaps.odds, gaps.by_chance) == (0, 1.0, 0.0)


def with_a_gap(rows):
    """Cars that stand 20 m ahead in 31 frames; those of `rows` are found, with a high error probability, and not labelled."""
    box = np.tile([20.0, 0, 0, 2, 4, 1.5, 0.3], (COUNT, 1))
    frame, label, no = np.arange(COUNT), np.zeros(COUNT, np.int64), np.zeros(COUNT, bool)
    keep = np.setdiff1d(frame, rows)
    truth, proba = np.full(COUNT, -1), np.full(COUNT, 0.1)
    truth[keep], proba[rows] = np.arange(len(keep)), 0.9
    said = Predictions(
        frame, label, np.full(COUNT, 0.9), box + np.random.default_rng(0).normal(0, 0.02, box.shape)
    )
    few = no[keep]
    truths = Truths(keep, label[keep], box[keep], few, few)
    cars = NuscenesProfile.of(["car"])
    return RoadEvidence(said, truths, truth, ~no, few, few, cars, COUNT, said, error_proba=proba)


def test_t20_names_what_stands_in_a_gap_whatever_its_error_probability() -> None:
    made = diagnose_roads(with_a_gap([10, 20]))
    assert made.predictions["T20"].nonzero()[0].tolist() == [10, 20]
    assert (made.suspicion["T20"][[10, 20]] > 0.2).all()  # without gaps 0.1
    # Two frames without a label are no gap.
    assert not diagnose_roads(with_a_gap([10, 11])).predictions["T20"].any()


def test_gaps_that_come_by_chance_name_nothing() -> None:
    """Two labels in five are missing: boxes are near the gaps of other frames as often as of their own."""
    rows = np.flatnonzero(np.random.default_rng(1).random(COUNT) < 0.4)
    evidence = with_a_gap(rows)
    assert evidence.gaps.near.any()
    assert evidence.gaps.odds < 5
    assert not diagnose_roads(evidence).predictions["T20"].any()


def one_gap(frames: int, label: int = 0, said: int = 0, at: int = 1):
    """An object that stands in each frame but one, and a prediction of a class in a frame."""
    box = np.array([10.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0], np.float32)
    where = np.array([f for f in range(frames) if f != 1])
    no = np.zeros(len(where), bool)
    truths = Truths(where, np.full(len(where), label), np.tile(box, (len(where), 1)), no, no)
    told = Predictions(np.array([at]), np.array([said]), np.array([0.9], np.float32), box[None])
    return gaps_of(told, np.array([True]), np.zeros(0, int), middles_of(truths, frames))


@pytest.mark.parametrize("frames", [3, 4, 5, 7, 40])
def test_a_gap_is_no_chance_of_its_own_in_few_frames(frames: int) -> None:
    found = one_gap(frames)
    assert found.near.tolist() == [True]
    assert found.by_chance == 0


def test_boxes_of_no_class_have_no_gaps_and_are_near_none() -> None:
    assert not one_gap(40, label=1, said=-1, at=2).near.any()  # the last class of the frame before
    assert not one_gap(40, label=-1, said=-1).near.any()
