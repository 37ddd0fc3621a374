"""A fake service for the client's tests: the upload protocol in memory, in a process of its own, with faults.

`POST /control` sets faults, `GET /control` tells what came. Not the real server: that one is used by the
tests of test_client_service.py.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import requests

PROBLEM = "urn:mld:problem:"
KEY = "mldbg_right"


class State:
    def __init__(self):
        self.lock = threading.Lock()
        self.go = threading.Event()
        self.faults: dict = {}
        self.runs: dict = {}
        self.blobs: dict = {}  # digest -> [bytes, length, complete]
        self.seals: dict = {}  # (run, pass, attempt, rank) -> manifest
        self.counts: dict = {}
        self.bytes_in = 0
        self.headers: list = []


STATE = State()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.body_read = True

    def log_message(self, *args):
        pass

    # -- answering

    def answer(self, status, body=None, headers=None, kind="application/json"):
        self.drain()
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if not STATE.faults.get("no_protocol"):
            self.send_header("MLD-Protocol", STATE.faults.get("protocol", "1.0"))
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def problem(self, status, name, headers=None, **members):
        body = {"type": PROBLEM + name, "title": name, "status": status, "detail": name, **members}
        self.answer(status, body, headers, "application/problem+json")

    def drain(self):
        """A body nobody looked at, so that the next request on this connection is found."""
        if not self.body_read:
            self.body_read = True
            left = int(self.headers.get("Content-Length") or 0)
            while left > 0 and (piece := self.rfile.read(min(left, 1 << 16))):
                left -= len(piece)

    def body(self):
        self.body_read = True
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    # -- requests

    def handle_one(self):
        self.body_read = not int(self.headers.get("Content-Length") or 0)
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/control":
            return self.control()
        with STATE.lock:
            key = f"{self.command} {url.path.split('/')[2] if url.path.count('/') > 1 else url.path}"
            if url.path.endswith("/seals"):
                key = "POST seals"
            STATE.counts[key] = STATE.counts.get(key, 0) + 1
            STATE.headers.append(dict(self.headers))
        if STATE.faults.get("hang"):
            time.sleep(3600)
        time.sleep(STATE.faults.get("delay", 0))
        if STATE.faults.get("html"):
            return self.answer(200, b"<html>please log in</html>", kind="text/html")
        if STATE.faults.get("redirect"):
            return self.answer(302, b"", {"Location": STATE.faults["redirect"]})
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.problem(401, "unauthorized", fix="make another key")
        return self.route(url.path)

    do_GET = do_POST = do_PUT = do_HEAD = do_PATCH = do_DELETE = handle_one

    def control(self):
        if self.command == "POST":
            STATE.faults = json.loads(self.body())
            if not STATE.faults.get("hold"):
                STATE.go.set()
            return self.answer(200, {})
        with STATE.lock:
            found = {
                "counts": STATE.counts,
                "bytes_in": STATE.bytes_in,
                "seals": [list(key) for key in STATE.seals],
                "manifests": list(STATE.seals.values()),
                "runs": list(STATE.runs.values()),
                "blobs": {name: [len(blob[0]), blob[2]] for name, blob in STATE.blobs.items()},
                "headers": STATE.headers[-20:],
            }
        return self.answer(200, found)

    def route(self, path):
        parts = path.strip("/").split("/")
        if path == "/v1/whoami":
            return self.answer(200, {"organization": "us", "organization_id": "org_1", "scopes": ["write"]})
        if parts[:2] == ["v1", "blobs"]:
            return getattr(self, f"blob_{self.command.lower()}")(parts[2])
        if path == "/v1/runs" and self.command == "POST":
            return self.make_run()
        if self.command == "PATCH":
            STATE.runs[parts[2]]["info"].update(json.loads(self.body())["info"])
            return self.answer(200, STATE.runs[parts[2]])
        if path.endswith("/seals"):
            return self.seal(parts[2])
        return self.problem(404, "not-found")

    def make_run(self):
        form = json.loads(self.body())
        names = (form["model_name"], form["version_name"])
        with STATE.lock:
            for run in STATE.runs.values():
                if (run["model_name"], run["version_name"]) == names:
                    return self.answer(200, run)
            run = {**form, "run_id": f"run_{uuid.uuid4().hex}"}
            STATE.runs[run["run_id"]] = run
        return self.answer(201, run)

    def blob_head(self, sha256):
        blob = STATE.blobs.get(sha256)
        if blob is None:
            return self.answer(404)
        return self.answer(
            200,
            None,
            {
                "Upload-Offset": str(len(blob[0])),
                "Upload-Length": str(blob[1]),
                "Upload-Complete": "?1" if blob[2] else "?0",
            },
        )

    def blob_put(self, sha256):
        faults, length = STATE.faults, int(self.headers["Content-Length"])
        if faults.get("busy", 0) > 0:
            faults["busy"] -= 1
            return self.problem(429, "too-many-requests", {"Retry-After": "1"})
        if faults.get("full"):
            return self.problem(507, "storage-full", {"Retry-After": "1"}, fix="make room")
        if length > faults.get("proxy_limit", 1 << 40):
            return self.answer(413, b"<html>too large</html>", kind="text/html")
        if faults.get("hold"):
            STATE.go.wait(30)
        if faults.get("forget"):
            self.body()
            return self.answer(201, {"offset": length, "complete": True})
        if faults.get("stall"):
            self.body()
            return self.answer(200, {"offset": 0, "complete": False})
        total, offset = int(self.headers["Upload-Length"]), int(self.query["offset"])
        with STATE.lock:
            blob = STATE.blobs.setdefault(sha256, [bytearray(), total, False])
        if blob[2]:
            return self.answer(200, {"offset": total, "complete": True})
        if offset != len(blob[0]):
            return self.problem(409, "wrong-offset", offset=len(blob[0]))
        cut = faults.get("cut_after") if faults.get("cuts", 0) > 0 else None
        if cut is not None and length > cut:
            faults["cuts"] -= 1
            self.take(blob, cut)
            self.close_connection = True
            return self.connection.close()
        self.take(blob, length)
        self.body_read = True
        if len(blob[0]) < total:
            return self.answer(200, {"offset": len(blob[0]), "complete": False})
        if faults.get("mismatch") or hashlib.sha256(blob[0]).hexdigest() != sha256:
            del STATE.blobs[sha256]
            return self.problem(409, "digest-mismatch", offset=0)
        blob[2] = True
        return self.answer(201, {"offset": total, "complete": True})

    def take(self, blob, count):
        while count > 0 and (piece := self.rfile.read(min(count, 1 << 16))):
            blob[0] += piece
            count -= len(piece)
            with STATE.lock:
                STATE.bytes_in += len(piece)

    def blob_get(self, sha256):
        content = bytes(STATE.blobs[sha256][0])
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        content = content[start:]
        if STATE.faults.get("garble"):
            content = bytes(255 - byte for byte in content)
        if STATE.faults.get("halves", 0) > 0:
            STATE.faults["halves"] -= 1
            self.send_response(206 if start else 200)
            self.send_header("MLD-Protocol", "1.0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return None
        return self.answer(206 if start else 200, content, kind="application/octet-stream")

    def seal(self, run_id):
        form = json.loads(self.body())
        files = [info for part in form["manifest"]["parts"] for info in part["files"].values()]
        with STATE.lock:
            missing = [f["sha256"] for f in files if not STATE.blobs.get(f["sha256"], (0, 0, 0))[2]]
            names = ("dataset_type", "n_epoch", "pass_no", "attempt", "rank")
            key = (run_id, *(form[name] for name in names))
            there = STATE.seals.get(key)
            if there is not None and there != form["manifest"]:
                return self.problem(409, "seal-conflict")
            if not missing:
                STATE.seals[key] = form["manifest"]
        if missing:
            return self.problem(409, "missing-blobs", missing=missing)
        return self.answer(201 if there is None else 200, {"seal_id": "s", "complete": True})


class FakeService:
    """The process, and what the test says to it and asks it."""

    def __init__(self, port: int = 0, **faults) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(port)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"
        self.set(**faults)

    def set(self, **faults) -> None:
        requests.post(f"{self.url}/control", json=faults, timeout=10).raise_for_status()

    def seen(self) -> dict:
        return requests.get(f"{self.url}/control", timeout=10).json()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
