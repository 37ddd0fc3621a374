"""Folds and random-looking numbers from hashes: no generator, the same on every machine."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
SALTS = ("0", "1", "2")

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def group_codes(keys: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The distinct keys, and (N,) the place of each unit's key among them."""
    distinct, where = np.unique(keys, return_inverse=True)
    return distinct, where.reshape(-1).astype(np.int64)


def key_hashes(keys: NDArray[Any], salt: str) -> NDArray[np.uint64]:
    """First 64 bits of SHA-256(salt + ":" + key) of each key, big-endian.

    Args:
        keys: (N,) texts or integers; an integer is written in decimal.
        salt: Any text.

    Example:
        >>> int(key_hashes(np.array(["a"]), "0")[0]) >> 32 == int(sha256(b"0:a").hexdigest()[:8], 16)
        True
    """
    head = f"{salt}:"
    digests = b"".join(sha256(f"{head}{key}".encode()).digest()[:8] for key in keys.tolist())
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def folds_of(hashes: NDArray[np.uint64], folds: int = FOLDS) -> NDArray[np.int8]:
    """Fold of each hash: its first 8 hex digits as an integer, modulo the number of folds."""
    return ((hashes >> np.uint64(32)) % np.uint64(folds)).astype(np.int8)


def assign_folds(keys: NDArray[Any], salt: str, folds: int = FOLDS) -> NDArray[np.int8]:
    """Fold of every unit from its group key: SHA-256(salt + ":" + key)[:8 hex digits] mod `folds`.

    Args:
        keys: (N,) group keys, texts or integers; equal keys share a fold.
        salt: "0", "1" or "2" for the three repeats.
        folds: How many.

    Returns:
        (N,) int8 fold numbers.

    Example:
        >>> assign_folds(np.array(["a", "b", "a"]), "0").tolist()
        [2, 1, 2]
    """
    distinct, where = group_codes(keys)
    return folds_of(key_hashes(distinct, salt), folds)[where]


def mix(values: NDArray[np.uint64], stream: int) -> NDArray[np.uint64]:
    """Splitmix64 of each value in stream `stream` (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        state = values + np.uint64((stream * 0xD1342543DE82EF95 + 1) % 2**64) + _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        return np.asarray(state ^ (state >> np.uint64(31)), dtype=np.uint64)


def hash_uniform(values: NDArray[np.uint64], stream: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each value, fixed by the value and the stream."""
    return np.asarray((mix(values, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def hash_order(count: int, stream: int) -> NDArray[np.int64]:
    """The numbers 0 to count - 1 in an order that looks random and never changes.

    Example:
        >>> sorted(hash_order(4, 0).tolist())
        [0, 1, 2, 3]
    """
    # No two are alike: a sort need not be stable.
    return np.argsort(mix(np.arange(count, dtype=np.uint64), stream))
