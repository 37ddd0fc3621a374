"""Uploads: resumed, replayed, forged, too large, too many, on a full disk; seals: all or nothing, once."""

import copy
import hashlib
import io
import json
import os
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from mld_core.service import protocol

pytestmark = pytest.mark.processes


def problem(answer):
    """The short name and the body of a problem; every one has the value, the expectation and the fix."""
    body = answer.json()
    assert answer.headers["content-type"] == protocol.PROBLEM_JSON
    assert protocol.PROBLEMS[protocol.problem_name(body)] == answer.status_code == body["status"]
    assert body["detail"]
    assert body["fix"]
    assert "value" in body
    assert "expectation" in body
    return protocol.problem_name(body), body


def sha(content):
    return hashlib.sha256(content).hexdigest()


def parquet(rows=10, **columns):
    table = pa.table(
        {"unit": pa.array(range(rows), pa.int64()), "rank_": pa.array([0] * rows, pa.int32()), **columns}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.fixture(scope="module")
def mine(server):
    """An organization of this module's own."""
    return server.api(server.new_key("read", "write", organization="uploads"))


def test_an_upload_is_resumed_where_it_stopped_and_a_replay_is_a_no_op(mine):
    content = os.urandom(300_000)
    name = sha(content)
    assert mine("HEAD", f"/v1/blobs/{name}").status_code == 404
    # The connection breaks after 100,000 of 300,000 bytes.
    host, port = mine.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        head = f"PUT /v1/blobs/{name}?offset=0 HTTP/1.1\r\nHost: {host}\r\nUpload-Length: 300000\r\nContent-Length: 300000\r\n"
        head += f"Authorization: {mine.session.headers['Authorization']}\r\n\r\n"
        sock.sendall(head.encode() + content[:100_000])
        for _ in range(100):
            found = mine("HEAD", f"/v1/blobs/{name}")
            if found.headers.get("Upload-Offset") == "100000" or sock.recv(0):
                break
            threading.Event().wait(0.02)
    for _ in range(200):
        found = mine("HEAD", f"/v1/blobs/{name}")
        if found.status_code == 200 and found.headers["Upload-Offset"] == "100000":
            break
        threading.Event().wait(0.02)
    assert (found.headers["Upload-Offset"], found.headers["Upload-Length"]) == ("100000", "300000")
    assert found.headers["Upload-Complete"] == "?0"
    kind, body = problem(mine.put(content, offset=50_000))
    assert (kind, body["offset"]) == ("wrong-offset", 100_000)
    done = mine.put(content, offset=100_000)
    assert (done.status_code, done.json()) == (201, {"offset": 300_000, "complete": True})
    assert mine("HEAD", f"/v1/blobs/{name}").headers["Upload-Complete"] == "?1"
    for offset in (0, 100_000):
        again = mine.put(content, offset=offset)
        assert (again.status_code, again.json()) == (200, {"offset": 300_000, "complete": True})
    assert mine("GET", f"/v1/blobs/{name}").content == content


def test_a_body_may_come_in_many_pieces(mine):
    content = os.urandom(50_000)
    for start in range(0, 50_000, 12_500):
        answer = mine.put(content[start : start + 12_500], offset=start, sha256=sha(content), length=50_000)
        assert answer.json() == {"offset": start + 12_500, "complete": start == 37_500}
    assert mine("GET", f"/v1/blobs/{sha(content)}").content == content


def test_a_blob_whose_last_byte_came_before_a_kill_is_finished_when_somebody_asks(mine, server):
    spool = server.data / "spool" / mine.get("/v1/whoami")["organization_id"]
    spool.mkdir(exist_ok=True)
    first, second, torn = (os.urandom(3000) for _ in range(3))
    for content in (first, second):
        (spool / f"{sha(content)}-3000").write_bytes(content)
    (spool / f"{sha(torn)}-3000").write_bytes(torn[:2000] + bytes(1000))  # the power failed: zeros on disk
    assert mine("HEAD", f"/v1/blobs/{sha(first)}").headers["Upload-Complete"] == "?1"
    assert mine.put(second).json() == {"offset": 3000, "complete": True}
    assert mine("HEAD", f"/v1/blobs/{sha(torn)}").status_code == 404
    assert mine.put(torn).status_code == 201
    assert mine("GET", f"/v1/blobs/{sha(first)}").content == first


def test_empty_blobs_and_ranges(mine):
    assert mine.put(b"").status_code == 201
    assert mine("GET", f"/v1/blobs/{sha(b'')}").content == b""
    content = os.urandom(1000)
    mine.put(content)
    for asked, expected in (
        ("bytes=10-19", content[10:20]),
        ("bytes=990-", content[990:]),
        ("bytes=-5", content[-5:]),
    ):
        answer = mine("GET", f"/v1/blobs/{sha(content)}", headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, expected)
    for asked in ("bytes=1000-", "bytes=5-4", "lines=1-2", "bytes=1-2,4-5", "bytes=-"):
        assert (
            problem(mine("GET", f"/v1/blobs/{sha(content)}", headers={"Range": asked}))[0]
            == "range-not-satisfiable"
        )


def test_a_forged_digest_is_409_and_leaves_nothing(mine):
    content = os.urandom(5000)
    forged = sha(b"something else")
    kind, body = problem(mine.put(content, sha256=forged))
    assert (kind, body["value"]) == ("digest-mismatch", sha(content))
    assert mine("HEAD", f"/v1/blobs/{forged}").status_code == 404
    assert mine.put(b"something else", sha256=forged).status_code == 201


def test_sizes_that_contradict_themselves_are_refused(mine):
    content = os.urandom(1000)
    assert problem(mine.put(content, length=500))[0] == "bad-request"
    assert problem(mine("PUT", f"/v1/blobs/{sha(content)}", data=content))[0] == "bad-request"
    assert problem(mine.put(content, length=1 << 48))[0] == "too-large"
    packed = mine(
        "PUT",
        f"/v1/blobs/{sha(content)}",
        data=content,
        headers={"Upload-Length": "1000", "Content-Encoding": "gzip"},
    )
    assert problem(packed)[0] == "unsupported-media-type"

    def chunked():  # no Content-Length: the server has to count
        yield content
        yield content

    answer = mine("PUT", f"/v1/blobs/{sha(content)}", data=chunked(), headers={"Upload-Length": "1000"})
    assert problem(answer)[0] == "bad-request"
    # The first 1000 bytes are right and may have been kept, which depends on how the chunks arrived.
    there = int(mine("HEAD", f"/v1/blobs/{sha(content)}").headers["Upload-Offset"])
    assert mine.put(content, offset=there).status_code == (200 if there == len(content) else 201)
    assert mine.put(content).status_code == 200


def test_two_connections_do_not_write_the_same_blob(mine):
    content = os.urandom(200_000)
    begun, go = threading.Event(), threading.Event()

    def slowly():
        yield content[:100_000]
        begun.set()
        go.wait(20)
        yield content[100_000:]

    first = {}

    def upload():
        headers = {**mine.session.headers, "Upload-Length": "200000"}
        url = f"{mine.url}/v1/blobs/{sha(content)}"
        first["answer"] = requests.put(url, data=slowly(), headers=headers, timeout=60)

    thread = threading.Thread(target=upload)
    thread.start()
    begun.wait(20)
    for _ in range(500):
        if mine("HEAD", f"/v1/blobs/{sha(content)}").status_code == 200:
            break
        threading.Event().wait(0.01)
    answer = mine.put(content)
    kind, _ = problem(answer)
    assert (kind, answer.headers["Retry-After"]) == ("upload-busy", "1")
    go.set()
    thread.join()
    assert first["answer"].status_code == 201


def test_many_at_once(mine):
    contents = [
        parquet(number % 7 + 1, tag=pa.array([str(number)] * (number % 7 + 1))) for number in range(200)
    ]
    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda content: mine.put(content).status_code, contents * 2))
    assert set(codes) <= {200, 201, 429}
    assert all(
        mine("HEAD", f"/v1/blobs/{sha(content)}").headers.get("Upload-Complete") == "?1"
        for content in contents[:20]
    )


# -- seals ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two_ranks(mine, parts, records, tmp_path):
    """A pass of two ranks, not uploaded: (run id, seal bodies, rank folders)."""
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run("seals", tmp_path.name)
    factory.add_pass(
        run, "val", records.make_data(300, seed=int.from_bytes(os.urandom(3), "big")), world_size=2
    )
    return (
        factory.store,
        run,
        mine.run(run.model_name, run.version_name, **factory.store.run_info(run)),
        parts,
    )


def test_a_pass_of_two_ranks_is_sealed_rank_by_rank_and_once(mine, two_ranks):
    store, run, run_id, parts = two_ranks
    bodies = [mine.upload_rank(folder) for folder in parts.rank_folders(store, run)]
    first = mine.seal(run_id, bodies[0])
    assert (first.status_code, first.json()["sealed_ranks"], first.json()["complete"]) == (201, [0], False)
    second = mine.seal(run_id, bodies[1])
    assert (second.json()["sealed_ranks"], second.json()["complete"]) == ([0, 1], True)
    again = mine.seal(run_id, bodies[0])
    assert (again.status_code, again.json()["seal_id"]) == (200, first.json()["seal_id"])
    (found,) = mine.get(f"/v1/runs/{run_id}/passes")["items"]
    assert (found["sealed"], found["attempts"][0]["rows"]["samples"]) == (True, 300)
    with ThreadPoolExecutor(8) as pool:  # everybody at once
        codes = {answer.status_code for answer in pool.map(lambda body: mine.seal(run_id, body), bodies * 8)}
    assert codes == {200}
    other = copy.deepcopy(bodies[0])
    other["manifest"]["parts"] = other["manifest"]["parts"][:0]
    other["manifest"]["rows"] = {}
    assert problem(mine.seal(run_id, other))[0] == "seal-conflict"


def test_nothing_is_sealed_while_a_file_is_missing(mine, two_ranks):
    store, run, run_id, parts = two_ranks
    folder = parts.rank_folders(store, run)[0]
    seal = json.loads((folder / "seal.json").read_text())
    opening = json.loads((folder / "attempt.json").read_text())
    names = ("dataset_type", "n_epoch", "pass_no", "attempt", "rank")
    body = {**{name: opening[name] for name in names}, "manifest": seal, "opening": opening}
    kind, told = problem(mine.seal(run_id, body))
    expected = sorted(info["sha256"] for part in seal["parts"] for info in part["files"].values())
    assert (kind, told["missing"]) == ("missing-blobs", sorted(set(expected)))
    assert mine.get(f"/v1/runs/{run_id}/passes")["items"] == []
    assert mine.seal(run_id, mine.upload_rank(folder)).status_code == 201


def test_a_manifest_must_agree_with_its_run_and_its_files(mine, two_ranks):
    store, run, run_id, parts = two_ranks
    body = mine.upload_rank(parts.rank_folders(store, run)[0])

    def changed(**changes):
        other = copy.deepcopy(body)
        for path, value in changes.items():
            target = other
            *above, last = path.split("__")
            for name in above:
                target = target[int(name) if name.isdigit() else name]
            target[last] = value
        return other

    for other in (
        changed(attempt="../../up-000"),
        changed(attempt="../x-000", manifest__attempt__attempt="../x-000", opening__attempt="../x-000"),
        changed(manifest__parts__0__name="../part-1"),
        changed(manifest__parts__0__name="part-1/../../x"),
        changed(manifest__parts__0__files={"../../samples": {"sha256": "0" * 64, "bytes": 1, "rows": 1}}),
        changed(manifest__attempt__model_name="other"),
        changed(manifest__attempt__world_size=0, opening__world_size=0),
        changed(manifest__attempt__world_size=10**9, opening__world_size=10**9),
        changed(manifest__rows={"samples": 10**6}),
        changed(manifest__attempt__format=99, opening__format=99),
        changed(opening__dataset_type="train"),
        changed(rank=1),
        changed(pass_no=-1),
        changed(manifest__parts="all"),
        changed(manifest__parts__0__files__samples__rows=-1),
        changed(manifest__parts__0__files__samples__sha256="../../../etc/passwd"),
        changed(dataset_type=7),
    ):
        assert problem(mine.seal(run_id, other))[0] == "invalid", other["attempt"]
    assert mine.get(f"/v1/runs/{run_id}/passes")["items"] == []


def test_two_ranks_of_ten_thousand_parts_are_sealed_at_once(mine):
    content = parquet(3)
    assert mine.put(content).status_code in {200, 201}
    run_id = mine.run("many parts", "v1", task="classification")
    attempt = "20261121T000000000000-abcdef-000"

    def body(rank):
        opening = {
            "model_name": "many parts",
            "version_name": "v1",
            "dataset_type": "val",
            "n_epoch": 0,
            "pass_no": 0,
        }
        opening |= {"attempt": attempt, "rank": rank, "world_size": 2, "format": 1}
        file = {"bytes": len(content), "rows": 3, "sha256": sha(content)}
        listed = [{"name": f"part-{number:06d}", "files": {"samples": file}} for number in range(10_000)]
        manifest = {
            "attempt": opening,
            "parts": listed,
            "rows": {"samples": 30_000},
            "sealed_at": "now",
            "format": 1,
        }
        names = ("dataset_type", "n_epoch", "pass_no", "attempt", "rank")
        return {**{name: opening[name] for name in names}, "manifest": manifest, "opening": opening}

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda rank: mine.seal(run_id, body(rank)), (0, 1)))
    assert [answer.status_code for answer in answers] == [201, 201], answers[0].text
    (found,) = mine.get(f"/v1/runs/{run_id}/passes")["items"]
    assert (found["sealed"], found["attempts"][0]["rows"]) == (True, {"samples": 60_000})
    detail = mine.get(f"/v1/runs/{run_id}/passes/{found['pass_id']}")
    assert [len(rank["files"]) for rank in detail["ranks"]] == [10_000, 10_000]


def bomb():
    """A small file whose rows decode to gigabytes: one long text, repeated by the dictionary."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 400_000, pa.int32()), ["x" * 100_000])
    return parquet(400_000, input_id=text.cast(pa.dictionary(pa.int32(), pa.string())))


BAD_FILES = {
    "not Parquet": lambda: b"PK\x03\x04 this is a zip" * 10,
    "cut off": lambda: parquet(1000)[:-20] + b"PAR1",
    "footer of nonsense": lambda: b"PAR1" + os.urandom(500) + b"\xf0\x01\x00\x00PAR1",
    "another schema": lambda: parquet(10, input_id=pa.array(range(10))),
    "no key column": lambda: _written(pa.table({"rank_": pa.array([0] * 10, pa.int32())})),
    "nested": lambda: parquet(10, more=pa.array([{"a": [1]}] * 10)),
    "other rows": lambda: parquet(11),
    "bomb": bomb,
}


def _written(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_are_not_the_records_they_should_be_are_refused(mine, two_ranks, kind):
    store, run, run_id, parts = two_ranks
    body = mine.upload_rank(parts.rank_folders(store, run)[0])
    content = BAD_FILES[kind]()
    assert mine.put(content).status_code == 201
    part = body["manifest"]["parts"][0]
    kept = {"sha256": sha(content), "bytes": len(content), "rows": 400_000 if kind == "bomb" else 10}
    part["files"]["samples"] = kept
    body["manifest"]["parts"] = [part]
    body["manifest"]["rows"] = {family: info["rows"] for family, info in part["files"].items()}
    answer = mine.seal(run_id, body)
    name, told = problem(answer)
    assert name == "refused-part"
    assert [one["sha256"] for one in told["refused"]] == [sha(content)]
    assert told["refused"][0]["reason"]
    assert mine.get(f"/v1/runs/{run_id}/passes")["items"] == []


# -- limits --------------------------------------------------------------------------------------------------


def test_limits_answer_clearly_and_a_full_disk_keeps_what_arrived(parts, records, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    small = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True, check=False
    )
    if small.returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    try:
        process = parts.ServerProcess(
            disk / "data",
            min_free_mb=2,
            max_blob_mb=8,
            requests_per_second=8,
            workers=0,
            idle_timeout=2,
            uploads_at_once=2,
        )
        process.log = tmp_path / "log"
        process.start()
        api = process.api()
        hasty = process.new_key("read")
        with ThreadPoolExecutor(8) as pool:  # so many at once that the slowest machine is asked too much
            answers = list(pool.map(lambda _: process.api(hasty)("GET", "/v1/whoami"), range(100)))
        busy = [answer for answer in answers if answer.status_code == 429]
        assert problem(busy[0])[0] == "too-many-requests"
        assert int(busy[0].headers["Retry-After"]) >= 1
        assert problem(api.put(os.urandom(9 << 20)))[0] == "too-large"
        filler = disk / "filler"
        content = os.urandom(6 << 20)
        half = api.put(content[: 2 << 20], sha256=sha(content), length=6 << 20)
        assert half.json() == {"offset": 2 << 20, "complete": False}
        filler.write_bytes(b"x" * (5 << 20))
        answer = api.put(content, offset=2 << 20)
        assert problem(answer)[0] == "storage-full"
        assert int(answer.headers["Retry-After"]) > 0
        filler.unlink()
        assert api.put(content, offset=2 << 20).status_code == 201

        def drip():
            yield b"x"
            threading.Event().wait(3.5)
            yield b"y"

        slow = api("PUT", f"/v1/blobs/{'0' * 64}", data=drip(), headers={"Upload-Length": "100"})
        assert problem(slow)[0] == "too-slow"
        process.stop()
    finally:
        subprocess.run(["umount", "-l", disk], check=False)
