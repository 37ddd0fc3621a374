"""The page of two 2D detections: it says what the comparison says, and draws both sides of what changed."""

import itertools
import shutil

import box_store
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import simulated_detector as simulation

from ml_debugger.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store
from mld_core.report import write_comparison
from mld_core.report.comparison import comparison_content
from mld_core.report.gallery import FIELDS
from mld_core.views.units import passes_of

OPTIONS = {"repeats": 1, "progress": False, "threads": 2}
WIDTH, HEIGHT = 1000, 800
KINDS = ("regressed", "fixed")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two versions on the same images of two splits, and a split only the second has."""
    patch = pytest.MonkeyPatch()
    store = Store(tmp_path_factory.mktemp("boxes") / "store")
    box_store.with_extras(patch)
    made = []
    for number, (version, skill) in enumerate((("v1", 0.8), ("v2", 1.1))):
        run = RunKey("boxes", version)
        store.ensure_run(run, {"task": "detection", "n_class": 6, "class_names": box_store.NAMES})
        scene = simulation.simulate(60, seed=4, faults=box_store.FAULTS, jitter=number, skill=skill)
        simulation.write(store, run, "val", scene, n_epoch=0)
        simulation.write(store, run, "test", simulation.simulate(8, seed=9), n_epoch=0)
        if number:
            simulation.write(store, run, "extra", simulation.simulate(6, seed=2), n_epoch=0)
        evaluator = Evaluator("boxes", version, store=store.root)
        made.append(evaluator.request_evaluation(f"r-{version}", None, options=OPTIONS))
    patch.undo()
    return made


@pytest.fixture(scope="module")
def compared(pair):
    return pair[0].compare(pair[1])


def of_split(frame, name="val"):
    return frame[frame["dataset"] == name]


@pytest.fixture(scope="module")
def content(pair):
    return comparison_content(*pair)


@pytest.fixture(scope="module")
def val(content):
    return next(one for one in content["splits"] if one["dataset"] == "val")


def truths_of(result):
    """The units of val that stand for a truth, by image and number."""
    path = next(one.path for one in passes_of(result) if one.dataset == "val")
    frame = pq.read_table(path).to_pandas()
    return frame[frame["truth_id"].notna()].set_index(["input_id", "gt_idx"])


# --- the values ---------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_comparison(pair, compared, content, val):
    assert (content["kind"], content["task"]) == ("comparison", "detection")
    assert {one["dataset"] for one in content["splits"]} == {"val", "test"}
    counts = of_split(compared.units).iloc[0]
    for name in ("n_paired", "n_fixed", "n_regressed", "n_only_a", "n_only_b"):
        assert val["counts"][name] == counts[name], name
    assert val["counts"]["mcnemar_p"] == pytest.approx(counts["mcnemar_p"], rel=1e-5)
    moved = of_split(compared.metrics).set_index("metric")
    shown = {one["metric"]: one for one in val["metrics"]}
    assert {"auprc", "map_50", "precision", "recall"} <= set(shown)
    for name, row in shown.items():
        assert row["delta"] == pytest.approx(moved.loc[name, "delta"], rel=1e-4, abs=1e-6), name
    assert shown["recall"]["delta_lo"] == pytest.approx(moved.loc["recall", "delta_lo"], rel=1e-4)
    assert shown["auprc"]["delta_lo"] is None
    assert sum(map(sum, val["transitions"])) == of_split(compared.transitions)["counts"].sum() > 0
    for side, result in enumerate(pair):
        row = of_split(result.metrics_summary(full=True)).iloc[0]
        assert val["boxes"]["false"][side] == row["n_fp"]
        assert [one["dap"][side] for one in val["costs"]] == [
            pytest.approx(row[f"dap_{one['name']}"], rel=1e-5) for one in val["costs"]
        ]
        assert sum(val["categories"][side].values()) == pytest.approx(1, abs=1e-5)
    diagnosed = of_split(compared.codes).set_index("code")
    assert {one["code"]: (one["a"], one["b"]) for one in val["codes"]} == {
        code: (row["counts_a"], row["counts_b"]) for code, row in diagnosed.iterrows()
    }


def test_classes_add_up_and_carry_the_exact_test(pair, compared, val):
    rows = {one["name"]: one for one in val["classes"]}
    assert sum(one["fixed"] for one in rows.values()) == val["counts"]["n_fixed"]
    assert sum(one["regressed"] for one in rows.values()) == val["counts"]["n_regressed"]
    assert sum(one["n"] for one in rows.values()) == val["counts"]["n_paired"]
    tested = of_split(compared.classes).set_index("class")
    summaries = [of_split(one.class_summary()).set_index("class") for one in pair]
    for number, name in enumerate(box_store.NAMES):
        row = rows[name]
        assert row["p"] == pytest.approx(tested.loc[number, "p_value"], rel=1e-5)
        assert row["sig"] == tested.loc[number, "bh_sig"]
        assert row["delta"] == pytest.approx(-tested.loc[number, "delta"], abs=1e-5)
        assert row["delta"] == pytest.approx((row["fixed"] - row["regressed"]) / row["n"], abs=1e-5)
        assert row["ap"] == [pytest.approx(one.loc[number, "auprc"], rel=1e-5) for one in summaries]


def test_error_codes_are_counted_on_both_sides(pair, val):
    for side, result in zip("ab", pair, strict=True):
        path = next(one.path for one in passes_of(result) if one.dataset == "val")
        frame = pq.read_table(path).to_pandas()
        counts = frame[frame["is_error"] == True]["error_code"].value_counts()  # noqa: E712
        assert len(val["errors"]) == 20
        for row in val["errors"]:
            assert row[side] == counts.get(row["code"], 0), row["code"]


def test_every_shown_truth_changed_as_it_says(pair, compared, val):
    sides = [truths_of(one) for one in pair]
    for kind in KINDS:
        split = val[kind]
        own = of_split(getattr(compared, kind))
        assert split["n"] == len(own)
        assert split["images"] == own["input_id"].nunique()
        assert len(split["cards"]) == min(24, split["images"])
        sizes = [len(one["truths"]) for one in split["cards"]]
        assert sizes == sorted(sizes, reverse=True)
        if len(split["cards"]) == split["images"]:
            assert sum(sizes) == split["n"]
        for entry in split["cards"]:
            cards = [val["cards"][entry[side]] for side in "ab"]
            assert cards[0]["id"] == cards[1]["id"]
            for numbers in entry["truths"]:
                boxes = [drawn(card, number) for card, number in zip(cards, numbers, strict=True)]
                wrong = [box["kind"] in {1, 3} for box in boxes]
                assert wrong == ([True, False] if kind == "fixed" else [False, True])
                for table, box, number in zip(sides, boxes, numbers, strict=True):
                    unit = table.loc[(cards[0]["id"], number)]
                    assert bool(unit["is_error"]) == (box["kind"] in {1, 3})
                    assert pd.isna(unit["confidence"]) == (box["score"] is None)
                    assert box["truth"] == unit["gt"]


def drawn(card, number):
    """The box of a card that stands for a truth."""
    made = [dict(zip(FIELDS, box, strict=True)) for box in card["boxes"]]
    return next(box for box in made if box["t"] is not None and box["gt_idx"] == number)


def test_pictures_are_held_once(pair, val):
    entries = [entry for kind in KINDS for entry in val[kind]["cards"]]
    pictures = [(val["cards"][one["a"]]["picture"], val["cards"][one["b"]]["picture"]) for one in entries]
    kept = [one for one in pictures if one[1] is not None]
    assert 0 < len(kept) < len(pictures)  # only the first images have a thumbnail
    assert all(before["data"] is None for before, _ in kept)
    assert all(val["cards"][before["as"]]["picture"] is after for before, after in kept)
    asked = []

    def image_of(dataset, input_id):
        asked.append((dataset, input_id))
        return np.full((HEIGHT, WIDTH), 90, np.uint8)

    made = comparison_content(*pair, image_of)
    assert len(asked) == len(set(asked))
    assert all(card["picture"] for split in made["splits"] for card in split["cards"].values())
    assert all((card["width"], card["height"]) == (WIDTH, HEIGHT) for card in val["cards"].values())


def test_nothing_changed_and_splits_of_one_side(pair, content):
    for split in comparison_content(pair[0], pair[0])["splits"]:
        assert split["counts"]["mcnemar_p"] is None
        assert [split[kind] for kind in KINDS] == [{"n": 0, "images": 0, "cards": []}] * 2
        assert split["cards"] == {}
    said = " ".join(content["left_out"])
    assert "Splits that only one of the results has are not compared: extra" in said
    assert "no images are at hand" not in said


def test_without_records_boxes_are_drawn_on_empty_canvases_of_one_size(pair, tmp_path):
    root = shutil.copytree(pair[0].store.root, tmp_path / "store")
    for run in (root / "boxes").iterdir():
        for split in ("val", "test", "extra"):
            shutil.rmtree(run / split, ignore_errors=True)
    bare = [Evaluator("boxes", one.version_name, store=root).get_result(one.result_name) for one in pair]
    assert all(one.records is None for result in bare for one in passes_of(result))
    made = comparison_content(*bare)
    assert "boxes are drawn on empty canvases" in " ".join(made["left_out"])
    for split in made["splits"]:
        for entry in (entry for kind in KINDS for entry in split[kind]["cards"]):
            before, after = (split["cards"][entry[side]] for side in "ab")
            assert before["picture"] is None is after["picture"]
            assert (before["width"], before["height"]) == (after["width"], after["height"])


def test_images_and_boxes_stay_within_the_budget(pair, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    monkeypatch.setattr("mld_core.report.comparison_boxes.IMAGE_BYTES", 600_000)
    monkeypatch.setattr("mld_core.report.gallery.BOX_BYTES", 40_000)
    made = comparison_content(*pair, lambda *_: noise)
    split = next(one for one in made["splits"] if one["dataset"] == "val")
    data = [card["picture"]["data"] or "" for card in split["cards"].values() if card["picture"]]
    assert 0 < sum(map(len, data)) <= 300_000
    assert 0 < len(split["regressed"]["cards"]) < 24
    assert all({one["a"], one["b"]} <= set(split["cards"]) for kind in KINDS for one in split[kind]["cards"])
    said = " ".join(made["left_out"])
    assert "images were left out to keep the file small" in said
    assert "Comparison.fixed has all" in said


# --- in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_file(pair, tmp_path_factory):
    return write_comparison(*pair, tmp_path_factory.mktemp("page") / "boxes.html")


@pytest.mark.processes
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_opens_offline_without_a_complaint(page_file, opened, width, scheme):
    assert page_file.bytes < 15_000_000
    one = opened(page_file.path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = one.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#plot-costs svg").first.wait_for(state="attached")
    page.locator("#plot-transitions svg").first.wait_for(state="attached")
    for name in ("summary", "metrics", "categories", "classes", "costs", "codes", "errors", *KINDS):
        assert page.locator(f"[data-part='compare-{name}']").inner_text().strip(), name
    assert (one.problems, one.outside()) == ([], [])


@pytest.mark.processes
def test_shows_both_sides_of_what_changed(val, page_file, opened):
    one = opened(page_file.path)
    page = one.page
    summary = page.locator("[data-part='compare-summary']").inner_text()
    assert f"{val['counts']['n_paired']} true boxes paired by image and number" in summary
    assert "Missed before, found now." in summary
    part = page.locator("[data-part='compare-regressed']")
    entry = val["regressed"]["cards"][0]
    card = part.locator(".pair-card").first
    assert card.locator("h3").inner_text() == val["cards"][entry["b"]]["id"]
    assert card.locator("svg.boxes").count() == 2
    assert card.locator(".pair-list > li").count() == len(entry["truths"])
    said = card.locator(".pair-list dd").all_inner_texts()
    assert said[0].startswith("✓ found at")
    assert said[1].startswith("✕")
    # The changed box stands out on both sides, at its place, and carries the number of the list.
    for side in range(2):
        box = drawn(val["cards"][entry["ab"[side]]], entry["truths"][0][side])
        drawing = card.locator("svg.boxes").nth(side)
        at = drawing.locator("g:not(.faded) .line").evaluate_all(
            "all => all.map(one => ['x', 'y'].map(name => Number(one.getAttribute(name))))"
        )
        assert any(place == pytest.approx(box["t"][:2], abs=0.11) for place in at)
        assert any(text.startswith("1: ") for text in drawing.locator("text").all_text_contents())
    # Where both sides have one picture, the one before shows it, too.
    images = page.locator(".pair-card image").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    assert len(images) % 2 == 0
    assert all(href.startswith("data:image/png;base64,iVBOR") for href in images)
    assert "onerror" in page.locator("main").inner_text()
    assert page.locator("main img").count() == 0
    assert one.problems == []


@pytest.mark.processes
def test_works_with_the_keyboard_and_a_screen_reader(val, page_file, opened):
    one = opened(page_file.path)
    page = one.page
    card = page.locator("#regressed .pair-card").first
    before = card.locator(".enlarge").first
    before.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    name = val["cards"][val["regressed"]["cards"][0]["a"]]["id"]
    assert dialog.get_by_role("heading").inner_text() == f"{name}, before"
    page.keyboard.press("ArrowRight")
    assert dialog.get_by_role("heading").inner_text() == f"{name}, after"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    more = page.locator("#fixed button", has_text="more images")
    shown = page.locator("#fixed .pair-card")
    assert shown.count() == 8
    more.press("Enter")
    assert shown.count() == len(val["fixed"]["cards"])
    assert page.evaluate("document.activeElement.closest('.pair-card') !== null")
    page.select_option("#split", label="test")
    assert page.locator("#summary .lead").inner_text().startswith("test: ")
    page.select_option("#split", label="val")
    assert shown.count() == 8
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(one => Number(one.tagName[1]))")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    nameless = page.eval_on_selector_all(
        "button, select, summary, a[href]",
        """all => all.filter(one => one.tabIndex < 0 || !(one.textContent.trim() || one.labels?.length
             || one.getAttribute('aria-label'))).map(one => one.outerHTML.slice(0, 120))""",
    )
    assert nameless == []
    assert one.problems == []


@pytest.mark.processes
def test_a_result_beside_itself_says_that_nothing_changed(pair, tmp_path, opened):
    one = opened(write_comparison(pair[0], pair[0], tmp_path / "same.html").path)
    assert "No regressed boxes." in one.page.locator("#regressed").inner_text()
    assert "No fixed boxes." in one.page.locator("#fixed").inner_text()
    assert "Nothing changed sides." in one.page.locator("#summary").inner_text()
    assert "changed between found and missed" in one.page.locator("#summary").inner_text()
    assert one.problems == []
