"""Which engine computes: numpy, the compiled one (numba), or torch; and getting the compiled one ready.

Every function of `iou` and `nms` takes `backend=`; the environment variable MLD_GEOMETRY_BACKEND sets it for
the process (the argument wins). "auto" is torch for tensors on a device or with gradients, the compiled
engine once `warm_up` has finished, numpy otherwise: nothing is ever compiled inside a training step.
"""

import importlib.util
import threading

import numpy as np

from mld_core.geometry.kernels import arrays as _arrays
from mld_core.geometry.kernels.arrays import BACKENDS, ENV_BACKEND, Backend

__all__ = ["BACKENDS", "ENV_BACKEND", "Backend", "compiled_ready", "numba_installed", "warm_up"]

_starting = threading.Lock()
_compiling = threading.Lock()
_thread: threading.Thread | None = None


def numba_installed() -> bool:
    """Whether the compiled engine can be had (`pip install 'ml-debugger[fast]'`)."""
    return importlib.util.find_spec("numba") is not None


def compiled_ready() -> bool:
    """Whether "auto" uses the compiled engine in this process."""
    return _arrays.compiled_ready


def warm_up(*, background: bool = False) -> threading.Thread | None:
    """Compile every kernel for float32 and float64 (or load it from disk), then let "auto" use them.

    The first time takes up to a minute, later processes a few seconds. Without numba this does nothing.

    Args:
        background: work in a daemon thread and return it at once; "auto" stays with numpy until it is done.

    Returns:
        The thread where `background`, else None.
    """
    global _thread  # noqa: PLW0603  one warm-up per process
    if not numba_installed():
        return None
    if not background:
        _compile_once()
        return None
    with _starting:
        if _thread is None:
            _thread = threading.Thread(target=_compile_once, name="mld-geometry-warm-up", daemon=True)
            _thread.start()
    return _thread


def _compile_once() -> None:
    with _compiling:
        if not _arrays.compiled_ready:
            _compile_all()
            _arrays.compiled_ready = True


def _compile_all() -> None:
    """Call every compiled kernel once per dtype, through the same code that uses it."""
    from mld_core.geometry import iou, nms

    for dtype in (np.float32, np.float64):
        flat = np.array([[0, 0, 2, 2], [1, 1, 3, 3]], dtype)
        deep = np.array([[0, 0, 0, 2, 4, 1, 0.1], [1, 0, 0, 2, 4, 1, 0.2]], dtype)
        scores, labels = np.array([0.9, 0.8], dtype), np.array([0, 1])
        for mode in _arrays.AXIS_MODES:
            iou.overlaps(flat, flat, mode, "numba")
        for rotated in ("bev", "3d", "giou_3d"):
            for aligned in (False, True):
                iou.overlaps(deep, deep, rotated, "numba", aligned=aligned)
        for given in (None, labels):
            nms.nms(flat, scores, given, backend="numba")
            nms.nms_bev(deep, scores, given, backend="numba")
            nms.nms_3d(deep, scores, given, backend="numba")
            nms.nms_circle(deep, scores, given, backend="numba")
