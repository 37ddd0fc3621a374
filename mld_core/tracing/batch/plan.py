"""Where the labels stand in a batch, settled by what the loss of a watched batch was compared with.

Labels come from the batch as the loader gave it. Where the loss's target is no part of it (mixup inside the
step, soft targets), the loss's target wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from mld_core.tracing.batch.batches import row_count
from mld_core.tracing.batch.labels import find_inputs, find_labels
from mld_core.tracing.paths import Path, at, spelled, tensors_at

_MOST_LABELS: Final = 1 << 16


@dataclass
class LabelPlan:
    """How labels are read.

    Attributes:
        path: where they stand in the batch; None: found by names and shapes.
        of_loss: in training they are the loss's own targets.
    """

    path: Path | None = None
    of_loss: bool = False

    def read(self, batch: Any) -> Any:
        """The labels in a framework's batch, as they are."""
        found = None if self.path is None else at(batch, self.path)
        return find_labels(batch) if found is None else found

    @property
    def nested(self) -> bool:
        """Whether the labels stand in a part of the batch that has parts."""
        return self.path is not None and len(self.path) > 1

    def inputs(self, batch: Any) -> Any:
        """The model's inputs in a framework's batch; of a batch of batches, those beside the labels.

        >>> LabelPlan(("labelled", 1)).inputs({"labelled": ["x", "y"], "unlabelled": ["u", "v"]})
        'x'
        """
        parts = batch.values() if isinstance(batch, Mapping) else batch
        several = self.nested and isinstance(parts, Iterable)
        if several and all(isinstance(part, (Mapping, list, tuple)) for part in parts):
            own = at(batch, self.path[:-1]) if self.path else None
            labels, beside = self.read(batch), [part for part in parts if part is not own]
            # Inputs may have a part of their own, too: beside the labels then is nothing of their size.
            if own is not None and _size(own, labels) >= max(_size(beside, labels), 1.0):
                batch = own
        return find_inputs(batch)

    def settle(self, batch: Any, labels: Any, target: Tensor) -> Any:
        """Finds what the loss was compared with in the batch; for a watched batch, it may wait for a device.

        Args:
            batch: as the loader gave it.
            labels: what was found by names and shapes.
            target: of the loss.

        Returns:
            The labels.
        """
        listed = as_tensor(labels)
        if listed is not None and agree(target, listed):
            self.path = next((path for path, value in tensors_at(batch) if value is labels), None)
            return labels
        for path, value in tensors_at(batch):
            if agree(target, value):
                self.path = path
                return value
        if labels is not None and row_count(labels) not in {None, len(target)}:
            return labels  # the loss saw other rows than the batch has
        self.of_loss = True
        return target

    def describe(self, batch: Any, labels: Any) -> str:
        """Where the labels are read, as the receipt says it."""
        if labels is None:
            return "none"
        if self.of_loss:
            return "the loss's own targets"
        path = self.path
        if path is None:
            path = next((path for path, value in tensors_at(batch) if value is labels), None)
        return "found in the batch" if path is None else "batch" + spelled(path)


def _size(value: Any, labels: Any) -> float:
    """Numbers a row of the largest part but the labels; 0 of one number a row, 1 of a text."""
    if value is labels:
        return 0.0
    if isinstance(value, Tensor):
        return value.numel() / max(len(value), 1) if value.ndim > 1 else 0.0
    parts = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    )
    return max((_size(part, labels) for part in parts), default=float(isinstance(value, str)))


def as_tensor(labels: Any) -> Tensor | None:
    """Labels as a step makes a tensor of them: of numbers, or of one per data sample; None of others.

    >>> as_tensor([3, 1]), as_tensor(["cat", "dog"])
    (tensor([3, 1]), None)
    """
    if isinstance(labels, Tensor):
        return labels
    if not isinstance(labels, (list, tuple, np.ndarray)) or not 0 < (row_count(labels) or 0) <= _MOST_LABELS:
        return None
    try:
        if isinstance(labels[0], np.ndarray) or isinstance(labels, np.ndarray):
            labels = np.asarray(labels)  # torch warns of lists of arrays
            labels = labels.astype(labels.dtype.newbyteorder("="))  # a copy: reversed and read-only ones, too
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return None


def reordered(target: Tensor, labels: Any) -> bool:
    """Whether the loss was compared with the very labels of the batch, in another order.

    >>> reordered(torch.tensor([2, 0, 1]), torch.tensor([0, 1, 2]))
    True
    """
    labels = as_tensor(labels)
    if labels is None or labels.numel() != target.numel() or labels.is_complex():
        return False
    own, seen = (part.detach().to(target.device).reshape(-1).double() for part in (labels, target))
    return not torch.equal(own, seen) and torch.equal(own.sort().values, seen.sort().values)


def answer_among(targets: Sequence[Tensor], labels: Any) -> Tensor | None:
    """Of several targets that which is the batch's labels; None where none is."""
    return next((target for target in targets if _are(target, labels)), None)


def mixes(targets: Sequence[Tensor], labels: Any, *, weighted: bool) -> bool:
    """Whether samples are compared with their labels and with those of others in the batch (mixup).

    Args:
        targets: int64 (n,), each; a teacher's answers are no labels in another order.
        labels: of the batch.
        weighted: the targets are all of one loss, so that the labels themselves must be among them.
    """
    others = [target for target in targets if not _are(target, labels)]
    known = not weighted or len(others) < len(targets)
    return known and any(reordered(target, labels) for target in others)


def _are(target: Tensor, labels: Any) -> bool:
    own = as_tensor(labels)
    return own is not None and agree(target, own)


def agree(target: Tensor, value: Tensor) -> bool:
    """Whether a tensor of the batch is what the loss was compared with: cast, one-hot, or as it is.

    >>> agree(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 0]))
    True
    """
    if value.ndim == 0 or value.shape[0] != target.shape[0] or value.is_complex():
        return False
    as_it_is = value.numel() == target.numel()
    indices = target.ndim == 2 and value.numel() == len(value) and not value.is_floating_point()
    if not (as_it_is or indices):
        return False
    value, target = value.to(target.device), target.detach()
    if as_it_is:
        return bool(torch.equal(value.reshape(-1).double(), target.reshape(-1).double()))
    hard = target.amax(1) == target.sum(1)
    return bool(hard.all()) and bool(torch.equal(target.argmax(1), value.reshape(-1).long()))
