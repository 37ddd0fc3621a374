"""The device hash of `mld_core.tracing.batch.hashing`, which says how it is made, in NumPy alone.

For the parts of a batch that lie on the host beside parts on a device.
"""

import hashlib
import sys
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

KIND = "multilinear-2"
"""Stored with a pass; it changes when the same input gets another hash: hashes compare within one kind."""
CHUNK = 4096
GOLDEN = 0x9E3779B97F4A7C15
SEEDS = (0x243F6A8885A308D3, 0x13198A2E03707344)  # digits of pi
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)


def signed(value: int) -> int:
    """Return the 64-bit pattern of `value` as a signed integer, as torch and numpy int64 hold it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


MIX_SIGNED = tuple(signed(constant) for constant in _MIX)


def shift_right(x: Any, bits: int) -> Any:
    """Shift int64 right filling with zeros (both libraries' own shift keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def avalanche(x: Any) -> Any:
    """Mix 64-bit values so that every input bit reaches every output bit (splitmix64's finaliser)."""
    x = (x ^ shift_right(x, 30)) * MIX_SIGNED[0]
    x = (x ^ shift_right(x, 27)) * MIX_SIGNED[1]
    return x ^ shift_right(x, 31)


@lru_cache(maxsize=32)
def _table(start: int, size: int) -> npt.NDArray[np.int64]:
    """Return (2, size) odd 64-bit constants from number `start` on."""
    counter: Any = np.arange(start + 1, start + size + 1, dtype=np.int64)
    return np.stack([avalanche(counter * signed(GOLDEN) + signed(seed)) | 1 for seed in SEEDS])


@lru_cache(maxsize=4096)
def tag(text: str) -> tuple[int, int]:
    """Return two 64-bit integers that stand for dtype, shape and place."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return (
        int.from_bytes(digest[:8], "little", signed=True),
        int.from_bytes(digest[8:], "little", signed=True),
    )


def describe(dtype: str, shape: tuple[int, ...], place: str) -> str:
    """What a row is, beside its bytes: where it stands, its type, its shape without the batch."""
    return f"{place}|{dtype}|{tuple(int(size) for size in shape[1:])}"


def _words(value: npt.NDArray[Any], n: int) -> npt.NDArray[np.int32]:
    """Return the rows' bytes as (n, W) int32 words."""
    if value.dtype.byteorder == ">" or (sys.byteorder == "big" and value.dtype.byteorder != "<"):
        value = value.astype(value.dtype.newbyteorder("<"))
    flat = np.ascontiguousarray(value).reshape(n, -1)
    raw = flat.view(np.uint8).reshape(n, flat.shape[1] * flat.dtype.itemsize)
    missing = -raw.shape[1] % 4
    if missing:
        raw = np.concatenate([raw, np.zeros((n, missing), dtype=np.uint8)], axis=1)
    return raw.view("<i4")


def _sums(words: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return (n, C, 2) sums per chunk. einsum casts in cache-sized buffers and releases the GIL."""
    n, width = words.shape
    table = _table(0, CHUNK)
    whole = width // CHUNK
    sums = np.zeros((n, -(-width // CHUNK), 2), dtype=np.int64)
    if whole:
        body = words[:, : whole * CHUNK].reshape(n, whole, CHUNK)
        sums[:, :whole] = np.einsum("ncw,kw->nck", body, table)
    if width > whole * CHUNK:
        tail = words[:, whole * CHUNK :]
        sums[:, whole] = np.einsum("nw,kw->nk", tail, table[:, : tail.shape[1]])
    return sums


def table_size(n_chunks: int) -> int:
    """Constants of the second level, cached by the next power of two."""
    return 1 << max(n_chunks - 1, 15).bit_length()


SECOND_LEVEL = 1 << 40  # number of the first of them


def combine(sums: Any, constants: Any) -> Any:
    """Mix and sum the chunks: (n, C, 2) with constants (C, 2) -> (n, 2)."""
    mixed = (sums ^ shift_right(sums, 32)) * constants
    return (mixed ^ shift_right(mixed, 29)).sum(1)


def hash_rows(value: npt.NDArray[Any], n: int, text: str) -> npt.NDArray[np.int64]:
    """Return the (n, 2) hash of one array whose rows are described by `text`."""
    sums = _sums(_words(value, n))
    constants = _table(SECOND_LEVEL, table_size(sums.shape[1]))[:, : sums.shape[1]].T
    hashes: npt.NDArray[np.int64] = avalanche(combine(sums, constants) + np.array(tag(text), dtype=np.int64))
    return hashes


def entwine(state: Any) -> tuple[Any, Any]:
    """Let the two halves (n, 2) of a hash meet."""
    low, high = state[:, 0], state[:, 1]
    low = avalanche(low + shift_right(high, 32) * MIX_SIGNED[3])
    return low, avalanche(high + low * MIX_SIGNED[2])


def hex_digits(hashes: npt.NDArray[np.int64]) -> list[str]:
    """Write hashes (n, 2) as 32 hexadecimal characters each."""
    text = np.ascontiguousarray(hashes, dtype=np.int64).astype(">i8").tobytes().hex()
    return [text[start : start + 32] for start in range(0, 32 * hashes.shape[0], 32)]
