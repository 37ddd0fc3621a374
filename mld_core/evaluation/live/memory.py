"""The memory the process may have: asked for before it is taken, what the training needs comes first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

CAP = 2**30
"""Bytes of the process, data of the interpreter and of the libraries together."""

_CGROUP = Path("/sys/fs/cgroup")


def refusal(cap: int) -> str:
    """Why the process can not have so much memory; empty where it can."""
    allowed = _limit()
    if allowed is not None and allowed < cap:
        return f"it asks for {cap / 1e6:.0f} MB, and a process here may have {allowed / 1e6:.0f} MB of memory"
    free = min(_free(), default=None)
    if free is not None and free < cap:
        return f"it asks for {cap / 1e6:.0f} MB, and {free / 1e6:.0f} MB of memory are free"
    return ""


def hold_to(cap: int) -> None:
    """Take no more than that; when memory runs out on the machine, this process is the one to go."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (cap, hard))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _limit() -> int | None:
    """The bytes a process may have by the limits of whoever started it, None without one."""
    try:
        import resource
    except ImportError:
        return None
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS))
    return min((one for one in limits if one != resource.RLIM_INFINITY), default=None)


def _free() -> Iterator[int]:
    """Free bytes of the machine and of the container, as far as they are told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    for most, used in names:
        for folder in (_CGROUP, _CGROUP / "memory"):
            with contextlib.suppress(OSError, ValueError):
                yield int((folder / most).read_text()) - _used(folder, used)


def _used(folder: Path, used: str) -> int:
    """Bytes a container can not give back: files it may forget do not count."""
    cached = 0
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            cached = int(value) if name in {"inactive_file", "total_inactive_file"} else cached
    return int((folder / used).read_text()) - cached
