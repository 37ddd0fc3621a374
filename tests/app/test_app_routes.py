"""What pages ask, of real results of all three tasks: counts agree with the tables, every filter opens its units."""

import json
import struct

import numpy as np
import pytest
from app_parts import HOSTILE, NAMES

from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.results.result import Result
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RunKey

RUNS = {
    "classification": {"model": "net <i>", "version": "v/1"},
    "detection": {"model": "boxes", "version": "v1"},
    "detection3d": {"model": "lidar", "version": "v1"},
}


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]


@pytest.fixture
def result(run, shown_store):
    results = ResultStore(shown_store, RunKey(run["model"], run["version"]))
    return Result(results, results.all()[-1]["result_name"], diagnoses=BY_CODE)


def test_home_lists_every_run_with_its_action_or_its_next_command(ann):
    found = {row["model"]: row for row in ann.get("runs")["runs"]}
    assert set(found) == {"net <i>", "boxes", "lidar", "fresh"}
    assert found["fresh"]["state"] == "recorded"
    assert found["fresh"]["command"] == "mld evaluate fresh v1"
    assert found["fresh"]["metric"] is None
    one = found["net <i>"]
    assert one["command"] is None
    assert one["metric"]["name"] == "accuracy"
    assert len(one["spark"]) == 2
    assert one["metric"]["best"] == max(one["spark"])
    assert sum(one["categories"].values()) == pytest.approx(1)
    assert one["action"]["n"] > 0
    assert found["boxes"]["metric"]["title"] == "mAP"


@pytest.mark.parametrize(
    ("search", "models"),
    [
        ("accuracy > 0.1 and task = 'classification'", {"net <i>"}),
        ("task = 'detection' or state = 'recorded'", {"boxes", "fresh"}),
        ("lid", {"lidar"}),
        ("nothing of that name", set()),
    ],
)
def test_home_is_searched_by_words_and_by_the_grammar_of_views(ann, search, models):
    assert {row["model"] for row in ann.get("runs", search=search)["runs"]} == models


def test_a_search_that_cannot_be_read_says_why(ann):
    answer = ann.ask("runs", search="acuracy > 0.5")
    assert answer.status_code == 400
    assert "accuracy" in answer.json()["detail"]


def test_tags_and_notes_stay_and_are_found(ann):
    names = RUNS["detection"]
    assert ann.post("runs/tags", {**names, "tags": ["night", " night ", "<b>"]}).json() == {
        "tags": ["night", "<b>"]
    }
    assert ann.post("runs/note", {**names, "note": "the foggy one"}).json() == {"note": "the foggy one"}
    assert [row["model"] for row in ann.get("runs", search="tag = 'night'")["runs"]] == ["boxes"]
    assert [row["note"] for row in ann.get("runs", search="foggy")["runs"]] == ["the foggy one"]


def test_a_run_without_an_evaluation_says_the_next_command(ann):
    for path in ("evaluation", "samples", "facets", "confusion", "heatmap", "suspects"):
        answer = ann.ask(path, model="fresh", version="v1")
        assert answer.status_code == 404
        assert answer.json()["command"] == "mld evaluate fresh v1"
    assert ann.get("run", model="fresh", version="v1")["command"] == "mld evaluate fresh v1"


def test_an_evaluation_says_what_the_tables_say(ann, run, result):
    page = ann.get("evaluation", **run)
    metrics = result.metrics_summary(full=True)
    row = metrics[(metrics["dataset"] == "val") & (metrics["n_epoch"] == 1)].iloc[0]
    named = {one["name"]: one for one in page["metrics"]}
    assert named["auprc"]["value"] == pytest.approx(float(row["auprc"]), rel=1e-5)
    assert len(named["auprc"]["series"]) == 2
    issues = result.get_issues("val")
    wrong = issues[(issues["n_epoch"] == 1) & (issues["is_error"] == True)]  # noqa: E712  nullable
    assert page["counts"]["errors"] == len(wrong)
    assert f"{len(wrong):,}" in page["headline"]
    assert page["first"]["rows"]
    assert all(one["why"] for one in page["first"]["rows"])


def test_every_filter_opens_as_many_units_as_it_says(ann, run):
    page = ann.get("evaluation", **run)
    for one in [*page["categories"], *page["findings"], *page["codes"]["rows"][:10]]:
        assert ann.get("samples", **run, filter=one["filter"], limit=1)["total"] == one["n"]
    for one in page["steps"]:
        assert ann.get("samples", **run, filter=one["filter"], limit=1)["total"] == one["n"]
    for one in page["regions"]:
        assert ann.get("samples", **run, filter=one["filter"], limit=1)["total"] == one["n"]


def test_every_facet_opens_as_many_units_as_it_says(ann, run):
    asked = "is_error = true"
    for field in ann.get("facets", **run, filter=asked)["fields"]:
        parts = field["values"] if field["kind"] == "values" else []
        parts += [
            {"filter": test, "n": n}
            for test, n in zip(field.get("filters", []), field.get("n", []), strict=True)
        ]
        for part in parts[:2]:
            found = ann.get("samples", **run, filter=f"({asked}) and ({part['filter']})", limit=1)
            assert found["total"] == part["n"], (field["name"], part)


def test_pairs_and_cells_open_their_units(ann, run):
    found = ann.get("confusion", **run)
    pairs = [*found["pairs"]["top"], *found["pairs"]["most"]]
    for one in pairs[:8]:
        assert (
            ann.get("samples", **run, filter=f"({one['filter']}) and is_error = true", limit=1)["total"]
            == one["n"]
        )
    assert sum(map(sum, found["counts"])) >= sum(one["n"] for one in pairs)
    for asked in ann.get("heatmap", **run)["presets"]:
        grid = ann.get("heatmap", **run, x=asked["x"], y=asked["y"], value=asked["value"])
        cells = grid["cells"]
        for at in np.argsort(cells["n"])[::-1][:4]:
            both = f"({grid['filters']['x'][cells['i'][at]]}) and ({grid['filters']['y'][cells['j'][at]]})"
            total = ann.get("samples", **run, filter=both, limit=1)["total"]
            assert total == pytest.approx(cells["n"][at], abs=1), (asked, both)


def test_a_filter_narrows_every_count_of_the_page(ann, run):
    whole, part = ann.get("evaluation", **run), ann.get("evaluation", **run, filter="gt = 1")
    assert 0 < part["counts"]["selected"] < whole["counts"]["selected"]
    assert part["filter_sentence"].startswith("truth ")
    assert sum(one["n"] for one in part["categories"]) <= part["counts"]["selected"]
    assert all(one["truth"]["class"] == 1 for one in part["first"]["rows"])


def test_pages_hold_every_unit_once_in_the_order_asked_for(ann, run):
    names = {"filter": "is_error = true", "sort": "-confidence"}
    total = ann.get("samples", **run, **names, limit=1)["total"]
    rows = []
    for offset in range(0, total, 50):
        rows += ann.get("samples", **run, **names, offset=offset, limit=50)["rows"]
    assert len({one["row"] for one in rows}) == len(rows) == total
    scores = [-1.0 if one["confidence"] is None else one["confidence"] for one in rows]
    assert scores == sorted(scores, reverse=True)
    assert rows[0]["badge"] == {"column": "confidence", "value": rows[0]["confidence"]}
    assert ann.get("samples", **run, **names, offset=total, limit=50)["rows"] == []
    assert ann.get("position", **run, **names, row=rows[3]["row"])["index"] == 3


def test_a_sample_has_its_evidence(ann):
    run = RUNS["classification"]
    row = ann.get("evaluation", **run)["first"]["rows"][0]["row"]
    one = ann.get("sample", **run, row=row)
    assert one["sample"]["row"] == row
    assert sum(item["p"] for item in one["probabilities"]) == pytest.approx(1, abs=1e-3)
    assert one["probabilities"][0]["class"] == one["sample"]["said"]["class"]
    assert one["neighbours"]
    assert all(item["truth"] is not None for item in one["neighbours"])
    assert [item["epoch"] for item in one["history"]] == [0, 1]
    assert {item["name"] for item in one["fields"]} == {"weather"}
    again = ann.get("sample", **run, id=one["sample"]["id"])
    assert again["sample"]["row"] == row


@pytest.mark.parametrize("task", ["detection", "detection3d"])
def test_a_box_comes_with_the_boxes_of_its_image(ann, task):
    run = RUNS[task]
    row = ann.get("samples", **run, filter="is_error = true", limit=1)["rows"][0]
    one = ann.get("sample", **run, row=row["row"])
    frame = one["frame"]
    assert row["row"] in {unit["row"] for unit in frame["units"]}
    assert {unit["id"] for unit in frame["units"]} == {row["id"]}
    assert frame["n_pred"] + sum(unit["kind"] == "missed" for unit in frame["units"]) == frame["n"]
    assert frame["n_gt"] == len({unit["truth_id"] for unit in frame["units"] if unit["truth_id"]})
    if task == "detection":
        assert row["size"] == frame["size"] == [1000, 800]
    width = 4 if task == "detection" else 7
    assert {len(unit["box"] or unit["truth_box"]) for unit in frame["units"]} == {width}
    assert one["probabilities_missing"]


def test_every_split_and_epoch_is_there(ann):
    run = RUNS["classification"]
    splits = {one["split"]: one["epochs"] for one in ann.get("evaluation", **run)["splits"]}
    assert splits == {"train": [0, 1], "val": [0, 1], "test": [0, 1]}
    for split, epochs in splits.items():
        for epoch in epochs:
            place = ann.get("samples", **run, split=split, epoch=str(epoch), limit=1)["place"]
            assert (place["split"], place["epoch"]) == (split, epoch)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"model": "nothing", "version": "v1"}, "no model 'nothing'"),
        ({"model": "n" * 900, "version": "../.."}, "no model 'nnn"),
        ({"result": "nothing"}, "no result 'nothing'"),
        ({"split": "nothing"}, "no split 'nothing'"),
        ({"epoch": "77"}, "no epoch '77'"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(ann, query, said):
    answer = ann.ask("samples", **{**RUNS["classification"], **query})
    assert answer.status_code == 404
    assert said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("samples", {"filter": "gt ="}),
        ("samples", {"filter": "nothing = 1"}),
        ("samples", {"filter": "1=1; DROP TABLE units"}),
        ("samples", {"sort": "nothing"}),
        ("samples", {"sort": "gt; DROP TABLE units"}),
        ("samples", {"limit": "100000"}),
        ("samples", {"offset": "-1"}),
        ("heatmap", {"x": "nothing"}),
        ("columns", {"names": "diagnosis"}),
        ("evaluation", {"filter": "diagnosis = 'C01'"}),
        ("sample", {}),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(ann, path, query):
    answer = ann.ask(path, **RUNS["classification"], **query)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


def test_suspects_come_with_their_pictures(ann):
    found = ann.get("suspects", **RUNS["classification"])["first"]
    assert len(found) == 20
    assert all(one["picture"] for one in found)


def test_hostile_ids_and_names_come_through_as_they_are(ann):
    run = RUNS["classification"]
    rows = ann.get("samples", **run, sort="input_id", limit=500)["rows"]
    assert {name for name in HOSTILE if any(one["id"].startswith(name) for one in rows)} == set(HOSTILE)
    assert {one["truth"]["name"] for one in rows} <= set(NAMES)
    for name in HOSTILE:
        wanted = next(one for one in rows if one["id"].startswith(name))
        assert ann.get("sample", **run, id=wanted["id"])["sample"]["row"] == wanted["row"]
        text = wanted["id"].replace("\\", "\\\\").replace("'", "\\'")
        found = ann.get("samples", **run, filter=f"input_id = '{text}'")
        assert [one["id"] for one in found["rows"]] == [wanted["id"]]
        contained = ann.get("samples", **run, filter=f"input_id contains '{text.upper()}'")
        assert wanted["id"] in [one["id"] for one in contained["rows"]]


def test_columns_come_as_bytes(ann, run):
    names = "row,confidence,gt,category,is_error,error_proba"
    data = ann.ask("columns", **run, names=names, filter="is_error = true").content
    (size,) = struct.unpack("<I", data[:4])
    head, start = json.loads(data[4 : 4 + size]), 4 + size
    assert start % 8 == 0
    rows = ann.get("samples", **run, filter="is_error = true", limit=100)["rows"]
    found = {}
    for one in head["columns"]:
        kind = {"i4": "<i4", "f4": "<f4", "u1": "u1"}[one["type"]]
        found[one["name"]] = np.frombuffer(data, kind, head["rows"], start + one["offset"])
    assert found["row"][: len(rows)].tolist() == [one["row"] for one in rows]
    sure = [np.nan if one["confidence"] is None else one["confidence"] for one in rows]
    np.testing.assert_allclose(found["confidence"][: len(rows)], sure, rtol=1e-4)
    assert (found["is_error"] == 1).all()


def test_a_filter_is_told_in_words(ann):
    said = ann.get(
        "filter", **RUNS["classification"], filter="(gt = 1 and prediction = 0) and is_error = true"
    )
    assert said["sentence"] == f"truth {NAMES[1]}, predicted {NAMES[0]}, wrong"
    assert [one["filter"] for one in said["chips"]] == ["gt = 1", "prediction = 0", "is_error = true"]
