"""Reading records: which attempt of a pass counts, which of its rows, and streaming them.

Rows come in the order of the attempts of a resumed pass, then rank, then as they were written; `unit` is
shifted where a pass is made of several attempts, so that (rank_, unit) names one row of the selection.
Families keep the same rows in the same order, so that batches of `samples` and (in classification) `vectors`
run side by side.
"""

import contextlib
import dataclasses
import errno
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from mld_core.records.format.attempts import Attempt, chain, choose, list_attempts, list_passes
from mld_core.records.format.bucket import each
from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.parts import file_name
from mld_core.records.format.removals import Removals
from mld_core.records.format.schema import base_schema, check_family
from mld_core.records.format.vectors import is_vector, to_fixed_size_list, vector_width
from mld_core.records.read.dedup import DedupReport
from mld_core.records.read.plan import plan_rows
from mld_core.records.read.rows import FEATURES_WENT, RankRows, read_rows, unify

__all__ = ["DedupReport", "PassSelection", "load", "scan", "select"]

BATCH_ROWS = 65536
# How often `load` looks again where a living run moved or dropped records meanwhile.
_TRIES = 4
# In front of every table: the pass a row belongs to.
_LOCATION = [
    pa.field("dataset_type", pa.dictionary(pa.int32(), pa.string())),
    pa.field("n_epoch", pa.int64()),
    pa.field("pass_no", pa.int32()),
]


class PassSelection:
    """The rows of one pass that count. Made by `select`; reads lazily and holds no file open."""

    def __init__(self, store: Store, attempts: list[tuple[Attempt, int | None]]) -> None:
        chosen = attempts[-1][0]
        self.store = store
        self.run: RunKey = chosen.run
        self.key: PassKey = chosen.key
        self.attempt: str = chosen.name
        self.sealed: bool = chosen.sealed
        self.sealed_at: str | None = chosen.sealed_at
        self.missing_ranks: list[int] = chosen.missing_ranks
        self._attempts = attempts

    def __repr__(self) -> str:
        state = "sealed" if self.sealed else f"partial, ranks {self.missing_ranks} have not sealed"
        return f"PassSelection({self.run}, {self.key}, attempt={self.attempt!r}, {state})"

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The pass meta of all ranks, the lowest rank's value where they differ."""
        merged: dict[str, Any] = {}
        for rank in reversed(self._attempts[-1][0].ranks):
            merged.update(rank.opened.meta)
            merged.update(rank.sealed.meta if rank.sealed is not None else {})
        return merged

    @cached_property
    def task(self) -> str:
        """The run's task."""
        return str(self.meta.get("task") or self.store.run_info(self.run).get("task") or "classification")

    @property
    def sigmoid(self) -> bool:
        """Whether each class of the logits was trained by itself, by binary cross-entropy.

        The two classes made of one logit are not: their softmax is its sigmoid.
        """
        return self.meta.get("kind") == "sigmoid" and not str(self.meta.get("activation")).startswith("one ")

    @property
    def hash_kind(self) -> str | None:
        """How `input_hash` was made; None where that differs from rank to rank."""
        kinds = {rank.hash_kind for attempt, _ in self._attempts for rank in attempt.ranks}
        return kinds.pop() if len(kinds) == 1 else None

    @cached_property
    def losses(self) -> dict[str, int]:
        """Reason -> rows the recorder lost, as far as the ranks have sealed."""
        total: dict[str, int] = {}
        for attempt, _ in self._attempts:
            for rank in attempt.ranks:
                for reason, rows in (rank.sealed.losses if rank.sealed is not None else {}).items():
                    total[reason] = total.get(reason, 0) + rows
        return total

    @cached_property
    def _rows(self) -> list[RankRows]:
        removed = Removals(self.store, self.run).of_split(self.key.dataset_type)
        return plan_rows(self._attempts, self.key.dataset_type, removed)

    @property
    def sources(self) -> tuple[RankRows, ...]:
        """What the rows come from, rank by rank, in their order."""
        return tuple(self._rows)

    @property
    def torn(self) -> list[str]:
        """Parts that were left out because they are damaged: path and reason."""
        return [reason for source in self._rows for reason in source.torn]

    @property
    def report(self) -> DedupReport:
        """What was left out by the rules of mld_core.records.read.dedup; removed samples are not there."""
        found = sum((source.report for source in self._rows), DedupReport())
        gone = sum(source.removed for source in self._rows)
        return dataclasses.replace(found, rows_read=found.rows_read - gone)

    @property
    def n_rows(self) -> int:
        """Number of sample rows that count."""
        report = self.report
        return report.rows_read - report.duplicates_dropped - report.superseded_rows

    def has(self, family: str) -> bool:
        """Whether any part holds this family."""
        return any(family in part.files for source in self._rows for part in source.parts)

    def schema(self, family: str, columns: Sequence[str] | None = None) -> pa.Schema:
        """The schema of a family over all parts: columns that only some parts have are null in the others.

        Raises:
            KeyError: a column that no part has. ValueError: an unknown family, or columns that changed their
                type. FileNotFoundError: records were removed since the pass was selected.
        """
        check_family(family)
        pieces = each(partial(RankRows.schemas, family=family), self._rows, self.store.root)
        found = [schema for piece in pieces for schema in piece]
        whole = unify(found, f"{family} of {self.key}") if found else base_schema(family, self.task)
        unknown = [name for name in columns or () if name not in whole.names]
        went = any(source.features_went for source in self._rows)
        if family == "vectors" and went and (columns is None or unknown):
            raise FileNotFoundError(errno.ENOENT, FEATURES_WENT, str(self.store.pass_dir(self.run, self.key)))
        if columns is None:
            return whole
        if unknown:
            raise KeyError(f"{family} of {self.key} has no column {unknown}; it has {whole.names}")
        return pa.schema([whole.field(name) for name in columns], metadata=whole.metadata)

    def batches(
        self, family: str = "samples", columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Stream the rows that count, `batch_rows` at a time (the last batch may be shorter).

        Args:
            family: "samples", "vectors", "detections", "truths" or "media".
            columns: only these, in this order; None = all.
            batch_rows: rows per batch.

        Raises:
            KeyError, ValueError: see `schema`. DamagedPartError: a part can not be decoded.
        """
        if batch_rows < 1:
            raise ValueError(f"batch_rows={batch_rows}: expected at least 1")
        schema = self.schema(family, columns)
        return rebatch(self._pieces(family, schema, batch_rows), schema, batch_rows)

    def files(self, family: str) -> list[Path]:
        """The Parquet files of a family, in the order of the rows; those that do not count are in them."""
        return [
            source.folder.path / part.name / file_name(family)
            for source in self._rows
            for part in source.parts
            if family in part.files
        ]

    def _pieces(self, family: str, schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
        return (piece for source in self._rows for piece in read_rows(source, family, schema, batch_rows))

    def table(self, family: str = "samples", columns: Sequence[str] | None = None) -> pa.Table:
        """All rows that count, in memory; see `batches`."""
        schema = self.schema(family, columns)
        return pa.Table.from_batches(self._pieces(family, schema, BATCH_ROWS), schema=schema)


def rebatch(pieces: Iterable[pa.RecordBatch], schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Cut a stream into batches of exactly `batch_rows`, so that two families stay in step."""
    held: list[pa.RecordBatch] = []
    count = 0
    for piece in pieces:
        rest = piece
        while count + rest.num_rows >= batch_rows:
            head = rest.slice(0, batch_rows - count)
            rest = rest.slice(batch_rows - count)
            yield _one([*held, head], schema)
            held, count = [], 0
        if rest.num_rows:
            held.append(rest)
            count += rest.num_rows
    if held:
        yield _one(held, schema)


def _one(held: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    if len(held) == 1:
        return held[0]
    table = pa.Table.from_batches(held, schema=schema).unify_dictionaries().combine_chunks()
    return table.to_batches()[0]


def select(
    store: Store,
    run: RunKey,
    *,
    dataset_type: str | Sequence[str] | None = None,
    n_epoch: int | Literal["latest"] | None = "latest",
    passes: Literal["last", "all"] = "last",
) -> list[PassSelection]:
    """The passes of a run that count, by split, epoch and number.

    Args:
        store: where to look.
        run: the run.
        dataset_type: a split, several, or None = all.
        n_epoch: an epoch; "latest" = for each split the epoch of the last sealed pass by time of sealing
            (passes without an epoch count too; the newest attempt where nothing is sealed); None = all.
        passes: "last" = one pass of each epoch, the last sealed one; "all" = all of them.

    Returns:
        One selection per pass; empty if nothing is there.

    Raises:
        ValueError, TypeError: an argument that is none of these.
    """
    if passes not in {"last", "all"}:
        raise ValueError(f"passes={passes!r}: expected 'last' or 'all'")
    if isinstance(n_epoch, bool) or not (n_epoch is None or n_epoch == "latest" or isinstance(n_epoch, int)):
        raise ValueError(f"n_epoch={n_epoch!r}: expected an int, 'latest', or None for every epoch")
    splits = [dataset_type] if isinstance(dataset_type, str) else dataset_type
    epochs = (n_epoch,) if isinstance(n_epoch, int) else None
    generation = store.generation(run)
    found: list[PassSelection] = []
    for key in list_passes(store, run, splits, epochs):
        item = _select_one(store, run, key, generation)
        if item is not None:
            found.append(item)
    if n_epoch == "latest":
        found = _latest(found)
    return _last(found) if passes == "last" else found


def _select_one(store: Store, run: RunKey, key: PassKey, generation: int) -> PassSelection | None:
    attempts = list_attempts(store, run, key)
    chosen = choose(attempts, generation)
    return PassSelection(store, chain(chosen, attempts, generation)) if chosen is not None else None


def _age(selection: PassSelection) -> tuple[bool, str, int]:
    return selection.sealed, selection.sealed_at or selection.attempt, selection.key.pass_no


def _latest(found: list[PassSelection]) -> list[PassSelection]:
    """For each split, the passes of the epoch of its last sealed pass."""
    result = []
    for split in dict.fromkeys(item.key.dataset_type for item in found):
        own = [item for item in found if item.key.dataset_type == split]
        epoch = max(own, key=_age).key.n_epoch
        result += [item for item in own if item.key.n_epoch == epoch]
    return result


def _last(found: list[PassSelection]) -> list[PassSelection]:
    """For each split and epoch, the last sealed pass, else the last."""
    best: dict[tuple[str, int | None], PassSelection] = {}
    for item in found:
        place = (item.key.dataset_type, item.key.n_epoch)
        other = best.get(place)
        if other is None or (item.sealed, item.key.pass_no) > (other.sealed, other.key.pass_no):
            best[place] = item
    return list(best.values())


def scan(
    model_name: str,
    version_name: str,
    table: str = "samples",
    dataset_type: str | Sequence[str] | None = None,
    n_epoch: int | Literal["latest"] | None = None,
    store: Store | str | Path | None = None,
    *,
    columns: Sequence[str] | None = None,
    batch_rows: int = BATCH_ROWS,
) -> pa.RecordBatchReader:
    """Stream one table of a run as `load` returns it, without holding more than a batch of it.

    The stream is Arrow's own: DuckDB, polars, Ray and others take it as it is, without a copy.

    Args:
        model_name: the run's model name.
        version_name: the run's version name.
        table: "samples", "vectors", "detections", "truths" or "media".
        dataset_type: a split, several, or None = all.
        n_epoch: an epoch, "latest", or None = all.
        store: a Store or its path; default `MLD_HOME`, else `~/.mld`.
        columns: only these, in this order; None = all.
        batch_rows: most rows of a batch.

    Returns:
        A reader of record batches, to be walked once. Columns as in `load`.

    Raises:
        ValueError: as `load`. KeyError: a column that is not there. FileNotFoundError, also while it is
            walked: records were removed since (a living training drops vectors of older epochs); scan again.
    """
    check_family(table)
    place = store if isinstance(store, Store) else Store(store)
    run = RunKey(model_name, version_name)
    if not place.run_dir(run).is_dir():
        known = [f"{other.model_name!r} {other.version_name!r}" for other in place.runs()]
        raise ValueError(
            f"no records of model {model_name!r} version {version_name!r} in {place.root}; "
            f"there are: {', '.join(known) or 'none'}. Set MLD_HOME if they lie elsewhere."
        )
    found = select(place, run, dataset_type=dataset_type, n_epoch=n_epoch, passes="all")
    now = [_as_now(item, table) for item in found]
    shapes = [shape for _, shape in now] or [
        base_schema(table, str(place.run_info(run).get("task") or "classification"))
    ]
    whole = _LOCATION + list(
        unify([_presented(shape) for shape in shapes], f"{table} of {model_name} {version_name}")
    )
    names = [item.name for item in whole] if columns is None else list(columns)
    unknown = [name for name in names if name not in {item.name for item in whole}]
    if unknown:
        raise KeyError(f"{table} has no column {unknown}; it has {[item.name for item in whole]}")
    schema = pa.schema([next(item for item in whole if item.name == name) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        while now:  # a pass that was read holds nothing any more
            item, shape = _as_now(now.pop(0)[0], table)
            own = [name for name in names if name in shape.names]
            for batch in item.batches(table, own or ["unit"], batch_rows):
                yield _located(batch, item.key, schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _as_now(item: PassSelection, table: str) -> tuple[PassSelection, pa.Schema]:
    """The pass and its schema; selected anew where its feature vectors were dropped since it was selected.

    Raises:
        FileNotFoundError: it was moved or removed.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return item, item.schema(table)
        item = _select_one(item.store, item.run, item.key, item.store.generation(item.run)) or item
    return item, item.schema(table)


def load(
    model_name: str,
    version_name: str,
    table: str = "samples",
    dataset_type: str | Sequence[str] | None = None,
    n_epoch: int | Literal["latest"] | None = None,
    store: Store | str | Path | None = None,
) -> pa.Table:
    """Read one table of a run: all passes, de-duplicated, with their place in front.

    Args:
        model_name: the run's model name.
        version_name: the run's version name.
        table: "samples", "vectors", "detections", "truths" or "media".
        dataset_type: a split, several, or None = all.
        n_epoch: an epoch, "latest", or None = all.
        store: a Store or its path; default `MLD_HOME`, else `~/.mld`.

    Returns:
        The columns `dataset_type`, `n_epoch` (null = unknown), `pass_no`, then those of the family. Vectors
        are FixedSizeList<float32>. One state of a living run: what is dropped or moved meanwhile is looked
        for again.

    Raises:
        ValueError: an unknown table, no such run (the message lists those there are), or widths that changed.
    """
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return scan(model_name, version_name, table, dataset_type, n_epoch, store).read_all()
    return scan(model_name, version_name, table, dataset_type, n_epoch, store).read_all()


def _presented(schema: pa.Schema) -> pa.Schema:
    """Vectors as lists of float32."""
    lists = (pa.list_(pa.float32(), vector_width(item)) if is_vector(item) else item.type for item in schema)
    return pa.schema([pa.field(item.name, kind) for item, kind in zip(schema, lists, strict=True)])


def _located(batch: pa.RecordBatch, key: PassKey, schema: pa.Schema) -> pa.RecordBatch:
    """A batch in `schema`: its place in front, vectors as lists, null where the pass has no such column."""
    rows = batch.num_rows
    columns: dict[str, Any] = {
        "dataset_type": pa.DictionaryArray.from_arrays(
            pa.repeat(pa.scalar(0, pa.int32()), rows), [key.dataset_type]
        ),
        "n_epoch": pa.repeat(pa.scalar(key.n_epoch, pa.int64()), rows),
        "pass_no": pa.repeat(pa.scalar(key.pass_no, pa.int32()), rows),
    }
    for item, column in zip(batch.schema, batch.columns, strict=True):
        columns[item.name] = to_fixed_size_list(column, item) if is_vector(item) else column
    arrays = [
        columns[item.name].cast(item.type) if item.name in columns else pa.nulls(rows, item.type)
        for item in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
