"""Issues, views, filters, comparisons and how a result looks."""

import io
from dataclasses import replace

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from rich.console import Console

from ml_debugger.evaluator import Evaluator
from mld_core.evaluation.analysis.units import rewrite_units
from mld_core.evaluation.codes.notation import classification_code, parse_classification_code
from mld_core.evaluation.errors import FilterError, NotFoundError, TaskError
from mld_core.evaluation.results.compare import compare_sides
from mld_core.evaluation.results.expression import compile_filter
from mld_core.evaluation.results.paired import mcnemar_exact


@pytest.fixture(scope="module")
def result(standard_store):
    return Evaluator("net", "v1", store=standard_store.root).request_evaluation()


@pytest.fixture(scope="module")
def units(result):
    """The whole unit table, as pandas reads it from the files."""
    frames = [pd.read_parquet(path) for path in sorted(result.folder.glob("units-*.parquet"))]
    return pd.concat(frames, ignore_index=True)


# -- issues --------------------------------------------------------------------------------------------------------


def test_issues_are_the_errors_worst_first(result, units):
    issues = result.get_issues()
    expected = units["is_error"] | (units["severity"].fillna(0) >= 2)
    assert len(issues) == int(expected.sum())
    assert issues["severity"].fillna(0).is_monotonic_decreasing
    plain = "CLS" + issues["gt"].astype(str) + "->" + issues["prediction"].astype(str)
    assert all(code.startswith(one) for code, one in zip(issues["error_code"], plain, strict=True))
    names = ["cat", "dog", "cow", "hen", "pig"]
    assert (issues["gt_name"] == issues["gt"].map(dict(enumerate(names)))).all()
    assert issues["category"].notna().all()
    assert issues["error_proba"].between(0, 1).all()


def test_issue_filters(result, units):
    val = result.get_issues("val")
    assert set(val["dataset"]) == {"val"}
    own = units[units["dataset"] == "val"]
    assert len(val) == int((own["is_error"] | (own["severity"].fillna(0) >= 2)).sum())
    code = val["error_code"].iloc[0]
    assert set(result.get_issues(code=code)["error_code"]) == {code}
    # A code that is no error can be asked for too.
    assert len(result.get_issues(code="CLS0->0")) == int((units["error_code"] == "CLS0->0").sum()) > 0
    assert len(result.get_issues(min_severity=1)) == int(units["severity"].notna().sum())
    found = result.get_issues(category="recessive_hotspot")
    assert set(found["category"]) == {"recessive_hotspot"}
    assert len(found) == int((units["category"] == "recessive_hotspot").sum()) > 0
    assert len(result.get_issues(limit=5)) == 5
    whole, pages, cursor = result.get_issues(order_by="severity"), [], 0
    while cursor is not None:
        page = result.get_issues(order_by="severity", limit=7, cursor=cursor)
        pages += page.unit_id.tolist()
        cursor = page.attrs["cursor"]
    assert pages == whole.unit_id.tolist()
    ordered = result.get_issues(order_by=["dataset", "-confidence"])
    for _, group in ordered.groupby("dataset"):
        assert group["confidence"].is_monotonic_decreasing
    with pytest.raises(NotFoundError, match="datasets: 'train', 'val', 'test'"):
        result.get_issues("vall")
    with pytest.raises(FilterError, match="did you mean 'hotspot'"):
        result.get_issues(category="hotspots")
    with pytest.raises(FilterError, match="unknown column 'confidenc'; did you mean 'confidence'"):
        result.get_issues(order_by="-confidenc")


# -- views ---------------------------------------------------------------------------------------------------------


def test_view_without_keys_has_one_row_for_each_dataset(result, units):
    view = result.get_view(metrics=["accuracy", "net_entropy", "net_entropy_mean", "count_labeled"])
    summary = result.metrics_summary().set_index("dataset")
    for _, row in view.iterrows():
        expected = summary.loc[row["dataset"]]
        assert row["counts"] == expected["counts"]
        assert row["accuracy"] == pytest.approx(expected["accuracy"])
        assert row["net_entropy"] == pytest.approx(expected["net_entropy"])
        assert row["share"] == 1.0
        assert row["lift"] == pytest.approx(1.0)


def test_view_groups_as_pandas_does(result, units):
    view = result.get_view(
        ["class", "weather"], filter="dataset = 'val' and confidence >= 0.4", metrics=["confidence"]
    )
    mine = units[(units["dataset"] == "val") & (units["confidence"] >= np.float32(0.4))]
    expected = mine.groupby(["gt", "weather"]).agg(
        counts=("unit_id", "size"), errors=("is_error", "sum"), confidence=("confidence", "mean")
    )
    got = view.set_index(["class", "weather"])
    assert set(got.index) == set(expected.index)
    got = got.loc[expected.index]
    assert (got["counts"] == expected["counts"]).all()
    assert (got["errors"] == expected["errors"]).all()
    np.testing.assert_allclose(got["confidence"], expected["confidence"], rtol=1e-6)
    np.testing.assert_allclose(got["share"], expected["counts"] / len(mine))
    np.testing.assert_allclose(got["error_rate"], expected["errors"] / expected["counts"])
    assert (got["error_rate_lo"] <= got["error_rate"]).all()
    assert (got["error_rate_hi"] >= got["error_rate"]).all()
    overall = mine["is_error"].mean()
    np.testing.assert_allclose(got["lift"], got["error_rate"] / overall)
    assert all(len(ids) <= 16 for ids in got["sample_ids"])


def test_direct_standardisation(result, units):
    view = result.get_view("class", adjustby="weather", filter="dataset = 'test'", metrics=["accuracy"])
    mine = units[units["dataset"] == "test"]
    weights = mine["weather"].value_counts(normalize=True)
    cells = mine.groupby(["gt", "weather"])["is_error"].mean()
    for _, row in view.iterrows():
        expected = sum(weights[when] * cells[row["class"], when] for when in weights.index)
        assert row["error_rate_adj"] == pytest.approx(expected)
        assert row["accuracy_adj"] == pytest.approx(1 - expected)


def test_standardisation_fills_empty_cells_from_the_margin(factory, records):
    data = records.make_data(60, seed=3)
    # Class 0 is only seen by day.
    data.fields["weather"] = [
        "day" if label == 0 else when for label, when in zip(data.labels, data.fields["weather"], strict=True)
    ]
    run = factory.run()
    factory.add_pass(run, "val", data)
    result = Evaluator("net", "v1").request_evaluation()
    units = pd.read_parquet(result.folder / "units-0.parquet")
    weights = units["weather"].value_counts(normalize=True)
    night = units[units["weather"] == "night"]["is_error"].mean()
    day = units[(units["weather"] == "day") & (units["gt"] == 0)]["is_error"].mean()
    view = result.get_view("class", adjustby="weather").set_index("class")
    assert view.loc[0, "error_rate_adj"] == pytest.approx(weights["day"] * day + weights["night"] * night)


def test_float_columns_are_binned_by_equal_mass(result, units):
    view = result.get_view("confidence:4", filter="dataset = 'train'")
    assert len(view) == 4
    assert view["counts"].sum() == 300
    assert view["counts"].between(70, 80).all()
    assert view["error_rate"].iloc[0] > view["error_rate"].iloc[-1]
    assert view["confidence"].str.startswith("[").all()
    assert len(result.get_view("loss", filter="dataset = 'train'")) == 10


def test_view_of_several_epochs_keeps_them_apart(standard_store):
    every = Evaluator("net", "v1", store=standard_store.root).request_evaluation(n_epoch=None)
    view = every.get_view("weather")
    assert len(view) == 10
    assert view.columns[:3].tolist() == ["dataset", "n_epoch", "weather"]
    by_epoch = every.get_view("epoch", filter="dataset = 'train'")
    assert by_epoch["epoch"].tolist() == [0, 1]


def test_view_errors_say_what_is_possible(result):
    with pytest.raises(FilterError, match="unknown column 'wether'; did you mean 'weather'"):
        result.get_view("wether")
    with pytest.raises(FilterError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        result.get_view("class", metrics=["acuracy"])
    with pytest.raises(FilterError, match="see metrics_summary, class_summary"):
        result.get_view("class", metrics=["auroc"])
    with pytest.raises(FilterError, match="one to three columns"):
        result.get_view(["class", "weather", "prediction", "category"])
    with pytest.raises(FilterError, match="confidence:5"):
        result.get_view("weather:5")
    with pytest.raises(FilterError, match="cannot be grouped"):
        result.get_view("flags")
    with pytest.raises(FilterError, match="one value for each unit"):
        result.get_view("class", adjustby="diagnosis")
    assert result.get_view("class", filter="confidence > 2").empty


# -- the filter language -------------------------------------------------------------------------------------------

SCHEMA = pa.schema(
    [
        pa.field("gt", pa.int32()),
        pa.field("confidence", pa.float32()),
        pa.field("weather", pa.string()),
        pa.field("is_error", pa.bool_()),
        pa.field("diagnosis", pa.list_(pa.string())),
        pa.field("two words", pa.string()),
    ]
)


@pytest.mark.parametrize(
    ("text", "sql", "parameters"),
    [
        ("gt = 3", '"gt" = ?', (3,)),
        ("class == 3", '"gt" = ?', (3,)),
        ("GT2 = 1 or gt <> -2", None, None),
        ("gt != 1 AND confidence<=.5", '("gt" <> ? AND "confidence" <= ?)', (1, 0.5)),
        ("a", None, None),
        ("gt in (1, 2)", '"gt" IN (?, ?)', (1, 2)),
        ("gt not in (1)", 'NOT ("gt" IN (?))', (1,)),
        (
            "confidence between 0.1 and 1e0 or is_error = true",
            '("confidence" BETWEEN ? AND ? OR "is_error" = ?)',
            (0.1, 1.0, True),
        ),
        (
            "not (gt = 1 or gt = 2) and weather = 'it\\'s'",
            '(NOT ((("gt" = ? OR "gt" = ?))) AND "weather" = ?)',
            (1, 2, "it's"),
        ),
        ("`two words` is not null", '"two words" IS NOT NULL', ()),
        ('weather = "x; DROP TABLE units"', '"weather" = ?', ("x; DROP TABLE units",)),
    ],
)
def test_filter_compiles(text, sql, parameters):
    if sql is None:
        with pytest.raises(FilterError):
            compile_filter(text, SCHEMA, {"class": "gt"})
        return
    compiled = compile_filter(text, SCHEMA, {"class": "gt"})
    assert compiled.sql == sql
    assert compiled.parameters == parameters


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("confidenc > 1", "did you mean 'confidence'"),
        ("gt = 'three'", "column 'gt' holds a number"),
        ("weather = 3", "write e.g. 'text'"),
        ("is_error = 1", "holds a boolean"),
        ("diagnosis = 'C01'", "cannot be compared"),
        ("gt = null", "is null"),
        ("gt = 1 gt = 2", "expected 'and', 'or' or the end, found 'gt' at character 8"),
        ("gt", "expected a comparison"),
        ("(gt = 1", "expected '\\)', found the end"),
        ("gt = 1; drop table units", "cannot read"),
        ("gt = confidence", "expected a number"),
        ("gt in ()", "expected a number"),
        ("gt not 3", "expected 'in' or 'between'"),
        ("inside(gt, confidence, 0, 0, 1, 1)", "3 to 64 corners, found 4 numbers"),
        ("inside(gt, confidence, 0, 0, 1, 1, 2)", "found 5 numbers"),
        ("inside(gt, weather, 0, 0, 1, 1, 2, 0)", "'weather' holds no numbers"),
        ("inside(gt, 0, 0, 1, 1, 2, 0)", "expected a column name"),
    ],
)
def test_filter_errors_say_where_and_what(text, message):
    with pytest.raises(FilterError, match=message):
        compile_filter(text, SCHEMA)


def test_a_polygon_takes_the_points_within_it():
    """Of any shape: of a horseshoe not what lies between its arms, and of no place neither inside nor outside."""
    x, y = (one.ravel() for one in np.meshgrid(np.arange(0.25, 3, 0.5), np.arange(0.25, 3, 0.5)))
    points = pa.table({"x": [*x.astype("f4"), None], "y": [*y.astype("f4"), 1.0]})
    shape = "inside(x, y, 0, 0, 3, 0, 3, 3, 2, 3, 2, 1, 1, 1, 1, 3, 0, 3)"
    between = (x > 1) & (x < 2) & (y > 1)
    for text, wanted in ((shape, ~between), (f"not {shape}", between)):
        compiled = compile_filter(text, points.schema)
        found = duckdb.execute(f"SELECT x, y FROM points WHERE {compiled.sql}", list(compiled.parameters))
        assert found.fetchall() == list(zip(x[wanted], y[wanted], strict=True))


# -- comparing -----------------------------------------------------------------------------------------------------


def test_compare(factory, records):
    before, after = records.make_data(100, seed=1), records.make_data(100, seed=1)
    wrong = before.logits.argmax(1) != before.labels
    fix, spoil = np.flatnonzero(wrong)[:4], np.flatnonzero(~wrong)[:2]
    after.logits[fix, after.labels[fix]] += 50
    after.logits[spoil, after.labels[spoil]] -= 50
    after.ids[90:] = [f"new{n}" for n in range(10)]
    after.hashes[90:] = [f"{n:032x}" for n in range(5000, 5010)]
    assert max(fix.max(), spoil.max()) < 90
    one, two = factory.run("net", "v1"), factory.run("net", "v2")
    factory.add_pass(one, "val", before, n_epoch=4)
    factory.add_pass(two, "val", after, n_epoch=7)
    factory.add_pass(two, "test", records.make_data(30))
    a = Evaluator("net", "v1").request_evaluation()
    b = Evaluator("net", "v2").request_evaluation()
    compared = a.compare(b)
    units = compared.units.set_index("dataset")
    assert units.loc["val", ["n_paired", "n_fixed", "n_regressed", "n_only_a", "n_only_b"]].tolist() == [
        90,
        4,
        2,
        10,
        10,
    ]
    assert units.loc["val", "joined_on"] == "input_id"
    assert units.loc["val", "mcnemar_p"] == pytest.approx(mcnemar_exact(4, 2))
    assert units.loc["test", "n_only_b"] == 30
    assert set(compared.fixed["input_id"]) == {before.ids[n] for n in fix}
    assert set(compared.regressed["input_id"]) == {before.ids[n] for n in spoil}
    moved = compared.metrics.set_index(["dataset", "metric"])["delta"]
    assert moved["val", "accuracy"] == pytest.approx(
        (after.logits.argmax(1) == after.labels).mean() - (before.logits.argmax(1) == before.labels).mean()
    )
    assert ("val", "n_epoch") not in moved.index
    assert set(compared.transitions["dataset"]) == {"val"}
    assert compared.transitions["counts"].sum() == 90
    row = compared.metrics.set_index(["dataset", "metric"]).loc[("val", "error_rate")]
    assert row["delta_lo"] <= row["delta_paired"] <= row["delta_hi"]
    assert row["delta_paired"] == pytest.approx((2 - 4) / 90)
    assert set(compared.regressed["code"]) == {"C90"}
    assert set(compared.fixed["code"]) == {"C91"}
    classes = compared.classes.set_index("class")
    assert (classes["delta"] * classes["n"]).sum() == pytest.approx(2 - 4)
    assert "n_fixed" in repr(compared)
    assert "<table" in compared._repr_html_()


def test_several_results_are_compared_with_the_first(factory, records):
    """Counts and p-values against those of each pair, and what all get wrong against the labels themselves."""
    rng = np.random.default_rng(3)
    wrong, results = [], []
    for place, moved in enumerate((0, 60, 110)):
        data = records.make_data(120, seed=1)
        rows = rng.permutation(120)[:moved]
        data.logits[rows, data.labels[rows]] += 50
        data.logits[rows[: place * 2], data.labels[rows[: place * 2]]] -= 100
        wrong.append(data.logits.argmax(1) != data.labels)
        factory.add_pass(factory.run("net", f"v{place}"), "val", data)
        results.append(Evaluator("net", f"v{place}").request_evaluation())
    first, *others = results
    found = first.compare(others)
    assert list(found.names) == [one.result_name for one in results]
    pairs = [first.compare(one).units.iloc[0] for one in others]
    assert found.units["n_fixed"].tolist() == [one["n_fixed"] for one in pairs]
    p = sorted(one["mcnemar_p"] for one in pairs)
    assert sorted(found.units["holm_p"]) == pytest.approx([min(1, 2 * p[0]), max(min(1, 2 * p[0]), p[1])])
    assert found.units["better"].tolist() == [
        0 if line.holm_p >= 0.05 else int(np.sign(line.n_fixed - line.n_regressed))
        for line in found.units.itertuples()
    ]
    for one, two in zip(found.against, others, strict=True):
        ids = [pd.read_parquet(next(own.folder.glob("units-*")))["input_id"] for own in (first, two)]
        rows = one.rows["val"]
        assert (ids[0].to_numpy()[rows[:, 0]] == ids[1].to_numpy()[rows[:, 1]]).all()
        assert sorted(rows[:, 0]) == list(range(120))
    counts = np.sum(wrong, axis=0)
    together = found.together.iloc[0]
    assert together[["n_common", "n_all", "n_some", "n_none"]].tolist() == [
        120,
        (counts == 3).sum(),
        ((counts > 0) & (counts < 3)).sum(),
        (counts == 0).sum(),
    ]
    accuracy = found.metrics[found.metrics["metric"] == "accuracy"]
    assert accuracy["place"].tolist() == [0, 1, 2]
    assert accuracy["value"].tolist() == pytest.approx([1 - one.mean() for one in wrong])
    assert accuracy["delta"].isna().tolist() == [True, False, False]
    # A result that does not hold the split is no test of it.
    factory.add_pass(factory.run("net", "v3"), "test", records.make_data(30))
    apart = first.compare([*others, Evaluator("net", "v3").request_evaluation()]).units
    of_val = apart[apart["dataset"] == "val"]
    assert of_val["holm_p"].tolist() == pytest.approx([*found.units["holm_p"], np.nan], nan_ok=True)
    assert "holm_p" in repr(found)
    assert "<table" in found._repr_html_()
    with pytest.raises(ValueError, match="expected 1 to 10"):
        first.compare([])
    with pytest.raises(NotFoundError, match="did you mean 'val'"):
        first.compare(others, "vall")


def test_results_of_two_tasks_are_refused_in_a_sentence(result, standard_store, monkeypatch):
    other = Evaluator("net", "v1", store=standard_store.root).get_result(result.result_name)
    monkeypatch.setitem(other.info, "task", "detection")
    said = r"\(classification\) and .* \(detection\): only results of one task are compared"
    for others in (other, [result, other]):
        with pytest.raises(TaskError, match=said):
            result.compare(others)


def paired(a, b, *kinds):
    """(by what, how many) two results pair, as hashes of these kinds."""
    sides = [replace(one.side(), hash_kinds={"val": kind}) for one, kind in zip((a, b), kinds, strict=True)]
    row = compare_sides(*sides, a._store.spill).units.iloc[0]
    return row["joined_on"], row["n_paired"]


def test_units_pair_by_ids_first_and_by_hash_within_one_kind_only(factory, records):
    by_name, by_place, by_hash = (records.make_data(30, seed=1) for _ in range(3))
    by_name.ids = by_place.ids = [str(n) for n in range(30)]
    by_name.hashes = by_name.hashes[::-1]  # an augmented walk: what the hash says is of no account
    by_place.source, by_hash.source = "loader_index", "content_hash"
    by_hash.ids = list(by_hash.hashes)
    results = {}
    for name, data in {"name": by_name, "place": by_place, "hash": by_hash}.items():
        factory.add_pass(factory.run("net", name), "val", data)
        results[name] = Evaluator("net", name).request_evaluation()
    assert results["name"].info["passes"][0]["hash_kind"] == "multilinear"
    assert paired(results["name"], results["name"], "a", "b") == ("input_id", 30)
    assert paired(results["place"], results["place"], "a", "b") == ("input_id", 30)
    assert paired(results["place"], results["hash"], "a", "a") == ("input_hash", 30)
    assert paired(results["name"], results["place"], "a", "a") == ("input_hash", 30)  # "17" is not the 17th
    for other in ("hash", "place"):
        assert paired(results["hash"], results[other], "a", "b")[1] == 0


def test_compare_falls_back_on_ids_where_hashes_do_not_meet(factory, records):
    before, after = records.make_data(50, seed=1), records.make_data(50, seed=1)
    after.hashes = [None] * 50
    one, two = factory.run("net", "v1"), factory.run("net", "v2")
    factory.add_pass(one, "train", before)
    factory.add_pass(two, "train", after)
    compared = (
        Evaluator("net", "v1")
        .request_evaluation()
        .compare(Evaluator("net", "v2").request_evaluation(), "train")
    )
    row = compared.units.iloc[0]
    assert (row["joined_on"], row["n_paired"], row["n_fixed"]) == ("input_id", 50, 0)
    assert row["mcnemar_p"] is None or np.isnan(row["mcnemar_p"])


# -- looks ---------------------------------------------------------------------------------------------------------


def test_summary_fits_a_terminal(result):
    text = io.StringIO()
    Console(file=text, width=80).print(result)
    lines = text.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    shown = "\n".join(lines)
    for word in ("accuracy", "net_entropy_loss", "error_proba_auprc", "train", "val", "test", "CLS"):
        assert word in shown
    for word in ("collect first", "What to do", "C21 Overconfident", "could not be"):
        assert word in shown


def test_get_summary_prints_and_returns_nothing(result, capsys):
    assert result.get_summary() is None
    assert result.result_name in capsys.readouterr().out


def test_summary_in_a_notebook_is_escaped_html(factory, records):
    run = factory.run("<b>net</b>", "v1")
    factory.add_pass(run, "val", records.make_data(20))
    html = Evaluator("<b>net</b>", "v1").request_evaluation()._repr_html_()
    assert "<table" in html
    assert "&lt;b&gt;net" in html
    assert "<b>net" not in html


def test_classes_and_confusion(result, units):
    confusion = result.confusion("val")
    mine = units[units["dataset"] == "val"]
    expected = mine.groupby(["gt", "prediction"]).size()
    got = confusion.set_index(["gt", "prediction"])["counts"]
    assert got.to_dict() == expected.to_dict()
    classes = result.class_summary("val").set_index("class")
    assert classes["counts"].tolist() == mine["gt"].value_counts().sort_index().tolist()
    assert classes.loc[1, "accuracy"] == pytest.approx(1 - mine[mine["gt"] == 1]["is_error"].mean())
    assert classes.loc[1, "class_name"] == "dog"
    summary = result.metrics_summary().set_index("dataset")
    assert classes["auroc"].mean() == pytest.approx(summary.loc["val", "auroc"])


def test_columns_lists_what_a_filter_may_use(result):
    assert result.columns()["weather"] == "string"
    assert result.columns()["confidence"] == "float"


@pytest.mark.parametrize("code", ["CLS0->0", "CLS12->7|1|3", "CLS9->7**", "CLS2->nonfinite"])
def test_codes_read_back(code):
    truth, said = parse_classification_code(code)
    assert code.startswith(classification_code(truth, said))


@pytest.mark.parametrize("code", ["CLS->1", "CLS1", "DET:M:CLS1->2", "CLSx->y", ""])
def test_what_is_no_code_is_refused(code):
    with pytest.raises(ValueError, match="expected CLS"):
        parse_classification_code(code)


def test_rewriting_units_checks_the_columns(result, tmp_path):
    source = result.folder / "units-0.parquet"
    with pytest.raises(ValueError, match="'speed': expected one of"):
        rewrite_units(source, tmp_path / "x.parquet", {"speed": np.zeros(300)})
    with pytest.raises(ValueError, match="one for each of the 300 units"):
        rewrite_units(source, tmp_path / "x.parquet", {"error_proba": np.zeros(3)})
