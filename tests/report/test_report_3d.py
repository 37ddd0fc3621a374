"""The 3D parts of the page: they say what the tables and records say, stay small, and work in a browser."""

import base64
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mld_core.evaluation.evaluator import Evaluator
from mld_core.records.layout import RunKey, Store
from mld_core.report import write_report
from mld_core.report.frames_3d import FIELDS
from mld_core.report.points_3d import MAX_POINTS, cloud, is_points
from mld_core.report.units import passes_of

pytestmark = pytest.mark.processes

FRAMES = 40
SIDES = ("cx", "cy", "cz", "w", "l", "h", "yaw")
UNIT = np.array([100, 100, 100, 100, 100, 100, 1000])


def _roads():
    name = "mld_tests_road_store"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("road_store.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A result of two epochs with flipped and missing labels and two silent sectors, and its frames."""
    roads = _roads()
    root = tmp_path_factory.mktemp("roads") / "store"
    true, spoilt, _ = roads.make_scenes(FRAMES)
    store, run = Store(root), RunKey("lidar", "v1")
    info = {"task": "detection3d", "n_class": 3, "class_names": ["car", "van", "<i>walker</i>"]}
    store.ensure_run(run, info)
    for epoch in range(2):
        rng = np.random.default_rng([5, epoch])
        said = [
            roads.detect(frame, rng, skill=0.8 + 0.1 * epoch, silent=-120 if number in {3, 11} else None)
            for number, frame in enumerate(true)
        ]
        roads.write_pass(store, run, "val", spoilt, said, epoch)
    options = {"progress": False, "threads": 1, "repeats": 1}
    return Evaluator("lidar", "v1", store=root).request_evaluation("all", None, options=options), spoilt


@pytest.fixture(scope="module")
def written(road, tmp_path_factory):
    result, frames = road

    def points_of(dataset, one):
        assert dataset == "val"
        return frames[int(re.findall(r"\d+$", one)[0])].points

    return write_report(result, tmp_path_factory.mktemp("page") / "roads.html", image_fn=points_of)


@pytest.fixture(scope="module")
def data(written):
    found = re.search(r'id="data">(.*?)</script>', written.path.read_text("utf-8"), re.DOTALL)
    return json.loads(found[1])


@pytest.fixture(scope="module")
def scenes(data):
    return data["details"][str(data["first"])]["scenes"]


@pytest.fixture(scope="module")
def units(road):
    """The units of the last epoch."""
    return pd.read_parquet(road[0].folder / road[0].info["passes"][1]["units"])


def test_the_map_counts_what_the_units_say(units, scenes):
    judged = units[units["is_error"].notna()].copy()
    judged["ring"] = (judged["range"] // 10).astype(int)
    judged["sector"] = np.floor((np.degrees(judged["azimuth"]) % 360 + 180) % 360 / 10).astype(int)
    made = scenes["errormap"]
    judged = judged[judged["ring"] < made["rings"]]
    shown = pd.DataFrame({name: made[name] for name in ("ring", "sector", "n", "errors", "missed")})
    want = judged.groupby(["ring", "sector"]).agg(
        n=("is_error", "size"),
        errors=("is_error", "sum"),
        missed=("unit_kind", lambda one: (one == "gt").sum()),
    )
    pd.testing.assert_frame_equal(shown.set_index(["ring", "sector"]), want.astype("int64"))
    assert made["beyond"] + sum(made["n"]) == units["is_error"].notna().sum()
    assert made["overall"] == pytest.approx(judged["is_error"].astype(bool).mean(), abs=1e-5)


def test_bins_add_up_to_the_metrics(road, scenes):
    row = road[0].metrics_summary(full=True).iloc[1]
    for place, want in (
        (0, row),
        *enumerate(road[0].class_summary().query("n_epoch == 1").to_dict("records"), 1),
    ):
        bins = next(
            one
            for one in scenes["bins"]
            if one["name"] == ("all classes" if not place else want["class_name"])
        )
        for name in ("n_tp", "n_fp", "n_fn"):
            assert sum(line[name] for line in bins["range"]) == want[name], (bins["name"], name)
    assert sum(line["n_gt"] for line in scenes["bins"][0]["range"]) == row["n_gt"]
    assert sum(line["n_gt"] for line in scenes["bins"][0]["points"]) == row["n_gt"]
    assert {line["n_fp"] for line in scenes["bins"][0]["points"]} == {None}
    assert [line["bin"] for line in scenes["bins"][0]["range"]][:2] == ["0-10 m", "10-20 m"]


def test_curves_are_those_of_the_evaluation(road, scenes):
    classes = road[0].class_summary().query("n_epoch == 1").set_index("class_name")
    assert len(scenes["curves"]["classes"]) == len(classes) == 3
    for one in scenes["curves"]["classes"]:
        want = classes.loc[one["name"]]
        assert np.mean(one["ap"]) == pytest.approx(want["auprc"], abs=1e-3)
        assert one["truths"] == want["counts"]
        for name in ("ate", "ase", "aoe", "ave"):
            assert one["error"][name] == pytest.approx(want[name], rel=1e-4)
        reached = [value for value in one["curve"]["ate"][11:] if value is not None]
        assert np.mean(reached) == pytest.approx(want["ate"], rel=5e-3)
        assert len(one["precision"]) == 4
        assert len(one["precision"][0]) == 101


def test_only_the_last_epoch_has_frames(data):
    first = data["details"]["0"]["scenes"]
    assert first["frames"] == {}
    assert first["curves"] is None
    assert first["errormap"]["n"]
    assert len(first["bins"]) == 1


def test_frames_of_a_suspected_label_come_in_its_order(road, scenes):
    issues = road[0].get_issues("val", code="T22", order_by="-suspicion")
    want = list(dict.fromkeys(issues[issues["n_epoch"] == 1]["input_id"]))
    group = next(one for one in scenes["groups"] if one["key"] == "T22")
    assert [scenes["frames"][str(row)]["id"] for row in group["rows"]] == want[: len(group["rows"])]
    assert (group["n"], group["units"]) == (len(want), len(issues[issues["n_epoch"] == 1]))
    keys = [one["key"] for one in scenes["groups"]]
    assert keys[0] == "all"
    assert {"T06", "T12", "T22", "D06"} <= set(keys)
    assert len(scenes["groups"][0]["rows"]) == 12
    assert {one["input_id"] for one in scenes["sensor"]["sectors"]} >= {"frame-0003", "frame-0011"}
    assert scenes["codes"]["T22"]["action"] == "Turn the label round."


def test_boxes_are_those_of_the_units(units, scenes):
    for card in scenes["frames"].values():
        own = units[units["input_id"] == card["id"]]
        boxes = [dict(zip(FIELDS, one, strict=True)) for one in card["boxes"]]
        assert len(boxes) == card["units"] == len(own)
        said = np.array([one["p"] for one in boxes if one["p"]]) / UNIT
        want = own.loc[own["unit_kind"] == "pred", list(SIDES)].to_numpy()
        assert _as_rows(said) == pytest.approx(_as_rows(want), abs=0.006)
        true = np.array([one["t"] for one in boxes if one["t"]]) / UNIT
        want = own.loc[own["truth_id"].notna(), [f"gt_{name}" for name in SIDES]].to_numpy()
        assert _as_rows(true) == pytest.approx(_as_rows(want), abs=0.006)
        assert len(true) == card["n_gt"]
        assert sum(one["kind"] == 1 for one in boxes) == card["n_fp"]
        errors = [one["kind"] in {1, 3} for one in boxes]
        assert errors == sorted(errors, reverse=True)


def _as_rows(boxes):
    return boxes[np.lexsort(boxes.T)].ravel() if len(boxes) else boxes.ravel()


def test_motion_of_the_truth_is_on_the_card(road, scenes):
    frames = {_roads().frame_id(number): frame for number, frame in enumerate(road[1])}
    moving = 0
    for card in scenes["frames"].values():
        speeds = np.hypot(*frames[card["id"]].velocities.T)
        arrows = [one[FIELDS.index("moves")] for one in card["boxes"]]
        shown = sorted(np.hypot(*one) / 100 for one in arrows if one is not None)
        assert shown == pytest.approx(sorted(speeds[speeds >= 0.5]), abs=0.02)
        moving += len(shown)
    assert moving > 0


def test_points_are_thinned_and_those_of_boxes_stay(road, scenes):
    frames = {_roads().frame_id(number): frame for number, frame in enumerate(road[1])}
    card = scenes["frames"][str(scenes["groups"][0]["rows"][0])]
    frame = frames[card["id"]]
    assert card["points"]["of"] == len(frame.points) > MAX_POINTS == card["points"]["n"]
    xyz = np.frombuffer(base64.b64decode(card["points"]["xyz"]), "<i2").reshape(-1, 3) / 100
    near = np.abs(xyz[:, None] - frame.points[None, :, :3]).max(axis=2).min(axis=1)
    assert near.max() <= 0.006
    inside = int(frame.n_points.sum())
    kept = sum(
        int((np.hypot(*(xyz[:, :2] - box[:2]).T) < np.hypot(box[3], box[4]) / 2).sum()) for box in frame.boxes
    )
    assert kept > 0.4 * min(inside, MAX_POINTS // 2)


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


def test_the_page_stays_small_and_says_what_is_missing(written, data):
    assert written.bytes < 15_000_000
    said = " ".join(written.left_out)
    assert "worst 6 frames of each group" in said
    assert "at most 4,000 are drawn" in said
    assert json.dumps(data).count("NaN") == 0


def test_without_points_or_with_pictures(road, tmp_path):
    result, _ = road
    plain = write_report(result, tmp_path / "plain.html")
    assert b'"points":false' in plain.path.read_bytes()
    image = np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)
    pictures = write_report(result, tmp_path / "pictures.html", image_fn=lambda *_: image)
    found = re.search(r'id="data">(.*?)</script>', pictures.path.read_text("utf-8"), re.DOTALL)
    made = json.loads(found[1])
    frames = made["details"][str(made["first"])]["scenes"]["frames"].values()
    assert any(one["picture"] for one in frames)
    assert not any(one["points"] for one in frames)
    assert pictures.bytes < 15_000_000


def test_records_are_found_again(road):
    last = passes_of(road[0])[1]
    assert last.records is not None
    assert last.records.n_rows == FRAMES
    assert last.rows > FRAMES
