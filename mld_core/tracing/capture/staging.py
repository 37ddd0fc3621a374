"""Takes a batch's few tensors off the training thread without making it wait.

CPU: the tensors are cloned (a view of the model's memory would change under us); casts are left to the writer
thread. CUDA: `ring`. Other accelerators (mps, xla, npu) have no ring: a plain blocking copy, one for all
tensors of a dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mld_core.tracing.capture.outputs import local_part
from mld_core.tracing.capture.ring import Ring, plain_dtype, room_for


class Staged(Protocol):
    """Tensors on their way to the writer thread."""

    nbytes: int

    @property
    def scarce(self) -> bool:
        """Whether little room is left for the batches after it: it is to be read soon."""
        ...

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Waits for the copy and returns the arrays, in the order staged. Writer thread only, once."""
        ...

    def discard(self) -> None:
        """Gives the memory back unread: the batch was dropped."""
        ...


@dataclass
class CpuStaged:
    """Clones in ordinary memory."""

    scarce: ClassVar[bool] = False
    tensors: list[Tensor]
    nbytes: int

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The clones as numpy arrays; bfloat16 and float8 are cast to float32 here, on the writer thread."""
        plain = [(t, plain_dtype(t.dtype)) for t in self.tensors]
        return [(t if t.dtype == dtype else t.to(dtype)).numpy() for t, dtype in plain]

    def discard(self) -> None:
        """Drops the clones."""
        self.tensors = []


def stage_cpu(tensors: Sequence[Tensor]) -> CpuStaged:
    """Clones `tensors`: a slice lets go of its storage, an inference tensor becomes a plain one."""
    clones, nbytes = [], 0
    for tensor in tensors:
        plain = tensor.detach() if tensor.requires_grad else tensor
        clone = plain.clone(memory_format=torch.contiguous_format)
        clones.append(clone)
        nbytes += clone.numel() * clone.element_size()  # `nbytes` of a tensor is of PyTorch 2.1
    return CpuStaged(clones, nbytes)


@dataclass
class _Mixed:
    """Tensors of several devices, put back in the order they came in."""

    parts: list[tuple[list[int], Staged]]
    nbytes: int

    @property
    def scarce(self) -> bool:
        return any(staged.scarce for _, staged in self.parts)

    def arrays(self) -> list[npt.NDArray[Any]]:
        out: dict[int, npt.NDArray[Any]] = {}
        for positions, staged in self.parts:
            out.update(zip(positions, staged.arrays(), strict=True))
        return [out[i] for i in range(len(out))]

    def discard(self) -> None:
        for _, staged in self.parts:
            staged.discard()


class Stager:
    """Stages tensors of any device; keeps one ring per CUDA device, made at the first batch that needs it."""

    def __init__(self, slots: int = 8, grow_bytes: int = 16 << 20) -> None:
        self._slots, self._grow_bytes = slots, grow_bytes
        self._rings: dict[torch.device, Ring] = {}

    @property
    def spills(self) -> int:
        """How many batches did not fit a ring slot."""
        return sum(ring.spills for ring in self._rings.values())

    def stage(self, tensors: Sequence[Tensor], behind: Iterable[Any] = ()) -> Staged:
        """Starts the copy of `tensors` to the host and returns a handle for the writer thread.

        Args:
            tensors: of any devices.
            behind: CUDA streams on which they were made, where those may be others than the current one.

        Raises:
            ValueError: a distributed tensor of which this rank holds no whole rows.
        """
        for tensor in tensors:
            if type(tensor) is not Tensor or not tensor.is_cpu:
                break
        else:
            return stage_cpu(tensors)
        tensors = [local_part(t) for t in tensors]
        devices = {t.device for t in tensors}
        if all(d.type == "cpu" for d in devices):
            return stage_cpu(tensors)
        if len(devices) == 1:
            device = next(iter(devices))
            if device.type != "cuda":
                return CpuStaged(gathered(tensors), sum(t.numel() * t.element_size() for t in tensors))
            return self._ring(device, tensors).stage(tensors, behind)
        parts: list[tuple[list[int], Staged]] = []
        for device in sorted(devices, key=str):
            positions = [i for i, t in enumerate(tensors) if t.device == device]
            parts.append((positions, self.stage([tensors[i] for i in positions], behind)))
        return _Mixed(parts, sum(p.nbytes for _, p in parts))

    def _ring(self, device: torch.device, tensors: Sequence[Tensor]) -> Ring:
        need, ring = room_for(tensors), self._rings.get(device)
        if ring is None:
            # Room for a quarter more than the first batch.
            size = max(4096, need * 5 // 4)
            # The writer reads batches in groups, so more slots than these are needed where they are small.
            ring = self._rings[device] = Ring(device, size, self._slots, most=self._grow_bytes // size)
        elif need > ring.slot_bytes:
            # The first batch was a small one (of a validation).
            ring.grow(need * 5 // 4, most=max(self._slots, self._grow_bytes // (need * 5 // 4)))
        return ring


def gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the host, with one wait for the device for all of one dtype."""
    found: dict[int, Tensor] = {}
    plain = [t.detach().to(plain_dtype(t.dtype)) for t in tensors]
    for dtype in dict.fromkeys(t.dtype for t in plain):
        places = [i for i, t in enumerate(plain) if t.dtype == dtype]
        flat = torch.cat([plain[i].reshape(-1) for i in places]).cpu()
        pieces = torch.split(flat, [plain[i].numel() for i in places])
        found |= {i: piece.reshape(plain[i].shape) for i, piece in zip(places, pieces, strict=True)}
    return [found[i] for i in range(len(plain))]


def to_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A C-contiguous float32 array."""
    return np.ascontiguousarray(array, dtype=np.float32)
