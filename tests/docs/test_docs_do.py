"""The pages that say how something is done: their Python and their commands are run on two recorded versions."""

import shlex

import pytest
from docs_parts import DOCS, console, pages, run
from typer.testing import CliRunner

from ml_debugger.records import load
from mld_core.cli.main import app
from mld_core.records.format.layout import RunKey, Store

DO = {"wrong-labels", "failing-slice", "compare", "cluster"}


def test_every_page_is_run():
    written = {page.stem for page in (DOCS / "do").glob("*.md")}
    assert written == DO
    assert {page.stem for page in pages("do")} < DO


@pytest.fixture(autouse=True)
def at_the_store(recorded, monkeypatch, tmp_path):
    monkeypatch.setenv("MLD_HOME", str(recorded))
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    monkeypatch.delenv("MLD_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)


def commands(name: str) -> list[str]:
    """What the page's commands printed."""
    printed = []
    for line in console(DOCS / "do" / f"{name}.md"):
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}: {done.output}"
        printed.append(done.output)
    return printed


def test_wrong_labels(tmp_path):
    names = run(DOCS / "do" / "wrong-labels.md")
    assert (tmp_path / "suspects.csv").read_text().count("\n") == len(names["suspects"]) + 1 > 20
    (shown,) = commands("wrong-labels")
    assert str(names["suspects"]["input_id"].iloc[0]) in shown


def test_failing_slice():
    pytest.importorskip("lightning", reason="the page's columns are recorded with Lightning")
    names = run(DOCS / "do" / "failing-slice.md")
    assert "weather = fog" in set(names["slices"]["slice"])
    assert set(names["by_weather"]["weather"]) == {"clear", "fog"}
    assert len(names["regions"]) > 0
    assert len(names["look_at"]) > 0
    regions, by_weather = commands("failing-slice")
    assert "region_id" in regions
    assert "fog" in by_weather


@pytest.mark.heavy
def test_compare():
    printed = commands("compare")
    assert "fixed" in printed[3]


def test_cluster(recorded, tmp_path):
    for node in ("node0", "node1"):
        (tmp_path / node).symlink_to(recorded)
    assert "MyModel" in commands("cluster")[1]
    run_key = RunKey("MyModel", "v1")
    assert Store(tmp_path / "all").run_info(run_key)["task"] == "classification"
    assert load("MyModel", "v1", dataset_type="val", n_epoch=1, store=Store(tmp_path / "all")).num_rows == 800
