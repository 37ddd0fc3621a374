"""The map of the features: what its points are, what a lasso takes, whose points may lie on one map, a million of them."""

import json
import re
import shutil
import struct
from math import cos, pi, sin
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
from app_building import need_pages
from app_parts import serving
from browser_parts import until

from ml_debugger.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store
from mld_core.views.columns.feature_map import feature_map
from mld_core.views.selection import held
from mld_core.views.units import passes_of

RUNS = {"classes": ("net <i>", "v/1"), "boxes": ("boxes", "v1"), "roads": ("lidar", "v1")}
RESULTS = {"classes": "all", "boxes": "boxes", "roads": "roads"}
MILLION = 1_000_000


def of(task, **more):
    model, version = RUNS[task]
    return {"page": "map", "model": model, "version": version, **more}


def unpacked(content):
    """Columns of the server's bytes."""
    (length,) = struct.unpack_from("<I", content)
    head = json.loads(content[4 : 4 + length])
    kinds = {"f4": "<f4", "i4": "<i4", "u1": "u1"}
    made = {
        one["name"]: np.frombuffer(content, kinds[one["type"]], head["rows"], 4 + length + one["offset"])
        for one in head["columns"]
    }
    return head, made


@pytest.mark.parametrize("task", RUNS)
def test_points_come_in_the_order_of_the_table_and_every_colour_counts_them(ann, shown_store, task):
    model, version = RUNS[task]
    place = {"model": model, "version": version}
    told = ann.get("map", **place)
    units = held(
        [
            one
            for one in passes_of(Evaluator(model, version, store=shown_store.root).get_result(RESULTS[task]))
            if one.dataset == "val"
        ][-1]
    )
    _, found = unpacked(ann.ask("columns", **place, names="row,pca_1,pca_2", sort="row").content)
    table = pq.read_table(units.path, columns=["pca_1", "pca_2"])
    assert told["there"]
    assert found["row"].tolist() == list(range(len(table)))
    for name in told["axes"]:
        np.testing.assert_array_equal(found[name], table[name].to_numpy())
    names = [one["name"] for one in told["colours"]]
    assert {"category", "is_error", "gt", "error_proba"} <= set(names)
    assert told["colour"] == names[0]
    for name in names:
        legend = ann.get("map", **place, colour=name)["legend"]
        if legend is None:
            continue
        counted = legend["of"] if legend["kind"] == "histogram" else [one["of"] for one in legend["values"]]
        tests = legend.get("filters") or [one["filter"] for one in legend["values"]]
        place_ = int(np.argmax(counted))
        assert ann.get("samples", **place, filter=tests[place_], limit=1)["total"] == counted[place_], name
    refused = ann.ask("map", **place, colour="categry")
    assert (refused.status_code, "category" in refused.json()["detail"]) == (400, True)


def test_a_lasso_is_a_filter_in_words(ann, shown_store):
    model, version = RUNS["classes"]
    place = {"model": model, "version": version}
    shape = "inside(pca_1,pca_2,-0.5,-2,1,-2,1,2,-0.5,2)"
    _, found = unpacked(ann.ask("columns", **place, names="pca_1,pca_2", sort="row").content)
    inside = (found["pca_1"] > -0.5) & (found["pca_1"] < 1) & (np.abs(found["pca_2"]) < 2)
    told = ann.get("filter", **place, filter=f"not (category = 'hotspot') and {shape}")
    assert [one["text"] for one in told["chips"]] == ["not hotspot", "lasso on the map"]
    rows = unpacked(ann.ask("columns", **place, filter=shape, names="row", sort="row").content)[1]["row"]
    assert 0 < len(rows) < len(inside)
    assert sorted(rows) == np.flatnonzero(inside).tolist()


@pytest.mark.parametrize("task", RUNS)
def test_a_polygon_takes_in_memory_what_it_takes_in_sql(shown_store, task):
    """Alone, with other tests, as one of two, and turned round, which is left to SQL."""
    model, version = RUNS[task]
    result = Evaluator(model, version, store=shown_store.root).get_result(RESULTS[task])
    units = held(next(one for one in passes_of(result) if one.dataset == "val"))
    x, y = units.floats("pca_1"), units.floats("pca_2")
    there = np.isfinite(x) & np.isfinite(y)
    middle = np.median(x[there]), np.median(y[there])
    wide = np.std(x[there]), np.std(y[there])
    shape = [
        (
            float(middle[0] + (1 + at % 2) * wide[0] * cos(at)),
            float(middle[1] + (1 + at % 3) * wide[1] * sin(at)),
        )
        for at in np.linspace(0, 6, 13)
    ]
    said = f"inside(pca_1, pca_2, {', '.join(f'{a!r}, {b!r}' for a, b in shape)})"
    other = f"inside(pca_1, pca_2, {middle[0]}, -99, 99, -99, 99, 99, {middle[0]}, 99)"
    for condition in (
        said,
        f"{said} and is_error = true",
        f"(confidence > 0.5 or is_error = true) and {said} and {other}",
        f"not {said}",
        f"{said} or is_error = true",
    ):
        by_sql = units._by_sql(condition)
        assert 0 < len(by_sql) < units.rows
        assert units.matching(condition).tolist() == by_sql.tolist(), condition


def test_whose_points_lie_in_one_space_is_known_and_not_guessed(records, planted, tmp_path):
    """Labelled splits have axes of their own; an unlabelled one is placed in the space of its reference."""
    factory = records.StoreFactory(tmp_path)
    run = factory.run("net", "v1", n_class=6)
    data = planted(records, 500, seed=2, noise=0.08, broken=0.08).data
    factory.add_pass(run, "val", data, n_epoch=0)
    other = planted(records, 200, seed=3, start=9000).data
    other.labels[:] = -1
    factory.add_pass(run, "test", other, n_epoch=0)
    result = Evaluator("net", "v1", store=tmp_path).request_evaluation("one", options={"progress": False})
    told = {one.dataset: feature_map(held(one)) for one in passes_of(result)}
    assert told["test"]["shared"] == ["val"]
    assert told["val"]["shared"] == []
    assert "test" in told["val"]["note"]
    assert told["test"]["note"] == ""


# -- in the browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(browser, shown_store):
    need_pages()
    with serving(Store(shown_store.root)) as (base, token):
        context = browser.new_context()
        context.new_page().goto(f"{base}/ui/?token={token}")
        yield f"{base}/ui/", context.storage_state()
        context.close()


@pytest.fixture
def opened(browser, served):
    base, session = served
    contexts = []

    def start(query, width=1280, **options):
        contexts.append(
            browser.new_context(viewport={"width": width, "height": 900}, storage_state=session, **options)
        )
        page = contexts[-1].new_page()
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.goto(f"{base}?{urlencode(query)}")
        return page

    yield start
    for one in contexts:
        one.close()


def drawn(page):
    """Wait for the next drawing of the points; its kind of canvas."""
    page.locator(".plot canvas").wait_for()
    until(page, "performance.getEntriesByName('map.drawn').length > 0")
    return page.locator(".plot canvas").get_attribute("data-drawn")


def lasso(page, share=0.6):
    """Draw a circle around the middle, so wide a share of the smaller side."""
    box = page.locator(".plot").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    radius = share * min(box["width"], box["height"]) / 2
    page.mouse.move(x + radius, y)
    page.mouse.down()
    for at in range(1, 60):
        page.mouse.move(x + radius * cos(2 * pi * at / 60), y + radius * sin(2 * pi * at / 60))
    page.mouse.up()


def number(text):
    return int(re.search(r"[\d,]+", text)[0].replace(",", ""))


def test_a_lasso_filters_the_grid_is_an_address_and_goes_again(opened):
    page = opened(of("classes"))
    drawn(page)
    lasso(page)
    chip = page.locator(".map .chip")
    chip.wait_for()
    bar = page.locator(".filters p[role=status]")
    bar.wait_for()
    until(
        page,
        "document.querySelector('.map .chip').innerText.split(' ')[0]"
        " === document.querySelector('.filters p[role=status]').innerText.split(' ')[0]",
    )
    taken = number(chip.inner_text())
    assert 0 < taken < 600
    page.locator(f"[role=option][aria-setsize='{taken}']").first.wait_for()
    query = parse_qs(urlsplit(page.url).query)
    assert query["filter"][0].count(",") <= 2 * 24 + 1
    assert len(page.url) < 600
    page.reload()
    drawn(page)
    chip.wait_for()
    assert number(chip.inner_text()) == taken
    assert page.locator(".plot polygon").count() == 1
    page.get_by_role("button", name=re.compile("^Leave out")).first.click()
    until(page, "document.querySelectorAll('.filters .chip').length === 2")
    chip.get_by_role("button").click()
    chip.wait_for(state="detached")
    assert page.wrong == []


def test_the_head_of_a_run_with_two_results_fits_a_narrow_page(browser, shown_store, tmp_path):
    """Result, split and epoch are chosen there: three lists beside the buttons."""
    need_pages()
    store = Store(shutil.copytree(shown_store.root, tmp_path / "store"))
    folder = store.results_dir(RunKey(*RUNS["classes"]))
    (one,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    shutil.copytree(one, folder / "another-one-of-a-long-name")
    info = json.loads((one / "result.json").read_text())
    info["result_name"] = "another-one-of-a-long-name"
    (folder / "another-one-of-a-long-name" / "result.json").write_text(json.dumps(info))
    with serving(store) as (base, token):
        page = browser.new_page(viewport={"width": 400, "height": 900})
        page.goto(f"{base}/ui/?{urlencode({'token': token, **of('classes', split='val')})}")
        page.locator(".tools select").nth(2).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.close()


def test_it_goes_by_keyboard_and_shows_what_is_pointed_at(opened):
    page = opened(of("boxes", colour="error_proba"), width=400, color_scheme="dark")
    drawn(page)
    page.locator(".plot").focus()
    for key in ("+", "+", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
    until(page, "location.search.includes('view=')")
    page.keyboard.press("Enter")
    page.locator(".map .chip").wait_for()
    page.keyboard.press("0")
    until(page, "!location.search.includes('view=')")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    # Another epoch has other axes: the shape went with the epoch it was drawn on.
    until(page, "location.search.includes('epoch=0') && !location.search.includes('inside')")
    page.locator(".map .stale").wait_for(state="detached")
    box = page.locator(".plot").bounding_box()
    for at in np.random.default_rng(0).uniform(0.2, 0.8, (400, 2)):
        page.mouse.move(box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"])
        if page.evaluate("!!document.querySelector('.plot.pointing')"):
            break
    page.locator(".hover").wait_for()
    page.mouse.down()
    page.mouse.up()
    until(page, "location.search.includes('sel=')")
    page.locator("aside.detail").wait_for()
    assert page.wrong == []


def stretched(content, rows):
    """The true columns, as if there were so many points: each a little beside one that is there."""
    head, columns = unpacked(content)
    rng = np.random.default_rng(0)
    pieces, offset, made = [], 0, []
    for one in head["columns"]:
        values = np.resize(columns[one["name"]], rows)
        if one["name"] == "row":
            values = np.arange(rows, dtype="<i4")
        elif one["type"] == "f4":
            values = values + rng.normal(0, 0.2, rows).astype("<f4")
        piece = values.tobytes() + b"\0" * (-values.nbytes % 8)
        made.append({**one, "offset": offset})
        pieces.append(piece)
        offset += len(piece)
    text = json.dumps({"rows": rows, "columns": made}).encode()
    text += b" " * (-(len(text) + 4) % 8)
    return b"".join([struct.pack("<I", len(text)), text, *pieces])


def test_a_million_points_are_drawn_and_taken_as_quickly_as_they_are_counted(opened, served):
    """By their density; what the page needs is told by how long it takes to look at a million numbers twice."""
    page = opened(of("classes"))
    drawn(page)
    asked = []

    def answered(route):
        asked.append(route.request.url)
        if "filter=" in route.request.url:  # the server's count comes after the page's own
            page.wait_for_timeout(0)
            route.abort()
        else:
            route.fulfill(
                body=stretched(route.fetch().body(), MILLION), content_type="application/octet-stream"
            )

    page.route("**/api/columns?*", answered)
    page.reload()
    assert drawn(page) == "canvas"
    until(page, "document.querySelector('.plot').getAttribute('aria-label').includes('1,000,000')")
    first = page.evaluate(
        """() => performance.getEntriesByName('map.drawn')[0].startTime
             - Math.max(...performance.getEntriesByType('resource')
                 .filter(one => one.name.includes('columns?')).map(one => one.responseEnd))"""
    )
    page.evaluate("performance.clearMarks('map.drawn')")
    lasso(page)
    drawn(page)
    took = page.evaluate(
        "performance.getEntriesByName('map.drawn')[0].startTime - performance.getEntriesByName('map.lasso')[0].startTime"
    )
    looked = page.evaluate(
        """() => { const all = Float32Array.from({length: 1e6}, Math.random); let n = 0;
            const begun = performance.now();
            for (let turn = 0; turn < 10; turn += 1)
              for (let at = 0; at < all.length; at += 1) n += Math.hypot(all[at], n) > 1 ? 1 : 0;
            return performance.now() - begun + 0 * n }"""
    )
    print(f"a million points: first picture {first:.0f} ms, lasso {took:.0f} ms, ten looks {looked:.0f} ms")
    assert took < max(300, 10 * looked)
    assert first < max(1000, 30 * looked)
    assert page.wrong == []
