"""Ranks on one machine, as forks of the process that calls: what all of them import is imported once.

Real processes with torchrun's environment, without the seconds that each would spend on importing the frameworks.
Tests that are about a launcher start it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environments(world: int) -> list[dict[str, str]]:
    """What torchrun says to each of so many ranks; nothing where there is but one."""
    if world == 1:
        return [{}]
    all_ranks = {
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "TORCHELASTIC_RUN_ID": "none",
    }
    told = [{**all_ranks, "RANK": rank, "LOCAL_RANK": rank} for rank in range(world)]
    return [{name: str(value) for name, value in one.items()} for one in told]


def forked(world: int, output: Path | None = None) -> list[int] | None:
    """None in each of `world` ranks, which end as any script does; in the caller their exit codes (-9: SIGKILL).

    With `output`, rank n writes what it prints to the file n in this folder.
    """
    children = []
    for rank, names in enumerate(environments(world)):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ.update(names)
        if output:
            file = os.open(output / str(rank), os.O_WRONLY | os.O_CREAT, 0o644)
            os.dup2(file, 1)
            os.dup2(file, 2)
        return None
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
