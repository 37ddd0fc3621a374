"""The page of a training in a browser: while it goes on, when it dies, several runs, an epoch opened and compared."""

import re
import time

import pytest
from app_building import need_pages
from app_pages import AXE, Opened, Served
from browser_parts import until
from server_parts import wait_for
from zygote import Process

from mld_core.records.format.layout import Store

pytestmark = pytest.mark.processes

CLASSES = {"page": "training", "model": "net <i>", "version": "v/1"}
SLIDER = "document.querySelector('[aria-label=\"Accuracy: epoch\"]')"


@pytest.fixture(scope="module")
def served(browser, shown_store, tmp_path_factory):
    need_pages()
    running = Served(browser, shown_store, tmp_path_factory.mktemp("served") / "ui.log")
    yield running
    running.stop()


@pytest.fixture
def opened(served):
    pages = []

    def start(query, **options):
        pages.append(Opened(served, query, **options))
        return pages[-1]

    yield start
    for one in pages:
        one.context.close()


def test_a_training_is_followed_without_a_reload_until_it_dies(browser, tmp_path):
    """A real training beside a real `mld ui`; what is sealed stands on the page within two seconds."""
    need_pages()
    process = Process("followed_script", tmp_path)
    wait_for(lambda: list(tmp_path.rglob("attempt.json")))
    served = Served(browser, Store(tmp_path / "store"), tmp_path / "ui.log")
    one = Opened(served, {"page": "training", "model": "followed", "version": "v1"})
    page = one.page
    try:
        page.get_by_role("heading", name="followed v1: training now: train, epoch 0").wait_for()
        page.get_by_role("heading", name="No pass is sealed yet").wait_for()
        page.evaluate("window.same = true")
        for epoch in range(2):
            (tmp_path / "epochs").write_text(str(epoch + 1))
            at = float(wait_for(lambda n=epoch: told(tmp_path / f"sealed-{n}")))
            until(page, f"{SLIDER}?.getAttribute('aria-valuetext')?.match(/epoch (\\d+)/)[1]", str(epoch))
            late = time.time() - at
            print(f"epoch {epoch}: drawn {late:.2f} s after it was sealed")
            assert late < 2
        assert page.evaluate("window.same") is True
        page.get_by_role("heading", name="training now: train, epoch 2").wait_for()
        process.kill()
        page.get_by_role("heading", name=re.compile("died in train, epoch 2")).wait_for(timeout=5000)
        assert one.problems == []
    finally:
        process.kill()
        process.wait()
        one.context.close()
        begun = time.monotonic()
        served.stop()
        assert time.monotonic() - begun < 10


def told(file):
    return file.read_text() if file.exists() else ""


def test_a_hidden_page_has_no_stream_and_one_in_sight_has_one(opened):
    one = opened(CLASSES)
    page, ended = one.page, []
    page.on("requestfailed", lambda asked: ended.append(asked.url))
    page.on("requestfinished", lambda asked: ended.append(asked.url))

    def streams():
        return sum("training/events" in url for url in one.requests)

    assert streams() == 1
    turn = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    turn += "document.dispatchEvent(new Event('visibilitychange'))"
    page.evaluate(turn % "true")
    wait_for(lambda: page.wait_for_timeout(20) or any("training/events" in url for url in ended))
    assert streams() == 1
    page.evaluate(turn % "false")
    wait_for(lambda: page.wait_for_timeout(20) or streams() == 2)
    page.get_by_role("link", name="Evaluation", exact=True).click()
    wait_for(lambda: page.wait_for_timeout(20) or sum("training/events" in url for url in ended) == 2)
    assert one.problems == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark"), (2560, "light")])
def test_the_page_is_whole_and_axe_finds_nothing_serious(opened, width, scheme):
    one = opened({**CLASSES, "at": 1}, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = one.page
    assert page.get_by_role("slider", name="Accuracy: epoch").is_visible()
    assert page.locator("[data-category].area").count() >= 6
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("[role=alert]").all_inner_texts() == []
    if AXE.exists():
        assert one.serious() == []
    assert one.problems == []
    assert one.outside() == []


def test_runs_are_laid_over_one_another_and_the_address_holds_it_all(opened):
    one = opened({"page": "training", "model": "boxes", "version": "v1"})
    page = one.page
    page.get_by_role("button", name="Add a run").click()
    page.get_by_label("Search a run to add").fill("lidar")
    page.get_by_role("button", name="lidar v1").click()
    page.get_by_role("button", name="Take lidar v1 out").wait_for()
    assert "with=lidar/v1" in page.url
    page.get_by_role("searchbox", name="Charts").fill("map")
    until(page, "[...document.querySelectorAll('figure h3')].map(one => one.innerText).join()", "mAP")
    page.get_by_label("Smoothing").fill("0.5")
    page.get_by_label("Logarithmic axis").check()
    page.get_by_role("slider", name="mAP: epoch").press("Home")
    page.get_by_role("heading", name="Epoch 0", exact=True).wait_for()
    said, address = page.locator("figure").inner_text(), page.url
    assert "boxes v1 val" in said
    assert "lidar v1 val" in said
    for part in ("metrics=map", "smooth=0.5", "log=1", "at=0"):
        assert part in address
    page.reload()
    one.drawn()
    until(page, "document.querySelector('figure')?.innerText", said)
    assert page.url == address
    page.get_by_role("button", name="Take boxes v1 out").click()
    page.get_by_role("button", name="Take lidar v1 out").wait_for(state="detached")
    assert "model=lidar" in page.url
    page.go_back()
    page.get_by_role("button", name="Take boxes v1 out").wait_for()
    assert one.problems == []


def test_an_epoch_is_opened_and_compared_by_a_click(opened):
    one = opened(CLASSES)
    page = one.page
    plot = page.get_by_role("slider", name="Accuracy: epoch")
    box = plot.bounding_box()
    plot.click(position={"x": box["width"] - 14, "y": 60})
    page.get_by_role("heading", name="Epoch 1", exact=True).wait_for()
    page.get_by_label("Compare net <i> v/1 val with").select_option(label="net <i> v/1, epoch 0")
    page.wait_for_url(re.compile("page=compare"))
    one.drawn()
    heads = page.locator("main").inner_text()
    assert "epoch 0" in heads
    assert "epoch 1" in heads
    page.go_back()
    page.get_by_role("row", name="v/1 val Open").get_by_role("link", name="Open in Evaluation").click()
    page.wait_for_url(re.compile("page=evaluation"))
    one.drawn()
    assert page.get_by_label("Epoch", exact=True).input_value() == "1"
    assert page.get_by_label("Split", exact=True).input_value() == "val"
    assert one.problems == []


def test_a_run_without_results_begins_with_its_curves_and_is_evaluated_there(opened):
    one = opened({"page": "home"})
    page = one.page
    page.locator("tr", has_text="fresh").get_by_role("link", name="recorded").click()
    page.get_by_role("slider", name="Accuracy: epoch").press("Home")
    page.get_by_role("button", name="Evaluate this epoch").wait_for()
    assert "from the records" in page.get_by_role("row", name=re.compile("fresh")).inner_text()
    assert one.problems == []
