"""The digest of a large file is checked after its upload was answered: wrong bytes count for nothing."""

import hashlib
import json
import os
import sqlite3

import pytest

from mld_core.service.client import api as client_api
from mld_core.service.client import uploader
from mld_core.service.client.api import Client
from mld_core.service.client.errors import DamagedFileError
from mld_core.service.client.uploader import Uploader
from mld_core.service.protocol import HEADER_PROTOCOL, PROTOCOL, problem_name
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
