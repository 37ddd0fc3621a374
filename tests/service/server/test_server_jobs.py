"""Evaluations outlive their workers, once; and can be cancelled."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

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
        command = [sys.executable, "-m", "mld_core.cli.main", "worker"]
        with place.log.open("ab") as log:
            started.append(subprocess.Popen(command, env=place.env, stderr=log))
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


def kill_at_work(process, api, job_id, attempt, parts):
    parts.wait_for(
        lambda: state(api, job_id)["attempts"] == attempt and state(api, job_id)["state"] == "running", 60
    )
    own = parts.wait_for(lambda: children(process.pid), 30)
    process.kill()
    process.wait()
    # what it was running ends with it
    parts.wait_for(lambda: not any(os.path.exists(f"/proc/{one}") for one in own), 30)


@pytest.mark.slow
def test_a_job_survives_one_killed_worker_but_not_two(place, worker, recorded, parts):
    api, job_id = asked(place, recorded, options=SLOW)
    queued = state(api, job_id)
    assert (queued["state"], queued["attempts"]) == ("queued", 0)
    for attempt in (1, 2):
        kill_at_work(worker(), api, job_id, attempt, parts)
    job = api.finished(job_id)
    assert (job["state"], job["error"], job["attempts"]) == ("failed", "WorkerDied", 2)
    assert "the worker died while it ran this" in job["reason"]
    # The server is well, and so is the next job, even when its evaluation is killed once.
    _, job_id = asked(place, recorded, options=SLOW)
    process = worker()
    parts.wait_for(lambda: state(api, job_id)["stage"] not in {"", "starting", "fetching records"}, 60)
    assert 0 <= state(api, job_id)["progress"] < 1
    os.kill(children(process.pid)[0], signal.SIGKILL)
    job = api.finished(job_id)
    assert (job["state"], job["attempts"]) == ("done", 2), job
    with sqlite3.connect(place.data / "mld.sqlite3") as database:
        assert database.execute("select count(*) from results").fetchone() == (1,)


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
    api, first = asked(place, recorded, options=SLOW)
    _, second = asked(place, recorded, result_name="second")
    taken = api(
        "POST", f"/v1/runs/{state(api, second)['run_id']}/evaluations", json={"result_name": "second"}
    )
    assert taken.status_code == 409
    assert api("DELETE", f"/v1/jobs/{second}").json()["state"] == "cancelled"
    worker()
    parts.wait_for(lambda: state(api, first)["state"] == "running", 60)
    begun = time.monotonic()
    assert api("DELETE", f"/v1/jobs/{first}").status_code == 200
    job = api.finished(first)
    assert (job["state"], job["reason"]) == ("cancelled", "cancelled on request")
    assert time.monotonic() - begun < 15
    assert api("DELETE", f"/v1/jobs/{first}").json()["state"] == "cancelled"
    # Whoever was cancelled does not hold up the next, and the name is free again.
    _, third = asked(place, recorded, result_name="second", options={"dataset_types": ["val"]})
    assert api.finished(third)["state"] == "done"
    # What the killed workers had laid out is gone; this one's folder holds its lock only.
    parts.wait_for(lambda: [os.listdir(one) for one in (place.data / "work").iterdir()] == [["lock"]], 20)
