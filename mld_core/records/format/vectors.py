"""Vectors on disk: numpy arrays as FixedSizeBinary columns and back, without a copy where possible.

Parquet has no fixed-size-list type: every element of a list column gets levels, which costs 2 to 9 times the
write speed. So a vector is one FixedSizeBinary value, little-endian, and its field's metadata says what it
is: `dtype` ("float32" | "float16"), `shape` (JSON, without the row axis) and `alias`.
"""

import json
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

VectorDtype = Literal["float16", "float32"]
Floats = npt.NDArray[Any]
FLOAT16_MAX = 65504.0
_DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


def vector_dtype(name: str) -> np.dtype[Any]:
    """The little-endian numpy dtype of a stored vector.

    Raises:
        ValueError: not "float16" or "float32".
    """
    if name not in _DTYPES:
        raise ValueError(f"vector_dtype={name!r}: expected 'float16' or 'float32'")
    return _DTYPES[name]


def vector_field(name: str, width: int, dtype: str = "float32", alias: str | None = None) -> pa.Field:
    """The Arrow field of a vector column.

    Args:
        name: column name.
        width: number of elements, at least 1.
        dtype: "float16" or "float32".
        alias: the layer's alias; defaults to `name`.

    Raises:
        ValueError: a width below 1 or an unknown dtype.
    """
    if width < 1:
        raise ValueError(f"vector {name!r} has width {width}; expected at least 1")
    metadata = {b"dtype": dtype.encode(), b"shape": json.dumps([int(width)]).encode()}
    metadata[b"alias"] = (alias or name).encode()
    return pa.field(name, pa.binary(vector_dtype(dtype).itemsize * int(width)), metadata=metadata)


def nonfinite_rows(array: Floats) -> npt.NDArray[np.bool_]:
    """Which rows of (N, D) hold a NaN or an infinity, bool (N,)."""
    # One pass without temporaries settles the usual case: a sum is finite only if nothing in it is NaN or
    # inf.
    with np.errstate(all="ignore"):
        if array.size == 0 or np.isfinite(array.sum(dtype=np.float64)):
            return np.zeros(len(array), dtype=np.bool_)
    return np.asarray(~np.isfinite(array).all(axis=tuple(range(1, array.ndim))), dtype=np.bool_)


def cast_vectors(
    array: Floats, dtype: str = "float16", half: Callable[[Floats], Floats] | None = None
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Cast (N, D) to the stored dtype; values beyond float16 are seen before the cast.

    Args:
        array: (N, D), any real dtype.
        dtype: "float16" or "float32".
        half: a faster way than numpy's to round values within float16 to it, where one is there.

    Returns:
        The contiguous little-endian array, and bool (N,): rows where a finite value exceeded +-65504 and
        was clipped to it. NaN and infinities stay what they are.

    >>> cast_vectors(np.array([[1.0, 1e6], [2.0, 3.0]]))[1].tolist()
    [True, False]
    """
    target = vector_dtype(dtype)
    overflow = np.zeros(len(array), dtype=np.bool_)
    if array.dtype == target or target.itemsize >= 4 or array.size == 0:
        return np.ascontiguousarray(array, dtype=target), overflow
    largest = max(float(array.max()), -float(array.min()))  # NaN if there is one: then look closer
    if largest <= FLOAT16_MAX:
        if half is not None and array.dtype == np.float32:
            return np.ascontiguousarray(half(array), dtype=target), overflow
        return np.ascontiguousarray(array, dtype=target), overflow
    beyond = np.isfinite(array) & (np.abs(array) > FLOAT16_MAX)
    overflow = np.asarray(beyond.any(axis=tuple(range(1, array.ndim))), dtype=np.bool_)
    clipped = np.where(beyond, np.copysign(FLOAT16_MAX, array), array)
    return np.ascontiguousarray(clipped, dtype=target), overflow


def from_numpy(array: Floats) -> pa.FixedSizeBinaryArray:
    """View a (N, D) float16 or float32 array as FixedSizeBinary (N,), without a copy if it is contiguous.

    The caller must not write to `array` afterwards.

    Raises:
        ValueError: not two axes, no columns, or another dtype.
    """
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(f"vectors must have shape (N, D) with D >= 1, got {array.shape}; reshape to (N, -1)")
    if array.dtype not in _DTYPES.values():
        raise ValueError(f"vectors must be float16 or float32, got {array.dtype}; use cast_vectors first")
    array = np.ascontiguousarray(array)
    width = array.shape[1] * array.dtype.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, pa.py_buffer(array)])


def is_vector(field: pa.Field) -> bool:
    """Whether a field holds vectors of this module."""
    return pa.types.is_fixed_size_binary(field.type) and b"dtype" in (field.metadata or {})


def vector_width(field: pa.Field) -> int:
    """Elements of each vector in a column; ValueError for another column."""
    return _layout(field)[1]


def _layout(field: pa.Field) -> tuple[np.dtype[Any], int]:
    if not is_vector(field):
        raise ValueError(f"column {field.name!r} of type {field.type} is no vector column: no dtype metadata")
    dtype = vector_dtype(field.metadata[b"dtype"].decode())
    return dtype, field.type.byte_width // dtype.itemsize


def _view(array: pa.Array, dtype: np.dtype[Any], width: int) -> Floats:
    """(N, D) view of one chunk; rows that are null become NaN (then it is a copy)."""
    count = len(array)
    data = array.buffers()[1]
    if count == 0 or data is None:
        return np.full((count, width), np.nan, dtype=dtype)
    row_bytes = width * dtype.itemsize
    flat = np.frombuffer(data, dtype=dtype, count=count * width, offset=array.offset * row_bytes)
    view = flat.reshape(count, width)
    if array.null_count:
        view = view.copy()
        view[np.asarray(array.is_null())] = np.nan
    return view


def to_numpy(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> Floats:
    """Turn a vector column into an array.

    Args:
        column: FixedSizeBinary column; zero-copy (read-only) if it is one chunk without nulls.
        field: its field; the metadata names dtype and shape.

    Returns:
        (N, D) float32 or float16; null rows are NaN.

    Raises:
        ValueError: not a vector column.
    """
    dtype, width = _layout(field)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    chunks = [chunk for chunk in chunks if len(chunk)]
    if len(chunks) == 1:
        return _view(chunks[0], dtype, width)
    if not chunks:
        return np.empty((0, width), dtype=dtype)
    return np.concatenate([_view(chunk, dtype, width) for chunk in chunks])


def to_fixed_size_list(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> pa.FixedSizeListArray:
    """Present a vector column as FixedSizeList<float32>[D], which DuckDB, polars and pandas understand.

    float16 is widened, since few engines read half floats. Null rows stay null.

    Raises:
        ValueError: not a vector column.
    """
    array = to_numpy(column, field)
    flat = pa.array(np.ascontiguousarray(array, dtype=np.float32).reshape(-1))
    if not column.null_count:
        return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    valid = column.is_valid()
    valid = valid.combine_chunks() if isinstance(valid, pa.ChunkedArray) else valid
    bitmap = pa.array(np.asarray(valid, dtype=np.bool_)).buffers()[1]
    return pa.Array.from_buffers(
        pa.list_(pa.float32(), array.shape[1]), len(array), [bitmap], column.null_count, 0, [flat]
    )
