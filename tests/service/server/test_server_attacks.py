"""What one key, or none, can do to the server: real requests, bounded in bytes and time, loopback only."""

import concurrent.futures
import contextlib
import json
import os
import re
import socket
from pathlib import Path

import psutil
import pytest

from mld_core.service.protocol import problem_name

pytestmark = pytest.mark.processes

MIB = 1 << 20


@pytest.fixture(scope="module")
def small(parts, tmp_path_factory):
    """A server of its own, whose checks have little memory."""
    folder = tmp_path_factory.mktemp("attacked") / "data"
    process = parts.ServerProcess(folder, workers=0, check_memory_mb=256, check_seconds=10).start()
    yield process
    process.stop()


def memory(process, name="VmHWM"):
    """MiB of the server process: the most it ever had, or what it has now."""
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024


def nested(megabytes):
    """A seal as a program that means harm writes it: very many small values."""
    return b'{"manifest": {"parts": [' + b"[],{}," * (megabytes * MIB // 6) + b"0]}}"


def test_a_seal_of_nested_json_costs_the_server_no_memory(small):
    api = small.api()
    run_id = api.run("attacked", "seal")
    before = memory(small)
    headers = {"Content-Type": "application/json"}
    answer = api("POST", f"/v1/runs/{run_id}/seals", data=nested(16), headers=headers)
    assert answer.status_code in {413, 422}
    assert memory(small) - before < 120
    assert api("GET", "/v1/whoami").elapsed.total_seconds() < 5


def test_a_manifest_of_nested_json_is_refused_as_a_blob(small, parts):
    api = small.api()
    run_id = api.run("attacked", "manifest")
    before = memory(small)
    content = nested(16)
    assert api.put(content).status_code == 201
    answer = api.seal(run_id, {"manifest_sha256": parts.hashlib.sha256(content).hexdigest()})
    assert problem_name(answer.json()) == "invalid"
    assert memory(small) - before < 120
    deep = b'{"parts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    api.put(deep)
    answer = api.seal(run_id, {"manifest_sha256": parts.hashlib.sha256(deep).hexdigest()})
    assert problem_name(answer.json()) == "invalid"


def test_large_infos_are_refused_before_they_are_read(small):
    api = small.api()
    before = memory(small)
    body = json.dumps({"model_name": "m", "version_name": "v", "info": {"x": "y" * (39 * MIB // 10)}})

    def post(_):
        return small.api()("POST", "/v1/runs", data=body, headers={"Content-Type": "application/json"})

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        assert {answer.status_code for answer in pool.map(post, range(20))} == {413}
    assert memory(small) - before < 100
    run = {"model_name": "m", "version_name": "v", "info": {"x": "y" * 20_000}}
    assert problem_name(api("POST", "/v1/runs", json=run).json()) == "too-large"
    many = {"model_name": "m", "version_name": "v", "info": {"x": [[]] * 80_000}}
    assert api("POST", "/v1/runs", json=many).status_code in {413, 422}


@pytest.mark.parametrize(
    "info",
    [{"n_class": 2_000_000_000}, {"n_class": "ten"}, {"class_names": [1]}, {"task": 7}, {"generation": -1}],
)
def test_the_info_of_a_run_is_typed_and_bounded(small, info):
    answer = small.api()("POST", "/v1/runs", json={"model_name": "m", "version_name": "v", "info": info})
    assert problem_name(answer.json()) == "invalid"


def test_a_list_of_runs_carries_no_infos_and_is_cut_by_bytes(small):
    api = small.api(small.new_key("read", "write", organization="many"))
    names = [f"class {number}" for number in range(8000)]
    for number in range(150):
        api.run("many", f"v{number}", task="detection", note="x" * 15_000, class_names=names)
    page = api("GET", "/v1/runs", params={"limit": 1000})
    assert len(page.content) < 100_000
    items = page.json()["items"]
    assert len(items) == 150
    assert {item["info"]["task"] for item in items} == {"detection"}
    one = api.get(f"/v1/runs/{items[0]['run_id']}")
    assert (one["info"]["class_names"], len(one["info"]["note"])) == (names, 15_000)


def test_numbers_that_are_none_are_refused(small):
    headers = {"Content-Type": "application/json"}
    for word in ("NaN", "Infinity", "-Infinity"):
        body = f'{{"model_name": "m", "version_name": "nan", "info": {{"x": {word}}}}}'
        answer = small.api()("POST", "/v1/runs", data=body, headers=headers)
        assert (answer.status_code, problem_name(answer.json())) == (422, "invalid")


# -- connections ---------------------------------------------------------------------------------------------


def idle(port, count, *, ask=True):
    """Connections that ask nothing any more."""
    made = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port), 5)
        if ask:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        made.append(sock)
    return made


def test_strangers_lock_no_key_out(parts, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", workers=0, connections=100).start()
    strangers = []
    try:
        mine = process.api()
        assert mine("GET", "/v1/whoami").status_code == 200
        for _ in range(3):
            strangers += idle(process.port, 110)
            # Whoever is locked out waits for 45 s and more.
            assert mine("GET", "/v1/whoami", timeout=20).status_code == 200  # the connection I have
            assert process.api()("GET", "/v1/whoami", timeout=20).status_code == 200  # and a new one
            assert process.api("")("GET", "/healthz", timeout=20).status_code == 200
        assert mine("GET", "/v1/whoami", timeout=20).status_code == 200
        ended = 0
        for sock in strangers:
            sock.settimeout(20)
            with contextlib.suppress(TimeoutError):
                while sock.recv(1 << 16):
                    pass
                ended += 1
        assert ended == len(strangers)  # without a key, nobody is waited for without end
    finally:
        for sock in strangers:
            sock.close()
        process.stop()


def test_who_does_not_read_a_download_is_left(parts, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", workers=0, idle_timeout=1).start()
    try:
        api = process.api()
        content = b"{" + os.urandom(16 * MIB)
        digest = parts.hashlib.sha256(content).hexdigest()
        assert api.put(content).status_code == 201
        head = f"GET /v1/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {process.key}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", process.port), 5) as sock:
            sock.sendall(head.encode())
            mine = sock.getsockname()

            def left():
                held = psutil.Process(process.process.pid).net_connections("tcp")
                return all(one.raddr != mine for one in held)

            got = len(sock.recv(1))
            parts.wait_for(left, 60)
            with contextlib.suppress(ConnectionResetError):
                while piece := sock.recv(1 << 16):
                    got += len(piece)
            assert got < len(content)
        assert api("GET", f"/v1/blobs/{digest}").content == content
    finally:
        process.stop()
