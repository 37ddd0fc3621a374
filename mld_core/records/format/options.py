"""Options and account of the background writer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

_MB = 1 << 20


@dataclass(frozen=True)
class WriterOptions:
    """How the background writer behaves.

    Attributes:
        queue_mb: bound of everything accepted and not yet durable, in MiB.
        on_full: "block" waits up to `block_deadline_s` for room, "drop" does not wait. Both then drop and
            count.
        block_deadline_s: longest wait of one `put`, in seconds.
        roll_mb: a part is written when its columns reach this size in memory, in MiB ...
        roll_seconds: ... or when its oldest row is this old.
        codec: "zstd" (level 1), "lz4", "snappy" or "none".
        keep_vectors: after a pass is sealed, this rank's feature vectors of all but the last so many epochs
            of the split are dropped, on the writer thread; None = keep all.
        fsync: make every part durable before it counts; off only where a power cut does not matter.
        steps: for tests: called with the name of each step of the write protocol, on the writer thread. It
            may sleep, kill the process, or raise OSError, which is handled as if the step itself had failed.
    """

    queue_mb: float = 256
    on_full: Literal["block", "drop"] = "block"
    block_deadline_s: float = 30.0
    roll_mb: float = 64
    roll_seconds: float = 10.0
    codec: str = "zstd"
    fsync: bool = True
    keep_vectors: int | None = None
    steps: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        for name in ("queue_mb", "roll_mb", "roll_seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name}={value!r}: expected a number above 0")
        if isinstance(self.block_deadline_s, bool) or not self.block_deadline_s >= 0:
            raise ValueError(f"block_deadline_s={self.block_deadline_s!r}: expected seconds, 0 or more")
        keep = self.keep_vectors
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 0):
            raise ValueError(f"keep_vectors={keep!r}: expected 0, 1, 2, ..., or None to keep all")
        if self.on_full not in {"block", "drop"}:
            raise ValueError(f"on_full={self.on_full!r}: expected 'block' or 'drop'")
        if self.codec not in {"zstd", "lz4", "snappy", "none"}:
            raise ValueError(f"codec={self.codec!r}: expected 'zstd', 'lz4', 'snappy' or 'none'")

    @cached_property
    def queue_bytes(self) -> int:
        """The bound of the queue in bytes."""
        return max(1, int(self.queue_mb * _MB))

    @cached_property
    def roll_bytes(self) -> int:
        """Size at which a part is written, in bytes; at most half of the queue, so that it can drain."""
        return max(1, min(int(self.roll_mb * _MB), self.queue_bytes // 2))

    def step(self, name: str) -> None:
        """Tell the test hook, if there is one, which step comes next."""
        if self.steps is not None:
            self.steps(name)


@dataclass
class Account:
    """What became of the rows: `rows_put` = `rows_written` + `rows_lost` + what is still on its way."""

    rows_put: int = 0
    rows_written: int = 0
    rows_lost: int = 0
    bytes_written: int = 0
    parts: int = 0
    blocked_seconds: float = 0.0
    thread_cpu_seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
