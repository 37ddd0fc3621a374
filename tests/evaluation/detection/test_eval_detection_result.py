"""Detection runs from records to results: metrics, units, categories, diagnoses, tables, command line."""

from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import simulated_detector as simulation
from app_building import need_pages
from typer.testing import CliRunner

from ml_debugger.evaluator import Evaluator
from mld_core.cli.main import app
from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.detection.codes import CODES
from mld_core.evaluation.errors import NotFoundError
from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.coco import coco_metrics, match_coco
from mld_core.geometry.iou import box_iou
from mld_core.records.format.layout import RunKey, Store

FAULTS = {"missing": 0.05, "shifted": 0.04, "swapped": 0.05, "spurious": 0.03}
OPTIONS = {"repeats": 1, "progress": False}
FRAMES = 260


def _evaluate(root, version="v1", **options):
    return Evaluator("det", version, store=root).request_evaluation(options={**OPTIONS, **options})


def _units(result):
    return pd.concat([pd.read_parquet(path) for path in sorted(result.folder.glob("units-*.parquet"))])


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A store with a clean run, one with planted faults in three epochs, and their scenes."""
    root = tmp_path_factory.mktemp("detection") / "store"
    store = Store(root)
    scenes = {}
    for version, faults in (("clean", {}), ("faulty", FAULTS)):
        run = RunKey("det", version)
        store.ensure_run(run, {"task": "detection", "n_class": 6, "class_names": list("abcdef")})
        for epoch in (0, 1, 2) if faults else (0,):
            scene = simulation.simulate(FRAMES, seed=4, faults=faults, jitter=epoch)
            simulation.write(store, run, "val", scene, n_epoch=epoch)
        scenes[version] = scene
    return root, scenes


@pytest.fixture(scope="module")
def faulty(simulated):
    return _evaluate(simulated[0], "faulty")


@pytest.fixture(scope="module")
def clean(simulated):
    return _evaluate(simulated[0], "clean")


def _brute_force(scene, thresholds):
    """TP, FP, FN at the thresholds, frame by frame."""
    counts = np.zeros(3, int)
    for frame in range(scene.frames):
        for label in range(scene.n_class):
            keep = (scene.frame == frame) & (scene.label == label) & (scene.score >= thresholds[label])
            said = np.flatnonzero(keep)
            said = said[np.argsort(-scene.score[said], kind="stable")]
            true = np.flatnonzero((scene.truth_frame == frame) & (scene.truth_label == label))
            iou = box_iou(scene.box[said], scene.truth_box[true])
            free = np.ones(len(true), bool)
            for row in range(len(said)):
                value = np.where(free, iou[row], -1)
                hit = len(true) > 0 and value.max() >= 0.5
                counts[0 if hit else 1] += 1
                if hit:
                    free[value.argmax()] = False
            counts[2] += free.sum()
    return counts


def test_the_metrics_are_those_of_the_boxes(simulated, clean):
    scene = simulated[1]["clean"]
    row = clean.metrics_summary(full=True).iloc[0]
    assert row["counts"] == FRAMES
    classes = clean.class_summary()
    tp, fp, fn = _brute_force(scene, classes["score_threshold"].to_numpy())
    assert (row["n_tp"], row["n_fp"], row["n_fn"]) == (tp, fp, fn)
    assert row["accuracy"] == pytest.approx(tp / (tp + fp + fn))
    assert row["accuracy_lo"] < row["accuracy"] < row["accuracy_hi"]
    assert (classes["n_tp"].sum(), classes["n_fp"].sum(), classes["n_fn"].sum()) == (tp, fp, fn)
    flags = np.zeros(len(scene.truth_frame), bool)
    found = coco_metrics(
        match_coco(
            Predictions(scene.frame, scene.label, scene.score, scene.box),
            Truths(scene.truth_frame, scene.truth_label, scene.truth_box, flags, flags),
            6,
        )
    ).summary()
    assert row["auprc"] == pytest.approx(found["map"])
    assert row["map_50"] == pytest.approx(found["map_50"])
    assert row["profile"] == "coco"
    assert row["net_entropy"] == pytest.approx(row["net_entropy_mean"] * row["n_pred"])
    assert 0 <= row["dap_loc"] < row["map_50"]


def test_no_threshold_has_a_better_f1(simulated, clean):
    scene = simulated[1]["clean"]
    best = clean.class_summary()["score_threshold"].to_numpy()

    def f1(thresholds):
        tp, fp, fn = _brute_force(scene, thresholds)
        return 2 * tp / (2 * tp + fp + fn)

    for change in (-0.1, 0.1):
        moved = best.copy()
        moved[1] += change
        assert f1(moved) <= f1(best) + 1e-12


def test_units_are_kept_predictions_and_missed_truths(clean):
    units = _units(clean)
    row = clean.metrics_summary(full=True).iloc[0]
    pred, gt = units[units["unit_kind"] == "pred"], units[units["unit_kind"] == "gt"]
    assert (len(pred), len(gt)) == (row["n_pred"], row["n_missed"])
    assert pred["is_error"].sum() == row["n_fp"]
    assert (gt["error_code"] == "no_prediction").all()
    assert gt["is_error"].all()
    matched = pred[pred["det_code"].isin(["A", "M"]) & (pred["tide_error"] == "right")]
    assert (matched["gt"] == matched["prediction"]).all()
    assert (matched["iou"] >= 0.5).all()
    aligned = pred["det_code"] == "A"
    assert (pred[aligned]["iou"] >= 0.75).all()
    noise = pred[pred["det_code"].isin(["N", "ON"])]
    assert noise["gt"].isna().all()
    assert noise["error_code"].str.contains("CLSbg->").all()
    assert set(pred["det_code"]) <= set(CODES)
    assert units["unit_id"].is_unique
    found = units["truth_id"].dropna()
    assert found.is_unique
    assert len(found) == row["n_gt"]


def test_an_uncertain_code_carries_a_star(clean):
    pred = _units(clean).query("unit_kind == 'pred'")
    starred = pred["error_code"].str.contains("*", regex=False)
    assert (starred == (pred["code_certainty"] < 0.8)).all()
    assert 0 < starred.sum() < len(pred)


def test_the_error_probability_tells_errors_from_right_boxes(clean):
    row = clean.metrics_summary(full=True).iloc[0]
    assert row["error_proba_source"] == "cse"
    assert row["error_proba_auroc"] > 0.9
    assert row["error_proba_auprc"] > row["error_rate"] + 0.3
    assert row["error_proba_ece"] < 0.05
    assert row["det_error_proba_auroc"] > 0.8
    assert row["frame_error_proba_auroc"] > 0.6
    pred = _units(clean).query("unit_kind == 'pred'")
    for name in ("error_proba", "det_error_proba", "cls_error_proba", "frame_error_proba"):
        assert pred[name].between(0, 1).all(), name


def test_categories_partition_the_boxes(clean):
    row = clean.issue_category_summary().iloc[0]
    assert row[[f"{name}_ratio" for name in CATEGORIES]].sum() == pytest.approx(1)
    units = _units(clean)
    assert set(units["category"].dropna()) <= set(CATEGORIES)
    assert units[units["unit_kind"] == "gt"]["category"].isna().all()


def _planted(scene, fault):
    number = np.arange(len(scene.truth_frame)) - np.searchsorted(scene.truth_frame, scene.truth_frame)
    rows = np.flatnonzero(scene.fault == 1 + simulation.FAULTS.index(fault))
    return {(int(scene.truth_frame[row]), int(number[row])) for row in rows}


@pytest.mark.parametrize(
    ("code", "fault", "kinds"),
    [("D21", "shifted", ("loc", "right")), ("D22", "swapped", ("cls",)), ("D23", "spurious", ("miss",))],
)
def test_changed_labels_rank_first(simulated, faulty, code, fault, kinds):
    planted = _planted(simulated[1]["faulty"], fault)
    units = _units(faulty)
    asked = units[units["tide_error"].isin(kinds) & units["suspicion"].notna()]
    asked = asked.sort_values("suspicion", ascending=False)
    keys = list(
        dict.fromkeys(zip(asked["input_id"].str[3:].astype(int), asked["gt_idx"].astype(int), strict=True))
    )
    reach = len(planted & set(keys))
    assert reach > 0.6 * len(planted)
    assert sum(key in planted for key in keys[:reach]) / reach > 0.7
    flagged = units[units["diagnosis"].map(lambda codes: code in list(codes))]
    assert 0 < len(flagged) < 0.15 * len(units)


def test_removed_labels_rank_first_among_background(simulated, faulty):
    scene = simulated[1]["faulty"]
    units = _units(faulty)
    asked = units[units["tide_error"] == "bkg"].sort_values("suspicion", ascending=False)
    frame = asked["input_id"].str[3:].astype(int)
    source = scene.object_of[np.searchsorted(scene.frame, frame) + asked["det_idx"].to_numpy(int)]
    hit = np.isin(source, scene.removed)
    assert hit.sum() > 0.6 * len(scene.removed)
    assert hit[: hit.sum()].mean() > 0.8
    flagged = asked["diagnosis"].map(lambda codes: "D20" in list(codes)).to_numpy()
    assert hit[flagged].mean() > 0.6


def test_few_labels_are_suspected_where_none_is_wrong(clean):
    counts = clean.info["facts"][0]["code_counts"]
    total = clean.metrics_summary(full=True).iloc[0]["n_gt"]
    for code in ("D20", "D21", "D22", "D24"):
        assert counts[code] < 0.04 * total, code
    reason = clean.info["facts"][0]["not_computable"]["D23"]
    assert "fewer than three epochs" in reason, "in one epoch a truth missed by chance looks the same"


def test_issues_views_and_maps(faulty):
    issues = faulty.get_issues(code="D22", order_by="-suspicion")
    assert issues["suspicion"].is_monotonic_decreasing
    assert {"x1", "gt_x1", "iou", "suggested_label", "recommended_action"} <= set(issues.columns)
    assert issues["recommended_action"].notna().all()
    for keys in ("class", "predicted_class", ["size_bucket", "det_code"], "diagnosis", "when"):
        view = faulty.get_view(groupby=keys, metrics=["mean_iou"])
        assert view["counts"].sum() > 0, keys
    adjusted = faulty.get_view(groupby="when", adjustby="class", filter="unit_kind = 'pred'")
    assert adjusted["error_rate_adj"].between(0, 1).all()
    grid = faulty.heatmap("center_x:16", "center_y:16")
    assert len(grid) == 256
    assert grid["counts"].sum() == len(_units(faulty))
    frames = faulty.frames()
    row = faulty.metrics_summary(full=True).iloc[0]
    assert len(frames) == FRAMES
    for name in ("n_tp", "n_fp", "n_fn", "n_gt"):
        assert frames[name].sum() == row[name]
    assert set(faulty.confusion().columns) >= {"gt", "prediction", "counts"}
    assert {"label", "top_codes"} <= set(faulty.regions().columns)
    assert not faulty.regions()["label"].str.contains("6").any()


def test_compare_pairs_truths(faulty, clean):
    same = clean.compare(clean)
    row = clean.metrics_summary(full=True).iloc[0]
    assert same.units.iloc[0]["joined_on"] == "truth_id"
    assert same.units.iloc[0]["n_paired"] == row["n_gt"]
    assert same.units.iloc[0]["n_fixed"] == same.units.iloc[0]["n_regressed"] == 0
    changed = clean.compare(faulty)
    units = changed.units.iloc[0]
    assert units["n_regressed"] > units["n_fixed"]
    recall = changed.metrics.set_index("metric").loc["recall"]
    assert recall["delta"] < 0
    assert recall["delta_lo"] <= recall["delta_paired"] <= recall["delta_hi"]


def test_the_summary_and_the_command_line(simulated, clean, monkeypatch):
    text = str(clean.summary())
    for word in ("od_v1", "map_50", "dap_loc", "no_prediction", "D05 Background", "precision"):
        assert word in text, word
    assert "<table" in clean._repr_html_()
    monkeypatch.setenv("MLD_HOME", str(simulated[0]))
    runner = CliRunner()
    for command in (
        ["show", "det", "clean", "--json"],
        ["show", "det", "clean", "--issues", "--code", "D05", "--limit", "3"],
        ["show", "det", "clean", "--view", "size_bucket"],
        ["ls"],
    ):
        answer = runner.invoke(app, command)
        assert answer.exit_code == 0, answer.output
    with pytest.raises(ValueError, match="od_v1"):
        Evaluator("det", "clean", store=simulated[0]).request_evaluation(method_name="classification_v1")


def test_repeated_frames_count_once_with_their_boxes(simulated, clean, tmp_path):
    store, run = Store(tmp_path), RunKey("det", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": 6, "class_names": list("abcdef")})
    simulation.write(store, run, "val", simulated[1]["clean"], world_size=2, repeat=30)
    twice = _evaluate(tmp_path)
    a, b = (one.metrics_summary(full=True).iloc[0] for one in (clean, twice))
    assert b["duplicates_dropped"] == 30
    for name in ("counts", "n_gt", "n_pred", "n_tp", "n_fp", "n_fn", "n_recorded"):
        assert a[name] == b[name], name
    for name in ("auprc", "auroc", "net_entropy", "dap_cls", "accuracy"):
        assert a[name] == pytest.approx(b[name], rel=1e-9), name
    assert b["error_proba_auroc"] == pytest.approx(a["error_proba_auroc"], abs=0.02)


def test_scores_alone_are_enough(tmp_path):
    store, run = Store(tmp_path), RunKey("det", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": 6})
    simulation.write(store, run, "val", simulation.simulate(80, seed=1), sigmoid=False)
    result = _evaluate(tmp_path)
    row = result.metrics_summary(full=True).iloc[0]
    assert row["auprc"] > 0.3
    assert row["net_entropy"] > 0
    assert any(one["kind"] == "no_logits" for one in result.problems)


def test_passes_without_truth_boxes_or_frames(tmp_path):
    store, run = Store(tmp_path), RunKey("det", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": 6})
    scene = simulation.simulate(40, seed=2)
    none = scene.frame < 0
    silent = simulation.Scene(
        **{
            **vars(scene),
            **{name: getattr(scene, name)[none] for name in ("frame", "label", "score", "box")},
            **{name: getattr(scene, name)[none] for name in ("logits", "features", "object_of")},
        }
    )
    simulation.write(store, run, "val", silent)
    hidden = simulation.simulate(40, seed=3)
    simulation.write(store, run, "test", hidden, labelled=False)
    simulation.write(store, run, "train", simulation.simulate(60, seed=5))
    result = _evaluate(tmp_path)
    rows = result.metrics_summary(full=True).set_index("dataset")
    assert rows.loc["val", "recall"] == 0
    assert rows.loc["val", "auprc"] == 0
    assert rows.loc["val", "n_missed"] == len(scene.truth_frame)
    assert pd.isna(rows.loc["test", "accuracy"])
    assert rows.loc["test", "n_pred"] > 0
    assert rows.loc["train", "accuracy"] > 0.3
    units = _units(result)
    assert units[units["dataset"] == "test"]["is_error"].isna().all()
    assert str(result.summary())
    with pytest.raises(NotFoundError, match="no split"):
        _evaluate(tmp_path, dataset_types=["tset"])


def test_the_page_of_a_detection_is_written(clean, tmp_path):
    need_pages()
    page = clean.report(tmp_path / "page.html")
    code = sum(file.stat().st_size for file in (files("mld_core.app") / "static" / "file").iterdir())
    assert 2e5 < page.stat().st_size - code < 15e6  # boxes, scenes and figures, beside the pages themselves
