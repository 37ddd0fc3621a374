"""What the page says against the tables of the result."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mld_core.report import write_comparison, write_report
from mld_core.report.comparison import comparison_content
from mld_core.report.content import report_content
from mld_core.report.maps import error_grid, pca
from mld_core.report.pages import embedded_json
from mld_core.views.samples import small, within_budget, worst_order
from mld_core.views.tables import class_label
from mld_core.views.units import passes_of, spread


@pytest.fixture(scope="module")
def content(results):
    return report_content(results["v2"])


def place_of(content, dataset, n_epoch):
    return next(
        place
        for place, one in enumerate(content["passes"])
        if (one["dataset"], one["n_epoch"]) == (dataset, n_epoch)
    )


def test_metrics_and_categories_are_those_of_the_tables(results, content):
    table = results["v2"].metrics_summary(full=True)
    for row, shown in zip(table.to_dict("records"), content["metrics"], strict=True):
        assert (row["dataset"], row["n_epoch"], row["counts"]) == (
            shown["dataset"],
            shown["n_epoch"],
            shown["counts"],
        )
        for name in ("accuracy", "auroc", "error_proba_auroc", "accuracy_lo", "accuracy_hi"):
            assert shown[name] == pytest.approx(row[name], rel=1e-5)
    ratios = results["v2"].issue_category_summary()
    for row, shown in zip(ratios.to_dict("records"), content["categories"], strict=True):
        for name, share in shown["shares"].items():
            assert share == pytest.approx(row[f"{name}_ratio"], abs=1e-6)
        assert sum(shown["shares"].values()) == pytest.approx(1, abs=1e-5)


def test_error_codes_are_counted_right(results, content):
    place = place_of(content, "val", 1)
    view = results["v2"].get_view("error_code", filter="dataset = 'val' and n_epoch = 1 and is_error = true")
    expected = dict(zip(view["error_code"], view["counts"], strict=True))
    shown = content["details"][str(place)]
    assert {row["code"]: row["n"] for row in shown["codes"]} == expected
    assert shown["codes_total"] == len(expected)
    assert sum(row["share"] for row in shown["codes"]) == pytest.approx(1, abs=1e-4)
    counts = [row["n"] for row in shown["codes"]]
    assert counts == sorted(counts, reverse=True)
    assert all(row["action"] for row in shown["codes"])


def test_diagnoses_and_first_steps(results, content):
    place = place_of(content, "val", 1)
    view = results["v2"].get_view("diagnosis", filter="dataset = 'val' and n_epoch = 1")
    expected = {code: n for code, n in zip(view["diagnosis"], view["counts"], strict=True) if code}
    shown = content["details"][str(place)]
    assert {row["code"]: row["n"] for row in shown["diagnoses"]} == expected
    steps = shown["steps"]
    assert 1 <= len(steps) <= 5
    assert [step["severity"] for step in steps] == sorted((step["severity"] for step in steps), reverse=True)


def test_confusion_is_that_of_the_result(results, content):
    place = place_of(content, "val", 1)
    table = results["v2"].confusion("val")
    table = table[table["n_epoch"] == 1]
    expected = np.zeros((6, 6), int)
    expected[table["gt"], table["prediction"].astype(int)] = table["counts"]
    shown = content["details"][str(place)]["confusion"]
    assert shown["counts"] == expected.tolist()
    share = np.array(shown["share"])
    assert np.allclose(share.sum(axis=1), 1, atol=1e-3)
    assert shown["rows"][0] == "<b>cat</b>"


def test_category_by_class_is_the_heatmap_of_the_result(results, content):
    place = place_of(content, "val", 1)
    grid = results["v2"].heatmap("class", "category", "share", filter="dataset = 'val' and n_epoch = 1")
    expected = {(row["category"], row["class"]): row for row in grid.to_dict("records")}
    shown = content["details"][str(place)]["category_class"]
    for row, category in enumerate(shown["rows"]):
        for column in range(6):
            cell = expected[category, column]
            assert shown["counts"][row][column] == cell["counts"]
            assert shown["share"][row][column] == pytest.approx(cell["value"], abs=1e-4)


def test_error_grid_is_the_heatmap_of_the_result(results, content):
    grid = content["details"][str(place_of(content, "val", 1))]["map"]["grid"]
    bins = grid["bins"]
    table = results["v2"].heatmap(f"pca_1:{bins}", f"pca_2:{bins}", filter="dataset = 'val' and n_epoch = 1")
    columns, rows = sorted(table["pca_1"].unique()), sorted(table["pca_2"].unique())
    expected = {
        (columns.index(row["pca_1"]), rows.index(row["pca_2"])): row
        for row in table[table["n"] > 0].to_dict("records")
    }
    assert set(zip(grid["i"], grid["j"], strict=True)) == set(expected)
    for i, j, n, errors, rate, sig in zip(
        *(grid[name] for name in ("i", "j", "n", "errors", "rate", "sig")), strict=True
    ):
        cell = expected[i, j]
        assert (n, errors, sig) == (cell["n"], cell["errors"], cell["bh_sig"])
        assert rate == pytest.approx(cell["value"], rel=1e-2)


def test_calibration_against_a_plain_loop(results, content):
    place = place_of(content, "val", 1)
    units = passes_of(results["v2"])[place]
    stated, wrong = units.floats("error_proba"), units.errors == 1
    gap = 0.0
    for low in range(15):
        inside = (np.minimum((stated * 15).astype(int), 14)) == low
        if inside.any():
            gap += abs(stated[inside].mean() - wrong[inside].mean()) * inside.mean()
    shown = content["details"][str(place)]["calibration"]["error_proba"]
    assert shown["ece"] == pytest.approx(gap, rel=1e-3)
    assert sum(shown["n"]) == 900


def test_gallery_order_probabilities_and_neighbours(results, content):
    place = place_of(content, "val", 1)
    shown = content["details"][str(place)]
    groups = {group["key"]: group for group in shown["groups"]}
    issues = results["v2"].get_issues("val")
    issues = issues[(issues["n_epoch"] == 1) & issues["is_error"]]
    worst = [shown["cards"][str(row)]["id"] for row in groups["all"]["rows"]]
    assert worst == issues["input_id"].head(len(worst)).tolist()
    assert groups["all"]["n"] == len(issues)
    table = issues.set_index("input_id")
    for row in groups["all"]["rows"]:
        card = shown["cards"][str(row)]
        unit = table.loc[card["id"]]
        assert card["code"] == unit["error_code"]
        assert card["truth"] == unit["gt_name"]
        assert card["top"][0]["p"] == pytest.approx(unit["confidence"], rel=1e-3)
        assert card["top"][0]["name"] == card["said"] == unit["prediction_name"]
        assert [one["id"] for one in card["near"]] == list(unit["neighbour_ids"][:5])
        assert all(one["truth"] is not None for one in card["near"])


def test_only_the_last_epoch_has_samples_and_it_is_said(content):
    for place, detail in content["details"].items():
        last = content["passes"][int(place)]["n_epoch"] == 1
        assert bool(detail["groups"]) == last
        assert (detail["map"] is not None) == last
    assert any("the last epoch of each split" in text for text in content["left_out"])


def test_thumbnails_of_the_first_epoch_are_found_for_the_last(results, content):
    place = place_of(content, "val", 1)
    ids = {card["id"] for card in content["details"][str(place)]["cards"].values()}
    assert ids <= set(content["images"]["val"])
    missing = {one for one in ids if one not in content["images"]["val"]}
    assert not missing


def test_image_fn_fills_what_was_not_recorded(results, monkeypatch):
    asked = []

    def image_of(dataset, input_id):
        asked.append((dataset, input_id))
        return None if input_id.endswith("7") else Image.new("RGB", (100, 50), (200, 10, 10))

    monkeypatch.setattr("mld_core.views.samples.stored_images", lambda units, ids: {})
    made = report_content(results["latest"], image_of)
    assert {dataset for dataset, _ in asked} == {"train", "val"}
    shown = made["images"]["val"]
    assert shown
    assert not [one for one in shown if one.endswith("7")]


def test_small_images():
    stripes = np.zeros((128, 256, 3), np.uint8)
    stripes[:, ::2] = 200
    made = small(stripes)
    assert made.shape == (32, 64, 3)
    assert (made == 100).all()
    assert small(np.zeros((3, 10, 12))).shape == (10, 12, 3)
    assert small(np.array([[-1.0, 1.0]])).ravel().tolist() == [0, 255]


def test_images_stay_within_the_budget():
    images = {name: bytes(900) for name in "abc"}
    made, dropped = within_budget(images, "cabx", 2_500)
    assert list(made) == ["c", "a"]
    assert dropped == 1


def test_worst_order_without_analysis(results, monkeypatch):
    units = passes_of(results["v2"])[0]
    loss = units.floats("loss")
    monkeypatch.setattr(units, "floats", lambda name: loss if name == "loss" else np.full(units.rows, np.nan))
    assert worst_order(units).tolist() == np.argsort(-loss, kind="stable").tolist()


def test_pca_against_numpy(results):
    units = passes_of(results["latest"])[1]
    selection = units.records
    found = pca(selection, "pool", units.rows)
    features = np.concatenate(
        [
            np.frombuffer(b"".join(batch.column(0).to_pylist()), "<f2").reshape(batch.num_rows, -1)
            for batch in selection.batches("vectors", ["pool"])
        ]
    ).astype(float)
    centred = features - features.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    for axis in (0, 1):
        expected = centred @ axes[axis]
        assert abs(np.corrcoef(expected, found[:, axis])[0, 1]) == pytest.approx(1, abs=1e-6)
        assert np.linalg.norm(found[:, axis]) == pytest.approx(np.linalg.norm(expected), rel=1e-6)


def test_a_result_without_analysis_shows_what_there_is(results, tmp_path, monkeypatch):
    """Results of older versions have no categories, codes are plain, and the map comes from the records."""
    from mld_core.views.units import PassUnits

    gone = {"category", "projected_category", "diagnosis", "severity", "recommended_action", "error_proba"}
    gone |= {"pca_1", "pca_2", "neighbour_ids", "primary_code", "suggested_label"}
    names = PassUnits.names.func
    monkeypatch.setattr(PassUnits, "names", property(lambda self: frozenset(names(self) - gone)))
    monkeypatch.setattr(
        "mld_core.report.content.tables.category_rows",
        lambda result: [{"shares": None, "facts": {}} for _ in result.info["passes"]],
    )
    made = report_content(results["latest"])
    detail = made["details"][str(made["first"])]
    assert detail["diagnoses"] == []
    assert detail["map"]["source"] == "principal axes of 'pool'"
    assert set(detail["map"]["kinds"]) == {"right", "wrong"}
    assert "taken for" in detail["steps"][1]["title"]
    assert detail["groups"][0]["key"] == "all"
    assert json.dumps(made, allow_nan=False)


def test_records_that_changed_since_are_not_mixed_in(results, tmp_path):
    units = passes_of(results["v2"])[0]
    units.result.info["passes"][0]["attempt"], kept = "another", units.result.info["passes"][0]["attempt"]
    try:
        assert units.records is None
    finally:
        units.result.info["passes"][0]["attempt"] = kept


def test_comparison_content(results):
    a, b = results["v1"], results["v2"]
    compared = a.compare(b)
    made = comparison_content(a, b)
    (val,) = [one for one in made["splits"] if one["dataset"] == "val"]
    units = compared.units.set_index("dataset").loc["val"]
    for name in ("n_paired", "n_fixed", "n_regressed", "n_only_a", "n_only_b"):
        assert val["counts"][name] == units[name]
    for kind in ("fixed", "regressed"):
        expected = getattr(compared, kind)
        expected = expected[expected["dataset"] == "val"]
        assert val[kind]["n"] == len(expected)
        assert [card["id"] for card in val[kind]["cards"]] == expected["input_id"].head(24).tolist()
    accuracy = compared.metrics.query("dataset == 'val' and metric == 'accuracy'").iloc[0]
    (shown,) = [row for row in val["metrics"] if row["metric"] == "accuracy"]
    for name in ("a", "b", "delta", "delta_lo", "delta_hi"):
        assert shown[name] == pytest.approx(accuracy[name], rel=1e-5)
    total = compared.transitions.query("dataset == 'val'")["counts"].sum()
    assert np.sum(val["transitions"]) == total == val["counts"]["n_paired"]
    assert {row["code"]: row["a"] for row in val["codes"]} == {
        row["code"]: row["counts_a"]
        for row in compared.codes.query("dataset == 'val'").to_dict("records")
        if row["counts_a"] + row["counts_b"]
    }


# -- the file ------------------------------------------------------------------------------------------------


def test_file_is_complete_and_holds_no_live_text(results, tmp_path):
    path = write_report(results["v2"], tmp_path / "report.html", former=True).path
    assert path == tmp_path / "report.html"
    text = path.read_text("utf-8")
    shell = re.sub(
        r"<script>.*?</script>", "", text, flags=re.DOTALL
    )  # plotly.js names addresses it never asks for
    assert not re.search(r"https?://", shell)
    assert text.count("plotly.js v") == 1
    assert "<script>document.title" not in text
    assert 'onerror="document' not in text
    assert not re.search(
        r"<[a-z]+[^<>]*\son[a-z]+=", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    )
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    ids = {card["id"] for card in data["details"][str(data["first"])]["cards"].values()}
    assert any(one.startswith("<script>document.title='broken'</script>") for one in ids)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_same_result_same_bytes(results, tmp_path):
    first = write_report(results["latest"], tmp_path / "a.html", former=True)
    second = write_report(results["latest"], tmp_path / "b.html", former=True)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.bytes == first.path.stat().st_size


def test_embedded_json_cannot_end_its_element():
    text = embedded_json({"id": "</script><!--\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"id": "</script><!--\u2028"}


def test_a_folder_that_is_not_there_is_said(results, tmp_path):
    with pytest.raises(FileNotFoundError):
        write_comparison(results["v1"], results["v2"], tmp_path / "nowhere" / "x.html")


@pytest.mark.processes
def test_without_the_extra_one_sentence_says_so(results, tmp_path):
    code = (
        "import sys; sys.modules['plotly'] = None\n"
        "from mld_core.cli.main import app\n"
        "app(['report', '--former', '--store', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(results["v1"].store.root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert 'pip install "ml-debugger[report]"' in done.stderr
    assert "Traceback" not in done.stderr
    code = "import sys; sys.modules['plotly'] = None; import mld_core.report, mld_core.cli.main"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- parts ---------------------------------------------------------------------------------------------------


def test_spread_is_even_and_the_same_every_time():
    picked = spread(100_000, 1_000)
    assert np.array_equal(picked, spread(100_000, 1_000))
    assert len(np.unique(picked)) == 1_000
    per_tenth = np.bincount(picked // 10_000, minlength=10)
    assert per_tenth.min() > 60
    assert per_tenth.max() < 140
    assert not np.array_equal(picked, spread(100_000, 1_000, salt=1))


def test_error_grid_of_one_place():
    grid = error_grid(np.zeros((10, 2)), np.array([1, 0] * 5, np.int8), 4.0)
    assert (grid["n"], grid["errors"], grid["rate"]) == ([10], [5], [0.5])
    assert error_grid(np.zeros((3, 2)), np.full(3, -1, np.int8), None) is None


def test_class_labels():
    assert [class_label(number, ["a"]) for number in (0, 1, -1)] == ["a", "1", "no prediction"]
