"""Ids of streams, where no loader draws an index: what the data's own files name their rows by.

Asked last before the content hash, and only where every sample of a batch has another value: a column of
that name may be something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from torch import Tensor

from mld_core.tracing.batch.identity import as_id_list

SOURCE_KEY: Final = "source_info"
"""DALI: `fn.get_property(files, key="source_info")`, given as an output of that name."""
_INDEX_KEYS: Final = ("__index_level_0__", "idx", "index")
"""The index that pandas leaves in Parquet files, and the usual names of a running number (GLUE's `idx`)."""


def stream_keys(batch: Any, n: int) -> tuple[list[str], str] | None:
    """The ids in a batch of a stream, and the name of their column; None without any.

    For the training thread: no value on a device is read.

    Args:
        batch: a mapping of columns, or a list of such (DALI: one for each pipeline).
        n: samples in it.

    Examples:
        >>> stream_keys({"text": ["a", "b"], "idx": [7, 9]}, 2)
        (['7', '9'], 'idx')
        >>> stream_keys({"idx": [7, 7]}, 2) is None
        True
    """
    for columns in _columns(batch):
        for key in (SOURCE_KEY, *_INDEX_KEYS):
            ids = _ids(columns.get(key), is_text=key == SOURCE_KEY)
            if ids is not None and len(ids) == n == len(set(ids)):
                return ids, key
    return None


def _columns(batch: Any) -> Iterator[Mapping[str, Any]]:
    parts = [batch] if isinstance(batch, Mapping) else batch
    if isinstance(parts, (list, tuple)):
        yield from (part for part in parts if isinstance(part, Mapping))


def _ids(column: Any, *, is_text: bool) -> list[str] | None:
    if isinstance(column, Tensor):
        if column.device.type != "cpu" or column.is_floating_point():
            return None
        column = column.detach().numpy()
    if isinstance(column, np.ndarray) and is_text and column.dtype == np.uint8 and column.ndim == 2:
        # Bytes of a file's name, padded to the longest.
        return [row.tobytes().rstrip(b"\0").decode("utf-8", "backslashreplace") for row in column]
    if not isinstance(column, (list, tuple, np.ndarray)):
        return None
    try:
        return as_id_list(column)
    except ValueError:
        return None
