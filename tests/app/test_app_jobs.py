"""Evaluations begun from a page: by a process of their own, one at a time, cancelled, failed with a reason."""

import contextlib
import os
import shutil
import signal
import time

import psutil
import pytest
from app_parts import opened
from server_parts import wait_for

from mld_core.app.jobs.local import LocalJobs
from mld_core.app.jobs.protocol import Wish
from mld_core.evaluation.results.store import ResultStore
from mld_core.records.format.layout import RunKey, Store

pytestmark = pytest.mark.processes

RUN = RunKey("fresh", "v1")
NAMES = {"model": "fresh", "version": "v1"}
ENDED = {"done", "failed", "cancelled"}


@pytest.fixture(scope="module")
def store(records, tmp_path_factory):
    """A run that is recorded and not evaluated, and one without records."""
    factory = records.StoreFactory(tmp_path_factory.mktemp("jobs") / "store")
    factory.add_pass(factory.run("fresh", "v1", n_class=3), "val", records.make_data(60, seed=1), n_epoch=0)
    factory.run("empty", "v1", n_class=3)
    return factory.store


@pytest.fixture(scope="module")
def ann(store):
    with opened(store) as client:
        yield client


def start(client, **body):
    answer = client.post("jobs", {**NAMES, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ended(client, job):
    def look():
        now = client.get(f"jobs/{job['job_id']}")
        return now if now["state"] in ENDED else None

    return wait_for(look, 120)


def children():
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(
            psutil.NoSuchProcess
        ):  # gone meanwhile, or a zombie that others have to reap
            if "mld_core.app.jobs.child" in one.cmdline():
                found.append(one)
    return found


def test_a_run_is_evaluated_from_its_page_and_again_as_it_was(ann, store):
    assert ann.ask("evaluation", **NAMES).status_code == 404
    job = start(ann)
    assert (job["model"], job["version"], job["result"], job["reason"]) == ("fresh", "v1", None, None)
    assert start(ann)["job_id"] == job["job_id"]  # pressed twice
    seen = set()

    def look():
        now = ann.get(f"jobs/{job['job_id']}")
        seen.add((now["stage"], now["progress"]))
        assert 0 <= now["progress"] <= 1
        return now if now["state"] in ENDED else None

    done = wait_for(look, 120)
    assert (done["state"], done["progress"], done["reason"]) == ("done", 1.0, None)
    assert done["seconds"] > 0
    assert ann.get("evaluation", **NAMES)["place"]["result"] == done["result"]
    made = ResultStore(store, RUN).all()[-1]
    assert made["n_epoch"] == "latest"
    again = ended(ann, start(ann, like=done["result"]))
    assert again["result"] not in {None, done["result"]}
    kept = ("n_epoch", "method_name", "options")
    assert [ResultStore(store, RUN).all()[-1][name] for name in kept] == [made[name] for name in kept]
    assert [one["job_id"] for one in ann.get("jobs")["jobs"]][:2] == [again["job_id"], done["job_id"]]


def test_one_runs_and_the_next_waits_and_both_are_cancelled(ann, store):
    before = len(ResultStore(store, RUN).all())
    first = start(ann)
    wait_for(lambda: ann.get(f"jobs/{first['job_id']}")["state"] == "running")
    second = start(ann, like=ResultStore(store, RUN).all()[0]["result_name"])
    assert second["job_id"] != first["job_id"]
    assert (second["state"], second["seconds"]) == ("queued", None)
    ends = [ann.delete(f"jobs/{one['job_id']}") for one in (second, first)]
    assert [one.status_code for one in ends] == [200, 200]
    assert ends[0].json()["state"] == "cancelled"
    assert ended(ann, first)["state"] == "cancelled"
    assert children() == []
    results = store.results_dir(RUN)
    assert len(ResultStore(store, RUN).all()) == before
    assert [
        one.name for one in results.iterdir() if one.name.startswith(".")
    ] == []  # nothing half made stays


@pytest.mark.parametrize("body", [{"version": "v9"}, {"like": "no such result"}], ids=["run", "result"])
def test_what_is_not_there_is_not_evaluated(ann, body):
    answer = ann.post("jobs", {**NAMES, **body})
    assert answer.status_code == 404
    assert answer.json()["detail"]
    assert ann.ask("jobs/job_none").status_code == 404


def test_only_who_holds_the_session_begins_or_ends_one(ann):
    body = {**NAMES}
    assert ann.http.post(f"{ann.base}/ui/api/jobs", json=body).status_code == 403
    assert ann.http.delete(f"{ann.base}/ui/api/jobs/x", json={}).status_code == 403


def test_the_reason_of_a_failure_is_told(ann):
    failed = ended(ann, start(ann, model="empty"))
    assert (failed["state"], failed["result"]) == ("failed", None)
    assert "empty" in failed["reason"]


def test_a_process_that_is_killed_is_told_and_the_next_runs(store, tmp_path):
    shutil.copytree(store.root, tmp_path / "store")
    jobs = LocalJobs(Store(tmp_path / "store"))
    first = jobs.start(Wish(RUN))
    (child,) = wait_for(children)
    second = jobs.start(Wish(RUN, None))
    os.kill(child.pid, signal.SIGKILL)
    died = wait_for(lambda: (now := jobs.find(first.job_id)).state in ENDED and now)
    assert (died.state, "killed" in died.reason) == ("failed", True)
    wait_for(lambda: jobs.find(second.job_id).state == "running")
    jobs.cancel(second.job_id)
    assert wait_for(lambda: (now := jobs.find(second.job_id)).state in ENDED and now).state == "cancelled"
    assert jobs.cancel(second.job_id).state == "cancelled"


def test_it_ends_with_the_server_that_began_it(store, tmp_path):
    shutil.copytree(store.root, tmp_path / "store")
    jobs = LocalJobs(Store(tmp_path / "store"))
    jobs.start(Wish(RUN))
    (child,) = wait_for(children)
    work = next(iter(jobs._works.values()))
    wait_for(lambda: work.stage not in {"", "starting"})
    work.process.stdin.close()  # as the end of this process would
    begun = time.monotonic()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert time.monotonic() - begun < 15
