"""What is removed at the service is there for nobody at once, is not taken again, and its bytes go."""

import json
import shutil
import sqlite3
import zlib

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.records.format.removals import id_digest
from mld_core.records.read.reader import load
from mld_core.service.client.api import Client
from mld_core.service.client.uploader import Uploader
from mld_core.service.protocol import problem_name
from mld_core.service.server.jobs.materialise import lay_out
from mld_core.service.server.storage import sweeps
from mld_core.service.server.storage.backends import LocalStorage
from mld_core.service.server.storage.database import Database
from mld_core.service.server.storage.models import Run
from mld_core.service.server.storage.removals import Remover, Wanted

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module", params=["files", pytest.param("s3", marks=pytest.mark.heavy)])
def place(request, parts, tmp_path_factory):
    """A server of its own: on SQLite and a folder, or on PostgreSQL and an S3 server."""
    behind, blobs, env = {}, None, {}
    if request.param == "s3":
        postgres, s3 = request.getfixturevalue("postgres"), request.getfixturevalue("s3")
        behind = {"database": postgres.url, "storage": f"s3://{s3.bucket}/removals", "s3_endpoint": s3.url}
        blobs, env = s3.folder / "objects" / s3.bucket / "removals", s3.env
    process = parts.ServerProcess(tmp_path_factory.mktemp("removals") / "data", **behind)
    process.env |= env
    process.blobs = blobs or process.data / "blobs"
    process.start()
    yield process
    process.stop()


@pytest.fixture
def run(place, records, tmp_path, request):
    """An uploaded run of its own: its store, key and id."""
    number = zlib.crc32(request.node.name.encode())
    factory = records.StoreFactory(tmp_path / "store")
    made = factory.standard("net", f"v-{number}", seed=number % 997)
    return factory.store, made, place.api().sync(factory.store, made)


def swept(api, parts):
    parts.wait_for(lambda: api.get("/v1/removals")["pending"] == 0, 120)


def files_of(api, run_id):
    passes = api.get(f"/v1/runs/{run_id}/passes", params={"limit": 1000})["items"]
    ranks = [
        rank for one in passes for rank in api.get(f"/v1/runs/{run_id}/passes/{one['pass_id']}")["ranks"]
    ]
    return [file for rank in ranks for file in rank["files"]], [rank["manifest_sha256"] for rank in ranks]


def there(api, run_id, tmp_path):
    """The ids in all files the service gives of a run."""
    found = []
    for file in files_of(api, run_id)[0]:
        path = tmp_path / file["sha256"]
        path.write_bytes(api("GET", f"/v1/blobs/{file['sha256']}").content)
        found += pq.read_table(path, columns=["input_id"])["input_id"].to_pylist()
    return found


def used(place):
    return place.api().get("/v1/organizations")["items"][0]["blob_bytes"]


def on_disk(place):
    files = {path.name: path for path in place.blobs.rglob("*") if path.is_file()}
    return {name: path.stat().st_size for name, path in files.items() if path.stat().st_size}


def evaluated(api, run_id, **body):
    job = api("POST", f"/v1/runs/{run_id}/evaluations", json=body).json()
    job = api.finished(job["job_id"], 300)
    assert job["state"] == "done", job
    return job["result_id"]


def test_a_run_goes_with_all_it_has_and_is_not_taken_again(place, run, parts):
    store, key, run_id = run
    api, before = place.api(), on_disk(place)
    result_id = evaluated(api, run_id, options={"repeats": 1, "dataset_types": ["test"]})
    files, manifests = files_of(api, run_id)
    would = api("POST", f"/v1/runs/{run_id}/removals", json={"dry_run": True}).json()
    assert would["rows"] > 0
    assert would["files"] > len(files)
    assert api.get(f"/v1/runs/{run_id}")["run_id"] == run_id
    size = used(place)
    done = api("POST", f"/v1/runs/{run_id}/removals", json={}).json()
    assert {**done, "dry_run": True} == would
    for path in (f"/v1/runs/{run_id}", f"/v1/results/{result_id}", f"/v1/blobs/{files[0]['sha256']}"):
        assert api("GET", path).status_code == 404
    assert used(place) <= size - done["bytes"]
    swept(api, parts)
    assert not {file["sha256"] for file in files} & on_disk(place).keys()
    assert not set(manifests) & on_disk(place).keys()
    assert on_disk(place).keys() <= before.keys()
    folder = parts.rank_folders(store, key)[0]
    again = api.run(key.model_name, key.version_name)
    refused = api.seal(again, api.upload_rank(folder))
    assert (refused.status_code, problem_name(refused.json())) == (410, "removed")
    failed = Uploader(store, Client(place.url, place.key)).send(
        Uploader(store, Client(place.url, place.key)).plan([key])[0]
    )
    assert (failed.state, "was removed" in failed.message) == ("failed", True)


def test_an_epoch_is_removed_and_the_others_stay(place, run, parts):
    store, key, run_id = run
    api = place.api()
    passes = api.get(f"/v1/runs/{run_id}/passes")["items"]
    epoch = next(one["n_epoch"] for one in passes if one["dataset_type"] == "val")
    body = {"dataset_type": "val", "epochs": [epoch]}
    assert api("POST", f"/v1/runs/{run_id}/removals", json=body).status_code == 200
    left = api.get(f"/v1/runs/{run_id}/passes")["items"]
    gone = [one for one in passes if one["pass_id"] not in {other["pass_id"] for other in left}]
    assert {(one["dataset_type"], one["n_epoch"]) for one in gone} == {("val", epoch)}
    outcomes = [
        row.state
        for job in [Uploader(store, Client(place.url, place.key), again=True)]
        for row in map(job.send, job.plan([key]))
    ]
    assert sorted(set(outcomes)) == ["failed", "there"]
    assert outcomes.count("failed") == len(gone)


def test_a_sample_goes_from_every_file_and_does_not_come_back(place, run, parts, tmp_path):
    store, key, run_id = run
    api = place.api()
    ids = load(key.model_name, key.version_name, store=store)["input_id"].to_pylist()
    sample = ids[0]
    old = files_of(api, run_id)
    result_id = evaluated(api, run_id, options={"repeats": 1})
    would = api("POST", f"/v1/runs/{run_id}/removals", json={"input_ids": [sample], "dry_run": True}).json()
    assert would["rows"] == ids.count(sample)
    assert len(would["results"]) == 1
    said = {"kind": "ok", "author": "eve", "at": "2026-11-28T21:00:00.000001+00:00"}
    verdicts = [
        {**said, "dataset_type": "val", "input_id": one, "verdict_id": f"{number:016x}"}
        for number, one in enumerate((sample, "another"))
    ]
    where = f"/v1/runs/{run_id}/verdicts"
    assert api("POST", where, json={"verdicts": verdicts}).json()["added"] == 2
    assert api("POST", f"/v1/runs/{run_id}/removals", json={"input_ids": [sample]}).status_code == 200
    assert api("GET", f"/v1/results/{result_id}").status_code == 404
    for _ in range(2):
        assert [one["input_id"] for one in api.get(where)["items"]] == ["another"]
        api("POST", where, json={"verdicts": verdicts})  # the machine they were said on sends them again
    # Evaluations leave it out whether it is out of the files or not.
    fresh = evaluated(api, run_id, options={"repeats": 1})
    for file in api.get(f"/v1/results/{fresh}/files")["items"]:
        assert sample.encode() not in api("GET", f"/v1/blobs/{file['sha256']}").content
    swept(api, parts)
    found = there(api, run_id, tmp_path)
    assert sample not in found
    both = sorted(set(found)), sorted(set(ids) - {sample})
    assert both[0] == both[1]
    new = files_of(api, run_id)
    replaced = {file["sha256"] for file in old[0]} - {file["sha256"] for file in new[0]}
    assert replaced
    assert not replaced & on_disk(place).keys()
    assert not (set(old[1]) - set(new[1])) & on_disk(place).keys()
    parts.wait_for(lambda: used(place) == sum(on_disk(place).values()))  # results give way after the runs
    # The machine that trained sends it again: the rank is there, as it is now.
    job = Uploader(store, Client(place.url, place.key), again=True)
    assert {job.send(rank).state for rank in job.plan([key])} <= {"there", "uploaded"}
    assert {one["sha256"] for one in files_of(api, run_id)[0]} == {one["sha256"] for one in new[0]}
    swept(api, parts)
    assert not replaced & on_disk(place).keys()
    parts.wait_for(lambda: used(place) == sum(on_disk(place).values()))  # results give way after the runs
    assert id_digest(sample) in {one["input_digest"] for one in api.get("/v1/removals")["items"]}
    assert "/v1/runs/{run_id}/removals" in place.log.read_text()
    assert sample not in place.log.read_text()


def test_a_rank_that_comes_later_is_looked_through(place, run, records, parts, tmp_path):
    store, key, run_id = run
    api = place.api()
    factory = records.StoreFactory(store.root)
    factory.add_pass(key, "val", records.make_data(30, seed=5), n_epoch=77)
    sample = load(key.model_name, key.version_name, n_epoch=77, store=store)["input_id"].to_pylist()[0]
    api("POST", f"/v1/runs/{run_id}/removals", json={"input_ids": [sample]})
    swept(api, parts)
    api.sync(store, key)
    swept(api, parts)
    assert sample not in there(api, run_id, tmp_path)


STEPS = ["_rewritten", "_stored_text", "_exchange", "release"]


@pytest.mark.parametrize("step", STEPS)
def test_a_sweep_that_is_killed_leaves_the_old_or_the_new(run, place, tmp_path, monkeypatch, step):
    """The sweep is cut at each of its steps, on a copy of the server's data; a new one goes on."""
    store, key, run_id = run
    if place.blobs.parent != place.data:
        pytest.skip("the copy is one of SQLite and a folder")
    ids = load(key.model_name, key.version_name, store=store)["input_id"].to_pylist()
    organization = place.api().get("/v1/whoami")["organization_id"]
    data = tmp_path / "copy"
    data.mkdir()
    with (
        sqlite3.connect(place.data / "mld.sqlite3") as source,
        sqlite3.connect(data / "mld.sqlite3") as target,
    ):
        source.backup(target)
    shutil.copytree(place.data / "blobs", data / "blobs")
    database, storage = Database(f"sqlite:///{data / 'mld.sqlite3'}"), LocalStorage(data / "blobs")
    with database.read() as session:
        row = session.query(Run).filter_by(id=run_id).one()
    Remover(database, storage).remove(organization, row, Wanted(input_ids=(ids[0],)))

    class Cut(BaseException):
        pass

    def cut(*_args, **_more):
        raise Cut

    def counted(name):
        whose = {"run_pk": row.pk, "organization_id": organization, "run": key, "info": row.whole_info}
        laid = lay_out(database, storage, tmp_path / name, **whose)
        return load(key.model_name, key.version_name, store=laid)["input_id"].to_pylist()

    expected = sorted(one for one in ids if one != ids[0])
    owner = sweeps if step == "release" else sweeps.Sweeper
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, cut)
        with pytest.raises(Cut):
            sweeps.Sweeper(database, storage, data / "removing").sweep()
    assert sorted(counted("first")) == expected
    sweeper = sweeps.Sweeper(database, storage, data / "removing")
    assert sweeper.sweep() > 0
    assert sorted(counted("second")) == expected
    assert sweeper.sweep() == 0
    database.close()


def test_only_an_admin_removes_and_nobody_of_others(place, run):
    _, _, run_id = run
    for scopes in (["read"], ["write"]):
        api = place.api(place.new_key(*scopes))
        assert api("POST", f"/v1/runs/{run_id}/removals", json={"dry_run": True}).status_code == 403
    other = place.api(place.new_key("read", "write", "admin", organization="strangers"))
    assert other("POST", f"/v1/runs/{run_id}/removals", json={}).status_code == 404
    assert other.get("/v1/removals")["items"] == []
    mine = place.api()
    both = {"epochs": [0], "input_ids": ["x"]}
    assert mine("POST", f"/v1/runs/{run_id}/removals", json=both).status_code == 422
    assert mine("POST", f"/v1/runs/{run_id}/removals", json={"results": ["none"]}).status_code == 404


def test_the_command_removes_at_the_service(place, run, monkeypatch):
    _, key, run_id = run
    monkeypatch.setenv("MLD_API_ENDPOINT", place.url)
    monkeypatch.setenv("MLD_API_KEY", place.key)
    arguments = ["rm", key.model_name, key.version_name, "--remote", "--json"]
    would = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert would.exit_code == 0, would.output
    assert place.api().get(f"/v1/runs/{run_id}")["run_id"] == run_id
    assert CliRunner().invoke(app, arguments).exit_code == 2
    done = CliRunner().invoke(app, [*arguments, "--yes"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert row["rows"] > 0
    assert place.api()("GET", f"/v1/runs/{run_id}").status_code == 404
