"""A store in a bucket of a real S3 server, read in place: the same rows and results as of the folder it was copied from."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time

import pandas as pd
import pyarrow.fs as pafs
import pytest
import server_parts
import slow_proxy
import tracer_parts
from app_building import need_pages
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.evaluation.evaluator import Evaluator
from mld_core.records.format.bucket import UnreachableStoreError, bucket_path
from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.parts import DamagedPartError, open_family
from mld_core.records.read.parts import parts_of
from mld_core.records.read.reader import load, scan, select
from mld_core.tracing.tracers.classification import ClassificationTracer

pytestmark = pytest.mark.processes

RUN = RunKey("net", "v1")


@pytest.fixture(scope="module")
def folder(records, tmp_path_factory):
    """A store of one run with train and val in two parts each."""
    made = records.StoreFactory(tmp_path_factory.mktemp("local") / "store")
    run = made.run()
    for split in ("train", "val"):
        made.add_pass(run, split, records.make_data(400, seed=len(split)), world_size=2)
    return made.store


@pytest.fixture(scope="module")
def s3(tmp_path_factory, folder):
    """A running S3-compatible server whose bucket holds a copy of the store."""
    found = server_parts.S3Server(tmp_path_factory.mktemp("s3"))
    if found.missing:
        pytest.skip(found.missing)
    shutil.copytree(folder.root, found.folder / "objects" / found.bucket / "team" / "store")
    found.start()
    yield found
    found.stop()


@pytest.fixture
def home(s3, tmp_path, monkeypatch):
    """The environment of somebody who reads the bucket: keys and a home of their own."""
    for name in ("MLD_API_ENDPOINT", "MLD_API_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**s3.env, "AWS_ENDPOINT_URL": s3.url, "MLD_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "home"


@pytest.fixture
def url(s3, home):
    return f"s3://{s3.bucket}/team/store"


def mld(*words):
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("table", ["samples", "vectors"])
def test_rows_are_those_of_the_folder(folder, url, table):
    assert load("net", "v1", table, store=url).equals(load("net", "v1", table, store=folder))
    batches = list(scan("net", "v1", table, "val", store=url, batch_rows=64))
    assert sum(batch.num_rows for batch in batches) == 400
    assert max(batch.num_rows for batch in batches) <= 64


def test_a_path_goes_to_another_process_with_its_endpoint_and_without_keys(url, s3, monkeypatch):
    shipped = pickle.dumps(select(Store(url), RUN)[0].sources[0].folder)
    assert s3.secret.encode() not in shipped
    assert s3.key.encode() not in shipped
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert pickle.loads(shipped).parts()[0]


@pytest.mark.parametrize("engine", ["memory", "rounds"])
def test_results_are_those_of_the_folder_and_lie_on_this_machine(folder, url, s3, home, engine):
    asked = {"engine": engine, "repeats": 1, "threads": 2}
    before = sorted((s3.folder / "objects").rglob("*"))
    made = Evaluator("net", "v1", store=url).request_evaluation(f"there {engine}", options=asked)
    own = Evaluator("net", "v1", store=folder.root).request_evaluation(f"here {engine}", options=asked)
    assert made.folder.is_relative_to(home)
    assert sorted((s3.folder / "objects").rglob("*")) == before
    pd.testing.assert_frame_equal(made.metrics_summary(full=True), own.metrics_summary(full=True))
    for one in own.info["passes"]:
        pd.testing.assert_frame_equal(*(pd.read_parquet(it.folder / one["units"]) for it in (made, own)))
    # Whoever asks again finds it, under the name it got.
    code, out, err = mld("ls", "net", "v1", "--results", "--store", url, "--json")
    assert code == 0, err
    assert f"there {engine}" in [one["result_name"] for one in json.loads(out)]


def test_a_server_that_is_overrun_is_not_told_as_missing_keys(monkeypatch):
    """A machine's role reads without `AWS_ACCESS_KEY_ID`."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    place = bucket_path("s3://records/team")
    said = str(place.unreachable(OSError("When listing: AWS Error SLOW_DOWN during ListObjectsV2 operation")))
    assert "SLOW_DOWN" in said
    assert "AWS_ACCESS_KEY_ID" not in said


def test_its_results_are_compared_and_reported(url, tmp_path):
    need_pages()
    for name, repeats in (("one", 1), ("two", 2)):
        asked = {"repeats": repeats, "threads": 1, "dataset_types": ["val"]}
        Evaluator("net", "v1", store=url).request_evaluation(name, options=asked)
    code, out, err = mld("compare", "one", "two", "--store", url, "--json")
    assert code == 0, err
    assert "val" in out
    page = tmp_path / "page.html"
    code, _, err = mld("report", "one", "-o", str(page), "--store", url)
    assert code == 0, err
    assert page.stat().st_size > 100_000


def test_parts_are_read_as_they_are_walked_over(url, home):
    """Nothing of the records lies on this machine afterwards."""
    Evaluator("net", "v1", store=url).request_evaluation("left", options={"engine": "rounds", "repeats": 1})
    assert not [path for path in home.rglob("*") if path.name in {"samples.parquet", "vectors.parquet"}]


def test_the_commands_that_read(url, folder):
    code, out, err = mld("ls", "--store", url, "--json")
    assert code == 0, err
    assert [(one["model"], one["version"], one["datasets"]) for one in json.loads(out)] == [
        ("net", "v1", ["train", "val"])
    ]
    code, out, _ = mld("ls", "net", "v1", "--store", url, "--json")
    there = json.loads(out)
    assert there == json.loads(mld("ls", "net", "v1", "--store", str(folder.root), "--json")[1])
    code, out, err = mld("evaluate", "--store", url, "--name", "told", "--json")
    assert code == 0, err
    code, out, err = mld("show", "--store", url, "--json")
    assert code == 0, err
    assert "told" in out


def test_a_result_in_the_bucket_is_shown_and_its_name_is_taken(folder, s3, url, home, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    made = Evaluator("net", "v1", store=folder.root).request_evaluation("sent along", options={"repeats": 1})
    sender = pafs.S3FileSystem(
        endpoint_override=s3.url.removeprefix("http://"), scheme="http", region="us-east-1"
    )
    place = f"{s3.bucket}/team/store/{made.folder.relative_to(folder.root)}"
    for path in made.folder.iterdir():
        with sender.open_output_stream(f"{place}/{path.name}") as to:
            to.write(path.read_bytes())
    code, out, err = mld("show", "net", "v1", "--result", "sent along", "--store", url, "--json")
    assert code == 0, err
    assert "sent along" in out
    code, _, err = mld("evaluate", "net", "v1", "--name", "sent along", "--store", url)
    assert code == 2
    assert "'sent along' exists" in err


def test_the_home_itself_may_be_a_bucket(url, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("MLD_HOME", url)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mld("ls", "--json")[0] == 0
    made = Evaluator("net", "v1").request_evaluation("at home", options={"repeats": 1})
    assert made.folder.is_relative_to(tmp_path / ".mld")


# -- what is wrong -------------------------------------------------------------------------------------------


def told(*words):
    """What a command says of a mistake, in how many seconds."""
    start = time.monotonic()
    code, _, err = mld(*words)
    assert code != 0
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    return err, time.monotonic() - start


def test_a_wrong_bucket_is_said(url, s3):
    err, seconds = told("ls", "--store", "s3://nowhere/store")
    assert "nowhere" in err
    assert "expected s3://bucket/prefix" in err
    assert seconds < 10


def test_a_wrong_prefix_is_said(url, s3):
    err, _ = told("ls", "--store", f"s3://{s3.bucket}/elsewhere")
    assert "there is no store at" in err
    assert "give s3://bucket/prefix" in err


def test_wrong_keys_are_said(url, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    err, seconds = told("ls", "--store", f"{url}?region=us-east-2")  # a file system of its own
    assert "AWS_ACCESS_KEY_ID='somebody'" in err
    assert "set AWS_ACCESS_KEY_ID" in err
    assert seconds < 10


def test_no_keys_are_said(url, s3, tmp_path):
    """In a process of its own: the keys of this one are in use."""
    env = {name: value for name, value in os.environ.items() if name not in s3.env}
    start = time.monotonic()
    command = [sys.executable, "-m", "mld_core.cli.main", "ls", "--store", url]
    done = subprocess.run(
        command, env={**env, "HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "no AWS_ACCESS_KEY_ID is set" in done.stderr
    assert time.monotonic() - start < 30


def test_a_dead_endpoint_is_said(url, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
    err, seconds = told("ls", "--store", f"s3://records/x?endpoint_override={dead}")
    assert "can not be read" in err
    assert "AWS_ENDPOINT_URL" in err
    assert seconds < 10


def test_an_endpoint_that_takes_and_never_answers_is_said(url):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        err, seconds = told(
            "ls", "--store", f"s3://records/x?endpoint_override=http://127.0.0.1:{silent.getsockname()[1]}"
        )
    assert "can not be read" in err
    assert seconds < 20


def test_an_address_with_keys_or_without_a_bucket_is_refused():
    for wrong, why in {
        "s3://key:secret@records/x": "holds no keys",
        "s3://": "no bucket is named",
        "s3://records/x?endpoint=http://a": r"unknown \['endpoint'\]",
    }.items():
        with pytest.raises(ValueError, match=why) as caught:
            Store(wrong)
        assert "secret" not in str(caught.value)


def test_a_bucket_that_goes_away_is_no_absent_pass_and_no_damage(folder, tmp_path, home):
    own = server_parts.S3Server(tmp_path / "s3")
    shutil.copytree(folder.root, own.folder / "objects" / own.bucket / "store")
    own.start()
    store = Store(f"s3://{own.bucket}/store?endpoint_override={own.url}")
    selection = select(store, RUN, dataset_type="val")[0]
    reading = selection.batches("samples", None, 10)
    next(reading)
    own.kill()
    with pytest.raises(UnreachableStoreError, match="can not be read"):
        select(store, RUN)
    with pytest.raises(UnreachableStoreError, match="can not be read"):
        load("net", "v1", store=store)
    with pytest.raises(UnreachableStoreError, match="can not be read"):
        list(reading)


def test_a_damaged_part_is_damage(folder, s3, url, tmp_path):
    part = next((s3.folder / "objects").rglob("val/**/samples.parquet"))
    whole = part.read_bytes()
    part.write_bytes(b"\0" * len(whole))
    try:
        chosen = select(Store(url), RUN, dataset_type="val")[0]
        assert len(chosen.torn) == 1
        assert "footer" in chosen.torn[0]
        with pytest.raises(DamagedPartError):
            open_family(
                bucket_path(url)
                / part.parent.relative_to(s3.folder / "objects" / s3.bucket / "team" / "store"),
                "samples",
            )
    finally:
        part.write_bytes(whole)


@pytest.mark.parametrize("words", [("gc",), ("rm", "net"), ("doctor",), ("ui", "--no-browser")])
def test_what_works_on_a_folder_alone_says_so(url, words):
    err, _ = told(*words, "--store", url)
    assert "Copy it to a folder first" in err


def test_a_training_does_not_record_there_and_goes_on(url, s3, monkeypatch, tmp_path, caplog):
    """Nothing is made beside the training, neither in the bucket nor in a folder called s3:."""
    monkeypatch.setenv("MLD_HOME", f"s3://{s3.bucket}/fresh")
    monkeypatch.chdir(tmp_path)
    x, y, ids = tracer_parts.batch()
    tracer = ClassificationTracer(tracer_parts.net(), "net", "v1")
    out = tracer(x, y, ids, "val", 0)
    tracer.wait_for_save(0)
    assert tuple(out.shape) == (5, tracer_parts.K)
    assert "is read in place and never written" in caplog.text
    assert not list(tmp_path.glob("s3*"))
    assert not (s3.folder / "objects" / s3.bucket / "fresh").exists()


def test_many_parts_are_asked_for_at_once_and_never_more_than_a_few(s3, home, records, tmp_path, monkeypatch):
    """The way to a bucket is long: a pass of 24 parts is planned in the time of a few requests, not of all of them."""
    server = server_parts.S3Server(tmp_path / "s3")
    made = records.StoreFactory(server.folder / "objects" / server.bucket)
    for model, ranks in (("parts", 1), ("ranks", 12)):
        data = records.make_data(240, seed=ranks)
        made.add_pass(made.run(model), "val", data, world_size=ranks, batch=10, roll_mb=1e-3)
    server.start()
    proxy = slow_proxy.SlowProxy(server.url, 0.05)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    try:
        for model in ("parts", "ranks"):
            proxy.requests = proxy.most = 0
            begun = time.monotonic()
            parts = parts_of(select(Store(f"s3://{server.bucket}"), RunKey(model, "v1"))[0])
            seconds = time.monotonic() - begun
            print(f"{model}: {proxy.requests} requests, {proxy.most} at once, {seconds:.1f} s")
            own = parts_of(select(made.store, RunKey(model, "v1"))[0])
            assert [one.part for one in parts] == [one.part for one in own]
            assert len(parts) == 24
            assert 12 <= proxy.most <= 16
            assert seconds < proxy.requests * proxy.seconds / 2
    finally:
        proxy.stop()
        server.stop()
