"""An evaluation in rounds over the parts of a pass, on the threads of one machine."""

import socket
import time
from dataclasses import replace

import boxes_store
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.evaluation.classification.rounds import method as rounds_method
from mld_core.evaluation.classification.rounds.block import Draw, RoundSplit
from mld_core.evaluation.classification.rounds.cells import Around, CellTables, cells_kernel
from mld_core.evaluation.classification.scalars import ClassificationSplit
from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.engine.executor import Round, Workers
from mld_core.evaluation.engine.ray_rounds import _join
from mld_core.evaluation.engine.rounds import PartRounds, PartWalk, Walked, folded
from mld_core.evaluation.evaluator import Evaluator
from mld_core.evaluation.metrics.classification import auroc
from mld_core.evaluation.space.neighbourhood import surroundings
from mld_core.evaluation.statistics.folds import assign_folds
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.removals import Removals, id_digest
from mld_core.records.format.schema import HASH_KIND
from mld_core.records.read.parts import parts_of
from mld_core.records.read.reader import select
from mld_core.report import write_report


def evaluated(store, name, **options):
    chosen = {"threads": 2, "repeats": 2, **options}
    return Evaluator("plan", "v1", store=store.root).request_evaluation(name, options=chosen)


def units_of(result):
    files = [result.folder / one["units"] for one in result.info["passes"]]
    return {file.name: pd.read_parquet(file) for file in files}


@pytest.fixture(scope="module")
def in_rounds(planted_run):
    return evaluated(planted_run[0].store, "in rounds", engine="rounds")


@pytest.fixture(scope="module")
def in_memory(planted_run):
    return evaluated(planted_run[0].store, "in memory")


@pytest.fixture(scope="module")
def val(in_rounds):
    frames = units_of(in_rounds).values()
    return next(frame for frame in frames if frame["dataset"].iloc[0] == "val")


def test_counts_are_those_of_memory_and_the_rest_is_near(in_rounds, in_memory):
    ours = in_rounds.metrics_summary(full=True).set_index("dataset")
    theirs = in_memory.metrics_summary(full=True).set_index("dataset")
    exact = ["counts", "count_labeled", "count_error", "count_nonfinite", "count_distinct_input", "accuracy"]
    pd.testing.assert_frame_equal(ours[exact], theirs[exact])
    for name in ("net_entropy_loss", "net_entropy"):
        np.testing.assert_allclose(ours[name].astype(float), theirs[name].astype(float), rtol=1e-9)
    np.testing.assert_allclose(ours["auroc"].astype(float), theirs["auroc"].astype(float), atol=1e-3)
    assert ours.loc["val", "error_proba_auroc"] > theirs.loc["val", "error_proba_auroc"] - 0.03
    own, other = (
        one.issue_category_summary(full=True).set_index("dataset") for one in (in_rounds, in_memory)
    )
    assert own.loc["val", "t2"] == other.loc["val", "t2"]
    assert list(own["ref_split"].dropna().unique()) == ["val"]


def test_categories_are_a_partition_and_coverage_holds_no_error(in_rounds, val):
    row = in_rounds.issue_category_summary(full=True).set_index("dataset").loc["val"]
    counts = [int((val["category"] == name).sum()) for name in CATEGORIES]
    assert [round(row[f"{name}_ratio"] * row["counts"]) for name in CATEGORIES] == counts
    assert sum(counts) == len(val)
    covered = val["category"].isin(CATEGORIES[:2])
    assert not val["is_error"][covered].any()
    assert row["expected_risk_coverage"] == pytest.approx(val["error_proba"][covered].mean(), rel=1e-4)


def test_the_broken_corner_is_found(in_rounds, val, planted_run):
    inside = val.iloc[planted_run[2].broken]
    wrong = inside[inside["is_error"]]
    assert wrong["category"].isin(["hotspot", "critical_hotspot"]).mean() >= 0.8
    top = in_rounds.regions("val").iloc[0]
    assert top["bh_sig"]
    assert (inside["region_id"] >= 0).mean() > 0.8
    assert top["medoid_input_id"] in set(val["input_id"][val["region_id"] == top["region_id"]])


def test_wrong_labels_come_first(in_rounds, planted_run):
    ids = {planted_run[2].data.ids[row] for row in planted_run[2].wrong_label}
    suspects = in_rounds.get_issues("val", order_by="label_quality", limit=len(ids))
    assert len(ids & set(suspects["input_id"])) / len(ids) >= 0.6


def test_what_it_does_not_compute_is_said(in_rounds, val):
    told = " ".join(one["message"] for one in in_rounds.info["problems"])
    for what in (
        "cells of units stand for neighbours",
        "95 % intervals",
        "C30",
        "C32",
        "C40",
        "C05",
        "C12",
        "C04",
    ):
        assert what in told
    assert "not projected" in told  # the split without labels
    absent = next(one for one in in_rounds.info["facts"] if one["dataset"] == "val")["not_computable"]
    carried = {code for codes in val["diagnosis"] for code in codes}
    assert carried
    assert not carried & absent.keys()


def test_any_number_of_threads_gives_the_same_result_to_the_last_bit(in_rounds, planted_run):
    again = evaluated(planted_run[0].store, "one thread", engine="rounds", threads=1)
    for name, frame in units_of(in_rounds).items():
        pd.testing.assert_frame_equal(frame, units_of(again)[name], check_exact=True)
    pd.testing.assert_frame_equal(in_rounds.metrics_summary(full=True), again.metrics_summary(full=True))


def test_the_engine_may_be_named_by_the_environment(planted_run, monkeypatch):
    monkeypatch.setenv("MLD_ENGINE", "rounds")
    made = evaluated(planted_run[0].store, "by environment", dataset_types=["test"])
    assert made.info["options"]["engine"] == "rounds"
    monkeypatch.setenv("MLD_ENGINE", "spark")
    with pytest.raises(ValueError, match=r"MLD_ENGINE='spark'.*memory, rounds, ray|MLD_ENGINE='spark'"):
        evaluated(planted_run[0].store, "unknown")


def test_the_environment_names_the_engine_of_one_frame_of_3d_boxes_too(tmp_path, monkeypatch):
    store, run = Store(tmp_path), RunKey("det", "v1")
    box = np.array([[10.0, 5.0, 0.0, 2.0, 4.0, 1.5, 0.0]])
    found = {"box": box, "label": np.array([0]), "score": np.array([0.9])}
    frame = {"input_id": "a", "truths": {"box": box, "label": np.array([0])}, "detections": found}
    boxes_store.write(store, run, "val", [frame], "detection3d", class_names=["car"])
    monkeypatch.setenv("MLD_ENGINE", "rounds")
    made = Evaluator("det", "v1", store=tmp_path).request_evaluation(options={"repeats": 1})
    assert made.info["options"]["engine"] == "rounds"
    (row,) = made.metrics_summary(full=True).to_dict("records")
    assert (row["profile"], row["n_tp"], row["mate"]) == ("nuscenes", 1, 0)
    told = " ".join(one["message"] for one in made.info["problems"])
    assert "1 unit is too few to estimate error probabilities" in told


def test_a_sample_stands_for_the_pass(planted_run, in_rounds, val, monkeypatch):
    whole = rounds_method.finish
    monkeypatch.setattr("mld_core.evaluation.classification.method.finish", lambda *a: whole(*a, sample=600))
    made = evaluated(planted_run[0].store, "a sample", engine="rounds", dataset_types=["val"])
    few = next(iter(units_of(made).values()))
    assert made.info["facts"][0]["pi"] == in_rounds.info["facts"][1]["pi"]  # of all units, exactly
    wrong = val["is_error"].to_numpy(bool)
    assert auroc(few["error_proba"].to_numpy(), wrong) > auroc(val["error_proba"].to_numpy(), wrong) - 0.03
    # Wrong ones are over-represented in the sample, not in the probabilities.
    assert few["error_proba"].mean() == pytest.approx(wrong.mean(), abs=0.02)


def test_a_draw_knows_its_weights():
    context = ClassificationSplit("val", 0, 4, {})
    split = RoundSplit(context, ("logits",), None, ("0",))
    draw = Draw.of(split, 100_000, 1_000, 10_000)
    assert (draw.wrong, draw.right) == (1.0, pytest.approx(9_000 / 99_000))
    weights = draw.weights(np.repeat(np.array([1, 0], np.int8), [1_000, 9_000]))
    assert weights.sum() == pytest.approx(100_000)
    assert Draw.of(split, 100_000, 1_000, 100_000).shift == 0


def test_tables_of_cells_say_what_the_cells_in_memory_say():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3_000, 4)).astype(np.float32)
    errors, labels = (rng.random(3_000) < 0.2).astype(np.int8), rng.integers(0, 3, 3_000)
    everyone = np.arange(3_000)
    with Workers(2) as workers:
        cells = surroundings(points, None, everyone, workers, cell_limit=0).around
    split = RoundSplit(ClassificationSplit("val", 0, 3, {}), ("logits",), None, ("0",))
    made = CellTables.empty(split, len(cells.near))
    folds = assign_folds(everyone, "0")
    for fold, cell, wrong, label in zip(folds, cells.cell, errors, labels, strict=True):
        made.folds[0, fold, cell] += 1, wrong
        made.labels[cell, label] += 1
    around = Around.of(made, cells.near)
    wrong, size = around.own(around.counts[:, around.reach(64)])
    total, count = cells.sums(errors.astype(np.float32), (64,))
    np.testing.assert_array_equal(wrong[cells.cell, errors], total[:, 0])
    np.testing.assert_array_equal(size[cells.cell, errors], count[:, 0])
    assert (wrong <= size).all()
    expected = cells.label_counts(labels, 3, 16, everyone)
    np.testing.assert_allclose(around.label_counts(16, cells.cell, labels), expected, rtol=1e-6)


def test_cells_without_a_right_unit_have_a_density(standard_store, monkeypatch):
    monkeypatch.setattr("mld_core.evaluation.classification.rounds.cells.CELL_UNITS", 2)
    monkeypatch.setattr("mld_core.evaluation.classification.rounds.cells.FEWEST_DRAWN", 2)
    options = {"engine": "rounds", "threads": 1, "repeats": 1, "dataset_types": ["val"]}
    made = Evaluator("net", "v1", store=standard_store.root).request_evaluation(
        "small cells", options=options
    )
    assert made.info["facts"][0]["cells"] > 50
    units = next(iter(units_of(made).values()))
    assert units["local_error_rate"].between(0, 1).all()


def test_states_that_cannot_be_written_to_are_merged():
    """As those are that another process sends."""

    def counted() -> CellTables:
        split = RoundSplit(ClassificationSplit("val", 0, 3, {}), ("logits",), None, ("0",))
        made = CellTables.empty(split, 2)
        made.labels[0, 1] = 1
        for value in vars(made).values():
            value.flags.writeable = False
        return made

    zero = counted()
    found = [Walked(counted(), 1, 0.0, 0) for _ in range(3)]
    assert folded(Round("cells", cells_kernel, replace(zero), None), found[:0]).state.labels[0, 1] == 1
    empty = CellTables(*(np.zeros_like(value) for value in vars(zero).values()))
    assert folded(Round("cells", cells_kernel, empty, None), found).state.labels[0, 1] == 3
    assert empty.labels[0, 1] == 0


def test_a_round_that_fails_leaves_nothing(planted_run, in_rounds, monkeypatch):
    root = planted_run[0].store.results_dir(planted_run[1])
    before = sorted(path.name for path in root.iterdir())

    def broken(batch, fits):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(rounds_method, "score_kernel", broken)
    with pytest.raises(RuntimeError, match="the disk is full"):
        evaluated(planted_run[0].store, "broken", engine="rounds")
    assert sorted(path.name for path in root.iterdir()) == before


def test_ray_that_is_not_there_is_said_with_the_command(planted_run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ml-debugger\[ray\]'"):
        evaluated(planted_run[0].store, "no ray", engine="ray")


def test_pages_and_the_command_line_read_such_a_result(in_rounds, tmp_path):
    shown = CliRunner().invoke(app, ["show", "plan", "v1", "--store", str(in_rounds.store.root), "--json"])
    assert shown.exit_code == 0, shown.output
    write_report(in_rounds, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 100_000


class Alive:
    """A state that counts how many of its kind there are."""

    now, most = 0, 0

    def __init__(self) -> None:
        Alive.now += 1
        Alive.most = max(Alive.most, Alive.now)

    def __del__(self) -> None:
        Alive.now -= 1

    def merge(self, other: "Alive") -> "Alive":
        return self


def test_states_of_many_parts_are_not_held_at_once(factory, records):
    run = factory.run()
    factory.add_pass(run, "val", records.make_data(120), world_size=40)
    walks = [PartWalk(part, 0, (), 64) for part in parts_of(select(factory.store, run)[0])]
    assert len(walks) == 40
    done = PartRounds(Workers(2)).over(Round("count", lambda *_: (None, Alive()), Alive(), None), walks)
    assert done.rows == [3] * 40
    assert Alive.most <= 2 * 2 + 5  # what the pool has on its way, and what it is folded into


def test_an_address_without_ray_is_refused(planted_run):
    with pytest.raises(ValueError, match=r"ray_address='head:6379': engine='rounds' joins no cluster"):
        evaluated(planted_run[0].store, "no ray", engine="rounds", ray_address="head:6379")


def test_an_address_where_nobody_answers_is_refused_at_once(monkeypatch):
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(ConnectionError, match=rf"ray_address='127.0.0.1:{port}': nothing answers there"):
            _join(None, f"127.0.0.1:{port}")
        monkeypatch.setenv("RAY_ADDRESS", f"ray://127.0.0.1:{port}")
        with pytest.raises(ConnectionError, match=r"RAY_ADDRESS='ray://127.0.0.1:\d+': nothing answers"):
            _join(None, None)
    assert time.monotonic() - started < 15
    with pytest.raises(ValueError, match=r"ray_address='head': expected host:port"):
        _join(None, "head")


def test_a_field_may_be_called_as_a_layer_or_as_a_column_of_ours(factory, records):
    data = records.make_data(120)
    texts = [f"{place % 3}" for place in range(120)]
    for version, names in (("plain", ["weather"]), ("taken", ["pool", "_row"])):
        data.fields = dict.fromkeys(names, texts)
        factory.add_pass(factory.run("net", version), "val", data, world_size=2)
    made = {}
    for version in ("plain", "taken"):
        for engine in ("memory", "rounds"):
            options = {"engine": engine, "threads": 1, "repeats": 1}
            result = Evaluator("net", version, store=factory.store.root).request_evaluation(options=options)
            made[version, engine] = next(iter(units_of(result).values()))
    taken = made["taken", "rounds"]
    assert taken["pool"].tolist() == taken["_row"].tolist() == texts
    same = ["unit_id", "prediction", "error_proba", "category", "pca_1"]
    pd.testing.assert_frame_equal(taken[same], made["plain", "rounds"][same])


def test_a_pass_without_logits_or_rows_needs_no_number_of_classes(factory, records):
    run = factory.run(n_class=None)
    factory.add_pass(run, "train", records.make_data(90, classes=3), world_size=2)
    factory.add_pass(run, "val", records.make_data(60, classes=3), world_size=2, with_vectors=False)
    factory.add_pass(run, "test", records.make_data(0, classes=3))
    made = [
        Evaluator("net", "v1", store=factory.store.root).request_evaluation(
            options={"engine": engine, "threads": 1, "repeats": 1}
        )
        for engine in ("memory", "rounds")
    ]
    exact = ["dataset", "counts", "count_labeled", "count_error", "accuracy", "count_distinct_input"]
    ours, theirs = (one.metrics_summary(full=True)[exact] for one in made)
    pd.testing.assert_frame_equal(ours, theirs)
    ours, theirs = (pd.read_parquet(one.folder / "classes.parquet") for one in made)
    assert ours.groupby("dataset")["class"].count().to_dict() == {"train": 3, "val": 3}
    pd.testing.assert_frame_equal(
        ours[["class", "counts", "precision"]], theirs[["class", "counts", "precision"]]
    )


def both_engines(store, **options):
    return [
        Evaluator("net", "v1", store=store.root).request_evaluation(
            options={"engine": engine, "threads": 1, "repeats": 1, **options}
        )
        for engine in ("memory", "rounds")
    ]


def test_an_input_leaks_from_the_train_rows_that_count_alone(factory, records):
    run = factory.run()
    # The same inputs, by their hashes; and the same ids, as indices of two data sets are.
    train, val = (records.make_data(rows, seed=rows) for rows in (80, 60))
    factory.add_pass(run, "train", train, world_size=2)
    factory.add_pass(run, "val", val, world_size=2)
    Removals(factory.store, run).append(map(id_digest, train.ids[:20]), "train")
    for made in both_engines(factory.store, dataset_types=["val"]):
        units = next(iter(units_of(made).values()))
        leaked = units["input_id"][units["diagnosis"].map(lambda codes: "C04" in codes)]
        assert sorted(leaked) == val.ids[20:]


def test_hashes_of_two_kinds_say_nothing_of_leaks(factory, records):
    run = factory.run()
    data = records.make_data(60)
    factory.add_pass(run, "train", data, meta={HASH_KIND: "xxh3"}, with_vectors=False)
    factory.add_pass(run, "val", data)
    for made in both_engines(factory.store, dataset_types=["val"]):
        facts = next(one for one in made.info["facts"] if one["dataset"] == "val")
        assert "C04" in facts["not_computable"]


def test_ranking_is_exact_up_to_as_many_cells_as_in_memory(factory, records):
    data = records.make_data(150, strength=60)  # log-odds that histograms cut off
    data.labels[::3] = (data.labels[::3] + 1) % 5
    data.features = None
    factory.add_pass(factory.run(), "val", data, world_size=3)
    in_memory, in_rounds = both_engines(factory.store)
    ours, theirs = (one.metrics_summary(full=True)[["auroc", "auprc"]] for one in (in_rounds, in_memory))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert in_rounds.metrics_summary(full=True)["ranking_method"].tolist() == ["exact"]
    told = " ".join(one["message"] for one in in_rounds.info["problems"])
    assert "no features are stored" in told
    assert "metrics of the error probability are from 65,536-bin histograms" in told
    coarse = both_engines(factory.store, exact_cells=1)[1]
    assert coarse.metrics_summary(full=True)["ranking_method"].tolist() == ["histogram"]


def test_a_part_that_goes_meanwhile_is_named_with_what_to_do(factory, records, monkeypatch):
    factory.add_pass(factory.run(), "val", records.make_data(60), world_size=3)
    place = sorted(factory.store.root.rglob("part-000000"))[1]
    begin = rounds_method.begin

    def gone(split, *more):
        found = begin(split, *more)
        place.rename(place.with_name("joined"))
        return found

    monkeypatch.setattr("mld_core.evaluation.classification.method.begin", gone)
    shown = CliRunner().invoke(app, ["evaluate", "--engine", "rounds", "--store", str(factory.store.root)])
    assert shown.exit_code == 1
    text = " ".join(shown.output.split())
    assert "joined with others or removed since the evaluation began: evaluate again" in text
    assert str(place) in shown.output.replace("\n", "")
    assert not list(next(factory.store.root.rglob(".results")).iterdir())


def test_fewer_groups_than_folds_are_no_reason_to_stop(factory, records):
    data = records.make_data(300, strength=1)
    data.fields = {"scene": [f"{place % 2}" for place in range(300)]}
    factory.add_pass(factory.run(), "val", data, world_size=2)
    for made in both_engines(factory.store, group_key="scene", repeats=3):
        assert next(iter(units_of(made).values()))["error_proba"].between(0, 1).all()
