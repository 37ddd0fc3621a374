"""What people said of samples, between two stores and the team's service: each gets what it lacks, once."""

import shutil

import pytest
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.records.format.layout import Store
from mld_core.records.store.verdict import Subject, Verdict
from mld_core.records.store.verdicts import Verdicts
from mld_core.service.client.api import Client
from mld_core.service.client.verdicts import Exchanged, exchange_verdicts

pytestmark = pytest.mark.processes
HOSTILE = "ü<b>\n7 'q'"


@pytest.fixture
def two(recorded, tmp_path):
    """The run on two machines."""
    store, run = recorded
    for name in ("ann", "bob"):
        shutil.copytree(store.root, tmp_path / name)
    return Store(tmp_path / "ann"), Store(tmp_path / "bob"), run


def test_two_who_differ_see_it_after_a_sync_and_a_third_settles_it(two, server, monkeypatch):
    ann, bob, run = two
    monkeypatch.setenv("MLD_API_ENDPOINT", server.url)
    monkeypatch.setenv("MLD_API_KEY", server.key)
    Verdicts(ann, run).append([Verdict("relabel", "val", HOSTILE, label=2, given=1, author="ann", note="x")])
    Verdicts(bob, run).append([Verdict("ok", "val", HOSTILE, author="bob")])

    def sync(store):
        done = CliRunner().invoke(app, ["sync", run.model_name, run.version_name, "--store", str(store.root)])
        assert done.exit_code == 0, done.output
        return done.output

    assert "1 verdicts sent, 0 of others received" in sync(ann)
    assert "1 verdicts sent, 1 of others received" in sync(bob)
    assert Verdicts(bob, run).standing("val")[Subject("val", HOSTILE)].conflict
    Verdicts(bob, run).append([Verdict("relabel", "val", HOSTILE, label=2, given=1, author="cem")])
    sync(bob)
    sync(ann)
    assert "verdicts" not in sync(ann)
    for store in (ann, bob):
        stands = Verdicts(store, run).standing("val")[Subject("val", HOSTILE)]
        assert (stands.verdict.label, len(stands.heard)) == (2, 3)
    assert Verdicts(ann, run).read()[0] == Verdicts(bob, run).read()[0]


def test_taking_back_travels_too_and_nothing_is_doubled(two, server):
    ann, bob, run = two
    client = Client(server.url, server.key)
    book = Verdicts(ann, run)
    said = book.append([Verdict("hard", "test", str(number), author="ann") for number in range(250)])
    assert exchange_verdicts(ann, client, run).sent >= 250
    assert exchange_verdicts(ann, client, run) == Exchanged()
    book.undo(said[:200], author="ann")
    assert exchange_verdicts(ann, client, run).sent == 200
    exchange_verdicts(bob, client, run)
    assert sum(one.subject.dataset_type == "test" for one in Verdicts(bob, run).standing().values()) == 50


def test_a_key_that_only_uploads_sends_what_was_said(two, server):
    ann, bob, run = two
    client = Client(server.url, server.new_key("write", name="uploads"))
    assert exchange_verdicts(bob, client, run) == Exchanged()
    Verdicts(ann, run).append([Verdict("ok", "val", "of a machine", author="ann")])
    assert exchange_verdicts(ann, client, run).sent == 1


def test_a_verdict_that_says_nothing_is_refused_and_another_teams_are_not_seen(two, server, api):
    _, _, run = two
    run_id = api.run(run.model_name, "another version")
    place = f"/v1/runs/{run_id}/verdicts"
    good = {
        "kind": "ok",
        "dataset_type": "val",
        "input_id": "1",
        "author": "eve",
        "at": "2026-11-28T21:00:00.000001+00:00",
        "verdict_id": "0123456789abcdef",
    }
    for wrong in (
        {"kind": "relabel"},
        {"kind": "undo"},
        {"label": 3},
        {"verdict_id": "x"},
        {"at": "yesterday"},
        {"author": ""},
        {"input_id": "x" * 5_000},
    ):
        assert api("POST", place, json={"verdicts": [{**good, **wrong}]}).status_code == 422, wrong
    assert api("POST", place, json={"verdicts": []}).status_code == 422
    assert api("POST", place, json={"verdicts": [good, good]}).json() == {"added": 1, "there": 0}
    assert api("POST", place, json={"verdicts": [{**good, "author": "mallory"}]}).json() == {
        "added": 0,
        "there": 1,
    }
    assert api.get(place)["items"] == [good]
    other = server.api(server.new_key("read", "write", organization="other team"))
    assert other("GET", place).status_code == 404
    assert other("POST", place, json={"verdicts": [good]}).status_code == 404
