"""From the records of one split to the arrays its statistics are computed from.

Features are walked over on disk, never held; logits are held as float32, in a file above 1 GiB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.analysis.stages import Split, SplitGroup, stored_vectors, vector_width
from mld_core.evaluation.analysis.units import BASE_FIELDS, STAGE_FIELDS, key_texts, unit_name
from mld_core.evaluation.classification.earlier_epochs import earlier_epochs
from mld_core.evaluation.classification.scalars import read_labels
from mld_core.evaluation.space.arrays import SplitArrays, TrainArrays
from mld_core.evaluation.statistics.blocks import Vectors
from mld_core.records.read.reader import PassSelection, select

LOGITS_IN_MEMORY = 2**30
"""Logits above so many bytes lie in a temporary file beside the result that is being written."""

_OWN = frozenset(field.name for field in (*BASE_FIELDS, *STAGE_FIELDS))
_ROWS = 65_536


@dataclass(frozen=True)
class StoredVectors:
    """(N, D) vectors of one alias of a pass, read from disk on every walk."""

    selection: PassSelection
    alias: str
    rows: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.rows, self.width

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """Walk over the vectors."""
        return stored_vectors(self.selection, self.alias, rows)


@dataclass(frozen=True)
class Gathered:
    """The arrays of a split, and what had to be left out of them."""

    arrays: SplitArrays
    notes: tuple[str, ...]


def gather(split: Split, group: SplitGroup, *, layers: Sequence[str] | None = None) -> Gathered:
    """Read what the analysis of a split needs.

    Args:
        split: A split whose logits are stored.
        group: The splits evaluated with it, and the options (`group_key`).
        layers: Only these features; `["logits"]` for none. None = all that are stored.

    Raises:
        ValueError: The `group_key` column is not recorded.
    """
    notes: list[str] = []
    labels = split.column("gt")
    hashes = read_hashes(split.column("input_hash"), split.dataset)
    groups = _groups(split, group.options.get("group_key"))
    is_train = split.dataset == "train"
    features = _features(split, layers, notes)
    epochs, epoch_notes = earlier_epochs(split, labels, is_train=is_train)
    arrays = SplitArrays(
        logits=read_all_logits(split),
        labels=labels,
        features=features,
        groups=groups,
        hashes=hashes,
        soft_labels=_soft_labels(split),
        train=None if is_train else _train(split, group, features),
        epochs=epochs,
        metadata=_metadata(split),
        is_train=is_train,
        name=split.dataset,
        sigmoid=split.selection.sigmoid,
    )
    return Gathered(arrays, (*notes, *epoch_notes))


def read_all_logits(split: Split) -> NDArray[np.float32]:
    """The (N, K) logits of a split as float32; in a temporary file where they are large."""
    shape = (split.rows, split.n_class)
    made: NDArray[np.float32]
    if split.rows * split.n_class * 4 <= LOGITS_IN_MEMORY:
        made = np.empty(shape, np.float32)
    else:
        with tempfile.TemporaryFile(dir=split.units.parent) as file:
            made = np.memmap(file, np.float32, "w+", shape=shape)
    start = 0
    for block in split.vectors("logits"):
        made[start : start + len(block)] = block
        start += len(block)
    return made


def read_hashes(column: NDArray[Any], dataset: str, first: int = 0) -> NDArray[Any] | None:
    """(N,) hashes as texts; None where no unit has one.

    A unit without a hash among units with one stands for itself: by its number, from `first` on.
    """
    missing = pd.isna(column)
    if missing.all():
        return None
    if missing.any():
        column = column.copy()
        column[missing] = [f"{dataset}#{first + row}" for row in np.flatnonzero(missing)]
    return column.astype(str)


def _groups(split: Split, key: str | None) -> NDArray[Any] | None:
    """(N,) group keys as texts from the user's column; a unit without one is its own group."""
    if key is None:
        return None
    names = pq.read_schema(split.units).names
    own = unit_name(key)
    if own not in names or own in _OWN:
        users = ", ".join(repr(name) for name in names if name not in _OWN) or "none"
        raise ValueError(
            f"option group_key={key!r}: {split.dataset!r} has no such column of yours (recorded: {users}); "
            "record it with additional_fields"
        )
    return _own_where_missing(key_texts(pq.read_table(split.units, columns=[own]).column(own)), split.dataset)


def _own_where_missing(made: NDArray[Any], dataset: str) -> NDArray[Any]:
    missing = pd.isna(made)
    made[missing] = [f"{dataset}#{row}" for row in np.flatnonzero(missing)]
    return made.astype(str)


def _features(split: Split, layers: Sequence[str] | None, notes: list[str]) -> dict[str, Vectors]:
    found: dict[str, Vectors] = {}
    for alias in split.features:
        width = split.width(alias)
        if width and (layers is None or alias in layers):
            found[alias] = StoredVectors(split.selection, alias, split.rows, width)
    notes += feature_notes(found)
    return found


def feature_notes(layers: Collection[str]) -> list[str]:
    """What it means where there are no layers, or the logits stand for them."""
    text = "no features are stored (not recorded, or dropped by keep_vectors): the logits stand for the "
    text += "feature space, so what separates units of one prediction is seen less well"
    return [] if set(layers) - {"logits"} else [text]


def _soft_labels(split: Split) -> NDArray[np.floating] | None:
    """(N, K) soft labels with NaN rows where there is none; None where no unit has one."""
    names = split.selection.schema("samples").names
    if "soft_label" not in names or split.labeled == 0:
        return None
    made: NDArray[np.float32] | None = None
    start = 0
    for batch in split.selection.batches("samples", ["label", "soft_label"], _ROWS):
        _, soft, _ = read_labels(batch, split.n_class)
        if soft is not None:
            if made is None:
                made = np.full((split.rows, split.n_class), np.nan, np.float32)
            made[start : start + len(soft)] = soft
        start += batch.num_rows
    return made


def _metadata(split: Split) -> pd.DataFrame | None:
    """The user's own flat columns."""
    schema = pq.read_schema(split.units)
    names = [field.name for field in schema if field.name not in _OWN and not pa.types.is_nested(field.type)]
    return pq.read_table(split.units, columns=names).to_pandas() if names else None


# --- the train split as a reference -------------------------------------------------------------------------


def _train(split: Split, group: SplitGroup, features: Mapping[str, Vectors]) -> TrainArrays | None:
    """The train split with the same layers; only its labels and hashes where its layers differ."""
    selection = train_selection(split, group)
    if selection is None or selection.n_rows == 0:
        return None
    key = group.options.get("group_key")
    names = selection.schema("samples").names
    columns = ["label", "soft_label", "prediction", "input_hash"]
    wanted = [name for name in (*columns, *([key] if key else [])) if name in names]
    labels, predictions, hashes, groups = [], [], [], []
    for batch in selection.batches("samples", wanted, _ROWS):
        labels.append(read_labels(batch, split.n_class)[0])
        said = batch.column("prediction").cast(pa.int64()).fill_null(-1)
        predictions.append(said.to_numpy(zero_copy_only=False))
        hashes.append(key_texts(batch.column("input_hash")))
        groups.append(key_texts(batch.column(key)) if key is not None and key in names else None)
    truth = np.concatenate(labels)
    said = np.concatenate(predictions)
    own = None if any(one is None for one in groups) else np.concatenate([g for g in groups if g is not None])
    layers: dict[str, Vectors] = {}
    for alias in features or ("logits",):
        width = vector_width(selection, alias)
        if width is not None and width == split.width(alias):
            layers[alias] = StoredVectors(selection, alias, len(truth), width)
    return TrainArrays(
        features=layers,
        labels=truth,
        groups=None if own is None else _own_where_missing(own, "train"),
        hashes=read_hashes(np.concatenate(hashes), "train") if same_hashes(split, selection) else None,
        errors=np.where(truth < 0, -1, said != truth).astype(np.int8),
    )


def same_hashes(split: Split, other: PassSelection) -> bool:
    """Whether equal hashes of two passes mean equal inputs: those of two kinds are never equal."""
    kind = split.selection.hash_kind
    return kind is not None and kind == other.hash_kind


def train_selection(split: Split, group: SplitGroup) -> PassSelection | None:
    """The train pass of the group, else of the same epoch, else the latest."""
    known = group.get("train")
    if known is not None:
        return known.selection
    store, run = split.selection.store, split.selection.run
    if split.n_epoch is not None:
        same = select(store, run, dataset_type="train", n_epoch=split.n_epoch)
        if same:
            return same[-1]
    latest = select(store, run, dataset_type="train", n_epoch="latest")
    return latest[-1] if latest else None
