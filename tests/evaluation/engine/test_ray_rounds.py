"""The same rounds on a Ray cluster: two nodes of one CPU each, workers that are lost, a driver that is killed."""

import os
import shutil
import subprocess
import sys
import textwrap
import time

import pandas as pd
import pytest
import ray_parts
import server_parts

from mld_core.evaluation.evaluator import Evaluator
from mld_core.records.format.layout import Store

ray = pytest.importorskip("ray", reason="the cluster's tests need Ray: pip install 'ml-debugger[ray]'")

pytestmark = [pytest.mark.heavy, pytest.mark.processes, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster():
    with ray_parts.cluster() as made:
        yield made


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """20,000 units of 40 clusters, two of which the model fails; in eight parts."""
    folder = tmp_path_factory.mktemp("ray") / "store"
    ray_parts.classification(folder, 20_000, 8)
    return Store(folder)


@pytest.fixture(scope="module")
def small(records, tmp_path_factory):
    """400 units in four parts."""
    made = records.StoreFactory(tmp_path_factory.mktemp("small") / "store")
    made.add_pass(made.run(), "val", records.make_data(400), world_size=4)
    return made.store


def evaluated(store, name, **options):
    return ray_parts.evaluated(store.root, name, **options)


def test_both_engines_say_the_same(store, cluster):
    made = evaluated(store, "cluster", engine="ray")
    ray_parts.same(made, evaluated(store, "threads", engine="rounds", threads=2))


def test_boxes_come_out_the_same_on_both_engines(cluster, tmp_path):
    ray_parts.detection(tmp_path, 2_250, 6)
    made = evaluated(Store(tmp_path), "cluster", engine="ray")
    ray_parts.same(made, evaluated(Store(tmp_path), "threads", engine="rounds", threads=2))


def test_3d_boxes_come_out_the_same_on_both_engines(cluster, tmp_path):
    ray_parts.detection3d(tmp_path, 2_190, 4)
    made = evaluated(Store(tmp_path), "cluster", engine="ray")
    ray_parts.same(made, evaluated(Store(tmp_path), "threads", engine="rounds", threads=2))
    counts = made.info["facts"][0]["code_counts"]
    assert min(counts[code] for code in ("T01", "T06", "T12", "T22")) > 0


def test_a_store_in_a_bucket_is_walked_over_in_place(small, cluster, tmp_path, monkeypatch):
    """Workers have the keys of their own machine and the endpoint from the path; tables come back to the driver."""
    server = server_parts.S3Server(tmp_path / "s3")
    if server.missing:
        pytest.skip(server.missing)
    names = shutil.ignore_patterns(".results")
    shutil.copytree(small.root, server.folder / "objects" / server.bucket / "store", ignore=names)
    server.start()
    try:
        for name, value in {**server.env, "MLD_HOME": str(tmp_path / "home")}.items():
            monkeypatch.setenv(name, value)
        store = Store(f"s3://{server.bucket}/store?endpoint_override={server.url}")
        made = evaluated(store, "bucket", engine="ray", repeats=1)
    finally:
        server.stop()
    own = evaluated(small, "folder", engine="rounds", repeats=1, threads=2)
    pd.testing.assert_frame_equal(ray_parts.units_of(made), ray_parts.units_of(own), rtol=1e-6)
    assert made.folder.is_relative_to(tmp_path / "home")


def test_a_driver_that_is_killed_leaves_no_result(store, tmp_path):
    script = textwrap.dedent(
        f"""
        from mld_core.evaluation.evaluator import Evaluator
        Evaluator("net", "v1", store={str(store.root)!r}).request_evaluation(
            "half", options={{"engine": "ray", "repeats": 2}}
        )
        """
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_ADDRESS": "local"}
    with subprocess.Popen([sys.executable, "-c", script], env=env) as driver:
        results = Evaluator("net", "v1", store=store.root)
        folder = store.root
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not list(folder.rglob("units/*.parquet")):
            assert driver.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        driver.kill()
    assert "half" not in results.list_results()["result_name"].tolist()


def test_a_cluster_that_is_joined_is_left_at_the_end(small, cluster):
    script = f"""
        import ray
        from mld_core.evaluation.evaluator import Evaluator
        run = Evaluator("net", "v1", store={str(small.root)!r}).request_evaluation
        asked = {{"engine": "ray", "repeats": 1, "ray_address": {cluster.address!r}}}
        run("left", options=asked)
        print(ray.is_initialized())
        try:
            run("wrong", options={{**asked, "group_key": "nothing"}})
        except ValueError:
            print(ray.is_initialized())
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False"]


def test_what_the_program_is_connected_to_stays_and_no_other_address_is_taken(small, cluster):
    evaluated(small, "stays", engine="ray", ray_address=cluster.address)
    assert ray.is_initialized()
    with pytest.raises(ValueError, match=r"ray_address='other:6379': this process is connected to"):
        evaluated(small, "other", engine="ray", ray_address="other:6379")
    assert ray.is_initialized()


def test_what_goes_wrong_in_a_task_is_said_as_if_it_had_gone_wrong_here(small, cluster):
    place = next(small.root.rglob("part-000000"))
    from mld_core.evaluation.classification.rounds import method

    begin = method.begin

    def gone(split, *more):
        found = begin(split, *more)
        place.rename(place.with_name("gone"))
        return found

    patch = pytest.MonkeyPatch()
    with patch.context() as here:
        here.setattr("mld_core.evaluation.classification.method.begin", gone)
        with pytest.raises(FileNotFoundError) as caught:
            evaluated(small, "gone", engine="ray")
    place.with_name("gone").rename(place)
    assert "ray::" not in str(caught.value)
    assert str(place) in str(caught.value)
    left = [path.name for path in next(small.root.rglob(".results")).iterdir()]
    assert not [name for name in left if name.startswith(".")]


def test_an_interrupted_driver_leaves_no_task_that_writes(small, cluster):
    from mld_core.evaluation.engine import ray_rounds

    patch = pytest.MonkeyPatch()
    with patch.context() as here:
        here.setattr(ray_rounds, "folded", lambda work, walked, *_: (next(walked), interrupt())[0])
        with pytest.raises(KeyboardInterrupt):
            evaluated(small, "interrupted", engine="ray")
    left = [path.name for path in next(small.root.rglob(".results")).iterdir()]
    assert not [name for name in left if name.startswith(".")]
    time.sleep(2)
    assert left == [path.name for path in next(small.root.rglob(".results")).iterdir()]
    evaluated(small, "after it", engine="ray")


def interrupt():
    raise KeyboardInterrupt


def test_a_team_s_server_hands_its_evaluations_to_the_cluster(small, cluster, tmp_path):
    """As a request asks, or by `MLD_ENGINE` of the server; its evaluation's limited memory holds the driver."""
    server = server_parts.ServerProcess(tmp_path / "data", workers=1, job_memory_mb=4_096)
    server.env |= {"RAY_ADDRESS": cluster.address, "MLD_ENGINE": "ray"}
    server.start()
    walked = {}
    try:
        api = server.api()
        run_id = api.sync(small, ray_parts.RUN)
        for asked in ({"engine": "ray"}, {}, {"engine": "rounds"}):
            body = {"options": {"repeats": 1, **asked}}
            job = api("POST", f"/v1/runs/{run_id}/evaluations", json=body).json()
            done = api.finished(job["job_id"], 240)
            assert done["state"] == "done", done
            walked[asked.get("engine")] = api.get(f"/v1/results/{done['result_id']}")
    finally:
        server.stop()
    used = {asked: one["options"]["engine"] for asked, one in walked.items()}
    assert used == {"ray": "ray", None: "ray", "rounds": "rounds"}
    counts = [one["info"]["facts"][0]["code_counts"] for one in walked.values()]
    assert counts[0] == counts[1] == counts[2]
