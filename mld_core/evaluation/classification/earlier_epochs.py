"""What earlier epochs said about the units of a split: for codes C40 to C42 and the estimator's flips."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mld_core.evaluation.analysis.stages import Split, stored_vectors, vector_width
from mld_core.evaluation.metrics.classification import finite_rows, log_softmax
from mld_core.evaluation.space.arrays import EpochArrays
from mld_core.records.read.reader import PassSelection, select

FOUND_SHARE = 0.9
"""An epoch counts where at least this share of the units is found in it by id."""

CELLS = 2**26
"""Epochs x units that are held (12 bytes each), and units x classes of the softmax averaged over epochs."""


def earlier_epochs(
    split: Split, labels: NDArray[np.int64], *, is_train: bool
) -> tuple[EpochArrays | None, tuple[str, ...]]:
    """Find the units of a split in its earlier epochs, by input id.

    A unit an epoch does not hold keeps what the evaluated epoch says about it: no evidence of a change.
    Passes before training (epoch -1) are left out.

    Args:
        split: The evaluated pass.
        labels: (N,) true classes; only their number is used.
        is_train: Whether this is the train split: its label posterior uses the softmax averaged over epochs.

    Returns:
        The epochs, oldest first and the evaluated one last, or None where there is no other; notes.
    """
    earlier = _selections(split)
    if not earlier or split.rows == 0:
        return None, ()
    notes: list[str] = []
    room = max(1, CELLS // max(len(labels), 1) - 1)
    if len(earlier) > room:
        notes.append(f"of {len(earlier)} earlier epochs the last {room} are looked at")
        earlier = earlier[-room:]
    ids = pq.read_table(split.units, columns=["input_id"]).column("input_id").combine_chunks()
    own_prediction = split.column("prediction").astype(np.int64)
    own_msp = split.column("confidence").astype(np.float32)
    used: list[tuple[PassSelection, NDArray[np.int64]]] = []
    predictions, confidences = [], []
    for selection in earlier:
        samples = selection.table("samples", ["input_id", "prediction", "confidence"])
        place = _places(ids, samples.column("input_id"))
        if (place >= 0).mean() < FOUND_SHARE:
            continue
        used.append((selection, place))
        said = samples.column("prediction").cast(pa.int64()).fill_null(-1).to_numpy()
        sure = samples.column("confidence").cast(pa.float32()).to_numpy()
        predictions.append(np.where(place >= 0, np.append(said, -1)[place], own_prediction))
        confidences.append(np.where(place >= 0, np.append(sure, np.float32(np.nan))[place], own_msp))
    if not used:
        notes.append(
            "units of earlier epochs are not found again by their ids: record stable ids (id_fn, WithInputId)"
        )
        return None, tuple(notes)
    mean = None
    if is_train and split.rows * split.n_class <= CELLS:
        mean = _mean_probability(split, used)
    msp = np.nan_to_num(np.stack([*confidences, own_msp]), nan=1 / max(split.n_class, 1))
    return EpochArrays(np.stack([*predictions, own_prediction]), msp, mean), tuple(notes)


def _selections(split: Split) -> list[PassSelection]:
    epoch = split.n_epoch
    if epoch is None:
        return []
    found = select(
        split.selection.store, split.selection.run, dataset_type=split.dataset, n_epoch=None, passes="last"
    )
    numbered = [(one.key.n_epoch, one) for one in found if one.key.n_epoch is not None]
    return [one for n, one in sorted(numbered, key=lambda item: item[0]) if 0 <= n < epoch]


def _places(ids: pa.Array, others: pa.ChunkedArray) -> NDArray[np.int64]:
    """(N,) row of each id among the others, the first of equal ones, -1 where it is not there."""
    values = others.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], ids.type)
    found = pc.index_in(ids, value_set=values.cast(ids.type)).fill_null(-1)
    return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)


def _mean_probability(
    split: Split, earlier: list[tuple[PassSelection, NDArray[np.int64]]]
) -> NDArray[np.float32] | None:
    """(N, K) softmax averaged over the epochs that hold a unit; None where an epoch stores no logits."""
    passes = [*earlier, (split.selection, np.arange(split.rows))]
    if any(vector_width(selection, "logits") != split.n_class for selection, _ in passes):
        return None
    total = np.zeros((split.rows, split.n_class), np.float32)
    count = np.zeros(split.rows, np.float32)
    for selection, place in passes:
        found = np.full((selection.n_rows, split.n_class), np.nan, np.float32)
        start = 0
        for block in stored_vectors(selection, "logits", 65_536):
            wide = np.asarray(block, dtype=np.float64)
            good = finite_rows(wide)
            part = found[start : start + len(wide)]
            part[good] = np.exp(log_softmax(wide[good]))
            start += len(wide)
        rows = np.flatnonzero(place >= 0)
        rows = rows[~np.isnan(found[place[rows], 0])]
        total[rows] += found[place[rows]]
        count[rows] += 1
    total[count == 0] = 1 / split.n_class
    return np.asarray(total / np.maximum(count, 1)[:, None], dtype=np.float32)
