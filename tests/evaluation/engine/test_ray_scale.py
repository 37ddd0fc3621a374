"""300,000 units of each task on a Ray cluster of two nodes of one CPU each, with a worker killed in every round."""

import pytest
import ray_parts

pytest.importorskip("ray", reason="the cluster's tests need Ray: pip install 'ml-debugger[ray]'")

pytestmark = [pytest.mark.heavy, pytest.mark.slow, pytest.mark.processes, pytest.mark.timeout(3600)]

UNITS, PARTS = 300_000, 12
MIB = 2**20
ROUNDS = {
    "classification": {"scalars", "sample", "cells", "units"},
    "detection": {"classes", "matches", "kept", "sample", "cells", "units"},
}
ROUNDS["detection3d"] = ROUNDS["detection"]


@pytest.fixture(scope="module")
def cluster():
    with ray_parts.cluster() as made:
        yield made


@pytest.mark.parametrize("task", list(ray_parts.MADE))
def test_300_000_units_come_out_as_on_threads_though_a_worker_of_every_round_is_killed(
    cluster, task, tmp_path
):
    """What each round takes of a worker's memory is printed with -s."""
    store, killed = tmp_path / "store", tmp_path / "killed"
    killed.mkdir()
    ray_parts.MADE[task](store, UNITS, PARTS)
    own = ray_parts.evaluated(store, "threads", engine="rounds", threads=2, repeats=1)
    with ray_parts.told_costs() as costs, ray_parts.killed_workers(killed, PARTS // 2):
        made = ray_parts.evaluated(store, "cluster", engine="ray", repeats=1)
    for one in costs:
        print(f"{one.name}: {one.peak_bytes / MIB:.0f} MiB a worker, {one.states / MIB:.1f} MiB of states")
    assert {one.name for one in killed.iterdir()} == ROUNDS[task]
    ray_parts.same(made, own)
    assert all(0 < one.peak_bytes < 700 * MIB for one in costs)
