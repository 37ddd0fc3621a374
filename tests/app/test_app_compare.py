"""Compare: the counts of the page are those of `Comparison`, and every pair is one unit before and after."""

import gc
import weakref
from urllib.parse import quote, urlencode

import pytest
from app_building import need_pages
from app_parts import NAMES, OPTIONS, opened, serving
from browser_parts import until
from folders import ROOT

from ml_debugger.evaluator import Evaluator
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.results.result import Result
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RunKey
from mld_core.views.comparing.many import together
from mld_core.views.selection import held
from mld_core.views.units import passes_of

AXE = ROOT / "mld_core" / "app" / "web" / "node_modules" / "axe-core" / "axe.min.js"
RUNS = {
    "classification": ("net <i>", "v/1"),
    "detection": ("boxes", "v1"),
    "detection3d": ("lidar", "v1"),
}

LONG = 60_000
"""Milliseconds: several results are compared anew, on a machine that does much else."""

LAST = {"classification": "all", "detection": "boxes", "detection3d": "roads"}
"""Results that hold both epochs."""


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


@pytest.mark.parametrize("task", RUNS)
def test_two_epochs_of_one_result_are_compared_as_two_results_are(ann, task):
    """The epochs that the address names, not the last of each."""
    run, last = RUNS[task], LAST[task]
    query = {**asked(run, last, last), "a_epoch": "0", "epoch": "1", "split": "val"}
    within = ann.get("compare", **query)
    apart = ann.get("compare", **asked(run, "first", last), split="val")
    for name in ("n_paired", "n_fixed", "n_regressed"):
        assert within["counts"][name] == apart["counts"][name]
    assert within["counts"]["n_fixed"] + within["counts"]["n_regressed"] > 0
    for kind in ("fixed", "regressed"):
        found = ann.get("compare/pairs", **query, kind=kind)
        assert found["total"] == within["counts"][f"n_{kind}"]


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


def of(run, *names):
    """Results as the address names them."""
    model, version = run
    return ",".join(
        "/".join(quote(one, "") for one in (model, version, *name.split("@"), *([] if "@" in name else [""])))
        for name in names
    )


def test_more_than_two_are_told_together_as_two_by_two(ann, run):
    last = LAST[next(name for name, one in RUNS.items() if one == run)]
    names = of(run, "first", f"{last}@1", f"{last}@0", "first")
    page = ann.get("compare/many", of=names, split="val")
    pair = ann.get("compare", **asked(run, "first", last), split="val")
    assert [one["n_fixed"] for one in page["against"]] == [pair["counts"]["n_fixed"], 0, 0]
    assert [one["better"] for one in page["against"]][1:] == [0, 0]
    counts = page["counts"]
    assert counts["n_common"] == counts["n_all"] + counts["n_some"] + counts["n_none"]
    assert counts["n_some"] == pair["counts"]["n_fixed"] + pair["counts"]["n_regressed"]
    for kind in ("all", "some", "none"):
        found = ann.get("compare/many/rows", of=names, split="val", kind=kind, limit=5)
        assert found["total"] == counts[f"n_{kind}"]
        for row in found["rows"]:
            assert len(row) == 4
            assert len({one["id"] for one in row}) == 1
            wrong = sum(one["wrong"] for one in row)
            assert {"all": wrong == 4, "some": 0 < wrong < 4, "none": wrong == 0}[kind]
    for kind in ("fixed", "regressed"):
        found = ann.get("compare/many/rows", of=names, split="val", kind=kind, at=1, limit=200)
        two = ann.get("compare/pairs", **asked(run, "first", last), split="val", kind=kind, limit=200)
        assert [row[1]["row"] for row in found["rows"]] == [one["b"]["row"] for one in two["rows"]]
    for at, head in enumerate(page["heads"]):
        values = [row[at]["value"] for row in page["values"]]
        best = [place for place, row in enumerate(page["values"]) if row[at]["best"]]
        assert len({values[place] for place in best}) <= 1, head
        assert page["values"][1][at]["low"] is None or (
            page["values"][1][at]["low"] <= page["values"][1][at]["change"] <= page["values"][1][at]["high"]
        )


NET = ("net", "v1")


def evaluated(store, name, epoch, *splits):
    """A result of some splits."""
    options = {**OPTIONS, "dataset_types": list(splits)}
    return Evaluator(*NET, store=store.root).request_evaluation(name, epoch, options=options)


@pytest.fixture(scope="module")
def small(records, tmp_path_factory):
    """A store whose results do not all hold the same, and a person who reads."""
    factory = records.StoreFactory(tmp_path_factory.mktemp("compare") / "store")
    run = factory.run(*NET)
    for split, epoch in (("val", 0), ("val", 1), ("test", 1)):
        data = records.make_data(60, seed=7)
        if epoch:
            wrong = (data.logits.argmax(1) != data.labels).nonzero()[0]
            data.logits[wrong[:3], data.labels[wrong[:3]]] += 50
        factory.add_pass(run, split, data, n_epoch=epoch)
    for name, epoch, *splits in (("a", 0, "val"), ("b", None, "val", "test"), ("c", 1, "test")):
        evaluated(factory.store, name, epoch, *splits)
    with opened(factory.store) as client:
        yield factory.store, client


def test_a_result_made_anew_under_its_name_is_compared_anew(small):
    """Not answered with the numbers of the one that was removed."""
    store, client = small
    for epoch, fixed in ((0, 0), (1, 3)):
        evaluated(store, "again", epoch, "val")
        page = client.get("compare", **asked(NET, "again", "a"))
        many = client.get("compare/many", of=of(NET, "a", "again"))
        assert (page["counts"]["n_regressed"], many["against"][0]["n_fixed"]) == (fixed, fixed)
        ResultStore(store, RunKey(*NET)).remove("again")


def test_a_split_is_one_that_all_hold_in_the_epochs_asked_for(small):
    """The same for the two as for all of them; what is asked for otherwise is refused, never replaced."""
    _, client = small
    two, more = asked(NET, "b", "b"), of(NET, "b", "b", "c")
    for query, many, split, splits in (
        (two, of(NET, "b", "b"), "val", ["val", "test"]),
        ({**two, "a_epoch": "0", "epoch": "1"}, of(NET, "b@0", "b@1"), "val", ["val"]),
        ({**two, "split": "test"}, of(NET, "b", "b"), "test", ["val", "test"]),
        ({**two, "of": more}, more, "test", ["test"]),
    ):
        page = client.get("compare", **query)
        together = client.get("compare/many", of=many, split=query.get("split"))
        assert (page["split"], sorted(page["splits"])) == (split, sorted(splits)), query
        assert (together["split"], together["splits"]) == (page["split"], page["splits"]), many
        assert page["place"]["split"] == split
        changed = client.get("compare/pairs", **query)
        assert changed["place"]["split"] == changed["before"]["split"] == split
    for query in (
        {**asked(NET, "a", "b"), "split": "test"},
        {**asked(NET, "b", "a"), "split": "test"},
        {**two, "of": of(NET, "a", "b", "b"), "split": "test"},
    ):
        refused = client.ask("compare", **query)
        assert (refused.status_code, "no split 'test'" in refused.text) == (404, True), refused.text
        assert "(splits: 'val')" in refused.json()["detail"]
    assert client.ask("compare/many", of=of(NET, "b", "a"), split="test").status_code == 404
    nothing = client.ask("compare", **asked(NET, "a", "c"))
    assert (nothing.status_code, "no split in common" in nothing.text) == (404, True)


def test_what_is_kept_of_several_is_counted_and_keeps_no_other_pass(small):
    """A server lets columns go by the bytes it counts."""
    store, _ = small
    result = Result(ResultStore(store, RunKey(*NET)), "b", diagnoses=BY_CODE)
    first, last = (held(one) for one in passes_of(result) if one.dataset == "val")
    made = together([first, last])
    before = first.nbytes
    first.memo["together"] = made
    assert first.nbytes - before >= first.rows * 2 * 4
    assert len(made.chosen([first, last], "fixed")) == 3
    gone = weakref.ref(last)
    del last
    gc.collect()
    assert gone() is None


def test_what_cannot_be_compared_together_is_refused_in_words(ann):
    boxes, classes = RUNS["detection"], RUNS["classification"]
    for names, status, words in [
        (of(boxes, "boxes"), 400, "1 results: which to compare? 2 to 11"),
        (of(boxes, *["boxes"] * 12), 400, "12 results"),
        ("boxes/v1,boxes/v1", 400, "model/version/result/epoch"),
        (f"{of(boxes, 'boxes')},{of(classes, 'all')}", 400, "only results of one task are compared"),
        (of(boxes, "boxes", "none such"), 404, "none such"),
        (of(boxes, "boxes", "boxes@7"), 404, "epoch"),
    ]:
        refused = ann.ask("compare/many", of=names)
        assert (refused.status_code, words in refused.text) == (status, True), refused.text


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
        expect(page.locator("h1")).to_contain_text("Of 600 samples in both")
        page.get_by_label("Split", exact=True).select_option("test")
        expect(page.locator("h1")).to_contain_text("Of 200 samples in both", timeout=LONG)
        assert "split=test" in page.url
        if AXE.exists():
            page.evaluate(AXE.read_text("utf-8") + "; undefined")
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
            assert [one["id"] for one in found if one["impact"] in {"serious", "critical"}] == []
        assert problems == []
        page.context.close()


@pytest.mark.processes
def test_a_third_result_is_added_and_all_stand_side_by_side(browser, two_epochs):
    from playwright.sync_api import expect

    need_pages()
    query = {"page": "compare", **asked(RUNS["classification"], "first", "all")}
    with serving(two_epochs) as (base, token):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        problems = []
        page.on("console", lambda said: problems.append(said.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{base}/ui/?token={token}")
        page.goto(f"{base}/ui/?{urlencode(query)}")
        page.get_by_label("Compare with one more").select_option(label="all epoch 0")
        table = page.get_by_role("region", name="Results")
        expect(table.locator("thead th")).to_have_count(4, timeout=LONG)
        assert "Holm" in page.locator("#panel-together").locator("xpath=../..").inner_text()
        expect(table.get_by_text("best", exact=True).first).to_be_visible()
        fixed = table.get_by_role("button", name="fixed in all epoch 1")
        count = int(fixed.inner_text())
        fixed.click()
        page.locator(".pairs li").first.wait_for()
        expect(page.locator(".pairs li")).to_have_count(min(count, 24), timeout=LONG)
        expect(page.locator(".pairs li").first.locator("a")).to_have_count(3, timeout=LONG)
        assert "kind=fixed.1" in page.url
        page.reload()
        page.get_by_role("button", name="wrong in some").click()
        expect(page.locator(".pairs li").first.locator("a")).to_have_count(3, timeout=LONG)
        page.get_by_label("After").select_option(label="all epoch 0")
        page.get_by_role("heading", name="Categories").wait_for()
        until(page, "location.search.includes('&epoch=0') || location.search.includes('?epoch=0')")
        table.get_by_role("button", name="all epoch 1 as baseline").click()
        expect(table.locator("thead th").nth(1)).to_contain_text("all epoch 1", timeout=LONG)
        page.set_viewport_size({"width": 400, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        if AXE.exists():
            page.evaluate(AXE.read_text("utf-8") + "; undefined")
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
            assert [one["id"] for one in found if one["impact"] in {"serious", "critical"}] == []
        table.get_by_role("button", name="Take all epoch 0 out").click()
        until(page, "!location.search.includes('of=')")
        page.get_by_role("button", name="regressed").wait_for()
        assert problems == []
        page.context.close()
