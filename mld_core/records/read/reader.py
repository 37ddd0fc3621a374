"""Reading records: which attempt of a pass counts, which of its rows, and streaming them.

Rows come in the order of the attempts of a resumed pass, then rank, then as they were written; `unit` is
shifted where a pass is made of several attempts, so that (rank_, unit) names one row of the selection.
Families keep the same rows in the same order, so that batches of `samples` and (in classification) `vectors`
run side by side.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from mld_core.records.format.attempts import Attempt, chain, choose, list_attempts, list_passes
from mld_core.records.format.layout import PassKey, RunKey, Store
from mld_core.records.format.schema import base_schema, check_family
from mld_core.records.format.vectors import is_vector, to_fixed_size_list
from mld_core.records.read.dedup import DedupReport
from mld_core.records.read.rows import RankRows, plan_rows, read_rows, unify

__all__ = ["DedupReport", "PassSelection", "load", "select"]

BATCH_ROWS = 65536


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
        return plan_rows(self._attempts, self.key.dataset_type)

    @property
    def torn(self) -> list[str]:
        """Parts that were left out because they are damaged: path and reason."""
        return [reason for source in self._rows for reason in source.torn]

    @property
    def report(self) -> DedupReport:
        """What was left out by the rules of mld_core.records.read.dedup."""
        return sum((source.report for source in self._rows), DedupReport())

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
                type.
        """
        check_family(family)
        found = [schema for source in self._rows for schema in source.schemas(family)]
        whole = unify(found, f"{family} of {self.key}") if found else base_schema(family, self.task)
        if columns is None:
            return whole
        unknown = [name for name in columns if name not in whole.names]
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
        return _rebatch(self._pieces(family, schema, batch_rows), schema, batch_rows)

    def _pieces(self, family: str, schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
        return (piece for source in self._rows for piece in read_rows(source, family, schema, batch_rows))

    def table(self, family: str = "samples", columns: Sequence[str] | None = None) -> pa.Table:
        """All rows that count, in memory; see `batches`."""
        schema = self.schema(family, columns)
        return pa.Table.from_batches(self._pieces(family, schema, BATCH_ROWS), schema=schema)


def _rebatch(
    pieces: Iterable[pa.RecordBatch], schema: pa.Schema, batch_rows: int
) -> Iterator[pa.RecordBatch]:
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
        attempts = list_attempts(store, run, key)
        chosen = choose(attempts, generation)
        if chosen is not None:
            found.append(PassSelection(store, chain(chosen, attempts, generation)))
    if n_epoch == "latest":
        found = _latest(found)
    return _last(found) if passes == "last" else found


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
        are FixedSizeList<float32>.

    Raises:
        ValueError: an unknown table, no such run (the message lists those there are), or widths that changed.
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
    pieces = [_located(item.table(table), item.key) for item in found]
    if not pieces:
        task = str(place.run_info(run).get("task") or "classification")
        pieces = [_located(base_schema(table, task).empty_table(), PassKey("", None, 0))]
    schema = unify([piece.schema for piece in pieces], f"{table} of {model_name} {version_name}")
    return pa.concat_tables(
        [piece.cast(schema) if piece.schema == schema else _fill(piece, schema) for piece in pieces]
    )


def _fill(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[item.name].cast(item.type)
        if item.name in table.column_names
        else pa.nulls(table.num_rows, item.type)
        for item in schema
    ]
    return pa.table(columns, schema=schema)


def _located(table: pa.Table, key: PassKey) -> pa.Table:
    """Put the place in front and present vectors as lists."""
    rows = table.num_rows
    split = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), [key.dataset_type])
    columns: dict[str, Any] = {
        "dataset_type": split,
        "n_epoch": pa.repeat(pa.scalar(key.n_epoch, pa.int64()), rows),
        "pass_no": pa.repeat(pa.scalar(key.pass_no, pa.int32()), rows),
    }
    for item in table.schema:
        column = table[item.name]
        columns[item.name] = to_fixed_size_list(column, item) if is_vector(item) else column
    return pa.table(columns)
