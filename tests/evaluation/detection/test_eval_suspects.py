"""Suspected labels on a harder simulated detector, and what labels show by themselves."""

import hard_detector as hard
import numpy as np
import pandas as pd
import pytest
import simulated_detector as simulation

from mld_core.evaluation.detection import objects, stage
from mld_core.evaluation.detection.diagnoses import diagnose_boxes
from mld_core.evaluation.detection.labels import drawn_twice, oddity
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.metrics.boxes import Truths, overlapping
from mld_core.evaluation.statistics.folds import FOLDS
from mld_core.records.format.layout import RunKey, Store

FAULTS = {"missing": 0.05, "shifted": 0.05, "swapped": 0.05, "spurious": 0.03, "duplicate": 0.03}
FRAMES, SKILL = 250, 1.6
OPTIONS = {"repeats": 1, "progress": False}
EPOCHS = [pytest.param("one", marks=pytest.mark.heavy), "three"]


def _evaluate(root, epochs, faults=FAULTS):
    store, run = Store(root), RunKey("hard", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": hard.N_CLASS})
    for epoch in range(epochs):
        scene = hard.simulate(FRAMES, seed=3, faults=faults, jitter=epoch, skill=SKILL)
        simulation.write(store, run, "val", scene, n_epoch=epoch)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "diagnose_boxes", lambda e: (seen.append(e), diagnose_boxes(e))[1])
        result = Evaluator("hard", "v1", store=root).request_evaluation(options=OPTIONS)
    (units,) = [pd.read_parquet(path) for path in result.folder.glob("units-*.parquet")]
    return scene, units, result, seen[0]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return _evaluate(tmp_path_factory.mktemp("three"), 3)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return _evaluate(tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize("epochs", [1, pytest.param(3, marks=pytest.mark.heavy)])
def test_nothing_is_alarming_without_a_fault(tmp_path, epochs):
    _, units, _, evidence = _evaluate(tmp_path, epochs, faults={})
    alarming = evidence.missing_label.flagged | evidence.wrong_class.flagged
    assert alarming.mean() <= 0.005
    assert (_flagged(units, "D20") | _flagged(units, "D22")).sum() == alarming.sum()


def _rows(scene, units):
    """(U,) row of the truth each unit is about, -1 for none."""
    first = np.searchsorted(scene.truth_frame, units["input_id"].str[3:].astype(int))
    return np.where(units["gt_idx"].isna(), -1, first + units["gt_idx"].fillna(0).astype(int))


def _planted(scene, fault):
    return scene.fault == 1 + hard.FAULTS.index(fault)


def _precision(order, truth, planted):
    """Share of the first k truths that are planted, k as many as there are."""
    ranked = list(dict.fromkeys(truth[np.argsort(-order, kind="stable")].tolist()))[: int(planted.sum())]
    return planted[ranked].mean()


def _flagged(units, code):
    return units["diagnosis"].map(lambda codes: code in list(codes)).to_numpy()


def _ranked(scene, units, fault, suspects):
    asked, truth = ~np.isnan(suspects.score), _rows(scene, units)
    return _precision(suspects.score[asked], truth[asked], _planted(scene, fault))


def _share(scene, units, fault, code):
    flagged = _rows(scene, units)[_flagged(units, code)]
    assert len(flagged) > 20
    return _planted(scene, fault)[flagged].mean()


@pytest.mark.parametrize("epochs", EPOCHS)
def test_shifted_boxes_rank_before_the_lowest_iou(epochs, request):
    scene, units, _, evidence = request.getfixturevalue(epochs)
    placed = units["tide_error"].isin(["loc", "right"]).to_numpy()
    iou = _precision(
        -units["iou"].to_numpy()[placed], _rows(scene, units)[placed], _planted(scene, "shifted")
    )
    assert _ranked(scene, units, "shifted", evidence.bad_box) > max(0.6, iou)
    assert _share(scene, units, "shifted", "D21") >= 0.8


@pytest.mark.parametrize("epochs", EPOCHS)
def test_swapped_classes_stand_out_from_the_pairs_that_are_confused(epochs, request):
    scene, units, _, evidence = request.getfixturevalue(epochs)
    assert _ranked(scene, units, "swapped", evidence.wrong_class) > 0.7
    assert _share(scene, units, "swapped", "D22") >= 0.8


def test_a_missed_truth_shows_the_class_its_boxes_say(three):
    scene, units, _, _ = three
    missed = units[(units["unit_kind"] == "gt") & units["suggested_label"].notna()]
    swapped = missed[_planted(scene, "swapped")[_rows(scene, missed)]]
    assert len(swapped) > 0
    assert (swapped["suggested_label"] != swapped["gt"]).all()


def test_spurious_labels_are_what_three_epochs_flag(three):
    scene, units, result, _ = three
    assert _planted(scene, "spurious")[_rows(scene, units)[_flagged(units, "D23")]].mean() >= 0.8
    assert "D23" not in result.info["facts"][0]["not_computable"]


@pytest.mark.heavy
def test_a_spurious_label_needs_more_than_one_epoch(one):
    _, single, alone, _ = one
    assert not _flagged(single, "D23").any()
    assert "fewer than three epochs" in alone.info["facts"][0]["not_computable"]["D23"]


def test_labels_drawn_twice_are_found_without_the_detector(three):
    scene, units, _, _ = three
    flagged = set(_rows(scene, units)[_flagged(units, "D24")].tolist())
    box, frame = scene.truth_box.astype(float), scene.truth_frame
    pairs = overlapping(box, frame, box, frame, 0.3)
    twin = pairs.take(pairs.left > pairs.right)
    planted = _planted(scene, "duplicate")
    asked = [
        {a, b}
        for a, b in zip(twin.left.tolist(), twin.right.tolist(), strict=True)
        if planted[a] or planted[b]
    ]
    assert sum(bool(pair & flagged) for pair in asked) >= 0.95 * len(asked) > 0
    either = np.zeros(len(box), bool)
    for pair in asked:
        either[list(pair)] = True
    assert either[list(flagged)].mean() >= 0.97


def _truths(box, label=None):
    count = len(box)
    no = np.zeros(count, np.bool_)
    return Truths(
        np.zeros(count, np.int64),
        np.zeros(count, np.int64) if label is None else label,
        np.array(box),
        no,
        no,
    )


def test_what_is_drawn_twice():
    box = [[0, 0, 10, 10.0], [0, 0, 10, 6], [0, 0, 10, 7.5], [0, 0, 10, 10]]
    overlap, same = drawn_twice(_truths(box, np.array([0, 0, 0, 1])))
    assert overlap.tolist()[1:3] == pytest.approx([0.6, 0.8])
    assert np.isnan(overlap[[0, 3]]).all(), "the first of two, and another class"
    assert same.tolist() == [False, True, True, False], "0.6 and inside the other, 0.8"
    ignored = _truths(box[:2])
    ignored.ignore[0] = True
    assert not drawn_twice(ignored)[1].any()


def test_boxes_in_3d_are_compared_in_the_ground_plane():
    car = [10, 0, 0, 2, 4, 1.5, 0.3]
    near = [10.1, 0, 0, 2, 4, 1.5, 0.3]
    overlap, same = drawn_twice(_truths([car, near, [20.0, *car[1:]]]))
    assert same.tolist() == [False, True, False]
    assert overlap[1] > 0.9


def test_an_odd_size_or_aspect_needs_a_class_with_enough_truths():
    rng = np.random.default_rng(0)
    side = np.exp(rng.normal(3, 0.2, (60, 2)))
    box = np.concatenate([np.zeros((60, 2)), side], axis=1)
    box[0, 2:] = [2000, 2000]
    box[1, 2:] = [400, 2]
    odd = oddity(_truths(box))
    assert set(np.flatnonzero(odd > 6).tolist()) == {0, 1}
    assert (oddity(_truths(box[:10])) == 0).all()


def test_labels_outside_the_image_and_thin_ones_are_improbable(tmp_path):
    scene = hard.simulate(30, seed=1, skill=SKILL)
    scene.truth_box[0] = [960, 100, 1300, 300]
    scene.truth_box[1] = [100, 100, 101, 300]
    store, run = Store(tmp_path), RunKey("hard", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": hard.N_CLASS})
    simulation.write(store, run, "val", scene)
    result = Evaluator("hard", "v1", store=tmp_path).request_evaluation(options=OPTIONS)
    issues = result.get_issues(code="D25")
    frames = {f"img{frame:06d}" for frame in scene.truth_frame[:2]}
    assert set(issues["input_id"]) == frames


def test_boxes_below_the_threshold_are_in_question_too(three):
    scene, units, result, evidence = three
    weak = units["unit_kind"] == "weak"
    assert units.loc[weak, ["is_error", "gt", "category", "error_proba", "error_code"]].isna().all(axis=None)
    assert result.metrics_summary(full=True)["n_pred"].iloc[0] == (units["unit_kind"] == "pred").sum()
    first = np.searchsorted(scene.frame, units["input_id"].str[3:].astype(int))
    rows = first + units["det_idx"].fillna(0).astype(int)
    planted = np.isin(scene.object_of[rows], scene.removed)
    flagged = _flagged(units, "D20")
    assert evidence.units.rows == len(units)
    assert units.loc[weak, "suspicion"].notna().all()
    assert weak.sum() >= 10
    assert planted[flagged].mean() >= 0.8
    assert abs(evidence.unlabelled.expected - len(scene.removed)) < 0.25 * len(scene.removed)


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_the_share_of_objects_without_a_label_is_learnt_from_the_boxes_most_like_objects(tmp_path, missing):
    rng = np.random.default_rng(5)
    count = 600
    real = rng.random(count) < 0.5
    labelled = real & (rng.random(count) >= missing)
    columns = np.where(real[:, None], 1.5, -1.5) + rng.normal(size=(count, 3))
    everything = np.ones(count, np.bool_)
    some = objects.Candidates(np.arange(count), labelled, everything, ~labelled, columns, int(labelled.sum()))
    with Workers(1) as workers:
        found = objects.believed(columns, some, rng.integers(0, FOLDS, count), workers)
    believed = real[found.rows[found.belief >= 0.5]]
    if missing:
        assert abs(found.expected - (real & ~labelled).sum()) <= 12
        assert len(believed) >= 10
        assert believed.mean() >= 0.9
    else:
        assert len(believed) == 0
