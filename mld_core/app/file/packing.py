"""Columns as one compressed block of bytes, for a page that has no server to ask.

Numbers stand as they are (null is NaN, the least int32, 255), texts and other values as numbers of a list of
them. What reads it is `../web/src/data/file/columns.ts`.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

LEAST = -(2**31)
_BOOL_NULL = 255
_TYPES = {"u1": np.uint8, "u2": np.uint16, "i4": np.int32, "f4": np.float32, "f8": np.float64}


class Block:
    """Columns of equally many rows, gathered one by one.

    Attributes:
        columns: What the page must know of each: name, type, bytes from the beginning, length, values.
    """

    def __init__(self) -> None:
        self.columns: list[dict[str, Any]] = []
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, name: str, column: pa.ChunkedArray) -> bool:
        """Add a column of a table; False where its type has no place in a block."""
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pa.types.is_boolean(kind):
            self._numbers(name, "bool", "u1", column.cast(pa.uint8()).fill_null(_BOOL_NULL).to_numpy())
        elif pa.types.is_integer(kind):
            bounds = pc.min_max(column).as_py()
            if bounds["min"] is not None and not LEAST < bounds["min"] <= bounds["max"] < -LEAST:
                self._numbers(name, "f8", "f8", column.cast(pa.float64(), safe=False).to_numpy())
            else:
                self._numbers(name, "i4", "i4", column.cast(pa.int32()).fill_null(LEAST).to_numpy())
        elif pa.types.is_floating(kind):
            code = "f8" if kind == pa.float64() else "f4"
            self._numbers(
                name, code, code, column.cast(pa.float64() if code == "f8" else pa.float32()).to_numpy()
            )
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            self.add_values(name, column.to_pylist(), kind="text")
        elif pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
            self.add_values(name, column.to_pylist(), kind="list")
        else:
            return False
        return True

    def add_values(self, name: str, values: Sequence[Any], kind: str = "text") -> None:
        """Add plain values, one a row: as numbers of a list, or as they are where hardly one comes twice."""
        places: dict[Any, int] = {}
        listed: list[Any] = []
        codes = np.empty(len(values), np.int32)
        for row, value in enumerate(values):
            key: Any = (type(value), value)
            if isinstance(value, dict):
                key = tuple(value.items())
            elif isinstance(value, list):
                key = tuple(value)
            place = places.get(key)
            if place is None:
                place = places[key] = len(listed)
                listed.append(value)
            codes[row] = place
        if kind == "text" and len(listed) > max(256, len(values) // 2):
            self.add_json(name, values)
            return
        code = "u1" if len(listed) <= 256 else "u2" if len(listed) <= 65_536 else "i4"
        self._numbers(name, kind, code, codes)
        self.columns[-1] |= {"code": code, "values": listed}

    def add_json(self, name: str, values: Sequence[Any]) -> None:
        """Add values as one JSON list."""
        data = json.dumps(values, separators=(",", ":"), allow_nan=False).encode()
        self.columns.append({"name": name, "type": "json", "offset": self._size, "length": len(data)})
        self._append(data)

    def _numbers(self, name: str, kind: str, code: str, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values, np.dtype(_TYPES[code]).newbyteorder("<"))
        self.columns.append({"name": name, "type": kind, "offset": self._size, "length": len(data)})
        self._append(data.tobytes())

    def _append(self, data: bytes) -> None:
        padded = data + b"\0" * (-len(data) % 8)
        self._pieces.append(padded)
        self._size += len(padded)

    def text(self) -> str:
        """The block as base64 of gzip; the same columns give the same text."""
        return base64.b64encode(gzip.compress(b"".join(self._pieces), 6, mtime=0)).decode()
