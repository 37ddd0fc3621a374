"""The page of a 2D detection: it says what the tables and records say, and boxes lie where they belong."""

import itertools
import re

import box_store
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import simulated_detector as simulation
from browser_parts import all_drawn

from ml_debugger.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store
from mld_core.report import write_report
from mld_core.report.content import report_content
from mld_core.report.gallery import FIELDS, SUSPECTS
from mld_core.views.detection_tables import code_words, parse_box_code
from mld_core.views.pictures import Canvas, _asked
from mld_core.views.units import passes_of

OPTIONS = {"repeats": 1, "progress": False, "threads": 2}
WIDTH, HEIGHT = 1000, 800


def _evaluated(root, version, epochs, frames, **extras):
    patch = pytest.MonkeyPatch()
    store, run = Store(root), RunKey("boxes", version)
    store.ensure_run(run, {"task": "detection", "n_class": 6, "class_names": box_store.NAMES})
    box_store.with_extras(patch, **extras)
    for epoch in range(epochs):
        scene = simulation.simulate(frames, seed=4, faults=box_store.FAULTS, jitter=epoch)
        simulation.write(store, run, "val", scene, n_epoch=epoch)
    patch.undo()
    return Evaluator("boxes", version, store=root).request_evaluation(f"r-{version}", None, options=OPTIONS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("boxes") / "store"


@pytest.fixture(scope="module")
def result(root):
    """Two epochs, label faults, hostile names, thumbnails of the first images."""
    return _evaluated(root, "v1", 2, box_store.FRAMES)


@pytest.fixture(scope="module")
def moved(root):
    """A run whose tensors were cut out of larger images."""
    return _evaluated(root, "v2", 1, 30, affine=True, thumbnails=False)


def image_of(dataset, input_id):
    """A frame with a corner of its own: the tensor's size, all bright left of 500 and above 400."""
    image = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    image[:400, :500] = 200
    return image


@pytest.fixture(scope="module")
def content(result):
    return report_content(result)


@pytest.fixture(scope="module")
def detail(content):
    return content["details"]["1"]


@pytest.fixture(scope="module")
def units(result):
    return pq.read_table(passes_of(result)[1].path).to_pandas()


def named(card):
    return [dict(zip(FIELDS, box, strict=True)) for box in card["boxes"]]


# --- the values ---------------------------------------------------------------------------------------------


def test_metrics_categories_and_costs_are_those_of_the_tables(result, content):
    table = result.metrics_summary(full=True)
    assert content["task"] == "detection"
    for place, row in enumerate(table.to_dict("records")):
        shown = content["metrics"][place]
        for name in ("auprc", "map_50", "precision", "recall", "n_tp", "n_fp", "n_fn", "error_proba_auroc"):
            assert shown[name] == pytest.approx(row[name], rel=1e-5), name
        costs = {one["name"]: one["dap"] for one in content["details"][str(place)]["tide"]}
        assert costs == {name: pytest.approx(row[f"dap_{name}"], rel=1e-5) for name in costs}
        sizes = {one["name"]: one["ap"] for one in content["details"][str(place)]["sizes"]}
        assert sizes == {name: pytest.approx(row[f"map_{name}"], rel=1e-5) for name in sizes}
        assert sum(content["categories"][place]["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert content["passes"][place]["units"] == row["n_pred"]
    titles = {one["name"]: one["title"] for one in content["metric_texts"]}
    assert titles["auprc"] == "mAP"
    assert "nds" not in titles


def test_codes_and_diagnoses_are_counted_right(detail, units):
    wrong = units[units["is_error"] == True]  # noqa: E712  the column holds None
    assert {row["code"]: row["n"] for row in detail["codes"]} == wrong["error_code"].value_counts().to_dict()
    assert sum(row["share"] for row in detail["codes"]) == pytest.approx(1, abs=1e-4)
    assert all(row["action"] and row["event"] for row in detail["codes"])
    counts = units["diagnosis"].explode().dropna().value_counts().to_dict()
    assert {row["code"]: row["n"] for row in detail["diagnoses"]} == counts
    assert 1 <= len(detail["steps"]) <= 5


def test_codes_in_words():
    assert parse_box_code("DET:SP*:CLS3->5") == ("SP", True, 3, 5)
    words = code_words("DET:D:CLS1->1", ["cat", "dog"])
    assert (words["truth"], words["said"], words["event"]) == ("dog", "dog", "duplicate")
    assert code_words("no_prediction", None)["said"] == "nothing"
    with pytest.raises(ValueError, match="CLS3->5"):
        parse_box_code("CLS3->5")


def test_confusion_has_the_background(result, detail):
    matrix = detail["confusion"]
    assert matrix["rows"][-1] == "background"
    assert matrix["columns"][-1] == "not found"
    table = result.confusion("val").query("n_epoch == 1")
    for row in table.to_dict("records"):
        truth = -1 if pd.isna(row["gt"]) else int(row["gt"])
        said = -1 if pd.isna(row["prediction"]) else int(row["prediction"])
        assert matrix["counts"][truth][said] == row["counts"]
    assert np.sum(matrix["counts"]) == table["counts"].sum()
    assert np.nansum(np.array(matrix["share"], float), axis=1) == pytest.approx(1, abs=2e-3)


def test_curves_have_the_area_of_the_metrics(result, detail):
    row = result.metrics_summary(full=True).iloc[1]
    curves = detail["curves"]
    assert curves["ious"] == [0.5, 0.75]
    assert len(curves["recall"]) == 101
    assert curves["mean"]["ap"] == [
        pytest.approx(row["map_50"], rel=1e-3),
        pytest.approx(row["map_75"], rel=1e-3),
    ]
    for one in [curves["mean"], *curves["classes"]]:
        for ap, precision in zip(one["ap"], one["precision"], strict=True):
            assert np.mean(precision) == pytest.approx(ap, abs=1e-3)
            assert (np.diff(precision) <= 0).all()
    classes = result.class_summary("val").query("n_epoch == 1").set_index("class_name")
    for one in curves["classes"]:
        assert one["ap"][0] == pytest.approx(classes.loc[one["name"], "map_50"], rel=1e-3)
        assert one["truths"] == classes.loc[one["name"], "counts"]
    assert sum(one["truths"] for one in detail["sizes"]) == row["n_gt"]


def test_groups_hold_the_worst_images(detail, units):
    groups = {group["key"]: group for group in detail["groups"]}
    wrong = units[units["is_error"] == True]  # noqa: E712
    assert groups["all"]["n"] == wrong["input_id"].nunique()
    assert groups["all"]["units"] == len(wrong)
    assert len(groups["all"]["rows"]) == 12
    for code in SUSPECTS:
        own = units[[code in codes for codes in units["diagnosis"]]]
        if own.empty:
            # Two epochs do not tell a spurious label; few suspects are too few to be flagged.
            assert code not in groups
            continue
        assert groups[code]["n"] == own["input_id"].nunique()
        first = detail["cards"][str(groups[code]["rows"][0])]["id"]
        assert first == own.sort_values("suspicion", ascending=False)["input_id"].iloc[0]
    assert len(groups.keys() & SUSPECTS.keys()) >= 2
    top = detail["codes"][0]
    assert groups[top["code"]]["units"] == top["n"]
    assert {group["kind"] for group in detail["groups"]} >= {"Overview", "Suspected labels", "Error codes"}


def test_cards_hold_the_boxes_of_the_units(detail, units):
    card = detail["cards"][str(detail["groups"][0]["rows"][0])]
    own = units[units["input_id"] == card["id"]]
    boxes = named(card)
    assert len(boxes) == card["units"] == len(own)
    said = sorted(box["p"] for box in boxes if box["p"])
    expected = own[own["unit_kind"] == "pred"][["x1", "y1", "x2", "y2"]].to_numpy()
    assert said == [pytest.approx(box, abs=0.06) for box in sorted(expected.tolist())]
    true = sum(box["t"] is not None for box in boxes)
    assert true == own["truth_id"].notna().sum() == card["n_gt"]
    assert sum(box["kind"] == 1 for box in boxes) == card["n_fp"]
    assert (card["width"], card["height"]) == (WIDTH, HEIGHT)
    errors = [box["kind"] in {1, 3} for box in boxes]
    assert errors == sorted(errors, reverse=True)
    worst = detail["worst"][0]
    assert worst["id"] == card["id"]
    assert (worst["n_tp"], worst["n_fn"]) == (card["n_tp"], card["n_fn"])


def test_only_the_last_epoch_has_images_and_curves(content):
    first, last = content["details"]["0"], content["details"]["1"]
    assert first["groups"] == []
    assert first["curves"] is None
    assert first["sizes"][0]["truths"] is None
    assert last["groups"]


# --- images -------------------------------------------------------------------------------------------------


def test_thumbnails_and_asked_images(result, detail):
    cards = detail["cards"].values()
    stored = {card["id"] for card in cards if card["picture"]}
    few = {f"img{number:06d}" for number in range(box_store.WITH_THUMBNAILS)}
    assert stored == {card["id"] for card in cards if card["id"][-9:] in few}
    assert {card["picture"]["type"] for card in cards if card["picture"]} == {"png"}
    # Every fourth pixel: the thumbnail covers the canvas.
    assert all(card["picture"]["width"] == WIDTH for card in cards if card["picture"])
    asked = report_content(result, image_of)["details"]["1"]["cards"].values()
    assert all(card["picture"] for card in asked)
    # 1000 pixels by blocks of three: the last one does not fill a block.
    assert {(card["picture"]["width"], card["picture"]["height"]) for card in asked} == {(999, 798)}


def test_boxes_follow_the_frame_of_the_image(moved):
    scale, shift = box_store.SCALE, np.array(box_store.SHIFT)
    units = pq.read_table(passes_of(moved)[0].path).to_pandas()

    def boxes(content):
        card = next(iter(content["details"]["0"]["cards"].values()))
        own = units[(units["input_id"] == card["id"]) & (units["unit_kind"] == "pred")]
        original = own.set_index("det_idx")[["x1", "y1", "x2", "y2"]].sort_values("x1").to_numpy()
        return card, np.array(sorted(box["p"] for box in named(card) if box["p"])), original

    # Without an image and with one of the tensor's size: in pixels of the tensor.
    for image_fn in (None, image_of):
        card, drawn, original = boxes(report_content(moved, image_fn))
        assert (card["width"], card["height"]) == (WIDTH, HEIGHT)
        assert drawn == pytest.approx((original - np.tile(shift, 2)) / scale, abs=0.06)
    # With one of another size it is the original.
    card, drawn, original = boxes(report_content(moved, lambda *_: np.zeros((1200, 1600, 3), np.uint8)))
    assert (card["width"], card["height"]) == (1600, 1200)
    assert drawn == pytest.approx(original, abs=0.06)


def test_an_image_of_another_shape_is_not_drawn_on(result):
    assert _asked(np.zeros((400, 500), np.uint8), Canvas(1000, 800)).width == 1000
    assert _asked(np.zeros((500, 500), np.uint8), Canvas(1000, 800)) is None
    made = report_content(result, lambda *_: np.zeros((500, 500), np.uint8))
    assert "another shape" in " ".join(made["left_out"])


def test_photographs_become_jpeg_and_stay_within_the_budget(result, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    monkeypatch.setattr("mld_core.report.gallery.IMAGE_BYTES", 300_000)
    made = report_content(result, lambda *_: noise)
    pictures = [card["picture"] for card in made["details"]["1"]["cards"].values() if card["picture"]]
    # Where the budget is spent, small thumbnails stand in.
    assert pictures[0]["type"] == "jpeg"
    assert 0 < sum(len(one["data"]) for one in pictures) <= 300_000
    assert "images were left out to keep the file small" in " ".join(made["left_out"])


def test_boxes_of_crowded_images_stay_within_the_budget(result, monkeypatch):
    monkeypatch.setattr("mld_core.report.gallery.BOX_BYTES", 20_000)
    made = report_content(result)
    few = made["details"]["1"]
    assert 1 <= len(few["cards"]) < 40
    assert {str(row) for group in few["groups"] for row in group["rows"]} <= set(few["cards"])
    assert {str(one["row"]) for one in few["worst"] if one["row"] is not None} <= set(few["cards"])
    assert "too many boxes for a small file" in " ".join(made["left_out"])


# --- in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_file(result, tmp_path_factory):
    return write_report(
        result, tmp_path_factory.mktemp("page") / "boxes.html", image_fn=image_of, former=True
    )


@pytest.mark.processes
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "dark")])
def test_opens_offline_without_a_complaint(page_file, opened, width, scheme):
    assert page_file.bytes < 15_000_000
    one = opened(page_file.path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = one.page
    all_drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    drawn = page.eval_on_selector_all(".plot", "all => all.map(one => one.querySelectorAll('svg').length)")
    assert len(drawn) >= 9
    assert all(drawn)
    page.locator(".enlarge").first.click()
    inside = page.evaluate(
        "(() => { const one = document.getElementById('viewer'); return one.scrollWidth <= one.clientWidth; })()"
    )
    assert inside
    assert (one.problems, one.outside()) == ([], [])


@pytest.mark.processes
def test_shows_what_the_tables_hold(result, detail, page_file, opened):
    one = opened(page_file.path)
    page = one.page
    row = result.metrics_summary(full=True).iloc[1]
    names, values = page.locator(".tiles dt"), page.locator(".tiles dt + dd")
    tiles = dict(zip(names.all_inner_texts(), values.all_inner_texts(), strict=True))
    assert tiles["mAP"] == f"{row['auprc']:.3f}"
    assert tiles["Recall"] == f"{100 * row['recall']:.1f} %"
    costs = page.locator("[data-part='costs'] tbody tr").all_inner_texts()
    assert len(costs) == 6
    assert f"{row['dap_cls']:.3f}" in costs[0]
    label = page.locator("#plot-precision-recall")
    assert f"AP {row['map_50']:.3f}" in label.get_attribute("aria-label")
    hen = detail["curves"]["classes"][3]
    page.select_option("#curve-class", label=f"{hen['name']} ({hen['truths']})")
    assert f"AP {hen['ap'][1]:.3f}" in label.get_attribute("aria-label")
    assert page.evaluate("document.activeElement.id") == "curve-class"
    assert "<b>car</b>" in page.locator("#confusion").inner_text().replace("\n", "")
    assert page.locator("main b", has_text=re.compile("^car$")).count() == 0
    page.locator("#codes button", has_text="Show images").first.click()
    assert page.locator("#group").input_value() == detail["codes"][0]["code"]
    page.select_option("#epoch", label="epoch 0")
    assert "last epoch of each split" in page.locator("#samples").inner_text()
    assert one.problems == []


@pytest.mark.processes
def test_boxes_lie_at_the_right_pixels(detail, page_file, opened):
    page = opened(page_file.path).page
    card = detail["cards"][str(detail["groups"][0]["rows"][0])]
    drawing = page.locator(".imagecard svg.boxes").first
    drawing.scroll_into_view_if_needed()
    canvas = drawing.locator(".canvas").bounding_box()
    scale = canvas["width"] / WIDTH
    assert canvas["height"] == pytest.approx(HEIGHT * scale, abs=0.5)
    for place, box in enumerate(named(card)):
        for key, style in (("t", "truth, .missed"), ("p", "right, .wrong, .open")):
            if box[key] is None:
                continue
            selector = ", ".join(
                f"[data-place='{place}']{one.strip()}"
                if one.startswith(" .")
                else f"[data-place='{place}'].{one}"
                for one in style.split(",")
            )
            group = drawing.locator(selector)
            assert group.count() == 1
            values = [
                float(group.locator(".line").get_attribute(name)) for name in ("x", "y", "width", "height")
            ]
            x1, y1, x2, y2 = box[key]
            assert values == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.11)
            drawn = group.locator(".line").bounding_box()
            assert drawn["x"] == pytest.approx(canvas["x"] + x1 * scale, abs=2)
            assert drawn["width"] == pytest.approx((x2 - x1) * scale, abs=4)
    # The image under them: its bright corner ends at 500, 400 of the canvas.
    image = drawing.locator("image").bounding_box()
    assert image["x"] == pytest.approx(canvas["x"], abs=0.5)
    assert image["width"] == pytest.approx(999 * scale, abs=0.5)
    solid, dashed = ".truth .line, .missed .line", ".right .line, .wrong .line"
    dash = "all => [...new Set(all.map(one => getComputedStyle(one).strokeDasharray))]"
    assert drawing.locator(solid).evaluate_all(dash) == ["none"]
    assert "none" not in drawing.locator(dashed).evaluate_all(dash)


@pytest.mark.processes
def test_the_viewer_works_with_the_keyboard(detail, page_file, opened):
    one = opened(page_file.path)
    page = one.page
    button = page.locator(".enlarge").first
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    cards = [detail["cards"][str(row)] for row in detail["groups"][0]["rows"]]
    assert dialog.get_by_role("heading").inner_text() == cards[0]["id"]
    assert dialog.locator("tbody tr").count() == cards[0]["units"]
    page.keyboard.press("ArrowRight")
    assert dialog.get_by_role("heading").inner_text() == cards[1]["id"]
    dialog.locator("[data-box='0']").focus()
    page.keyboard.press("Enter")
    assert dialog.locator("[data-box='0']").get_attribute("aria-pressed") == "true"
    assert dialog.locator("svg .picked").count() >= 1
    dialog.get_by_label("Prediction, false").uncheck()
    assert dialog.locator("#viewer-image .wrong").count() == 0
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.className") == "enlarge"
    page.locator("#samples table button.link").first.click()
    assert dialog.get_by_role("heading").inner_text() == detail["worst"][0]["id"]
    assert one.problems == []


@pytest.mark.processes
def test_structure_for_screen_readers(page_file, opened):
    page = opened(page_file.path).page
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(one => Number(one.tagName[1]))")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    nameless = page.eval_on_selector_all(
        "button, select, input, summary, a[href]",
        """all => all.filter(one => one.tabIndex < 0 || !(one.textContent.trim() || one.labels?.length
             || one.getAttribute('aria-label'))).map(one => one.outerHTML.slice(0, 120))""",
    )
    assert nameless == []
    label = page.locator(".imagecard svg.boxes").first.get_attribute("aria-label")
    assert re.search(r"true box.*predicted box.*error", label)
