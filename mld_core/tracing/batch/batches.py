"""One batch as an event or a call brought it, and what can be said of it without reading device memory."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

CONTENT_HASH: Final = "content_hash"  # the id source of ids that are the hash of the inputs


@dataclass
class Batch:
    """One batch as an event or a call brought it. `labels`, `ids` and `inputs` are references, read later.

    Attributes:
        n: its units, None where neither labels nor inputs tell.
        whole: the batch itself, as the loader gave it.
        answer: `outputs` is what the model returned, not what a step made of it.
        id_column: (ids as they stand in the batch, their source), where there are some.
        searched: whether ids were looked for.
        repeats: units at its end that the loader's sampler repeated to make ranks even.
        places: where in the data set the loader drew them, in an evaluation that ranks share.
    """

    inputs: Any = None
    labels: Any = None
    ids: Any = None
    id_source: str = CONTENT_HASH
    fields: Mapping[str, Any] = field(default_factory=dict)
    outputs: Any = None
    batch_idx: int = 0
    global_step: int | None = None
    images: Any = None
    n: int | None = None
    whole: Any = None
    answer: bool = False
    id_column: tuple[Any, str] | None = None
    searched: bool = False
    repeats: int = 0
    places: Any = None


def class_count(model: nn.Module) -> int | None:
    """The number of classes as the model states it (`num_classes`, `config.num_labels`, ...), or None."""
    for holder, name in (
        (model, "num_classes"),
        (model, "n_class"),
        (getattr(model, "config", None), "num_labels"),
        (getattr(model, "hparams", None), "num_classes"),
    ):
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 2:
            return value
    return None


def row_count(labels: Any) -> int | None:
    """Rows as the labels tell them, None where they do not."""
    if isinstance(labels, (Tensor, np.ndarray)):
        return int(labels.shape[0]) if labels.ndim else None
    return len(labels) if isinstance(labels, (list, tuple)) else None


def label_range(labels: Any) -> tuple[int, bool]:
    """(the largest class index, 1 where unknown; whether all labels are zeros and ones).

    Waits for the device: only for the first batches of a mode.

    >>> label_range(torch.tensor([0, 3])), label_range(torch.tensor([[1.0], [0.0]])), label_range(None)
    ((3, False), (1, True), (1, False))
    """
    if isinstance(labels, (Tensor, np.ndarray)) and labels.ndim == 2 and labels.shape[1] > 1:
        return int(labels.shape[1]) - 1, False
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        return 1, False
    if values.numel() == 0 or values.is_complex():
        return 1, False
    binary = bool(((values == 0) | (values == 1)).all())
    return 1 if values.is_floating_point() else int(values.max()), binary


def own_copy(value: Any) -> Any:
    """A tensor as it is (staging clones it), one tensor of a list of them, a copy of an array or a list."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, (list, tuple)):
        first = value[0] if value else None
        if isinstance(first, Tensor) and all(isinstance(v, Tensor) and v.shape == first.shape for v in value):
            return torch.stack([v.detach() for v in value])
        return list(value)
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors_in(item)]


def count_rows(batch: Any, labels: Any, inputs: Any) -> int | None:
    """Samples of a batch, by its labels, else its list of ``data_samples`` (OpenMMLab), else its inputs."""
    if (n := row_count(labels)) is not None:
        return n
    samples = batch.get("data_samples") if isinstance(batch, Mapping) else None
    return len(samples) if isinstance(samples, (list, tuple)) else rows_of(inputs)


def rows_of(inputs: Any) -> int | None:
    """The first axis of the first thing in `inputs` that has one."""
    shape = getattr(inputs, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    if isinstance(inputs, Mapping):
        inputs = list(inputs.values())
    if isinstance(inputs, (list, tuple)):
        for item in inputs:
            n = rows_of(item)
            if n is not None:
                return n
    return None


def takes_keywords(model: nn.Module, values: Mapping[Any, Any]) -> bool:
    """Whether the mapping's keys are argument names of the model's forward (a Hugging Face batch)."""
    if not all(isinstance(key, str) for key in values):
        return False
    forward = getattr(getattr(model, "_orig_mod", model), "forward", None)
    if forward is None:
        return False
    parameters = inspect.signature(forward).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return True
    return set(values) <= set(parameters)
