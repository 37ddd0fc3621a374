"""Which rank and launch this is, and the hash that tells one architecture from another."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _get_default_store
from torch.nn.parameter import is_lazy

from mld_core.records.format.layout import RunKey, Store
from mld_core.tracing.capture.capture import canonical
from mld_core.tracing.capture.compiling import say_compiled
from mld_core.tracing.run.sealing import new_launch_id

_READY_TIMEOUT = dt.timedelta(seconds=60)


def restart_count() -> int:
    """How often the launcher restarted this process group (torchelastic), 0 elsewhere."""
    text = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isdigit() else 0


def names_of(run: RunKey, store: Store, launch_id: str) -> dict[str, str]:
    """What every rank needs to know of a launch, as plain strings."""
    return {
        "model_name": run.model_name,
        "version_name": run.version_name,
        "store": str(store.root),
        "launch_id": launch_id,
        "restart": str(restart_count()),
    }


def env_rank() -> tuple[int, int] | None:
    """(rank, world size) as launchers put them into the environment, or None."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return (int(rank), int(world)) if rank.isdigit() and world.isdigit() else None


def class_name(model: nn.Module) -> str:
    """The class name of what is trained, seen through compile and data-parallel wrappers."""
    return type(unwrap(model)).__name__


def _wrapped(model: nn.Module) -> Iterator[nn.Module]:
    """A model, then what is inside torch.compile, DataParallel and DistributedDataParallel."""
    inner: Any = model
    while isinstance(inner, nn.Module):
        yield inner
        parallel = isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = getattr(inner, "_orig_mod", inner.module if parallel else None)


def unwrap(model: nn.Module) -> nn.Module:
    """The module behind torch.compile, DataParallel and DistributedDataParallel."""
    return list(_wrapped(model))[-1]


def unwrap_to_trace(model: nn.Module, called: nn.Module | None = None) -> nn.Module:
    """As `unwrap`; where torch.compile is one of the wrappers, hooks are set as inside a compiled region.

    Args:
        model: what is traced.
        called: what the training calls, where that is another wrapper around it.
    """
    inner = unwrap(model)
    if any(hasattr(part, "_orig_mod") for part in _wrapped(model if called is None else called)):
        say_compiled(inner)
    return inner


def architecture_hash(model: nn.Module) -> str:
    """32 hex digits over module paths, their classes, and parameter paths and shapes; values play no part.

    >>> architecture_hash(nn.Linear(3, 2)) == architecture_hash(nn.Linear(3, 2))
    True
    >>> architecture_hash(nn.Linear(3, 2)) == architecture_hash(nn.Linear(3, 4))
    False
    """
    digest = hashlib.sha256()
    inner = unwrap(model)
    for name, module in inner.named_modules():
        digest.update(f"m {canonical(name)} {type(module).__name__}\n".encode())
    for name, parameter in inner.named_parameters():
        shape = "lazy" if is_lazy(parameter) else tuple(parameter.shape)
        digest.update(f"p {canonical(name)} {shape}\n".encode())
    return digest.hexdigest()[:32]


def passes_text(numbers: Mapping[tuple[str, int | None], int]) -> str:
    """The numbers of passes begun, of each split's latest epoch only, as text for a checkpoint.

    >>> passes_text({("val", 0): 1, ("val", 1): 2, ("test", None): 1})
    '[["val", 1, 2], ["test", null, 1]]'
    """
    latest: dict[str, int] = {}
    for split, epoch in numbers:
        latest[split] = max(latest.get(split, -1), -1 if epoch is None else epoch)
    return json.dumps([[s, e, n] for (s, e), n in numbers.items() if e is None or e == latest[s]])


def passes_of(text: str) -> dict[tuple[str, int | None], int]:
    """The inverse of `passes_text`."""
    return {(split, epoch): number for split, epoch, number in json.loads(text)}


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
