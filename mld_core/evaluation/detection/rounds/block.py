"""Kept predictions as the rounds of the classification see units: read from a file that a round wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis.units import key_texts
from mld_core.evaluation.classification.rounds.block import Block, RoundSplit, read_vectors
from mld_core.evaluation.detection.units import BoxUnits
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.engine.passes import ROW, layer_column
from mld_core.evaluation.space.arrays import SplitArrays, score_logits
from mld_core.evaluation.statistics.folds import folds_of, key_hashes
from mld_core.records.format.vectors import from_numpy, vector_field

EXTRA = "\0extra"
"""Column of the file that holds the columns of a box for the error estimator."""


@dataclass(frozen=True)
class BoxBlock(Block):
    """Some kept predictions; the last class is background.

    Attributes:
        code: (n,) number of the error code, -1 where it is not known.
        wrong_class: (n,) 1 wrong, 0 right, -1 where the box found no truth.
        for_loss: (n,) class for the loss, -1 where it is not known.
    """

    code: NDArray[np.int64]
    wrong_class: NDArray[np.int64]
    for_loss: NDArray[np.int64]


class BoxSplit(RoundSplit):
    """The same of a detection pass, whose kept predictions the units are."""

    @property
    def labels_tell(self) -> bool:
        """The label of a box depends on what it found."""
        return False

    def read(self, batch: pa.RecordBatch, workers: Workers) -> BoxBlock:
        """The kept predictions of a batch."""
        logits = read_vectors(batch, "logits")
        numbers = {name: _numbers(batch, name) for name in ("label", "error", "said", *_CODES)}
        scores = replace(score_logits(logits, workers), prediction=numbers["said"])
        keys = key_texts(batch.column("group"))
        digests = [key_hashes(keys, salt) for salt in self.salts]
        return BoxBlock(
            np.asarray(batch.column(ROW), np.int64),
            logits,
            numbers["label"],
            numbers["error"].astype(np.int8),
            scores,
            np.full(batch.num_rows, None, object),
            digests[0],
            np.stack([folds_of(one) for one in digests]),
            {name: read_vectors(batch, layer_column(name)) for name in self.layers},
            read_vectors(batch, EXTRA),
            *(numbers[name] for name in _CODES),
        )

    def outcomes(self, batch: pa.RecordBatch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """See `RoundSplit.outcomes`."""
        errors = _numbers(batch, "error")
        return errors >= 0, errors == 1

    def drawn_columns(self, names: Sequence[str]) -> list[str]:
        """All of them."""
        return list(names)


_CODES = ("code", "wrong_class", "for_loss")


def _numbers(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    return np.asarray(batch.column(name), np.int64)


def block_table(
    arrays: SplitArrays, units: BoxUnits, layers: dict[str, tuple[int, str]], for_loss: NDArray[np.int64]
) -> pa.RecordBatch:
    """The kept predictions of a part as `BoxSplit.read` reads them.

    Args:
        arrays: As the analysis in memory takes them.
        units: Of the part.
        layers: Alias -> width and dtype of the features of the pass; zeros stand in where the part has none.
        for_loss: (N,) class for the loss, -1 where it is not known.
    """
    events, prediction, rows = units.events, arrays.prediction, arrays.rows
    assert prediction is not None
    assert arrays.errors is not None
    assert arrays.extra is not None
    code = np.where(units.judged, events.code, -1)
    wrong_class = np.where(units.judged & events.matched, events.said_of != prediction, -1)
    plain: dict[str, NDArray[Any]] = {
        "label": arrays.labels,
        "error": arrays.errors,
        "said": prediction,
        "code": code,
        "wrong_class": wrong_class,
        "for_loss": for_loss,
    }
    columns: list[Any] = [pa.array(values.astype(np.int64), pa.int64()) for values in plain.values()]
    fields = [pa.field(name, pa.int64()) for name in plain]
    columns.append(pa.array(arrays.group_keys.tolist(), pa.string()))
    fields.append(pa.field("group", pa.string()))
    vectors: dict[str, NDArray[Any]] = {"logits": np.asarray(arrays.logits), EXTRA: arrays.extra}
    for name, (width, dtype) in layers.items():
        there = arrays.features.get(name)
        vectors[layer_column(name)] = np.zeros((rows, width), dtype) if there is None else np.asarray(there)
    for name, values in vectors.items():
        columns.append(from_numpy(np.ascontiguousarray(values)))
        fields.append(vector_field(name, values.shape[1], values.dtype.name))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
