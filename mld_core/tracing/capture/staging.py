"""Takes a batch's few tensors off the training thread without making it wait.

CPU: the tensors are cloned (a view of the model's memory would change under us); casts are left to the writer
thread. CUDA: they are cast into one device buffer on the compute stream, which makes the copy independent of
later in-place operations, CUDA-graph replays and the allocator; the buffer goes to pinned memory on a side
stream, and only the writer thread waits for that copy's event. Slots are pairs (device buffer, pinned buffer)
in a small ring; a batch larger than a slot, or one that finds no free slot, gets a fresh one and is counted
as a spill.

After the pattern of torch.distributed.checkpoint.staging and the "pinned memory and non_blocking" tutorial: a
host buffer is never read before its event, a device buffer never rewritten before it either.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGN: Final = 16
_NUMPY_READY: Final = frozenset(
    {
        torch.float32,
        torch.float64,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    }
)


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


def _plain_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype numpy can hold: bfloat16 and float8 become float32."""
    return dtype if dtype in _NUMPY_READY else torch.float32


def _local(tensor: Tensor) -> Tensor:
    """The plain local tensor behind a DTensor or another wrapper subclass."""
    if type(tensor) is Tensor:
        return tensor.detach()
    to_local = getattr(tensor, "to_local", None)
    out: Tensor = to_local() if to_local is not None else tensor
    return out.detach()


@dataclass
class CpuStaged:
    """Clones in ordinary memory."""

    scarce: ClassVar[bool] = False
    tensors: list[Tensor]
    nbytes: int

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The clones as numpy arrays; bfloat16 and float8 are cast to float32 here, on the writer thread."""
        return [t.to(_plain_dtype(t.dtype)).numpy() for t in self.tensors]

    def discard(self) -> None:
        """Drops the clones."""
        self.tensors = []


def stage_cpu(tensors: Sequence[Tensor]) -> CpuStaged:
    """Clones `tensors`: a slice lets go of its storage, an inference tensor becomes a plain one."""
    clones = [_local(t).clone(memory_format=torch.contiguous_format) for t in tensors]
    return CpuStaged(clones, sum(t.numel() * t.element_size() for t in clones))


@dataclass
class Slot:
    """One device buffer, its pinned twin and the event after which both are free to read and rewrite."""

    device: Tensor
    host: Tensor
    done: Any
    pooled: bool = True


@dataclass
class CudaStaged:
    """One slot in flight, with the layout of the tensors in it."""

    slot: Slot
    layout: list[tuple[int, torch.dtype, torch.Size]]
    nbytes: int
    ring: Ring

    @property
    def scarce(self) -> bool:
        """Whether half of the ring waits to be read."""
        return self.ring.scarce

    def arrays(self) -> list[npt.NDArray[Any]]:
        """Waits for the side-stream copy, copies the arrays out of the pinned buffer and frees the slot."""
        self.slot.done.synchronize()
        out = []
        for offset, dtype, shape in self.layout:
            size = math.prod(shape) * dtype.itemsize
            out.append(self.slot.host[offset : offset + size].view(dtype).view(shape).numpy().copy())
        self.ring.release(self.slot)
        return out

    def discard(self) -> None:
        """Frees the slot; whoever takes it next waits for its copy on the device (`Ring.stage`)."""
        self.ring.release(self.slot)


@dataclass
class Ring:
    """A few preallocated slots on one CUDA device.

    Args:
        device: the device whose tensors are staged.
        slot_bytes: capacity of one slot.
        slots: how many are kept from the start.
        most: how many there may be; they are made where none is free. 0: `slots`.
    """

    device: torch.device
    slot_bytes: int
    slots: int = 8
    most: int = 0
    spills: int = 0
    _free: queue.SimpleQueue[Slot] = field(default_factory=queue.SimpleQueue)
    _side: Any = None

    def __post_init__(self) -> None:
        with torch.cuda.device(self.device):
            self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        for _ in range(self.slots):
            self._free.put(self._new_slot(self.slot_bytes, pooled=True))

    def _new_slot(self, nbytes: int, *, pooled: bool) -> Slot:
        return Slot(
            torch.empty(nbytes, dtype=torch.uint8, device=self.device),
            torch.empty(nbytes, dtype=torch.uint8, pin_memory=True),
            # blocking: the writer thread sleeps in synchronize() instead of spinning on a core
            torch.cuda.Event(blocking=True),  # type: ignore[no-untyped-call]
            pooled,
        )

    def _take(self, nbytes: int) -> Slot:
        if nbytes <= self.slot_bytes:
            try:
                return self._free.get_nowait()
            except queue.Empty:
                pass
            if self.slots < self.most:
                self.slots += 1
                return self._new_slot(self.slot_bytes, pooled=True)
        self.spills += 1
        return self._new_slot(max(nbytes, 1), pooled=False)

    @property
    def scarce(self) -> bool:
        """Whether half of the slots there may be wait to be read."""
        return 2 * (self.slots - self._free.qsize()) >= max(self.slots, self.most)

    def release(self, slot: Slot) -> None:
        """Gives a slot back; a spilled one is dropped (its event has passed, so its memory is nobody's)."""
        if slot.pooled:
            self._free.put(slot)

    def stage(self, tensors: Sequence[Tensor]) -> CudaStaged:
        """Casts and copies `tensors` (on `device`) into a slot on the current stream; returns at once."""
        layout: list[tuple[int, torch.dtype, torch.Size]] = []
        offset = 0
        for tensor in tensors:
            dtype = _plain_dtype(tensor.dtype)
            layout.append((offset, dtype, tensor.shape))
            offset += -(-tensor.numel() * dtype.itemsize // _ALIGN) * _ALIGN
        slot = self._take(offset)
        with torch.cuda.device(self.device), torch.no_grad():
            compute = torch.cuda.current_stream()
            compute.wait_event(slot.done)  # passes at once for a fresh slot and for one that was read
            for tensor, (start, dtype, shape) in zip(tensors, layout, strict=True):
                size = tensor.numel() * dtype.itemsize
                slot.device[start : start + size].view(dtype).view(shape).copy_(_local(tensor))
            self._side.wait_event(compute.record_event())
            with torch.cuda.stream(self._side):
                slot.host[:offset].copy_(slot.device[:offset], non_blocking=True)
                slot.done.record(self._side)
            if not slot.pooled:
                slot.device.record_stream(self._side)
        return CudaStaged(slot, layout, offset, self)


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

    def stage(self, tensors: Sequence[Tensor]) -> Staged:
        """Starts the copy of `tensors` to the host and returns a handle for the writer thread."""
        devices = {t.device for t in tensors}
        if all(d.type != "cuda" for d in devices):
            # Other accelerators (mps, xla, npu) have no ring here: a plain blocking copy, right if not fast.
            return stage_cpu([t if t.device.type == "cpu" else t.detach().cpu() for t in tensors])
        if len(devices) == 1:
            return self._ring(next(iter(devices)), tensors).stage(tensors)
        parts: list[tuple[list[int], Staged]] = []
        for device in sorted(devices, key=str):
            positions = [i for i, t in enumerate(tensors) if t.device == device]
            parts.append((positions, self.stage([tensors[i] for i in positions])))
        return _Mixed(parts, sum(p.nbytes for _, p in parts))

    def _ring(self, device: torch.device, tensors: Sequence[Tensor]) -> Ring:
        if device not in self._rings:
            need = sum(t.numel() * _plain_dtype(t.dtype).itemsize + _ALIGN for t in tensors)
            # Room for a quarter more than the first batch; a larger batch spills.
            size = max(4096, need * 5 // 4)
            # The writer reads batches in groups, so more slots than these are needed where they are small.
            self._rings[device] = Ring(device, size, self._slots, most=self._grow_bytes // size)
        return self._rings[device]


def to_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A C-contiguous float32 array."""
    return np.ascontiguousarray(array, dtype=np.float32)
