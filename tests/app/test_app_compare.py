"""Compare: the counts of the page are those of `Comparison`, and every pair is one unit before and after."""

from urllib.parse import urlencode

import pytest
from app_building import need_pages
from app_parts import NAMES, opened, serving
from folders import ROOT

from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.results.result import Result
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RunKey

AXE = ROOT / "mld_core" / "app" / "web" / "node_modules" / "axe-core" / "axe.min.js"
RUNS = {
    "classification": ("net <i>", "v/1"),
    "detection": ("boxes", "v1"),
    "detection3d": ("lidar", "v1"),
}


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]


def asked(run, before, after):
    (model, version) = run
    return {
        "model": model, "version": version, "result": after,
        "a_model": model, "a_version": version, "a_result": before,
    }  # fmt: skip


@pytest.fixture(scope="module")
def ann(two_epochs):
    with opened(two_epochs) as client:
        yield client


@pytest.fixture
def two(run, two_epochs):
    """The first epoch against the last, and what `Comparison` says of them."""
    results = ResultStore(two_epochs, RunKey(*run))
    last = next(one["result_name"] for one in results.all() if one["result_name"] != "first")
    a, b = (Result(results, name, diagnoses=BY_CODE) for name in ("first", last))
    return asked(run, a.result_name, b.result_name), a.compare(b)


def test_counts_and_metrics_are_those_of_the_comparison(ann, two):
    query, said = two
    page = ann.get("compare", **query, split="val")
    line = said.units[said.units["dataset"] == "val"].iloc[0]
    assert {name: page["counts"][name] for name in ("n_paired", "n_fixed", "n_regressed")} == {
        name: int(line[name]) for name in ("n_paired", "n_fixed", "n_regressed")
    }
    assert line["n_fixed"] + line["n_regressed"] > 0
    moved = said.metrics[said.metrics["dataset"] == "val"]
    own = {str(round(row["delta"], 9)) for row in moved.to_dict("records")}
    rows = table(page, "moved")
    assert rows
    assert all(
        any(one["values"][2] == pytest.approx(float(delta), abs=1e-6) for delta in own) for one in rows
    )
    bounds = [one["values"][3:] for one in rows if one["values"][4] is not None]
    assert bounds or page["task"] != "classification"
    assert all(low <= paired <= high for paired, low, high in bounds)


def table(page, name):
    return next(one["rows"] for one in page["tables"] if one["id"] == name)


def test_every_pair_is_one_unit_before_and_after(ann, two):
    query, said = two
    changed = said.changed[said.changed["dataset"] == "val"]
    for kind in ("fixed", "regressed"):
        found = ann.get("compare/pairs", **query, split="val", kind=kind, limit=200)
        own = changed[changed["change"] == kind]
        assert found["total"] == len(own)
        assert (
            sorted(one["b"]["id"] for one in found["rows"]) == sorted(own["input_id"])[: len(found["rows"])]
        )
        for one in found["rows"]:
            assert one["a"]["id"] == one["b"]["id"]
            assert one["a"]["truth_id"] == one["b"]["truth_id"] if "truth_id" in one["a"] else True
            assert (one["a"]["wrong"], one["b"]["wrong"]) == (kind == "fixed", kind == "regressed")


def test_a_class_is_a_filter_of_what_changed(ann, two):
    query, _ = two
    page = ann.get("compare", **query, split="val")
    classes = table(page, "moved-classes")
    assert sum(one["values"][1] for one in classes) == page["counts"]["n_fixed"]
    one = max(classes, key=lambda row: row["values"][1])
    found = ann.get("compare/pairs", **query, split="val", kind="fixed", truth=one["truth"], limit=200)
    assert found["total"] == one["values"][1] > 0
    assert {pair["b"]["truth"]["class"] for pair in found["rows"]} == {one["truth"]}
    if page["task"] == "classification":
        assert one["name"] in NAMES


def test_what_cannot_be_compared_is_refused_in_words(ann):
    query = asked(RUNS["detection"], None, None)
    other = {**query, "a_model": "net <i>", "a_version": "v/1"}
    refused = ann.ask("compare", **other)
    assert (refused.status_code, "task" in refused.json()["detail"]) == (400, True)
    assert ann.ask("compare", model="boxes", version="v1").status_code == 400
    assert ann.ask("compare", **{**query, "a_version": "v9"}).status_code == 404
    fresh = ann.ask("compare", **{**query, "a_model": "fresh"})
    assert (fresh.status_code, fresh.json()["command"]) == (404, "mld evaluate fresh v1")


@pytest.mark.processes
def test_the_page_shows_each_pair_side_by_side_at_any_width(browser, two_epochs):
    from playwright.sync_api import expect

    need_pages()
    query = {"page": "compare", **asked(RUNS["classification"], "first", "all")}
    with serving(two_epochs) as (base, token):
        page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
        problems = []
        page.on("console", lambda said: problems.append(said.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{base}/ui/?token={token}")
        page.goto(f"{base}/ui/?{urlencode(query)}")
        fixed = page.get_by_role("button", name="fixed")
        fixed.click()
        expect(page.locator(".pairs li a")).to_have_count(2 * int(fixed.inner_text().split()[0]))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.set_viewport_size({"width": 1280, "height": 900})
        page.get_by_role("button", name=NAMES[0], exact=True).click()
        assert {"truth=0", "kind=fixed"} <= set(page.url.partition("?")[2].split("&"))
        page.reload()
        page.get_by_text("truth " + NAMES[0]).wait_for()
        if AXE.exists():
            page.evaluate(AXE.read_text("utf-8") + "; undefined")
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
            assert [one["id"] for one in found if one["impact"] in {"serious", "critical"}] == []
        assert problems == []
        page.context.close()
