"""A batch of records as the kernels of the rounds see it, and the sample that everything is fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mld_core.evaluation.analysis.units import key_texts
from mld_core.evaluation.classification.scalars import (
    ClassificationSplit,
    ClassificationState,
    read_labels,
    read_logits,
    scalars_kernel,
)
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.engine.passes import ROW, layer_column
from mld_core.evaluation.metrics.classification import finite_rows
from mld_core.evaluation.space.arrays import LogitScores, score_logits
from mld_core.evaluation.statistics.folds import folds_of, hash_uniform, key_hashes
from mld_core.records.format.vectors import to_numpy

SAMPLE = 200_000
"""Units that are fitted on, at most; up to so many it is all of them."""

_STREAM, _THIN = 601, 602


@dataclass(frozen=True)
class RoundSplit:
    """What every kernel needs to know of a pass: plain data.

    Attributes:
        context: As the first round has it.
        layers: Feature vectors, earliest first; the logits where there are none.
        group_key: The user's column that keeps units together, or None = the input hash.
        salts: One repeat of the cross-fit for each.
    """

    context: ClassificationSplit
    layers: tuple[str, ...]
    group_key: str | None
    salts: tuple[str, ...]

    @property
    def n_class(self) -> int:
        """Number of classes."""
        return self.context.n_class

    @property
    def labels_tell(self) -> bool:
        """Whether a label says something of its unit alone."""
        return True

    @property
    def is_train(self) -> bool:
        """Whether it is the train split."""
        return self.context.dataset == "train"

    def read(self, batch: pa.RecordBatch, workers: Workers) -> Block:
        """The units of a batch."""
        return read_block(batch, self, workers)

    def outcomes(self, batch: pa.RecordBatch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(n,) units of a batch that are labelled, and those that are wrong; the latter of labelled ones."""
        labels = read_labels(batch, self.n_class)[0]
        logits = read_logits(batch)
        return labels >= 0, (logits.argmax(axis=1) != labels) | ~finite_rows(logits)

    def drawn_columns(self, names: Sequence[str]) -> list[str]:
        """Columns of a batch that the fits read."""
        wanted = dict.fromkeys([ROW, "label", "soft_label", "input_hash", "logits"])
        wanted |= dict.fromkeys(layer_column(name) for name in self.layers)
        wanted |= {} if self.group_key is None else {self.group_key: None}
        return [name for name in wanted if name in names]


@dataclass(frozen=True)
class Block:
    """Some units, (n,) each unless said.

    Attributes:
        rows: Their numbers in the pass.
        logits: (n, K).
        labels: True classes, -1 where unlabelled.
        errors: 1 wrong, 0 right, -1 unlabelled.
        scores: Figures of the logits.
        hashes: Input hashes, None where there is none.
        digests: Hashes of the group keys.
        folds: (repeats, n) folds.
        layers: Alias -> (n, D) vectors.
        extra: (n, P) further columns of the error estimator.
    """

    rows: NDArray[np.int64]
    logits: NDArray[Any]
    labels: NDArray[np.int64]
    errors: NDArray[np.int8]
    scores: LogitScores
    hashes: NDArray[Any]
    digests: NDArray[np.uint64]
    folds: NDArray[np.int8]
    layers: dict[str, NDArray[Any]]
    extra: NDArray[np.float32]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether a unit is labelled."""
        return np.asarray(self.errors >= 0)


def read_block(batch: pa.RecordBatch, split: RoundSplit, workers: Workers) -> Block:
    """The units of a batch."""
    labels = read_labels(batch, split.n_class)[0]
    logits = read_logits(batch)
    scores = score_logits(logits, workers, sigmoid=split.context.sigmoid)
    errors = np.where(labels < 0, -1, scores.prediction != labels).astype(np.int8)
    rows = np.asarray(batch.column(ROW), np.int64)
    hashes = key_texts(batch.column("input_hash"))
    keys = hashes if split.group_key is None else key_texts(batch.column(split.group_key))
    keys = np.where(keys == None, [f"{split.context.dataset}#{row}" for row in rows], keys)  # noqa: E711
    digests = [key_hashes(keys, salt) for salt in split.salts]
    layers = {name: read_vectors(batch, layer_column(name)) for name in split.layers}
    folds = np.stack([folds_of(one) for one in digests])
    extra = np.empty((len(rows), 0), np.float32)
    return Block(rows, logits, labels, errors, scores, hashes, digests[0], folds, layers, extra)


def read_vectors(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    """(n, D) vectors of a column."""
    place = batch.schema.get_field_index(name)
    return np.asarray(to_numpy(batch.column(place), batch.schema.field(place)))


B = TypeVar("B", bound=Block)


def joined(blocks: Sequence[B]) -> B:
    """Several blocks as one."""
    columns: dict[str, Any] = {}
    for one in fields(blocks[0]):
        parts = [getattr(block, one.name) for block in blocks]
        if one.name == "scores":
            columns[one.name] = LogitScores(
                *(
                    np.concatenate([getattr(part, name.name) for part in parts])
                    for name in fields(LogitScores)
                )
            )
        elif one.name == "layers":
            columns[one.name] = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        else:
            columns[one.name] = np.concatenate(parts, axis=1 if one.name == "folds" else 0)
    return type(blocks[0])(**columns)


# -- the first round: counts, and the keys that joins are made on ----------------------------------------


@dataclass
class Counted:
    """The counts of the first round, units whose features overflowed, and units with soft labels."""

    scalars: ClassificationState = field(default_factory=ClassificationState)
    overflow: int = 0
    soft: int = 0

    def merge(self, other: Counted) -> Counted:
        """The counts of both."""
        return Counted(
            self.scalars.merge(other.scalars), self.overflow + other.overflow, self.soft + other.soft
        )


def count_kernel(batch: pa.RecordBatch, split: ClassificationSplit) -> tuple[pa.RecordBatch, Counted]:
    """First round: counts; id, hash and true class of every unit go to a file beside the others."""
    units, state = scalars_kernel(batch, split)
    overflow = int(np.asarray(batch.column("overflow").fill_null(False)).sum())
    soft = batch.num_rows - batch.column("soft_label").null_count if "soft_label" in batch.schema.names else 0
    return units.select(["input_id", "input_hash", "gt"]), Counted(state, overflow, soft)


# -- the second: a sample, wrong units over-represented -------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """Which share of the wrong and of the right units is drawn."""

    split: RoundSplit
    wrong: float
    right: float

    @classmethod
    def of(cls, split: RoundSplit, labelled: int, errors: int, most: int) -> Draw:
        """At most `most` units: the rarer outcome whole, as far as it is no more than half of them."""
        size = np.array([labelled - errors, errors])
        if size.sum() <= most:
            return cls(split, 1.0, 1.0)
        fewer = min(int(size.min()), most // 2)
        rate = np.where(size > most // 2, np.minimum(1.0, (most - fewer) / np.maximum(size, 1)), 1.0)
        return cls(split, float(rate[1]), float(rate[0]))

    @property
    def shift(self) -> float:
        """What is added to the log-odds of a model that was fitted to the sample."""
        return float(np.log(self.right / self.wrong))

    def weights(self, errors: NDArray[np.int8]) -> NDArray[np.float64]:
        """(n,) how many units each drawn one stands for."""
        return np.where(errors == 1, 1 / self.wrong, 1 / self.right)

    def thinned(self, block: Block) -> NDArray[np.bool_]:
        """(n,) drawn units that would be drawn too if wrong and right ones had the same share."""
        least = min(self.wrong, self.right)
        share = np.where(block.errors == 1, least / self.wrong, least / self.right)
        return np.asarray(hash_uniform(block.rows.astype(np.uint64), _THIN) < share)


@dataclass
class Drawn:
    """Drawn units, in the order of the pass."""

    pieces: list[pa.RecordBatch] = field(default_factory=list)

    def merge(self, other: Drawn) -> Drawn:
        """The units of both."""
        return Drawn(self.pieces + other.pieces)


def draw_kernel(batch: pa.RecordBatch, draw: Draw) -> tuple[None, Drawn]:
    """Second round: the drawn units with what the fits read of them."""
    known, wrong = draw.split.outcomes(batch)
    rate = np.where(wrong, draw.wrong, draw.right)
    rows = np.asarray(batch.column(ROW), np.uint64)
    kept = known & (hash_uniform(rows, _STREAM) < rate)
    if not kept.any():
        return None, Drawn()
    wanted = draw.split.drawn_columns(batch.schema.names)
    return None, Drawn([batch.select(wanted).filter(pa.array(kept))])
