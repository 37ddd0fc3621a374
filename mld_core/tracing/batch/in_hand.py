"""What tells whose batch a forward, or the target of a loss, is of: values, of watched batches only."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from mld_core.tracing.batch.plan import agree
from mld_core.tracing.paths import tensors_at

_MOST_LABELS: Final = 1 << 16
_PLACES: Final = 16


class InHand:
    """The batch that the loader gave, to compare with; it may wait for a device.

    Args:
        batch: as the loader gave it.
        labels: as they were found in it, None where none were.
    """

    def __init__(self, batch: Any, labels: Any) -> None:
        self._labels = labels if isinstance(labels, Tensor) else _as_tensor(labels)
        parts = [part for _, part in tensors_at(batch)]
        self._targets = parts if self._labels is None else [self._labels, *parts]
        self._inputs = [part for part in parts if part is not labels and part.ndim and part.numel() > 1]

    def given(self, value: Any) -> int:
        """How many of the batch's tensors, labels aside, are in what a call was given, as they are."""
        seen = [tensor for _, tensor in tensors_at(value)]
        return sum(any(_equal(part, tensor) for tensor in seen) for part in self._inputs)

    def answers(self, target: Tensor | None) -> bool:
        """Whether a loss was compared with labels of the batch."""
        return target is not None and any(agree(target, part) for part in self._targets)

    def reorders(self, value: Any) -> bool:
        """Whether a call was given the batch's samples, in another order."""
        seen = [tensor for _, tensor in tensors_at(value)]
        return any(_permuted(part, tensor) for part in self._inputs for tensor in seen)


def _as_tensor(labels: Any) -> Tensor | None:
    """Labels that are numbers in a list, or an array."""
    if not isinstance(labels, (list, tuple, np.ndarray)) or not 0 < len(labels) <= _MOST_LABELS:
        return None
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None


def _equal(part: Tensor, seen: Tensor) -> bool:
    if part is seen:
        return True
    pair = _compared(part, seen)
    return pair is not None and torch.equal(*pair)


def _permuted(part: Tensor, seen: Tensor) -> bool:
    """Whether two tensors hold the same rows, of which some differ, in different places."""
    pair = None if part is seen or part.is_complex() else _compared(part, seen)
    if pair is None:
        return False
    own, other = (rows.reshape(len(rows), -1).double() for rows in pair)
    # Every row is weighed by the same numbers, in the same order: equal rows give equal sums.
    weights = torch.linspace(1.0, 2.0, own.shape[1], dtype=torch.float64, device=own.device)
    a, b = ((rows * weights).sum(1) for rows in (own, other))
    return not torch.equal(a, b) and torch.equal(a.sort().values, b.sort().values)


def _compared(part: Tensor, seen: Tensor) -> tuple[Tensor, Tensor] | None:
    """Of each sample a grid of at most 16 places an axis, on one device; None of unlike tensors."""
    if part.shape != seen.shape or part.dtype != seen.dtype or part.layout != torch.strided:
        return None
    grid = (slice(None), *(slice(None, None, -(-size // _PLACES)) for size in part.shape[1:]))
    return part.detach()[grid].to(seen.device), seen.detach()[grid]
