"""Two servers behind one database and one bucket are restarted one after the other; nothing retried is lost."""

import hashlib
import threading

import pytest

from mld_core.service.client.api import Client
from mld_core.service.client.sealed import read_sealed, sealed_folders
from mld_core.service.client.transport import Patience
from mld_core.service.client.uploader import Uploader

pytestmark = pytest.mark.processes

PASSES = 24


def test_a_rolling_restart_loses_no_request_that_is_retried(parts, postgres, s3, records, tmp_path):
    pair = []
    for number in range(2):
        server = parts.ServerProcess(
            tmp_path / f"data{number}",
            database=postgres.url,
            storage=f"s3://{s3.bucket}/rolling",
            s3_endpoint=s3.url,
        )
        server.env |= {**s3.env, "MLD_SERVER_S3_REGION": "us-east-1", "MLD_SERVER_WORKERS": "0"}
        pair.append(server)
    pair[0].start()
    key = (
        pair[0].key
        or pair[0].mld("keys", "create", "--name", "x", "--scope", "read", "--scope", "write").stdout
    )
    pair[0].key = pair[1].key = key.strip()
    pair[1].start()
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run("rolling", tmp_path.name)
    for epoch in range(PASSES):
        factory.add_pass(run, "val", records.make_data(200, seed=epoch), n_epoch=epoch)
    failed = []

    def upload(number):
        """Each client stays with its server, as docs/service.md says."""
        job = Uploader(factory.store, Client(pair[number].url, pair[number].key, Patience(60.0, first=0.05)))
        mine = [rank for rank in job.plan([run]) if rank.opened.n_epoch % 2 == number]
        failed.extend(row for row in map(job.send, mine) if row.state != "uploaded")

    clients = [threading.Thread(target=upload, args=(number,)) for number in range(2)]
    for client in clients:
        client.start()
    pair[0].stop()
    assert clients[0].is_alive()  # its server is gone while it uploads
    pair[0].start()
    pair[1].stop()
    pair[1].start()
    for client in clients:
        client.join()
    assert failed == []
    api = pair[1].api()
    run_id = api.run(run.model_name, run.version_name)
    sent = {
        file.sha256 for folder in sealed_folders(factory.store, run) for file in read_sealed(folder).files
    }
    there = set()
    for one in api.get(f"/v1/runs/{run_id}/passes", params={"limit": 1000})["items"]:
        assert one["sealed"]
        for rank in api.get(f"/v1/runs/{run_id}/passes/{one['pass_id']}")["ranks"]:
            there |= {file["sha256"] for file in rank["files"]}
    assert there == sent
    for digest in sorted(there)[:4]:
        assert hashlib.sha256(api("GET", f"/v1/blobs/{digest}").content).hexdigest() == digest
    for server in pair:
        server.stop()
