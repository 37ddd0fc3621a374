"""Who may do what: every route without a key, with the wrong key, with another organization's; and abuse."""

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.service.protocol import HEADER_PROTOCOL, PROTOCOL, ROUTES, problem_name
from mld_core.service.server.app import create_app
from mld_core.service.server.gate import find_route
from mld_core.service.server.storage import keys

pytestmark = pytest.mark.processes

BODIES = {
    "/v1/runs": {"model_name": "m", "version_name": "v", "info": {}},
    "/v1/keys": {"name": "x", "scopes": ["read"]},
    "/v1/organizations": {"name": "another"},
    "/v1/people": {"name": "somebody", "role": "viewer"},
    "/v1/runs/{run_id}/removals": {"dry_run": True},
}


@pytest.fixture(scope="module")
def owned(server, parts, recorded):
    """Ids of everything one organization owns, by the name in the routes."""
    api = server.api(server.new_key("read", "write", "admin", organization="owner"))
    run_id = api.sync(*recorded)
    job = api("POST", f"/v1/runs/{run_id}/evaluations", json={"options": {"dataset_types": ["val"]}}).json()
    done = api.finished(job["job_id"])
    passes = api.get(f"/v1/runs/{run_id}/passes")["items"]
    rank = api.get(f"/v1/runs/{run_id}/passes/{passes[0]['pass_id']}")["ranks"][0]
    keys = api.get("/v1/keys")["items"]
    person = api("POST", "/v1/people", json={"name": "owner's", "role": "viewer"}).json()
    return api, {
        "run_id": run_id,
        "job_id": job["job_id"],
        "result_id": done["result_id"],
        "pass_id": passes[0]["pass_id"],
        "sha256": rank["files"][0]["sha256"],
        "key_id": keys[0]["key_id"],
        "person_id": person["person_id"],
    }


def call(api, route, ids):
    path = route.path.format(**ids)
    options = {}
    if route.method in {"POST", "PATCH"}:
        options["json"] = BODIES.get(route.path, {"info": {}})
    if route.method == "PUT":
        options = {"data": b"x", "headers": {"Upload-Length": "1"}}
    return api(route.method, path, **options)


def test_the_server_has_exactly_the_listed_routes():
    made = create_app(None)
    served = set()
    for path, operations in made.openapi()["paths"].items():
        served |= {(method.upper(), path) for method in operations}
    assert served == {(route.method, route.path) for route in ROUTES}
    public = [route.path for route in ROUTES if route.scope is None]
    assert public == ["/healthz"]


def test_every_route_is_closed_without_a_key(server, owned):
    _, ids = owned
    for key in ("", "mldbg_", "mldbg_" + "0" * 24 + "_" + "0" * 64, "x" * 300):
        api = server.api(key)
        for route in ROUTES[:: 1 if not key else 6]:
            answer = call(api, route, ids)
            assert answer.status_code == (200 if route.scope is None else 401), (route, answer.text)
    for path in (
        "/",
        "/docs",
        "/openapi.json",
        "/redoc",
        "/v1",
        "/v2/runs",
        "/v1/runs/",
        "/metrics/",
        "//healthz",
    ):
        assert server.api("")("GET", path).status_code == 401, path
    basic = server.api("")(
        "GET", "/v1/whoami", headers={"Authorization": "Basic dTpw"}, params={"key": server.key}
    )
    assert basic.status_code == 401
    assert (
        server.api("")("GET", "/v1/whoami", cookies={"Authorization": f"Bearer {server.key}"}).status_code
        == 401
    )


def test_scopes_are_kept_apart(server, owned):
    _, ids = owned
    for scope in ("read", "write", "admin"):
        api = server.api(server.new_key(scope, organization="owner"))
        for route in ROUTES:
            if route.scope is None or (route.method, route.path) == ("DELETE", "/v1/keys/{key_id}"):
                continue
            answer = call(api, route, ids)
            allowed = scope in route.scopes and not route.root_only
            assert (answer.status_code != 403) == allowed, (scope, route, answer.status_code)


def test_another_organization_sees_nothing(server, owned):
    theirs, ids = owned
    api = server.api(server.new_key("read", "write", "admin", organization="stranger"))
    for route in ROUTES:
        if "{" not in route.path:
            continue
        if route.method == "PUT":  # it may upload the same bytes itself, and learns nothing from it
            continue
        answer = call(api, route, ids)
        assert answer.status_code in {404, 422}, (route, answer.status_code)
        if route.method in {"GET", "HEAD", "DELETE"}:
            assert answer.status_code == 404, route
    assert api.get("/v1/runs")["items"] == []
    # Without the bytes there is no claiming another organization's blob.
    forged = api("PUT", f"/v1/blobs/{ids['sha256']}", data=b"x", headers={"Upload-Length": "1"})
    assert (forged.status_code, problem_name(forged.json())) == (409, "digest-mismatch")
    assert api("HEAD", f"/v1/blobs/{ids['sha256']}").status_code == 404
    run_id = api.run("mine", "v1")
    for other in (f"/v1/runs/{run_id}/passes/{ids['pass_id']}",):
        assert api("GET", other).status_code == 404
    assert (
        api(
            "POST",
            "/v1/keys",
            json={
                "name": "x",
                "scopes": ["read"],
                "organization_id": theirs.get("/v1/whoami")["organization_id"],
            },
        ).status_code
        == 404
    )
    assert theirs("HEAD", f"/v1/blobs/{ids['sha256']}").status_code == 200


def test_keys_expire_are_revoked_and_are_shown_once(server, parts):
    admin = server.api()
    made = admin(
        "POST", "/v1/keys", json={"name": "short", "scopes": ["read"], "expires_in_days": 6e-5}
    ).json()
    assert re.fullmatch(r"mldbg_[0-9a-f]{24}_[0-9a-f]{64}", made["key"])
    api = server.api(made["key"])
    assert api("GET", "/v1/whoami").status_code == 200
    parts.wait_for(lambda: api("GET", "/v1/whoami").status_code == 401)
    made = admin("POST", "/v1/keys", json={"name": "gone", "scopes": ["read"]}).json()
    api = server.api(made["key"])
    assert api("GET", "/v1/whoami").status_code == 200
    listed = {one["key_id"]: one for one in admin.get("/v1/keys", params={"limit": 1000})["items"]}
    assert "key" not in listed[made["key_id"]]
    assert made["key"] not in json.dumps(list(listed.values()))
    assert admin("DELETE", f"/v1/keys/{made['key_id']}").json()["revoked_at"]
    assert api("GET", "/v1/whoami").status_code == 401
    # A wrong secret of a right id, and the other way round.
    head, _, tail = server.key.rpartition("_")
    for wrong in (f"{head}_{'0' * 64}", f"mldbg_{'0' * 24}_{tail}"):
        assert server.api(wrong)("GET", "/v1/whoami").status_code == 401


def test_keys_by_command(server, parts, monkeypatch):
    for name, value in server.env.items():
        if name.startswith("MLD_SERVER_"):
            monkeypatch.setenv(name, value)

    def mld(*arguments):
        return CliRunner().invoke(app, ["keys", *arguments])

    told = mld("create", "--name", "cli", "--scope", "read", "--organization", "by hand", "--json")
    made = json.loads(told.stdout)
    assert server.api(made["key"]).get("/v1/whoami")["organization"] == "by hand"
    assert made["key_id"] in mld("list").stdout
    assert mld("revoke", made["key_id"]).exit_code == 0
    # A server remembers a right key for a second.
    parts.wait_for(lambda: server.api(made["key"])("GET", "/v1/whoami").status_code == 401)
    assert mld("revoke", "key_nobody").exit_code == 3
    assert mld("create", "--name", "x", "--scope", "all").exit_code == 2


def test_secrets_are_compared_in_constant_time_and_kept_as_hashes(server):
    source = Path(keys.__file__).read_text()
    assert "hmac.compare_digest(expected, hash_secret(" in source
    with sqlite3.connect(server.data / "mld.sqlite3") as database:
        dump = "\n".join(database.iterdump())
    secret = server.key.rpartition("_")[2]
    assert keys.hash_secret(secret) in dump
    assert secret not in dump


def audited(server):
    """Rows of the audit log: (action, target, status, key id)."""
    with sqlite3.connect(server.data / "mld.sqlite3") as database:
        return database.execute("select action, target, status, key_id from audit").fetchall()


def test_no_secret_is_in_the_log_and_every_write_is_in_the_audit(server, owned, parts):
    api, ids = owned
    assert api("PATCH", f"/v1/runs/{ids['run_id']}", json={"info": {"note": "audited"}}).ok
    bad = "mldbg_" + "a" * 24 + "_" + "b" * 64
    server.api(bad)("GET", "/v1/whoami")
    server.api(bad)("GET", f"/v1/{bad}", params={"key": bad})
    mine = api.get("/v1/whoami")["key_id"]
    change = ("PATCH /v1/runs/{run_id}", f"/v1/runs/{ids['run_id']}", 200, mine)
    parts.wait_for(lambda: change in audited(server))  # a thread of its own writes it
    assert any(
        action == "POST /v1/runs/{run_id}/seals" and status == 201 for action, _, status, _ in audited(server)
    )
    log = server.log.read_text()
    assert "/v1/whoami" in log
    assert "Bearer" not in log
    for key in (server.key, bad, api.session.headers["Authorization"].split()[1]):
        assert key not in log
        assert key.rpartition("_")[2] not in log
    for line in log.splitlines():
        assert {"at", "level", "message"} <= json.loads(line).keys()


def test_every_answer_has_the_security_headers_and_no_open_cors(server):
    for path, key in (
        ("/healthz", ""),
        ("/v1/whoami", ""),
        ("/v1/whoami", server.key),
        ("/nowhere", server.key),
    ):
        answer = server.api(key)("GET", path, headers={"Origin": "https://evil.example"})
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert "Server" not in answer.headers
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "DELETE"}
    assert server.api("")("OPTIONS", "/v1/runs", headers=preflight).status_code == 401


def test_only_known_hosts_are_answered(server):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost@evil.example"):
        answer = server.api()("GET", "/v1/whoami", headers={"Host": host})
        assert answer.status_code in {400, 421}, host
    assert server.api()("GET", "/healthz", headers={"Host": "localhost:99"}).status_code == 200
    assert raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")[0] == 421


def raw(server, data, *, wait=5.0):
    """Send bytes as they are: (status, everything that came back)."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.settimeout(wait)
        sock.sendall(data)
        back = b""
        try:
            while piece := sock.recv(65536):
                back += piece
                head, found, body = back.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                if found and length and len(body) >= int(length[1]):
                    break
        except TimeoutError:
            pass
    return (int(back.split()[1]) if back else 0), back


def test_traversal_in_any_spelling_ends_nowhere(server, owned):
    _, ids = owned
    secret = f"Authorization: Bearer {server.key}\r\nHost: localhost\r\n\r\n".encode()
    for path in (
        "/v1/blobs/../../etc/passwd",
        "/v1/blobs/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/blobs/%2e%2e/%2e%2e/mld.sqlite3",
        "/v1/blobs/..%5c..%5cmld.sqlite3",
        f"/v1/blobs/{ids['sha256']}%00.parquet",
        f"/v1/blobs/{ids['sha256']}#/../../x",
        f"/v1/blobs/{ids['sha256']}/../../../server.lock",
        "/v1/blobs/file:///etc/passwd",
        "/v1/runs/../../../etc/passwd",
        "http://127.0.0.1/etc/passwd",
        "/v1/results/..%252f..%252fetc/files",
        "/v1/runs?model_name=../../etc&cursor=../../x",
    ):
        status, back = raw(server, f"GET {path} HTTP/1.1\r\n".encode() + secret, wait=10)
        assert status in {400, 404, 422}, (path, status)
        assert b"root:" not in back
        assert b"SQLite" not in back


def test_a_slow_loris_is_shown_the_door(server, parts, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", head_timeout=1, idle_timeout=1, workers=0).start()
    try:
        socks = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(40)]
        for sock in socks:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
        for _ in range(4):  # a byte now and then does not help
            time.sleep(0.4)
            for sock in socks:
                try:
                    sock.sendall(b"h")
                except OSError:
                    break
        for sock in socks:
            sock.settimeout(20)
            assert b"408" in sock.recv(100)
            sock.close()
        body = f"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {process.key}\r\nContent-Length: 100\r\n\r\n{{"
        status, back = raw(process, body.encode(), wait=8)
        assert (status, b"too-slow" in back) == (408, True)
        assert process.api().get("/v1/whoami")["key_name"] == "first key"
    finally:
        process.stop()


def test_heads_and_bodies_that_are_too_large_or_broken(server):
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    assert raw(server, head + b"X-A: " + b"a" * 300_000 + b"\r\n\r\n")[0] == 431
    assert raw(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 5)[0] == 400
    assert raw(
        server,
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        wait=1,
    )[0] in {200, 400}
    api = server.api()
    big = api("POST", "/v1/runs", data=b"{" + b" " * (5 << 20), headers={"Content-Type": "application/json"})
    assert (big.status_code, problem_name(big.json())) == (413, "too-large")
    for content in (
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model_name": NaN}',
        b"[" * 50_000,
        b"1" * 10_000,
        b"",
    ):
        answer = api("POST", "/v1/runs", data=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in {400, 422}, content[:20]
        assert problem_name(answer.json()) in {"invalid", "bad-request"}
    for name in ("", "x" * 301, "a\x00b", "\ud800", 7, None, ["x"]):
        answer = api(
            "POST",
            "/v1/runs",
            data=json.dumps({"model_name": name, "version_name": "v"}),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 422, name
    assert api("GET", "/healthz").ok


def test_wrong_keys_are_slowed_down(parts, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", workers=0).start()
    try:
        api = process.api("mldbg_" + "1" * 24 + "_" + "2" * 64)
        codes = [api("GET", "/v1/whoami").status_code for _ in range(120)]
        assert codes[:50] == [401] * 50
        assert 429 in codes
    finally:
        process.stop()


def test_one_minor_apart_works_and_another_major_does_not(server):
    api = server.api()
    for version in ("1.0", "1.1", "1.99"):
        answer = api(
            "POST",
            "/v1/runs",
            json={"model_name": "minor", "version_name": "v", "info": {}, "of_a_later_minor": 1},
            headers={HEADER_PROTOCOL: version},
        )
        assert answer.status_code in {200, 201}
        assert answer.headers[HEADER_PROTOCOL] == PROTOCOL
    for version in ("2.0", "0.9", "x"):
        answer = api("GET", "/v1/whoami", headers={HEADER_PROTOCOL: version})
        assert (answer.status_code, problem_name(answer.json())) == (426, "protocol")


def test_the_gate_knows_its_routes():
    assert find_route("GET", "/v1/runs/a/b/c") == (None, [])
    assert find_route("DELETE", "/v1/runs")[1] == ["POST", "GET"]


def test_a_second_server_on_the_same_folder_is_refused(server):
    command = [sys.executable, "-m", "mld_core.service.server"]
    environment = {**server.env, "MLD_SERVER_PORT": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "another server runs on" in done.stderr
    assert os.stat(server.data).st_mode & 0o077 == 0
