"""KITTI AP40 against a slow implementation on shapely polygons, and its rules one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kitti_frames import make_kitti, slow_ap

from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.kitti import (
    DIFFICULTIES,
    METRICS,
    KittiFrames,
    KittiState,
    difficulties,
    kitti_metrics,
    kitti_precisions,
    recall_thresholds,
)

pytest.importorskip("shapely", reason="the slow implementation needs shapely: pip install shapely")


@pytest.mark.parametrize(
    "setting",
    [
        {"seed": 0},
        {"seed": 1, "ties": True},
        {"seed": 2, "images": False},
        {"seed": 3, "truths": 2, "detections": 3},
    ],
)
def test_equal_to_the_slow_implementation(setting) -> None:
    data, _ = make_kitti(12, **setting)
    made, overlaps = kitti_metrics(data), {}
    compared = 0
    for m, metric in enumerate(METRICS):
        if metric == "image" and data.image_box is None:
            assert np.isnan(made.ap[m]).all()
            continue
        for c in range(3):
            for level in range(len(DIFFICULTIES)):
                if made.truths[c, level] == 0:
                    assert np.isnan(made.ap[m, c, level])
                    continue
                ap, aos = slow_ap(data, metric, c, level, overlaps)
                assert made.ap[m, c, level] == pytest.approx(ap, abs=1e-9)
                assert made.aos[m, c, level] == pytest.approx(aos, abs=1e-9)
                compared += 1
    assert compared >= 12
    assert made.ap[2, 0, 2] > 0.05, "a comparison of zeros would say nothing"


def some_frames(data, first, stop):
    """The frames of a pass from `first` to `stop`, numbered from 0."""

    def rows(frame):
        return np.flatnonzero((frame >= first) & (frame < stop))

    said, true, regions = rows(data.predictions.frame), rows(data.truths.frame), rows(data.dontcare_frame)
    found, truths = data.predictions.take(said), data.truths.take(true)
    return replace(
        data,
        predictions=replace(found, frame=found.frame - first),
        truths=replace(truths, frame=truths.frame - first),
        difficulty=data.difficulty[true],
        image_box=None if data.image_box is None else data.image_box[said],
        true_image_box=None if data.true_image_box is None else data.true_image_box[true],
        dontcare_frame=data.dontcare_frame[regions] - first,
        dontcare=data.dontcare[regions],
    )


@pytest.mark.parametrize("setting", [{"seed": 0}, {"seed": 1, "ties": True}, {"seed": 2, "images": False}])
def test_parts_of_a_pass_come_to_the_same_to_the_last_bit(setting) -> None:
    data, _ = make_kitti(30, **setting)
    cuts = [(0, 7), (7, 7), (7, 8), (8, 30)]
    parts = [KittiState.of(some_frames(data, *cut), number=cut[1] - cut[0]) for cut in cuts]
    made, whole = kitti_precisions(KittiState.merge(parts), data.class_names), kitti_metrics(data)
    for name in ("ap", "aos", "precision", "truths"):
        np.testing.assert_array_equal(getattr(made, name), getattr(whole, name))
    assert np.nanmax(whole.ap[2]) > 0.05


def test_image_boxes_that_a_part_lacks_ignore_nothing_in_the_others() -> None:
    data, _ = make_kitti(20, seed=4)
    data = replace(data, true_image_box=None)
    first, rest = some_frames(data, 0, 10), some_frames(data, 10, 20)
    hidden = KittiState.of(first, number=10, seen=np.zeros(len(first.predictions), bool))
    made = KittiState.merge([hidden, KittiState.of(replace(rest, image_box=None), number=10)])
    whole = kitti_metrics(replace(data, image_box=None))
    np.testing.assert_array_equal(kitti_precisions(made, data.class_names).ap, whole.ap)


COPIES = 60
"""Frames that hold the same: with fewer than 41 truths not every recall position has a threshold of its own."""


def one(*rows, names=("Car", "Van"), **more):
    """Rows (kind, label, x, score or difficulty) of a frame, in 60 frames; boxes 10 m apart do not touch."""
    found = [(label, x, score) for kind, label, x, score in rows if kind == "found"]
    true = [(label, x, level) for kind, label, x, level in rows if kind == "true"]

    def columns(part):
        frame = np.repeat(np.arange(COPIES), len(part))
        box = np.array([[x, 0, 0, 1.6, 4.0, 1.5, 0.0] for _, x, _ in part]).reshape(-1, 7)
        label, value = (np.array([one[k] for one in part], kind) for k, kind in ((0, np.int64), (2, float)))
        return frame, np.tile(label, COPIES), np.tile(box, (COPIES, 1)), np.tile(value, COPIES)

    frame, label, box, score = columns(found)
    where, kind, real, level = columns(true)
    no = np.zeros(len(where), bool)
    truths = Truths(where, kind, real, no, no)
    return KittiFrames(Predictions(frame, label, score, box), truths, level.astype(int), names, **more)


def test_a_neighbouring_class_and_a_harder_truth_absorb_their_prediction() -> None:
    rows = [("true", 0, 0, 0), ("found", 0, 0, 0.5)]
    assert kitti_metrics(one(*rows)).ap[2, 0, 0] == 1
    false = kitti_metrics(one(*rows, ("found", 0, 20, 0.9)))
    assert false.ap[2, 0, 0] == pytest.approx(0.5)
    van = kitti_metrics(one(*rows, ("found", 0, 20, 0.9), ("true", 1, 20, 0)))
    assert van.ap[2, 0, 0] == 1
    harder = kitti_metrics(one(*rows, ("found", 0, 20, 0.9), ("true", 0, 20, 2)))
    assert harder.ap[2, 0, 0] == 1
    assert harder.truths[0].tolist() == [COPIES, COPIES, 2 * COPIES]


def test_overlap_must_exceed_the_class_threshold() -> None:
    """Shifted by 0.7 m of 4 m: IoU 0.702; by 0.75 m: 0.684."""
    hit, miss = (kitti_metrics(one(("true", 0, 0, 0), ("found", 0, x, 0.5))).ap[1, 0, 0] for x in (0.7, 0.75))
    assert (hit, miss) == (1, 0)
    walker = kitti_metrics(one(("true", 0, 0, 0), ("found", 0, 0.75, 0.5), names=("Pedestrian",)))
    assert walker.ap[1, 0, 0] == 1, "0.5 for pedestrians"


def test_dontcare_absorbs_false_positives_of_the_image_metric_only() -> None:
    image = np.array([[0, 0, 100, 100.0], [500, 0, 600, 100]])
    data = one(
        ("true", 0, 0, 0),
        ("found", 0, 0, 0.5),
        ("found", 0, 20, 0.9),
        image_box=np.tile(image, (COPIES, 1)),
        true_image_box=np.tile(image[:1], (COPIES, 1)),
        dontcare_frame=np.arange(COPIES),
        dontcare=np.tile([[450, 0, 700, 200.0]], (COPIES, 1)),
    )
    made = kitti_metrics(data)
    assert made.ap[:, 0, 0] == pytest.approx([1, 0.5, 0.5])
    outside = kitti_metrics(replace(data, dontcare=np.tile([[550, 0, 700, 200.0]], (COPIES, 1))))
    assert outside.ap[0, 0, 0] == pytest.approx(0.5), "half of the box lies in the region, not 0.7"


def test_orientation_weighs_the_matches() -> None:
    data = one(("true", 0, 0, 0), ("found", 0, 0, 0.5))
    data.predictions.box[:, 6] = np.pi
    made = kitti_metrics(data)
    assert made.ap[2, 0, 0] == pytest.approx(1)
    assert made.aos[2, 0, 0] == pytest.approx(0)
    assert made.summary()["aos40_easy"] == pytest.approx(0)


def test_difficulty_and_thresholds() -> None:
    assert difficulties(np.array([40.0, 41.0]), np.zeros(2), np.zeros(2)).tolist() == [1, 0], (
        "40 px is not above 40"
    )
    assert difficulties(np.full(2, 99.0), np.array([0, 3]), np.array([0.5, 0.0])).tolist() == [2, -1]
    assert len(recall_thresholds(np.linspace(0, 1, 400), 400)) == 41


def test_few_truths_reach_few_recall_positions_as_in_kitti() -> None:
    data = one(("true", 0, 0, 0), ("found", 0, 0, 0.5))
    few = replace(
        data,
        predictions=data.predictions.take(np.arange(10)),
        truths=data.truths.take(np.arange(10)),
        difficulty=data.difficulty[:10],
    )
    assert kitti_metrics(data).ap[2, 0, 0] == 1
    assert kitti_metrics(few).ap[2, 0, 0] == pytest.approx(9 / 40)


def test_nothing_to_find_is_none() -> None:
    assert set(kitti_metrics(one(("found", 0, 0, 0.5))).summary().values()) == {None}
    nothing = kitti_metrics(one(("true", 0, 0, 0)))
    assert nothing.summary()["ap40_3d_easy"] == 0
