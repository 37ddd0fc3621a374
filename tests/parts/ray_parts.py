"""Passes of any size for tests of a Ray cluster, the cluster, workers that are killed, and what makes two results the same."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import road_records
import road_simulation as roads
import server_parts
import simulated_detector
import store_factory

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store

CLASSES = 10
RUN = RunKey("net", "v1")
KILLED_AFTER = 0.2
"""Seconds of a task's work after which its process is killed."""


# -- passes ------------------------------------------------------------------------------------------------------------


def classification(root: Path, units: int, ranks: int) -> None:
    """Units of 40 clusters, two of which the model fails."""
    made = store_factory.StoreFactory(root)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16)).astype(np.float32) * 1.5
    cluster = rng.integers(0, 40, units)
    truth, failing = cluster // 4, cluster < 2
    wrong = rng.random(units) < np.where(failing, 0.8, 0.08)
    answer = np.where(wrong, (truth + rng.integers(1, CLASSES, units)) % CLASSES, truth)
    logits = rng.normal(size=(units, CLASSES)).astype(np.float32)
    logits[np.arange(units), answer] += 4 + 2 * rng.random(units) - wrong * rng.random(units)
    features = centres[cluster] + rng.normal(size=(units, 16)).astype(np.float32)
    ids = [f"id{number:06d}" for number in range(units)]
    hashes: list[str | None] = [f"{number:032x}" for number in range(units)]
    data = store_factory.Data(logits, truth, ids, hashes, features=features)
    made.add_pass(made.run(n_class=CLASSES), "val", data, world_size=ranks, batch=500)


def detection(root: Path, boxes: int, ranks: int) -> None:
    """About so many recorded boxes of the simulated detector, with wrong labels."""
    store = Store(root)
    store.ensure_run(RUN, {"task": "detection", "n_class": 6})
    scene = simulated_detector.simulate(
        round(boxes / 7.47), seed=4, faults={"swapped": 0.05, "shifted": 0.05}
    )
    simulated_detector.write(store, RUN, "val", scene, world_size=ranks)


def detection3d(root: Path, boxes: int, ranks: int) -> None:
    """About so many recorded 3D boxes of simulated roads, with turned labels and a sensor that fails."""
    road = roads.simulate(frames=round(boxes / 36.5), seed=5, clutter=25, objects=20)
    road = roads.flipped_labels(road, share=0.1, seed=3)
    road = roads.sector_dropout(road, share=0.1, degrees=90, seed=2)
    frames = road_records.road_frames(road)
    road_records.write(Store(root), RUN, "val", frames, roads.CLASSES, world_size=ranks)


MADE: dict[str, Callable[[Path, int, int], None]] = {
    "classification": classification,
    "detection": detection,
    "detection3d": detection3d,
}
"""Task -> what writes a pass of it."""


# -- evaluations -------------------------------------------------------------------------------------------------------


def evaluated(root: Path, name: str, **options: Any) -> Any:
    """The run evaluated with two repeats, if nothing else is said."""
    return Evaluator("net", "v1", store=root).request_evaluation(name, options={"repeats": 2, **options})


def units_of(result: Any) -> pd.DataFrame:
    """The unit table of the first pass."""
    return pd.read_parquet(result.folder / result.info["passes"][0]["units"])


def same(made: Any, own: Any) -> None:
    """Counts are equal, sums to 1e-9, categories of nearly all predictions, diagnoses of all units."""
    ours, theirs = (one.metrics_summary(full=True) for one in (made, own))
    whole = ours.select_dtypes("integer").columns
    pd.testing.assert_frame_equal(ours[whole], theirs[whole])
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-9, atol=1e-12)
    facts = [one.info["facts"][0] for one in (made, own)]
    assert facts[0]["code_counts"] == facts[1]["code_counts"]
    assert facts[0].get("sector_dropouts") == facts[1].get("sector_dropouts")
    pd.testing.assert_frame_equal(*(one.regions("val")[["n", "errors"]] for one in (made, own)))
    ours, theirs = units_of(made), units_of(own)
    assert ours["unit_id"].tolist() == theirs["unit_id"].tolist()
    judged = theirs["unit_kind"] != "gt"  # missed truths have no category
    assert judged.any()
    pairs = pd.crosstab(ours["category"][judged], theirs["category"][judged])
    assert (
        np.trace(pairs.reindex(index=CATEGORIES, columns=CATEGORIES, fill_value=0)) >= 0.999 * judged.sum()
    ), pairs
    np.testing.assert_allclose(ours["error_proba"], theirs["error_proba"], rtol=1e-6)
    if "diagnosis" in theirs:
        assert ours["diagnosis"].map(list).tolist() == theirs["diagnosis"].map(list).tolist()


# -- a cluster ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each, to which this process is connected."""
    import ray
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
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@contextlib.contextmanager
def told_costs() -> Iterator[list[Any]]:
    """What the rounds on a cluster cost, as they come."""
    from mld_core.evaluation.engine import ray_rounds

    told: list[Any] = []
    of = ray_rounds.RayRounds

    class Told(of):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.costs = told

    with mock.patch.object(ray_rounds, "RayRounds", Told):
        yield told


@contextlib.contextmanager
def killed_workers(folder: Path, part: int) -> Iterator[None]:
    """In every round the process that walks over this part is killed in the middle of it, once; `folder` tells."""
    from mld_core.evaluation.engine import ray_rounds

    run_part = ray_rounds.run_part

    def task(walk: Any, work: Any, tables: bool) -> Any:
        marker = folder / work.name.split()[0]
        if walk.number == part and not marker.exists():
            marker.touch()
            threading.Timer(KILLED_AFTER, os.kill, (os.getpid(), signal.SIGKILL)).start()
            run_part(walk, work, tables)
            time.sleep(60)
        return run_part(walk, work, tables)

    with mock.patch.object(ray_rounds, "run_part", task):
        yield
