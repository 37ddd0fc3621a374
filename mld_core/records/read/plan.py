"""Which rows of a pass count, decided before any is read.

What is held of every row is its unit, a few marks and a number of 64 bits for its id. All keys are read of
those rows alone whose number stands on another row too.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.records.format.attempts import Attempt, RankFolder
from mld_core.records.format.bucket import each, is_bucket
from mld_core.records.format.manifest import PartInfo
from mld_core.records.format.removals import marks, pending
from mld_core.records.format.schema import REPEATED
from mld_core.records.read import dedup
from mld_core.records.read.dedup import Bools, DedupReport, Ints
from mld_core.records.read.rows import RankRows, read_part, read_rows

R = TypeVar("R")
Prints = npt.NDArray[np.uint64]

_BATCH = 1 << 16
_TYPES = {
    "unit": pa.int64(),
    "rank_": pa.int32(),
    "batch_idx": pa.int32(),
    "global_step": pa.int64(),
    REPEATED: pa.bool_(),
    "id_source": pa.dictionary(pa.int32(), pa.string()),
}


def plan_rows(
    attempts: list[tuple[Attempt, int | None]], dataset_type: str, removed: frozenset[str] = frozenset()
) -> list[RankRows]:
    """Decide for every rank of every attempt of a pass which units count.

    Args:
        attempts: the attempts with the steps below which their rows count.
        dataset_type: the split.
        removed: digests of the samples that are removed from it.
    """
    steps = [[RankRows(*now, folder, limit) for folder, now in _settled(one)] for one, limit in attempts]
    sources = [source for step in steps for source in step]
    once = dedup.applies(dataset_type)
    if not once and len(attempts) == 1:
        for source in sources:
            if pending(source.folder, removed):
                seen = _look(source, removed, prints=False)
                source.dropped = np.sort(seen.units[seen.gone])
            source.report = DedupReport(rows_read=sum(part.rows_of("samples") for part in source.parts))
        return sources
    place = sources[0].folder.path
    every = each(partial(_look, removed=removed, prints=once), sources, place)
    twice, non_unique = _repeats(sources, every) if once else ([seen.padding for seen in every], 0)
    offset = 0
    for step in steps:  # the units of later attempts come after those of earlier ones
        for source in step:
            source.offset = offset
        offset += 1 + max((source.last_unit or 0 for source in step), default=-1)
    for index, (source, seen, repeated) in enumerate(zip(sources, every, twice, strict=True)):
        source.dropped = np.sort(seen.units[seen.gone | seen.early | repeated])
        source.report = DedupReport(
            rows_read=len(seen.units),
            duplicates_dropped=int(repeated.sum()),
            non_unique_ids=non_unique if index == 0 else 0,
            superseded_rows=int(seen.early.sum()),
        )
    return sources


def _settled(attempt: Attempt) -> list[tuple[RankFolder, tuple[RankFolder, list[PartInfo], list[str]]]]:
    """The ranks of an attempt as they were selected, and as they are now."""
    return list(zip(attempt.ranks, each(RankFolder.settled, attempt.ranks, attempt.path), strict=True))


# -- what is held of every row -------------------------------------------------------------------------------


@dataclass
class _Seen:
    """The rows of a rank, (N,) each.

    Attributes:
        units: Their units.
        gone: Samples that were removed.
        early: Those that a resumed attempt trained again, the removed ones apart.
        padding: Those of the others that a sampler is known to have repeated.
        prints: A number for the id of each of the rest, see `fingerprints`; 0 for all before, and without id.
    """

    units: Ints
    gone: Bools
    early: Bools
    padding: Bools
    prints: Prints


def _look(source: RankRows, removed: frozenset[str], *, prints: bool) -> _Seen:
    left = pending(source.folder, removed)
    # Should parts be joined meanwhile, these are the rows that were there.
    source.report = DedupReport(rows_read=sum(part.rows_of("samples") for part in source.parts))

    def seen(batch: pa.RecordBatch) -> _Seen:
        gone = marks(batch["input_id"], left)
        early = dedup.superseded(batch, source.limit) & ~gone
        padding = np.zeros(len(gone), dtype=np.bool_)
        numbers = np.zeros(len(gone) if prints else 0, dtype=np.uint64)
        if prints:
            padding = dedup.padding(batch) & ~gone & ~early
            numbers = fingerprints(batch["input_id"])
            numbers[gone | early | padding] = 0
        return _Seen(np.asarray(batch["unit"], dtype=np.int64), gone, early, padding, numbers)

    pieces = _reduced(source, ("unit", "input_id", "global_step", REPEATED), seen)
    nothing = np.empty(0, dtype=np.bool_)
    empty = _Seen(np.empty(0, dtype=np.int64), nothing, nothing, nothing, np.empty(0, dtype=np.uint64))
    whole = _Seen(
        *(
            np.concatenate([getattr(one, name) for one in [empty, *pieces]])
            for name in ("units", "gone", "early", "padding", "prints")
        )
    )
    source.last_unit = int(whole.units.max(initial=-1))
    source.removed = int(whole.gone.sum())
    return whole


def fingerprints(ids: pa.Array) -> Prints:
    """A number for each id, equal where ids are equal and hardly ever else; 0 for null.

    >>> found = fingerprints(pa.array(["a", "b", None, "", "a"])).tolist()
    >>> found[0] == found[4], len(set(found)), found[2]
    (True, 4, 0)
    """
    texts = ids.cast(pa.large_string())
    buffers = texts.buffers()
    if not len(texts):
        return np.zeros(0, dtype=np.uint64)
    stops = np.frombuffer(buffers[1], np.int64, len(texts) + 1, texts.offset * 8)
    first, length = stops[:-1] - stops[0], np.diff(stops)
    made = length.astype(np.uint64) + np.uint64(1)
    if stops[-1] > stops[0]:
        letters = np.frombuffer(buffers[2], np.uint8, stops[-1] - stops[0], stops[0]).astype(np.uint64)
        letters *= _factors(int(length.max()))[np.arange(len(letters)) - np.repeat(first, length)]
        held = length > 0
        made[held] += np.add.reduceat(letters, first[held])
    made[made == 0] = 1
    made[np.asarray(texts.is_null())] = 0
    return made


def _factors(count: int) -> Prints:
    """The same random factors always, one for each place of a text."""
    return np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)


# -- repeats -------------------------------------------------------------------------------------------------


def _repeats(sources: list[RankRows], every: list[_Seen]) -> tuple[list[Bools], int]:
    """The rows of each rank that repeat others, and how many ids stand on more than one row all the same."""
    twins = _twins([seen.prints for seen in every])
    if not len(twins):
        return [seen.padding for seen in every], 0
    asked = [seen.units[_among(seen.prints, twins)] for seen in every]
    work = list(zip(sources, asked, strict=True))
    keys = each(_keys, work, sources[0].folder.path)
    if len({source.folder.hash_kind for source in sources}) > 1:
        keys = [_of_a_kind(table, own.folder.hash_kind) for table, own in zip(keys, sources, strict=True)]
    drop, non_unique = dedup.duplicates(pa.concat_tables(keys).unify_dictionaries())
    found = []
    for seen, table, mask in zip(every, keys, _cut(drop, [len(table) for table in keys]), strict=True):
        units = np.asarray(table["unit"], dtype=np.int64)[mask]
        found.append(seen.padding | np.isin(seen.units, units))
    return found, non_unique


def _twins(prints: list[Prints]) -> Prints:
    """The numbers that stand on more than one row, sorted."""
    ordered = np.concatenate(prints)
    ordered.sort()
    return np.unique(ordered[1:][(ordered[1:] == ordered[:-1]) & (ordered[1:] > 0)])


def _among(values: Prints, ordered: Prints) -> Bools:
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[place] == values, dtype=np.bool_)


def _cut(values: Bools, lengths: list[int]) -> list[Bools]:
    return np.split(values, np.cumsum(lengths)[:-1])


def _keys(work: tuple[RankRows, Ints]) -> pa.Table:
    """All keys of some units of a rank."""
    source, units = work
    schema = _schema(dedup.KEY_COLUMNS)
    if not len(units):
        return schema.empty_table()

    def kept(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.filter(pa.array(np.isin(np.asarray(batch["unit"], dtype=np.int64), units)))

    return pa.Table.from_batches(_reduced(source, dedup.KEY_COLUMNS, kept), schema=schema)


def _of_a_kind(keys: pa.Table, kind: str) -> pa.Table:
    """Keys in which equal hashes of two kinds are not equal."""
    index = keys.schema.get_field_index("input_hash")
    hashes = pc.binary_join_element_wise(kind, keys["input_hash"], ":")  # null stays null
    return keys.set_column(index, "input_hash", hashes)


# -- reading -------------------------------------------------------------------------------------------------


def _schema(names: tuple[str, ...]) -> pa.Schema:
    return pa.schema([(name, _TYPES.get(name, pa.string())) for name in names])


def _reduced(source: RankRows, names: tuple[str, ...], reduce: Callable[[pa.RecordBatch], R]) -> list[R]:
    """What `reduce` makes of each batch of a rank's samples; parts of a bucket are read at once."""
    schema = _schema(names)

    def one(part: PartInfo) -> list[R]:
        return [reduce(batch) for batch in read_part(source, part, "samples", schema, _BATCH)]

    if is_bucket(source.folder.path):
        with contextlib.suppress(FileNotFoundError):  # joined meanwhile: below it is looked for again
            held = [part for part in source.parts if "samples" in part.files]
            return [piece for pieces in each(one, held, source.folder.path) for piece in pieces]
    return [reduce(batch) for batch in read_rows(source, "samples", schema, _BATCH)]
