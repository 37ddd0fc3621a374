"""examples/service/compose.yaml: what its schema says of it, and its commands as processes of this machine."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mld_core.service.client.api import Client
from mld_core.service.client.uploader import Uploader

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[3]
FILE = ROOT / "examples" / "service" / "compose.yaml"
PASSWORD = "not-a-secret"


def test_it_is_what_the_specification_says():
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip('the schema comes with check-jsonschema: pip install "ml-debugger[dev]"')
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_asks_for_extras_and_volumes_there_are():
    compose = yaml.safe_load(FILE.read_text())
    (extras,) = re.findall(r"ml-debugger\[([\w,]+)\]", compose["services"]["install"]["command"])
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{name} = \[", project, re.MULTILINE) for name in extras.split(","))
    named = {one.split(":")[0] for service in compose["services"].values() for one in service["volumes"]}
    assert named == set(compose["volumes"])
    for service in compose["services"].values():
        assert set(service.get("depends_on", {})) <= set(compose["services"])


class Composed:
    """The services of the file, as processes: what a container would be given, with this machine's places."""

    def __init__(self, places, variables):
        # `$name` and `${name:?}` are the file's own; places are those of containers that are elsewhere here.
        text = re.sub(r"\$\{(\w+):\?\}", lambda match: variables[match[1]], FILE.read_text())
        for there, here in places.items():
            assert there in text, there
            text = text.replace(there, here)
        self.services = yaml.safe_load(text)["services"]
        self.processes = []

    def environment(self, name):
        own = {key: str(value) for key, value in self.services[name].get("environment", {}).items()}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLD_", "AWS_"))}
        return {**kept, **own, "PATH": kept["PATH"]}

    def start(self, name, log, **more):
        program, *arguments = shlex.split(self.services[name]["command"])
        assert program == "mld"
        command = [sys.executable, "-m", "mld_core.cli.main", *arguments]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, env={**self.environment(name), **more}, stdout=file, stderr=file, cwd=ROOT
            )
        self.processes.append(process)

    def healthy(self, name, **more):
        kind, *command = self.services[name]["healthcheck"]["test"]
        if kind == "CMD" and command[0] == "python":
            command[0] = sys.executable
        done = subprocess.run(
            command if kind == "CMD" else ["sh", "-c", *command],
            env={**self.environment(name), **more},
            capture_output=True,
            timeout=60,
            check=False,
        )
        return done.returncode == 0

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.processes
def test_its_commands_serve_and_evaluate(parts, postgres, s3, recorded, tmp_path):
    database = tmp_path.name.replace("-", "_").lower()
    place = ["-h", "127.0.0.1", "-p", str(postgres.port), "-U", "mld"]
    subprocess.run([postgres.tool("createdb"), *place, database], check=True, timeout=60)
    port = parts.free_port()
    composed = Composed(
        {
            "@database/mld": f"@127.0.0.1:{postgres.port}/{database}",
            "MLD_SERVER_DATA: /data": f"MLD_SERVER_DATA: {tmp_path / 'data'}",
            "MLD_SERVER_DATA: /scratch": f"MLD_SERVER_DATA: {tmp_path / 'scratch'}",
            "127.0.0.1:8765/healthz": f"127.0.0.1:{port}/healthz",
            "HOME: /home/mld": f"HOME: {tmp_path}",
        },
        {
            "POSTGRES_PASSWORD": PASSWORD,
            "MLD_S3_BUCKET": s3.bucket,
            "MLD_S3_ENDPOINT": s3.url,
            "MLD_HOST": "mld.example.org",
            "AWS_ACCESS_KEY_ID": s3.key,
            "AWS_SECRET_ACCESS_KEY": s3.secret,
        },
    )
    tools = f"{Path(postgres.tool('x')).parent}{os.pathsep}{os.environ['PATH']}"
    assert composed.healthy("database", PGHOST="127.0.0.1", PGPORT=str(postgres.port), PATH=tools)
    assert not composed.healthy("server")
    try:
        composed.start("server", tmp_path / "server.log", MLD_SERVER_PORT=str(port))
        parts.wait_for(lambda: composed.healthy("server"), 120, 0.5)
        composed.start("worker", tmp_path / "worker.log")
        (key,) = re.findall(r"MLD_API_KEY=(\S+)", (tmp_path / "data" / "first-key").read_text())
        store, run = recorded
        job = Uploader(store, Client(f"http://127.0.0.1:{port}", key))
        assert {one.state for one in job.send_all(job.plan([run]))} == {"uploaded"}
        api = parts.Api(f"http://127.0.0.1:{port}", key)
        (made,) = api.get("/v1/runs")["items"]
        asked = api("POST", f"/v1/runs/{made['run_id']}/evaluations", json={})
        assert asked.status_code == 202, asked.text
        found = api.finished(asked.json()["job_id"], 240)
        assert found["state"] == "done", found
        named = api("GET", "/healthz", headers={"Host": "mld.example.org"})
        assert named.status_code == 200
    finally:
        composed.stop()
    said = "".join((tmp_path / f"{name}.log").read_text() for name in ("server", "worker"))
    assert PASSWORD not in said
    assert key not in said
