"""Large files: read past the parser, their digest checked after the answer; wrong bytes count for nothing."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import threading
import time

import pytest
import uvicorn

from mld_core.service.client import api as client_api
from mld_core.service.client import uploader
from mld_core.service.client.api import Client
from mld_core.service.client.errors import DamagedFileError
from mld_core.service.client.uploader import Uploader
from mld_core.service.protocol import HEADER_PROTOCOL, PROTOCOL, problem_name
from mld_core.service.server.connection import limited_protocol
from mld_core.service.server.settings import load_settings
from mld_core.service.server.storage.uploads import LATER_BYTES, Upload

pytestmark = pytest.mark.processes

NOW = {HEADER_PROTOCOL: PROTOCOL}


def digest(content):
    return hashlib.sha256(content).hexdigest()


def put(api, content, sha256, protocol=PROTOCOL):
    headers = {"Upload-Length": str(len(content)), HEADER_PROTOCOL: protocol}
    return api("PUT", f"/v1/blobs/{sha256}", data=content, headers=headers)


@pytest.fixture
def mine(server):
    return server.api(server.new_key("read", "write", organization=f"digests {os.urandom(4).hex()}"))


def used(server, api):
    with sqlite3.connect(server.data / "mld.sqlite3") as database:
        query = "select blob_bytes from organizations where id = ?"
        (found,) = database.execute(query, (api.get("/v1/whoami")["organization_id"],)).fetchone()
    return found


def test_wrong_bytes_are_discarded_and_the_right_ones_then_taken(server, parts, mine):
    content = os.urandom(LATER_BYTES)
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    sha256 = digest(content)
    assert put(mine, wrong, sha256).status_code == 201
    assert mine("GET", f"/v1/blobs/{sha256}").status_code == 404  # never the wrong bytes
    parts.wait_for(lambda: mine("HEAD", f"/v1/blobs/{sha256}").status_code == 404)
    assert used(server, mine) == 0
    assert put(mine, content, sha256).status_code == 201
    assert mine("GET", f"/v1/blobs/{sha256}").content == content
    assert put(mine, wrong, sha256).status_code == 200  # it is there: the body is not looked at
    assert mine("GET", f"/v1/blobs/{sha256}").content == content
    assert used(server, mine) == len(content)


def test_clients_of_before_are_told_at_once(mine):
    content = os.urandom(LATER_BYTES)
    for protocol in ("1.0", "1.1"):
        answer = put(mine, content, "0" * 64, protocol)
        assert (answer.status_code, problem_name(answer.json())) == (409, "digest-mismatch")
    small = put(mine, content[:1000], "0" * 64)
    assert (small.status_code, problem_name(small.json())) == (409, "digest-mismatch")


def test_an_upload_that_was_cut_goes_on_without_its_digest_too(mine):
    content = os.urandom(LATER_BYTES + 5)
    sha256, half = digest(content), len(content) // 2
    headers = {"Upload-Length": str(len(content)), **NOW}
    assert mine("PUT", f"/v1/blobs/{sha256}", data=content[:half], headers=headers).status_code == 200
    rest = mine("PUT", f"/v1/blobs/{sha256}?offset={half}", data=content[half:], headers=headers)
    assert rest.status_code == 201
    assert mine("GET", f"/v1/blobs/{sha256}").content == content


def test_a_manifest_with_other_bytes_seals_nothing(parts, mine, recorded):
    store, run = recorded
    run_id = mine.run(run.model_name, run.version_name, **store.run_info(run))
    folder = parts.rank_folders(store, run)[0]
    body = mine.upload_rank(folder)
    text = json.dumps(body["manifest"]).encode()
    named = digest(b"another manifest")
    large = text + b" " * (LATER_BYTES - len(text))
    assert put(mine, large, named).status_code == 201
    answer = mine("POST", f"/v1/runs/{run_id}/seals", json={"manifest_sha256": named})
    assert (answer.status_code, problem_name(answer.json())) == (409, "missing-blobs"), answer.text
    assert answer.json()["missing"] == [named]
    assert mine.get(f"/v1/runs/{run_id}/passes")["items"] == []
    assert put(mine, large, digest(large)).status_code == 201
    sealed = mine("POST", f"/v1/runs/{run_id}/seals", json={"manifest_sha256": digest(large)})
    assert sealed.status_code == 201, sealed.text


def test_the_client_names_the_file_that_is_damaged(server, records, tmp_path, monkeypatch):
    """A seal that misses what was sent a moment ago: the file here is looked at before it is sent again."""
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.standard()
    key = server.new_key("read", "write", organization="large and damaged")
    monkeypatch.setattr(uploader, "RANKS_SINCE", 99)
    job = Uploader(factory.store, Client(server.url, key))
    rank = job.plan([run])[0]
    file = rank.files[0]
    padding = bytes(LATER_BYTES)  # as large as those whose digest is checked later
    manifest = json.loads(rank.text)
    info = next(
        one for part in manifest["parts"] for one in part["files"].values() if one["sha256"] == file.sha256
    )
    info |= {"bytes": file.bytes + len(padding), "sha256": digest(file.path.read_bytes() + padding)}
    (rank.folder / "seal.json").write_text(json.dumps(manifest))
    file.path.write_bytes(file.path.read_bytes() + padding[:-1] + b"x")
    sent = []
    real = client_api.Client.upload

    def counted(self, path, *more, **options):
        sent.append(path)
        return real(self, path, *more, **options)

    monkeypatch.setattr(client_api.Client, "upload", counted)
    with pytest.raises(DamagedFileError, match=file.path.name):
        job.upload(rank.folder)
    assert sent.count(file.path) == 1


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system can not be asked to write early")
def test_a_large_file_is_handed_to_the_disk_while_it_comes(tmp_path, monkeypatch):
    handed = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, start, count, what: handed.append((start, count)))
    piece = os.urandom(1 << 20)
    upload = Upload(tmp_path / "blob", 20 << 20, 0, None)
    for _ in range(20):
        upload.write([piece])
    upload.close()
    assert handed == [(0, 8 << 20), (8 << 20, 8 << 20)]
    assert (tmp_path / "blob").read_bytes() == piece * 20


# -- the body, past the parser -------------------------------------------------------------------------------


async def told(scope, receive, send):
    """An application that says what came, or refuses it unread; `seen` has the sizes of the pieces."""
    state, seen, more = hashlib.sha256(), [], scope["path"] != "/refused"
    while more:
        message = await receive()
        state.update(message.get("body", b""))
        seen.append(len(message.get("body", b"")))
        more = message.get("more_body", False)
    text = json.dumps([scope["method"], sum(seen), state.hexdigest(), max(seen, default=0)]).encode()
    head = {"type": "http.response.start", "status": 200}
    await send({**head, "headers": [(b"content-length", str(len(text)).encode())]})
    await send({"type": "http.response.body", "body": text})


@contextlib.contextmanager
def listening(folder, loop="auto", **options):
    """A port where the application listens on a connection of the server's."""
    settings = load_settings({"data": str(folder), "idle_timeout": 2}, {})
    config = uvicorn.Config(
        told,
        http=limited_protocol(settings),
        ws="none",
        loop=loop,
        lifespan="off",
        log_config=None,
        **options,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def put_head(size, path="/", more=""):
    return f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n{more}\r\n".encode()


def answers(sock, count):
    """The bodies of so many answers."""
    with sock.makefile("rb") as file:
        for _ in range(count):
            size = 0
            while (line := file.readline()) not in {b"\r\n", b""}:
                if line.lower().startswith(b"content-length:"):
                    size = int(line.split(b":")[1])
            yield json.loads(file.read(size))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Files of a certificate for this machine and of its key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed, which makes a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    names = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-subj", "/CN=localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run(command, check=True, capture_output=True)
    return {"ssl_certfile": str(folder / "cert.pem"), "ssl_keyfile": str(folder / "key.pem")}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_a_large_body_comes_whole_and_the_next_requests_after_it(tmp_path, request, loop, encrypted):
    pytest.importorskip(loop)
    options = request.getfixturevalue("certificate") if encrypted else {}
    large, other = os.urandom((5 << 20) + 3), os.urandom((2 << 20) + 1)
    small = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with listening(tmp_path, loop, **options) as port, contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
        if encrypted:
            trusting = ssl.create_default_context(cafile=options["ssl_certfile"])
            sock = stack.enter_context(trusting.wrap_socket(sock, server_hostname="localhost"))
        # All in one go: the heads that follow are not taken for bytes of the body, nor the other way.
        sent = [put_head(len(large)), large, small, put_head(len(other)), other, put_head(3), b"abc", small]
        sender = threading.Thread(target=sock.sendall, args=(b"".join(sent),))
        sender.start()
        found = list(answers(sock, 5))
        sender.join(20)
    assert [one[:3] for one in found] == [
        ["PUT", len(large), digest(large)],
        ["GET", 0, digest(b"")],
        ["PUT", len(other), digest(other)],
        ["PUT", 3, digest(b"abc")],
        ["GET", 0, digest(b"")],
    ]
    assert found[0][3] == 1 << 20  # blocks, however small the pieces that the socket had


def test_a_large_body_that_is_refused_is_read_to_its_end_and_the_next_request_answered(tmp_path):
    with listening(tmp_path) as port, socket.create_connection(("127.0.0.1", port), 20) as sock:
        content = os.urandom(3 << 20)
        sock.sendall(put_head(len(content), "/refused") + content + put_head(2) + b"ab")
        assert [one[1] for one in answers(sock, 2)] == [0, 2]


@pytest.mark.parametrize("head", ["Expect: 100-continue\r\n", "Transfer-Encoding: chunked\r\n"])
def test_bodies_of_other_forms_come_as_before(tmp_path, head):
    content = os.urandom(2 << 20)
    with listening(tmp_path) as port, socket.create_connection(("127.0.0.1", port), 20) as sock:
        if "chunked" in head:
            asked = b"PUT / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            sock.sendall(asked + f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n")
        else:
            sock.sendall(put_head(len(content), more=head))
            assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(content)
        assert next(answers(sock, 1))[1:3] == [len(content), digest(content)]


def at(api, name):
    """Bytes of an unfinished upload that are there."""
    return int(api("HEAD", f"/v1/blobs/{name}").headers.get("Upload-Offset", 0))


def test_what_came_of_a_slow_body_is_kept_while_the_rest_is_waited_for(parts, mine):
    """No block waits for its end: a stalled or cut upload goes on where its last byte was."""
    content = os.urandom(3 << 20)
    there = (1 << 20) + 12_345
    size, name = len(content), digest(content)
    host, port = mine.url.removeprefix("http://").split(":")
    more = f"Upload-Length: {size}\r\nAuthorization: {mine.session.headers['Authorization']}\r\n"
    with socket.create_connection((host, int(port)), 20) as sock:
        sock.sendall(put_head(size, f"/v1/blobs/{name}?offset=0", more) + content[:there])
        parts.wait_for(lambda: at(mine, name) >= 1 << 20)
        time.sleep(0.5)
    parts.wait_for(lambda: at(mine, name) == there)
    assert mine.put(content, offset=there).status_code == 201
