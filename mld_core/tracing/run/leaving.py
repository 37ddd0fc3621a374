"""A training that is left by Ctrl-C or an error in a process that lives on (a notebook): no event says so."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any, Final

_LOOK_S: Final = 1.0


class Leaving:
    """Looks once a second, from a thread of its own, whether the training is still on its thread's stack.

    Only the code objects of frames are looked at; nothing is patched, and no signal is caught.

    Args:
        left: called on that thread, once, when the training has gone and its thread lives on.
    """

    def __init__(self, left: Callable[[], None]) -> None:
        self._left = left
        self._over: threading.Event | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_over": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Leaving:
        return self

    def begin(self, kind: type) -> None:
        """A method of an object of this class, on the caller's stack, trains until `end`."""
        self.end()
        code = _outermost(kind)
        if code is None:
            return
        self._over = threading.Event()
        watch = (self._over, threading.current_thread(), code)
        threading.Thread(target=self._watch, args=watch, name="mld-leaving", daemon=True).start()

    def end(self) -> None:
        """The training is over; or another one begins."""
        if self._over is not None:
            self._over.set()
            self._over = None

    def _watch(self, over: threading.Event, trains: threading.Thread, code: CodeType) -> None:
        while not over.wait(_LOOK_S):
            if not trains.is_alive():
                return  # the program ends, which says itself what is there
            frame: Any = sys._current_frames().get(trains.ident or 0)  # noqa: SLF001 - the one way to look
            while frame is not None and frame.f_code is not code:
                frame = frame.f_back
            if frame is None and not over.is_set():
                self._left()
                return


def _outermost(kind: type) -> CodeType | None:
    """The code of the outermost method of an object of this class on the stack."""
    frame: Any = sys._getframe(2)  # noqa: SLF001 - events are given everything but who called
    found = None
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), kind):
            found = frame.f_code
        frame = frame.f_back
    return found
