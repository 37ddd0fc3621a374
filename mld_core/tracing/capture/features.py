"""From whatever a layer hands over to one vector per unit.

A feature is pooled on the training thread (a mean over space or tokens, so that only (B, D) is kept) and,
where it is wider than `MAX_WIDTH`, projected on the writer thread. The projection is a Rademacher matrix
(Achlioptas 2003: entries +-1/sqrt(width) keep distances up to a small distortion) built from splitmix64
counters: it depends on nothing but the two widths, so it is the same in every process and draws from nobody's
random generator.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

MAX_WIDTH: Final = 512
_SEED: Final = 0x6D6C645F66656174  # "mld_feat"
_CHANNELS_LAST: Final = (nn.LayerNorm, nn.Linear, nn.Embedding, nn.MultiheadAttention)
_CHANNELS_FIRST: Final = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.GroupNorm,
)


def first_tensor(value: Any, n_rows: int) -> Tensor | None:
    """The first floating tensor with `n_rows` rows inside a tensor, tuple, list, mapping or model output."""
    if isinstance(value, Tensor):
        return value if value.ndim >= 2 and value.shape[0] == n_rows and value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for item in value:
            found = first_tensor(item, n_rows)
            if found is not None:
                return found
    return None


def channel_axis(shape: tuple[int, ...], module: nn.Module | None) -> int:
    """Which axis of a layer's tensor holds the channels.

    The layer's type decides where it can; (B, T, D) is tokens; a (B, h, h, D) with equal second and third
    axes and another last one is channels-last (Swin); anything else is (B, C, ...).

    >>> [channel_axis(shape, None) for shape in [(8, 512, 7, 7), (8, 7, 7, 768), (8, 197, 192)]]
    [1, 3, 2]
    """
    last = len(shape) - 1
    if last == 1 or isinstance(module, _CHANNELS_FIRST):
        return 1
    if last == 2 or isinstance(module, _CHANNELS_LAST):
        return last
    if last == 3 and shape[1] == shape[2] != shape[3]:
        return last
    return 1


def pool(tensor: Tensor, axis: int) -> Tensor:
    """(B, ...) with channels on `axis` to (B, D): the mean over every other axis, in float32 at least.

    A (B, D) tensor comes back as it is (no copy, no cast).
    """
    if tensor.ndim == 2:
        return tensor
    others = [i for i in range(1, tensor.ndim) if i != axis]
    dtype = torch.float32 if tensor.dtype in {torch.float16, torch.bfloat16} else None
    return tensor.detach().mean(dim=others, dtype=dtype)


def _splitmix64(count: int, seed: int) -> npt.NDArray[np.uint64]:
    """`count` outputs of splitmix64 (Steele, Lea, Flood 2014) as a function of their index."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@functools.lru_cache(maxsize=8)
def projection(width: int, out: int = MAX_WIDTH) -> npt.NDArray[np.float32]:
    """The fixed (width, out) sign matrix, entries +-1/sqrt(out).

    >>> projection(600).shape, bool(np.isclose((projection(600) ** 2).sum(1), 1).all())
    ((600, 512), True)
    """
    words = _splitmix64(-(-width * out // 64), _SEED)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[: width * out]
    signs = bits.reshape(width, out).astype(np.float32) * 2 - 1
    return np.ascontiguousarray(signs / np.float32(np.sqrt(out)))


def stored_width(width: int) -> int:
    """The width a feature of `width` columns is stored with."""
    return min(width, MAX_WIDTH)


def project(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(N, D) to (N, min(D, 512)); rows that are not finite stay not finite."""
    if features.shape[1] <= MAX_WIDTH:
        return features
    with np.errstate(invalid="ignore", over="ignore"):
        out: npt.NDArray[np.float32] = features @ projection(features.shape[1])
    return out


def describe(shape: tuple[int, ...], axis: int, *, side: str, layer: str) -> str:
    """The rule as run.json states it, e.g. "output of `layer4`, mean over axes 2, 3"."""
    text = f"{side} of `{layer}`"
    others = [i for i in range(1, len(shape)) if i != axis]
    if len(shape) > 2:
        text += ", mean over axes " + ", ".join(map(str, others))
    width = shape[axis]
    if width > MAX_WIDTH:
        text += f", projected from {width} to {MAX_WIDTH} (fixed sign matrix)"
    return text
