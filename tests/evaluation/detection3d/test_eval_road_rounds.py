"""An evaluation of 3D boxes in rounds over the parts of a pass: nuScenes-like roads and KITTI-like frames."""

import pickle
from dataclasses import replace

import kitti_frames
import numpy as np
import pandas as pd
import pytest
import road_records
import road_simulation as roads
from app_building import need_pages
from rounds_parts import evaluated, facts_of, measured, same_figures, tables_of, told_by, units_of
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.detection import events
from mld_core.evaluation.detection.events import judged_units
from mld_core.evaluation.detection.records import read_boxes
from mld_core.evaluation.detection.rounds.matched import Matched, match_kernel
from mld_core.evaluation.detection.rounds.parts import Seen, look_kernel, walks_of
from mld_core.evaluation.detection3d.geometry import RoadBoxes
from mld_core.evaluation.detection3d.profile import ROADS
from mld_core.evaluation.engine.executor import Round, Workers
from mld_core.evaluation.engine.rounds import PartRounds
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.metrics.boxes import Predictions
from mld_core.evaluation.metrics.classification import auroc
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.report import write_report

RUN = RunKey("det", "v1")
FRAMES = 60
SAME = [
    *("unit_id", "input_id", "unit_kind", "gt", "prediction", "is_error", "det_code", "tide_error", "iou"),
    *("confidence", "truth_id", "det_idx", "gt_idx", "loss", "entropy", "cx", "gt_yaw", "range", "azimuth"),
    *("range_bin", "ate", "ase", "aoe", "ave", "speed_bin", "points_bin", "n_points"),
]
BY_BOXES = ["T01", "T02", "T03", "T04", "T05", "T06", "T07", "T10", "T11", "T12", "T22", "T23"]
"""Codes that no model of errors enters."""


def faulty_road(frames=FRAMES, seed=5):
    """A road with labels that are turned round or shifted, and sensors and a detector that fail in places."""
    road = roads.simulate(frames=frames, seed=seed, clutter=25, objects=20)
    road = roads.shifted_labels(roads.flipped_labels(road, share=0.1, seed=3), share=0.05, seed=1)
    return roads.range_dropout(roads.sector_dropout(road, share=0.1, degrees=90, seed=2), label=0, metres=30)


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A pass of a validation split in five parts and one of training data in two."""
    store = Store(tmp_path_factory.mktemp("road") / "store")
    road_records.write(
        store, RUN, "val", road_records.road_frames(faulty_road()), roads.CLASSES, world_size=5
    )
    train = roads.simulate(frames=24, seed=9, clutter=20, objects=15)
    road_records.write(store, RUN, "train", road_records.road_frames(train), roads.CLASSES, world_size=2)
    return store.root


@pytest.fixture(scope="module")
def in_rounds(road):
    return evaluated(road, "in rounds", engine="rounds")


@pytest.fixture(scope="module")
def in_memory(road):
    return evaluated(road, "in memory")


def carriers(result, code):
    return [code in codes for codes in units_of(result)["diagnosis"]]


def test_metrics_and_counts_are_those_of_memory_to_the_last_bit(in_rounds, in_memory):
    same_figures(in_rounds, in_memory)
    row = measured(in_memory).loc["val"]
    assert 0.1 < row["nds"] < 0.9
    assert row[["map_d05", "mate", "mase", "maoe", "mave", "dap_miss"]].notna().all()
    assert tables_of(in_memory, "classes")["classes"]["aoe"].notna().any()


def test_units_are_those_of_memory(in_rounds, in_memory):
    ours, theirs = units_of(in_rounds), units_of(in_memory)
    pd.testing.assert_frame_equal(ours[SAME], theirs[SAME], check_exact=True)
    assert {"A", "M", "N"} <= set(ours["det_code"])
    kept = ours["unit_kind"] == "pred"
    agree = (ours["category"] == theirs["category"])[kept].mean()
    print(f"{agree:.1%} of {kept.sum()} kept predictions have the category that they have in memory")
    assert agree > 0.8
    wrong = theirs["is_error"][kept].to_numpy(bool)
    here, there = (auroc(one["error_proba"][kept].to_numpy(), wrong) for one in (ours, theirs))
    assert here > there - 0.04
    assert ours["frame_error_proba"].notna().all()
    counts = [int((ours["category"] == name).sum()) for name in CATEGORIES]
    assert sum(counts) == ours["category"].notna().sum()


def test_diagnoses_that_no_model_of_errors_enters_are_those_of_memory(in_rounds, in_memory):
    counts, theirs = facts_of(in_rounds)["code_counts"], facts_of(in_memory)["code_counts"]
    for code in ["D01", "D02", "D03", "D04", "D05", "D06", "D07", "D08", "D09", "D24", "D25", *BY_BOXES]:
        assert carriers(in_rounds, code) == carriers(in_memory, code), code
        assert counts[code] == theirs[code] == sum(carriers(in_rounds, code))
    assert min(counts[code] for code in BY_BOXES) > 0
    detail = [units_of(one)["detail"].fillna("").tolist() for one in (in_rounds, in_memory)]
    assert detail[0] == detail[1]
    assert "swapped" in {*detail[0]} or counts["T04"] > 0


def test_shifted_labels_stand_on_the_offsets_of_the_whole_pass(in_rounds, in_memory):
    """Alone the belief in a box is another one: nearly all of them are the same."""
    ours, theirs = (np.array(carriers(one, "T21")) for one in (in_rounds, in_memory))
    assert theirs.sum() > 10
    assert (ours & theirs).sum() >= 0.9 * (ours | theirs).sum()
    offset = np.any([carriers(in_rounds, code) for code in ("T01", "T02", "T03")], axis=0)
    assert not (ours & ~offset).any()


def test_sensor_faults_are_named_as_in_memory(in_rounds, in_memory):
    ours, theirs = facts_of(in_rounds), facts_of(in_memory)
    assert ours["range_drop_offs"] == theirs["range_drop_offs"]
    assert ours["sector_dropouts"] == theirs["sector_dropouts"]
    assert {one["class"] for one in ours["range_drop_offs"]} == {"car"}
    ids = in_rounds.frames("val")["input_id"].tolist()
    assert all(ids[one["frame"]] == one["input_id"] for one in ours["sector_dropouts"])
    assert len(ours["sector_dropouts"]) > 0


def test_what_it_does_not_compute_is_said_and_nowhere_filled_in(in_rounds):
    told = told_by(in_rounds)
    for what in ("cells of boxes stand for neighbours", "T20", "D22", "D23", "T21, T22", "miss_proba"):
        assert what in told
    facts = facts_of(in_rounds)
    assert facts["not_computable"].keys() == {"D22", "D23", "T13", "T20"}
    assert "an evaluation in rounds does not" in facts["not_computable"]["T20"]
    assert "D20" not in facts["code_counts"]
    carried = {code for codes in units_of(in_rounds)["diagnosis"] for code in codes}
    assert carried <= facts["code_counts"].keys()
    assert not carried & facts["not_computable"].keys()


def test_regions_carry_the_codes_of_3d(in_rounds):
    regions = in_rounds.regions("val")
    assert len(regions)
    assert any(code.startswith("T") for codes in regions["top_codes"] for code in codes)


def test_any_number_of_threads_gives_the_same_result_to_the_last_bit(road, in_rounds):
    again = evaluated(road, "one thread", engine="rounds", threads=1)
    pd.testing.assert_frame_equal(units_of(in_rounds), units_of(again), check_exact=True)
    pd.testing.assert_frame_equal(in_rounds.metrics_summary(full=True), again.metrics_summary(full=True))
    assert facts_of(in_rounds) == facts_of(again)


def test_what_metrics_are_computed_from_is_small_and_the_rest_does_not_grow_with_the_pass(road):
    """The driver holds scores, bits, and the steps around the sensor of each frame; printed with -s."""
    selection = select(Store(road), RUN, dataset_type="val")[0]
    info = {"n_class": len(roads.CLASSES), "class_names": list(roads.CLASSES)}
    walks = walks_of(selection, info)
    with PartRounds(Workers(1)) as rounds:
        head = rounds.over(Round("look", look_kernel, Seen()), walks).state.head(selection, info)
        walks = [replace(walk, head=head) for walk in walks]
        found = rounds.over(Round("match", match_kernel, Matched(), ROADS), walks).state
    boxes, truths = len(found.recorded().label), len(found.truths().label)
    size = sum(len(pickle.dumps(one, protocol=5)) for one in found.parts)
    steps = FRAMES * 144 * 4
    print(
        f"{(size - steps) / (boxes + truths):.0f} bytes for each of {boxes} recorded boxes and {truths} "
        f"truths, and {steps / FRAMES:.0f} for each frame"
    )
    assert size - steps < 110 * (boxes + truths) + 8_192 * len(walks)
    assert all(len(pickle.dumps(walk, protocol=5)) < 20_000 for walk in walks)


# --- KITTI-like frames ----------------------------------------------------------------------------------


def both(root, **options):
    """The same pass in rounds and in memory."""
    return [evaluated(root, engine, engine=engine, **options) for engine in ("rounds", "memory")]


@pytest.fixture
def written(tmp_path):
    """`written(frames, names, **how)`: a store with one pass."""

    def made(frames, names=kitti_frames.NAMES, **how):
        store = Store(tmp_path / "store")
        road_records.write(store, RUN, "val", frames, names, **how)
        return store.root

    return made


def without(frames, *names, where=slice(None)):
    """Frames of which some lack what is named: of themselves or of their truths."""
    for frame in frames[where]:
        for name in names:
            frame.pop(name, None)
            frame["truths"].pop(name, None)
    return frames


@pytest.mark.parametrize("missing", ["nothing", "cameras", "some cameras"])
def test_kittis_metrics_are_those_of_memory(written, missing):
    frames = road_records.kitti_records(90, seed=3, cameras=missing != "cameras")
    if missing == "some cameras":  # those of one part: then no box of any part is projected
        without(frames, "calibration", where=slice(1, None, 3))
    ours, theirs = both(written(frames, world_size=3))
    same_figures(ours, theirs)
    row = measured(ours).loc["val"]
    assert row["ap40_bev_moderate"] >= row["ap40_3d_moderate"] > 0.05
    assert row["aos40_hard"] > 0
    for code in [code for code in BY_BOXES if code not in {"T10", "T23"}]:
        assert carriers(ours, code) == carriers(theirs, code), code
    assert facts_of(ours)["not_computable"]["T10"] == facts_of(theirs)["not_computable"]["T10"]
    assert facts_of(ours)["code_counts"]["T06"] > 0


def test_cameras_of_all_frames_change_kittis_figures(written, tmp_path):
    """Else the test above would compare the same figures three times."""
    made = []
    for place, cameras in enumerate((True, False)):
        store, frames = Store(tmp_path / str(place)), road_records.kitti_records(90, seed=3, cameras=cameras)
        road_records.write(store, RUN, "val", frames, kitti_frames.NAMES, world_size=3)
        result = evaluated(store.root, "made", engine="rounds")
        made.append(measured(result).loc["val", "ap40_3d_moderate"])
    assert made[0] != made[1]


def test_points_and_difficulties_that_only_one_part_knows_hold_for_the_pass(written):
    frames = road_records.road_frames(roads.simulate(frames=30, seed=6, clutter=15, objects=12))
    for number, frame in enumerate(frames):
        frame["truths"]["difficulty"] = np.minimum(frame["truths"]["n_points"] < 20, 1).astype(int)
        if number % 3:
            without([frame], "difficulty", "n_points")
    ours, theirs = both(written(frames, roads.CLASSES, world_size=3))
    same_figures(ours, theirs)
    assert measured(ours).loc["val", "ap40_bev_easy"] > 0
    for code in ("T10", "T23"):
        assert carriers(ours, code) == carriers(theirs, code)
        assert sum(carriers(ours, code)) > 0


def test_a_pass_without_predictions(written):
    frames = road_records.kitti_records(24, seed=2)
    for frame in frames:
        frame["detections"] = {name: values[:0] for name, values in frame["detections"].items()}
    ours, theirs = both(written(frames, world_size=2))
    pd.testing.assert_frame_equal(measured(ours), measured(theirs), rtol=1e-12, check_dtype=False)
    units = units_of(ours)
    assert set(units["unit_kind"]) == {"gt"}
    assert units["diagnosis"].map(lambda codes: "D06" in codes).all()


def test_frames_without_truths_are_predictions_that_nobody_judges(written):
    frames = road_records.kitti_records(24, seed=2)
    for frame in frames:
        frame["truths"] = {name: values[:0] for name, values in frame["truths"].items()}
        frame["labelled"] = False
    ours, theirs = both(written(frames, world_size=2))
    pd.testing.assert_frame_equal(measured(ours), measured(theirs), rtol=1e-12, check_dtype=False)
    assert "the truth of no frame is known" in told_by(ours)
    units = units_of(ours)
    assert len(units)
    assert units["is_error"].isna().all()


def test_what_a_round_ships_and_brings_is_plain_data(written, monkeypatch):
    """Else the rounds would end at the border of a process, as they do on a cluster."""
    over, kernels = PartRounds.over, set()

    def elsewhere(rounds, work, walks, folder=None):
        kernels.add(work.kernel.__name__)
        shipped, walks = pickle.loads(pickle.dumps((work, list(walks)), protocol=5))
        return pickle.loads(pickle.dumps(over(rounds, shipped, walks, folder), protocol=5))

    monkeypatch.setattr(PartRounds, "over", elsewhere)
    frames = road_records.road_frames(faulty_road(frames=24))
    made = evaluated(written(frames, roads.CLASSES, world_size=3), "shipped", engine="rounds")
    assert {"look_kernel", "match_kernel", "keep_kernel", "box_kernel"} <= kernels
    assert facts_of(made)["code_counts"]["T06"] > 0


def test_every_epoch_and_what_the_others_say_is_not_asked(written):
    road = faulty_road(frames=24)
    first = replace(road, epochs=[Predictions(*vars(road.epochs[1]).values())], velocity=road.velocity)
    written(road_records.road_frames(first, 0, velocity=False), roads.CLASSES, world_size=2, n_epoch=0)
    root = written(road_records.road_frames(road), roads.CLASSES, world_size=2, n_epoch=1)
    made = Evaluator("det", "v1", store=root).request_evaluation(
        "all", None, options={"engine": "rounds", "repeats": 1}
    )
    assert [one["n_epoch"] for one in made.info["passes"]] == [0, 1]
    assert all(one["other_epochs"] == 0 for one in made.info["facts"])
    assert "no other epochs" in told_by(made)


def test_pages_and_the_command_line_make_and_read_such_a_result(road, tmp_path):
    need_pages()
    asked = ["det", "v1", "--store", str(road), "--dataset", "val"]
    made = CliRunner().invoke(app, ["evaluate", *asked, "--engine", "rounds", "--name", "by hand", "--json"])
    assert made.exit_code == 0, made.output
    shown = CliRunner().invoke(app, ["show", "det", "v1", "--store", str(road), "--json"])
    assert shown.exit_code == 0, shown.output
    result = Evaluator("det", "v1", store=road).get_result("by hand")
    assert len(result.frames("val")) == FRAMES
    issues = result.get_issues("val", code="T06", limit=10)
    assert len(issues) == 10
    assert (issues["aoe"] > np.pi / 2).all()
    errors = result.get_view("range_bin", metrics=["mean_ate"])
    assert {"0-10 m", "40-50 m"} <= {*errors["range_bin"]}
    write_report(result, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 100_000


def test_what_is_usual_is_that_of_the_pass_however_many_boxes_are_judged_at_a_time(road, monkeypatch):
    selection = select(Store(road), RUN, dataset_type="val")[0]
    records = read_boxes(selection, {"n_class": len(roads.CLASSES)})
    limits = np.full(records.n_class, 0.05)
    whole = judged_units(records, limits, RoadBoxes())
    monkeypatch.setattr(events, "CHUNK_BOXES", 300)
    pieces = judged_units(records, limits, RoadBoxes())
    for name in ("code", "truth", "right", "quality"):
        np.testing.assert_array_equal(getattr(pieces.events, name), getattr(whole.events, name), err_msg=name)
