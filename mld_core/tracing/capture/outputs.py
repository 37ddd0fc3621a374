"""What a classifier returned: the logits in it, and whether they are probabilities.

`find_logits` runs on the training thread and looks at types and shapes only (one device comparison for
the one case where shapes cannot tell, never a synchronisation). The functions that look at values say so:
they are for the writer thread.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, npt.NDArray[Any])

# In order of trust. "logits" is Hugging Face, torchvision's train outputs and most step outputs.
_KEYS = (
    "logits",
    "cls_logits",
    "class_logits",
    "preds",
    "pred",
    "predictions",
    "y_hat",
    "outputs",
    "output",
    "out",
)
_MAX_DEPTH = 3


def local_part(tensor: Tensor) -> Tensor:
    """The detached tensor; of a distributed one (DTensor) the rows that this rank holds.

    Raises:
        ValueError: this rank holds no whole rows, and to fetch the rest all ranks would have to wait.
    """
    if type(tensor) is not Tensor and hasattr(tensor, "to_local"):
        distributed: Any = tensor
        for placement in distributed.placements:
            if not (placement.is_replicate() or placement.is_shard(0)):
                raise ValueError(
                    f"an output of shape {tuple(tensor.shape)} is distributed as {placement}: no rank holds "
                    "whole rows of it. Return it whole from the parallel plan (output_layouts=Replicate())"
                )
        tensor = distributed.to_local()
    return tensor.detach()


def find_logits(output: Any, n_rows: int | None = None, n_class: int | None = None) -> Tensor | None:
    """Find the class logits in what a model (or a step) returned.

    It understands a tensor; a tuple or namedtuple (torchvision ``InceptionOutputs`` and
    ``GoogLeNetOutputs``, timm's distilled ``(cls, dist)``, Hugging Face tuples with the loss first,
    Ultralytics ``(probs, logits)``); a mapping, dataclass or object with ``logits`` or a similar name;
    these inside one another. A map of one by one pixel is squeezed.

    For the training thread: no synchronisation, nothing is copied to the host.

    Args:
        output: what was returned.
        n_rows: rows of the batch, where known; other tensors are passed over.
        n_class: number of classes, where known; tensors of another width are passed over.

    Returns:
        A detached float tensor (n, K) on its own device, or None.

    Examples:
        >>> find_logits((torch.tensor(0.5), torch.zeros(4, 10))).shape
        torch.Size([4, 10])
        >>> find_logits({"logits": torch.zeros(4, 10, 1, 1)}).shape
        torch.Size([4, 10])
        >>> find_logits(torch.zeros(4, 10, 32, 32)) is None
        True
    """
    found = [tensor for tensor in (as_rows(leaf) for leaf in leaves(output)) if tensor is not None]
    if n_rows is not None:
        found = [tensor for tensor in found if tensor.shape[0] == n_rows]
    if n_class is not None:
        found = [tensor for tensor in found if tensor.shape[1] == n_class]
    if not found:
        return None
    if isinstance(output, tuple) and len(found) == 2 and found[0].shape == found[1].shape:
        return _prefer_logits(found[0], found[1])
    return found[0]


def find_main_tensor(output: Any) -> Tensor | None:
    """Find the first floating tensor with a batch dimension, whatever it means.

    For the training thread. `find_logits` says None for a segmentation map; its shape still tells what
    the task is.
    """
    for leaf in leaves(output):
        if leaf.is_floating_point() and leaf.ndim > 0:
            return leaf.detach()
    return None


def looks_like_probabilities(logits: Tensor | npt.NDArray[Any], tol: float = 1e-3) -> bool:
    """Tell whether every row is a distribution: values in [0, 1] that sum to 1 within `tol`.

    For the writer thread (looks at values; pass a host tensor or an array). Log-probabilities are logits
    (they are unnormalised log-odds up to a constant), so they give False.

    Args:
        logits: (n, K), float of any width.
        tol: allowed distance of a row's sum from 1.

    Returns:
        False also for no rows, for one column and for values that are not finite.

    Examples:
        >>> looks_like_probabilities(np.array([[0.2, 0.8], [1.0, 0.0]]))
        True
        >>> looks_like_probabilities(np.log([[0.2, 0.8]]))
        False
    """
    values = logits.detach().float().numpy() if isinstance(logits, Tensor) else np.asarray(logits)
    if values.ndim != 2 or values.shape[0] == 0 or values.shape[1] < 2:
        return False
    # A NaN fails the comparison; sums are taken in float64, float16 sums would drift with the width.
    inside = bool(((values >= 0) & (values <= 1 + tol)).all())
    return inside and bool((np.abs(values.sum(axis=1, dtype=np.float64) - 1.0) < tol).all())


def probabilities_to_logits(p: Array) -> Array:
    """Return ``log(clip(p))``: logits whose softmax is `p`.

    For the writer thread (also safe on a device: no synchronisation).

    Args:
        p: (n, K) probabilities.

    Returns:
        float32 of the same kind and shape; zeros become log of the smallest normal float32 (-87.3), never
        -inf; NaN stays NaN.

    Examples:
        >>> probabilities_to_logits(np.array([[1.0, 0.0]])).round(1)
        array([[  0. , -87.3]], dtype=float32)
    """
    tiny = float(np.finfo(np.float32).tiny)
    if isinstance(p, Tensor):
        return p.detach().float().clamp(tiny, 1.0).log()
    return np.log(np.clip(np.asarray(p, dtype=np.float32), np.float32(tiny), np.float32(1.0)))


def sigmoid_to_logits(p: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Logits whose sigmoid is `p`, (n, K) float32; finite also for 0 and 1, NaN stays NaN.

    >>> sigmoid_to_logits(np.array([[0.5, 1.0]])).round().tolist()
    [[0.0, 17.0]]
    """
    least, most = np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).epsneg
    wide = np.clip(np.asarray(p, np.float64), least, most)
    return np.asarray(np.log(wide) - np.log1p(-wide), np.float32)


def as_rows(tensor: Tensor) -> Tensor | None:
    """Return (n, K) of a tensor that can be logits, else None."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        return None
    if tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor.detach().flatten(1)
    return tensor.detach() if tensor.ndim == 2 else None


def _prefer_logits(first: Tensor, second: Tensor) -> Tensor:
    """Take the logits of two tensors of one shape: the second only where the first is its softmax.

    timm's distilled models give (cls, dist), both logits; Ultralytics' gives (probs, logits). On a device
    the choice is made there, without waiting for it.
    """
    with torch.no_grad():
        distance = (second.float().softmax(1) - first.float()).abs()
        is_softmax = (distance < 1e-2).all()  # bfloat16 keeps 8 bits
        if first.device.type == "cpu":
            return second if bool(is_softmax) else first
        return torch.where(is_softmax, second, first)


def leaves(output: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield the tensors that may be logits, most trusted first."""
    if isinstance(output, Tensor):
        yield output
    elif output is None or depth > _MAX_DEPTH or isinstance(output, (str, bytes, int, float)):
        return
    elif isinstance(output, Mapping):
        named = [output[key] for key in _KEYS if key in output]
        rest = [value for key, value in output.items() if key not in _KEYS and not _is_side_output(key)]
        for value in named or rest:
            yield from leaves(value, depth + 1)
    elif isinstance(output, tuple) and not hasattr(output, "_fields"):
        for value in output:
            yield from leaves(value, depth + 1)
    elif isinstance(output, list):
        scores = scores_of(output)
        if scores is not None:
            yield scores
            return
        for value in output[:8]:
            yield from leaves(value, depth + 1)
    else:
        for value in _attributes(output):
            yield from leaves(value, depth + 1)


def scores_of(samples: list[Any]) -> Tensor | None:
    """The scores (n, K) of mmpretrain's data samples (``pred_score`` of each), or None."""
    scores = [getattr(sample, "pred_score", None) for sample in samples]
    found = [score for score in scores if isinstance(score, Tensor)]
    if not found or len(found) < len(scores) or len({score.shape for score in found}) > 1:
        return None
    return torch.stack(found)


def _attributes(output: Any) -> list[Any]:
    """Return the parts of a namedtuple, dataclass or other object that may hold logits."""
    named = [getattr(output, key) for key in _KEYS if getattr(output, key, None) is not None]
    if named:
        return named[:1] if hasattr(output, "logits") else named
    if isinstance(output, tuple):
        return list(output)
    if dataclasses.is_dataclass(output):
        return [getattr(output, field.name) for field in dataclasses.fields(output)]
    return []


def _is_side_output(key: Any) -> bool:
    """Tell whether a mapping's entry is surely not the model's answer."""
    name = str(key).lower()
    return any(
        part in name for part in ("loss", "label", "target", "hidden", "attention", "feature", "embed")
    )
