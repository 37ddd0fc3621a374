"""Matching, TIDE errors against tidecv, and error codes on hand-made frames."""

from dataclasses import replace
from pathlib import Path

import detection_sets as sets
import numpy as np
import pytest

from mld_core.evaluation.codes.diagnosis import markdown_table
from mld_core.evaluation.detection.codes import CODES, box_code, box_codes, find_events
from mld_core.evaluation.detection.diagnoses import DIAGNOSES
from mld_core.evaluation.metrics import tide
from mld_core.evaluation.metrics.boxes import Pairs, Predictions, Truths
from mld_core.evaluation.metrics.matching import ImageBoxes, match_events, unions_reach
from mld_core.evaluation.metrics.tide import TideState, classify, tide_costs, within_cap
from mld_core.geometry.matching import coco_overlaps, greedy_match

GEOMETRY = ImageBoxes()


def frame(predictions, truths):
    """One frame from [(label, score, box)] and [(label, box)]."""
    boxes = np.array([box for _, _, box in predictions], float).reshape(-1, 4)
    labels = np.array([label for label, _, _ in predictions], np.int64)
    scores = np.array([score for _, score, _ in predictions], float)
    true = np.array([box for _, box in truths], float).reshape(-1, 4)
    flags = np.zeros(len(truths), np.bool_)
    return (
        Predictions(np.zeros(len(boxes), np.int64), labels, scores, boxes),
        Truths(
            np.zeros(len(true), np.int64),
            np.array([label for label, _ in truths], np.int64),
            true,
            flags,
            flags,
        ),
    )


def codes(predictions, truths):
    p, t = frame(predictions, truths)
    found = find_events(p, t, GEOMETRY)
    plain = np.zeros(len(p), np.bool_)
    return found, box_codes(found.code, found.said_of, p.label, plain, ~found.ignored).to_pylist()


BOX = [0, 0, 100, 100]


@pytest.mark.parametrize(
    ("predictions", "truths", "expected"),
    [
        ([(3, 0.9, [0, 0, 100, 95])], [(3, BOX)], ["DET:A:CLS3->3"]),
        ([(3, 0.9, [0, 0, 100, 60])], [(3, BOX)], ["DET:M:CLS3->3"]),
        ([(3, 0.9, [0, 0, 100, 30])], [(3, BOX)], ["DET:M:CLS3->3"]),
        ([(5, 0.9, [0, 0, 100, 95])], [(3, BOX)], ["DET:A:CLS3->5"]),
        ([(5, 0.9, [0, 0, 100, 60])], [(3, BOX)], ["DET:M:CLS3->5"]),
        ([(5, 0.9, [0, 0, 100, 30])], [(3, BOX)], ["DET:U:CLS3->5"]),
        ([(3, 0.9, BOX), (3, 0.8, BOX)], [(3, BOX)], ["DET:A:CLS3->3", "DET:D:CLS3->3"]),
        (
            [(3, 0.9, [0, 0, 40, 100]), (3, 0.8, [45, 0, 90, 100])],
            [(3, BOX)],
            ["DET:SP:CLS3->3", "DET:SP:CLS3->3"],
        ),
        ([(3, 0.9, [0, 0, 205, 100])], [(3, BOX), (3, [105, 0, 205, 100])], ["DET:SG:CLS3->3"]),
        ([(3, 0.9, [500, 500, 600, 600])], [(3, BOX)], ["DET:N:CLSbg->3"]),
        (
            [(3, 0.9, [500, 500, 600, 600]), (4, 0.8, [510, 500, 610, 600])],
            [(3, BOX)],
            ["DET:ON:CLSbg->3", "DET:ON:CLSbg->4"],
        ),
        ([(2, 0.9, BOX)], [], ["DET:N:CLSbg->2"]),
    ],
)
def test_codes_of_hand_made_frames(predictions, truths, expected):
    assert codes(predictions, truths)[1] == expected


def test_a_confused_truth_is_met_but_not_found():
    found, _ = codes([(5, 0.9, BOX)], [(3, BOX), (3, [300, 300, 350, 350])])
    assert found.met.tolist() == [True, False]
    assert found.found.tolist() == [False, False]
    assert found.right.tolist() == [False]


def test_codes_of_many_boxes_are_those_of_each():
    rng = np.random.default_rng(0)
    code = rng.integers(0, len(CODES), 500).astype(np.int8)
    truth, prediction = rng.integers(-1, 4, (2, 500))
    truth[0], prediction[0] = 2**62, 2**62 - 1  # nobody has checked what a class is called
    unsure, known = rng.random((2, 500)) < 0.5
    said = zip(code.tolist(), truth.tolist(), prediction.tolist(), unsure, known, strict=True)
    expected = [box_code(c, t, y, unsure=star) if ok else None for c, t, y, star, ok in said]
    assert box_codes(code, truth, prediction, unsure, known).to_pylist() == expected
    nobody = np.empty(0, np.int64)
    assert len(box_codes(nobody, nobody, nobody, nobody > 0, nobody > 0)) == 0


def test_ignored_truths_and_crowds_take_predictions_out_of_the_count():
    p, t = frame([(3, 0.9, BOX), (3, 0.8, [10, 10, 40, 40]), (3, 0.7, [0, 0, 30, 30])], [(3, BOX)])
    crowd = Truths(t.frame, t.label, t.box, t.ignore, np.ones(1, np.bool_))
    assert find_events(p, crowd, GEOMETRY).ignored.tolist() == [True, True, True]
    ignore = Truths(t.frame, t.label, t.box, np.ones(1, np.bool_), t.crowd)
    found = find_events(p, ignore, GEOMETRY)
    assert found.ignored.tolist() == [True, False, False]
    assert [CODES[code] for code in found.code[1:]] == ["N", "N"]


def test_matching_equals_the_frame_by_frame_rule():
    p, t = sets.make_set(60, seed=11, n_class=3, ties=True, ignore=0.1, crowd=0.1)
    found = match_events(GEOMETRY.close(p, t), p, t, 0.5)
    expected = np.full(len(p), -1)
    for number in range(60):
        for label in range(3):
            mine = np.flatnonzero((p.frame == number) & (p.label == label))
            true = np.flatnonzero((t.frame == number) & (t.label == label))
            if len(mine) and len(true):
                matrix = coco_overlaps(p.box[mine], t.box[true], t.crowd[true])
                one = greedy_match(matrix, p.score[mine], 0.5, ignore=t.ignore[true], crowd=t.crowd[true])
                expected[mine] = np.append(true, -1)[one.truth]
    np.testing.assert_array_equal(found.truth, expected)


def test_the_union_of_boxes_is_exact():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.integers(0, 40, (30, 2, 2)), axis=1).reshape(30, 4).astype(float)
    truth = np.array([[5, 5, 30, 25.0]])
    pairs = Pairs(np.arange(5), np.zeros(5, np.int64), np.ones(5))
    grid = np.zeros((2, 40, 40), bool)
    for x1, y1, x2, y2 in boxes[:5].astype(int):
        grid[0, x1:x2, y1:y2] = True
    grid[1, 5:30, 5:25] = True
    value = (grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum()
    assert unions_reach(boxes, truth, pairs, value - 1e-9).all()
    assert not unions_reach(boxes, truth, pairs, value + 1e-9).any()


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"seed": 2, "n_class": 3, "jitter": 0.2, "detections": 110},
        {"seed": 3, "n_class": 3, "ties": True},
        {"seed": 4, "n_class": 2, "ties": True, "jitter": 0.2},
        {"seed": 5, "n_class": 5, "ties": True, "jitter": 0.25, "crowd": 0.15},
    ],
)
def test_costs_equal_tidecv(options):
    tidecv = pytest.importorskip("tidecv", exc_type=ImportError, reason="tidecv is in .venv-mmdet3d")
    frames, n_class = 60, options.get("n_class", 8)
    predictions, truths = sets.make_set(frames, **{"crowd": 0, **options})
    # Off whole pixels: at an overlap of exactly a half COCO has a box in a crowd, tidecv has not.
    off = np.random.default_rng(0).uniform(0, 0.01, predictions.box.shape)
    predictions = replace(predictions, box=predictions.box + off)
    reference = tidecv.TIDE()
    true, made = tidecv.Data("truths"), tidecv.Data("predictions")
    for number in range(frames):
        true._make_default_image(number)
    for k in range(len(truths)):
        x1, y1, x2, y2 = truths.box[k].tolist()
        add = true.add_ignore_region if truths.crowd[k] else true.add_ground_truth
        add(int(truths.frame[k]), int(truths.label[k]), [x1, y1, x2 - x1, y2 - y1])
    for k in range(len(predictions)):
        x1, y1, x2, y2 = predictions.box[k].tolist()
        where, label, score = (
            int(predictions.frame[k]),
            int(predictions.label[k]),
            float(predictions.score[k]),
        )
        made.add_detection(where, label, score, [x1, y1, x2 - x1, y2 - y1])
    run = reference.evaluate(true, made, mode=tidecv.TIDE.BOX)
    kept = predictions.take(within_cap(predictions))
    pairs = GEOMETRY.close(kept, truths)
    errors = classify(pairs, match_events(pairs, kept, truths, 0.5), kept, truths, 0.5, 0.1)
    found = tide_costs(TideState.of(errors, kept, truths, n_class))
    assert found["ap"] * 100 == pytest.approx(run.ap, abs=1e-6)
    for error, cost in run.fix_main_errors().items():
        assert found[error.short_name.lower()] * 100 == pytest.approx(cost, abs=1e-6), error
    counts = {error.short_name: count for error, count in run.count_errors().items()}
    assert counts["Miss"] == errors.miss.sum()
    assert [counts[name] for name in ("Cls", "Loc", "Both", "Dupe", "Bkg")] == np.bincount(
        errors.mends, minlength=6
    ).tolist()[1:]


def test_a_box_in_a_crowd_may_be_mended_too():
    """As in `tidecv`: it counts nowhere, but badly placed on a free truth it is what would find it."""
    box = np.array([[0, 0, 10, 10], [0, 0, 40, 10.0]])
    zero = np.zeros(2, np.int64)
    truths = Truths(zero, zero, box, np.array([False, True]), np.array([False, True]))
    found = Predictions(zero[:1], zero[:1], np.array([0.5]), np.array([[0, 0, 30, 10.0]]))
    pairs = GEOMETRY.close(found, truths)
    errors = classify(pairs, match_events(pairs, found, truths, 0.5), found, truths, 0.5, 0.1)
    assert (errors.type.tolist(), errors.truth.tolist()) == ([tide.IGNORED], [-1])
    costs = tide_costs(TideState.of(errors, found, truths, 1))
    assert (costs["ap"], costs["loc"], costs["miss"]) == (0, 1, 0)


def test_of_equal_scores_what_was_an_error_goes_first_once_mended():
    one = np.zeros(2, np.int32)
    types = np.array([tide.RIGHT, tide.BKG], np.int8)
    state = TideState(one, np.full(2, 0.5), types, types, one - 1, np.array([2]), np.array([1]))
    costs = tide_costs(state)
    assert costs["ap"] == pytest.approx(51 / 101), "the right one is the first row"
    assert costs["miss"] == 0, "of one truth: precision 1/2 at every recall, no more than before"
    assert costs["bkg"] == 0


def test_the_catalogue_in_the_document_is_the_one_in_the_code():
    text = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    table = text.partition("<!-- catalogue2d:begin -->\n")[2].partition("<!-- catalogue2d:end -->")[0]
    assert table.splitlines()[2:] == markdown_table(DIAGNOSES)
