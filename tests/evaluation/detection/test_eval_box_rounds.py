"""An evaluation of boxes in rounds over the parts of a pass, on the threads of one machine."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simulated_detector as simulation
from app_building import need_pages
from rounds_parts import evaluated, measured, same_figures, tables_of, units_of
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.detection.profile import IMAGES
from mld_core.evaluation.detection.records import read_boxes
from mld_core.evaluation.detection.rounds import method as rounds_method
from mld_core.evaluation.detection.rounds.matched import Matched, match_kernel
from mld_core.evaluation.detection.rounds.parts import Seen, look_kernel, walks_of
from mld_core.evaluation.engine.executor import Round, Workers
from mld_core.evaluation.engine.rounds import PartRounds
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.metrics.classification import auroc
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select
from mld_core.report import write_report

FAULTS = {"missing": 0.05, "shifted": 0.04, "swapped": 0.05, "spurious": 0.03}
FRAMES = 220
FROM_RANKS = ["auroc", "auprc", "brier", "ece", "aurc", "augrc"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A validation pass with planted faults in five parts, and a train pass in two."""
    store, run = Store(tmp_path_factory.mktemp("boxes") / "store"), RunKey("det", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": 6, "class_names": list("abcdef")})
    scene = simulation.simulate(FRAMES, seed=4, faults=FAULTS)
    simulation.write(store, run, "val", scene, world_size=5, repeat=7)
    simulation.write(store, run, "train", simulation.simulate(60, seed=9), world_size=2, start=10_000)
    return store.root


@pytest.fixture(scope="module")
def in_rounds(root):
    return evaluated(root, "in rounds", engine="rounds")


@pytest.fixture(scope="module")
def in_memory(root):
    return evaluated(root, "in memory")


def test_metrics_and_counts_are_those_of_memory_to_the_last_bit(in_rounds, in_memory):
    same_figures(in_rounds, in_memory)
    assert {"map_50", "map_75", "dap_cls", "dap_miss", "auprc"} <= {*measured(in_memory)}
    assert tables_of(in_memory, "classes")["classes"]["map_50"].notna().any()


def test_units_are_those_of_memory_but_weak_boxes(in_rounds, in_memory):
    ours, theirs = units_of(in_rounds), units_of(in_memory)
    theirs = theirs[theirs["unit_kind"] != "weak"].infer_objects()
    same = ["unit_id", "input_id", "unit_kind", "gt", "prediction", "is_error", "det_code", "tide_error"]
    same += ["confidence", "iou", "truth_id", "det_idx", "gt_idx", "loss", "entropy", "x1", "gt_y2", "when"]
    pd.testing.assert_frame_equal(ours[same], theirs[same], check_exact=True)
    kept = ours["unit_kind"] == "pred"
    agree = (ours["category"] == theirs["category"])[kept].mean()
    print(f"{agree:.1%} of {kept.sum()} kept predictions have the category that they have in memory")
    assert agree > 0.8
    wrong = theirs["is_error"][kept].to_numpy(bool)
    here, there = (auroc(one["error_proba"][kept].to_numpy(), wrong) for one in (ours, theirs))
    assert here > there - 0.04
    assert ours["frame_error_proba"].notna().all()


def test_diagnoses_that_others_do_not_enter_are_those_of_memory(in_rounds, in_memory):
    ours, theirs = (one["diagnosis"] for one in (units_of(in_rounds), units_of(in_memory)))
    counts = in_rounds.info["facts"][1]["code_counts"]
    for code in ("D01", "D02", "D03", "D04", "D05", "D06", "D07", "D08", "D09", "D24", "D25"):
        here = [code in codes for codes in ours]
        assert here == [code in codes for codes in theirs[: len(here)]], code
        assert counts[code] == sum(here)
    assert min(counts[code] for code in ("D01", "D02", "D04", "D05", "D06", "D07", "D09")) > 0


def test_categories_are_a_partition_and_coverage_holds_no_error(in_rounds):
    row = in_rounds.issue_category_summary(full=True).set_index("dataset").loc["val"]
    units = units_of(in_rounds)
    counts = [int((units["category"] == name).sum()) for name in CATEGORIES]
    assert [round(row[f"{name}_ratio"] * row["counts"]) for name in CATEGORIES] == counts
    assert sum(counts) == row["counts"] == units["category"].notna().sum()
    covered = units["category"].isin(CATEGORIES[:2])
    assert not units["is_error"][covered].any()


def test_what_it_does_not_compute_is_said_and_nowhere_filled_in(in_rounds):
    told = " ".join(one["message"] for one in in_rounds.info["problems"])
    for what in ("cells of boxes stand for neighbours", "95 % intervals", "D20", "D22", "D23", "miss_proba"):
        assert what in told
    facts = next(one for one in in_rounds.info["facts"] if one["dataset"] == "val")
    assert facts["not_computable"].keys() == {"D20", "D22", "D23"}
    units = units_of(in_rounds)
    carried = {code for codes in units["diagnosis"] for code in codes}
    assert not carried & facts["not_computable"].keys()
    assert units["miss_proba"].isna().all()
    assert units["neighbour_ids"].isna().all()
    row = in_rounds.metrics_summary(full=True).set_index("dataset").loc["val"]
    assert pd.isna(row.get("accuracy_lo"))
    assert pd.isna(row.get("miss_proba_auroc"))
    assert row["frame_error_proba_auroc"] > 0.6
    assert row["det_error_proba_auroc"] > 0.6


def test_regions_are_named_by_confusions_of_classes_and_background(in_rounds):
    regions = in_rounds.regions("val")
    assert len(regions)
    for one in regions.itertuples():
        assert one.label == "no errors" or all(
            side == "bg" or 0 <= int(side) < 6 for side in one.label.split(" @ ")[0].split("->")
        )
    ids = units_of(in_rounds).set_index("unit_id")["input_id"]
    assert [ids[one] for one in regions["medoid_unit_id"]] == regions["medoid_input_id"].tolist()


def test_any_number_of_threads_gives_the_same_result_to_the_last_bit(root, in_rounds):
    again = evaluated(root, "one thread", engine="rounds", threads=1)
    pd.testing.assert_frame_equal(units_of(in_rounds), units_of(again), check_exact=True)
    pd.testing.assert_frame_equal(in_rounds.metrics_summary(full=True), again.metrics_summary(full=True))


def test_a_sample_stands_for_the_pass(root, in_rounds, monkeypatch):
    whole = rounds_method.finish
    monkeypatch.setattr(rounds_method, "finish", lambda *a: whole(*a, sample=400))
    made = evaluated(root, "a sample", engine="rounds", dataset_types=["val"])
    few, every = units_of(made), units_of(in_rounds)
    kept = every["unit_kind"] == "pred"
    wrong = every["is_error"][kept].to_numpy(bool)
    assert made.info["facts"][0]["pi"] == in_rounds.info["facts"][1]["pi"]  # of all, exactly
    here, there = (auroc(one["error_proba"][kept].to_numpy(), wrong) for one in (few, every))
    assert here > there - 0.06
    # Wrong ones are over-represented in the sample, not in the probabilities.
    assert few["error_proba"][kept].mean() == pytest.approx(wrong.mean(), abs=0.04)
    loose = (every["det_code"][kept] != "A").mean()
    assert few["det_error_proba"][kept].mean() == pytest.approx(loose, abs=0.06)


@pytest.fixture
def written(tmp_path):
    """`written(scene, **how)`: a store with one pass."""

    def made(*scenes, **how):
        store, run = Store(tmp_path / "store"), RunKey("det", "v1")
        store.ensure_run(run, {"task": "detection"})
        for place, scene in enumerate(scenes):
            simulation.write(store, run, "val", scene, n_epoch=place, **how)
        return store

    return made


def both(store, **options):
    """The same pass in memory and in rounds; the metrics that no model of errors enters are the same."""
    made = [evaluated(store.root, engine, engine=engine, **options) for engine in ("memory", "rounds")]
    theirs, ours = (measured(one) for one in made)
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-12, check_dtype=False)
    return made


def test_boxes_of_which_the_score_alone_is_known(written):
    store = written(simulation.simulate(90, seed=3), world_size=3, sigmoid=False)
    made = both(store)[1]
    told = " ".join(one["message"] for one in made.info["problems"])
    assert "no logits are stored" in told
    assert units_of(made)["error_proba"].notna().any()


def test_frames_without_truths_are_predictions_that_nobody_judges(written):
    made = both(written(simulation.simulate(40, seed=3), world_size=3, labelled=False))[1]
    told = " ".join(one["message"] for one in made.info["problems"])
    assert "the truth of no frame is known" in told
    units = units_of(made)
    assert len(units)
    assert units["is_error"].isna().all()
    assert units["entropy"].notna().all()


def test_a_pass_without_predictions(written):
    scene = simulation.simulate(30, seed=3)
    none = np.zeros(len(scene.frame), bool)
    names = ("frame", "label", "score", "box", "logits", "features", "object_of")
    made = both(
        written(replace(scene, **{name: getattr(scene, name)[none] for name in names}), world_size=2)
    )[1]
    units = units_of(made)
    assert set(units["unit_kind"]) == {"gt"}
    assert units["diagnosis"].map(lambda codes: "D06" in codes).all()


@pytest.mark.parametrize("engine", ["memory", "rounds"])
def test_what_is_not_known_of_a_frame_is_null_and_never_nan(written, engine):
    scene = simulation.simulate(30, seed=3)
    some = scene.frame != 7
    names = ("frame", "label", "score", "box", "logits", "features", "object_of")
    store = written(replace(scene, **{name: getattr(scene, name)[some] for name in names}), world_size=2)
    made = evaluated(store.root, engine, engine=engine)
    frames = pq.read_table(made.folder / "frames.parquet")
    figures = [f"{name}_{how}" for name in ("error_proba", "det_error_proba") for how in ("mean", "max")]
    without = np.asarray(frames["n_pred"]) == 0
    assert 0 < without.sum() < len(frames)
    for name in figures:
        assert np.asarray(frames[name].is_null()).tolist() == without.tolist(), name
        assert np.isfinite(frames[name].drop_null()).all(), name


def test_every_epoch_and_a_column_that_keeps_frames_together(written):
    store = written(*(simulation.simulate(60, seed=3, jitter=epoch) for epoch in range(2)), world_size=2)
    made = Evaluator("det", "v1", store=store.root).request_evaluation(
        "all", None, options={"engine": "rounds", "repeats": 1, "group_key": "when"}
    )
    assert [one["n_epoch"] for one in made.info["passes"]] == [0, 1]
    with pytest.raises(ValueError, match="option group_key='scene': 'val' has no such column of yours"):
        evaluated(store.root, "unknown", engine="rounds", group_key="scene")


def test_a_part_with_boxes_of_frames_that_lie_elsewhere_is_refused(written, monkeypatch):
    whole = simulation.tables

    def torn(*given, **how):
        made = whole(*given, **how)
        if how.get("rank"):
            made["samples"] = made["samples"].filter(pa.array(np.arange(len(made["samples"])) > 0))
        return made

    monkeypatch.setattr(simulation, "tables", torn)
    store = written(simulation.simulate(30, seed=3), world_size=2)
    with pytest.raises(
        ValueError, match=r"rows of detections belong to frames that this part has not.*memory"
    ):
        evaluated(store.root, "torn", engine="rounds")


def test_what_metrics_are_computed_from_is_small_and_the_rest_does_not_grow_with_the_pass(root):
    """The driver holds the boxes' scores and bits; printed with -s."""
    selection = select(Store(root), RunKey("det", "v1"), dataset_type="val")[0]
    walks = walks_of(selection, {"n_class": 6})
    with PartRounds(Workers(1)) as rounds:
        head = rounds.over(Round("look", look_kernel, Seen()), walks).state.head(selection, {"n_class": 6})
        walks = [replace(walk, head=head) for walk in walks]
        found = rounds.over(Round("match", match_kernel, Matched(), IMAGES), walks).state
    boxes, truths = len(found.recorded().label), len(found.truths().label)
    size = sum(len(pickle.dumps(one, protocol=5)) for one in found.parts)
    print(f"{size / (boxes + truths):.0f} bytes for each of {boxes} recorded boxes and {truths} truths")
    assert size < 70 * (boxes + truths) + 8_192 * len(walks)
    assert boxes == len(read_boxes(selection, {}).predictions)
    # A part is shipped as where it lies, never its rows, nor the list of all parts.
    assert all(len(pickle.dumps(walk, protocol=5)) < 20_000 for walk in walks)


def test_pages_and_the_command_line_make_and_read_such_a_result(root, tmp_path):
    need_pages()
    asked = ["det", "v1", "--store", str(root), "--dataset", "val"]
    made = CliRunner().invoke(app, ["evaluate", *asked, "--engine", "rounds", "--name", "by hand", "--json"])
    assert made.exit_code == 0, made.output
    shown = CliRunner().invoke(app, ["show", "det", "v1", "--store", str(root), "--json"])
    assert shown.exit_code == 0, shown.output
    result = Evaluator("det", "v1", store=root).get_result("by hand")
    assert result.info["options"]["engine"] == "rounds"
    assert len(result.frames("val")) == FRAMES
    assert len(result.get_issues("val", limit=20)) == 20
    write_report(result, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 100_000
