"""The app in one file: it opens offline, holds every sample, and answers as the server does."""

import json
import math
import re
from urllib.parse import urlencode

import numpy as np
import pytest
from app_building import need_pages
from app_parts import HOSTILE
from browser_parts import until

from mld_core.app.file.one_file import NoPagesError, OneFile
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.results.result import Result
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RunKey
from mld_core.report import write_comparison, write_report
from mld_core.views import detail, facets, matrices
from mld_core.views.box_charts import curves
from mld_core.views.cards import Told, cards
from mld_core.views.comparing.page import comparison, last_pass
from mld_core.views.evaluation import boxed, evaluation
from mld_core.views.selection import held
from mld_core.views.units import passes_of
from mld_core.views.words.sentences import literal

RUNS = {
    "classification": ("net <i>", "v/1"),
    "detection": ("boxes", "v1"),
    "detection3d": ("lidar", "v1"),
}
FILTERS = {
    "classification": (
        "",
        "gt = 3",
        "is_error = true and confidence > 0.6",
        "diagnosis has 'C01' or category is null",
        "not (prediction in (1, 2)) and error_proba between 0.2 and 0.8",
        "input_id contains '</SCRIPT>' and severity >= 2",
        "gt = 77",
        "not inside(pca_1, pca_2, -1, 0, 0.5, -1, 1, 1.5)",
    ),
    "detection": ("", "gt = 1", "unit_kind = 'gt'", "size_bucket = 'small' and is_error = true"),
    "detection3d": ("", "range > 20 and is_error = true", "speed > 1", "gt = 77"),
}
SORTS = ("", "label_quality", "-confidence,gt", "error_code")
WORDS = {"picture", "hash", "filter_sentence", "categories_missing", "wrong_labels_filter"}
"""What a file says in words of its own, or leaves out."""


@pytest.fixture(scope="module", params=RUNS)
def task(request):
    return request.param


@pytest.fixture(scope="module")
def result(task, two_epochs):
    return newest(two_epochs, task)


def newest(store, task):
    """The result of both epochs."""
    held = ResultStore(store, RunKey(*RUNS[task]))
    name = next(one["result_name"] for one in held.all() if one["result_name"] != "first")
    return Result(held, name, diagnoses=BY_CODE)


@pytest.fixture(scope="module")
def file(result, tmp_path_factory):
    need_pages()
    return write_report(result, tmp_path_factory.mktemp("file") / "report.html").path


@pytest.fixture(scope="module")
def page(browser, file):
    """The file in a browser without a network, and what went wrong on it."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.wrong, page.asked = [], []
    page.on("console", lambda said: page.wrong.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda one: page.asked.append(one.url))
    page.goto(file.as_uri())
    page.wait_for_selector("main article, main li, main table", timeout=60_000)
    yield page
    context.close()


def ask(page, route, **query):
    """An answer of the data inside the file."""
    return page.evaluate("([route, query]) => mld.get(route, query)", [route, query])


def plainly(value):
    return json.loads(json.dumps(value, default=lambda number: number.item()))


def differences(wanted, found, place=""):
    """Where two answers differ: floats to a thousandth, words of the file's own aside."""
    if isinstance(wanted, dict):
        for key in wanted.keys() - WORDS:
            if key not in found:
                yield f"{place}.{key} is not there"
            else:
                yield from differences(wanted[key], found[key], f"{place}.{key}")
    elif isinstance(wanted, list):
        if len(wanted) != len(found):
            yield f"{place}: {len(wanted)} and {len(found)}"
        else:
            for at, pair in enumerate(zip(wanted, found, strict=True)):
                yield from differences(*pair, f"{place}[{at}]")
    elif isinstance(wanted, float) and isinstance(found, int | float):
        if not math.isclose(wanted, found, rel_tol=2e-3, abs_tol=1e-4):
            yield f"{place}: {wanted} and {found}"
    elif wanted != found:
        yield f"{place}: {wanted!r} and {found!r}"


def test_it_opens_offline_and_runs_no_text_of_a_record(page, file, task):
    model, version = RUNS[task]
    shell = re.sub(r"<script.*?</script>", "", file.read_text("utf-8"), flags=re.DOTALL)
    assert not re.search(r"https?://", shell)
    assert not re.search(r"<[a-z]+[^<>]*\son[a-z]+=", shell)
    assert page.title() == f"{model} {version} · ml-debugger"
    if task == "classification":
        for one in (HOSTILE[1], HOSTILE[2]):
            query = urlencode({"page": "samples", "filter": f"input_id contains {literal(one)}"})
            page.goto(f"{file.as_uri()}?{query}&{urlencode({'model': model, 'version': version})}")
            page.get_by_text(one).first.wait_for()
    assert page.wrong == []
    assert [url for url in page.asked[1:] if not url.startswith(("data:", "blob:", "file:"))] == []


@pytest.mark.parametrize("width", [1280, 400])
def test_the_worst_are_in_sight_and_drawn(page, file, result, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(file.as_uri())
    units = held(last_pass(result, "val"))
    first = evaluation(units)["first"]["rows"][0]
    drawn = page.locator("main image, main img, main svg path").first
    drawn.wait_for(state="attached")
    assert first["why"] in page.inner_text("main")
    page.goto(f"{page.url}&sel={first['row']}")
    figure = page.locator("aside.detail figure, aside.detail img").first
    figure.wait_for()
    if result.task != "detection3d":
        picture = page.locator("aside.detail image, aside.detail img").first
        name = "src" if result.task == "classification" else "href"
        assert re.match("data:image/(png|jpeg);base64,.{40}", picture.get_attribute(name))
    else:
        assert figure.locator("line.moves").count() > 0
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.wrong == []


def test_it_answers_as_the_server_does(page, result):
    """Every split and the earlier epochs: the page of the evaluation; of the last ones every sample."""
    last = {one.dataset: one.index for one in passes_of(result)}
    for one in passes_of(result):
        units = held(one)
        place = {"split": one.dataset, "epoch": str(one.n_epoch)}
        if last[one.dataset] != one.index:
            wanted = {**evaluation(units), "first": {}}
            assert list(differences(plainly(wanted), ask(page, "evaluation", **place))) == []
            continue
        for condition in FILTERS[result.task]:
            query = {"filter": condition, **place}
            wanted = plainly(evaluation(units, condition))
            assert list(differences(wanted, ask(page, "evaluation", **query), condition)) == []
            wanted = plainly(matrices.confusion(units, condition))
            assert list(differences(wanted, ask(page, "confusion", **query), condition)) == []
            wanted = plainly(curves(units) if boxed(result) else None)
            assert list(differences(wanted, ask(page, "curves", **place))) == []
            for sort in SORTS:
                rows = units.chosen(condition, sort)
                found = ask(page, "samples", sort=sort, limit=500, **query)
                assert found["total"] == len(rows)
                assert [card["row"] for card in found["rows"]] == rows[:500].tolist(), (condition, sort)
            found = ask(page, "samples", offset=40, limit=30, **query)["rows"]
            wanted = plainly(cards(units, units.chosen(condition)[40:70]))
            assert list(differences(wanted, found, condition)) == []


def test_facets_count_what_their_filters_give(page, result):
    units = held(last_pass(result, "val"))
    place = {"split": units.dataset, "epoch": str(units.n_epoch)}
    assert ask(page, "facets", **place)["fields"] == plainly(facets.facets(units)["fields"])
    for field in ask(page, "facets", filter="gt = 1", **place)["fields"]:
        pairs = (
            [(one["filter"], one["n"]) for one in field["values"]]
            if field["kind"] == "values"
            else zip(field["filters"], field["n"], strict=True)
        )
        for condition, n in list(pairs)[:2]:
            assert n == len(units.chosen(f"gt = 1 and ({condition})")), condition


def test_the_worst_have_their_evidence_and_the_others_say_where_it_is(page, result):
    units = held(last_pass(result, "val"))
    siblings = {one.dataset: one for one in passes_of(result) if one.dataset != units.dataset}
    row = int(units.chosen()[0])
    found = ask(page, "sample", row=row, split=units.dataset)
    wanted = plainly(detail.sample(units, row, Told(), list(siblings.values())))
    for name in ("probabilities", "neighbours", "history", "text", "action", "findings"):
        assert list(differences(wanted[name], found[name], name)) == []
    if result.task != "classification":
        frame = {name: wanted["frame"][name] for name in ("id", "units", "left_out", "errors", "n", "size")}
        assert list(differences(frame, found["frame"])) == []
        return
    assert len(found["history"]) == 2
    assert found["neighbours"]
    right = ask(page, "sample", row=int(units.chosen("is_error = false")[-1]), split=units.dataset)
    assert "`mld ui`" in right["probabilities_missing"]


def test_what_cannot_be_asked_of_a_file_is_said(page):
    said = page.evaluate("mld.get('samples', {filter: 'nonsense = 1'}).catch(one => one.detail)")
    assert "no column 'nonsense'" in said
    said = page.evaluate("mld.get('samples', {split: 'val', epoch: '0'}).catch(one => one.detail)")
    assert "last epoch of each split" in said
    said = page.evaluate("mld.post('verdicts', {}).catch(one => one.detail)")
    assert "mld ui" in said


def test_the_same_result_gives_the_same_bytes(file, result, tmp_path):
    again = write_report(result, tmp_path / "again.html")
    assert again.path.read_bytes() == file.read_bytes()
    assert again.bytes == file.stat().st_size


def test_two_results_are_one_file_with_every_unit_that_changed(browser, result, two_epochs, tmp_path):
    need_pages()
    before = Result(ResultStore(two_epochs, RunKey(*RUNS[result.task])), "first", diagnoses=BY_CODE)
    written = write_comparison(before, result, tmp_path / "change.html")
    said = before.compare(result)
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
    wrong = []
    page.on("console", lambda one: wrong.append(one.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(written.path.as_uri())
    page.get_by_role("button", name="fixed").click(timeout=60_000)
    page.locator(".pairs li").first.wait_for()
    for kind in ("fixed", "regressed"):
        own = said.changed[(said.changed["dataset"] == "val") & (said.changed["change"] == kind)]
        found = ask(page, "compare/pairs", split="val", kind=kind, limit=10_000)
        assert found["total"] == len(own) > 0
        assert sorted(one["b"]["id"] for one in found["rows"]) == sorted(own["input_id"])
        assert {(one["a"]["wrong"], one["b"]["wrong"]) for one in found["rows"]} == {
            (kind == "fixed", kind == "regressed")
        }
    page_of = comparison(*(held(last_pass(one, "val")) for one in (before, result)))[0]
    assert list(differences(plainly(page_of), ask(page, "compare", split="val"))) == []
    assert page.locator("main h1").inner_text() == page_of["sentence"]
    with pytest.raises(Exception, match="Split 'none such' is not in both results"):
        ask(page, "compare", split="none such")
    first = page.locator(".pairs li").first
    assert first.locator("a[href]").count() == 1  # the samples of the result before are not in the file
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    first.locator("a[href]").click()
    page.locator("aside.detail").wait_for()
    assert wrong == []
    page.context.close()


def test_results_of_two_tasks_are_no_comparison(two_epochs, tmp_path):
    a, b = (newest(two_epochs, task) for task in ("detection", "detection3d"))
    with pytest.raises(ValueError, match="only results of one task"):
        write_comparison(a, b, tmp_path / "change.html")


def points_of(dataset, input_id):
    """A cloud of 9,000 points, some far beyond the boxes."""
    rng = np.random.default_rng(len(input_id))
    return np.concatenate([rng.normal(0, 30, (8_999, 4)), [[np.nan] * 4]]).astype(np.float32)


def test_points_are_thinned_and_drawn_under_the_boxes(browser, two_epochs, tmp_path):
    need_pages()
    result = newest(two_epochs, "detection3d")
    written = write_report(result, tmp_path / "points.html", image_fn=points_of)
    assert any("of the points of a frame at most 4,000" in text for text in written.left_out)
    page = browser.new_page()
    page.goto(f"{written.path.as_uri()}?page=samples&model=lidar&version=v1&sel=0")
    page.get_by_text("4,000 of 9,000 points").wait_for(timeout=60_000)
    # From above and in 3D, each on a canvas beneath the boxes; a file of 2D boxes has no 3D view.
    inked = """selector => { const one = document.querySelector(selector); const copy = document.createElement("canvas");
      [copy.width, copy.height] = [one.width, one.height]; const context = copy.getContext("2d");
      context.drawImage(one, 0, 0);
      return context.getImageData(0, 0, one.width, one.height).data.filter((_, at) => at % 4 === 3).some(Boolean) }"""
    until(page, f"({inked})('.above canvas')")
    until(page, "performance.getEntriesByName('space.drawn').at(-1).detail.n", 4_000)
    assert page.locator(".space path.truth, .space path.said").count() > 0
    page.context.close()
    flat = OneFile(newest(two_epochs, "detection")).page()
    assert "space.drawn" in written.path.read_text("utf-8")
    assert "space.drawn" not in flat


def test_images_are_asked_for_and_boxes_lie_on_them(two_epochs):
    asked = []

    def image_of(dataset, input_id):
        asked.append((dataset, input_id))
        return np.zeros((240, 320, 3), np.uint8)

    made = OneFile(newest(two_epochs, "detection"), image_of)
    data = made.data()
    pictures = data["pictures"]["val"]
    assert {one for _, one in asked} == set(pictures)
    assert made.left_out[-1].startswith("Samples are those of the last epoch")


def test_without_pages_one_sentence_says_what_to_do(two_epochs, tmp_path):
    with pytest.raises(NoPagesError, match="make app"):
        OneFile(newest(two_epochs, "detection")).page(static=tmp_path)
