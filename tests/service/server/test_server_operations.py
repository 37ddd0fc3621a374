"""Migrations, health, metrics, backup and restore, the document, and whatever else a request may hold."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
import requests
import schemathesis
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, Phase, settings

from mld_core.service import protocol
from mld_core.service.server.app import create_app, document
from mld_core.service.server.run import write_document
from mld_core.service.server.settings import ENV_PREFIX, Settings
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import Base

pytestmark = pytest.mark.processes

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_migrations_make_the_schema_of_the_models(kind, request, tmp_path):
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'x.sqlite3'}"
    else:
        postgres = request.getfixturevalue("postgres")
        subprocess.run(
            [postgres.tool("createdb"), "-h", "127.0.0.1", "-p", str(postgres.port), "-U", "mld", "schema"],
            check=True,
        )
        url = f"postgresql+psycopg://mld@127.0.0.1:{postgres.port}/schema"
    database = Database(url)
    database.migrate()
    database.migrate()  # again is harmless
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    database.close()


def test_the_document_in_docs_is_current(tmp_path):
    write_document(tmp_path / "openapi.json")
    fresh = (tmp_path / "openapi.json").read_text()
    kept = (DOCS / "openapi.json").read_text()
    assert kept == fresh, "run: python -m mld_core.service.server.run docs/openapi.json"
    found = json.loads(kept)
    for route in protocol.ROUTES:
        operation = found["paths"][route.path][route.method.lower()]
        assert ("security" in operation) == (route.scope is not None)


def test_health_and_metrics(server, api, recorded):
    api.sync(*recorded)
    assert server.api("")("GET", "/healthz").json() == {
        "status": "ok",
        "database": True,
        "storage": True,
        "writable": True,
    }
    text = api("GET", "/metrics").text
    for name in (
        "mld_requests_total",
        "mld_request_seconds_bucket",
        "mld_jobs",
        "mld_seals_total",
        "mld_disk_free_bytes",
    ):
        assert name in text
    assert 'route="/v1/blobs/{sha256}"' in text
    assert re.search(r"(run|pass|key|org)_[0-9a-f]{24}", text) is None  # routes, never ids
    other = server.api(server.new_key("read", organization="no root"))
    assert other("GET", "/metrics").status_code == 403


def test_backup_and_restore(parts, recorded, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", workers=0).start()
    run_id = process.api().sync(*recorded)
    # As docs/service.md says: the database first, by SQLite's own backup, while the server runs; then the blobs.
    backup = tmp_path / "backup"
    backup.mkdir()
    source = sqlite3.connect(process.data / "mld.sqlite3")
    target = sqlite3.connect(backup / "mld.sqlite3")
    with source, target:
        source.backup(target)
    source.close()
    target.close()
    shutil.copytree(process.data / "blobs", backup / "blobs")
    after = process.api().run("after", "the backup")
    process.stop()
    restored = parts.ServerProcess(tmp_path / "restored", workers=0)
    shutil.copytree(backup, restored.data)
    restored.key = process.key
    restored.start()
    try:
        api = restored.api()
        assert restored.greeting.count("mldbg_") == 0  # no second first key
        assert api("GET", f"/v1/runs/{after}").status_code == 404
        (one, *_) = api.get(f"/v1/runs/{run_id}/passes")["items"]
        files = api.get(f"/v1/runs/{run_id}/passes/{one['pass_id']}")["ranks"][0]["files"]
        assert all(api("GET", f"/v1/blobs/{file['sha256']}").ok for file in files)
        # A blob the backup lacks is simply uploaded again.
        lost = (
            restored.data
            / "blobs"
            / api.get("/v1/whoami")["organization_id"]
            / files[0]["sha256"][:2]
            / files[0]["sha256"]
        )
        content = lost.read_bytes()
        lost.unlink()
        assert api("HEAD", f"/v1/blobs/{files[0]['sha256']}").status_code == 404
        assert api.put(content).status_code == 201
        assert api("GET", f"/v1/blobs/{files[0]['sha256']}").content == content
    finally:
        restored.stop()


def test_backup_and_restore_of_postgresql(postgres, s3, parts, recorded, tmp_path):
    def database(name):
        subprocess.run([postgres.tool("createdb"), *at, name], check=True)
        return f"postgresql://mld@127.0.0.1:{postgres.port}/{name}"

    at = ["-h", "127.0.0.1", "-p", str(postgres.port), "-U", "mld"]
    options = {"storage": f"s3://{s3.bucket}/backup", "s3_endpoint": s3.url, "workers": 0}
    process = parts.ServerProcess(tmp_path / "data", database=database("before"), **options)
    process.env |= s3.env
    process.start()
    run_id = process.api().sync(*recorded)
    dump = tmp_path / "dump.sql"
    subprocess.run([postgres.tool("pg_dump"), *at, "-Fc", "-f", dump, "before"], check=True)
    process.stop()
    url = database("after")
    subprocess.run([postgres.tool("pg_restore"), *at, "-d", "after", dump], check=True)
    restored = parts.ServerProcess(tmp_path / "other machine", database=url, **options)
    restored.env |= s3.env
    restored.key = process.key
    restored.start()
    try:
        api = restored.api()
        (one, *_) = api.get(f"/v1/runs/{run_id}/passes")["items"]
        file = api.get(f"/v1/runs/{run_id}/passes/{one['pass_id']}")["ranks"][0]["files"][0]
        assert len(api("GET", f"/v1/blobs/{file['sha256']}").content) == file["bytes"]
    finally:
        restored.stop()


# -- malformed everything ------------------------------------------------------------------------------------

schema = schemathesis.openapi.from_dict(document(create_app(None)))


@schema.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_whatever_comes_the_answer_is_a_right_one(case, server):
    """Requests made from the document, right and wrong ones: never a 500, and every problem is a problem."""
    case.headers = {**dict(case.headers or {}), "Authorization": f"Bearer {server.key}", "Host": "localhost"}
    answer = case.call(base_url=server.url)
    assert answer.status_code != 500, answer.text
    if answer.status_code >= 400 and case.method != "HEAD" and answer.headers.get("content-type"):
        body = answer.json()
        if case.path != "/healthz":
            assert protocol.PROBLEMS[protocol.problem_name(body)] == answer.status_code
            assert {"detail", "value", "expectation", "fix", "request_id"} <= body.keys()


def test_the_server_is_still_well_and_logged_no_fault(server):
    assert server.healthy()
    faults = [line for line in server.log.read_text().splitlines() if '"level": "error"' in line]
    assert faults == []
    assert os.path.exists(server.data / "mld.sqlite3")


def test_every_setting_is_in_the_document():
    text = (DOCS / "service.md").read_text()
    for item in dataclasses.fields(Settings):
        assert f"`{ENV_PREFIX}{item.name.upper()}`" in text, item.name


def test_health_says_when_nothing_can_be_written(parts, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", workers=0)
    process.env["MLD_SERVER_MIN_FREE_MB"] = str(1 << 40)

    def answers():
        with contextlib.suppress(requests.RequestException):
            return process.api("")("GET", "/healthz").status_code
        return None

    process.healthy = answers
    process.start()
    try:
        found = requests.get(f"{process.url}/healthz", timeout=5)
        assert (found.status_code, found.json()["writable"], found.json()["database"]) == (503, False, True)
    finally:
        process.stop()


def test_the_first_key_is_in_a_file_of_its_owner_and_in_no_log(parts, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", workers=0).start()
    try:
        path = process.data / "first-key"
        assert path.stat().st_mode & 0o777 == 0o600
        assert process.key in path.read_text()
        assert "mldbg_" not in process.greeting + process.log.read_text()
        assert str(path) in process.greeting
        assert process.api().get("/v1/whoami")["key_name"] == "first key"
    finally:
        process.stop()


def test_results_count_in_the_quota(parts, recorded, tmp_path):
    process = parts.ServerProcess(tmp_path / "data").start()
    try:
        api = process.api()
        run_id = api.sync(*recorded)
        before = api.get("/v1/organizations")["items"][0]["blob_bytes"]
        job = api("POST", f"/v1/runs/{run_id}/evaluations", json={"options": {"repeats": 1}}).json()
        job = api.finished(job["job_id"], 180)
        assert job["state"] == "done", job
        files = api.get(f"/v1/results/{job['result_id']}/files")["items"]
        distinct = {file["sha256"]: file["bytes"] for file in files}
        after = api.get("/v1/organizations")["items"][0]["blob_bytes"]
        assert after - before == sum(distinct.values())
        process.stop()
        process.env["MLD_SERVER_QUOTA_GB"] = str(after / (1 << 30))
        process.start()
        again = {"result_name": "too much", "options": {"repeats": 1}}
        job = api("POST", f"/v1/runs/{run_id}/evaluations", json=again).json()
        job = api.finished(job["job_id"], 180)
        assert (job["state"], "quota" in job["reason"]) == ("failed", True)
    finally:
        process.stop()
