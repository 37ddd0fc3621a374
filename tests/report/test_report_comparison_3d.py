"""The page of two 3D detections: fixed and regressed truths, both sides of their frames from above."""

import re

import numpy as np
import pytest
import road_store as roads
import simulated_detector as boxes

from ml_debugger.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store
from mld_core.report import write_comparison
from mld_core.report.comparison import comparison_content
from mld_core.report.frames_3d import FIELDS

pytestmark = pytest.mark.processes

KINDS = ("regressed", "fixed")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two versions on the same frames, and the frames."""
    store = Store(tmp_path_factory.mktemp("roads") / "store")
    true, spoilt, _ = roads.make_scenes(24)
    made = []
    for number, (version, skill) in enumerate((("v1", 0.75), ("v2", 0.95))):
        run = RunKey("lidar", version)
        info = {"task": "detection3d", "n_class": 3, "class_names": ["car", "van", "<i>walker</i>"]}
        store.ensure_run(run, info)
        rng = np.random.default_rng([5, number])
        roads.write_pass(store, run, "val", spoilt, [roads.detect(one, rng, skill=skill) for one in true], 0)
        options = {"progress": False, "threads": 1, "repeats": 1}
        evaluator = Evaluator("lidar", version, store=store.root)
        made.append(evaluator.request_evaluation(f"r-{version}", None, options=options))
    return made, spoilt


@pytest.fixture(scope="module")
def split(pair):
    return comparison_content(*pair[0])["splits"][0]


@pytest.fixture(scope="module")
def page_file(pair, tmp_path_factory):
    (a, b), frames = pair

    def points_of(dataset, one):
        return frames[int(re.findall(r"\d+$", one)[0])].points

    return write_comparison(a, b, tmp_path_factory.mktemp("page") / "roads.html", image_fn=points_of)


def drawn(card, number):
    """The unit of a card that stands for a truth."""
    made = [dict(zip(FIELDS, box, strict=True)) for box in card["boxes"]]
    return next(box for box in made if box["t"] is not None and box["gt_idx"] == number)


def test_figures_and_frames_are_those_of_the_comparison(pair, split):
    (a, b), _ = pair
    compared = a.compare(b)
    counts = compared.units.iloc[0]
    assert split["counts"]["n_paired"] == counts["n_paired"] > 100
    shown = {one["metric"]: one for one in split["metrics"]}
    moved = compared.metrics.set_index("metric")
    for name in ("nds", "auprc", "recall", "mate", "maoe"):
        assert shown[name]["delta"] == pytest.approx(moved.loc[name, "delta"], rel=1e-4), name
    assert sum(one["fixed"] for one in split["classes"]) == counts["n_fixed"]
    for kind in KINDS:
        own = getattr(compared, kind)
        assert (split[kind]["n"], split[kind]["images"]) == (len(own), own["input_id"].nunique())
        assert split[kind]["cards"]
        for entry in split[kind]["cards"]:
            cards = [split["cards"][entry[side]] for side in "ab"]
            assert cards[0]["id"] == cards[1]["id"]
            for numbers in entry["truths"]:
                units = [drawn(card, number) for card, number in zip(cards, numbers, strict=True)]
                # One truth: the same box on both sides, wrong on one of them.
                assert units[0]["t"] == units[1]["t"]
                wrong = [unit["kind"] in {1, 3} for unit in units]
                assert wrong == ([True, False] if kind == "fixed" else [False, True])


def test_frames_stay_within_the_budget(pair, split, monkeypatch):
    monkeypatch.setattr("mld_core.report.scenes_3d.BOX_BYTES", 30_000)
    made = comparison_content(*pair[0])
    few = made["splits"][0]
    assert 0 < len(few["cards"]) < len(split["cards"])
    assert all({one["a"], one["b"]} <= set(few["cards"]) for kind in KINDS for one in few[kind]["cards"])
    assert "Comparison.regressed has all" in " ".join(made["left_out"])


def test_results_of_two_tasks_are_refused(pair, tmp_path):
    store, run = Store(tmp_path / "store"), RunKey("boxes", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": 6})
    boxes.write(store, run, "val", boxes.simulate(8, seed=1), n_epoch=0)
    options = {"progress": False, "threads": 1, "repeats": 1}
    flat = Evaluator("boxes", "v1", store=store.root).request_evaluation("flat", None, options=options)
    with pytest.raises(
        ValueError, match=r"'flat' \(detection\) and 'r-v1' \(detection3d\).*of one task; give two"
    ):
        write_comparison(flat, pair[0][0], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_opens_offline_and_draws_both_sides(page_file, opened, width, scheme):
    assert page_file.bytes < 15_000_000
    one = opened(page_file.path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = one.page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#regressed .pair-card .bev-view polygon").first.wait_for(state="attached")
    card = page.locator("#regressed .pair-card").first
    painted = card.locator("canvas").evaluate_all(
        """all => all.map(one => { const data = one.getContext('2d')
           .getImageData(0, 0, one.width, one.height).data;
           let n = 0; for (let i = 3; i < data.length; i += 4) n += data[i] > 0; return n; })"""
    )
    assert len(painted) == 2
    assert min(painted) > 300
    assert [said for said in one.problems if "readback" not in said] == []
    assert one.outside() == []


def test_a_changed_box_is_numbered_and_can_be_looked_at_from_near(split, page_file, opened):
    one = opened(page_file.path)
    page = one.page
    entry = split["regressed"]["cards"][0]
    card = page.locator("#regressed .pair-card").first
    card.locator(".bev-view polygon").first.wait_for(state="attached")
    assert card.locator("h3").inner_text() == split["cards"][entry["b"]]["id"]
    views = card.locator(".bev-view")
    for side in range(2):
        numbers = views.nth(side).locator(".code-text").all_text_contents()
        assert sorted(numbers) == sorted(str(n + 1) for n in range(len(entry["truths"])))
        assert views.nth(side).locator(".halo").count() == len(entry["truths"])
    first = "all => all.map(one => one.querySelector('.ring').getAttribute('r'))"
    before = views.evaluate_all(first)
    assert before[0] == before[1]
    card.locator(".pair-list button").first.press("Enter")
    near = views.evaluate_all(first)
    assert near[0] == near[1] != before[0]
    assert views.nth(0).locator(".chosen").count() == 1
    assert "Zoomed to box 1" in page.locator("#live").inner_text()
    card.get_by_role("button", name="Show the whole frame").click()
    assert views.evaluate_all(first) == before
    text = card.locator(".pair-list dd").all_inner_texts()
    assert re.match(r"✓ found at 0\.\d\d, \d+\.\d\d m off", text[0])
    assert text[1].startswith("✕")
    # Other pictures of the page keep their own view and colours when the theme changes.
    page.select_option("#theme", "dark")
    page.wait_for_function("getComputedStyle(document.body).backgroundColor !== 'rgb(255, 255, 255)'")
    assert views.evaluate_all(first) == before
    assert page.locator("#main i").count() == 0  # class names are only text
    assert one.problems == []
