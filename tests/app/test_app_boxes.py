"""Boxes corrected in the pages: a flipped heading found, turned and exported; boxes pulled, typed, added, deleted."""

import io
import json
import shutil
import time
import zipfile
from urllib.parse import urlencode

import numpy as np
import pytest
from app_building import need_pages
from app_parts import opened, serving
from browser_parts import settled, until
from folders import ROOT

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.verdict import Subject
from mld_core.records.store.verdicts import Verdicts

AXE = ROOT / "mld_core" / "app" / "web" / "node_modules" / "axe-core" / "axe.min.js"
ROADS = {"model": "lidar", "version": "v1"}
IMAGES = {"model": "boxes", "version": "v1"}


@pytest.fixture(scope="module")
def store(shown_store, tmp_path_factory):
    """One of one's own to write into."""
    root = tmp_path_factory.mktemp("boxes") / "store"
    for name in ("boxes", "lidar"):
        shutil.copytree(shown_store.root / name, root / name)
    return Store(root)


@pytest.fixture(scope="module")
def ann(store):
    with opened(store) as client:
        yield client


def give(ann, place, **item):
    return ann.post("verdicts", {**place, "items": [item]})


@pytest.mark.parametrize("place", [ROADS, IMAGES], ids=["3D", "2D"])
def test_a_correction_is_written_as_recorded_shown_and_exported(ann, store, place):
    row = ann.get("samples", **place, filter="gt_idx is not null")["rows"][0]
    right = [value + 1 for value in row["truth_box"]]
    other = (row["truth"]["class"] + 1) % 3
    assert give(ann, place, row=row["row"], kind="moved", right=right, label=other).status_code == 200
    stands = Verdicts(store, RunKey(*place.values())).standing("val")[
        Subject("val", row["id"], row["gt_idx"])
    ]
    said = stands.verdict
    assert (said.kind, said.label, said.given) == ("moved", other, row["truth"]["class"])
    assert said.right == pytest.approx(right, abs=0.06)
    assert said.seen == pytest.approx(row["truth_box"], abs=0.06)
    shown = ann.get("sample", **place, row=row["row"])["sample"]["verdict"]
    assert shown["right"] == pytest.approx(right, abs=0.06)
    (listed,) = ann.ask("export", **place, format="relabel").json()["true_boxes"]
    assert (listed["truth"], listed["label"]) == (row["gt_idx"], other)
    assert ann.get("export/formats", **place)["labels"] == 1
    with opened(store, author="bob") as bob:
        assert give(bob, place, row=row["row"], kind="moved", right=row["truth_box"]).status_code == 200
        (one,) = ann.get("verdicts", **place, show="conflicts")["rows"]
        own = next(one for one in one["heard"] if one["mine"])
        assert give(bob, place, row=row["row"], kind="moved", agrees=own["id"]).status_code == 200
        assert ann.get("verdicts", **place, show="conflicts")["total"] == 0
        assert give(bob, place, row=row["row"], kind="moved", agrees="0" * 16).status_code == 404
        bob.post("verdicts/undo", {**place, "last": True})
    assert give(ann, place, row=row["row"], kind="nothing").status_code == 200
    drawn = give(ann, place, row=row["row"], kind="missing", drawn=right, label=other)
    assert drawn.status_code == 200
    (kept,) = ann.get("sample", **place, row=row["row"])["frame"]["drawn"]
    assert (kept["label"]["class"], kept["mine"]) == (other, True)
    assert kept["box"] == pytest.approx(right, abs=0.06)
    ids = [kept["id"]]
    assert ann.post("verdicts/undo", {**place, "ids": ids}).json()["undone"] == 1
    assert ann.get("sample", **place, row=row["row"])["frame"]["drawn"] == []
    for wrong in (
        {"right": right[:3]},
        {"right": None},
        {"right": right, "label": 99},
        {"right": [*right[:2], *right[:2], *[-value for value in right[4:]]]},
    ):
        refused = give(ann, place, **{"row": row["row"], "kind": "moved", **wrong})
        assert refused.status_code in (400, 422), wrong
    none = ann.get("samples", **place, filter="gt_idx is null")["rows"][0]
    assert give(ann, place, row=none["row"], kind="moved", right=right).status_code == 400


# -- in the browser -----------------------------------------------------------------------------------------------


@pytest.fixture
def page_at(browser, store):
    need_pages()
    with serving(store) as (base, token):
        contexts = []

        def start(query, width=1280, **options):
            contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
            page = contexts[-1].new_page()
            page.wrong = []
            page.on("console", lambda said: page.wrong.append(said.text))
            page.on("pageerror", lambda error: page.wrong.append(str(error)))
            page.goto(f"{base}/ui/?token={token}")
            page.goto(f"{base}/ui/?{urlencode(query)}")
            return page

        yield start
        for one in contexts:
            one.close()


def test_a_flipped_heading_is_found_turned_and_exported_in_under_a_minute(page_at, ann):
    """From the finding on the page of the evaluation to the file, by the keys and clicks of a person."""
    page = page_at({"page": "evaluation", **ROADS})
    page.get_by_role("button", name="Suspected flipped label").first.wait_for()
    n = ann.get("samples", **ROADS, filter="diagnosis has 'T22'", limit=1)["total"]
    begun = time.monotonic()
    page.get_by_role("button", name="Suspected flipped label").first.click()
    page.locator(f"[role=option][aria-setsize='{n}']").first.click()
    page.get_by_role("button", name="Flip heading").wait_for()
    page.keyboard.press("f")
    page.get_by_role("button", name="Save the box").click()
    page.get_by_text("box corrected").first.wait_for()
    page.get_by_role("link", name="Export").click()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="relabel.json").click()
    said = json.loads(waiting.value.path().read_text())["true_boxes"]
    with page.expect_download() as waiting:
        page.get_by_role("link", name="KITTI").click()
    took = time.monotonic() - begun
    print(f"a flipped heading found, turned and exported: {took:.1f} s")
    assert took < 60
    one = next(row for row in said if row["kind"] == "moved" and row["label"] is None)
    seen, right = np.array(one["seen"]), np.array(one["right"])
    np.testing.assert_allclose(right[:6], seen[:6], atol=0.002)
    assert np.cos(right[6] - seen[6]) == pytest.approx(-1, abs=1e-4)
    with zipfile.ZipFile(io.BytesIO(waiting.value.path().read_bytes())) as made:
        assert any(
            one["input_id"] in json.loads(made.read(name)).values()
            for name in made.namelist()
            if name.endswith("index.json")
        )
    assert page.wrong == []


def test_a_box_is_pulled_by_its_dots_typed_and_left(page_at, ann, store):
    rows = ann.get("samples", **IMAGES, filter="gt_idx is not null")["rows"]
    row = max(rows, key=lambda one: one["truth_box"][2] - one["truth_box"][0])
    page = page_at({"page": "samples", **IMAGES, "sel": row["row"]}, color_scheme="dark")
    grip = page.locator(".grips circle.se")
    grip.wait_for()
    settled(page)
    at = grip.bounding_box()
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 10, y - 6, steps=3)
    page.mouse.up()
    fields = page.locator(".numbers input")
    fields.nth(3).wait_for()
    pulled = [float(one.input_value()) for one in fields.all()]
    assert pulled[:2] == pytest.approx(row["truth_box"][:2], abs=0.06)
    assert pulled[2] < row["truth_box"][2]
    assert pulled[3] < row["truth_box"][3]
    fields.nth(0).fill(str(pulled[0] + 1))
    fields.nth(0).press("Tab")
    page.get_by_role("button", name="Leave it").click()
    until(page, "!document.querySelector('.numbers')")
    page.get_by_role("button", name="Correct the box").click()
    fields.nth(0).fill("1.5")
    fields.nth(0).press("Enter")
    page.get_by_text("box corrected").first.wait_for()
    stands = Verdicts(store, RunKey(*IMAGES.values())).standing("val")
    said = stands[Subject("val", row["id"], row["gt_idx"])].verdict
    assert said.right[0] == pytest.approx(1.5, abs=0.001)
    assert said.right[1:] == said.seen[1:]
    page.get_by_role("button", name="Add a box").click()
    page.locator(".numbers select").select_option(index=2)
    page.get_by_role("button", name="Save the new box").click()
    page.get_by_role("button", name="take back").click()
    page.get_by_role("button", name="take back").wait_for(state="detached")
    page.keyboard.press("z")
    until(page, "!document.querySelector('svg path.right')")
    if AXE.exists():
        page.get_by_role("button", name="Correct the box").click()
        page.evaluate(AXE.read_text("utf-8") + "; undefined")
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        assert [one["id"] for one in found if one["impact"] in {"serious", "critical"}] == []
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.wrong == []
