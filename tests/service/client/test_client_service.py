"""The client and the real server: upload, evaluation there equal to the one here, kills, the commands."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from app_building import need_pages
from typer.testing import CliRunner

from ml_debugger.evaluator import Evaluator
from mld_core.cli.main import app
from mld_core.evaluation.errors import AuthenticationError, NotFoundError, ResultExistsError
from mld_core.records.format.manifest import read_json
from mld_core.service.client.api import Client
from mld_core.service.client.helper import UploadHelper, UploadSettings
from mld_core.service.client.remote import RemoteEvaluator
from mld_core.service.client.sealed import read_sealed, sealed_folders
from mld_core.service.client.transport import Patience
from mld_core.service.client.uploader import Uploader

pytestmark = pytest.mark.processes

QUICK = {"repeats": 1}


def sync(store, url, key, **options):
    job = Uploader(store, Client(url, key), **options)
    return [job.send(rank) for rank in job.plan(store.runs())]


@pytest.fixture(scope="module")
def uploaded(server, recorded):
    """The recorded run, uploaded by the client."""
    store, run = recorded
    assert {row.state for row in sync(store, server.url, server.key)} <= {"uploaded", "there"}
    return store, run


@pytest.fixture
def at_service(server, uploaded, tmp_path, monkeypatch):
    """An evaluator of that run at the service."""
    monkeypatch.setenv("MLD_HOME", str(tmp_path / "mine"))
    _, run = uploaded
    return Evaluator(run.model_name, run.version_name, server.url, server.key)


def test_an_evaluation_there_is_the_one_here(at_service, uploaded, server):
    store, run = uploaded
    here = Evaluator(run.model_name, run.version_name, store=store.root).request_evaluation(
        "here", options=QUICK
    )
    there = at_service.request_evaluation("there", options={**QUICK, "threads": 1, "progress": False})
    for full in (False, True):
        for table in ("metrics_summary", "issue_category_summary"):
            ours, theirs = getattr(here, table)(full=full), getattr(there, table)(full=full)
            pd.testing.assert_frame_equal(ours, theirs, rtol=1e-9, check_exact=False)
    pd.testing.assert_frame_equal(here.get_issues(), there.get_issues(), rtol=1e-9, check_exact=False)
    pd.testing.assert_frame_equal(here.get_view("class"), there.get_view("class"), rtol=1e-9)
    assert here.compare(there).units["n_regressed"].sum() == 0

    listed = at_service.list_results()
    assert list(listed["result_name"]).count("there") == 1  # others of this server may have asked, too
    assert at_service.list_results(n_epoch=99).empty
    again = at_service.get_result("there")
    pd.testing.assert_frame_equal(again.metrics_summary(), there.metrics_summary())
    source = read_json(there.folder / ".source.json")
    assert source["endpoint"] == server.url
    with pytest.raises(ResultExistsError, match=r"get_result\(\)"):
        at_service.request_evaluation("there", options=QUICK)


def test_what_is_not_there_is_said(at_service, server, uploaded):
    _, run = uploaded
    with pytest.raises(NotFoundError, match=r"no result 'ther' .* evaluate with request_evaluation"):
        at_service.get_result("ther")
    with pytest.raises(NotFoundError, match=rf"no model 'nett'; did you mean 'net'\? at {server.url}"):
        Evaluator("nett", "v1", server.url, server.key).list_results()
    with pytest.raises(NotFoundError, match=r"no version 'v9'.*mld sync"):
        Evaluator(run.model_name, "v9", server.url, server.key).request_evaluation()
    with pytest.raises(NotFoundError, match="epoch 77"):
        at_service.request_evaluation(n_epoch=77)
    with pytest.raises(ValueError, match="method_name='magic'"):
        at_service.request_evaluation(method_name="magic")


def test_two_who_fetch_the_same_result_at_once_both_get_it(at_service):
    name = at_service.request_evaluation(options={**QUICK, "dataset_types": ["test"]}).result_name
    folder = at_service.get_result(name).folder
    for _ in range(10):
        shutil.rmtree(folder)
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: at_service.get_result(name).metrics_summary(), range(6)))
        assert all(len(one) == 1 for one in found)
        assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".tmp")] == []


def test_a_key_that_may_only_read(at_service, server, uploaded):
    _, run = uploaded
    reader = Evaluator(run.model_name, run.version_name, server.url, server.new_key("read"))
    assert set(reader.list_results().columns) >= {"result_name"}
    with pytest.raises(AuthenticationError, match="scope it needs"):
        reader.request_evaluation()
    with pytest.raises(AuthenticationError, match="did not accept the API key"):
        Evaluator(run.model_name, run.version_name, server.url, "mldbg_" + "0" * 20).list_results()


@pytest.mark.parametrize("seconds", [0.04, 0.6], ids=["while it asks", "while it waits"])
def test_ctrl_c_cancels_the_evaluation_there(at_service, seconds):
    def interrupt(*_):
        raise KeyboardInterrupt

    name = f"stopped after {seconds}"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        with pytest.raises(KeyboardInterrupt):
            at_service.request_evaluation(name, options={"repeats": 20, "null_run": True})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    expect_free(at_service, name)


def test_ctrl_c_as_it_begins_to_ask_cancels_the_evaluation_there(at_service, monkeypatch):
    class Interrupted(threading.Thread):
        def start(self):
            super().start()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mld_core.service.client.remote.threading.Thread", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            at_service.request_evaluation("stopped at once", options={"repeats": 20, "null_run": True})
    expect_free(at_service, "stopped at once")


def expect_free(at_service, name):
    """The name is free again, which it is not while an evaluation of that name is on its way, or is done."""
    until, result = time.monotonic() + 60, None
    while result is None and time.monotonic() < until:
        with contextlib.suppress(ResultExistsError):
            result = at_service.request_evaluation(name, options=QUICK)
    assert result is not None
    assert result.info["options"] == {**QUICK, "progress": False}


def test_ctrl_c_does_not_wait_for_a_service_that_hangs(at_service, server, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    run_id = at_service._elsewhere._run_id()
    monkeypatch.setattr(RemoteEvaluator, "_run_id", lambda self: run_id)  # what is asked before the request
    before = signal.signal(signal.SIGALRM, interrupt)
    server.process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            at_service.request_evaluation("asked of nobody", options=QUICK)
        assert time.monotonic() - begun < 30  # the request itself would wait for 90
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        server.process.send_signal(signal.SIGCONT)


def at_server(api, run_id):
    """Every sealed rank at the server: (split, epoch, pass, attempt, rank) -> manifest."""
    found = {}
    for one in api.get(f"/v1/runs/{run_id}/passes", params={"limit": 1000})["items"]:
        detail = api.get(f"/v1/runs/{run_id}/passes/{one['pass_id']}")
        for rank in detail["ranks"]:
            key = (one["dataset_type"], one["n_epoch"], one["pass_no"], rank["attempt"], rank["rank"])
            assert key not in found
            found[key] = rank["manifest"]
    return found


def at_home(store, run):
    ranks = [read_sealed(folder) for folder in sealed_folders(store, run)]
    return {
        (
            r.opened.dataset_type,
            r.opened.n_epoch,
            r.opened.pass_no,
            r.opened.attempt,
            r.opened.rank,
        ): r.manifest
        for r in ranks
    }


def test_two_ranks_and_a_server_that_is_killed_lose_and_double_nothing(records, parts, tmp_path):
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run()
    for epoch in range(8):
        data = records.make_data(400, seed=epoch, start=1000 * epoch)
        factory.add_pass(run, "train", data, n_epoch=epoch, world_size=2)
    server = parts.ServerProcess(tmp_path / "data", workers=0).start()
    try:
        made = [
            UploadSettings(str(factory.store.root), *("net", "v1", "x-000"), rank, 2, server.url, server.key)
            for rank in range(2)
        ]
        pair = [UploadHelper(one) for one in made]
        folders = list(sealed_folders(factory.store, run))
        for number, folder in enumerate(folders):
            pair[number % 2].submit(folder)
        for _ in range(2):
            time.sleep(0.4)
            server.kill()
            server.start()
        threads = [
            threading.Thread(target=helper.wait, args=(folders[rank::2], 90))
            for rank, helper in enumerate(pair)
        ]
        [thread.start() for thread in threads]
        [thread.join(100) for thread in threads]
        [helper.finish() for helper in pair]
        api = server.api()
        (listed,) = api.get("/v1/runs")["items"]
        assert at_server(api, listed["run_id"]) == at_home(factory.store, run)
        # All of them again, whatever the notes say: nothing is sent.
        rows = sync(factory.store, server.url, server.key, again=True)
        assert [(row.state, row.bytes) for row in rows] == [("there", 0)] * 16
        # Restored from a backup that lacks a file: the seal is there, the file comes again.
        lost = read_sealed(folders[3]).files[0]
        (blob,) = (tmp_path / "data" / "blobs").rglob(f"{lost.sha256}*")
        blob.unlink()
        rows = sync(factory.store, server.url, server.key, again=True)
        assert [row.bytes for row in rows if row.state == "uploaded"] == [lost.bytes]
        assert blob.stat().st_size == lost.bytes
    finally:
        server.stop()


# -- commands ------------------------------------------------------------------------------------------------


def test_the_commands_of_a_team(server, records, tmp_path, monkeypatch):
    key = server.new_key("read", "write", organization="team")
    factory = records.StoreFactory(tmp_path / "store")
    factory.standard("team_net", "v1")
    factory.standard("team_net", "v2", seed=5)
    monkeypatch.setenv("MLD_HOME", str(factory.store.root))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLD_API_ENDPOINT", "MLD_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def mld(*arguments):
        return CliRunner().invoke(app, arguments)

    nobody = mld("sync")
    assert (nobody.exit_code, "set MLD_API_ENDPOINT" in nobody.output) == (3, True)
    monkeypatch.setenv("MLD_API_ENDPOINT", server.url)
    monkeypatch.setenv("MLD_API_KEY", key)
    empty = mld("ls", "--remote")
    assert (empty.exit_code, "`mld sync` uploads" in empty.output) == (3, True)

    one = mld("sync", "team_net", "v1", "--json")
    assert one.exit_code == 0, one.output
    rows = json.loads(one.stdout)
    assert [row["state"] for row in rows] == ["uploaded"] * 5
    assert "5 of 5 passes sent" in one.stderr
    rest = mld("sync", "--all")
    assert "5 of 5 passes sent" in rest.stderr
    assert "5 were there already" in rest.stderr
    assert mld("sync", "--all", "team_net").exit_code == 2

    listed = json.loads(mld("ls", "--remote", "--json").stdout)
    assert [(row["model"], row["version"]) for row in listed] == [("team_net", "v1"), ("team_net", "v2")]
    found = json.loads(mld("ls", "team_net", "v1", "--remote", "--json").stdout)
    assert sorted((row["dataset"], row["rows"], row["state"]) for row in found) == [
        ("test", 150, "sealed"),
        *[("train", 300, "sealed")] * 2,
        *[("val", 200, "sealed")] * 2,
    ]
    done = mld("evaluate", "--dataset", "test", "--name", "first")
    assert done.exit_code == 0, done.output
    (result,) = json.loads(mld("ls", "team_net", "v2", "--remote", "--results", "--json").stdout)
    assert result["result_name"] == "first"
    wrong = mld("ls", "team_nett", "--remote")
    assert (wrong.exit_code, "did you mean 'team_net'" in wrong.output) == (3, True)
    _read_there(mld, factory.store.root, tmp_path)


def _read_there(mld, root, tmp_path):
    """show, compare and report read the service's results where one is set, and a store's where one is named."""
    assert mld("evaluate", "team_net", "v1", "--dataset", "test", "--name", "before").exit_code == 0
    for names, found in ((("show",), "first"), (("show", "team_net", "v1"), "before")):
        assert json.loads(mld(*names, "--json").stdout)["result_name"] == found
    for pair in (("v1", "v2"), ("before", "first"), ("team_net/v1", "first")):
        done = mld("compare", *pair, "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert (found["a"], found["b"]) == ("before", "first")
    nothing = mld("compare", "v1", "v9")
    assert (nothing.exit_code, "nothing is named 'v9'" in nothing.output) == (3, True)
    here = mld("show", "team_net", "v2", "--store", str(root))
    assert (here.exit_code, "has no results yet" in here.output) == (3, True)
    need_pages()
    page = tmp_path / "page.html"
    done = mld("report", "before", "first", "-o", str(page))
    assert done.exit_code == 0, done.output
    assert page.stat().st_size > 10_000


def test_sync_says_what_it_could_not_send(server, records, tmp_path, monkeypatch):
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.standard("half", "v1", seed=77)
    victim = read_sealed(next(sealed_folders(factory.store, run))).files[0].path
    victim.write_bytes(victim.read_bytes()[:-5])
    monkeypatch.setenv("MLD_API_KEY", server.key)
    arguments = ["sync", "--store", str(factory.store.root), "--endpoint", server.url]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "mld doctor" in done.stderr
    assert "4 of 5 passes sent" in done.stderr
    monkeypatch.setenv("MLD_API_KEY", "mldbg_wrong")
    refused = CliRunner().invoke(app, arguments)
    assert (refused.exit_code, "did not accept the API key" in refused.output) == (1, True)
    begun = time.monotonic()
    nobody = CliRunner().invoke(app, [*arguments[:-1], "http://127.0.0.1:9"])
    assert (nobody.exit_code, "cannot reach the service" in nobody.output) == (1, True)
    assert time.monotonic() - begun < 20


def test_the_client_comes_back_when_the_server_does(parts, tmp_path):
    server = parts.ServerProcess(tmp_path / "data", workers=0).start()
    client = Client(server.url, server.key, Patience(30.0, first=0.1))
    assert client.whoami()["organization"] == "default"
    server.kill()
    back = threading.Thread(target=server.start)
    back.start()
    assert client.whoami()["organization"] == "default"
    back.join()
    server.stop()
