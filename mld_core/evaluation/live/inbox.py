"""What the training says, line by line, to the end; after `close` it can say no more."""

from __future__ import annotations

import os
import select


class Inbox:
    """Lines from a pipe. None is held in a buffer of Python's, so that it is known whether one is waiting.

    Args:
        fd: The end to read from.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._begun = b""

    def lines(self, seconds: float) -> list[bytes] | None:
        """Those that came, waited for up to so many seconds; None: no more will come."""
        if not self.waits(seconds):
            return []
        data = os.read(self._fd, 65_536)
        *whole, self._begun = (self._begun + data).split(b"\n")
        return whole if data else None

    def waits(self, seconds: float = 0.0) -> bool:
        """Whether there is something to read, or the end."""
        return bool(select.select([self._fd], [], [], seconds)[0])

    def close(self) -> None:
        """Hear no more: the one who writes is told by the system."""
        os.close(self._fd)
