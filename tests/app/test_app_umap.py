"""UMAP: made by a job on demand, kept beside the result, then axes of the map and columns of filters as any other."""

import json
import shutil
import sys
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from app_building import need_pages
from app_parts import opened, serving
from browser_parts import until
from server_parts import wait_for
from typer.testing import CliRunner

from ml_debugger.evaluator import Evaluator
from mld_core.cli.main import app
from mld_core.evaluation.engine.executor import Reporter
from mld_core.records.format.layout import Store
from mld_core.views.columns import umap as made_by
from mld_core.views.selection import held
from mld_core.views.units import passes_of

RUNS = {
    "classes": ("net <i>", "v/1", "all"),
    "boxes": ("boxes", "v1", "boxes"),
    "roads": ("lidar", "v1", "roads"),
}

STAND_IN = '''
import numpy as np

class UMAP:
    """As quick as may be: the first two axes, turned."""
    def __init__(self, **options):
        assert options["random_state"] == 0
    def fit_transform(self, points):
        return np.stack([points[:, 1], -points[:, 0]], axis=1)
    transform = fit_transform
'''

FATAL = """
import os

class UMAP:
    def __init__(self, **options):
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for umap-learn, for this process and for those it starts."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "umap.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{':'.join(filter(None, sys.path))}")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "umap", raising=False)


@pytest.fixture
def store(shown_store, tmp_path):
    return Store(shutil.copytree(shown_store.root, tmp_path / "store"))


def last(store, task, split="val"):
    model, version, name = RUNS[task]
    result = Evaluator(model, version, store=store.root).get_result(name)
    return [one for one in passes_of(result) if one.dataset == split][-1]


@pytest.mark.parametrize("task", RUNS)
def test_its_columns_are_filters_orders_and_polygons(store, package, task):
    pass_ = last(store, task)
    told = made_by.make_umap(pass_, Reporter(enabled=False).stage)
    units = held(last(store, task))
    model, version, _ = RUNS[task]
    with opened(store) as client:
        place = {"model": model, "version": version, "split": "val"}
        said = client.get("sample", **place, row=0)["fields"]
        assert not {"umap_1", "umap_2"} & {one["name"] for one in said}
        assert client.ask("heatmap", **place, x="umap_1:4", y="umap_2:4", value="counts").status_code == 200
    table = pq.read_table(units.beside)
    assert table["unit_id"].to_pylist() == units.texts("unit_id")
    x, y = units.floats("umap_1"), units.floats("umap_2")
    there = np.isfinite(x)
    assert there.sum() == told["rows"] > 100
    assert {"umap_1", "umap_2"} <= units.names
    middle = float(np.median(x[there]))
    assert units.matching(f"umap_1 > {middle!r}").tolist() == np.flatnonzero(x > middle).tolist()
    both = units.matching(f"umap_1 > {middle!r} and is_error = true")
    assert both.tolist() == np.flatnonzero((x > middle) & (units.errors == 1)).tolist()
    shape = f"inside(umap_1, umap_2, {middle!r}, -1e9, 1e9, -1e9, 1e9, 1e9, {middle!r}, 1e9)"
    assert set(units.matching(shape)) - set(np.flatnonzero(x == middle)) == set(np.flatnonzero(x > middle))
    order = units.order("-umap_1")[: there.sum()]
    assert x[order].tolist() == sorted(x[there].tolist(), reverse=True)
    assert y[there].std() > 0
    row = int(order[0])
    assert last(store, task).take([row], ["unit_id", "umap_1"])[0]["umap_1"] == x[row]
    _asked_of(units.result, units.dataset, units.n_epoch, int((x > middle).sum()), middle)


def _asked_of(result, split, epoch, wanted, middle):
    """The same filter in Python, over all passes of a result, of which the others have no UMAP."""
    condition = f"umap_1 > {middle!r}"
    (row,) = result.get_view(filter=condition).to_dict("records")
    assert (row["dataset"], row["counts"]) == (split, wanted)
    table = result.get_view("n_epoch", filter=condition)
    assert dict(zip(table["n_epoch"], table["counts"], strict=True)) == {epoch: wanted}
    assert result.columns()["umap_2"] == "float"
    grid = result.heatmap("umap_1:4", "umap_2:4", "counts", filter=f"dataset = '{split}'")
    assert grid["counts"].sum() > wanted
    issues = result.get_issues(split, order_by="-umap_1", limit=1)
    assert len(issues) == 1


def test_a_field_of_its_name_stays_the_users_own(store, package):
    pass_ = last(store, "classes")
    table = pq.read_table(pass_.path)
    own = pa.array(np.arange(len(table), dtype=np.float64))
    pq.write_table(table.append_column("umap_1", own), pass_.path)
    place = {"model": "net <i>", "version": "v/1", "split": "val"}
    with opened(store) as client:
        fields = client.get("sample", **place, row=3)["fields"]
        assert {"name": "umap_1", "value": 3.0}.items() <= next(
            one for one in fields if one["name"] == "umap_1"
        ).items()
        assert client.get("samples", **place, filter="umap_1 > 10 and umap_1 < 13")["total"] == 2
        said = client.get("map", **place)["umap"]
        assert (said["made"], "a field umap_1 of your own" in said["missing"]) == (False, True)
    with pytest.raises(made_by.NoUmapError, match="umap_1 of your own"):
        made_by.make_umap(last(store, "classes"), Reporter(enabled=False).stage)


def passes(records, root, **data):
    """An evaluated run whose splits hold these data, and its passes."""
    factory = records.StoreFactory(root)
    run = factory.run("small", "v1")
    for split, own in data.items():
        factory.add_pass(run, split, own)
    options = {"progress": False, "threads": 1}
    result = Evaluator("small", "v1", store=root).request_evaluation("one", options=options)
    return {one.dataset: one for one in passes_of(result)}


def test_what_can_have_no_map_is_refused_and_nothing_is_left(records, package, monkeypatch, tmp_path):
    """One that ended as if it were made showed an empty map."""
    same, few, lost = (records.make_data(rows, seed=1) for rows in (60, 7, 60))
    same.features[:] = 0.5
    there = passes(records, tmp_path / "store", val=same, test=few, train=lost)
    stage = Reporter(enabled=False).stage
    with pytest.raises(made_by.NoUmapError, match="features of all 60 units of val are the same"):
        made_by.make_umap(there["val"], stage)
    with pytest.raises(made_by.NoUmapError, match="test has 7 units with features: a map needs at least 8"):
        made_by.make_umap(there["test"], stage)
    import umap

    with monkeypatch.context() as patch:
        patch.setattr(umap.UMAP, "fit_transform", lambda self, points: np.full((len(points), 2), np.nan))
        with pytest.raises(made_by.NoUmapError, match="no finite coordinates for train"):
            made_by.make_umap(there["train"], stage)
    full = OSError(28, "No space left on device")
    write = pq.write_table

    def broken(table, path, **options):
        write(table, path, **options)
        raise full

    monkeypatch.setattr(pq, "write_table", broken)
    with pytest.raises(OSError, match="No space left"):
        made_by.make_umap(there["train"], stage)
    assert [one.name for one in there["train"].path.parent.iterdir() if "umap" in one.name] == []


@pytest.mark.processes
def test_a_job_says_of_which_pass_it_is_and_that_a_map_ended(store, package, tmp_path):
    (tmp_path / "package" / "umap.py").write_text(FATAL)
    of = {"result": "all", "split": "test", "epoch": "0"}
    with opened(store) as client:
        job = client.post("jobs", {"model": "net <i>", "version": "v/1", "umap": of}).json()
        assert (job["kind"], job["umap"]) == ("umap", of)

        def look():
            now = client.get(f"jobs/{job['job_id']}")
            return now if now["state"] == "failed" else None

        reason = wait_for(look, 120)["reason"]
    assert reason == "the map ended with code -9: it was killed, perhaps for want of memory"


def test_of_many_units_some_are_fitted_and_the_others_placed_among_them(store, package, monkeypatch):
    monkeypatch.setattr(made_by, "MOST_FITTED", 150)
    pass_ = last(store, "classes")
    stages = []
    reporter = Reporter(enabled=False)
    told = made_by.make_umap(pass_, lambda name: (stages.append(name), reporter.stage(name))[1])
    assert (told["rows"], told["fitted"]) == (600, 150)
    assert stages[1:] == ["UMAP of 150 units", "placing the other 450"]
    assert np.isfinite(held(last(store, "classes")).floats("umap_1")).all()
    assert made_by.umap_of(last(store, "classes"))["fitted"] == 150


def test_without_the_package_one_sentence_says_how_to_get_it(store, monkeypatch):
    monkeypatch.setattr(made_by, "installed", lambda: False)
    done = CliRunner().invoke(app, ["map", "net <i>", "v/1", "--store", str(store.root)])
    assert done.exit_code == 1
    assert 'UMAP needs the package umap-learn: pip install "ml-debugger[umap]"' in done.stderr
    with opened(store) as client:
        told = client.get("map", model="net <i>", version="v/1")
        assert 'pip install "ml-debugger[umap]"' in told["umap"]["missing"]


def test_the_command_makes_it_and_refuses_what_it_does_not_know(store, package):
    run = ("map", "net <i>", "v/1", "--store", str(store.root))
    done = CliRunner().invoke(app, [*run, "--dataset", "test", "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert (row["dataset"], row["n_epoch"], row["rows"], row["fitted"]) == ("test", 1, 200, 200)
    assert last(store, "classes", "test").beside.is_file()
    assert not last(store, "classes").beside.is_file()
    for more, words in (
        (("--method", "tsne"), "expected umap"),
        (("--dataset", "vall"), "no pass of 'vall'"),
    ):
        refused = CliRunner().invoke(app, [*run, *more])
        assert (refused.exit_code != 0, words in refused.stderr) == (True, True), refused.output


@pytest.mark.processes
def test_the_page_makes_it_by_a_job_and_a_lasso_on_it_is_a_filter(browser, store, package):
    need_pages()
    with serving(store) as (base, token):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        wrong = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda one: wrong.append(one.url) if one.status >= 400 else None)
        page.goto(f"{base}/ui/?token={token}")
        page.goto(f"{base}/ui/?{urlencode({'page': 'map', 'model': 'net <i>', 'version': 'v/1'})}")
        axes = page.get_by_label("Axes")
        axes.select_option("umap")
        page.get_by_role("button", name="Compute the UMAP (about").click()
        until(
            page,
            "![...document.querySelectorAll('select option')].some((one) => one.text.includes('computes'))",
        )
        until(page, "document.querySelectorAll('.plot canvas').length", 1)
        assert page.get_by_role("button", name="Compute the UMAP (about").count() == 0
        page.locator(".plot").focus()
        page.keyboard.press("Enter")
        page.locator(".map .chip").wait_for()
        assert "inside(umap_1,umap_2" in page.url
        until(
            page,
            "document.querySelector('.map .chip').innerText.split(' ')[0]"
            " === document.querySelector('.filters p[role=status]')?.innerText.split(' ')[0]",
        )
        page.reload()
        page.locator(".map .chip").wait_for()
        page.get_by_role("button", name="Select everything again").click()
        page.get_by_role("slider").fill("0")  # an epoch without UMAP
        page.get_by_role("button", name="Compute the UMAP (about").wait_for()
        page.get_by_role("slider").fill("1")
        page.get_by_role("button", name="Compute the UMAP (about").wait_for(state="detached")
        page.locator(".plot").focus()
        page.keyboard.press("Enter")
        until(page, "location.search.includes('inside(umap_1')")
        axes.select_option("")
        until(page, "!location.search.includes('inside')")
        page.get_by_role("link", name="Jobs").click()
        page.get_by_text("UMAP val, epoch 1", exact=True).wait_for()
        assert "600" in page.locator("tr", has_text="UMAP").inner_text()
        assert wrong == []
        context.close()


@pytest.mark.slow
def test_the_real_package_keeps_near_what_is_near(store):
    pytest.importorskip("umap")
    pass_ = last(store, "classes")
    told = made_by.make_umap(pass_, Reporter(enabled=False).stage)
    assert told["rows"] == 600
    units = held(last(store, "classes"))
    points = np.stack([units.floats("umap_1"), units.floats("umap_2")], axis=1)
    assert np.isfinite(points).all()
    away = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(away, np.inf)
    same = (units.prediction[away.argmin(axis=1)] == units.prediction).mean()
    assert same > 0.6
