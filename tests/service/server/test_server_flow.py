"""From a traced run to a result, through the API, on both pairs of database and storage."""

import hashlib
import json
import os
import re

import pytest

from ml_debugger.evaluator import Evaluator
from mld_core.records.format.layout import RunKey
from mld_core.service.protocol import problem_name

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module", params=["sqlite+folder", "postgresql+s3"])
def place(request, parts, tmp_path_factory):
    """A server on each pair."""
    if request.param == "sqlite+folder":
        yield request.getfixturevalue("server")
        return
    postgres, s3 = request.getfixturevalue("postgres"), request.getfixturevalue("s3")
    process = parts.ServerProcess(
        tmp_path_factory.mktemp("big") / "data",
        database=postgres.url,
        storage=f"s3://{s3.bucket}/team",
        s3_endpoint=s3.url,
    )
    process.env |= s3.env
    process.start()
    yield process
    process.stop()


def test_a_run_goes_up_is_evaluated_and_comes_down(place, recorded):
    store, run = recorded
    api = place.api()
    run_id = api.sync(store, run)

    passes = api.get(f"/v1/runs/{run_id}/passes")["items"]
    rows = {(one["dataset_type"], one["n_epoch"]): one["attempts"][0]["rows"]["samples"] for one in passes}
    assert rows == {
        ("train", 0): 300,
        ("train", 1): 300,
        ("val", 0): 200,
        ("val", 1): 200,
        ("test", None): 150,
    }
    assert all(one["sealed"] for one in passes)

    detail = api.get(f"/v1/runs/{run_id}/passes/{passes[0]['pass_id']}")
    assert len(detail["ranks"]) == detail["attempts"][0]["world_size"]
    for rank in detail["ranks"]:
        for file in rank["files"]:
            content = api("GET", f"/v1/blobs/{file['sha256']}").content
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (file["sha256"], file["bytes"])

    asked = api("POST", f"/v1/runs/{run_id}/evaluations", json={"result_name": "first"})
    assert asked.status_code == 202, asked.text
    job = api.finished(asked.json()["job_id"])
    assert (job["state"], job["progress"], job["reason"]) == ("done", 1.0, None)

    result = api.get(f"/v1/results/{job['result_id']}")
    assert (result["result_name"], result["method_name"]) == ("first", "classification_v1")
    files = {one["name"]: one for one in api.get(f"/v1/results/{job['result_id']}/files")["items"]}
    info = json.loads(api("GET", f"/v1/blobs/{files['result.json']['sha256']}").content)
    assert info == result["info"]
    assert (info["model_name"], info["version_name"]) == (run.model_name, run.version_name)

    here = Evaluator(run.model_name, run.version_name, store=store.root).request_evaluation()
    metrics = api("GET", f"/v1/blobs/{files['metrics.parquet']['sha256']}").content
    assert set(files) == {path.name for path in here.folder.iterdir()}
    assert metrics == (here.folder / "metrics.parquet").read_bytes()  # the same evaluator on the same rows


def test_names_of_any_kind_are_names_and_not_paths(place, parts, records, tmp_path):
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run("../../etc/passwd", "v1.0/..%2f\\x #?")
    factory.add_pass(run, "val/../../x", records.make_data(60))
    api = place.api()
    run_id = api.sync(factory.store, run)
    before = {path for path in place.data.rglob("*") if "etc" in path.name or "passwd" in path.name}
    assert before == set()
    job = api.finished(api("POST", f"/v1/runs/{run_id}/evaluations", json={}).json()["job_id"])
    assert job["state"] == "done", job
    result = api.get(f"/v1/results/{job['result_id']}")
    assert result["info"]["model_name"] == run.model_name
    assert [one["dataset"] for one in result["info"]["passes"]] == ["val/../../x"]
    # The scratch store is gone soon after.
    parts.wait_for(lambda: [os.listdir(one) for one in (place.data / "work").iterdir()] == [["lock"]], 20)


def test_auto_names_are_numbered_and_given_names_are_kept(place, recorded):
    api = place.api()
    run_id = api.sync(*recorded)
    names = []
    for split in ("val", "train"):  # the same question twice would be one evaluation
        body = {"options": {"dataset_types": [split]}}
        job = api.finished(api("POST", f"/v1/runs/{run_id}/evaluations", json=body).json()["job_id"])
        names.append(api.get(f"/v1/results/{job['result_id']}")["result_name"])
    # Other tests evaluate the same run: which number comes first depends on what ran before.
    (stem, first), (other, second) = (re.fullmatch(r"(\w+_\d{8})(?:_(\d+))?", n).groups("1") for n in names)
    assert (other, int(second)) == (stem, int(first) + 1)
    api.finished(api("POST", f"/v1/runs/{run_id}/evaluations", json={"result_name": "mine"}).json()["job_id"])
    again = api("POST", f"/v1/runs/{run_id}/evaluations", json={"result_name": "mine"})
    assert (again.status_code, again.json()["type"]) == (409, "urn:mld:problem:name-taken")
    listed = api.get(f"/v1/runs/{run_id}/results")["items"]
    assert [one["result_name"] for one in listed if one["result_name"] in {*names, "mine"}] == [
        *names,
        "mine",
    ]


def test_an_evaluation_that_says_no_says_why(place, recorded):
    api = place.api()
    run_id = api.sync(*recorded)
    for body, error, text in (
        ({"n_epoch": 77}, "NotFoundError", "no records of epoch 77"),
        ({"method_name": "od_v1"}, "ValueError", "classification_v1"),
        ({"options": {"unheard": 1}}, "ValueError", "unheard"),
    ):
        job = api.finished(api("POST", f"/v1/runs/{run_id}/evaluations", json=body).json()["job_id"])
        assert (job["state"], job["error"]) == ("failed", error), job
        assert text in job["reason"]
        assert str(place.data) not in job["reason"]


def test_runs_are_found_listed_page_by_page_and_patched(place):
    api = place.api(place.new_key("read", "write", organization="paged"))
    made = [api.run("paged", f"v{number}", task="classification") for number in range(5)]
    assert api.run("paged", "v3") == made[3]
    seen, cursor = [], None
    while True:
        answer = api.get("/v1/runs", params={"limit": 2, **({"cursor": cursor} if cursor else {})})
        seen += [one["run_id"] for one in answer["items"]]
        cursor = answer["next"]
        if cursor is None:
            break
    assert seen == made
    found = api.get("/v1/runs", params={"model_name": "paged", "version_name": "v2"})["items"]
    assert [one["run_id"] for one in found] == [made[2]]
    # find-or-create adds what is missing; PATCH sets
    api.run("paged", "v2", task="other", n_class=7)
    assert api.get(f"/v1/runs/{made[2]}")["info"] == {"task": "classification", "n_class": 7}
    answer = api("PATCH", f"/v1/runs/{made[2]}", json={"info": {"task": "detection"}})
    assert answer.json()["info"] == {"task": "detection", "n_class": 7}


def test_older_generations_are_not_evaluated(place, records, tmp_path):
    factory = records.StoreFactory(tmp_path / "store")
    run: RunKey = factory.run("again", "v1")
    factory.add_pass(run, "val", records.make_data(40), n_epoch=1)
    api = place.api()
    run_id = api.sync(factory.store, run)
    factory.store.recreate(run)
    factory.store.ensure_run(run, {"task": "classification", "n_class": 5})
    factory.add_pass(run, "test", records.make_data(30), n_epoch=0)
    newest = [folder for folder in api_folders(factory, run) if "test" in str(folder)]
    api.seal(run_id, api.upload_rank(newest[0])).raise_for_status()
    job = api.finished(api("POST", f"/v1/runs/{run_id}/evaluations", json={}).json()["job_id"])
    passes = api.get(f"/v1/results/{job['result_id']}")["info"]["passes"]
    assert [one["dataset"] for one in passes] == ["test"]


def api_folders(factory, run):
    return sorted(path.parent for path in factory.store.run_dir(run).rglob("seal.json"))


def sha(content):
    return hashlib.sha256(content).hexdigest()


def refused(answer):
    told = answer.json()
    return problem_name(told), told


def test_a_seal_by_the_digest_of_its_manifest(api, parts, records, tmp_path):
    factory, mine = records.StoreFactory(tmp_path / "store"), api
    run = factory.run("by digest", "v1")
    factory.add_pass(run, "val", records.make_data(300, seed=7), world_size=2)
    run_id = mine.run(run.model_name, run.version_name, **factory.store.run_info(run))
    folders = parts.rank_folders(factory.store, run)
    texts = [(folder / "seal.json").read_bytes() for folder in folders]
    first = {"manifest_sha256": sha(texts[0])}
    kind, told = refused(mine.seal(run_id, first))
    assert (kind, told["missing"]) == ("missing-blobs", [sha(texts[0])])
    assert mine.put(texts[0]).status_code == 201
    kind, told = refused(mine.seal(run_id, first))
    listed = [info["sha256"] for part in json.loads(texts[0])["parts"] for info in part["files"].values()]
    assert (kind, told["missing"]) == ("missing-blobs", sorted(set(listed)))
    old = mine.upload_rank(folders[0])
    made = mine.seal(run_id, first)
    assert (made.status_code, made.json()["sealed_ranks"]) == (201, [0])
    assert mine.seal(run_id, first).status_code == 200
    assert mine.seal(run_id, old).json()["seal_id"] == made.json()["seal_id"]  # as protocol 1.0 says it
    assert refused(mine.seal(run_id, {"manifest_sha256": listed[0]}))[0] == "invalid"  # no manifest
    other = mine.run("another", "run")
    assert refused(mine.seal(other, first))[0] == "invalid"
    # A manifest is no part of a pass.
    body = mine.upload_rank(folders[1])
    info = next(iter(body["manifest"]["parts"][0]["files"].values()))
    info["sha256"], info["bytes"] = sha(texts[0]), len(texts[0])
    assert refused(mine.seal(run_id, body))[0] == "refused-part"
    (one,) = mine.get(f"/v1/runs/{run_id}/passes")["items"]
    (rank,) = mine.get(f"/v1/runs/{run_id}/passes/{one['pass_id']}")["ranks"]
    assert (rank["manifest"], rank["manifest_sha256"]) == (json.loads(texts[0]), sha(texts[0]))
    assert rank["opening"] == old["opening"]
