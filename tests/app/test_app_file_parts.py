"""What the app in one file is made of: points, pictures and their frames, curves, text that stays text."""

import base64
import json

import box_store
import numpy as np
import pyarrow.parquet as pq
import pytest
import road_store as roads
import simulated_detector as simulation

from ml_debugger.evaluator import Evaluator
from mld_core.app.file.one_file import OneFile, embedded_json
from mld_core.app.file.points import MAX_POINTS, cloud, is_points
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.results.result import Result
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RunKey, Store
from mld_core.report import write_report
from mld_core.views.box_charts import curves
from mld_core.views.cards import MOVING, cards, motions
from mld_core.views.detection_tables import code_words, parse_box_code
from mld_core.views.pictures import Canvas, _asked
from mld_core.views.samples import small
from mld_core.views.selection import held
from mld_core.views.tables import class_label
from mld_core.views.units import passes_of, spread

WIDTH, HEIGHT = 1000, 800


def result_of(store, model):
    """The result of both epochs of a detection."""
    name = {"boxes": "boxes", "lidar": "roads"}[model]
    return Result(ResultStore(store, RunKey(model, "v1")), name, diagnoses=BY_CODE)


@pytest.fixture(scope="module")
def boxes(two_epochs):
    return result_of(two_epochs, "boxes")


@pytest.fixture(scope="module")
def lidar(two_epochs):
    return result_of(two_epochs, "lidar")


def test_embedded_json_cannot_end_its_element():
    text = embedded_json({"id": "</script><!--\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"id": "</script><!--\u2028"}


def test_a_folder_that_is_not_there_is_said(boxes, tmp_path):
    with pytest.raises(FileNotFoundError, match="make it or give another"):
        write_report(boxes, tmp_path / "nowhere" / "x.html")


# --- 3D -----------------------------------------------------------------------------------------------------


def test_points_and_images_are_told_apart():
    assert is_points(np.zeros((5, 3)))
    assert not is_points(np.zeros((5, 3), np.uint8))
    assert not is_points(np.zeros((64, 64)))
    points = np.random.default_rng(0).uniform(-50, 50, (200, 5))
    points[0] = np.nan
    points[1, 0] = 1000
    made = cloud(points, np.empty((0, 7)), 100)
    assert (made["n"], made["of"]) == (100, 200)
    assert cloud(points[:10], np.empty((0, 7)), 100)["n"] == 8
    assert cloud(np.empty((0, 4)), np.empty((0, 7)), 100) == {"n": 0, "of": 0, "xyz": ""}


def test_points_in_boxes_stay(lidar):
    """Half of the points of a frame are in and around its boxes, where there are so many."""
    true, _, _ = roads.make_scenes(16)
    frames = {roads.frame_id(number): frame for number, frame in enumerate(true)}
    made = OneFile(lidar, lambda _, one: frames[one].points if one in frames else None).data()
    found = made["points"]["val"]
    one, told = next(iter(found.items()))
    frame = frames[one]
    assert told["of"] == len(frame.points) > MAX_POINTS == told["n"]
    xyz = np.frombuffer(base64.b64decode(told["xyz"]), "<i2").reshape(-1, 3) / 100
    kept = sum(
        int((np.hypot(*(xyz[:, :2] - box[:2]).T) < np.hypot(box[3], box[4]) / 2).sum()) for box in frame.boxes
    )
    assert kept > 0.4 * min(int(frame.n_points.sum()), MAX_POINTS // 2)


def test_an_image_instead_of_points_is_a_picture(lidar):
    image = np.zeros((300, 400, 3), np.uint8)
    made = OneFile(lidar, lambda *_: image).data()
    assert made["pictures"]["val"]
    assert made["points"]["val"] == {}


def test_motion_is_that_of_the_recorded_truth(lidar):
    _, spoilt, _ = roads.make_scenes(16)
    units = held(passes_of(lidar)[-1])
    speeds = np.concatenate([np.hypot(*frame.velocities.T) for frame in spoilt])
    found = motions(units)
    assert sorted(np.hypot(*one) for one in found.values()) == pytest.approx(
        sorted(speeds[speeds >= MOVING]), abs=0.02
    )
    shown = [one for one in cards(units, range(units.rows)) if one["moves"]]
    assert {(one["id"], one["gt_idx"]) for one in shown} <= set(found)
    assert shown


def test_curves_of_solid_boxes_are_those_of_the_evaluation(lidar):
    row = passes_of(lidar)[-1]
    made = curves(row)
    classes = lidar.class_summary().query("n_epoch == 1").set_index("class_name")
    assert made["classes"][0]["truths"] == sum(one["truths"] for one in made["classes"][1:])
    assert len(made["classes"]) == 1 + len(classes)
    for one in made["classes"][1:]:
        want = classes.loc[one["name"]]
        assert np.mean(one["ap"]) == pytest.approx(want["auprc"], abs=1e-3)
        assert one["truths"] == want["counts"]
        reached = [value for value in one["errors"]["ate"][11:] if value is not None]
        assert np.mean(reached) == pytest.approx(want["ate"], rel=5e-3)
        assert (len(one["precision"]), len(one["precision"][0])) == (4, 101)


# --- 2D -----------------------------------------------------------------------------------------------------


def test_curves_of_flat_boxes_have_the_area_of_the_metrics(boxes):
    row = boxes.metrics_summary(full=True).iloc[1]
    made = curves(passes_of(boxes)[-1])
    assert made["lines"] == ["IoU 0.50", "IoU 0.75"]
    assert made["classes"][0]["ap"] == [pytest.approx(row[f"map_{one}"], rel=1e-3) for one in (50, 75)]
    for one in made["classes"]:
        for ap, precision in zip(one["ap"], one["precision"], strict=True):
            assert np.mean(precision) == pytest.approx(ap, abs=2e-3)
            assert (np.diff(precision) <= 1e-9).all()
    classes = boxes.class_summary("val").query("n_epoch == 1").set_index("class_name")
    for one in made["classes"][1:]:
        assert one["ap"][0] == pytest.approx(classes.loc[one["name"], "map_50"], rel=1e-3)
        assert one["truths"] == classes.loc[one["name"], "counts"]


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """A run whose tensors were cut out of larger images."""
    patch = pytest.MonkeyPatch()
    store, run = Store(tmp_path_factory.mktemp("moved") / "store"), RunKey("boxes", "v2")
    store.ensure_run(run, {"task": "detection", "n_class": 6, "class_names": box_store.NAMES})
    box_store.with_extras(patch, affine=True, thumbnails=False)
    scene = simulation.simulate(12, seed=4, faults=box_store.FAULTS)
    simulation.write(store, run, "val", scene, n_epoch=0)
    patch.undo()
    options = {"repeats": 1, "progress": False, "threads": 2}
    return Evaluator("boxes", "v2", store=store.root).request_evaluation("r", None, options=options)


@pytest.mark.parametrize("shape", [None, (HEIGHT, WIDTH, 3), (1200, 1600, 3)])
def test_boxes_follow_the_frame_of_the_image(moved, shape):
    """Of the tensor's size or without an image: pixels of the tensor; of another size it is the original."""
    table = pq.read_table(passes_of(moved)[0].path).to_pandas()
    made = OneFile(moved, None if shape is None else lambda *_: np.zeros(shape, np.uint8))
    units = held(passes_of(moved)[0])
    made.data()
    made.seen["val"].place(units)
    said = table[table["unit_kind"] == "pred"]
    original = said[["x1", "y1", "x2", "y2"]].to_numpy()
    shown = cards(units, said.index.tolist())
    drawn = np.array([one["box"] for one in shown])
    if shape is not None and shape[0] != HEIGHT:
        assert shown[0]["size"] == [1600, 1200]
        assert drawn == pytest.approx(original, abs=0.06)
    else:
        assert shown[0]["size"] == [WIDTH, HEIGHT]
        assert drawn == pytest.approx((original - np.tile(box_store.SHIFT, 2)) / box_store.SCALE, abs=0.06)


def test_an_image_of_another_shape_is_not_drawn_on(boxes):
    assert _asked(np.zeros((400, 500), np.uint8), Canvas(1000, 800)).width == 1000
    assert _asked(np.zeros((500, 500), np.uint8), Canvas(1000, 800)) is None
    made = OneFile(boxes, lambda *_: np.zeros((500, 500), np.uint8))
    made.data()
    assert "another shape" in " ".join(made.left_out)


def test_photographs_become_jpeg_and_stay_within_the_room_there_is(boxes, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    monkeypatch.setattr("mld_core.app.file.seen.PICTURE_BYTES", 300_000)
    made = OneFile(boxes, lambda *_: noise)
    pictures = made.data()["pictures"]["val"]
    assert any(one.startswith("/9j/") for one in pictures.values())
    assert 0 < sum(len(one) for one in pictures.values()) <= 300_000
    assert "images were left out to keep the file small" in " ".join(made.left_out)


# --- parts --------------------------------------------------------------------------------------------------


def test_codes_in_words():
    assert parse_box_code("DET:SP*:CLS3->5") == ("SP", True, 3, 5)
    words = code_words("DET:D:CLS1->1", ["cat", "dog"])
    assert (words["truth"], words["said"], words["event"]) == ("dog", "dog", "duplicate")
    assert code_words("no_prediction", None)["said"] == "nothing"
    with pytest.raises(ValueError, match="CLS3->5"):
        parse_box_code("CLS3->5")


def test_records_that_changed_since_are_not_mixed_in(boxes):
    units = passes_of(boxes)[0]
    units.result.info["passes"][0]["attempt"], kept = "another", units.result.info["passes"][0]["attempt"]
    try:
        assert units.records is None
    finally:
        units.result.info["passes"][0]["attempt"] = kept


def test_small_images():
    stripes = np.zeros((128, 256, 3), np.uint8)
    stripes[:, ::2] = 200
    made = small(stripes)
    assert made.shape == (32, 64, 3)
    assert (made == 100).all()
    assert small(np.zeros((3, 10, 12))).shape == (10, 12, 3)
    assert small(np.array([[-1.0, 1.0]])).ravel().tolist() == [0, 255]


def test_spread_is_even_and_the_same_every_time():
    picked = spread(100_000, 1_000)
    assert np.array_equal(picked, spread(100_000, 1_000))
    assert len(np.unique(picked)) == 1_000
    per_tenth = np.bincount(picked // 10_000, minlength=10)
    assert per_tenth.min() > 60
    assert per_tenth.max() < 140
    assert not np.array_equal(picked, spread(100_000, 1_000, salt=1))


def test_class_labels():
    assert [class_label(number, ["a"]) for number in (0, 1, -1)] == ["a", "1", "no prediction"]
