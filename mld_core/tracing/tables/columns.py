"""Columns that the tables of every task share; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.records.format.schema import (
    INDEX_SOURCES,
    LOADER_PLACE,
    REPEATED,
    AdditionalField,
    additional_column,
)
from mld_core.records.format.vectors import cast_vectors, from_numpy, nonfinite_rows
from mld_core.tracing.batch.hashing_numpy import hex_digits
from mld_core.tracing.guard import Guard

Columns = dict[str, pa.Array]


@dataclass(kw_only=True)
class PassState:
    """What all batches of a pass share; `counts` is filled on the writer thread and sealed with the pass.

    `hash_kind`: how the inputs are hashed; "" where the hash is not stored.
    """

    rank: int
    mode: str
    store_hash: bool
    vector_dtype: str
    fields: tuple[AdditionalField, ...]
    guard: Guard
    media: pa.Schema | None = None
    hash_kind: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, times: int = 1) -> None:
        """Adds to a counter of the pass."""
        if times:
            self.counts[what] = self.counts.get(what, 0) + times


def own_columns(units: npt.NDArray[np.int64], rank: int, ids: Sequence[str]) -> Columns:
    """The key columns of rows that belong to these units."""
    return {
        "unit": pa.array(units.astype(np.int64)),
        "rank_": pa.array(np.full(len(units), rank, np.int32)),
        "input_id": pa.array(ids, pa.string()),
    }


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the rows of one batch came from.

    Attributes:
        n: rows.
        id_source, batch_idx, global_step: as in `samples`.
        hashes: the content's hash of each row, as text or as (n, 2) int64; None where there is none.
        user: the user's own columns by name, see `user_columns`.
        repeats: rows at the end that the loader's sampler repeated.
        places: where in the data set the loader drew the rows; not stored where that is their id.
    """

    n: int
    id_source: str
    batch_idx: int
    global_step: int | None
    hashes: list[str] | npt.NDArray[np.int64] | None
    user: Columns
    repeats: int = 0
    places: Sequence[str] | None = None


def user_columns(context: PassState, given: Mapping[str, Any], n: int) -> Columns:
    """The user's own columns of one batch.

    Raises:
        ValueError: values that do not fit their type, or another number of them than rows.
    """
    return {spec.name: additional_column(spec, given.get(spec.name), n) for spec in context.fields}


def sample_columns(context: PassState, own: Columns, batches: Sequence[Origin]) -> Columns:
    """What `samples` of every task say of neighbouring batches: where rows came from, and the user's own."""
    counts = [batch.n for batch in batches]
    sources = list(dict.fromkeys(batch.id_source for batch in batches))
    codes = np.repeat([sources.index(batch.id_source) for batch in batches], counts).astype(np.int32)
    columns = {
        **own,
        "id_source": pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(sources, pa.string())),
        "batch_idx": pa.array(np.repeat([batch.batch_idx for batch in batches], counts).astype(np.int32)),
        "row": pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in counts])),
        "mode": constant(context.mode, sum(counts)),
    }
    unknown = np.repeat([batch.global_step is None for batch in batches], counts)
    if not unknown.all():
        steps = np.repeat([batch.global_step or 0 for batch in batches], counts)
        columns["global_step"] = pa.array(steps.astype(np.int64), mask=unknown if unknown.any() else None)
    if context.store_hash and any(batch.hashes is not None for batch in batches):
        columns["input_hash"] = _hash_column(batches)
    if any(batch.repeats for batch in batches):
        columns[REPEATED] = pa.array(
            np.concatenate([np.arange(batch.n) >= batch.n - batch.repeats for batch in batches])
        )
    if any(batch.places is not None and batch.id_source not in INDEX_SOURCES for batch in batches):
        columns[LOADER_PLACE] = _place_column(batches)
    for spec in context.fields:
        columns[spec.name] = pa.concat_arrays([batch.user[spec.name] for batch in batches])
    return columns


def _place_column(batches: Sequence[Origin]) -> pa.Array:
    """The places as text; null where they are not known, or are the id."""
    drawn: list[str | None] = []
    for batch in batches:
        known = None if batch.id_source in INDEX_SOURCES else batch.places
        drawn += [None] * batch.n if known is None else known
    return pa.array(drawn, pa.string())


def _hash_column(batches: Sequence[Origin]) -> pa.Array:
    """The hashes as text, 32 hexadecimal digits; null where there is none."""
    if not any(isinstance(batch.hashes, list) for batch in batches):
        none = [batch.hashes is None for batch in batches]
        found = [np.zeros((b.n, 2), np.int64) if b.hashes is None else np.asarray(b.hashes) for b in batches]
        column = hex_column(np.concatenate(found))
        if not any(none):
            return column
        missing = pa.array(np.repeat(none, [batch.n for batch in batches]))
        return pc.if_else(missing, pa.scalar(None, pa.string()), column)
    texts: list[str | None] = []
    for batch in batches:
        own = batch.hashes
        texts += hex_digits(own) if isinstance(own, np.ndarray) else own or [None] * batch.n
    return pa.array(texts, pa.string())


def hex_column(hashes: npt.NDArray[np.int64]) -> pa.Array:
    """(n, 2) hashes as text, without a Python object for each.

    >>> hex_column(np.array([[1, -1]])).to_pylist()
    ['0000000000000001ffffffffffffffff']
    """
    text = hashes.astype(">i8").tobytes().hex().encode()
    offsets = np.arange(0, 32 * len(hashes) + 1, 32, dtype=np.int32)
    return pa.StringArray.from_buffers(len(hashes), pa.py_buffer(offsets), pa.py_buffer(text))


def vector_columns(
    context: PassState,
    values: Mapping[str, npt.NDArray[np.float32]],
    n: int,
    half: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
) -> tuple[Columns, npt.NDArray[np.bool_]]:
    """Columns of `vectors`, and the rows in which a feature overflowed its stored type.

    `half`: as `cast_vectors` takes it.
    """
    columns: Columns = {}
    overflow = np.zeros(n, np.bool_)
    for alias, rows in values.items():
        if alias == "logits":
            columns[alias] = from_numpy(np.ascontiguousarray(rows, np.float32))
            continue
        stored, clipped = cast_vectors(rows, context.vector_dtype, half)
        overflow |= clipped
        context.count(f"feature {alias} not finite", int(nonfinite_rows(rows).sum()))
        columns[alias] = from_numpy(np.ascontiguousarray(stored))
    context.count("features beyond float16", int(overflow.sum()))
    return columns, overflow


def constant(value: str, n: int) -> pa.DictionaryArray:
    """A dictionary column of n equal texts."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value]))


def table_of(columns: Mapping[str, pa.Array], schema: pa.Schema, n: int) -> pa.Table:
    """`columns` in the order of `schema`; what a batch does not have is null."""
    arrays = [columns[f.name] if f.name in columns else pa.nulls(n, f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)
