"""Columns of some units as bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.errors import FilterError
from mld_core.evaluation.results.view import ALIASES
from mld_core.views.selection import HeldUnits


def packed(units: HeldUnits, rows: NDArray[np.int32], names: Sequence[str]) -> bytes:
    """Columns of some units as bytes: u32 length, a JSON header, then the columns, each at a multiple of 8.

    Args:
        units: The pass.
        rows: Row numbers, in the order wanted.
        names: Columns; "row" is the row number.

    Raises:
        FilterError: An unknown column, or one of lists.
    """
    return packed_columns([(name, *_binary(units, rows, name)) for name in names], len(rows))


def packed_columns(
    found: Iterable[tuple[str, NDArray[Any], str, list[Any] | None]],
    rows: int,
    more: Mapping[str, Any] | None = None,
) -> bytes:
    """Columns as bytes; see `packed`.

    Args:
        found: Name, (rows,) values, their type, and the texts that they number or None.
        rows: How many.
        more: Further members of the header.
    """
    columns: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    offset = 0
    for name, values, kind, texts in found:
        piece = values.astype(values.dtype.newbyteorder("<")).tobytes()
        piece += b"\0" * (-len(piece) % 8)
        columns.append(
            {"name": name, "type": kind, "offset": offset} | ({} if texts is None else {"values": texts})
        )
        pieces.append(piece)
        offset += len(piece)
    head = json.dumps({"rows": rows, **(more or {}), "columns": columns}).encode()
    head += b" " * (-(len(head) + 4) % 8)
    return b"".join([struct.pack("<I", len(head)), head, *pieces])


def _binary(
    units: HeldUnits, rows: NDArray[np.int32], name: str
) -> tuple[NDArray[Any], str, list[Any] | None]:
    if name == "row":
        return rows.astype(np.int32), "i4", None
    column = ALIASES.get(name, name)
    if column not in units.names or pa.types.is_nested(units.schema.field(column).type):
        raise FilterError(f"column {name!r}: there is none of single values by that name")
    found = units.column(column).take(pa.array(rows))
    kind = units.schema.field(column).type
    if pa.types.is_floating(kind):
        return np.asarray(found.cast(pa.float32()).to_numpy(), np.float32), "f4", None
    if pa.types.is_integer(kind):
        return np.asarray(found.cast(pa.int32()).fill_null(-1).to_numpy(), np.int32), "i4", None
    if pa.types.is_boolean(kind):
        return np.asarray(found.cast(pa.uint8()).fill_null(255).to_numpy(), np.uint8), "u1", [False, True]
    coded = found.combine_chunks().cast(pa.string()).dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    codes = np.asarray(coded.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)
    texts = coded.dictionary.to_pylist()
    if len(texts) < 255:
        return np.where(codes < 0, 255, codes).astype(np.uint8), "u1", texts
    return codes.astype(np.int32), "i4", texts
