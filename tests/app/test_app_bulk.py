"""Home: several runs at once are tagged, put away, and deleted once it was said what goes."""

import json
import threading

import pytest
from app_parts import opened

from mld_core.app import kept_rows, library
from mld_core.records.format.layout import RunKey


@pytest.fixture
def place(records, planted, tmp_path):
    factory = records.StoreFactory(tmp_path / "store")
    for version in ("v1", "v2", "v3"):
        factory.add_pass(
            factory.run("net", version, n_class=6), "val", planted(records, 40, seed=3).data, n_epoch=0
        )
    with opened(factory.store) as client:
        yield factory.store, client


def test_the_lines_of_runs_are_kept_and_count_while_nothing_changed(place, monkeypatch):
    """From one server to the next; a changed run is read anew, and a file that is none is no reason to fail."""
    store, client = place
    monkeypatch.setattr(kept_rows, "MANY", 1)
    before = client.get("runs", sort="model")["runs"]
    kept = store.root / kept_rows.FILE
    until(kept.is_file)
    assert [len(json.loads(line)) for line in kept.read_text().splitlines()[1:]] == [3, 3, 3]
    with monkeypatch.context() as patch:
        patch.setattr(library, "run_row", lambda *_: pytest.fail("read anew"))
        with opened(store) as again:
            assert again.get("runs", sort="model")["runs"] == before
    store.update_run_info(RunKey("net", "v2"), note="changed elsewhere")
    with opened(store) as again:
        notes = {one["version"]: one["note"] for one in again.get("runs")["runs"]}
        assert notes == {"v1": "", "v2": "changed elsewhere", "v3": ""}
    kept.write_text('{"version": 3, "rows": [')
    with opened(store) as again:
        assert len(again.get("runs")["runs"]) == 3


def until(there, seconds=30):
    """Lines are written down beside the requests."""
    for _ in range(100 * seconds):
        if there():
            return
        threading.Event().wait(0.01)
    pytest.fail("not there in time")


def test_a_search_does_not_wait_for_runs_that_are_read_beside_it(place, monkeypatch):
    """It says how many it does not know yet; a run that cannot be read is left out of a search and told."""
    store, _ = place
    read, go = library.run_row, threading.Event()

    def slow(store, run):
        if run.version_name == "v2":
            go.wait(30)
        if run.version_name == "v3":
            raise ValueError("a run that cannot be read")
        return read(store, run)

    monkeypatch.setattr(library, "run_row", slow)
    monkeypatch.setattr(library, "WAIT_SECONDS", 0.01)
    with opened(store) as client:
        first = client.get("runs", search="net")
        assert first["of"] == 3
        assert first["unread"] >= 1
        go.set()
        until(lambda: client.get("runs", search="net")["unread"] == 0)
        assert versions(client, search="net") == ["v1", "v2"]


def named(*versions):
    return [{"model": "net", "version": one} for one in versions]


def versions(client, **query):
    return sorted(one["version"] for one in client.get("runs", **query)["runs"])


def test_runs_are_deleted_after_a_look_at_what_goes(place):
    store, client = place
    body = {"runs": named("v1", "v3"), "do": "remove"}
    looked = client.post("runs/bulk", {**body, "dry_run": True}).json()
    assert [(one["version"], one["gone"]["rows"]) for one in looked["rows"]] == [("v1", 40), ("v3", 40)]
    assert all(one["gone"]["files"] > 0 and one["gone"]["bytes"] > 0 for one in looked["rows"])
    assert versions(client) == ["v1", "v2", "v3"]
    assert client.post("runs/bulk", body).json()["failed"] == 0
    assert versions(client) == ["v2"]
    assert [one.version_name for one in store.runs()] == ["v2"]
    assert client.ask("run", model="net", version="v1").status_code == 404


def test_nothing_is_done_where_one_of_the_runs_is_not_there(place):
    _, client = place
    answer = client.post("runs/bulk", {"runs": named("v1", "v9"), "do": "remove"})
    assert answer.status_code == 404
    assert versions(client) == ["v1", "v2", "v3"]


def test_tags_are_put_on_and_taken_off_several_runs(place):
    _, client = place
    client.post("runs/tags", {"model": "net", "version": "v1", "tags": ["mine"]})
    assert (
        client.post("runs/bulk", {"runs": named("v1", "v2"), "do": "tag", "tag": "night"}).status_code == 200
    )
    assert versions(client, search="tag = 'night'") == ["v1", "v2"]
    client.post("runs/bulk", {"runs": named("v1"), "do": "untag", "tag": "night"})
    tags = {one["version"]: one["tags"] for one in client.get("runs")["runs"]}
    assert tags == {"v1": ["mine"], "v2": ["night"], "v3": []}
    assert client.post("runs/bulk", {"runs": named("v1"), "do": "tag", "tag": " "}).status_code == 400


def test_runs_are_put_away_and_brought_back(place):
    store, client = place
    client.post("runs/bulk", {"runs": named("v2"), "do": "archive"})
    shown = client.get("runs")
    assert (versions(client), shown["total"], shown["archived"]) == (["v1", "v3"], 2, 1)
    assert versions(client, archived=True) == ["v2"]
    assert len(store.runs()) == 3  # nothing is deleted
    assert client.get("run", model="net", version="v2")["run"]["archived"] is True
    client.post("runs/bulk", {"runs": named("v2"), "do": "restore"})
    assert versions(client) == ["v1", "v2", "v3"]
