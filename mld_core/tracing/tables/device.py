"""What the writer thread does on a CUDA device, without disturbing a graph that another thread captures.

While a thread captures a CUDA graph, most of what another one asks of the device (to wait for a stream, to
ask for an event, to get memory) ends that capture with an error, unless the asking thread is in relaxed mode,
as PyTorch's own watchdogs are. The driver keeps that mode for each thread; here it is set and put back.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final

_RELAXED: Final = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_LONGEST_NAP_S: Final = 2e-3


@lru_cache(maxsize=1)
def _driver() -> Callable[[Any], int] | None:
    """The driver's `cuThreadExchangeStreamCaptureMode`, None where there is none (no CUDA, ROCm)."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        with contextlib.suppress(OSError, AttributeError):
            found: Callable[[Any], int] = ctypes.CDLL(name).cuThreadExchangeStreamCaptureMode
            return found
    return None


@contextlib.contextmanager
def beside_captures() -> Iterator[None]:
    """Within it this thread may use the device while another one captures a graph."""
    exchange = _driver()
    if exchange is None:
        yield
        return
    mode = ctypes.c_int(_RELAXED)
    if exchange(ctypes.byref(mode)):  # an error: nothing was changed
        yield
        return
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))  # what it was


def wait_for(event: Any) -> None:
    """Waits until the device has come to an event: by asking for it, so that no core spins meanwhile."""
    nap = 5e-5
    while not event.query():
        time.sleep(nap)
        nap = min(2 * nap, _LONGEST_NAP_S)
