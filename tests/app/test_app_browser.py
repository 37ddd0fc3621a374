"""The pages in a browser, on results of all three tasks, as `mld ui` serves them."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from app_building import need_pages
from app_pages import AXE, Opened, Served
from browser_parts import settled, until

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.verdict import Verdict
from mld_core.records.store.verdicts import Verdicts

pytestmark = pytest.mark.processes

CARD = "[role=option]"
RUNS = {"classes": ("net <i>", "v/1"), "boxes": ("boxes", "v1"), "roads": ("lidar", "v1")}
PAGES = ("evaluation", "samples", "map", "review")
BUILT_OF_NAMES = "main i:text-is('walker'), main b:text-is('cat'), main script"
"""What the page would hold if names and ids of the records were taken for HTML."""


@pytest.fixture(scope="module")
def served(browser, shown_store, tmp_path_factory):
    need_pages()
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(shown_store.root, folder / "store")
    for spare in ("spare1", "spare2"):  # a folder that was copied goes by what it is called now
        shutil.copytree(folder / "store" / "fresh" / "v1", folder / "store" / "fresh" / spare)
    running = Served(browser, Store(folder / "store"), folder / "ui.log")
    yield running
    running.stop()


@pytest.fixture
def opened(served):
    pages = []

    def start(query=None, **options):
        pages.append(Opened(served, query or {}, **options))
        return pages[-1]

    yield start
    for one in pages:
        one.context.close()


def of(task, page="evaluation", **more):
    model, version = RUNS[task]
    return {"page": page, "model": model, "version": version, **more}


def selected(page):
    return page.locator("ul[aria-label=Selected] .chip").all_inner_texts()


def current(page):
    """The name of the card at the cursor."""
    return page.locator(f"{CARD}.here .unseen").inner_text()


@pytest.mark.parametrize(
    ("task", "width", "scheme"),
    [
        ("classes", 1280, "light"),
        ("classes", 400, "dark"),
        ("boxes", 400, "light"),
        ("roads", 1280, "dark"),
        *(
            pytest.param(task, width, scheme, marks=pytest.mark.heavy)
            for task, width, scheme in [
                *(("classes", 1280, "dark"), ("classes", 400, "light"), ("boxes", 1280, "light")),
                *(("boxes", 1280, "dark"), ("boxes", 400, "dark"), ("roads", 1280, "light")),
                *(("roads", 400, "light"), ("roads", 400, "dark"), ("classes", 2560, "light")),
            ]
        ),
    ],
)
def test_every_page_is_whole_and_asks_nobody_else(opened, task, width, scheme):
    """Nothing overflows, nothing is fetched elsewhere, axe finds nothing serious, and names are only text."""
    one = opened(of(task), viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = one.page
    for query in [*(of(task, name) for name in PAGES), of(task, "samples", sel=1), {"page": "home"}]:
        one.go(query)
        assert page.locator("h1").first.inner_text() != ""
        assert page.locator("[role=alert]").all_inner_texts() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width, query
        assert "broken" not in page.title()
        assert page.locator(BUILT_OF_NAMES).count() == 0
        if AXE.exists() and (width > 400 or task == "boxes"):  # the same elements as at the other width
            assert one.serious() == [], query
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(value) for value in re.findall(r"\d+", background)[:3]) / 3
    assert (brightness > 200) == (scheme == "light")
    assert one.problems == []
    assert one.outside() == []


def test_the_first_minute(opened):
    """The sentence, twelve pictures, the worst at the cursor, a verdict with one key and the way back."""
    one = opened(of("classes"))
    page = one.page
    assert "wrong" in page.locator("h1").inner_text()
    page.wait_for_selector(f"{CARD} img")
    boxes = [card.bounding_box() for card in page.locator(CARD).all()]
    bottom = page.get_by_role("group", name="Verdict").bounding_box()["y"]
    shown = [box for box in boxes if box["y"] + 0.6 * box["height"] < bottom]
    assert len(shown) >= 12
    worst = current(page)
    page.keyboard.press("1")
    page.wait_for_selector(".told .button")
    assert page.locator(".mark.relabel").count() == 1
    assert current(page) != worst
    assert page.get_by_role("link", name="Export").is_visible()
    page.keyboard.press("z")
    page.wait_for_selector(".mark", state="detached")
    assert one.problems == []


def test_everything_goes_by_keyboard(opened):
    one = opened(of("classes", "samples"))
    page = one.page
    first = current(page)
    page.keyboard.press("j")
    second = current(page)
    assert second != first
    page.keyboard.press("k")
    assert current(page) == first
    page.keyboard.press("Enter")
    page.get_by_role("complementary", name="Sample").wait_for()
    page.keyboard.press("j")
    until(page, "document.querySelector('.here .unseen').innerText", second)
    page.keyboard.press("Escape")
    page.get_by_role("complementary", name="Sample").wait_for(state="detached")
    page.keyboard.press("x")
    assert "1 sample selected" in page.locator(".dock footer").inner_text()
    page.keyboard.press("x")
    page.keyboard.press("?")
    assert page.get_by_role("complementary", name="Keys and words").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("error_proba > 0.5")
    page.keyboard.press("Enter")
    page.wait_for_selector(".chip")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".chip", state="detached")
    nameless = page.eval_on_selector_all(
        "button, select, input, summary, a[href]",
        """all => all.filter(one => !(one.textContent.trim() || one.labels?.length
             || one.getAttribute('aria-label'))).map(one => one.outerHTML.slice(0, 120))""",
    )
    assert nameless == []
    assert one.problems == []


def test_one_selection_filters_every_panel_and_survives_a_reload(opened):
    one = opened(of("classes"))
    page = one.page
    cell = page.locator("[aria-label='Confusion matrix'] button.wrong").first
    told = cell.get_attribute("title")
    count = int(re.search(r": ([\d,]+)", told)[1].replace(",", ""))
    cell.click()
    page.wait_for_selector(".chip")
    one.drawn()
    assert len(selected(page)) == 2
    assert page.get_by_text(f"Selected: {count} of").is_visible()
    assert page.locator(CARD).first.get_attribute("aria-setsize") == str(count)
    page.locator(CARD).last.click()
    page.wait_for_url(re.compile("sel="))
    one.drawn()
    chips, here, address = selected(page), current(page), page.url
    page.reload()
    one.drawn()
    until(page, "document.querySelector('.here .unseen')?.innerText", here)
    assert selected(page) == chips
    assert page.url == address
    assert page.get_by_role("complementary", name="Sample").is_visible()
    page.locator(".chip button").first.click()
    until(page, "document.querySelectorAll('.chip').length", 1)
    page.go_back()
    until(page, "document.querySelectorAll('.chip').length", 2)
    assert one.problems == []


def test_a_million_rows_are_a_scroll_away_and_little_memory(opened):
    """What the page does with a million rows; the server's own pages of a million have a benchmark."""
    million = 1_000_000
    one = opened(of("classes", "samples"))
    page = one.page

    def stretched(route):
        """The true answer's first rows, as if there were a million of them."""
        query = dict(parse_qsl(urlsplit(route.request.url).query))
        offset, limit = int(query["offset"]), int(query["limit"])
        answer = route.fetch(url=route.request.url.replace(f"offset={offset}", "offset=0"))
        body = answer.json()
        rows = [
            {**body["rows"][k], "row": offset + k, "id": f"row {offset + k}"}
            for k in range(min(limit, million - offset))
        ]
        route.fulfill(json={**body, "total": million, "of": million, "offset": offset, "rows": rows})

    page.route("**/api/samples?*", stretched)
    page.route("**/api/picture?*", lambda route: route.abort())
    one.go(of("classes", "samples"))
    page.get_by_role("listbox").focus()
    page.keyboard.press("End")
    page.wait_for_selector(f"{CARD}.here .unseen:has-text('row 999999:')")
    page.keyboard.press("Home")
    page.wait_for_selector(f"{CARD}.here .unseen:has-text('row 0:')")
    for step in range(1, 6):
        page.get_by_role("listbox").evaluate("(box, at) => box.scrollTop = at * box.scrollHeight / 6", step)
        settled(page)
    page.wait_for_selector(f"{CARD} .card")
    assert page.locator(CARD).count() < 200
    session = one.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    heap = session.send("Runtime.getHeapUsage")["usedSize"]
    print(f"heap at a million rows: {heap / 1e6:.1f} MB")
    assert heap < 60_000_000


def test_a_review_becomes_a_file_of_corrected_labels(opened, served):
    """From a verdict to relabel.json; two people who differ are shown, and settled by one more word."""
    one = opened(of("classes", filter="diagnosis has 'C01'", sort="label_quality"))
    page = one.page
    page.keyboard.press("1")
    page.wait_for_selector(".mark.relabel")
    page.keyboard.press("2")
    page.wait_for_selector(".mark.ok")
    written = Verdicts(served.store, RunKey(*RUNS["classes"]))
    wrong = next(one for one in written.read()[0] if one.kind == "relabel")
    page.get_by_role("link", name="Export").click()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="relabel.json").click()
    exported = json.loads(Path(waiting.value.path()).read_text("utf-8"))
    assert [(row["input_id"], row["label"]) for row in exported["labels"]] == [(wrong.input_id, wrong.label)]
    assert exported["labels"][0]["authors"] == ["ann"]
    page.get_by_role("button", name="Conflicts").click()
    page.get_by_text("None of these.").wait_for()
    disagree(written, wrong)
    page.reload()
    page.get_by_role("button", name=re.compile("^Agree with bob")).click()
    page.get_by_text("None of these.").wait_for()
    assert one.problems == []


def disagree(written, wrong):
    """Another person says that the label is right."""
    written.append([Verdict("ok", wrong.dataset_type, wrong.input_id, given=wrong.given, author="bob")])


def test_several_runs_are_tagged_put_away_and_deleted(opened, served):
    """What goes is named before it goes; what is not chosen stays."""
    one = opened({"page": "home"})
    page = one.page
    there = len(served.store.runs())
    choice = page.get_by_label(re.compile("Choose fresh spare"))
    for box in choice.all():
        box.check()
    bar = page.get_by_label("Chosen runs")
    assert "2 runs chosen" in bar.inner_text()
    bar.get_by_label("Tag").fill("old")
    bar.get_by_role("button", name="Tag", exact=True).click()
    page.locator(".tag", has_text="old").nth(1).wait_for()
    bar.get_by_role("button", name="Put away").click()
    choice.first.wait_for(state="detached")
    page.get_by_role("button", name="2 put away").click()
    one.drawn()
    for box in choice.all():
        box.check()
    bar.get_by_role("button", name="Delete").click()
    asked = page.get_by_role("alertdialog")
    said = asked.inner_text()
    assert "fresh spare1" in said
    assert "fresh spare2" in said
    assert "100 rows" in said
    assert len(served.store.runs()) == there
    asked.get_by_role("button", name="Keep them").click()
    asked.wait_for(state="detached")
    bar.get_by_role("button", name="Delete").click()
    asked.get_by_role("button", name="Delete these 2 runs").click()
    page.get_by_text("Nothing is put away").wait_for()
    assert len(served.store.runs()) == there - 2
    assert one.problems == []


def test_a_run_is_evaluated_from_its_page(opened, served):
    """Cancelled once, then done: the page becomes that of its result; the list of runs has the button, too."""
    folder = served.store.root / "fresh" / "pressed"
    shutil.copytree(served.store.root / "fresh" / "v1", folder)
    one = opened({"page": "home", "search": "pressed"})
    page = one.page
    assert page.get_by_role("button", name="Evaluate", exact=True).count() == 1
    one.go({"page": "evaluation", "model": "fresh", "version": "pressed"})
    button = page.get_by_role("button", name="Evaluate", exact=True)
    button.click()
    page.get_by_role("progressbar", name="Evaluation of fresh pressed").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("cancelled", exact=True).wait_for()
    button.click()
    page.get_by_text(re.compile(r"· \d+ s")).wait_for()
    page.get_by_role("button", name="Evaluate again").wait_for(timeout=120_000)
    one.drawn()
    assert "mld evaluate" not in page.locator("main").inner_text()
    assert one.problems == []
    shutil.rmtree(folder)


def test_what_is_not_there_says_what_to_do(opened, served):
    one = opened({"page": "evaluation", "model": "fresh", "version": "v1"})
    page = one.page
    assert "mld evaluate fresh v1" in page.locator("main pre").inner_text()
    one.go(of("classes", "samples", filter="gt = 1 and gt = 2"))
    page.get_by_text("No sample matches").wait_for()
    one.problems.clear()
    page.goto(f"{served.base}?{urlencode(of('classes', filter='confidnce > 0.5'))}")
    page.locator("[role=alert]", has_text="confidnce").first.wait_for()
    page.goto(f"{served.base}?{urlencode({'page': 'evaluation', 'model': 'nobody', 'version': 'v1'})}")
    page.locator("[role=alert]").first.wait_for()
    one.context.clear_cookies()
    page.goto(f"{served.base}?page=home")
    page.get_by_text("This session has ended").or_(page.get_by_text("mld ui")).first.wait_for()
