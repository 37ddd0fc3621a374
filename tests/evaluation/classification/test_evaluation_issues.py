"""Error probabilities, issue categories, codes and diagnoses of real stores with known faults."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from ml_debugger.evaluator import Evaluator
from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.codes.notation import parse_classification_code
from mld_core.records.format.schema import parse_fields

RATIOS = [f"{name}_ratio" for name in CATEGORIES]


@pytest.fixture(scope="module")
def result(planted_run):
    made = planted_run[0]
    options = {"threads": 2, "null_run": True, "repeats": 2}
    return Evaluator("plan", "v1", store=made.store.root).request_evaluation(options=options)


@pytest.fixture(scope="module")
def units(result):
    frames = [pd.read_parquet(result.folder / one["units"]) for one in result.info["passes"]]
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def val(units):
    return units[units["dataset"] == "val"].reset_index(drop=True)


# -- categories ----------------------------------------------------------------------------------------------


def test_the_six_ratios_are_a_partition(result, units):
    table = result.issue_category_summary(full=True).set_index("dataset")
    for dataset in ("train", "val"):
        row = table.loc[dataset]
        own = units[units["dataset"] == dataset]
        counts = [round(row[name] * row["counts"]) for name in RATIOS]
        assert sum(counts) == row["counts"] == len(own)
        assert counts == [int((own["category"] == name).sum()) for name in CATEGORIES]
        assert row[RATIOS].sum() == pytest.approx(1, abs=1e-12)
        five = [f"{name}_ratio_five_way" for name in CATEGORIES[:5]]
        assert row[five].sum() == pytest.approx(1, abs=1e-12)
        assert row["aleatoric_overlay_ratio"] == pytest.approx(row["aleatoric_hotspot_ratio"])
        covered = own["category"].isin(CATEGORIES[:2])
        assert row["expected_risk_coverage"] == pytest.approx(own["error_proba"][covered].mean(), rel=1e-4)
    assert list(table["ref_split"]) == ["val"] * 3
    assert table.loc["val", ["t1", "t2"]].tolist() == table.loc["train", ["t1", "t2"]].tolist()
    assert table.loc["val", "null_hotspot_ratio"] <= 0.005


def test_coverage_holds_no_observed_error(units):
    labelled = units[units["category"].notna()]
    covered = labelled["category"].isin(CATEGORIES[:2])
    assert not labelled["is_error"][covered].any()
    assert (labelled["category"] != "stable_coverage")[labelled["is_error"]].all()


def test_the_broken_corner_is_a_hotspot_and_a_region(result, val, planted_run):
    inside = val.iloc[planted_run[2].broken]
    wrong = inside[inside["is_error"]]
    assert len(wrong) > 50
    assert wrong["category"].isin(["hotspot", "critical_hotspot"]).mean() >= 0.9
    regions = result.regions("val")
    top = regions.iloc[0]
    assert top["bh_sig"]
    assert top["label"].endswith("@ weather=fog")
    assert top["errors"] / top["n"] == pytest.approx(top["rate"])
    assert set(val["input_id"][val["region_id"] == top["region_id"]]) >= {top["medoid_input_id"]}
    assert (val["region_id"].iloc[planted_run[2].broken] == top["region_id"]).mean() > 0.8
    slices = result.slices("val")
    assert slices.iloc[0]["slice"] == "weather = fog"
    assert slices.iloc[0]["bh_sig"]
    assert (val["diagnosis"].iloc[planted_run[2].broken].map(lambda codes: "C32" in codes)).all()


def test_planted_wrong_labels_are_the_first_suspects(result, planted_run):
    planted = planted_run[2].wrong_label
    ids = {planted_run[2].data.ids[row] for row in planted}
    suspects = result.get_issues("val", order_by="label_quality", limit=len(ids))
    assert len(ids & set(suspects["input_id"])) / len(ids) >= 0.8
    flagged = result.get_issues("val", code="C01")
    assert len(flagged) > 20
    assert (flagged["suggested_label"] != flagged["gt"]).all()
    assert len(ids & set(flagged["input_id"])) / len(flagged) >= 0.6
    assert ((flagged["severity"] >= 4) == (flagged["code_membership"] >= 0.9)).all()
    assert (flagged["severity"] >= 3).all()
    assert (flagged["code_membership"] > 0.5).all()
    assert flagged["recommended_action"].notna().all()


# -- error probability ---------------------------------------------------------------------------------------


def test_error_probability_has_metrics_with_intervals(result, units):
    table = result.metrics_summary(full=True).set_index("dataset")
    row = table.loc["val"]
    assert row["error_proba_source"] == "cse"
    assert row["error_proba_auroc"] > 0.75
    assert row["error_proba_ece"] < 0.05
    for name in (
        "error_proba_auroc",
        "error_proba_auprc",
        "error_proba_brier",
        "aurc",
        "augrc",
        "error_rate",
    ):
        assert row[f"{name}_lo"] < row[name] < row[f"{name}_hi"], name
    for name in ("accuracy", "auroc", "auprc", "net_entropy_mean", "net_entropy_loss_mean"):
        assert row[f"{name}_lo"] < row[name] < row[f"{name}_hi"], name
    own = units[units["dataset"] == "val"]
    brier = ((own["error_proba"] - own["is_error"]) ** 2).mean()
    assert row["error_proba_brier"] == pytest.approx(brier, rel=1e-4)
    assert table.loc["test"][["error_proba_auroc", "error_rate"]].isna().all()


def test_unlabelled_units_get_a_projected_category(result, units, planted_run):
    test = units[units["dataset"] == "test"].reset_index(drop=True)
    assert test["category"].isna().all()
    assert test["error_code"].isna().all()
    assert test["error_proba"].between(0, 1).all()
    assert test["projected_category"].isin(CATEGORIES).all()
    broken = test.iloc[planted_run[3].broken]
    assert broken["projected_category"].isin(["hotspot", "recessive_hotspot"]).mean() > 0.8
    assert broken["error_proba"].mean() > 2 * test["error_proba"].mean()
    assert test["neighbour_ids"].map(lambda ids: all(one.startswith("id00") for one in ids)).all()
    row = result.issue_category_summary(full=True).set_index("dataset").loc["test"]
    assert row[RATIOS].isna().all()
    assert row[[f"projected_{name}" for name in RATIOS]].sum() == pytest.approx(1)
    assert any("estimates from 'val'" in one["message"] for one in result.problems)


# -- codes ---------------------------------------------------------------------------------------------------


def test_error_codes_carry_the_suffixes_of_their_category(val):
    for _, unit in val.iterrows():
        truth, said = parse_classification_code(unit["error_code"])
        assert (truth, said) == (unit["gt"], unit["prediction"])
        if "|" in unit["error_code"]:
            assert unit["category"] == "hotspot"
            others = unit["error_code"].partition("->")[2].split("|")
            assert 2 <= len(others) <= 4
            assert len(set(others)) == len(others)
        if unit["error_code"].endswith("**"):
            assert unit["category"] in {"critical_hotspot", "aleatoric_hotspot"}
            assert unit["suggested_label"] == unit["gt"] != unit["prediction"]
    assert val["error_code"].str.contains("|", regex=False).any()


def test_primary_code_is_the_gravest_and_brings_its_action(val):
    some = val[val["primary_code"].notna()]
    assert (some["diagnosis"].str[0] == some["primary_code"]).all()
    assert some["severity"].between(1, 5).all()
    assert some["recommended_action"].str.len().gt(5).all()
    rest = val[val["primary_code"].isna()]
    assert (rest["diagnosis"].map(len) == 0).all()
    assert rest["severity"].isna().all()
    assert set(val["diagnosis"].explode().dropna()) >= {"C01", "C11", "C40"}


def test_other_epochs_make_their_codes(val, units):
    forgotten = val["diagnosis"].map(lambda codes: "C40" in codes)
    assert forgotten.any()
    assert val["is_error"][forgotten].all()
    train = units[units["dataset"] == "train"]
    assert train["diagnosis"].map(lambda codes: "C41" in codes).any()
    assert not val["diagnosis"].map(lambda codes: "C41" in codes).any()


def test_codes_that_cannot_be_computed_say_why(result):
    facts = {one["dataset"]: one for one in result.info["facts"]}
    assert "only one layer" in facts["val"]["not_computable"]["C12"]
    assert set(facts["val"]["not_computable"]) == {"C12", "C41", "C90", "C91"}
    messages = [one["message"] for one in result.problems]
    assert any("C12 could not be computed" in text for text in messages)
    assert not any("C90" in text for text in messages)
    json.dumps(result.info, allow_nan=False)


def test_neighbours_are_units_of_the_split(val):
    known = set(val["input_id"])
    assert val["neighbour_ids"].map(lambda ids: len(ids) == 8 and set(ids) <= known).all()
    assert not any(own in ids for own, ids in zip(val["input_id"], val["neighbour_ids"], strict=True))


def test_issue_filters_use_the_analysis(result, val):
    critical = result.get_issues("val", category="critical_hotspot")
    assert len(critical) == int((val["category"] == "critical_hotspot").sum())
    assert (result.get_issues("val", min_severity=4)["severity"] >= 4).all()
    issues = result.get_issues("val")
    assert (issues["is_error"] | (issues["severity"] >= 2)).all()
    keys = list(zip(-issues["severity"].fillna(0), -issues["error_proba"].astype(float), strict=True))
    assert keys == sorted(keys)


# -- views and maps ------------------------------------------------------------------------------------------


def test_views_group_by_what_the_analysis_found(result, val):
    view = result.get_view("category", filter="dataset = 'val'")
    assert (
        dict(zip(view["category"], view["counts"], strict=True)) == val["category"].value_counts().to_dict()
    )
    codes = result.get_view("diagnosis", filter="dataset = 'val'").set_index("diagnosis")["counts"]
    assert codes["C01"] == val["diagnosis"].map(lambda one: "C01" in one).sum()
    adjusted = result.get_view("class", adjustby="category", filter="dataset = 'val'")
    shares = val["category"].value_counts(normalize=True)
    first = val[val["gt"] == 0]
    rates = first.groupby("category")["is_error"].mean()
    whole = val.groupby("category")["is_error"].mean()
    expected = sum(share * rates.get(name, whole[name]) for name, share in shares.items())
    assert adjusted["error_rate_adj"].iloc[0] == pytest.approx(expected)


def test_heatmaps_are_rectangular_and_shrunk(result, val):
    grid = result.heatmap("category", "class", filter="dataset = 'val'")
    assert len(grid) == 6 * 6
    assert list(grid["category"].unique()) == list(CATEGORIES)
    assert grid["counts"].sum() == len(val)
    m = result.issue_category_summary(full=True).set_index("dataset").loc["val", "m"]
    cell = grid[grid["counts"] > 0].iloc[0]
    overall = val["is_error"].mean()
    assert cell["value"] == pytest.approx((m * overall + cell["errors"]) / (m + cell["n"]))
    assert cell["value_lo"] <= cell["raw"] <= cell["value_hi"]
    shares = result.heatmap("class", "prediction", "share", filter="dataset = 'val'")
    assert shares.groupby("class")["value"].sum().round(9).eq(1).all()
    table = pd.crosstab(val["gt"], val["prediction"], normalize="index")
    assert np.allclose(shares["value"].to_numpy().reshape(6, 6), table.to_numpy())
    space = result.heatmap("pca_1:16", "pca_2:16", filter="dataset = 'val'")
    assert len(space) == 16 * 16
    assert space["counts"].sum() == len(val)
    assert space["bh_sig"].any()
    proba = result.heatmap("class", "weather", "error_proba", filter="dataset = 'val'")
    fog = val[(val["gt"] == 1) & (val["weather"] == "fog")]["error_proba"].mean()
    assert proba[(proba["class"] == 1) & (proba["weather"] == "fog")]["raw"].iloc[0] == pytest.approx(fog)


# -- the same figures ----------------------------------------------------------------------------------------


def test_same_figures_on_every_run_and_for_any_number_of_threads(result, planted_run):
    evaluator = Evaluator("plan", "v1", store=planted_run[0].store.root)
    again = evaluator.request_evaluation(options={"threads": 3, "dataset_types": ["val"], "repeats": 2})
    place = next(one["units"] for one in result.info["passes"] if one["dataset"] == "val")
    first = pq.read_table(result.folder / place)
    second = pq.read_table(again.folder / again.info["passes"][0]["units"])
    assert first.equals(second)
    columns = [name for name in again.metrics_summary(full=True) if name != "missing_ranks"]
    a = result.metrics_summary(full=True).set_index("dataset").loc["val"]
    b = again.metrics_summary(full=True).set_index("dataset").loc["val"]
    for name in columns[1:]:
        assert a[name] == b[name] or (pd.isna(a[name]) and pd.isna(b[name])), name


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("int", [7, None, None, 7]),
        ("bool", [False, None, None, False]),
        ("float", [0.5, None, float("nan"), 0.5]),
    ],
)
def test_a_unit_without_a_group_is_one_of_its_own(factory, records, monkeypatch, kind, values):
    data = records.make_data(4)
    data.fields = {"scene": values}
    monkeypatch.setattr(records, "text_fields", lambda _: parse_fields([{"name": "scene", "type": kind}]))
    factory.add_pass(factory.run(), "val", data)
    seen = []

    def asked(arrays, **_):
        seen.append(arrays.group_keys.tolist())
        raise InterruptedError

    monkeypatch.setattr("mld_core.evaluation.classification.stage.analyse", asked)
    with pytest.raises(InterruptedError):
        Evaluator("net", "v1", store=factory.store.root).request_evaluation(options={"group_key": "scene"})
    first, one, other, last = seen[0]
    assert first == last
    assert len({first, one, other}) == 3
