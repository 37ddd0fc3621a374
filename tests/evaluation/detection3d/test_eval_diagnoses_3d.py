"""3D diagnoses: each predicate on hand-made boxes, planted faults on simulated roads, and the evaluator's results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import road_simulation as roads
from boxes_store import write
from numpy.testing import assert_allclose, assert_array_equal

from ml_debugger.evaluator import Evaluator
from mld_core.evaluation.codes.diagnosis import markdown_table
from mld_core.evaluation.detection3d.bins import (
    bev_heatmap,
    breakdown,
    points_names,
    range_bin,
    range_names,
    speed_names,
)
from mld_core.evaluation.detection3d.diagnoses import DIAGNOSES, diagnose_roads
from mld_core.evaluation.detection3d.diagnoses_sensor import BinCounts, SectorView
from mld_core.evaluation.detection3d.evidence import RoadEvidence
from mld_core.evaluation.detection3d.offsets import offsets_of, robust_bound
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.nuscenes import NuscenesProfile
from mld_core.records.format.layout import RunKey, Store

# --- predicates on pairs ----------------------------------------------------------------------------------------

USUAL = 30
"""Pairs of small errors, beside which the last one is judged."""


def pairs(change, *, name="car", speed=(0.0, 0.0), said_speed=(0.0, 0.0), epochs=(), missed=None, **more):
    """Evidence of 31 cars 20 m ahead, one a frame; the last prediction is changed by `change(box)`."""
    rng = np.random.default_rng(0)
    count = USUAL + 1
    true = np.tile([20.0, 0, 0, 2, 4, 1.5, 0.3], (count, 1))
    found = true + rng.normal(0, 0.02, true.shape)
    found[-1] = true[-1]
    change(found[-1])
    frame, label = np.arange(count), np.zeros(count, np.int64)
    no = np.zeros(count, bool)
    predictions = Predictions(frame, label, np.full(count, 0.9), found)
    velocity, true_velocity = np.tile(said_speed, (count, 1)), np.tile(speed, (count, 1))
    velocity[:-1] = true_velocity[:-1] + rng.normal(0, 0.02, (USUAL, 2))
    given = {
        "velocity": velocity,
        "true_velocity": true_velocity,
        "error_proba": np.full(count, 0.1),
        "epochs": [replace(predictions, box=one(predictions.box.copy())) for one in epochs],
    }
    return RoadEvidence(
        predictions,
        Truths(frame, label, true, no, no),
        np.arange(count),
        ~no,
        no if missed is None else missed,
        no,
        NuscenesProfile.of([name]),
        count,
        predictions,
        **(given | more),
    )


def codes(evidence, row=-1):
    return sorted(code for code, mask in diagnose_roads(evidence).predictions.items() if mask[row])


def move(**by):
    places = {"x": 0, "y": 1, "z": 2, "yaw": 6}

    def change(box):
        for name, value in by.items():
            box[places[name]] += value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (move(), []),
        (move(x=1.2), ["T01"]),
        (move(y=1.2), ["T02"]),
        (move(x=0.4), []),
        (move(z=0.5), ["T03"]),
        (move(yaw=0.6), ["T05"]),
        (move(yaw=3.0), ["T06"]),
    ],
    ids=["fine", "depth", "lateral", "below the floor", "height", "yaw", "flip"],
)
def test_offsets(change, expected) -> None:
    made = [code for code in codes(pairs(change)) if code < "T20"]
    assert made == expected


def test_size_errors_and_exchanged_axes() -> None:
    def swap(box):
        box[3], box[4] = box[4], box[3]

    made = diagnose_roads(pairs(swap))
    assert made.predictions["T04"][-1]
    assert made.swapped[-1]

    def shrink(box):
        box[3:6] *= 0.6

    made = diagnose_roads(pairs(shrink))
    assert made.predictions["T04"][-1]
    assert not made.swapped[-1]
    assert not made.predictions["T04"][:-1].all()


def test_velocity_and_classes_without_it() -> None:
    assert codes(pairs(move(), speed=(5, 0), said_speed=(2, 0))) == ["T07"]
    assert codes(pairs(move(), name="barrier", speed=(5, 0), said_speed=(2, 0))) == []
    assert codes(pairs(move(yaw=3.0), name="traffic_cone")) == [], "a cone has no heading"
    assert codes(pairs(move(yaw=np.pi), name="barrier")) == [], "a barrier looks the same from behind"


def test_a_flipped_label_is_told_from_a_flipped_prediction_by_the_motion() -> None:
    turned = move(yaw=np.pi)
    along = (5 * np.cos(0.3), 5 * np.sin(0.3))
    label, model = pairs(turned, speed=(-along[0], -along[1])), pairs(turned, speed=along)
    assert "T22" in codes(label)
    assert "T22" not in codes(model)
    assert diagnose_roads(label).suspicion["T22"][-1] > 0.8 > diagnose_roads(model).suspicion["T22"][-1]


def test_a_flipped_label_of_a_standing_car_is_told_by_other_epochs() -> None:
    def alike(box):
        return box

    def straight(box):
        box[-1, 6] -= np.pi
        return box

    turned = move(yaw=np.pi)
    assert "T22" in codes(pairs(turned, epochs=[alike, alike]))
    assert "T22" not in codes(pairs(turned, epochs=[straight, straight]))
    nothing = pairs(turned, true_velocity=None, velocity=None)
    assert diagnose_roads(nothing).not_computable["T22"].startswith("not computable: neither velocities")


def test_epochs_say_nothing_of_headings_the_detector_only_guesses() -> None:
    evidence = pairs(move(yaw=np.pi))
    box = evidence.predictions.box.copy()
    box[: USUAL // 2 - 1, 6] += np.pi
    guessed = replace(evidence.predictions, box=box)
    evidence = replace(evidence, predictions=guessed, epochs=[guessed, guessed])
    made = diagnose_roads(evidence)
    assert made.predictions["T06"].sum() == USUAL // 2
    assert not made.predictions["T22"].any()
    assert made.suspicion["T22"][-1] < 0.1
    backwards = np.tile((-5 * np.cos(0.3), -5 * np.sin(0.3)), (USUAL + 1, 1))
    assert "T22" in codes(replace(evidence, true_velocity=backwards)), "the motion still tells"


def test_a_shifted_label_needs_other_epochs_that_agree() -> None:
    def alike(box):
        return box

    def back(box):
        box[-1, 0] -= 1.2
        return box

    assert "T21" in codes(pairs(move(x=1.2), epochs=[alike, alike]))
    assert "T21" not in codes(pairs(move(x=1.2), epochs=[back, back]))
    alone = diagnose_roads(pairs(move(x=1.2))).suspicion["T21"]
    assert alone.argmax() == USUAL


def test_unlabelled_objects_and_ghosts() -> None:
    evidence = pairs(move())
    extra = Predictions(
        np.array([5, 6]), np.zeros(2, int), np.array([0.9, 0.9]), np.tile([-9.0, 9, 0, 2, 4, 1, 0], (2, 1))
    )
    joined = [
        np.concatenate([getattr(evidence.predictions, k), getattr(extra, k)])
        for k in ("frame", "label", "score", "box")
    ]
    count = USUAL + 3
    made = diagnose_roads(
        replace(
            evidence,
            predictions=Predictions(*joined),
            truth=np.append(evidence.truth, [-1, -1]),
            counted=np.ones(count, bool),
            velocity=None,
            error_proba=np.append(np.full(USUAL + 1, 0.1), [0.05, 0.95]),
            points_inside=np.append(np.full(USUAL + 1, 50), [0, 30]),
        )
    )
    assert made.predictions["T20"].nonzero()[0].tolist() == [USUAL + 1]
    assert made.predictions["T13"].nonzero()[0].tolist() == [USUAL + 2]
    assert made.suspicion["T20"][-2] > 0.9 > 0.1 > made.suspicion["T20"][-1]
    assert "T13" in diagnose_roads(evidence).not_computable


def test_few_point_misses() -> None:
    points = np.full(USUAL + 1, 50)
    points[[3, 4, 5]] = [5, 6, -1]
    missed = np.zeros(USUAL + 1, bool)
    missed[[3, 4, 5]] = True
    made = diagnose_roads(pairs(move(), missed=missed, n_points=points))
    assert made.truths["T10"].nonzero()[0].tolist() == [3]
    assert "T10" in diagnose_roads(pairs(move(), missed=missed)).not_computable


def test_offsets_are_seen_from_the_sensor_and_bounds_are_robust() -> None:
    evidence = pairs(move(x=3.0, y=4.0))
    box = evidence.truths.box
    box[:, :2] = [0, 20.0]
    evidence.predictions.box[:, :2] += [-20, 20]
    last = offsets_of(evidence)
    assert_allclose((last.along[-1], last.across[-1], last.flat[-1]), (4, 3, 5))
    values = np.array([1.0, 2, 3, 4, 100])
    assert_allclose(robust_bound(values, np.zeros(5, int)), 3 + 3 * 1.4826)
    assert_allclose(robust_bound(values * 0, np.zeros(5, int), 0.5), 0.5)


def test_one_frame_and_no_box_at_all() -> None:
    nothing = Predictions(*(np.zeros(0, kind) for kind in (int, int, float)), np.zeros((0, 7)))
    empty, no = np.zeros(0, np.int64), np.zeros(0, bool)
    truths = Truths(empty, empty, np.zeros((0, 7)), no, no)
    made = diagnose_roads(
        RoadEvidence(nothing, truths, empty, no, no, no, NuscenesProfile.of(["car"]), 1, nothing)
    )
    assert all(len(mask) == 0 for mask in (*made.predictions.values(), *made.truths.values()))
    assert "T12" in made.not_computable


def test_the_catalogue_holds_every_code() -> None:
    assert [entry.code for entry in DIAGNOSES] == sorted(entry.code for entry in DIAGNOSES)
    made = diagnose_roads(pairs(move(), n_points=np.full(USUAL + 1, 9), points_inside=np.full(USUAL + 1, 9)))
    emitted = {*made.predictions, *made.truths, *made.not_computable}
    assert {entry.code for entry in DIAGNOSES} == emitted
    assert all(BY_CODE[code].severity for code in emitted)


def test_the_document_has_the_catalogue_of_the_code() -> None:
    text = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text("utf-8")
    table = text.partition("<!-- catalogue3d:begin -->\n")[2].partition("<!-- catalogue3d:end -->")[0]
    assert table.splitlines()[2:] == markdown_table(DIAGNOSES)


# --- bins -------------------------------------------------------------------------------------------------------


def test_breakdown_by_range() -> None:
    far = np.array([5.0, 5, 15, 25])
    bins = range_names(range_bin(far))
    right, missed = np.array([True, False, True, False]), np.array([False, True, True, False])
    rows = breakdown(bins, right, bins, missed, np.tile([0.5, 0.1, np.nan, 1.0], (4, 1)))
    assert [row["bin"] for row in rows] == ["0-10 m", "10-20 m", "20-30 m"]
    assert [row["recall"] for row in rows] == [0.5, 0.0, 1.0]
    assert [row["precision"] for row in rows] == [0.5, 1.0, 0.0]
    assert rows[0]["ate"] == 0.5
    assert rows[0]["aoe"] is None
    assert rows[2]["ate"] is None
    speeds = speed_names(np.array([[12.0, 0], [0, 0.2], [np.nan, 0]]))
    assert [row["bin"] for row in breakdown(speeds, right[:3], speeds, missed[:3])] == [
        "0-0.5 m/s",
        "10+ m/s",
    ]
    classes = np.array(["car", "bus"], object)
    assert [row["bin"] for row in breakdown(classes, right[:2], classes, missed[:2])] == ["bus", "car"]
    assert points_names(np.array([0, 1, 6, 21, 101, 501, -1])).tolist()[-2:] == ["501+", None]


def test_heatmap_finds_the_bad_cell() -> None:
    rng = np.random.default_rng(0)
    distance, azimuth = rng.uniform(0, 30, 6000), rng.uniform(-180, 180, 6000)
    bad = (distance >= 20) & (azimuth >= 40) & (azimuth < 50)
    wrong = rng.random(6000) < np.where(bad, 0.9, 0.1)
    made = bev_heatmap(distance, azimuth, wrong)
    assert made.n.shape == (3, 36)
    assert made.n.sum() == 6000
    assert np.argwhere(made.significant).tolist() == [[2, 22]]
    assert made.azimuth_edges[22] == 40
    assert made.low[2, 22] < made.errors[2, 22] / made.n[2, 22] < made.high[2, 22]
    assert 0.1 < made.value[2, 22] < 0.9, "shrunk towards the overall rate"
    assert bev_heatmap(distance, azimuth, wrong, farthest=20).n.sum() == (distance < 20).sum()
    empty = bev_heatmap(np.empty(0), np.empty(0), np.empty(0, bool))
    assert np.isnan(empty.value).all()


# --- planted faults ---------------------------------------------------------------------------------------------


def test_range_drop_off_of_one_class_only() -> None:
    plain = roads.simulate(frames=240, seed=21)
    faulty = roads.range_dropout(plain, label=0, metres=30)
    cells = {}
    for name, road in (("plain", plain), ("faulty", faulty)):
        e = roads.evidence(road, objects=False)
        wrong = e.counted & (e.truth < 0)
        boxes = e.predictions, wrong, e.counted, e.truths, e.missed
        made = BinCounts.of(*boxes).flagged().of_boxes(*boxes)
        cells[name] = {(row["class"], row["range_bin"]) for row in made.rows}
        inside = e.truths.label[made.truths], range_bin(np.hypot(*e.truths.box[made.truths, :2].T))
        assert set(zip(*(part.tolist() for part in inside), strict=True)) <= cells[name]
        assert e.missed[made.truths].all()
    assert {(0, 3), (0, 4)} <= cells["faulty"]
    assert len(cells["faulty"] - {(0, 3), (0, 4), (0, 5)}) <= 1
    assert len(cells["plain"]) <= 1


def test_silent_sectors_are_found_in_their_frames() -> None:
    road = roads.sector_dropout(roads.simulate(frames=240, seed=22, clutter=150), degrees=60, seed=2)
    made = diagnose_roads(roads.evidence(road, objects=False))
    flagged = np.zeros(road.frames, bool)
    flagged[[row["frame"] for row in made.dropouts]] = True
    assert road.frames_hit[flagged].mean() >= 0.9
    assert flagged[road.frames_hit].mean() >= 0.7
    assert road.frames_hit[road.truths.frame[made.truths["T12"]]].mean() >= 0.9
    plain = diagnose_roads(roads.evidence(roads.simulate(frames=240, seed=23), objects=False))
    assert len(plain.dropouts) <= 2


def test_label_faults_rank_before_the_detectors_own_errors() -> None:
    plain = roads.simulate(frames=240, seed=24)
    for fault, code, least in (
        (roads.flipped_labels(plain, seed=1), "T22", 0.85),
        (roads.shifted_labels(plain, seed=1), "T21", 0.6),
    ):
        e = roads.evidence(fault, objects=False)
        hit = np.zeros(len(e.predictions), bool)
        hit[e.truth >= 0] = fault.hit[e.truth[e.truth >= 0]]
        score = np.nan_to_num(diagnose_roads(e).suspicion[code], nan=-1)
        top = np.argsort(-score)[: hit.sum()]
        assert hit[top].mean() >= least
        assert hit.mean() < 0.1


def test_the_evaluator_shows_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLD_HOME", str(tmp_path))
    road = roads.flipped_labels(roads.simulate(frames=40, seed=3, clutter=15, objects=20), share=0.1, seed=3)
    store, run = Store(tmp_path), RunKey("lidar", "v1")
    for epoch in (1, 2):
        found, frames = road.epochs[epoch], []
        for k in range(road.frames):
            a, b = found.frame == k, road.truths.frame == k
            said = {"box": found.box[a], "label": found.label[a], "score": found.score[a]}
            if epoch == 2:
                said["velocity"] = road.velocity[a]
            true = {
                "box": road.truths.box[b],
                "label": road.truths.label[b],
                "velocity": road.true_velocity[b],
                "n_points": road.n_points[b],
                "difficulty": np.minimum(road.n_points[b] < 20, 1).astype(int),
            }
            frames.append({"input_id": f"frame{k}", "detections": said, "truths": true})
        write(store, run, "val", frames, "detection3d", class_names=list(roads.CLASSES), n_epoch=epoch)
    result = Evaluator("lidar", "v1").request_evaluation(options={"repeats": 1})
    (row,) = result.metrics_summary(full=True).to_dict("records")
    assert row["profile"] == "nuscenes"
    assert 0.2 < row["nds"] < 0.9
    assert 0 < row["mate"] < 1
    assert row["maoe"] > 0.2, "a tenth of the labels are turned round"
    assert row["ap40_bev_easy"] > row["ap40_3d_easy"] > 0
    assert row["ap40_3d_moderate"] is not None
    facts = result.info["facts"][0]
    assert facts["code_counts"]["T22"] > 0
    assert "D20" not in facts["code_counts"]
    assert facts["not_computable"]["T13"].startswith("not computable: the points inside")
    issues = result.get_issues("val", code="T22")
    assert {"T06", "T22"} <= set(issues["diagnosis"].iloc[0])
    assert (issues["aoe"] > np.pi / 2).all()
    view = result.get_view("points_bin", metrics=["mean_ate"])
    errors = dict(zip(view["points_bin"], view["error_rate"], strict=True))
    assert errors["0"] > errors["21-100"]
    assert set(result.get_view("speed_bin")["speed_bin"].dropna()) >= {"0-0.5 m/s"}
    assert_array_equal(np.sort(result.get_view("range_bin")["range_bin"])[0], "0-10 m")


# --- a pass in parts --------------------------------------------------------------------------------------------


def part_of(road, first, stop):
    """Some frames of a road, numbered from 0; the epoch that is evaluated alone."""
    found, true = road.epochs[-1], road.truths
    said, rows = ((one.frame >= first) & (one.frame < stop) for one in (found, true))
    found, true = found.take(said), true.take(rows)
    return (
        replace(found, frame=found.frame - first),
        replace(true, frame=true.frame - first),
        road.n_points[rows],
    )


def test_sectors_and_bins_of_parts_come_to_those_of_the_pass() -> None:
    road = roads.sector_dropout(roads.simulate(frames=60, seed=22, clutter=60), share=0.1, degrees=90, seed=2)
    road = roads.range_dropout(road, label=0, metres=30)
    cuts = [(0, 20), (20, 20), (20, 21), (21, 60)]
    views, counts = [], []
    for first, stop in [(0, 60), *cuts]:
        found, true, points = part_of(road, first, stop)
        near = [
            np.hypot(*(found.box[found.frame == f, :2] - box[:2]).T)
            for f, box in zip(true.frame, true.box, strict=True)
        ]
        silent = np.array([len(one) == 0 or one.min() >= 2 for one in near], bool)
        views.append(SectorView.of(true, silent, found, stop - first, points))
        wrong = np.zeros(len(found), bool)
        counts.append(BinCounts.of(found, wrong, np.ones(len(found), bool), true, silent & true.counts))
    whole, parts = views[0].dead(), SectorView.merge(views[1:]).dead()
    assert whole.rows == parts.rows
    assert len(whole.rows) > 2
    _, true, _ = part_of(road, *cuts[-1])
    missed = np.ones(len(true), bool)
    inside = whole.of_truths(road.truths, np.ones(len(road.truths), bool)).truths
    assert_array_equal(whole.of_truths(true, missed, cuts[-1][0]).truths, inside[-len(true) :])
    whole, parts = counts[0].flagged(), BinCounts.merge(counts[1:]).flagged()
    assert whole.rows == parts.rows
    assert len(whole.rows) > 0
