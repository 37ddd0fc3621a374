"""Small parts of the box tables: from lists with one array per frame to columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mld_core.adapters.base import Truth
from mld_core.adapters.outputs import as_array
from mld_core.tracing.tables.rows import table_of

Arrays = dict[str, pa.Array]


def as_arrays(truth: Truth) -> Truth:
    """A truth whose tensors are arrays."""
    truth.boxes = as_array(truth.boxes).astype(np.float32)
    truth.labels = as_array(truth.labels).astype(np.int64)
    truth.columns = {name: as_array(value) for name, value in truth.columns.items()}
    if truth.velocities is not None:
        truth.velocities = as_array(truth.velocities).astype(np.float32)
    return truth


def joined(parts: Sequence[Any], empty: tuple[int, ...]) -> npt.NDArray[Any]:
    """The rows of all frames; an array of shape `empty` where there is no frame."""
    return np.concatenate([np.asarray(part) for part in parts]) if len(parts) else np.zeros(empty, np.float32)


def stacked(parts: Sequence[Any]) -> npt.NDArray[np.float32]:
    """(N, D) of the frames that have rows; frames without any may not know D."""
    rows = [np.asarray(part, np.float32) for part in parts if len(part)]
    return np.concatenate(rows) if len({r.shape[1] for r in rows}) == 1 else np.zeros((0, 0), np.float32)


def places(counts: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Frame of each row, and its number in the frame.

    >>> [part.tolist() for part in places([2, 0, 1])]
    [[0, 0, 2], [0, 1, 0]]
    """
    frames = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum([0, *counts])[:-1], counts)
    return frames, (np.arange(len(frames)) - first).astype(np.int32)


def fixed_lists(values: npt.NDArray[Any]) -> pa.Array:
    """(N, W) as a column of float32 lists of W."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def box_table(columns: Arrays, schema: pa.Schema, n: int) -> pa.Table:
    """As `table_of`. Without velocities there is no such column: pyarrow < 26 cannot read null lists back."""
    if "velocity" not in columns and "velocity" in schema.names:
        schema = schema.remove(schema.get_field_index("velocity"))
    return table_of(columns, schema, n)
