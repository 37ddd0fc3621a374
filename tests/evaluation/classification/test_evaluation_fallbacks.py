"""Small, one-sided, unlabelled and incomplete splits: fall-backs that say so, never a crash."""

import numpy as np
import pandas as pd
import pytest

from ml_debugger.evaluator import Evaluator
from mld_core.evaluation.codes.categories import CATEGORIES

RATIOS = [f"{name}_ratio" for name in CATEGORIES]


def evaluate(**options):
    result = Evaluator("net", "v1").request_evaluation(options={"threads": 1, **options})
    files = [pd.read_parquet(result.folder / one["units"]) for one in result.info["passes"]]
    return result, pd.concat(files, ignore_index=True)


@pytest.mark.parametrize("rows", [1, 2, 7, 19])
def test_tiny_splits(factory, records, rows):
    factory.add_pass(factory.run(), "val", records.make_data(rows, seed=rows))
    result, units = evaluate()
    assert units["error_proba"].between(0, 1).all()
    assert units["category"].isin(CATEGORIES).all()
    assert result.issue_category_summary().loc[0, RATIOS].sum() == pytest.approx(1)
    assert any("too few to estimate" in one["message"] for one in result.problems)
    assert result.heatmap("class", "category")["counts"].sum() == rows
    assert result.get_view("category")["counts"].sum() == rows


def test_no_errors_and_nothing_but_errors(factory, records):
    right, wrong = records.make_data(60, seed=1, strength=50.0), records.make_data(60, seed=2, strength=50.0)
    wrong.labels = (wrong.labels + 1) % 5
    run = factory.run()
    factory.add_pass(run, "val", right)
    factory.add_pass(run, "test", wrong)
    result, units = evaluate()
    table = result.metrics_summary(full=True).set_index("dataset")
    assert list(table["error_proba_source"]) == ["constant", "constant"]
    assert units[units["dataset"] == "val"]["error_proba"].unique() == pytest.approx([1 / 62])
    assert table["error_proba_auroc"].isna().all()
    assert not (units[units["dataset"] == "val"]["category"].str.contains("hotspot")).any()
    assert (units[units["dataset"] == "test"]["category"].str.contains("hotspot")).all()


def test_one_class_and_labels_of_one_kind(factory, records):
    data = records.make_data(120, classes=1, seed=3)
    factory.add_pass(factory.run(), "val", data)
    same = records.make_data(120, seed=4)
    same.labels[:] = 2
    factory.add_pass(factory.run("net", "v2"), "val", same)
    _, units = evaluate()
    assert set(units["category"]) <= set(CATEGORIES[:2])
    result = Evaluator("net", "v2").request_evaluation()
    assert result.issue_category_summary().loc[0, RATIOS].sum() == pytest.approx(1)


def test_without_features_the_logits_are_the_space_and_it_says_so(factory, records):
    data = records.make_data(300, seed=5, strength=1.0)
    data.features = None
    factory.add_pass(factory.run(), "val", data)
    result, units = evaluate()
    assert units["error_proba"].between(0, 1).all()
    assert any("the logits stand for the feature space" in one["message"] for one in result.problems)
    assert result.info["facts"][0]["layers"] == ["logits"]


def test_without_any_label_nothing_is_guessed(factory, records):
    data = records.make_data(50, seed=6)
    data.labels[:] = -200
    factory.add_pass(factory.run(), "predict", data)
    result, units = evaluate()
    assert units[["category", "projected_category", "error_proba"]].isna().all(axis=None)
    assert any("nothing to project onto" in one["message"] for one in result.problems)


def test_some_labels_missing(factory, records):
    data = records.make_data(400, seed=7, strength=1.0)
    data.labels[::4] = -200
    factory.add_pass(factory.run(), "val", data)
    result, units = evaluate()
    known = units["gt"].notna()
    assert (units["category"].notna() == known).all()
    assert (units["projected_category"].notna() == ~known).all()
    assert units["error_proba"].notna().all()
    row = result.issue_category_summary(full=True).iloc[0]
    assert row[RATIOS].sum() == pytest.approx(1)
    assert row[[f"projected_{name}" for name in RATIOS]].sum() == pytest.approx(1)


def test_nonfinite_logits_and_features(factory, records):
    data = records.make_data(200, seed=8, strength=1.0)
    data.logits[:7] = np.nan
    data.features[3:9] = np.inf
    factory.add_pass(factory.run(), "val", data)
    _, units = evaluate()
    assert units["error_proba"].between(0, 1).all()
    assert units["is_error"][:7].all()
    assert units["error_code"][:7].str.contains("nonfinite").all()


def test_partial_and_resumed_passes_are_analysed(factory, records):
    factory.add_pass(factory.run(), "val", records.make_data(300, strength=1.0), world_size=2, sealing=(0,))
    result, units = evaluate()
    assert units["category"].notna().all()
    assert {"partial", "analysis"} <= {one["kind"] for one in result.problems}


def test_leakage_and_conflicting_duplicates(factory, records):
    train, val = records.make_data(200, seed=9), records.make_data(200, seed=10, start=500)
    val.hashes[:5] = train.hashes[:5]
    val.hashes[20:22] = [val.hashes[20]] * 2
    val.labels[20:22] = [0, 1]
    run = factory.run()
    factory.add_pass(run, "train", train)
    factory.add_pass(run, "val", val)
    result, _ = evaluate(dataset_types=["val"])  # the train split is found though it is not evaluated
    assert set(result.get_issues(code="C04")["input_id"]) == set(val.ids[:5])
    assert set(result.get_issues(code="C03")["input_id"]) == set(val.ids[20:22])
    leaked = result.get_issues(code="C04")
    assert (leaked["primary_code"] == "C04").all()
    assert (leaked["severity"] == 5).all()


def test_every_epoch_and_a_single_one(factory, records):
    factory.standard()
    every = Evaluator("net", "v1").request_evaluation(
        n_epoch=None, options={"dataset_types": ["val", "test"]}
    )
    table = every.issue_category_summary()
    assert list(zip(table["dataset"], table["n_epoch"].fillna(-9), strict=True)) == [
        ("val", 0),
        ("val", 1),
        ("test", -9),
    ]
    assert table[RATIOS].sum(axis=1).to_numpy() == pytest.approx([1, 1, 1])
    shares = every.heatmap("n_epoch", "category", "share", filter="dataset = 'val'")
    assert len(shares) == 2 * 6
    assert shares.groupby("n_epoch")["value"].sum().to_numpy() == pytest.approx([1, 1])
    codes = every.get_view("diagnosis", filter="dataset = 'val'")
    assert "C40" not in set(codes[codes["n_epoch"] == 0]["diagnosis"])
    only = Evaluator("net", "v1").request_evaluation(n_epoch=0)
    reasons = {one["dataset"]: one["not_computable"] for one in only.info["facts"]}
    assert "fewer than two epochs" in reasons["val"]["C40"]


def test_group_key_risk_tolerance_and_repeats(factory, records):
    data = records.make_data(400, seed=11, strength=1.0)
    factory.add_pass(factory.run(), "val", data)
    result, _ = evaluate(group_key="weather", risk_tolerance=0.3, repeats=1)
    row = result.issue_category_summary(full=True).iloc[0]
    assert row["t2"] == pytest.approx(0.3)
    plain, _ = evaluate(repeats=1)
    wide = [one.metrics_summary(full=True).iloc[0] for one in (result, plain)]
    assert wide[0]["error_rate"] == wide[1]["error_rate"]
    # Two groups are two draws: the interval cannot be that of 400 units.
    assert wide[0]["error_rate_hi"] - wide[0]["error_rate_lo"] != pytest.approx(
        wide[1]["error_rate_hi"] - wide[1]["error_rate_lo"]
    )
    with pytest.raises(ValueError, match=r"group_key='scene'.*no such column.*'weather'"):
        evaluate(group_key="scene")
    with pytest.raises(ValueError, match=r"risk_tolerance=1.5: expected strictly between 0 and 1"):
        evaluate(risk_tolerance=1.5)
    with pytest.raises(ValueError, match=r"repeats=0: expected a whole number from 1 to 20"):
        evaluate(repeats=0)
    told, _ = evaluate(error_proba_thresh=0.7)
    assert any("it changes nothing" in one["message"] for one in told.problems)


def test_projection_needs_the_same_layers(factory, records):
    run = factory.run()
    factory.add_pass(run, "val", records.make_data(300, seed=12, strength=1.0))
    new = records.make_data(50, seed=13)
    new.labels[:] = -200
    new.features = new.features[:, :4]
    factory.add_pass(run, "test", new)
    result, units = evaluate()
    assert units[units["dataset"] == "test"]["projected_category"].isna().all()
    assert any("layer 'pool' is not stored as in 'val'" in one["message"] for one in result.problems)
