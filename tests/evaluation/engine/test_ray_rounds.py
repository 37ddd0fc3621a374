"""The same rounds on a Ray cluster: two nodes of one CPU each, workers that are lost, a driver that is killed."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pandas as pd
import pytest
import road_records
import road_simulation as roads
import server_parts
import simulated_detector

from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store

ray = pytest.importorskip("ray", reason="the cluster's tests need Ray: pip install 'ml-debugger[ray]'")

pytestmark = [pytest.mark.heavy, pytest.mark.processes, pytest.mark.timeout(1800)]

UNITS, CLASSES = 20_000, 10


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    # Workers look for the package and the kernels of these tests where this process does.
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150_000_000})
    made.add_node(num_cpus=1, object_store_memory=150_000_000)
    keys = {
        "AWS_ACCESS_KEY_ID": server_parts.S3Server.key,
        "AWS_SECRET_ACCESS_KEY": server_parts.S3Server.secret,
    }
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path), **keys}}
    ray.init(made.address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def store(records, tmp_path_factory):
    """20,000 units of 40 clusters, two of which the model fails; in eight parts."""
    made = records.StoreFactory(tmp_path_factory.mktemp("ray") / "store")
    run = made.run(n_class=CLASSES)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16)).astype(np.float32) * 1.5
    cluster = rng.integers(0, 40, UNITS)
    truth, failing = cluster // 4, cluster < 2
    wrong = rng.random(UNITS) < np.where(failing, 0.8, 0.08)
    answer = np.where(wrong, (truth + rng.integers(1, CLASSES, UNITS)) % CLASSES, truth)
    logits = rng.normal(size=(UNITS, CLASSES)).astype(np.float32)
    logits[np.arange(UNITS), answer] += 4 + 2 * rng.random(UNITS) - wrong * rng.random(UNITS)
    features = centres[cluster] + rng.normal(size=(UNITS, 16)).astype(np.float32)
    ids = [f"id{number:06d}" for number in range(UNITS)]
    hashes = [f"{number:032x}" for number in range(UNITS)]
    made.add_pass(
        run, "val", records.Data(logits, truth, ids, hashes, features=features), world_size=8, batch=500
    )
    return made.store


@pytest.fixture(scope="module")
def small(records, tmp_path_factory):
    """400 units in four parts."""
    made = records.StoreFactory(tmp_path_factory.mktemp("small") / "store")
    made.add_pass(made.run(), "val", records.make_data(400), world_size=4)
    return made.store


def evaluated(store, name, **options):
    return Evaluator("net", "v1", store=store.root).request_evaluation(
        name, options={"repeats": 2, **options}
    )


def units_of(result):
    return pd.read_parquet(result.folder / result.info["passes"][0]["units"])


@pytest.fixture(scope="module")
def on_threads(store):
    return evaluated(store, "threads", engine="rounds", threads=2)


def test_both_engines_say_the_same(store, cluster, on_threads):
    made = evaluated(store, "cluster", engine="ray")
    ours, theirs = (one.metrics_summary(full=True) for one in (made, on_threads))
    whole = ours.select_dtypes("integer").columns
    pd.testing.assert_frame_equal(ours[whole], theirs[whole])
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-9, atol=1e-12)
    ours, theirs = units_of(made), units_of(on_threads)
    assert (ours["category"] == theirs["category"]).mean() >= 0.999
    np.testing.assert_allclose(ours["error_proba"], theirs["error_proba"], rtol=1e-6)
    pd.testing.assert_frame_equal(
        made.regions("val")[["n", "errors"]], on_threads.regions("val")[["n", "errors"]]
    )


def test_boxes_come_out_the_same_on_both_engines(cluster, tmp_path):
    store, run = Store(tmp_path / "boxes"), RunKey("net", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": 6})
    scene = simulated_detector.simulate(300, seed=4, faults={"swapped": 0.05, "shifted": 0.05})
    simulated_detector.write(store, run, "val", scene, world_size=6)
    made = evaluated(store, "cluster", engine="ray")
    same_boxes(made, evaluated(store, "threads", engine="rounds", threads=2))


def same_boxes(made, own):
    """Counts are equal, sums to 1e-9, categories of nearly all kept predictions, diagnoses of all units."""
    ours, theirs = (one.metrics_summary(full=True) for one in (made, own))
    whole = ours.select_dtypes("integer").columns
    pd.testing.assert_frame_equal(ours[whole], theirs[whole])
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-9, atol=1e-12)
    ours, theirs = units_of(made), units_of(own)
    kept = theirs["unit_kind"] == "pred"
    assert (ours["category"] == theirs["category"])[kept].mean() >= 0.999
    np.testing.assert_allclose(ours["error_proba"], theirs["error_proba"], rtol=1e-6)
    assert ours["diagnosis"].map(list).tolist() == theirs["diagnosis"].map(list).tolist()


def test_3d_boxes_come_out_the_same_on_both_engines(cluster, tmp_path):
    store, run = Store(tmp_path / "roads"), RunKey("net", "v1")
    road = roads.flipped_labels(roads.simulate(frames=60, seed=5, clutter=25, objects=20), share=0.1, seed=3)
    road = roads.sector_dropout(road, share=0.1, degrees=90, seed=2)
    road_records.write(store, run, "val", road_records.road_frames(road), roads.CLASSES, world_size=4)
    made = evaluated(store, "cluster", engine="ray")
    own = evaluated(store, "threads", engine="rounds", threads=2)
    same_boxes(made, own)
    facts = [one.info["facts"][0] for one in (made, own)]
    assert facts[0]["code_counts"] == facts[1]["code_counts"]
    assert min(facts[0]["code_counts"][code] for code in ("T01", "T06", "T12", "T22")) > 0
    assert facts[0]["sector_dropouts"] == facts[1]["sector_dropouts"]


def test_a_worker_that_is_killed_costs_time_alone(store, cluster, on_threads, tmp_path):
    """The first task that scores units kills its process; the cluster walks over its part again."""
    from mld_core.evaluation.engine import ray_rounds

    killed = tmp_path / "killed"
    run_part = ray_rounds.run_part

    def task(walk, work, tables):
        if work.name.startswith("units") and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run_part(walk, work, tables)

    patch = pytest.MonkeyPatch()
    with patch.context() as here:
        here.setattr(ray_rounds, "run_part", task)
        made = evaluated(store, "killed", engine="ray")
    assert killed.exists()
    pd.testing.assert_frame_equal(units_of(made), units_of(on_threads), rtol=1e-6)


def test_memory_of_a_worker_is_that_of_a_batch(store, cluster):
    """Every process of the cluster tells its largest memory, round by round; printed with -s."""
    from mld_core.evaluation.engine import ray_rounds

    told = []
    of = ray_rounds.RayRounds

    class Told(of):
        def __init__(self, workers: Workers, address: str | None = None) -> None:
            super().__init__(workers, address)
            told.append(self)

    patch = pytest.MonkeyPatch()
    with patch.context() as here:
        here.setattr(ray_rounds, "RayRounds", Told)
        evaluated(store, "memory", engine="ray", exact_cells=0)
    costs = told[0].costs
    for one in costs:
        print(
            f"{one.name}: {one.peak_bytes / 2**20:.0f} MiB a worker, {one.states / 2**20:.1f} MiB of states"
        )
    assert {one.name.split()[0] for one in costs} == {"scalars", "sample", "cells", "units", "ranking"}
    assert all(0 < one.peak_bytes < 700 * 2**20 for one in costs)


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
    pd.testing.assert_frame_equal(units_of(made), units_of(own), rtol=1e-6)
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
