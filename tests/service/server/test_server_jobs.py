"""Evaluations outlive their workers, once; and can be cancelled."""

import json
import os
import signal
import sqlite3
import time

import pytest
import zygote
from typer.testing import CliRunner

from mld_core.cli.main import app
from mld_core.service.server.jobs.queue import Jobs
from mld_core.service.server.storage.database import Database

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def place(parts, tmp_path_factory):
    """A server without workers of its own."""
    process = parts.ServerProcess(
        tmp_path_factory.mktemp("jobs") / "data", workers=0, lease_seconds=2
    ).start()
    yield process
    process.stop()


@pytest.fixture
def worker(place):
    """Start `mld worker`s."""
    started = []

    def start():
        started.append(
            zygote.Process("mld_core.cli.main", "worker", env=place.env, errors=place.log, kind="server")
        )
        return started[-1]

    yield start
    for process in started:
        process.terminate()
    for process in started:
        process.wait(timeout=20)


def children(pid):
    """Processes of a worker."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(one) for one in file.read().split()]


def asked(place, recorded, **body):
    api = place.api()
    run_id = api.sync(*recorded)
    return api, api("POST", f"/v1/runs/{run_id}/evaluations", json=body).json()["job_id"]


def state(api, job_id):
    return api.get(f"/v1/jobs/{job_id}")


SLOW = {"repeats": 20, "null_run": True}


BEFORE_WORK = {"", "starting", "queued again", "fetching records"}


def halted_at_work(place, process, job, parts, attempt=1):
    """Stop a worker's evaluation in the middle, so that it can not end before it is killed; its process.

    A job whose result is written may be done at any moment, however it is stopped.
    """

    def halted():
        for child in children(process.pid):
            os.kill(child, signal.SIGSTOP)
            now = job()
            assert now["state"] in {"queued", "running"}, now
            # Until the worker has taken the job, it still says what it said of the try before.
            begun = now["attempts"] == attempt and now["stage"] not in BEFORE_WORK
            if now["state"] == "running" and begun:
                assert not list((place.data / "work").rglob("result.json"))
                assert 0 <= now["progress"] < 1
                return child
            os.kill(child, signal.SIGCONT)
        return None

    return parts.wait_for(halted, 120)


def kill_at_work(place, process, job, parts, attempt):
    own = halted_at_work(place, process, job, parts, attempt)
    process.kill()
    process.wait()
    os.kill(own, signal.SIGCONT)
    # what it was running ends with it
    parts.wait_for(lambda: not os.path.exists(f"/proc/{own}"), 60)


@pytest.mark.slow
def test_a_job_survives_one_killed_worker_but_not_two(place, worker, recorded, parts):
    api, job_id = asked(place, recorded, options=SLOW)
    queued = state(api, job_id)
    assert (queued["state"], queued["attempts"]) == ("queued", 0)
    for attempt in (1, 2):
        kill_at_work(place, worker(), lambda: state(api, job_id), parts, attempt)
        assert state(api, job_id)["attempts"] == attempt
    job = api.finished(job_id)
    assert (job["state"], job["error"], job["attempts"]) == ("failed", "WorkerDied", 2)
    assert "the worker died while it ran this" in job["reason"]
    # The server is well, and so is the next job, even when its evaluation is killed once.
    _, job_id = asked(place, recorded, options={"repeats": 6})
    os.kill(halted_at_work(place, worker(), lambda: state(api, job_id), parts), signal.SIGKILL)
    job = api.finished(job_id)
    assert (job["state"], job["attempts"]) == ("done", 2), job
    with sqlite3.connect(place.data / "mld.sqlite3") as database:
        assert database.execute("select count(*) from results").fetchone() == (1,)


def test_the_engine_that_the_worker_s_environment_names_evaluates(place, worker, recorded, monkeypatch):
    api, job_id = asked(place, recorded, result_name="named", options={"repeats": 1})
    monkeypatch.setitem(place.env, "MLD_ENGINE", "rounds")
    worker()
    job = api.finished(job_id)
    assert job["state"] == "done", job
    assert api.get(f"/v1/results/{job['result_id']}")["options"]["engine"] == "rounds"


def test_records_that_cannot_be_laid_out_end_their_job_and_the_worker_works_on(
    place, worker, records, recorded, tmp_path
):
    """Whatever is wrong, somebody waits for the answer."""
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run("damaged", "v1")
    factory.add_pass(run, "val", records.make_data(60))
    api, damaged = asked(place, (factory.store, run))
    _, sound = asked(place, recorded, result_name="sound")
    with sqlite3.connect(place.data / "mld.sqlite3") as database:
        database.execute(
            "UPDATE seals SET opening = '[]' WHERE pass_pk IN (SELECT passes.pk FROM passes JOIN runs"
            " ON passes.run_pk = runs.pk WHERE runs.model_name = 'damaged')"
        )
    worker()
    job = api.finished(damaged)
    assert (job["state"], job["error"]) == ("failed", "WorkerDied")
    assert "AttributeError" in job["reason"]
    assert api.finished(sound)["state"] == "done"


def test_a_job_that_ends_just_after_it_was_cancelled_is_not_done(place, recorded):
    api, job_id = asked(place, recorded)
    database = Database(f"sqlite:///{place.data / 'mld.sqlite3'}")
    jobs = Jobs(database, lease_seconds=60)
    claim = jobs.claim("a worker")
    assert claim.job_id == job_id
    assert api("DELETE", f"/v1/jobs/{job_id}").json()["state"] == "running"  # until its worker knows
    with database.write() as session:
        assert jobs.end(session, claim, "a worker", "done") is False
    jobs.cancelled(claim, "a worker")
    assert state(api, job_id)["state"] == "cancelled"
    database.close()


def test_jobs_are_cancelled_queued_or_running(place, worker, recorded, parts):
    api, first = asked(place, recorded, options={**SLOW, "repeats": 19})
    _, second = asked(place, recorded, result_name="second")
    taken = api(
        "POST", f"/v1/runs/{state(api, second)['run_id']}/evaluations", json={"result_name": "second"}
    )
    assert taken.status_code == 409
    assert api("DELETE", f"/v1/jobs/{second}").json()["state"] == "cancelled"
    halted_at_work(place, worker(), lambda: state(api, first), parts)
    assert api("DELETE", f"/v1/jobs/{first}").status_code == 200
    job = api.finished(first)  # although the evaluation, halted, never ends by itself
    assert (job["state"], job["reason"]) == ("cancelled", "cancelled on request")
    assert api("DELETE", f"/v1/jobs/{first}").json()["state"] == "cancelled"
    # Whoever was cancelled does not hold up the next, and the name is free again.
    _, third = asked(place, recorded, result_name="second", options={"dataset_types": ["val"]})
    assert api.finished(third)["state"] == "done"
    # What the killed workers had laid out is gone; this one's folder holds its lock only.
    parts.wait_for(lambda: [os.listdir(one) for one in (place.data / "work").iterdir()] == [["lock"]], 20)


# -- fairness and bounds -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(parts, tmp_path_factory):
    """A server without workers that takes five evaluations of one organization."""
    process = parts.ServerProcess(tmp_path_factory.mktemp("crowded") / "data", workers=0, jobs_at_once=5)
    process.start()
    yield process
    process.stop()


def test_organizations_take_turns_and_none_queues_without_end(crowded, recorded, monkeypatch):
    api = crowded.api()
    other = crowded.api(crowded.new_key("read", "write", organization="other"))
    run_id, other_id = api.sync(*recorded), other.sync(*recorded)

    def ask(who, run, name):
        return who("POST", f"/v1/runs/{run}/evaluations", json={"result_name": name})

    mine = [ask(api, run_id, f"r{number}").json()["job_id"] for number in range(5)]
    refused = ask(api, run_id, "one more")
    assert (refused.status_code, "Retry-After" in refused.headers) == (429, True)
    theirs = ask(other, other_id, "r").json()["job_id"]
    database = Database(f"sqlite:///{crowded.data / 'mld.sqlite3'}")
    jobs = Jobs(database, lease_seconds=60)
    claimed = [jobs.claim(f"worker {number}") for number in range(3)]
    assert [claim.job_id for claim in claimed] == [mine[0], theirs, mine[1]]
    # A clock that goes wrong on one machine takes no job from another.
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert jobs.reap() == 0
    monkeypatch.undo()
    newest = api.get("/v1/jobs", params={"limit": 2})
    assert [one["job_id"] for one in newest["items"]] == mine[:2:-1]
    following = api.get("/v1/jobs", params={"limit": 2, "cursor": newest["next"]})
    assert [one["job_id"] for one in following["items"]] == mine[2:0:-1]
    assert [one["job_id"] for one in api.get("/v1/jobs", params={"state": "queued"})["items"]] == mine[:1:-1]
    assert [one["job_id"] for one in other.get("/v1/jobs")["items"]] == [theirs]
    monkeypatch.setenv("MLD_API_ENDPOINT", crowded.url)
    monkeypatch.setenv("MLD_API_KEY", crowded.key)
    listed = CliRunner().invoke(app, ["jobs", "list", "--state", "queued", "--json"])
    assert [one["job_id"] for one in json.loads(listed.stdout)] == mine[:1:-1]
    cancelled = CliRunner().invoke(app, ["jobs", "cancel", *mine[2:]])
    assert cancelled.exit_code == 0, cancelled.output
    assert {state(api, one)["state"] for one in mine[2:]} == {"cancelled"}
    assert ask(api, run_id, "one more").status_code == 202
    database.close()


def test_the_same_question_is_one_job_until_something_is_sealed(crowded, records, tmp_path):
    api = crowded.api(crowded.new_key("read", "write", organization="asks often"))
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run("asked", "often")
    factory.add_pass(run, "val", records.make_data(30), n_epoch=0)
    run_id = api.sync(factory.store, run)

    def ask(**body):
        return api("POST", f"/v1/runs/{run_id}/evaluations", json=body).json()["job_id"]

    first = ask()
    assert ask() == first
    assert ask(n_epoch="latest", options=None) == first
    assert ask(options={"repeats": 2}) != first
    factory.add_pass(run, "val", records.make_data(30), n_epoch=1)
    api.sync(factory.store, run)
    second = ask()
    assert second != first
    api("DELETE", f"/v1/jobs/{second}")
    assert ask() not in {first, second}


def test_an_evaluation_has_a_limit_of_memory(parts, recorded, tmp_path):
    process = parts.ServerProcess(tmp_path / "data", job_memory_mb=24).start()
    try:
        api = process.api()
        run_id = api.sync(*recorded)
        job = api("POST", f"/v1/runs/{run_id}/evaluations", json={}).json()
        job = api.finished(job["job_id"], 180)
        assert (job["state"], job["error"]) in {("failed", "MemoryError"), ("failed", "WorkerDied")}
        assert process.healthy()
    finally:
        process.stop()
