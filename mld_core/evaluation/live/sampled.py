"""A pass of which some rows are looked at: a selection that reads as the whole one does."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.statistics.folds import hash_uniform
from mld_core.records.read.reader import PassSelection

_ROWS = 65_536


class SampledPass(PassSelection):
    """Some samples of a pass and what belongs to them.

    Args:
        whole: The pass.
        kept: (N,) samples that are looked at.
    """

    def __init__(self, whole: PassSelection, kept: NDArray[np.bool_]) -> None:
        self.__dict__.update(vars(copy(whole)))
        self._whole = whole
        self._kept = {"samples": kept}
        if whole.task == "classification":
            self._kept["vectors"] = kept  # one for each sample, in their order

    @property
    def n_rows(self) -> int:
        """Number of samples that are looked at."""
        return int(self._kept["samples"].sum())

    def _pieces(self, family: str, schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
        kept, start = self._mask(family), 0
        for piece in self._whole.batches(family, schema.names, batch_rows):
            here = kept[start : start + piece.num_rows]
            start += piece.num_rows
            if here.any():
                yield piece.filter(pa.array(here))

    def _mask(self, family: str) -> NDArray[np.bool_]:
        """(n,) rows of a family that belong to a sample that is looked at; of boxes, to its frame."""
        if family not in self._kept:
            ids = self._whole.table("samples", ["input_id"])["input_id"].combine_chunks().cast(pa.string())
            wanted = ids.filter(pa.array(self._kept["samples"]))
            owners = self._whole.table(family, ["input_id"])["input_id"].cast(pa.string())
            self._kept[family] = np.asarray(pc.is_in(owners, value_set=wanted).to_numpy(), np.bool_)
        return self._kept[family]


def stratified(strata: NDArray[np.int64], most: int) -> NDArray[np.bool_]:
    """(N,) which rows to take so that each stratum has its share of `most`; by hash, the same every time.

    Args:
        strata: (N,) the stratum of each row.
        most: Rows to take at most.

    Example:
        >>> taken = stratified(np.repeat([0, 1], [9000, 1000]), 100)
        >>> int(taken[:9000].sum()), int(taken[9000:].sum())
        (90, 10)
    """
    rows = len(strata)
    if rows <= most:
        return np.ones(rows, np.bool_)
    order = np.lexsort((hash_uniform(np.arange(rows, dtype=np.uint64), 601), strata))
    kept = np.zeros(rows, np.bool_)
    kept[order[np.arange(most) * rows // most]] = True
    return kept


def sample_rows(whole: PassSelection, most: int) -> PassSelection:
    """At most so many samples of a classifier's pass; of wrong and right ones of each class their share."""
    if whole.n_rows <= most:
        return whole
    strata = []
    for batch in whole.batches("samples", ["label", "prediction"], _ROWS):
        label, said = (
            batch.column(place).cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
            for place in (0, 1)
        )
        strata.append(2 * (label + 1) + (label != said))
    return SampledPass(whole, stratified(np.concatenate(strata), most))


def sample_frames(whole: PassSelection, share: float) -> PassSelection:
    """A share of the frames of a detection pass with all their boxes."""
    if share >= 1:
        return whole
    frames = whole.n_rows
    return SampledPass(whole, stratified(np.zeros(frames, np.int64), max(1, int(frames * share))))
