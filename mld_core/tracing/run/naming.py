"""Names of a launch, and the hash that tells one architecture from another."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from datetime import datetime, timezone

from torch import nn
from torch.nn.parameter import is_lazy

from mld_core.tracing.capture.capture import canonical


def new_launch_id() -> str:
    """UTC time with microseconds and six random hex digits: sorts by time, never repeats."""
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ") + secrets.token_hex(3)


def restart_count() -> int:
    """How often the launcher restarted this process group (torchelastic), 0 elsewhere."""
    text = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isdigit() else 0


def attempt_name(launch_id: str, restart: int | str) -> str:
    """The attempt's folder name.

    >>> attempt_name("20261121T020000000000Zab12cd", "2")
    '20261121T020000000000Zab12cd-002'
    """
    return f"{launch_id}-{int(restart):03d}"


def env_rank() -> tuple[int, int] | None:
    """(rank, world size) as launchers put them into the environment, or None."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return (int(rank), int(world)) if rank.isdigit() and world.isdigit() else None


def class_name(model: nn.Module) -> str:
    """The class name of what is trained, seen through compile and data-parallel wrappers."""
    return type(unwrap(model)).__name__


def unwrap(model: nn.Module) -> nn.Module:
    """The module behind torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


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
