"""Rounds on a Ray cluster: each part is a task, retried elsewhere where its worker is lost.

Tasks read their part in place: a folder has to be mounted at the same path on every machine, a bucket has to
answer there. The broadcast of a round is put into the object store once; states and unit tables come back in
the order of the parts, so that the results are written by the driver alone, and are folded as the threads of
one machine fold them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import time
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from mld_core.evaluation.engine.executor import Round, State, Workers, enter_worker
from mld_core.evaluation.engine.folders import work_folder
from mld_core.evaluation.engine.rounds import (
    Cost,
    Folded,
    Walk,
    Walked,
    cost_of,
    folded,
    target_of,
    walk_part,
)

S = TypeVar("S", bound=State)

RETRIES = 4
"""How often a part is walked again after its worker was lost."""

MISSING = "engine='ray' needs Ray: pip install 'ml-debugger[ray]'"

_ANSWER_SECONDS = 10
_CANCEL_SECONDS = 30
_CLIENT = "ray://"


class RayRounds:
    """Rounds on a cluster. A cluster that is joined or started here is left at the end of the context.

    Args:
        workers: Threads of this machine, for what is not done over parts.
        address: Of the cluster; None = the one this process is connected to, else `RAY_ADDRESS`, else a
            cluster of this machine.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: There is no cluster at that address.
        ValueError: That is no address, or this process is connected to another cluster.
    """

    def __init__(self, workers: Workers, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ModuleNotFoundError(MISSING) from error
        self.workers = workers
        self.costs: list[Cost] = []
        self._ray: Any = ray
        self._joined = not ray.is_initialized()
        if self._joined:
            _join(ray, address)
        else:
            _check_same(ray, address)
        self._walk: Any = ray.remote(max_retries=RETRIES, num_cpus=1)(run_part)

    def __enter__(self) -> RayRounds:  # noqa: PYI034  typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What the user's own program is connected to stays as it is.
        if self._joined:
            self._ray.shutdown()

    def over(self, work: Round[S], walks: Sequence[Walk], folder: Path | None = None) -> Folded[S]:
        """See `Rounds.over`."""
        start = time.perf_counter()
        cost = cost_of(work, walks, len(pickle.dumps(work, protocol=5)))
        with self.workers.stage(work.name, len(walks)) as stage:
            walked = self._walked(work, walks, folder)
            with contextlib.closing(walked):
                found = folded(work, walked, cost, stage)
        cost.seconds = time.perf_counter() - start
        self.costs.append(cost)
        return found

    def _walked(
        self, work: Round[S], walks: Sequence[Walk], folder: Path | None
    ) -> Generator[Walked[S], None, None]:
        """What comes of each part, in their order; few are begun before they are asked for."""
        shipped = self._ray.put(work)
        ahead = 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        waiting: deque[Any] = deque()
        left = deque(walks)
        try:
            while left or waiting:
                while left and len(waiting) < ahead:
                    walk = left.popleft()
                    waiting.append((self._walk.remote(walk, shipped, folder is not None), walk))
                ticket, walk = waiting[0]
                yield _kept(self._got(ticket, work), target_of(walk, folder))
                waiting.popleft()
                del ticket  # what it stands for stays in the object store as long as it is named
        finally:
            self._cancel([ticket for ticket, _ in waiting])

    def _got(self, ticket: Any, work: Round[S]) -> Walked[S]:
        """What came of a part; what went wrong in its task as if it had gone wrong here."""
        errors = self._ray.exceptions
        try:
            found: Walked[S] = self._ray.get(ticket)
        except errors.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except errors.RayError as error:
            why = (str(error).strip().splitlines() or [""])[0]
            raise ConnectionError(
                f"{work.name}: a part was given up after its worker was lost {RETRIES + 1} times "
                f"({type(error).__name__}: {why}); see to the cluster's machines and their memory"
            ) from error
        return found

    def _cancel(self, tickets: list[Any]) -> None:
        """End tasks that nobody waits for; once this is over none of them writes any more."""
        with contextlib.suppress(Exception):
            for one in tickets:
                self._ray.cancel(one, force=False)
            if tickets:
                self._ray.wait(tickets, num_returns=len(tickets), timeout=_CANCEL_SECONDS)


def run_part(walk: Walk, work: Round[S], tables: bool) -> Walked[S]:
    """One part, in a process of the cluster, with one thread as in a pool of threads."""
    enter_worker()
    with threadpool_limits(1), work_folder("mld-part-") as folder:
        target = target_of(walk, folder if tables else None)
        walked = walk_part(walk, work, target, measure=True)
        if target is not None and target.exists():
            walked.table = np.fromfile(target, np.uint8)
    return walked


def _kept(walked: Walked[S], target: Path | None) -> Walked[S]:
    """Write what a part gave back as a file, which is there only once it is whole."""
    if walked.table is not None and target is not None:
        beside = target.with_name(f".{target.name}")
        walked.table.tofile(beside)
        beside.replace(target)
        walked.table = None
    return walked


# -- joining a cluster -----------------------------------------------------------------------------------


def _join(ray: Any, address: str | None) -> None:
    """Join the cluster at an address, or start one of this machine."""
    wanted = os.environ.get("RAY_ADDRESS") if address in {None, "auto"} else address
    named = f"RAY_ADDRESS={wanted!r}" if address in {None, "auto"} and wanted else f"ray_address={address!r}"
    if wanted and wanted not in {"auto", "local"}:
        _check_answers(wanted, named)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (Exception, SystemExit) as error:  # Ray ends a process that nobody answers
        raise ConnectionError(f"{named}: no Ray cluster could be joined or started ({error})") from error


def _check_answers(address: str, named: str) -> None:
    """Refuse an address at which nobody answers: Ray would look for it for nine minutes."""
    if "://" in address and not address.startswith(_CLIENT):
        return
    try:
        socket.create_connection(_place_of(address, named), _ANSWER_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"{named}: nothing answers there ({error}); start a cluster (`ray start --head`), or give the "
            "address that `ray status` prints on its machines"
        ) from error


def _place_of(address: str, named: str) -> tuple[str, int]:
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{named}: expected host:port, ray://host:port, 'auto' or 'local'")
    return host.strip("[]"), int(port)


def _check_same(ray: Any, address: str | None) -> None:
    """Refuse another cluster than the one this process is connected to."""
    if address in {None, "auto"}:
        return
    here = str(ray.get_runtime_context().gcs_address)
    if address != here and not _is_here(ray, str(address), here):
        raise ValueError(
            f"ray_address={address!r}: this process is connected to the Ray cluster {here!r} already; leave "
            "the address out to use it, or call ray.shutdown() first"
        )


def _is_here(ray: Any, address: str, here: str) -> bool:
    """Whether an address is another name of the one this process is connected to."""
    if "://" in address or ":" not in address:
        return False
    host, port = _place_of(address, f"ray_address={address!r}")
    head, same = _place_of(here, here)
    if port != same:
        return False
    try:
        found = socket.gethostbyname(host)
    except OSError:
        return False
    return found == head or (found.startswith("127.") and head == ray.util.get_node_ip_address())
