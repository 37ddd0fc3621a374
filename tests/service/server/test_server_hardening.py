"""What a second reading of the server found: endless trailers, locked-out colleagues, files nobody needs."""

import os
import socket
import sqlite3
import sys
import threading
import time

import pytest
from sqlalchemy import func, select, update

from mld_core.service.client import uploader
from mld_core.service.client.api import Client
from mld_core.service.client.sealed import read_sealed, sealed_folders
from mld_core.service.client.uploader import Uploader
from mld_core.service.protocol import problem_name
from mld_core.service.server.settings import load_settings
from mld_core.service.server.storage.backends import open_storage
from mld_core.service.server.storage.checks import CheckDied, CheckProcess
from mld_core.service.server.storage.collect import collect
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.keys import Authenticator, Principal, bootstrap
from mld_core.service.server.storage.models import Blob, Organization, SealFile
from mld_core.service.server.storage.uploads import Uploads

pytestmark = pytest.mark.processes


# -- the connection ------------------------------------------------------------------------------------------


def closed_after(sock, data, most, pause=0.0, seconds=20.0):
    """Send `data` again and again until the server hangs up; the bytes it took, at most `most`."""
    sent, end = 0, time.monotonic() + seconds
    try:
        while sent < most and time.monotonic() < end:
            sock.sendall(data)
            sent += len(data)
            time.sleep(pause)
    except OSError:
        return sent
    return most


@pytest.mark.parametrize("line", [b"a: " + b"b" * 1000 + b"\r\n", b"b" * 1000], ids=["many", "one"])
def test_headers_after_a_body_are_limited_like_those_before(server, line):
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 20) as sock:
        sock.sendall(head + (b"" if line.endswith(b"\n") else b"a: "))
        assert closed_after(sock, line, 64 << 20) < 32 << 20  # what lies in the system's buffers counts, too
    assert server.healthy()


def test_the_rest_of_a_body_that_was_answered_does_not_hold_the_connection(parts, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", idle_timeout=1, workers=0).start()
    try:
        with socket.create_connection(("127.0.0.1", process.port), 20) as sock:
            sock.sendall(b"GET /v1/whoami HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
            assert b" 401 " in sock.recv(4096)
            begun = time.monotonic()
            assert closed_after(sock, b"x", 900, pause=0.1) < 900
            assert time.monotonic() - begun < 10
    finally:
        process.stop()


# -- keys ----------------------------------------------------------------------------------------------------


def test_a_key_that_may_only_write_uploads_all_there_is(server, records, tmp_path):
    factory = records.StoreFactory(tmp_path / "store")
    factory.standard("written", "v1", seed=3)
    job = Uploader(factory.store, Client(server.url, server.new_key("write", organization="writer")))
    assert [job.send(rank).state for rank in job.plan(factory.store.runs())] == ["uploaded"] * 5
    again = Uploader(
        factory.store, Client(server.url, server.new_key("write", organization="writer")), again=True
    )
    assert {again.send(rank).state for rank in again.plan(factory.store.runs())} == {"there"}


def test_somebodys_wrong_key_does_not_lock_out_a_colleague_at_the_same_address(parts, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", workers=0).start()
    try:
        wrong = process.api("mldbg_" + "1" * 24 + "_" + "2" * 64)
        assert any(wrong("GET", "/v1/whoami").status_code == 429 for _ in range(300))
        assert process.api()("GET", "/v1/whoami").status_code == 200
        assert any(wrong("GET", "/v1/whoami").status_code == 429 for _ in range(300))
    finally:
        process.stop()


class Interrupted(Database):
    """A database in whose reads somebody else gets a word in."""

    def __init__(self, url):
        super().__init__(url)
        self.meanwhile = lambda: None

    def read(self):
        self.meanwhile()
        return super().read()


def test_what_was_asked_before_a_revocation_is_not_remembered_after_it(tmp_path):
    database = Interrupted(f"sqlite:///{tmp_path / 'x.sqlite3'}")
    database.migrate()
    header = f"Bearer {bootstrap(database)}"
    keys = Authenticator(database)
    assert keys.ask(header) is not None
    assert keys.remembered(header) is not None
    keys.forget()
    database.meanwhile = keys.forget  # revoked between the question and the answer
    assert keys.ask(header) is not None
    assert keys.remembered(header) is None
    database.close()


# -- bodies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [20, 300, 900, 5000])
def test_values_nested_however_deeply_are_no_fault_of_the_server(server, depth):
    value = '{"a":' * depth + "1" + "}" * depth
    bodies = {
        "/v1/runs": f'{{"model_name": "deep", "version_name": "v", "info": {value}}}',
        f"/v1/runs/{server.api().run('deep', 'options')}/evaluations": f'{{"options": {value}}}',
    }
    for path, body in bodies.items():
        answer = server.api()("POST", path, data=body, headers={"Content-Type": "application/json"})
        expected = {200, 201, 202} if depth < 50 else {400, 422}
        assert answer.status_code in expected, answer.text


def test_the_info_of_a_run_stays_small(server):
    api = server.api(server.new_key("read", "write", organization="large info"))
    run_id = api.run("large", "v1")
    codes = [
        api("PATCH", f"/v1/runs/{run_id}", json={"info": {f"member {number}": "x" * 6_000}}).status_code
        for number in range(4)
    ]
    assert codes == [200, 200, 413, 413]
    assert problem_name(api("POST", "/v1/runs", json=_run(info={"x": "x" * 200_000})).json()) == "too-large"
    assert len(api.get(f"/v1/runs/{run_id}")["info"]) == 2


def _run(**more):
    return {"model_name": "large", "version_name": "v2", **more}


def test_unfinished_uploads_count_against_the_quota(parts, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", workers=0, quota_gb=100_000 / (1 << 30)).start()
    try:
        api = process.api()
        first, second = os.urandom(60_000), os.urandom(60_000)
        digest = parts.hashlib.sha256(first).hexdigest()
        assert not api.put(first[:50_000], sha256=digest, length=60_000).json()["complete"]
        assert problem_name(api.put(second).json()) == "storage-full"
        assert api.put(first, offset=50_000).status_code == 201  # its own bytes do not count twice
        assert problem_name(api.put(second).json()) == "storage-full"
    finally:
        process.stop()


# -- what lies about -----------------------------------------------------------------------------------------


def a_server_at_rest(folder):
    settings = load_settings({"data": folder}, {})
    database = Database(settings.database_url)
    database.migrate()
    bootstrap(database)
    with database.read() as session:
        owner = session.scalars(select(Organization)).one()
    who = Principal("key", "key", owner.pk, owner.id, owner.name, True, frozenset(), None)
    return settings, database, who


def test_a_sweep_leaves_uploads_that_are_being_opened(tmp_path):
    settings, database, who = a_server_at_rest(tmp_path / "data")
    uploads = Uploads(settings, database, open_storage(settings))
    digests = ["0" * 64, "1" * 64]
    for digest in digests:
        upload = uploads.begin(who, digest, 10, 0)
        upload.write([b"12345"])
        uploads.interrupt(who, digest, upload)
        os.utime(upload.path, (1, 1))
    uploads._open[(who.organization_id, digests[0])] = (
        None  # somebody continues it: it is looked at right now
    )
    assert uploads.sweep() == 1
    assert uploads.partial(who, digests[0]) == (5, 10)
    assert uploads.partial(who, digests[1]) is None
    database.close()


def test_a_check_that_can_not_be_started_is_one_that_died(tmp_path, monkeypatch):
    process = CheckProcess(load_settings({"data": tmp_path}, {}))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    with pytest.raises(CheckDied):
        process.check(str(tmp_path))


@pytest.fixture(params=["sqlite+folder", "postgresql+s3"])
def place(request, parts, tmp_path):
    """A server on each pair, and the settings to look at its data with."""
    if request.param == "sqlite+folder":
        process, options = parts.ServerProcess(tmp_path / "data", workers=0), {}
    else:
        postgres, s3 = request.getfixturevalue("postgres"), request.getfixturevalue("s3")
        at = ["-h", "127.0.0.1", "-p", str(postgres.port), "-U", "mld"]
        name = f"needed_{tmp_path.name}".lower()
        parts.subprocess.run([postgres.tool("createdb"), *at, name], check=True)
        options = {
            "database": f"postgresql://mld@127.0.0.1:{postgres.port}/{name}",
            "storage": f"s3://{s3.bucket}/{name}",
            "s3_endpoint": s3.url,
        }
        process = parts.ServerProcess(tmp_path / "data", workers=0, **options)
        process.env |= s3.env
        monkeypatch = request.getfixturevalue("monkeypatch")
        for name, value in s3.env.items():
            monkeypatch.setenv(name, value)
    process.start()
    settings = load_settings({"data": process.data, **options}, {})
    database = Database(settings.database_url)
    yield process, database, open_storage(settings)
    database.close()
    process.stop()


def test_files_that_nobody_sealed_are_removed_and_can_come_again(place, recorded, parts):
    process, database, storage = place
    api = process.api()
    run_id = api.sync(*recorded)
    abandoned, junk = os.urandom(5000), b"PK\x03\x04" * 100
    names = [parts.hashlib.sha256(one).hexdigest() for one in (abandoned, junk)]
    sizes = [api.get("/v1/organizations")["items"][0]["blob_bytes"]]
    for content in (abandoned, junk):
        assert api.put(content).status_code == 201
    with database.read() as session:
        rows = session.scalar(select(func.count()).select_from(Blob))
    assert collect(database, storage, 1.0) == (0, 0)  # too young
    # A file that the server is looking at just then is left for the next round.
    rounds = [collect(database, storage, 0.0)]
    end = time.monotonic() + 60
    while sum(count for count, _ in rounds) < 2 and time.monotonic() < end:
        time.sleep(0.1)
        rounds.append(collect(database, storage, 0.0))
    assert tuple(map(sum, zip(*rounds, strict=True))) == (2, 5400)
    assert collect(database, storage, 0.0) == (0, 0)
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Blob)) == rows - 2
    assert [api("HEAD", f"/v1/blobs/{name}").status_code for name in names] == [404, 404]
    assert api.get("/v1/organizations")["items"][0]["blob_bytes"] == sizes[0]
    for one in api.get(f"/v1/runs/{run_id}/passes")["items"]:
        for rank in api.get(f"/v1/runs/{run_id}/passes/{one['pass_id']}")["ranks"]:
            for file in rank["files"]:
                assert len(api("GET", f"/v1/blobs/{file['sha256']}").content) == file["bytes"]
    assert api.put(abandoned).status_code == 201
    assert api("GET", f"/v1/blobs/{names[0]}").content == abandoned


def test_removing_goes_on_beside_uploads_and_loses_nothing_that_was_sealed(
    place, records, tmp_path, monkeypatch
):
    monkeypatch.setattr(uploader, "RANKS_SINCE", 99)  # file by file, as large ranks go: there is time between
    process, database, storage = place
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run("beside", "v1")
    for epoch in range(5):
        factory.add_pass(run, "val", records.make_data(40, seed=epoch), n_epoch=epoch)
    done, removed = threading.Event(), []

    def remove():
        pause = 0.05
        while not done.wait(pause):
            removed.append(collect(database, storage, 0.0)[0])
            pause *= (
                1.2 if removed[-1] else 1.0
            )  # a slow machine would never get through between two removals

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        left, end = True, time.monotonic() + 120
        while left and time.monotonic() < end:
            job = Uploader(factory.store, Client(process.url, process.key))
            try:
                left = any(job.send(rank).state == "failed" for rank in job.plan([run]))
            except ConnectionError:  # four times in a row it was removed between its upload and its seal
                continue
    finally:
        done.set()
        thread.join()
    assert not left
    assert sum(removed) > 0
    api = process.api()
    found = 0
    for one in api.get("/v1/runs")["items"]:
        for owner in api.get(f"/v1/runs/{one['run_id']}/passes")["items"]:
            for rank in api.get(f"/v1/runs/{one['run_id']}/passes/{owner['pass_id']}")["ranks"]:
                for file in rank["files"]:
                    content = api("GET", f"/v1/blobs/{file['sha256']}")
                    assert (content.status_code, len(content.content)) == (200, file["bytes"])
                    found += 1
    assert found == sum(len(read_sealed(one).files) for one in sealed_folders(factory.store, run))


def test_a_file_whose_bytes_are_gone_is_asked_for_again(place, records, tmp_path):
    process, database, storage = place
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run("gone", "v1")
    factory.add_pass(run, "val", records.make_data(40, seed=77))
    api = process.api()
    run_id = api.run("gone", "v1", **factory.store.run_info(run))
    (folder,) = sealed_folders(factory.store, run)
    body = api.upload_rank(folder)
    digest = read_sealed(folder).files[0].sha256
    (organization,) = api.get("/v1/organizations")["items"]
    time.sleep(1.0)
    with database.write() as session:  # as a removal leaves it that was killed half-way
        session.execute(update(Blob).where(Blob.sha256 == digest).values(state="stored"))
    storage.remove(organization["organization_id"], digest)
    for copy in (process.data / "cache").rglob(digest):
        copy.unlink()
    begun = time.monotonic()
    answer = api.seal(run_id, body)
    assert (problem_name(answer.json()), answer.json()["missing"]) == ("missing-blobs", [digest])
    assert time.monotonic() - begun < 20
    assert api("GET", f"/v1/blobs/{digest}").status_code == 404
    assert api.seal(run_id, api.upload_rank(folder)).status_code == 201
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(SealFile)) == len(read_sealed(folder).files)


def test_who_asks_does_not_choose_how_many_threads_the_server_takes(server, recorded):
    api = server.api(server.new_key("read", "write", organization="threads"))
    run_id = api.sync(*recorded)
    body = {"options": {"threads": 900, "dataset_types": ["test"], "repeats": 1}}
    job = api.finished(api("POST", f"/v1/runs/{run_id}/evaluations", json=body).json()["job_id"])
    assert job["state"] == "done"
    options = api.get(f"/v1/results/{job['result_id']}")["info"]["options"]
    assert "threads" not in options


def test_the_server_removes_what_nobody_needs_by_itself(parts, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", workers=0).start()
    content = b"nobody sealed this"
    assert process.api().put(content).status_code == 201
    process.stop()
    with sqlite3.connect(process.data / "mld.sqlite3") as database:
        database.execute("update blobs set created_at = '2020-01-01T00:00:00.000000+00:00'")
    process.start()
    try:
        name = parts.hashlib.sha256(content).hexdigest()
        parts.wait_for(lambda: process.api()("HEAD", f"/v1/blobs/{name}").status_code == 404)
        said = f"removed 1 files ({len(content)} bytes) that nobody sealed"
        parts.wait_for(lambda: said in process.log.read_text())  # a moment after it is gone
    finally:
        process.stop()
