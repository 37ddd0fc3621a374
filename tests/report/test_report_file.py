"""The app in one file: it opens offline, holds every sample, and answers as the server does."""

import json
import math
import re

import pytest
from app_building import need_pages

from mld_core.app.file.one_file import NoPagesError, OneFile
from mld_core.report import write_report
from mld_core.views import detail, facets, matrices
from mld_core.views.cards import Told, cards
from mld_core.views.evaluation import evaluation
from mld_core.views.selection import held
from mld_core.views.units import passes_of

FILTERS = (
    "",
    "gt = 3",
    "is_error = true and confidence > 0.6",
    "diagnosis has 'C01' or category is null",
    "not (prediction in (1, 2)) and error_proba between 0.2 and 0.8",
    "input_id contains '</SCRIPT>' and severity >= 2",
    "gt = 77",
)
SORTS = ("", "label_quality", "-confidence,gt", "error_code")
WORDS = {"picture", "hash", "filter_sentence", "categories_missing", "wrong_labels_filter"}
"""What a file says in words of its own, or leaves out."""


@pytest.fixture(scope="module")
def file(results, tmp_path_factory):
    need_pages()
    return write_report(results["v2"], tmp_path_factory.mktemp("file") / "report.html").path


@pytest.fixture
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


def test_it_opens_offline_and_runs_no_text_of_a_record(page, file):
    assert page.wrong == []
    assert [url for url in page.asked[1:] if not url.startswith(("data:", "blob:"))] == []
    assert page.title() == "net v2 · ml-debugger"
    shell = re.sub(r"<script.*?</script>", "", file.read_text("utf-8"), flags=re.DOTALL)
    assert not re.search(r"https?://", shell)
    assert not re.search(r"<[a-z]+[^<>]*\son[a-z]+=", shell)
    page.goto(f"{file.as_uri()}?page=samples&model=net&version=v2&filter=input_id+contains+'script'")
    page.get_by_text("<script>document.title='broken'</script>").first.wait_for()
    page.goto(f"{file.as_uri()}?page=samples&model=net&version=v2&filter=input_id+contains+'onerror'")
    page.get_by_text('"><img src=x onerror=').first.wait_for()
    assert page.title() == "net v2 · ml-debugger"
    assert page.wrong == []


def test_the_worst_are_in_sight_with_their_pictures(page, results):
    units = held(passes_of(results["v2"])[-1])
    first = evaluation(units)["first"]["rows"][0]
    drawn = page.locator("main img").first
    drawn.wait_for()
    assert drawn.get_attribute("src").startswith("data:image/png;base64,")
    assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
    assert first["why"] in page.inner_text("main")


def test_it_answers_as_the_server_does(page, results):
    """Every split and the earlier epochs: the page of the evaluation; of the last ones every sample."""
    result = results["v2"]
    last = {one.dataset: one.index for one in passes_of(result)}
    for one in passes_of(result):
        units = held(one)
        place = {"split": one.dataset, "epoch": str(one.n_epoch)}
        if last[one.dataset] != one.index:
            wanted = {**evaluation(units), "first": {}}
            assert list(differences(plainly(wanted), ask(page, "evaluation", **place))) == []
            continue
        for condition in FILTERS:
            query = {"filter": condition, **place}
            wanted = plainly(evaluation(units, condition))
            assert list(differences(wanted, ask(page, "evaluation", **query), condition)) == []
            wanted = plainly(matrices.confusion(units, condition))
            assert list(differences(wanted, ask(page, "confusion", **query), condition)) == []
            for sort in SORTS:
                rows = units.chosen(condition, sort)
                found = ask(page, "samples", sort=sort, limit=500, **query)
                assert found["total"] == len(rows)
                assert [card["row"] for card in found["rows"]] == rows[:500].tolist(), (condition, sort)
            found = ask(page, "samples", offset=40, limit=30, **query)["rows"]
            wanted = plainly(cards(units, units.chosen(condition)[40:70]))
            assert list(differences(wanted, found, condition)) == []


def test_facets_count_what_their_filters_give(page, results):
    units = held(passes_of(results["v2"])[-1])
    place = {"split": units.dataset, "epoch": str(units.n_epoch)}
    assert ask(page, "facets", **place)["fields"] == plainly(facets.facets(units)["fields"])
    for field in ask(page, "facets", filter="gt = 1", **place)["fields"]:
        pairs = (
            [(one["filter"], one["n"]) for one in field["values"]]
            if field["kind"] == "values"
            else zip(field["filters"], field["n"], strict=True)
        )
        for condition, n in list(pairs)[:4]:
            assert n == len(units.chosen(f"gt = 1 and ({condition})")), condition


def test_the_worst_have_their_evidence_and_the_others_say_where_it_is(page, results):
    units = held(passes_of(results["v2"])[-1])
    siblings = {one.dataset: one for one in passes_of(results["v2"]) if one.dataset != units.dataset}
    row = int(units.chosen()[0])
    found = ask(page, "sample", row=row, split=units.dataset)
    wanted = plainly(detail.sample(units, row, Told(), list(siblings.values())))
    for name in ("probabilities", "neighbours", "history", "text", "action", "findings"):
        assert list(differences(wanted[name], found[name], name)) == []
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


def test_the_same_result_gives_the_same_bytes(results, tmp_path):
    need_pages()
    one, two = (write_report(results["latest"], tmp_path / f"{name}.html") for name in "ab")
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.bytes == one.path.stat().st_size


def test_without_pages_one_sentence_says_what_to_do(results, tmp_path):
    with pytest.raises(NoPagesError, match="make app"):
        OneFile(results["latest"]).page(static=tmp_path)
