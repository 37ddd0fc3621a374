"""Which arrays came in, which engine works on them, and how the result gets back to the caller's kind."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

A = TypeVar("A", npt.NDArray[Any], "torch.Tensor")
FloatArray: TypeAlias = npt.NDArray[Any]
Backend: TypeAlias = Literal["auto", "numpy", "numba", "torch"]

# What is computed of two boxes: of axis-aligned ones, of rotated footprints or of upright volumes.
Mode: TypeAlias = Literal["iou", "giou", "diou", "ioa", "bev", "3d", "giou_3d"]
AXIS_MODES: tuple[Mode, ...] = ("iou", "giou", "diou", "ioa")
# What two boxes may share at most, or how far apart they must be, for NMS to keep both.
NmsMode: TypeAlias = Literal["iou", "bev", "3d", "circle"]

BACKENDS = ("auto", "numpy", "numba", "torch")
ENV_BACKEND = "MLD_GEOMETRY_BACKEND"

# Set by backend.warm_up once every compiled kernel is ready; until then "auto" never compiles anything.
compiled_ready = False


@dataclass(frozen=True)
class Call:
    """Arguments brought to one kind and dtype, the engine that takes them, and the way back."""

    engine: Literal["numpy", "numba", "torch"]
    arrays: tuple[Any, ...]
    give_back: Callable[[Any], Any]


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor; never imports torch (a tensor exists only where torch is loaded)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def namespace(value: object) -> ModuleType:
    """`torch` for a tensor, `numpy` for all else."""
    return sys.modules["torch"] if is_tensor(value) else np


def prepare(arrays: Sequence[Any], backend: Backend | None = None) -> Call:
    """Bring arguments to one floating dtype and choose the engine.

    float64 if any argument is float64 or an integer, else float32 (half precision is widened). Tensors on the
    CPU that need no gradient are worked on as numpy arrays over the same memory; the others stay tensors.

    Raises:
        TypeError: numpy arrays and tensors mixed, or tensors on different devices.
        ValueError: a backend that does not exist or cannot take these arguments.
        ImportError: backend "numba" without numba.
    """
    name = backend or os.environ.get(ENV_BACKEND) or "auto"
    if name not in BACKENDS:
        raise ValueError(
            f"backend {name!r} is none of {', '.join(BACKENDS)}; pass one of these or set {ENV_BACKEND}"
        )
    tensors = [is_tensor(a) for a in arrays]
    if any(tensors):
        if not all(tensors):
            kinds = ", ".join(type(a).__name__ for a in arrays)
            raise TypeError(f"got {kinds}; pass all arrays as numpy arrays or all as torch tensors")
        return _prepare_tensors(arrays, name)
    if name == "torch":
        raise ValueError(
            "backend 'torch' takes torch tensors, got numpy arrays; pass torch.from_numpy(array)"
        )
    return Call(_cpu_engine(name), _as_floats([np.asarray(a) for a in arrays]), _unchanged)


def _unchanged(result: Any) -> Any:
    return result


def _cpu_engine(name: str) -> Literal["numpy", "numba"]:
    return "numba" if name == "numba" or (name == "auto" and compiled_ready) else "numpy"


def _as_floats(arrays: Sequence[npt.NDArray[Any]]) -> tuple[FloatArray, ...]:
    single = all(a.dtype.kind == "f" and a.dtype.itemsize <= 4 for a in arrays)
    return tuple(a.astype(np.float32 if single else np.float64, copy=False) for a in arrays)


def _prepare_tensors(tensors: Sequence[Any], name: str) -> Call:
    import torch

    devices = {t.device for t in tensors}
    if len(devices) > 1:
        raise TypeError(f"tensors lie on {', '.join(map(str, devices))}; move them to one device")
    small = {torch.float16, torch.bfloat16, torch.float32}
    dtype = torch.float32 if all(t.dtype in small for t in tensors) else torch.float64
    floats = tuple(t.to(dtype) for t in tensors)
    on_cpu = devices.pop().type == "cpu"
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if name == "torch" or (name == "auto" and (learns or not on_cpu)):
        return Call("torch", floats, _unchanged)
    if learns or not on_cpu:
        why = "a tensor requires a gradient" if on_cpu else f"the tensors lie on {tensors[0].device}"
        raise ValueError(
            f"backend {name!r} works on plain CPU arrays, but {why}; use backend 'torch' or 'auto'"
        )
    return Call(_cpu_engine(name), tuple(t.detach().numpy() for t in floats), torch.from_numpy)


def require_boxes(boxes: Any, name: str, widths: Sequence[int], rows: str) -> None:
    """Check that `boxes` is two-dimensional with one of `widths` columns.

    Raises:
        ValueError: another shape; the message names it and what is expected.
    """
    if boxes.ndim != 2 or boxes.shape[1] not in widths:
        raise ValueError(
            f"{name} has shape {tuple(boxes.shape)}; pass (N, {' or '.join(map(str, widths))}) rows {rows}"
        )
