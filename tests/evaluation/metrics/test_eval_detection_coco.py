"""COCO metrics against pycocotools and faster-coco-eval on generated sets."""

import contextlib
import io

import detection_sets as sets
import numpy as np
import pytest

from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.coco import CocoState, coco_metrics, match_coco

SETS = {
    "crowds": {"seed": 1, "crowd": 0.2},
    "ties and ignores": {"seed": 2, "ties": True, "ignore": 0.15},
    "one class, many boxes": {"seed": 3, "n_class": 1, "truths": 30, "detections": 130, "ties": True},
    "mostly empty": {"seed": 4, "n_class": 5, "empty": 0.6, "truths": 2, "crowd": 0.3},
    "sloppy boxes": {"seed": 5, "jitter": 0.2, "truths": 20, "n_class": 2},
}
FRAMES = 40


def _reference(dataset, results):
    """pycocotools with the `ignore` marks of the annotations, which it would overwrite with iscrowd."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")

    class WithIgnore(evaluation.COCOeval):
        def _prepare(self):
            marked = {one["id"]: one["ignore"] or one["iscrowd"] for one in dataset["annotations"]}
            super()._prepare()
            for group in self._gts.values():
                for one in group:
                    one["ignore"] = marked[one["id"]]

    for one in dataset["annotations"]:
        one["ignore"] = int(one["ignore"])
    kept = [dict(one) for one in dataset["annotations"]]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = dataset
        truth.createIndex()
        made = WithIgnore(truth, truth.loadRes(results), "bbox")
        dataset["annotations"] = kept
        made.evaluate()
        made.accumulate()
        made.summarize()
    return made


@pytest.mark.parametrize("name", SETS)
def test_every_figure_equals_pycocotools(name):
    n_class = SETS[name].get("n_class", 8)
    predictions, truths = sets.make_set(FRAMES, **SETS[name])
    reference = _reference(*sets.as_coco(predictions, truths, FRAMES, n_class))
    found = coco_metrics(match_coco(predictions, truths, n_class))
    precision = reference.eval["precision"][..., -1]
    precision = np.where(precision.max(axis=1) < 0, np.nan, precision.mean(axis=1))
    np.testing.assert_allclose(found.precision, precision, atol=1e-9)
    recall = reference.eval["recall"][..., -1]
    np.testing.assert_allclose(found.recall, np.where(recall < 0, np.nan, recall), atol=1e-9)
    stats = [np.nan if value is None else value for value in found.summary().values()]
    np.testing.assert_allclose(stats, np.where(reference.stats < 0, np.nan, reference.stats), atol=1e-9)
    assert 0.005 < found.summary()["map"] < 0.9


def test_the_summary_equals_faster_coco_eval():
    faster = pytest.importorskip("faster_coco_eval")
    predictions, truths = sets.make_set(FRAMES, seed=7)
    dataset, results = sets.as_coco(predictions, truths, FRAMES, 8)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = faster.COCO()
        truth.dataset = dataset
        truth.createIndex()
        made = faster.COCOeval_faster(truth, truth.loadRes(results), "bbox")
        made.evaluate()
        made.accumulate()
        made.summarize()
    found = coco_metrics(match_coco(predictions, truths, 8)).summary()
    np.testing.assert_allclose(list(found.values()), made.stats[:12], atol=1e-6)


def test_frames_may_come_in_chunks():
    predictions, truths = sets.make_set(FRAMES, seed=8, ties=True)
    whole = coco_metrics(match_coco(predictions, truths, 8))
    states = []
    for start in range(0, FRAMES, 7):
        edges = (start, start + 7)
        p = np.arange(*np.searchsorted(predictions.frame, edges))
        t = np.arange(*np.searchsorted(truths.frame, edges))
        states.append(match_coco(predictions.take(p), truths.take(t), 8))
    pieces = coco_metrics(CocoState.merge(states))
    np.testing.assert_array_equal(whole.precision, pieces.precision)
    np.testing.assert_array_equal(whole.recall_few, pieces.recall_few)


def test_nothing_to_find_has_no_value():
    none = np.empty(0, np.int64)
    flags = np.empty(0, np.bool_)
    truths = Truths(none, none, np.empty((0, 4)), flags, flags)
    predictions = Predictions(np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1), np.ones((1, 4)))
    found = coco_metrics(match_coco(predictions, truths, 2))
    assert set(found.summary().values()) == {None}
    assert found.of_class(1)["map"] is None


def test_damaged_boxes_match_nothing_and_break_nothing():
    frame = np.zeros(3, np.int64)
    box = np.array([[0, 0, 10, 10], [np.nan, 0, 5, 5], [5, 5, 1, 1]], np.float32)
    truths = Truths(frame[:1], frame[:1], box[:1], np.zeros(1, np.bool_), np.zeros(1, np.bool_))
    score = np.array([0.5, 0.9, np.nan])
    found = coco_metrics(match_coco(Predictions(frame, frame, score, box), truths, 1)).summary()
    assert found["map"] == pytest.approx(0.5)
    assert found["ar_1"] == 0.0
    assert found["ar_100"] == 1.0


def _in_a_row():
    """Ten people side by side, their areas those of their outlines, before a crowd over the whole image."""
    rng = np.random.default_rng(9)
    left = 20 + 46.0 * np.arange(10)
    one = np.stack(
        [left, rng.uniform(90, 130, 10), left + rng.uniform(40, 70, 10), rng.uniform(190, 260, 10)], 1
    )
    box = np.vstack([one, [0.0, 18.0, 499.0, 281.0]])
    area = np.append((one[:, 2:] - one[:, :2]).prod(axis=1) * rng.uniform(0.5, 0.7, 10), 87_090.0)
    crowd = np.arange(11) == 10
    zero = np.zeros(11, np.int64)
    near = one + rng.normal(0, 2.5, one.shape)
    inside = rng.uniform([0, 20, 0, 0], [430, 180, 0, 0], (25, 4))
    inside[:, 2:] = inside[:, :2] + rng.uniform([25, 60], [60, 100], (25, 2))
    said = np.vstack([near, inside])
    score = np.append(rng.uniform(0.3, 0.75, 10), rng.uniform(0.01, 0.7, 25))
    kept = score >= 0.1
    none = np.zeros(int(kept.sum()), np.int64)
    return Predictions(none, none, score[kept], said[kept]), Truths(zero, zero, box, zero > 0, crowd), area


def test_boxes_on_a_crowd_are_left_out_as_faster_coco_eval_leaves_them():
    """The shape of its test of what is ignored."""
    faster = pytest.importorskip("faster_coco_eval")
    predictions, truths, area = _in_a_row()
    dataset, results = sets.as_coco(predictions, truths, 1, 1)
    for one, size in zip(dataset["annotations"], area.tolist(), strict=True):
        one["area"] = size
    with contextlib.redirect_stdout(io.StringIO()):
        truth = faster.COCO(dataset)
        made = faster.COCOeval_faster(truth, truth.loadRes(results), "bbox", separate_eval=True)
        made.run()
    found = coco_metrics(match_coco(predictions, truths, 1, area)).summary()
    stats = [np.nan if value is None else value for value in found.values()]
    np.testing.assert_allclose(stats, np.where(made.stats[:12] < 0, np.nan, made.stats[:12]), atol=1e-6)
    assert 0.2 < found["map"] < 1.0
    assert found["map_medium"] == found["map"], "all are medium by their outlines"
    counted = coco_metrics(match_coco(predictions, truths.take(~truths.crowd), 1, area[:-1])).summary()
    assert counted["map"] < found["map"], "without the crowd what lies on it is wrong"


def test_a_truth_marked_to_be_ignored_is_one_which_cocos_own_tools_overwrite():
    """`ignore` of an annotation: pycocotools and faster-coco-eval read `iscrowd` alone."""
    faster = pytest.importorskip("faster_coco_eval")
    predictions, truths, area = _in_a_row()
    marked = Truths(truths.frame, truths.label, truths.box, np.arange(11) < 3, truths.crowd)
    dataset, results = sets.as_coco(predictions, marked, 1, 1)
    for one, size in zip(dataset["annotations"], area.tolist(), strict=True):
        one["area"] = size
    with contextlib.redirect_stdout(io.StringIO()):
        truth = faster.COCO(dataset)
        made = faster.COCOeval_faster(truth, truth.loadRes(results), "bbox")
        made.run()
    state = match_coco(predictions, marked, 1, area)
    assert state.truths[0, 0] == 7, "three of ten are ignored"
    read = Truths(truths.frame, truths.label, truths.box, truths.crowd, truths.crowd)
    found = coco_metrics(match_coco(predictions, read, 1, area)).summary()["map"]
    assert found == pytest.approx(made.stats[0], abs=1e-6), "the marks set aside, the figures are the same"
    assert coco_metrics(state).summary()["map"] != pytest.approx(found, abs=1e-3)
