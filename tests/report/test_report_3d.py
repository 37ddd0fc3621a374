"""The 3D parts of the page: they say what the tables and records say, stay small, and work in a browser."""

import base64
import json
import re

import numpy as np
import pandas as pd
import pytest
import road_store as roads
from browser_parts import all_drawn, settled

from ml_debugger.evaluator import Evaluator
from mld_core.app.file.points import MAX_POINTS, cloud, is_points
from mld_core.records.format.layout import RunKey, Store
from mld_core.report import write_report
from mld_core.report.frames_3d import FIELDS
from mld_core.views.units import passes_of

pytestmark = pytest.mark.processes

FRAMES = 40
SIDES = ("cx", "cy", "cz", "w", "l", "h", "yaw")
UNIT = np.array([100, 100, 100, 100, 100, 100, 1000])


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A result of two epochs with flipped and missing labels and two silent sectors, and its frames."""
    root = tmp_path_factory.mktemp("roads") / "store"
    true, spoilt, _ = roads.make_scenes(FRAMES)
    store, run = Store(root), RunKey("lidar", "v1")
    info = {"task": "detection3d", "n_class": 3, "class_names": ["car", "van", "<i>walker</i>"]}
    store.ensure_run(run, info)
    for epoch in range(2):
        rng = np.random.default_rng([5, epoch])
        said = [
            roads.detect(frame, rng, skill=0.8 + 0.1 * epoch, silent=-120 if number in {3, 11} else None)
            for number, frame in enumerate(true)
        ]
        roads.write_pass(store, run, "val", spoilt, said, epoch)
    options = {"progress": False, "threads": 1, "repeats": 1}
    return Evaluator("lidar", "v1", store=root).request_evaluation("all", None, options=options), spoilt


@pytest.fixture(scope="module")
def written(road, tmp_path_factory):
    result, frames = road

    def points_of(dataset, one):
        assert dataset == "val"
        return frames[int(re.findall(r"\d+$", one)[0])].points

    return write_report(
        result, tmp_path_factory.mktemp("page") / "roads.html", image_fn=points_of, former=True
    )


@pytest.fixture(scope="module")
def data(written):
    found = re.search(r'id="data">(.*?)</script>', written.path.read_text("utf-8"), re.DOTALL)
    return json.loads(found[1])


@pytest.fixture(scope="module")
def scenes(data):
    return data["details"][str(data["first"])]["scenes"]


@pytest.fixture(scope="module")
def units(road):
    """The units of the last epoch."""
    return pd.read_parquet(road[0].folder / road[0].info["passes"][1]["units"])


def test_the_map_counts_what_the_units_say(units, scenes):
    judged = units[units["is_error"].notna()].copy()
    judged["ring"] = (judged["range"] // 10).astype(int)
    judged["sector"] = np.floor((np.degrees(judged["azimuth"]) % 360 + 180) % 360 / 10).astype(int)
    made = scenes["errormap"]
    judged = judged[judged["ring"] < made["rings"]]
    shown = pd.DataFrame({name: made[name] for name in ("ring", "sector", "n", "errors", "missed")})
    want = judged.groupby(["ring", "sector"]).agg(
        n=("is_error", "size"),
        errors=("is_error", "sum"),
        missed=("unit_kind", lambda one: (one == "gt").sum()),
    )
    pd.testing.assert_frame_equal(shown.set_index(["ring", "sector"]), want.astype("int64"))
    assert made["beyond"] + sum(made["n"]) == units["is_error"].notna().sum()
    assert made["overall"] == pytest.approx(judged["is_error"].astype(bool).mean(), abs=1e-5)


def test_bins_add_up_to_the_metrics(road, scenes):
    row = road[0].metrics_summary(full=True).iloc[1]
    for place, want in (
        (0, row),
        *enumerate(road[0].class_summary().query("n_epoch == 1").to_dict("records"), 1),
    ):
        bins = next(
            one
            for one in scenes["bins"]
            if one["name"] == ("all classes" if not place else want["class_name"])
        )
        for name in ("n_tp", "n_fp", "n_fn"):
            assert sum(line[name] for line in bins["range"]) == want[name], (bins["name"], name)
    assert sum(line["n_gt"] for line in scenes["bins"][0]["range"]) == row["n_gt"]
    assert sum(line["n_gt"] for line in scenes["bins"][0]["points"]) == row["n_gt"]
    assert {line["n_fp"] for line in scenes["bins"][0]["points"]} == {None}
    assert [line["bin"] for line in scenes["bins"][0]["range"]][:2] == ["0-10 m", "10-20 m"]


def test_curves_are_those_of_the_evaluation(road, scenes):
    classes = road[0].class_summary().query("n_epoch == 1").set_index("class_name")
    assert len(scenes["curves"]["classes"]) == len(classes) == 3
    for one in scenes["curves"]["classes"]:
        want = classes.loc[one["name"]]
        assert np.mean(one["ap"]) == pytest.approx(want["auprc"], abs=1e-3)
        assert one["truths"] == want["counts"]
        for name in ("ate", "ase", "aoe", "ave"):
            assert one["error"][name] == pytest.approx(want[name], rel=1e-4)
        reached = [value for value in one["curve"]["ate"][11:] if value is not None]
        assert np.mean(reached) == pytest.approx(want["ate"], rel=5e-3)
        assert len(one["precision"]) == 4
        assert len(one["precision"][0]) == 101


def test_only_the_last_epoch_has_frames(data):
    first = data["details"]["0"]["scenes"]
    assert first["frames"] == {}
    assert first["curves"] is None
    assert first["errormap"]["n"]
    assert len(first["bins"]) == 1


def test_frames_of_a_suspected_label_come_in_its_order(road, scenes):
    issues = road[0].get_issues("val", code="T22", order_by="-suspicion")
    want = list(dict.fromkeys(issues[issues["n_epoch"] == 1]["input_id"]))
    group = next(one for one in scenes["groups"] if one["key"] == "T22")
    assert [scenes["frames"][str(row)]["id"] for row in group["rows"]] == want[: len(group["rows"])]
    assert (group["n"], group["units"]) == (len(want), len(issues[issues["n_epoch"] == 1]))
    keys = [one["key"] for one in scenes["groups"]]
    assert keys[0] == "all"
    assert {"T06", "T12", "T22", "D06"} <= set(keys)
    assert len(scenes["groups"][0]["rows"]) == 12
    assert "frame-0011" in {one["input_id"] for one in scenes["sensor"]["sectors"]}
    assert scenes["codes"]["T22"]["action"] == "Turn the label round."


def test_boxes_are_those_of_the_units(units, scenes):
    for card in scenes["frames"].values():
        own = units[units["input_id"] == card["id"]]
        boxes = [dict(zip(FIELDS, one, strict=True)) for one in card["boxes"]]
        assert len(boxes) == card["units"] == len(own)
        said = np.array([one["p"] for one in boxes if one["p"]]) / UNIT
        want = own.loc[own["unit_kind"] == "pred", list(SIDES)].to_numpy()
        assert _as_rows(said) == pytest.approx(_as_rows(want), abs=0.006)
        true = np.array([one["t"] for one in boxes if one["t"]]) / UNIT
        want = own.loc[own["truth_id"].notna(), [f"gt_{name}" for name in SIDES]].to_numpy()
        assert _as_rows(true) == pytest.approx(_as_rows(want), abs=0.006)
        assert len(true) == card["n_gt"]
        assert sum(one["kind"] == 1 for one in boxes) == card["n_fp"]
        errors = [one["kind"] in {1, 3} for one in boxes]
        assert errors == sorted(errors, reverse=True)


def _as_rows(boxes):
    return boxes[np.lexsort(boxes.T)].ravel() if len(boxes) else boxes.ravel()


def test_motion_of_the_truth_is_on_the_card(road, scenes):
    frames = {roads.frame_id(number): frame for number, frame in enumerate(road[1])}
    moving = 0
    for card in scenes["frames"].values():
        speeds = np.hypot(*frames[card["id"]].velocities.T)
        arrows = [one[FIELDS.index("moves")] for one in card["boxes"]]
        shown = sorted(np.hypot(*one) / 100 for one in arrows if one is not None)
        assert shown == pytest.approx(sorted(speeds[speeds >= 0.5]), abs=0.02)
        moving += len(shown)
    assert moving > 0


def test_points_are_thinned_and_those_of_boxes_stay(road, scenes):
    frames = {roads.frame_id(number): frame for number, frame in enumerate(road[1])}
    card = scenes["frames"][str(scenes["groups"][0]["rows"][0])]
    frame = frames[card["id"]]
    assert card["points"]["of"] == len(frame.points) > MAX_POINTS == card["points"]["n"]
    xyz = np.frombuffer(base64.b64decode(card["points"]["xyz"]), "<i2").reshape(-1, 3) / 100
    there = set(map(tuple, np.round(frame.points[:, :3].astype(np.float64) * 100).astype(int).tolist()))
    assert set(map(tuple, np.round(xyz * 100).astype(int).tolist())) <= there
    inside = int(frame.n_points.sum())
    kept = sum(
        int((np.hypot(*(xyz[:, :2] - box[:2]).T) < np.hypot(box[3], box[4]) / 2).sum()) for box in frame.boxes
    )
    assert kept > 0.4 * min(inside, MAX_POINTS // 2)


def test_points_and_images_are_told_apart():
    assert is_points(np.zeros((5, 3)))
    assert not is_points(np.zeros((5, 3), np.uint8))
    assert not is_points(np.zeros((64, 64)))
    points = np.random.default_rng(0).uniform(-50, 50, (200, 5))
    points[0] = np.nan
    points[1, 0] = 1000
    made = cloud(points, np.empty((0, 7)), 100)
    assert (made["n"], made["of"]) == (100, 200)
    assert cloud(points[:10], np.empty((0, 7)), 100)["n"] == 8
    assert cloud(np.empty((0, 4)), np.empty((0, 7)), 100) == {"n": 0, "of": 0, "xyz": ""}


def test_the_page_stays_small_and_says_what_is_missing(written, data):
    assert written.bytes < 15_000_000
    said = " ".join(written.left_out)
    assert "worst 6 frames of each group" in said
    assert "at most 4,000 are drawn" in said
    assert json.dumps(data).count("NaN") == 0


def test_without_points_or_with_pictures(road, tmp_path):
    result, _ = road
    plain = write_report(result, tmp_path / "plain.html", former=True)
    assert b'"points":false' in plain.path.read_bytes()
    image = np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)
    pictures = write_report(result, tmp_path / "pictures.html", image_fn=lambda *_: image, former=True)
    found = re.search(r'id="data">(.*?)</script>', pictures.path.read_text("utf-8"), re.DOTALL)
    made = json.loads(found[1])
    frames = made["details"][str(made["first"])]["scenes"]["frames"].values()
    assert any(one["picture"] for one in frames)
    assert not any(one["points"] for one in frames)
    assert pictures.bytes < 15_000_000


def test_records_are_found_again(road):
    last = passes_of(road[0])[1]
    assert last.records is not None
    assert last.records.n_rows == FRAMES
    assert last.rows > FRAMES


# --- in a browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept_open(written, browser):
    """The page, opened once: it holds some megabytes."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page, problems = context.new_page(), []
    page.on("console", lambda said: problems.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(written.path.as_uri())
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    yield page
    context.close()
    # The tests themselves read pixels.
    assert [said for said in problems if "readback" not in said] == []


@pytest.fixture
def page(kept_open):
    """The page as it opens: the first frame of the first group."""
    kept_open.evaluate("bev.group = 'all'; bev.frame = null; bev.off.clear(); drawBev()")
    kept_open.locator("#bev-view").scroll_into_view_if_needed()
    return kept_open


def _centre(page, selector):
    """Middle of an SVG shape in the pixels of the picture."""
    return page.eval_on_selector(
        selector,
        """one => { const points = [...one.points].slice(0, 4);
           return [points.reduce((s, p) => s + p.x, 0) / 4, points.reduce((s, p) => s + p.y, 0) / 4]; }""",
    )


def _sensor_and_scale(page):
    """Pixel of the sensor and pixels for a metre, read off the drawn rings."""
    ring = page.eval_on_selector(
        "#bev-view .ring", "one => ['cx', 'cy', 'r'].map(name => Number(one.getAttribute(name)))"
    )
    metres = float(page.locator("#bev-view .ring-text").first.text_content().removesuffix(" m"))
    return np.array(ring[:2]), ring[2] / metres


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_opens_offline_without_a_complaint(written, opened, width, scheme):
    one = opened(written.path, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = one.page
    all_drawn(page)
    assert one.problems == []
    assert one.outside() == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("bev", "errormap", "tperrors"):
        assert page.locator(f"[data-part='{name}']").inner_text().strip()
    charts = ("error-map", "bins-range", "bins-points", "bins-speed", "precision3d", "tp3d")
    drawn = {name: page.locator(f"#plot-{name} svg").count() for name in charts}
    assert all(drawn.values()), drawn
    view = page.locator("#bev-view").bounding_box()
    assert view["width"] > (300 if width == 400 else 600)
    painted = page.eval_on_selector(
        "#bev-view canvas",
        """one => { const data = one.getContext('2d').getImageData(0, 0, one.width, one.height).data;
           let n = 0; for (let i = 3; i < data.length; i += 4) n += data[i] > 0; return n; }""",
    )
    assert painted > 1_000


def test_boxes_lie_at_the_right_pixels(scenes, page):
    sensor, scale = _sensor_and_scale(page)
    card = scenes["frames"][str(scenes["groups"][0]["rows"][0])]
    shown = 0
    for place, values in enumerate(card["boxes"]):
        for which, kinds in ((1, ("right", "wrong", "open")), (2, ("truth", "missed"))):
            if values[which] is None:
                continue
            x, y, _, w, length, _, yaw = np.array(values[which]) / UNIT
            box = ", ".join(f"#bev-view g[data-place='{place}'][data-kind='{kind}'] .box" for kind in kinds)
            assert page.locator(box).count() == 1
            assert _centre(page, box) == pytest.approx(sensor + scale * np.array([-y, -x]), abs=0.1)
            corners = page.eval_on_selector(box, "one => [...one.points].map(p => [p.x, p.y])")
            front = (np.array(corners[0]) + corners[1]) / 2 - _centre(page, box)
            ahead = scale * length / 2 * np.array([-np.sin(yaw), -np.cos(yaw)])
            assert front == pytest.approx(ahead, abs=0.1)
            assert np.hypot(*(np.array(corners[0]) - corners[1])) == pytest.approx(scale * w, abs=0.1)
            shown += 1
    assert shown == page.locator("#bev-view .box").count() > 10
    # A point of the cloud is painted where it lies.
    xyz = np.frombuffer(base64.b64decode(card["points"]["xyz"]), "<i2").reshape(-1, 3) / 100
    pixels = (sensor + scale * np.stack([-xyz[:50, 1], -xyz[:50, 0]], axis=1)).tolist()
    alpha = page.eval_on_selector(
        "#bev-view canvas",
        """(one, pixels) => pixels.map(([x, y]) => one.getContext('2d')
           .getImageData(Math.round(x) - 1, Math.round(y) - 1, 2, 2).data.filter((_, i) => i % 4 === 3)
           .reduce((a, b) => Math.max(a, b), 0))""",
        pixels,
    )
    size = page.locator("#bev-view").bounding_box()
    inside = [2 < x < size["width"] - 2 and 2 < y < size["height"] - 2 for x, y in pixels]
    assert sum(inside) > 20
    assert all(value > 0 for value, here in zip(alpha, inside, strict=True) if here)


def test_the_keyboard_moves_and_chooses(page):
    def shot():
        settled(page)
        return _centre(page, "#bev-view g[data-place='0'] .box"), page.evaluate("bev.view.k")

    (start, scale) = shot()
    page.locator("#bev-view").focus()
    page.keyboard.press("+")
    assert shot()[1] == pytest.approx(1.35 * scale)
    page.keyboard.press("-")
    assert shot()[1] == pytest.approx(scale)
    page.keyboard.press("ArrowLeft")
    assert shot()[0] == pytest.approx([start[0] + 60, start[1]], abs=0.1)
    page.keyboard.press("0")
    assert shot() == (pytest.approx(start, abs=0.1), pytest.approx(scale))
    before = page.evaluate("bev.picked")
    page.keyboard.press("n")
    assert page.evaluate("bev.picked") == before + 1
    page.keyboard.press("p")
    assert f"box {before + 1} of" in page.locator("#bev-facts").inner_text()
    page.get_by_role("button", name="Next box").press("Enter")
    assert page.evaluate("bev.picked") == before + 1
    page.locator("#bev-view").focus()
    view = page.locator("#bev-view").bounding_box()
    page.mouse.move(view["x"] + 200, view["y"] + 100)
    page.mouse.wheel(0, -120)
    assert shot()[1] > scale
    page.mouse.down()
    page.mouse.move(view["x"] + 260, view["y"] + 130, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Show all", exact=True).click()
    assert shot()[1] == pytest.approx(scale)


def _lonely(card, but):
    """A box with a prediction and no other within four metres."""
    places = {n: np.array((one[1] or one[2])[:2]) / 100 for n, one in enumerate(card["boxes"])}
    for n, at in places.items():
        far = min(np.hypot(*(at - other)) for m, other in places.items() if m != n)
        if n != but and card["boxes"][n][1] and far > 4 and np.hypot(*at) < 20:
            return n
    raise AssertionError("every box has neighbours")


def test_a_click_shows_the_facts_of_a_box(scenes, page):
    page.select_option("#scene-group", "T22")
    group = next(one for one in scenes["groups"] if one["key"] == "T22")
    card = scenes["frames"][str(group["rows"][0])]
    place = next(n for n, one in enumerate(card["boxes"]) if "T22" in one[FIELDS.index("diagnosis")])
    facts = page.locator("#bev-facts")
    assert "T22 Suspected flipped label" in facts.inner_text()
    assert "Turn the label round." in facts.inner_text()
    assert page.locator(f"#bev-view g[data-place='{place}'] .halo").count() == 1
    other = _lonely(card, place)
    page.locator("#bev-view").scroll_into_view_if_needed()
    view = page.locator("#bev-view").bounding_box()
    x, y = _centre(page, f"#bev-view g[data-place='{other}'] .box")
    page.mouse.click(view["x"] + x, view["y"] + y)
    assert f"box {other + 1} of {len(card['boxes'])}" in facts.inner_text()
    page.locator("#bev-main summary").click()
    rows = page.locator("#bev-main table tbody tr")
    rows.last.wait_for()  # opening is told a moment later
    assert rows.count() == len(card["boxes"])
    rows.nth(place).get_by_role("button").click()
    assert f"box {place + 1} of" in facts.inner_text()
    page.get_by_role("checkbox", name="Right prediction").uncheck()
    settled(page)
    assert page.locator("#bev-view g[data-kind='right']").count() == 0
    assert page.locator(".bev-strip button b, .bev-panel h3 b").count() == 0  # ids are only text


def test_tables_behind_the_figures(road, scenes, page):
    def table(part):
        figure = page.locator(f"figure:has(#plot-{part})")
        figure.locator("summary").click()
        figure.locator("table").wait_for()
        return figure.locator("tbody tr").evaluate_all(
            "rows => rows.map(row => [...row.children].map(cell => cell.innerText))"
        )

    made = scenes["errormap"]
    cells = table("error-map")
    assert len(cells) == len(made["n"])
    for column, name in ((2, "n"), (3, "errors"), (4, "missed")):
        assert sum(int(line[column]) for line in cells) == sum(made[name])
    bars = table("bins-range")
    assert [line[:3] for line in bars] == [
        [row["bin"], str(row["n_gt"]), str(row["n_fn"])] for row in scenes["bins"][0]["range"]
    ]
    page.select_option("#bin-class", label="car")
    rows = table("bins-range")
    classes = road[0].class_summary().query("n_epoch == 1").set_index("class_name")
    assert sum(int(line[2]) for line in rows) == classes.loc["car", "n_fn"]
    curve = table("precision3d")
    assert len(curve) == 11
    page.select_option("#tp-choice", "aoe")
    assert page.locator("#plot-tp3d").get_attribute("aria-label").startswith("AOE")
    shown = page.locator("[data-part='tperrors'] > .panel tbody tr").first.inner_text().split()
    assert shown[0] == scenes["curves"]["classes"][0]["name"]


def test_3d_opens_on_demand(written, opened):
    one = opened(written.path, viewport={"width": 600, "height": 600})
    page = one.page
    assert page.locator("#bev-solid canvas").count() == 0
    button = page.locator("#bev-open-solid")
    button.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    page.locator("#bev-solid canvas, #bev-solid .notice").first.wait_for(timeout=20_000)
    if page.locator("#bev-solid canvas").count():
        page.get_by_role("button", name="Turn left").click()
        names = page.evaluate("document.querySelector('#plot-scene3d').data.map(one => one.name)")
        assert {"points", "True box that was found", "Right prediction"} <= set(names)
    else:
        assert "WebGL" in page.locator("#bev-solid .notice").inner_text()
    button.click()
    assert page.locator("#bev-solid").inner_text() == ""
    assert [said for said in one.problems if not said.startswith("warning")] == []


def test_what_can_be_pressed_has_a_name(page):
    nameless = page.eval_on_selector_all(
        "button, select, input, summary, a[href], [role=application]",
        """all => all.filter(one => one.tabIndex < 0 || !(one.textContent.trim() || one.labels?.length
             || one.getAttribute('aria-label'))).map(one => one.outerHTML.slice(0, 120))""",
    )
    assert nameless == []
    page.select_option("#epoch", label="epoch 0")
    assert page.locator("[data-part='bev'] button").inner_text() == "Show val, epoch 1"
    page.locator("[data-part='bev'] button").click()
    assert page.locator("#bev-view").count() == 1
