"""Rounds on a Ray cluster: each part is a task, retried elsewhere where its worker is lost.

Tasks read their part and write their output in place: the store has to be mounted at the same path on every
machine. The broadcast of a round is put into the object store once; states come back in the order of the
parts and are folded as the threads of one machine fold them.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from mld_core.evaluation.engine.executor import Round, State, Workers, enter_worker
from mld_core.evaluation.engine.rounds import Cost, PartWalk, Walked, cost_of, target_of, walk_part

S = TypeVar("S", bound=State)

RETRIES = 4
"""How often a part is walked again after its worker was lost."""

MISSING = "engine='ray' needs Ray: pip install 'ml-debugger[ray]'"


class RayRounds:
    """Rounds on a cluster.

    Args:
        workers: Threads of this machine, for what is not done over parts.
        address: Of the cluster; None = `RAY_ADDRESS`, else a cluster of this machine.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: There is no cluster at that address.
    """

    def __init__(self, workers: Workers, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ModuleNotFoundError(MISSING) from error
        self.workers = workers
        self.costs: list[Cost] = []
        self._ray: Any = ray
        if not ray.is_initialized():
            ray.init(address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        self._walk: Any = ray.remote(max_retries=RETRIES, num_cpus=1)(run_part)

    def over(self, work: Round[S], walks: Sequence[PartWalk], folder: Path | None = None) -> list[Walked[S]]:
        """See `Rounds.over`."""
        start, found = time.perf_counter(), []
        shipped = self._ray.put(work)
        ahead = 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        waiting: deque[Any] = deque()
        left = deque(walks)
        with self.workers.stage(work.name, len(walks)) as stage:
            try:
                while left or waiting:
                    while left and len(waiting) < ahead:
                        walk = left.popleft()
                        waiting.append(self._walk.remote(walk, shipped, target_of(walk, folder)))
                    found.append(self._ray.get(waiting[0]))
                    waiting.popleft()
                    stage.advance(1)
            finally:
                for one in waiting:
                    with contextlib.suppress(Exception):
                        self._ray.cancel(one, force=False)
        size = len(pickle.dumps(work, protocol=5))
        self.costs.append(cost_of(work, walks, found, time.perf_counter() - start, size))
        return found


def run_part(walk: PartWalk, work: Round[S], target: Path | None) -> Walked[S]:
    """One part, in a process of the cluster, with one thread as in a pool of threads."""
    enter_worker()
    with threadpool_limits(1):
        return walk_part(walk, work, target, measure=True)
