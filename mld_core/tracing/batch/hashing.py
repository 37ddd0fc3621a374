"""A 128-bit content hash per sample: of what lies on the host by xxh3, of what lies on a device by kernels.

`input_hash_of` walks the inputs; where all of them lie on the host the rows' bytes are hashed as
`mld_core.tracing.batch.hashing_host` says. Where some lie on a device it is multilinear hashing (Lemire &
Kaser 2014, "Strongly universal string hashing is fast") in 64-bit arithmetic that wraps around, which torch
and numpy do alike, so on a device it is a few plain integer kernels and no synchronisation:

1. A row's bytes are read as little-endian 32-bit words (sign-extended), the last one padded with zeros.
2. Every chunk of 4096 words gives two sums ``sum_i word_i * a_i`` with two tables of odd 64-bit constants.
3. The sums are mixed (xor-shift, odd multiplication) and summed with a constant per chunk number.
4. A tag of the row's dtype, shape and length and of the tensor's place in the batch is added; tensors are
   chained in order; two rounds of an avalanche finish.

The constants come from splitmix64 counters: no generator is drawn from. Temporaries take 8 MiB at most.
Both kinds are fingerprints against accidents, not against an adversary, each compared with its own only. A
tensor's strides do not matter, -0.0 and 0.0 differ (bytes do). `to_hex` is for the writer thread.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mld_core.tracing.batch import hashing_host
from mld_core.tracing.batch.batches import tensors_in
from mld_core.tracing.batch.hashing_numpy import (
    CHUNK,
    GOLDEN,
    KIND,
    MIX_SIGNED,
    SECOND_LEVEL,
    SEEDS,
    avalanche,
    combine,
    describe,
    entwine,
    hash_rows,
    hex_digits,
    signed,
    table_size,
    tag,
)

Array: TypeAlias = Tensor | npt.NDArray[Any]
One: TypeAlias = Callable[[Array, int, str], Any]  # hashes one value: (value, rows, place) -> (n, 2)

_MASK = "attention_mask"
_DEVICE_BLOCK = 1 << 20  # words per step on a device: its 64-bit products take 8 MiB at most


@lru_cache(maxsize=32)
def _table(start: int, size: int, device: str) -> Tensor:
    """Return (2, size) odd 64-bit constants from number `start` on, made on the device: no copy."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
    ):  # a cached inference tensor could not be used elsewhere
        counter = torch.arange(start + 1, start + size + 1, dtype=torch.int64, device=device)
        return torch.stack([avalanche(counter * signed(GOLDEN) + signed(seed)) | 1 for seed in SEEDS])


def _describe(value: Array, place: str, *, width: bool = True) -> str:
    dtype = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else value.dtype.name
    return describe(dtype, tuple(value.shape) if width else (), place)


def _bytes_torch(value: Tensor, n: int) -> Tensor:
    """View a tensor as (n, bytes per row); copies only what is not contiguous."""
    value = value.detach().resolve_conj().resolve_neg().contiguous()
    flat = (torch.view_as_real(value) if value.is_complex() else value).reshape(-1)
    if flat.numel() == 1 and flat.stride(0) != 1:  # counts as contiguous, yet cannot be viewed as bytes
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).reshape(n, -1)


def _words_torch(value: Tensor, n: int) -> Tensor:
    """Return the rows' bytes as (n, W) int32 words on the tensor's device."""
    raw = _bytes_torch(value, n)
    if not raw.shape[1]:
        return raw.to(torch.int32)
    missing = -raw.shape[1] % 4
    if missing:
        raw = torch.nn.functional.pad(raw, (0, missing))
    elif raw.storage_offset() % 4:
        raw = raw.clone()  # a view as words must start at a word
    return raw.view(torch.int32)


def _sums_torch(words: Tensor) -> Tensor:
    """Return (n, C, 2) sums per chunk by elementwise kernels (devices have no integer matrix product)."""
    n, width = words.shape
    table = _table(0, CHUNK, str(words.device))
    whole = width // CHUNK
    parts = []
    step = max(1, _DEVICE_BLOCK // max(n * CHUNK, 1))
    for start in range(0, whole, step):
        stop = min(start + step, whole)
        body = words[:, start * CHUNK : stop * CHUNK].reshape(n, stop - start, CHUNK)
        parts.append(torch.stack([(body * table[k]).sum(-1) for k in (0, 1)], dim=-1))
    if width > whole * CHUNK:
        tail = words[:, whole * CHUNK :]
        sums = [(tail * table[k, : tail.shape[1]]).sum(-1) for k in (0, 1)]
        parts.append(torch.stack(sums, dim=-1).unsqueeze(1))
    if not parts:
        return words.new_zeros((n, 0, 2), dtype=torch.int64)
    return torch.cat(parts, dim=1)


def _multilinear(value: Array, n: int, place: str, *, width: bool = True) -> Any:
    """Return the (n, 2) device hash of one value, of its own kind and on its own device.

    `width`: False where zeros behind a row are no part of it.
    """
    if n == 0:
        return (
            value.new_zeros((0, 2), dtype=torch.int64)
            if isinstance(value, Tensor)
            else np.zeros((0, 2), np.int64)
        )
    text = _describe(value, place, width=width)
    with torch.no_grad():
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return _hash_on_device(value, n, tag(text))
        # Host tensors take numpy's way: 20 times faster than torch's integer kernels.
        hashes = hash_rows(_bytes_torch(value, n).numpy() if isinstance(value, Tensor) else value, n, text)
        return torch.from_numpy(hashes) if isinstance(value, Tensor) else hashes


def _hash_on_device(value: Tensor, n: int, text_tag: tuple[int, int]) -> Tensor:
    """Return the (n, 2) hash by torch kernels alone; the same values as on the host."""
    rows = max(1, _DEVICE_BLOCK // max(-(-value.numel() * value.element_size() // (4 * n)), 1))
    blocks = [value[start : start + rows] for start in range(0, n, rows)]
    sums = torch.cat([_sums_torch(_words_torch(block, len(block))) for block in blocks])
    constants = _table(SECOND_LEVEL, table_size(sums.shape[1]), str(value.device))[:, : sums.shape[1]].T
    state = combine(sums, constants)
    return torch.stack([avalanche(state[:, k] + text_tag[k]) for k in (0, 1)], dim=1)


def _xxh3(value: Array, n: int, place: str, *, aside: bool = False) -> npt.NDArray[np.int64]:
    """Return the (n, 2) hash of one value on the host."""
    with torch.no_grad():
        raw = (
            _bytes_torch(value, n).numpy() if isinstance(value, Tensor) else hashing_host.row_bytes(value, n)
        )
    return hashing_host.hash_rows(raw, _describe(value, place), aside=aside)


def row_hash(values: Sequence[Array], n: int) -> Any:
    """The device hash of each row over all `values`: bytes, dtype, shape and order.

    Args:
        values: tensors or arrays with leading dimension `n`, of any dtype numpy or torch knows, any strides.
        n: rows.

    Returns:
        int64 (n, 2): an array when all values are arrays, else a tensor, on the device of the first value
        that is on one. No synchronisation happens for device tensors.

    Raises:
        ValueError: a value has no leading dimension `n`.

    Examples:
        >>> a = np.arange(6, dtype=np.float32).reshape(2, 3)
        >>> bool((row_hash([a], 2) == row_hash([torch.from_numpy(a)], 2).numpy()).all())
        True
    """
    for value in values:
        if value.ndim == 0 or value.shape[0] != n:
            raise ValueError(f"a value of shape {tuple(value.shape)} has no leading dimension n={n}")
    if not values:
        return np.zeros((n, 2), dtype=np.int64)
    return _join([_multilinear(value, n, str(position)) for position, value in enumerate(values)])


def _join(parts: list[Any]) -> Any:
    """Chain the (n, 2) hashes of several tensors, in order; device ones pull the others to their device."""
    parts = _alike(parts)
    with torch.no_grad():
        state = parts[0]
        for part in parts[1:]:
            state = avalanche(state * MIX_SIGNED[2] + part)
        return _entwine(state)


def _alike(parts: list[Any]) -> list[Any]:
    """Make all parts arrays, or all tensors on one device (8 bytes a row go to a device without waiting)."""
    if not any(isinstance(part, Tensor) for part in parts):
        return parts
    tensors = [part if isinstance(part, Tensor) else torch.from_numpy(part) for part in parts]
    device = next((part.device for part in tensors if part.device.type != "cpu"), torch.device("cpu"))
    return [part if part.device == device else part.to(device, non_blocking=True) for part in tensors]


def _entwine(state: Any) -> Any:
    """Let the two halves of a hash meet."""
    halves = entwine(state)
    return torch.stack(halves, dim=1) if isinstance(state, Tensor) else np.stack(halves, axis=1)


def to_hex(hashes: Array) -> list[str]:
    """Write hashes as 32 hexadecimal characters each.

    For the writer thread: a device tensor is copied to the host here.

    Args:
        hashes: int64 (n, 2) of `row_hash`.

    Examples:
        >>> to_hex(np.array([[1, -1]]))
        ['0000000000000001ffffffffffffffff']
    """
    return hex_digits(hashes.cpu().numpy() if isinstance(hashes, Tensor) else np.asarray(hashes))


class _NoRowsError(Exception):
    """A part of the inputs cannot be divided among the samples."""


def on_host(batch_inputs: Any) -> bool:
    """Whether no tensor of the inputs lies on a device: then the host hashes them."""
    return all(tensor.device.type == "cpu" for tensor in tensors_in(batch_inputs))


def hash_kind(batch_inputs: Any) -> str:
    """How `input_hash_of` hashes these inputs; hashes compare within one kind only."""
    return hashing_host.KIND if on_host(batch_inputs) else KIND


def input_hash_of(batch_inputs: Any, n: int, *, aside: bool = False) -> Any | None:
    """Hash each sample's content over every modality of the inputs.

    Tensors with leading dimension `n` are hashed by row; lists of `n` things (tensors of different
    shapes, strings, images, mappings) sample by sample; mappings and tuples are walked, keys sorted. What
    all samples share is left out (numbers, single strings, tensors of no or one row): a sample's hash
    must not depend on its batch. For the same reason token sequences beside an `attention_mask` are hashed
    without their padding.

    Nothing waits for a device. What lies on the host takes a pass over the bytes.

    Args:
        batch_inputs: what `mld_core.tracing.batch.labels.find_inputs` gave.
        n: samples in the batch.
        aside: on a thread of its own, which lets others run between the rows.

    Returns:
        int64 (n, 2): an array where all lies on the host, else a tensor on the device. None where some part
        cannot be divided among the samples: no hash is better than one of half the content.

    Examples:
        >>> input_hash_of({"image": torch.zeros(4, 3, 8, 8), "text": ["a", "b", "c", "d"]}, 4).shape
        (4, 2)
    """
    if n == 0:
        return None
    host = on_host(batch_inputs)
    one: One = partial(_xxh3, aside=aside) if host else _multilinear
    try:
        parts = list(_row_parts(batch_inputs, n, "", one))
    except _NoRowsError:
        return None
    return (hashing_host.chain(parts) if host else _join(parts)) if parts else None


def _row_parts(value: Any, n: int, place: str, one: One) -> Iterator[Any]:
    """Yield an (n, 2) hash for everything that belongs to single samples."""
    if isinstance(value, (Tensor, np.ndarray)) and not _is_object_array(value):
        if value.ndim and value.shape[0] == n:
            yield one(value, n, place)
        elif value.ndim and value.shape[0] != 1:
            raise _NoRowsError(f"{place}: shape {tuple(value.shape)} for {n} samples")
    elif isinstance(value, Mapping):
        mask: Any = value.get(_MASK)
        padded = getattr(mask, "ndim", 0) == 2 and len(mask) == n
        for key in sorted(value, key=str):
            part = value[key]
            if padded and getattr(part, "shape", None) == mask.shape:
                if key != _MASK:
                    tokens = _tokens if one is _multilinear else _tokens_on_host
                    yield from tokens(part, mask, n, f"{place}/{key}")
            else:
                yield from _row_parts(part, n, f"{place}/{key}", one)
    elif isinstance(value, (list, tuple, np.ndarray)):
        items = list(value)
        if len(items) == n and not _is_columns(items, n, value):
            yield _sample_hashes(items, place, one)
        else:
            for position, item in enumerate(items):
                yield from _row_parts(item, n, f"{place}/{position}", one)


def _tokens_on_host(value: Any, mask: Any, n: int, place: str) -> Iterator[Any]:  # noqa: ARG001 - as `_tokens`
    """Yield the hash of token sequences without their padding, on either side: by batch it is another."""
    kept = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask) != 0
    tokens = np.ascontiguousarray(np.asarray(value.detach() if isinstance(value, Tensor) else value)[kept])
    bounds = np.zeros(len(kept) + 1, np.int64)
    np.cumsum(kept.sum(1) * tokens.dtype.itemsize, out=bounds[1:])
    text = _describe(value, place, width=False)
    yield hashing_host.hash_slices(hashing_host.row_bytes(tokens, 1).reshape(-1), bounds.tolist(), text)


def _tokens(value: Any, mask: Any, n: int, place: str) -> Iterator[Any]:
    """The same on a device, where no value is waited for.

    The tokens are moved to the front and what is behind them is zeroed, which adds nothing to a sum; how many
    there are is hashed beside them.
    """
    with torch.no_grad():
        kept: Any = mask != 0
        moved: Any
        lengths: Any
        if isinstance(kept, Tensor) and not isinstance(value, Tensor):
            kept = kept.cpu().numpy()
        if isinstance(value, Tensor):
            kept = torch.as_tensor(kept, device=value.device)
            moved = value.detach().gather(1, (~kept).to(torch.uint8).argsort(dim=1, stable=True))
            lengths = kept.sum(1, keepdim=True)
            inside = torch.arange(value.shape[1], device=value.device) < lengths
            moved = torch.where(inside, moved, moved.new_zeros(()))
        else:
            moved = np.take_along_axis(value, np.argsort(~kept, axis=1, kind="stable"), axis=1)
            lengths = kept.sum(1, keepdims=True)
            moved = np.where(np.arange(value.shape[1]) < lengths, moved, 0).astype(value.dtype)
    yield _multilinear(lengths, n, f"{place}/tokens")
    yield _multilinear(moved, n, place, width=False)


def _is_object_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "OUS"


def _is_columns(items: list[Any], n: int, value: Any) -> bool:
    """Tell whether a list as long as the batch holds columns (one per modality) rather than samples.

    Samples are of one kind. Where every item is a tensor of `n` rows there is still a doubt:
    three-dimensional ones are then taken for images (C, H, W) of a detection batch, everything else for
    columns.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return True
    arrays = [isinstance(item, (Tensor, np.ndarray)) for item in items]
    if any(arrays) != all(arrays) or len({isinstance(item, Mapping) for item in items}) > 1:
        return True
    if not all(arrays) or any(item.ndim == 0 or item.shape[0] != n for item in items):
        return False
    return not all(item.ndim == 3 for item in items)


def _sample_hashes(items: list[Any], place: str, one: One) -> Array:
    """Return (n, 2) hashes of single samples: what each holds, walked whole."""
    groups: dict[Any, list[int]] = {}
    for position, item in enumerate(items):
        plain = isinstance(item, Tensor) or (isinstance(item, np.ndarray) and not _is_object_array(item))
        key = (type(item), item.shape, item.dtype, str(getattr(item, "device", ""))) if plain else position
        groups.setdefault(key, []).append(position)
    rows: list[Any] = [None] * len(items)
    for positions in groups.values():
        for position, row in zip(
            positions, _group_hashes([items[p] for p in positions], place, one), strict=True
        ):
            rows[position] = row
    alike = _alike(rows)
    return torch.cat(alike) if isinstance(alike[0], Tensor) else np.concatenate(alike)


def _group_hashes(items: list[Any], place: str, one: One) -> list[Any]:
    """Return one (1, 2) hash per item of one shape and dtype; stacked: small kernels cost their launch."""
    if len(items) > 1 and one is _multilinear:
        stacked = torch.stack(items) if isinstance(items[0], Tensor) else np.stack(items)
        hashes = one(stacked, len(items), place)
        return [hashes[k : k + 1] for k in range(len(items))]
    if len(items) > 1:
        return [one(item[None], 1, place) for item in items]
    parts = [one(value, 1, name) for name, value in _sample_parts(items[0], place)]
    return parts if len(parts) == 1 else [_join(parts) if one is _multilinear else hashing_host.chain(parts)]


def _sample_parts(value: Any, place: str) -> Iterator[tuple[str, Array]]:
    """Yield (place, value with leading dimension 1) for everything one sample holds."""
    if isinstance(value, Tensor):
        yield place, value.unsqueeze(0)
    elif isinstance(value, Mapping):
        yield f"{place}/n", np.array([len(value)])
        for key in sorted(value, key=str):
            yield from _sample_parts(value[key], f"{place}/{key}")
    elif isinstance(value, (list, tuple)):
        yield f"{place}/n", np.array([len(value)])
        for position, item in enumerate(value):
            yield from _sample_parts(item, f"{place}/{position}")
    elif isinstance(value, (str, bytes)):
        raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        yield f"{place}/{type(value).__name__}", np.frombuffer(raw, dtype=np.uint8)[None]
    elif value is None:
        yield f"{place}/none", np.zeros((1, 1), dtype=np.uint8)
    elif isinstance(value, (np.ndarray, np.generic, bool, int, float, complex)) or hasattr(
        value, "__array_interface__"
    ):
        array = np.asarray(value)
        if array.dtype.kind in "OUS":
            yield from _sample_parts(array.tolist(), place)
        else:
            yield place, array[None]
    else:
        raise _NoRowsError(f"{place}: a {type(value).__name__} has no bytes to hash")
