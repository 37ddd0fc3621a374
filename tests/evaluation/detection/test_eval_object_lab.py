"""Suspected labels in the cases that cleanlab tests its object detection with, on data of our own, beside its scores.

The shapes: labels that have nothing to do with what is said in their image, among images where both agree; a class
swapped, a box moved, a label removed, and each of these the worse the more is changed. Of its scores the better of
two thresholds counts: its own, .95, and .5.
"""

import warnings

import hard_detector as hard
import numpy as np
import object_lab as lab
import pytest
import simulated_detector as simulation

from mld_core.evaluation.detection import stage
from mld_core.evaluation.detection.diagnoses import diagnose_boxes
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.metrics.boxes import overlapping
from mld_core.records.format.layout import RunKey, Store

rank = pytest.importorskip("cleanlab.object_detection.rank")
OPTIONS = {"repeats": 1, "progress": False}
THRESHOLDS = (None, 0.5)


def evaluated(root, scene, *, vectors=False):
    """What the diagnoses read, and each unit's suspicion."""
    store, run = Store(root), RunKey("lab", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": scene.n_class})
    simulation.write(store, run, "val", scene, sigmoid=vectors)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "diagnose_boxes", lambda e: (seen.append(e), diagnose_boxes(e))[1])
        result = Evaluator("lab", "v1", store=root).request_evaluation(options=OPTIONS)
    return seen[0], diagnose_boxes(seen[0]).suspicion, result


def theirs(kind, labels, predictions):
    """cleanlab's scores of a kind, small where suspected, one array an image and threshold."""
    compute = getattr(rank, f"compute_{kind}_box_scores")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "badloc":
            return [compute(labels=labels, predictions=predictions)]
        return [
            compute(labels=labels, predictions=predictions, high_probability_threshold=one)
            for one in THRESHOLDS
        ]


def precision(ranked, planted):
    """Share of the first k that are planted, k as many as there are; each key counts once."""
    first = list(dict.fromkeys(key for _, key in sorted(ranked, key=lambda one: -one[0])))[: len(planted)]
    return sum(key in planted for key in first) / len(planted)


class Places:
    """Names of a scene's truths and boxes: (image, place) of a label, and which removed label a box stands on."""

    def __init__(self, scene, missing):
        self.scene, self.missing = scene, missing
        self.first = np.searchsorted(scene.truth_frame, np.arange(scene.frames))
        self.standing = np.full(len(scene.frame), -1)
        if missing:
            box = np.array([one[1] for one in missing])
            frame = np.array([one[0] for one in missing])
            pairs = overlapping(scene.box.astype(float), scene.frame, box, frame, 0.5)
            same = scene.label[pairs.left] == np.array([one[2] for one in missing])[pairs.right]
            self.standing[pairs.left[same]] = pairs.right[same]

    def truth(self, row):
        frame = int(self.scene.truth_frame[row])
        return frame, int(row - self.first[frame])

    def box(self, row):
        lost = int(self.standing[row])
        return ("lost", lost) if lost >= 0 else ("said", int(row))


def ranked_by_us(e, places):
    """Fault -> (suspicion, key) of every unit it is in question for."""
    asked = {"swapped": e.wrong_class, "shifted": e.bad_box, "missing": e.missing_label}
    made = {}
    for fault, suspects in asked.items():
        rows = np.flatnonzero(~np.isnan(suspects.score))
        key = (
            (lambda row: places.box(e.units.prediction[row]))
            if fault == "missing"
            else (lambda row: places.truth(e.units.truth[row]))
        )
        made[fault] = [(suspects.score[row], key(row)) for row in rows]
    return made


def ranked_by_cleanlab(scene, places):
    """Fault -> its rankings, one a threshold."""
    labels, predictions, rows_of = lab.as_theirs(scene)
    made = {}
    for fault, kind in (("swapped", "swap"), ("shifted", "badloc"), ("missing", "overlooked")):
        made[fault] = []
        for scores in theirs(kind, labels, predictions):
            keys = [
                places.box(rows_of[number][place]) if fault == "missing" else (number, place)
                for number, of_image in enumerate(scores)
                for place in range(len(of_image))
            ]
            values = np.concatenate([np.asarray(one, float) for one in scores])
            made[fault].append(
                [(-value, key) for value, key in zip(values, keys, strict=True) if value == value]
            )
    return made


@pytest.mark.parametrize(("count", "wrong"), [(10, 5), (60, 15)])
def test_images_whose_labels_are_of_others_come_first(tmp_path, count, wrong):
    labels, predictions = lab.images(np.random.default_rng(0), count, wrong)
    scene = lab.as_scene(labels, predictions)
    e, suspicion, _ = evaluated(tmp_path, scene)
    said = e.units.prediction >= 0
    frame = np.where(said, scene.frame[e.units.prediction], scene.truth_frame[e.units.truth])
    worst = np.zeros(count)
    np.maximum.at(worst, frame, np.nan_to_num(suspicion))
    assert worst[-wrong:].min() > worst[:-wrong].max()
    lists, boxes, _ = lab.as_theirs(scene)
    quality = rank.get_label_quality_scores(lists, boxes, verbose=False)
    assert _separated(worst, wrong) >= _separated(-quality, wrong)


def _separated(score, wrong):
    """AUROC of the last images against the others."""
    good, bad = score[:-wrong], score[-wrong:]
    return ((bad[:, None] > good) + 0.5 * (bad[:, None] == good)).mean()


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"clutter": 0.6}, marks=pytest.mark.heavy),
        {"clutter": 0.0},
        pytest.param({"clutter": 0.0, "least": 0.96, "noise": 0.0}, marks=pytest.mark.heavy),
    ],
    ids=["a detector with false alarms", "one without", "one without a fault"],
)
def test_each_fault_ranks_at_least_as_high(tmp_path, how):
    found = {"ours": [], "theirs": []}
    for seed in range(2):
        made = lab.planted(seed, 200, 8, **how)
        scene = lab.as_scene(made.labels, made.predictions)
        places = Places(scene, made.missing)
        e, _, result = evaluated(tmp_path / str(seed), scene)
        if seed == 0:  # eight confusions in ninety pairs of classes
            assert "so few pairs of classes" in result.info["facts"][0]["not_computable"]["D22"]
        lost = {("lost", number) for number in range(len(made.missing))}
        planted = {"swapped": made.swapped, "shifted": made.shifted, "missing": lost}
        ours, others = ranked_by_us(e, places), ranked_by_cleanlab(scene, places)
        found["ours"].append([precision(ours[fault], planted[fault]) for fault in planted])
        found["theirs"].append(
            [max(precision(one, planted[fault]) for one in others[fault]) for fault in planted]
        )
    ours, best = np.mean(found["ours"], axis=0), np.mean(found["theirs"], axis=0)
    assert (ours >= best).all(), (ours, best)
    # Of the removed labels some lay under others: a box that stands on a label is not asked about.
    assert (ours[:2] >= 0.8).all(), ours


@pytest.mark.heavy
@pytest.mark.parametrize("skill", [1.6, 0.6])
def test_on_a_hard_detector_too(tmp_path, skill):
    faults = {"missing": 0.05, "shifted": 0.05, "swapped": 0.05}
    scene = hard.simulate(250, seed=11, faults=faults, skill=skill)
    e, _, _ = evaluated(tmp_path, scene, vectors=True)
    places = Places(scene, [])
    gone = np.isin(scene.object_of, scene.removed)
    places.standing = np.where(gone, scene.object_of, -1)
    ours, others = ranked_by_us(e, places), ranked_by_cleanlab(scene, places)
    for fault in ("swapped", "shifted", "missing"):
        rows = np.flatnonzero(scene.fault == 1 + hard.FAULTS.index(fault))
        lost = {("lost", int(one)) for one in scene.removed}
        planted = lost if fault == "missing" else {places.truth(row) for row in rows}
        best = max(precision(one, planted) for one in others[fault])
        assert precision(ours[fault], planted) >= best, fault


def test_the_more_a_label_is_changed_the_more_it_is_suspected(tmp_path):
    rng = np.random.default_rng(3)
    labels, predictions = lab.images(rng, 120, 0, least=0.6)
    large = [
        number
        for number, one in enumerate(labels)
        if (one["bboxes"][0, 2:] - one["bboxes"][0, :2]).min() > 90
    ]
    slightly, far = large[:6:2], large[1:6:2]
    for numbers, by in ((slightly, 20), (far, 60)):
        for number in numbers:
            labels[number]["bboxes"][0] += by
    scene = lab.as_scene(labels, predictions)
    e, _, _ = evaluated(tmp_path, scene)
    score = np.full(len(scene.truth_frame), np.nan)
    rows = np.flatnonzero(~np.isnan(e.bad_box.score))
    score[e.units.truth[rows]] = e.bad_box.score[rows]
    first = np.searchsorted(scene.truth_frame, np.arange(scene.frames))
    mean = [np.nanmean(score[first[one]]) for one in (slightly, far)]
    others = np.delete(score, first[[*slightly, *far]])
    assert np.nanmax(others) < mean[0] < mean[1]


def test_the_surer_the_detector_is_of_a_box_without_a_label_the_more_it_is_missing(tmp_path):
    """Nothing else stands far from the labels: no model of objects can be learnt, and nothing is flagged."""
    labels, predictions = lab.images(np.random.default_rng(4), 120, 0, least=0.6)
    gone = [(number, 0) for number, one in enumerate(labels) if len(one["labels"]) == 1][:6]
    lab.without(labels, gone)
    scene = lab.as_scene(labels, predictions)
    _, suspicion, result = evaluated(tmp_path, scene)
    assert "D20" in result.info["facts"][0]["not_computable"]
    issues = result.get_issues(order_by="-suspicion")
    first = issues.head(len(gone))
    assert set(first["input_id"]) == {f"img{number:06d}" for number, _ in gone}
    assert first["confidence"].is_monotonic_decreasing
    assert not (issues["diagnosis"].map(lambda codes: "D20" in list(codes))).any()
    assert np.nanmax(suspicion) <= 1
