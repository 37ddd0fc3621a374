"""Which sample rows of a pass count: superseded rows of resumed attempts, repeats in evaluation splits.

Splits whose name before the first "/" is val, test or predict are walked once by intent, but distributed
samplers pad them and some loaders repeat items. There, rows that a sampler is known to have repeated do not
count, whatever their ids are. Of the others, those with the same `input_id` count once where the id is the
data set's own index, whatever the hash of their content says (padding to the longest of a batch,
augmentation); users' ids count once only with the same `input_hash`, or where the loader drew the same
place of the data set for them. The row with the lowest (batch_idx, rank_) stays. The same id with other
content stays and is reported. Other splits count as drawn.
"""

from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.records.format.schema import INDEX_SOURCES, LOADER_PLACE, REPEATED

EVALUATION_SPLITS = ("val", "test", "predict")
KEY_COLUMNS = (
    *("unit", "rank_", "input_id", "id_source", "input_hash", "batch_idx", "global_step"),
    *(REPEATED, LOADER_PLACE),
)

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class DedupReport:
    """What was left out of a pass.

    Attributes:
        rows_read: sample rows on disk.
        duplicates_dropped: repeats of a unit that counts already.
        non_unique_ids: ids that still stand on more than one row, with other or unknown content.
        superseded_rows: rows of an earlier attempt that was resumed from a step before them.
    """

    rows_read: int = 0
    duplicates_dropped: int = 0
    non_unique_ids: int = 0
    superseded_rows: int = 0

    def __add__(self, other: "DedupReport") -> "DedupReport":
        return DedupReport(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def applies(dataset_type: str) -> bool:
    """Whether a split is de-duplicated.

    >>> applies("val/1"), applies("train"), applies("validation")
    (True, False, False)
    """
    return dataset_type.split("/", 1)[0] in EVALUATION_SPLITS


def _codes(column: pa.ChunkedArray) -> Ints:
    """Equal values get equal numbers, null gets -1, (N,) int64."""
    encoded = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    return np.asarray(encoded.indices.fill_null(-1), dtype=np.int64)


def _ints(column: pa.ChunkedArray | pa.Array) -> Ints:
    """Nulls become the largest number, so that they come last."""
    return np.asarray(column.cast(pa.int64()).fill_null(np.iinfo(np.int64).max), dtype=np.int64)


def padding(keys: pa.Table | pa.RecordBatch) -> Bools:
    """Rows that a sampler is known to have repeated, bool (N,)."""
    return np.asarray(pc.fill_null(keys[REPEATED], fill_value=False), dtype=np.bool_)


def superseded(keys: pa.Table | pa.RecordBatch, limit: int | None) -> Bools:
    """Rows that were not trained before step `limit`, bool (N,); rows without a step are among them."""
    if limit is None:
        return np.zeros(keys.num_rows, dtype=np.bool_)
    return np.asarray(_ints(keys["global_step"]) >= limit, dtype=np.bool_)


def duplicates(keys: pa.Table) -> tuple[Bools, int]:
    """Rows to leave out of an evaluation split.

    Args:
        keys: the columns KEY_COLUMNS of all rows of the pass.

    Returns:
        bool (N,), True = leave out, and the number of ids that remain on more than one row.
    """
    count = keys.num_rows
    known = padding(keys)
    if count < 2:
        return known, 0
    ids, hashes = _codes(keys["input_id"]), _codes(keys["input_hash"])
    has_id = ids >= 0
    source = keys["id_source"].cast(pa.string())
    by_index = np.asarray(pc.is_in(source, value_set=pa.array(INDEX_SOURCES)), dtype=np.bool_)
    comparable = has_id & ((hashes >= 0) | by_index) & ~known
    # (id, hash) as one number; a missing hash is a content of its own, and an index is its item's name.
    pair = ids * (int(hashes.max()) + 3) + np.where(by_index, 0, hashes + 2)
    first = (np.arange(count), _ints(keys["rank_"]), _ints(keys["batch_idx"]))
    drop = known | _later(np.where(comparable, pair, -1), first)
    places = _codes(keys[LOADER_PLACE])
    if (places >= 0).any():
        drawn = has_id & (places >= 0) & ~known
        drop |= _later(np.where(drawn, ids * (int(places.max()) + 1) + places, -1), first)
    left = ids[has_id & ~drop]
    non_unique = int(np.count_nonzero(np.bincount(left) > 1)) if left.size else 0
    return drop, non_unique


def _later(values: Ints, first: tuple[Ints, ...]) -> Bools:
    """Rows whose value stands on an earlier row, by `first`, whose last key counts most; -1 is no value."""
    order = np.lexsort((*first, values))
    ordered = values[order]
    later = np.zeros(len(values), dtype=np.bool_)
    later[order[1:]] = (ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)
    return later
