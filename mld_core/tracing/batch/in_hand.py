"""What tells whose batch a forward, or the target of a loss, is of: values, of watched batches only."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from mld_core.tracing.batch.plan import agree, as_tensor
from mld_core.tracing.paths import tensors_at

_PLACES: Final = 16
_HALF: Final = 0.5


class InHand:
    """The batch that the loader gave, to compare with; it may wait for a device.

    Args:
        batch: as the loader gave it.
        labels: as they were found in it, None where none were.
    """

    def __init__(self, batch: Any, labels: Any) -> None:
        self._labels = as_tensor(labels)
        parts = [part for _, part in tensors_at(batch)]
        self._targets = parts if self._labels is None else [self._labels, *parts]
        inputs = [part for part in parts if part is not labels and part.ndim and part.numel() > 1]
        # A mask of ones, or a flag, is the same for other samples.
        self._inputs = [(part, share) for part in inputs if (share := _share_that_differs(part)) > _HALF]

    def given(self, value: Any) -> int:
        """How many of the batch's tensors, labels aside, are in what a call was given, as they are."""
        seen = [tensor for _, tensor in tensors_at(value)]
        return sum(any(_equal(part, tensor) for tensor in seen) for part, _ in self._inputs)

    def answers(self, target: Tensor | None) -> bool:
        """Whether a loss was compared with labels of the batch."""
        return target is not None and any(agree(target, part) for part in self._targets)

    def mixed(self, target: Tensor | None) -> bool:
        """Whether a target that is no part of the batch has each sample's own class and another's of it.

        With each sample mixed with one other, and each once, a class stands there twice as often as among the
        labels, but for samples that were mixed with one of their own class.
        """
        own = self._labels
        if own is None or own.ndim != 1 or own.is_floating_point() or own.dtype == torch.bool:
            return False
        if target is None or target.ndim != 2 or len(target) != len(own) or self.answers(target):
            return False
        labels = own.to(target.device).long()
        if not bool(((labels >= 0) & (labels < target.shape[1])).all()):
            return False
        there = target > 0
        alone = there.sum(1) == 1
        count = [torch.bincount(part, minlength=target.shape[1]) for part in (labels, labels[alone])]
        own_there = bool(there.gather(1, labels[:, None]).all())
        return own_there and torch.equal(there.sum(0), 2 * count[0] - count[1])

    def reorders(self, value: Any) -> bool:
        """Whether a call was given the batch's samples, in another order."""
        seen = [tensor for _, tensor in tensors_at(value)]
        own = [part for part, share in self._inputs if share == 1.0]
        return any(_permuted(part, tensor) for part in own for tensor in seen)


def _equal(part: Tensor, seen: Tensor) -> bool:
    """Whether two tensors hold the same; missing values are no difference where both have them."""
    if part is seen:
        return True
    pair = _compared(part, seen)
    if pair is None:
        return False
    a, b = pair
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def _permuted(part: Tensor, seen: Tensor) -> bool:
    """Whether two tensors hold the same rows, of which some differ, in different places."""
    pair = None if part is seen else _compared(part, seen)
    if pair is None:
        return False
    a, b = map(_weighed, pair)
    return not torch.equal(a, b) and torch.equal(a.sort().values, b.sort().values)


def _share_that_differs(part: Tensor) -> float:
    """How many rows there are of which no two are alike, of all; 0 where all numbers are one."""
    rows = _grid(part)
    if rows is None or bool((rows == rows.flatten()[0]).all()):
        return 0.0
    return len(set(_weighed(rows).tolist())) / len(rows)


def _weighed(rows: Tensor) -> Tensor:
    """A number of each row: the same weights, summed in the same order, so equal rows give equal ones."""
    flat = rows.reshape(len(rows), -1).nan_to_num()
    return (flat * torch.linspace(1.0, 2.0, flat.shape[1], dtype=torch.float64)).sum(1)


def _compared(part: Tensor, seen: Tensor) -> tuple[Tensor, Tensor] | None:
    """Of each sample the grids of both; None of unlike tensors."""
    if seen.is_nested or part.shape != seen.shape or part.dtype != seen.dtype:
        return None
    own, other = _grid(part), _grid(seen)
    return None if own is None or other is None else (own, other)


def _grid(part: Tensor) -> Tensor | None:
    """Of each sample at most 16 places an axis, as float64 on the host; None of what has no such."""
    if part.is_nested or part.layout != torch.strided or part.is_complex() or hasattr(part, "device_mesh"):
        return None
    places = (slice(None), *(slice(None, None, max(1, -(-size // _PLACES))) for size in part.shape[1:]))
    return part.detach()[places].cpu().double() if part.ndim and part.numel() else None
