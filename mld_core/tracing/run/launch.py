"""Which rank and which launch this is, for tracers called by hand: no collective, so no rank hangs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from mld_core.tracing.run.naming import env_rank, new_launch_id

_READY_TIMEOUT = dt.timedelta(seconds=60)


def rank_and_world() -> tuple[int, int]:
    """(rank, world size): of torch.distributed if initialised, else RANK and WORLD_SIZE, else (0, 1)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return env_rank() or (0, 1)


def shared_launch_id(key: str, first: Callable[[], None]) -> str:
    """One launch id for all ranks, of whichever comes first; `first` runs there, before the others go on.

    The process group's key-value store decides (compare and set), so a rank that never traces is never
    waited for. Without a process group the id is this process's own.
    """
    own = new_launch_id()
    if not (dist.is_available() and dist.is_initialized()):
        first()
        return own
    store = _get_default_store()
    name = f"ml_debugger/launch/{key}"
    chosen = bytes(store.compare_set(name, "", own)).decode()
    if chosen == own:
        try:
            first()
        finally:
            store.set(name + "/ready", "1")
    else:
        store.wait([name + "/ready"], _READY_TIMEOUT)
    return chosen
