"""Small ranks in one request each: whole or not at all, durable, and nothing counted twice, whatever dies."""

import hashlib
import json
import os
import socket
import sqlite3
import threading
import time

import pytest
from sqlalchemy import event

from mld_core.service.client import uploader
from mld_core.service.client.api import Client
from mld_core.service.client.errors import DamagedFileError
from mld_core.service.client.sealed import read_sealed, sealed_folders
from mld_core.service.client.transport import Patience
from mld_core.service.client.uploader import Uploader
from mld_core.service.protocol import MAX_RANK_BYTES, MAX_RANK_HEAD, problem_name
from mld_core.service.server.routes.forms import RunForm
from mld_core.service.server.routes.runs import _find_or_create
from mld_core.service.server.service import Service
from mld_core.service.server.settings import Settings
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.keys import bootstrap

pytestmark = pytest.mark.processes

PASSES = 24


def digest(content):
    return hashlib.sha256(content).hexdigest()


def packed(*contents, names=None):
    """A body: a line that names the files, and their bytes."""
    named = [[name, len(one)] for name, one in zip(names or map(digest, contents), contents, strict=True)]
    return json.dumps({"files": named}).encode() + b"\n" + b"".join(contents)


def contents_of(rank):
    return [*(file.path.read_bytes() for file in rank.files), rank.text]


def sent(api, run_id, body):
    return api("POST", f"/v1/runs/{run_id}/ranks", data=body)


@pytest.fixture
def owner(server, recorded):
    """A key of an organization of its own, its run, and the ranks of a store."""
    store, run = recorded
    api = server.api(server.new_key("read", "write", organization=f"ranks {os.urandom(4).hex()}"))
    run_id = api.run(run.model_name, run.version_name, **store.run_info(run))
    return api, run_id, [read_sealed(folder) for folder in sealed_folders(store, run)]


def test_a_rank_is_sealed_in_one_request_and_read_back(owner):
    api, run_id, ranks = owner
    for rank in ranks:
        body = packed(*contents_of(rank))
        first, again = sent(api, run_id, body), sent(api, run_id, body)
        assert (first.status_code, again.status_code) == (201, 200), first.text
        assert first.json() == again.json()
    passes = api.get(f"/v1/runs/{run_id}/passes")["items"]
    assert len(passes) == len(ranks)
    assert all(one["sealed"] for one in passes)
    (found,) = api.get(f"/v1/runs/{run_id}/passes/{passes[0]['pass_id']}")["ranks"]
    assert found["manifest"] == ranks[0].manifest
    for file in found["files"]:
        assert digest(api("GET", f"/v1/blobs/{file['sha256']}").content) == file["sha256"]


def test_of_a_rank_that_is_refused_nothing_is_kept(owner):
    api, run_id, (rank, *_) = owner
    first, *rest = contents_of(rank)
    wrong = first[:-10] + bytes(10)
    claimed = [digest(first), *map(digest, rest)]
    manifest = json.loads(rank.text)
    manifest["parts"][0]["files"] = {
        family: {**info, "sha256": digest(wrong) if info["sha256"] == digest(first) else info["sha256"]}
        for family, info in manifest["parts"][0]["files"].items()
    }
    broken = json.dumps(manifest).encode()
    tries = {
        (409, "digest-mismatch"): packed(wrong, *rest, names=claimed),
        (422, "refused-part"): packed(wrong, *rest[:-1], broken),
        (400, "bad-request"): packed(*rest),  # a file of the manifest is not in it
        (422, "invalid"): packed(first, b'{"no": "manifest"}'),
    }
    for expected, body in tries.items():
        answer = sent(api, run_id, body)
        assert (answer.status_code, problem_name(answer.json())) == expected, answer.text
    for body in (
        b"",
        b"{}\n",
        b'{"files": []}\n',
        b'{"files": [["x", 1]]}\nx',
        b'{"files": [["' + b"0" * 64 + b'", -1]]}\n',
        packed(first)[:-1],
        packed(first) + b"x",
        b"[" * 1000,
        b'{"files": ' + b" " * MAX_RANK_HEAD + b"[]}\n",
    ):
        answer = sent(api, run_id, body)
        assert (answer.status_code, problem_name(answer.json())) == (400, "bad-request"), body[:40]
    large = sent(api, run_id, bytes(MAX_RANK_BYTES + MAX_RANK_HEAD + 1))
    assert (large.status_code, problem_name(large.json())) == (413, "too-large")
    for content in (wrong, first, *rest):
        assert api("HEAD", f"/v1/blobs/{digest(content)}").status_code == 404
    assert api.get(f"/v1/runs/{run_id}/passes")["items"] == []
    assert sent(api, run_id, packed(first, *rest)).status_code == 201


def test_ranks_share_their_connections(server, records, tmp_path, caplog):
    store, run = many_passes(records, tmp_path / "store")
    job = Uploader(store, Client(server.url, server.new_key("read", "write", organization="connections")))
    ranks = job.plan([run])
    with caplog.at_level("DEBUG", logger="urllib3.connectionpool"):
        assert {one.state for one in job.send_all(ranks)} == {"uploaded"}
    opened = [one for one in caplog.messages if one.startswith(("Starting new", "Resetting dropped"))]
    assert 0 < len(opened) <= 4 < len(ranks)


def test_what_a_rank_asks_of_the_database_does_not_grow(tmp_path, records):
    """Statements of one more small rank: an upload of many is mostly these."""
    server = Settings(data=tmp_path / "data")
    service = Service(server)
    service.database.migrate()
    principal = service.keys.ask("Bearer " + bootstrap(service.database))
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run("many")
    for epoch in range(3):
        factory.add_pass(run, "val", records.make_data(40, seed=epoch), n_epoch=epoch)
    form = RunForm(model_name=run.model_name, version_name=run.version_name)
    owner, _ = _find_or_create(service, principal, form)
    service.checks.start()
    try:
        asked = []
        event.listen(service.database.engine, "before_cursor_execute", lambda *what: asked.append(what[2]))
        counts = []
        for folder in sealed_folders(factory.store, run):
            asked.clear()
            with service.uploads.scratch(principal) as body:
                body.write_bytes(packed(*contents_of(read_sealed(folder))))
                assert service.ranks.add(principal, owner.id, body)[1]
            counts.append((len([one for one in asked if one.startswith("BEGIN")]), len(asked)))
        transactions, statements = counts[-1]
        assert transactions <= 3, asked
        assert statements <= 14, asked
    finally:
        service.stop()


def test_other_files_of_a_sealed_rank_are_a_conflict_and_the_first_stand(owner):
    api, run_id, ranks = owner
    rank = ranks[0]
    assert sent(api, run_id, packed(*contents_of(rank))).status_code == 201
    manifest = json.loads(rank.text)
    part = manifest["parts"][0]
    del part["files"]["vectors"]
    manifest["rows"].pop("vectors")
    kept = [file.path.read_bytes() for file in rank.files if file.path.stem in part["files"]]
    answer = sent(api, run_id, packed(*kept, json.dumps(manifest).encode()))
    assert (answer.status_code, problem_name(answer.json())) == (409, "seal-conflict")


def test_a_client_of_the_version_before_sends_file_by_file(server, recorded, monkeypatch):
    store, run = recorded
    key = server.new_key("read", "write", organization="of 1.1")
    monkeypatch.setattr(uploader, "RANKS_SINCE", 99)
    job = Uploader(store, Client(server.url, key), again=True)
    assert [one.state for one in job.send_all(job.plan([run]))] == ["uploaded"] * 5
    monkeypatch.undo()
    known = Uploader(store, Client(server.url, key), again=True)
    assert [known.send(rank).state for rank in known.plan([run])] == ["there"] * 5


def test_a_damaged_file_is_named_and_not_sent_again(server, records, tmp_path):
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.standard()
    client = Client(server.url, server.new_key("read", "write", organization="damaged"), Patience(5.0))
    job = Uploader(factory.store, client)
    rank = job.plan([run])[0]
    file = rank.files[0].path
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedFileError, match=file.name):
        job.upload(rank.folder)
    outcomes = list(job.send_all(job.plan([run])))
    assert [one.state for one in outcomes].count("failed") == 1
    assert [one.state for one in outcomes].count("uploaded") == 4


def many_passes(records, root):
    factory = records.StoreFactory(root)
    run = factory.run("many")
    for epoch in range(PASSES):
        factory.add_pass(run, "val", records.make_data(40, seed=epoch), n_epoch=epoch)
    return factory.store, run


def held(api, run_id):
    """Rows of each epoch, and whether each pass is sealed once."""
    found = api.get(f"/v1/runs/{run_id}/passes", params={"limit": 1000})["items"]
    assert all(len(one["attempts"]) == 1 and one["attempts"][0]["ranks"] == [0] for one in found)
    return {one["n_epoch"]: one["attempts"][0]["rows"]["samples"] for one in found}


def consistent(data, store):
    """Database and files agree, the quota counts what is there, and no body is left lying about."""
    with sqlite3.connect(data / "mld.sqlite3") as database:
        rows = dict(database.execute("select sha256, size from blobs"))
        (counted,) = database.execute("select sum(blob_bytes) from organizations").fetchone()
    files = {path.name: path for path in (data / "blobs").rglob("*") if path.is_file()}
    assert rows.keys() <= files.keys()
    assert all(digest(files[name].read_bytes()) == name for name in rows)
    assert counted == sum(rows.values())
    return [path.name for path in (data / "spool").rglob("*") if path.is_file()]


def test_server_and_client_killed_in_the_middle_leave_whole_ranks_only(parts, records, tmp_path):
    store, run = many_passes(records, tmp_path / "store")
    server = parts.ServerProcess(tmp_path / "data", workers=0).start()
    try:
        client = Client(server.url, server.key, Patience(120.0, first=0.05))
        job = Uploader(store, client)
        ranks = job.plan([run])
        outcomes = []
        sending = threading.Thread(target=lambda: outcomes.extend(job.send_all(ranks)))
        sending.start()
        for _ in range(3):
            seen = len(list((tmp_path / "store").rglob(".uploaded-*")))
            parts.wait_for(
                lambda seen=seen: (
                    len(list((tmp_path / "store").rglob(".uploaded-*"))) > seen or not sending.is_alive()
                )
            )
            server.kill()
            server.start()
        # A client that dies in the middle of its body.
        run_id = server.api().run(run.model_name, run.version_name)
        body = packed(b"half", b"of it")
        with socket.create_connection(("127.0.0.1", server.port)) as cut:
            head = (
                f"POST /v1/runs/{run_id}/ranks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
            )
            cut.sendall(f"{head}Authorization: Bearer {server.key}\r\n\r\n".encode() + body[:-3])
        sending.join(timeout=120)
        assert [one.state for one in outcomes if one.state not in {"uploaded", "there"}] == []
        assert held(server.api(), run_id) == dict.fromkeys(range(PASSES), 40)
        parts.wait_for(lambda: not consistent(server.data, store))
    finally:
        server.stop()


def test_a_file_that_a_lost_power_took_is_laid_again_from_its_pack(parts, records, tmp_path):
    store, run = many_passes(records, tmp_path / "store")
    server = parts.ServerProcess(tmp_path / "data", workers=0).start()
    try:
        job = Uploader(store, Client(server.url, server.key))
        rank, unsent = job.plan([run])[:2]
        assert job.send(rank).state == "uploaded"
        parts.wait_for(lambda: not consistent(server.data, store))
        (organization,) = (server.data / "blobs").iterdir()
        server.kill()
        lost = {path.name: path for path in organization.rglob("*") if path.is_file()}
        for path in lost.values():
            path.write_bytes(b"")
        spool = server.data / "spool" / organization.name
        (spool / "pack-1").write_bytes(packed(*contents_of(rank)))
        (spool / "pack-2").write_bytes(packed(*contents_of(unsent)))  # never answered
        (spool / "pack-3").write_bytes(packed(*contents_of(unsent))[:-5])  # torn
        server.start()
        assert consistent(server.data, store) == []
        there = {path.name for path in organization.rglob("*") if path.is_file()}
        assert there == set(lost)
        assert job.send(unsent).state == "uploaded"
    finally:
        server.stop()


def test_ranks_go_to_s3_as_well(parts, s3, recorded, tmp_path):
    settings = {"storage": f"s3://{s3.bucket}/ranks", "s3_endpoint": s3.url, "workers": 0}
    server = parts.ServerProcess(tmp_path / "data", **settings)
    server.env |= s3.env
    server.start()
    try:
        store, run = recorded
        job = Uploader(store, Client(server.url, server.key))
        assert [one.state for one in job.send_all(job.plan([run]))] == ["uploaded"] * 5
        api = server.api()
        (made,) = api.get("/v1/runs")["items"]
        one = api.get(f"/v1/runs/{made['run_id']}/passes")["items"][0]
        (rank,) = api.get(f"/v1/runs/{made['run_id']}/passes/{one['pass_id']}")["ranks"]
        for file in rank["files"]:
            assert digest(api("GET", f"/v1/blobs/{file['sha256']}").content) == file["sha256"]
        parts.wait_for(lambda: not list((server.data / "spool").rglob("pack-*")))
    finally:
        server.stop()


def test_work_of_several_is_one_transaction_and_ones_error_is_its_own(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'db.sqlite3'}")
    with database.engine.connect() as connection:
        connection.exec_driver_sql("create table seen (name text unique)")
        connection.commit()
    commits, results = [], {}
    begun, free = threading.Event(), threading.Event()

    def slow(session):
        begun.set()
        free.wait(30)
        session.connection().exec_driver_sql("insert into seen values ('slow')")

    def named(name):
        def work(session):
            session.connection().exec_driver_sql("insert into seen values (?)", (name,))
            return name

        return work

    def run(key, work):
        try:
            results[key] = database.together(work)
        except Exception as error:
            results[key] = type(error).__name__

    event.listen(database.engine, "commit", lambda connection: commits.append(1))
    threads = [threading.Thread(target=run, args=("slow", slow))]
    threads[0].start()
    assert begun.wait(30)
    for key, name in (("a", "a"), ("twice", "a"), ("b", "b")):
        threads.append(threading.Thread(target=run, args=(key, named(name))))
        threads[-1].start()
        while len(database._waiting) < len(threads) - 1:
            time.sleep(0.01)
    free.set()
    for thread in threads:
        thread.join(30)
    assert results == {"slow": None, "a": "a", "twice": "IntegrityError", "b": "b"}
    assert len(commits) == 1
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql("select name from seen order by name").all()
    assert [row[0] for row in rows] == ["a", "b", "slow"]
    database.close()
