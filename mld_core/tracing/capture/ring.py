"""A few preallocated buffers through which tensors go from a CUDA device to the writer thread.

They are cast into one device buffer on the compute stream, which makes the copy independent of later in-place
operations, CUDA-graph replays and the allocator; the buffer goes to pinned memory on a side stream. Slots are
pairs (device buffer, pinned buffer); a batch larger than a slot, or one that finds no free slot, gets a fresh
one and is counted as a spill.

Behind the data the side stream copies a mark, the number of the batch in that slot. The writer thread looks
for that mark in the pinned memory and calls nothing of CUDA: while a user's thread captures a CUDA graph,
waiting for an event, or asking for it, on any other thread would end the capture with an error.

After the pattern of torch.distributed.checkpoint.staging and the "pinned memory and non_blocking" tutorial: a
host buffer is never read before its mark, a device buffer never rewritten before its event.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGN: Final = 16
_MARK: Final = 8  # bytes at the end of a buffer
_LONGEST_NAP_S: Final = 2e-3
_PATIENCE_S: Final = 60.0
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


def plain_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype numpy can hold: bfloat16 and float8 become float32."""
    return dtype if dtype in _NUMPY_READY else torch.float32


def _room(tensor: Tensor) -> int:
    return -(-tensor.numel() * plain_dtype(tensor.dtype).itemsize // _ALIGN) * _ALIGN


def room_for(tensors: Sequence[Tensor]) -> int:
    """Bytes of a slot that these take."""
    return sum(map(_room, tensors))


@dataclass
class Slot:
    """One device buffer and its pinned twin.

    Attributes:
        done: the event behind the copy; the next batch waits for it on the device.
        pooled: comes back to the ring.
        turn: number of the batch in it; the mark behind the data on the host, once it has arrived.
    """

    device: Tensor
    host: Tensor
    done: Any
    pooled: bool = True
    turn: int = 0

    @property
    def nbytes(self) -> int:
        """Room for data."""
        return len(self.device) - _MARK

    def arrived(self) -> bool:
        """Whether the data of this turn are on the host; asks memory, not the device."""
        return int(self.host[-_MARK:].numpy().view(np.int64)[0]) == self.turn

    def wait(self) -> None:
        """Waits until they are.

        Raises:
            RuntimeError: the device has failed.
        """
        nap, begun = 5e-5, time.monotonic()
        while not self.arrived():
            if time.monotonic() - begun > _PATIENCE_S:
                self.done.synchronize()
                return
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP_S)


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
        self.slot.wait()
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
        self._side = self._stream()
        for _ in range(self.slots):
            self._free.put(self._new_slot(self.slot_bytes, pooled=True))

    def _stream(self) -> Any:
        with torch.cuda.device(self.device):
            return torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def _event(self) -> Any:
        # blocking: a thread that waits sleeps instead of spinning on a core
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def _new_slot(self, nbytes: int, *, pooled: bool) -> Slot:
        size = -(-max(nbytes, 1) // _ALIGN) * _ALIGN + _MARK
        # A user's batch may be in inference mode; buffers made there could not be written to outside it.
        with torch.inference_mode(False):
            pinned = self.device.type == "cuda"
            return Slot(
                torch.zeros(size, dtype=torch.uint8, device=self.device),
                torch.zeros(size, dtype=torch.uint8, pin_memory=pinned),
                self._event(),
                pooled,
            )

    def _take(self, nbytes: int) -> Slot:
        if nbytes <= self.slot_bytes:
            try:
                return self._free.get_nowait()
            except queue.Empty:
                pass
            if self.slots < max(self.slots, self.most):
                self.slots += 1
                return self._new_slot(self.slot_bytes, pooled=True)
        self.spills += 1
        return self._new_slot(nbytes, pooled=False)

    def grow(self, slot_bytes: int, *, most: int) -> None:
        """From now on slots are as large; those there are go when they are free. Training thread only."""
        self.slot_bytes, self.slots, self.most = slot_bytes, 0, most
        while not self._free.empty():
            self._free.get_nowait()

    @property
    def scarce(self) -> bool:
        """Whether half of the slots there may be wait to be read."""
        return 2 * (self.slots - self._free.qsize()) >= max(self.slots, self.most)

    def release(self, slot: Slot) -> None:
        """Gives a slot back; a spilled one, or one of before the ring grew, is dropped."""
        if slot.pooled and slot.nbytes >= self.slot_bytes:
            self._free.put(slot)

    def stage(self, tensors: Sequence[Tensor], behind: Iterable[Any] = ()) -> CudaStaged:
        """Casts and copies `tensors` (on `device`) into a slot on the current stream; returns at once.

        `behind`: streams on which the tensors may have been made.
        """
        layout: list[tuple[int, torch.dtype, torch.Size]] = []
        offset = 0
        for tensor in tensors:
            layout.append((offset, plain_dtype(tensor.dtype), tensor.shape))
            offset += _room(tensor)
        slot = self._take(offset)
        try:
            self._fill(slot, tensors, layout, behind)
            self._send(slot, offset)
        except BaseException:
            self.release(slot)
            raise
        return CudaStaged(slot, layout, offset, self)

    def _fill(
        self,
        slot: Slot,
        tensors: Sequence[Tensor],
        layout: Sequence[tuple[int, torch.dtype, torch.Size]],
        behind: Iterable[Any],
    ) -> None:
        """On the compute stream."""
        slot.turn += 1
        with torch.no_grad():
            self._wait(slot, tensors, behind)
            for tensor, (start, dtype, shape) in zip(tensors, layout, strict=True):
                size = tensor.numel() * dtype.itemsize
                slot.device[start : start + size].view(dtype).view(shape).copy_(tensor.detach())
            slot.device[-_MARK:].view(torch.int64).fill_(slot.turn)

    def _wait(self, slot: Slot, tensors: Sequence[Tensor], behind: Iterable[Any]) -> None:
        with torch.cuda.device(self.device):
            compute = torch.cuda.current_stream()
            compute.wait_event(slot.done)  # passes at once for a fresh slot and for one that was read
            for stream in behind:
                if stream != compute:
                    compute.wait_stream(stream)
                    for tensor in tensors:  # their memory goes back to the other stream's use
                        tensor.record_stream(compute)

    def _send(self, slot: Slot, nbytes: int) -> None:
        """On the side stream: the data, then the mark."""
        with torch.cuda.device(self.device), torch.no_grad():
            self._side.wait_event(torch.cuda.current_stream().record_event())
            with torch.cuda.stream(self._side):
                slot.host[:nbytes].copy_(slot.device[:nbytes], non_blocking=True)
                slot.host[-_MARK:].copy_(slot.device[-_MARK:], non_blocking=True)
                slot.done.record(self._side)
            if not slot.pooled:
                slot.device.record_stream(self._side)
