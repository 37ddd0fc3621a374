"""A database of the version before is brought up to date, and what stands in it is read as before."""

import hashlib
import json
import os
import subprocess

import pytest
from alembic import command
from sqlalchemy import select, text

from mld_core.records.format.layout import RunKey
from mld_core.service.server.jobs.materialise import lay_out
from mld_core.service.server.jobs.queue import Jobs
from mld_core.service.server.storage.backends import LocalStorage
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import Organization, Run

pytestmark = pytest.mark.processes

AT = "2026-11-21T00:00:00.000000+00:00"
INFO = {"task": "detection", "class_names": ["cat", "dog"], "n_class": 2, "generation": 0}
ATTEMPT = "20261121T000001-abcdef-000"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'old.sqlite3'}"
    postgres = request.getfixturevalue("postgres")
    where = ["-h", "127.0.0.1", "-p", str(postgres.port), "-U", "mld"]
    name = f"old_{os.urandom(4).hex()}"
    subprocess.run([postgres.tool("createdb"), *where, name], check=True)
    return f"postgresql+psycopg://mld@127.0.0.1:{postgres.port}/{name}"


def insert(connection, table, **values):
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    query = text(f"INSERT INTO {table} ({names}) VALUES ({marks}) RETURNING pk")
    return connection.execute(query, values).scalar_one()


def test_what_the_version_before_wrote_is_read_as_before(url, tmp_path):
    storage = LocalStorage(tmp_path / "blobs")
    content = b"PAR1 as it was"
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / "file").write_bytes(content)
    storage.take("org_1", sha256, tmp_path / "file")
    opening = {"dataset_type": "val", "n_epoch": 0, "pass_no": 0, "attempt": ATTEMPT, "rank": 0}
    manifest = {"attempt": opening, "parts": [], "rows": {"samples": 3}, "format": 1}
    database = Database(url)
    with database.engine.begin() as connection:
        command.upgrade(database.alembic_config(connection), "0001")
        made = {"created_at": AT}
        owner = insert(connection, "organizations", id="org_1", name="us", is_root=True, blob_bytes=1, **made)
        run = insert(
            connection,
            "runs",
            id="run_1",
            organization_pk=owner,
            model_name="net",
            version_name="v1",
            **{"info": json.dumps(INFO), "updated_at": AT, **made},
        )
        place = {"dataset_type": "val", "epoch": "0", "pass_no": 0}
        one_pass = insert(connection, "passes", id="pass_1", run_pk=run, **place, **made)
        seal = insert(
            connection,
            "seals",
            id="seal_1",
            pass_pk=one_pass,
            attempt=ATTEMPT,
            rank_no=0,
            world_size=1,
            manifest=json.dumps(manifest),
            opening=json.dumps(opening),
            rows='{"samples": 3}',
            **{"bytes": len(content), "digest": "0" * 64, **made},
        )
        blob = {"sha256": sha256, "size": len(content), "state": "checked", "facts": "{}"}
        blob_pk = insert(connection, "blobs", organization_pk=owner, **blob, **made)
        insert(
            connection, "seal_files", seal_pk=seal, blob_pk=blob_pk, part="part-1", family="samples", rows=3
        )
        request = {"result_name": None, "n_epoch": "latest"}
        job = {"request": json.dumps(request), "state": "queued", "progress": 0.0, "stage": ""}
        insert(connection, "jobs", id="job_1", run_pk=run, **job, attempts=0, cancel=False, **made)
    database.migrate()
    with database.read() as session:
        found = session.scalars(select(Run)).one()
        assert (found.whole_info, found.task, found.note, found.archived) == (INFO, "detection", "", False)
        assert session.scalars(select(Organization.blob_bytes)).one() == len(content)
    claim = Jobs(database, lease_seconds=60).claim("a worker")
    assert (claim.job_id, claim.info) == ("job_1", INFO)
    names = RunKey("net", "v1")
    whose = {"run_pk": claim.run_pk, "organization_id": "org_1", "run": names, "info": claim.info}
    store = lay_out(database, storage, tmp_path / "store", **whose)
    (folder,) = {path.parent for path in store.run_dir(names).rglob("seal.json")}
    assert json.loads((folder / "seal.json").read_text()) == manifest
    assert json.loads((folder / "attempt.json").read_text()) == opening
    assert (folder / "part-1" / "samples.parquet").read_bytes() == content
    assert store.run_info(names)["class_names"] == ["cat", "dog"]
    database.close()
