"""Limits of rate: token buckets in memory, one for each key or address."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_REMEMBERED = 10_000


class Buckets:
    """Token buckets by name. Not thread-safe: belongs to the event loop.

    Args:
        rate: tokens per second; 0 = no limit.
        burst: tokens a bucket holds.
        clock: seconds, monotonic.

    >>> buckets = Buckets(1, 2, clock=lambda: 0.0)
    >>> [buckets.take("a") for _ in range(3)]
    [0.0, 0.0, 1.0]
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._level: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Take one token; 0 if there was one, else the seconds until there is."""
        if self.rate <= 0:
            return 0.0
        now = self._clock()
        level = self._refilled(name, now)
        if level < 1:
            return (1 - level) / self.rate
        self._level[name] = (level - 1, now)
        self._level.move_to_end(name)
        while len(self._level) > _REMEMBERED:
            self._level.popitem(last=False)
        return 0.0

    def wait(self, name: str) -> float:
        """Seconds until there is a token, without taking one."""
        if self.rate <= 0:
            return 0.0
        return max(0.0, (1 - self._refilled(name, self._clock())) / self.rate)

    def _refilled(self, name: str, now: float) -> float:
        level, at = self._level.get(name, (self.burst, now))
        return min(self.burst, level + (now - at) * self.rate)
