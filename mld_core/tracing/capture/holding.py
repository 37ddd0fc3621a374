"""Keeps what a forward call brought until the writer thread has read it: detached, counted, watched.

Large tensors are kept by reference, with their in-place counter; small ones (boxes, scores, labels: what
users' metrics like to write to) are cloned. Containers and framework objects are copied shallowly, so that
what the user puts into or takes out of them later does not matter either.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

_CLONE_BELOW: Final = 1 << 15  # elements
_DEPTH: Final = 8
_PLAIN: Final = (str, bytes, int, float, bool, type(None), np.ndarray, np.generic, torch.Size, nn.Module)


class Holder:
    """What is held for one batch.

    Attributes:
        versions: tensors held by reference, with their in-place counter at the event.
        nbytes: memory kept alive, each storage counted once.
        devices: devices of the tensors.
    """

    def __init__(self) -> None:
        self.versions: list[tuple[Tensor, int]] = []
        self._content = True
        self.devices: set[torch.device] = set()
        self._storages: dict[tuple[torch.device, int], int] = {}
        self._kept: dict[int, tuple[Any, Any]] = {}  # the key's object stays alive, or its id could return

    @property
    def nbytes(self) -> int:
        """Bytes kept alive."""
        return sum(self._storages.values())

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that somebody else holds for this batch."""
        for tensor in tensors:
            self._count(tensor)

    def changed(self) -> bool:
        """Whether a tensor held by reference was written to since the event."""
        return any(t._version != version for t, version in self.versions)  # noqa: SLF001 - no public name

    def keep(self, value: Any, *, own: bool = False, content: bool = True) -> Any:
        """A copy of `value` whose tensors are detached and ours, or watched.

        Args:
            value: tensors in nested containers and objects.
            own: clone tensors without an in-place counter (of inference mode) whatever their size.
            content: False: of large floating tensors (images, points) only the shape will be read, so they
                are not watched.
        """
        self._content = content
        with torch.no_grad():
            return self._keep(value, own, 0)

    def _keep(self, value: Any, own: bool, depth: int) -> Any:
        if isinstance(value, (*_PLAIN, type)) or depth > _DEPTH:
            return value
        if id(value) in self._kept:
            return self._kept[id(value)][1]
        if isinstance(value, Tensor):
            kept: Any = self._tensor(value, own)
        elif isinstance(value, (list, tuple)):
            items = [self._keep(item, own, depth + 1) for item in value]
            kept = type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        elif isinstance(value, Mapping):
            kept = self._mapping(value, own, depth)
        else:
            kept = self._object(value, own, depth)
        self._kept[id(value)] = (value, kept)
        return kept

    def _tensor(self, tensor: Tensor, own: bool) -> Tensor:
        detached = tensor.detach()
        if detached.layout != torch.strided:
            return detached
        inference = detached.is_inference()
        if detached.numel() <= _CLONE_BELOW or (inference and own):
            detached = detached.clone()
        elif not inference and (self._content or not detached.is_floating_point()):
            self.versions.append((detached, detached._version))  # noqa: SLF001
        self._count(detached)
        return detached

    def _count(self, tensor: Tensor) -> None:
        self.devices.add(tensor.device)
        with contextlib.suppress(RuntimeError, NotImplementedError):  # fake and wrapper tensors have none
            storage = tensor.untyped_storage()
            self._storages[tensor.device, storage.data_ptr()] = storage.nbytes()

    def _mapping(self, value: Mapping[Any, Any], own: bool, depth: int) -> Any:
        items = {key: self._keep(item, own, depth + 1) for key, item in value.items()}
        if type(value) is dict:
            return items
        with contextlib.suppress(Exception):  # a mapping of a framework's: as itself if it lets us
            made = copy.copy(value)
            for key, item in items.items():
                made[key] = item  # type: ignore[index]
            return made
        return items

    def _object(self, value: Any, own: bool, depth: int) -> Any:
        if not _holds_tensors(value, 0):
            return value
        try:
            made = copy.copy(value)
            members = vars(made)
        except Exception:  # noqa: BLE001 - an object that can not be copied is held as it is
            return value
        for name, item in list(members.items()):
            members[name] = self._keep(item, own, depth + 1)
        return made


def _holds_tensors(value: Any, depth: int) -> bool:
    """Whether an object's members, or theirs, are tensors."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, (*_PLAIN, type)) or callable(value) or depth > 5:
        return False
    if isinstance(value, (list, tuple)):
        return any(_holds_tensors(item, depth + 1) for item in value[:8])
    if isinstance(value, Mapping):
        return any(_holds_tensors(item, depth + 1) for item in list(value.values())[:64])
    members = getattr(value, "__dict__", None)
    return isinstance(members, dict) and any(_holds_tensors(m, depth + 1) for m in members.values())
