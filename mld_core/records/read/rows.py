"""The rows of one rank of one attempt: which count, and reading them part by part.

A pass that is still being written may be sealed, and its parts joined, between planning and reading. The
sealed parts hold the same rows in the same order, perhaps followed by more; so reading goes on in them where
it stopped, and rows that came after the plan are left out.
"""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mld_core.records.format.attempts import RankFolder
from mld_core.records.format.bucket import each
from mld_core.records.format.manifest import FEATURES_DROPPED, PartInfo
from mld_core.records.format.parts import UNDECODABLE, damaged, file_name, open_family
from mld_core.records.format.vectors import is_vector
from mld_core.records.read.dedup import DedupReport

Ints = npt.NDArray[np.int64]
FEATURES_WENT = "feature vectors were dropped since this was selected; select again"
_NONE: Ints = np.empty(0, dtype=np.int64)


@dataclass
class RankRows:
    """One rank's rows.

    Attributes:
        folder: the rank folder as it is read now; `selected` as it was when the pass was selected.
        parts: the parts that count, in order.
        torn: why other parts do not.
        limit: the step from which on rows do not count; None = all do.
        dropped: units left out, sorted.
        offset: what is added to `unit`.
        last_unit: greatest unit that was there when the rows were planned; None = no row was looked at.
        report: what was left out.
        removed: rows on disk of samples that were removed.
    """

    folder: RankFolder
    parts: list[PartInfo]
    torn: list[str]
    selected: RankFolder
    limit: int | None = None
    dropped: Ints = field(default_factory=lambda: _NONE)
    offset: int = 0
    last_unit: int | None = None
    report: DedupReport = field(default_factory=DedupReport)
    removed: int = 0
    reread: bool = False

    @property
    def features_went(self) -> bool:
        """Whether feature vectors were dropped since the pass was selected: half of them would be wrong."""
        now, before = (
            folder.sealed is not None and bool(folder.sealed.meta.get(FEATURES_DROPPED))
            for folder in (self.folder, self.selected)
        )
        return now and not before

    def refresh(self) -> bool:
        """Look again after a part was gone; False if that was done already and is of no use."""
        current, parts, torn = self.folder.settled()
        rows = sum(part.rows_of("samples") for part in parts)
        same = [part.name for part in parts] == [part.name for part in self.parts]
        if same or rows < self.report.rows_read:
            return False  # the folder was moved or removed, not joined
        self.folder, self.parts, self.torn, self.reread = current, parts, torn, True
        if self.last_unit is None:
            self.last_unit = self._last_planned_unit()
        return True

    def _last_planned_unit(self) -> int:
        """The greatest unit among the first rows, as many as there were when the rows were planned."""
        last, left = -1, self.report.rows_read
        for part in self.parts:
            if left <= 0 or "samples" not in part.files:
                continue
            with open_family(self.folder.path / part.name, "samples") as file:
                units = _units(file.read(columns=["unit"], use_threads=False))[:left]
            left -= len(units)
            last = max(last, int(units.max()) if len(units) else -1)
        return last

    def schemas(self, family: str) -> list[pa.Schema]:
        """The schema of each part that has this family."""
        try:
            return self._schemas(family)
        except FileNotFoundError:
            if not self.refresh():
                raise
            return self._schemas(family)

    def _schemas(self, family: str) -> list[pa.Schema]:
        held = [part for part in self.parts if family in part.files]
        return each(partial(self._schema, family=family), held, self.folder.path)

    def _schema(self, part: PartInfo, *, family: str) -> pa.Schema:
        with open_family(self.folder.path / part.name, family) as file:
            return file.schema_arrow


def unify(schemas: Sequence[pa.Schema], what: str) -> pa.Schema:
    """One schema for several; a column that is null somewhere takes the type it has elsewhere.

    Raises:
        ValueError: a column has two types.
    """
    first = schemas[0]
    layouts: dict[str, bytes] = {}
    for item in (item for schema in schemas for item in schema if is_vector(item)):
        # The same number of bytes may be another dtype: Arrow would not notice.
        if layouts.setdefault(item.name, item.metadata[b"dtype"]) != item.metadata[b"dtype"]:
            raise ValueError(
                f"{what}: column {item.name!r} changed its dtype between parts; read one pass at a time"
            )
    if all(schema.equals(first, check_metadata=True) for schema in schemas):
        return first
    try:
        return pa.unify_schemas(list(schemas), promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(
            f"{what}: a column changed its type or width between parts ({error}); read one epoch or pass "
            "at a time, or leave that column out"
        ) from error


def _units(rows: pa.Table | pa.RecordBatch) -> Ints:
    return np.asarray(rows["unit"], dtype=np.int64)


def read_rows(source: RankRows, family: str, schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Stream the rows of one rank that count, as `schema`.

    Raises:
        FileNotFoundError: a part vanished and nothing took its place, or the feature vectors it held are
            gone. DamagedPartError: one can not be decoded.
    """
    passed = 0  # rows read so far, counted or not: where to go on after the parts were joined
    while True:
        skip = passed
        try:
            for part in source.parts:
                if skip >= part.rows_of(family):
                    skip -= part.rows_of(family)
                    continue
                for batch in _part_batches(source, part, family, schema, batch_rows):
                    if skip >= batch.num_rows:
                        skip -= batch.num_rows
                        continue
                    fresh = batch.slice(skip)
                    passed += fresh.num_rows
                    skip = 0
                    kept = _filter(source, fresh, schema)
                    if kept.num_rows:
                        yield kept
        except FileNotFoundError:
            if not source.refresh():
                raise
            wanted = [item.name for item in schema if is_vector(item) and item.name != "logits"]
            if wanted and source.features_went:
                raise FileNotFoundError(errno.ENOENT, FEATURES_WENT, str(source.folder.path)) from None
        else:
            return


def read_part(
    source: RankRows, part: PartInfo, family: str, schema: pa.Schema, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Stream the rows of one part that count, as `schema`; whoever reads part by part finds none moved.

    Raises:
        FileNotFoundError: it was joined with others or removed since. DamagedPartError: it can not be
            decoded.
    """
    for batch in _part_batches(source, part, family, schema, batch_rows):
        kept = _filter(source, batch, schema)
        if kept.num_rows:
            yield kept


def _part_batches(
    source: RankRows, part: PartInfo, family: str, schema: pa.Schema, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    folder = source.folder.path / part.name
    with open_family(folder, family) as file:
        stored = file.schema_arrow.names
        columns = [name for name in dict.fromkeys([*schema.names, "unit"]) if name in stored]
        reading = file.iter_batches(batch_size=batch_rows, columns=columns, use_threads=False)
        while True:
            try:
                batch = next(reading, None)
            except UNDECODABLE as error:
                raise damaged(folder / file_name(family), error) from error
            if batch is None:
                return
            yield batch


def _filter(source: RankRows, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Leave out what does not count, shift units, and bring the batch into `schema`."""
    units: Ints | None = None
    keep = np.ones(0, dtype=np.bool_)
    if source.dropped.size or source.offset or source.reread:
        units = _units(batch)
        keep = ~np.isin(units, source.dropped)
        if source.reread and source.last_unit is not None:
            keep &= units <= source.last_unit
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    if units is not None:
        columns["unit"] = pa.array(units + source.offset, type=pa.int64())
    arrays = [
        columns[item.name].cast(item.type) if item.name in columns else pa.nulls(batch.num_rows, item.type)
        for item in schema
    ]
    result = pa.RecordBatch.from_arrays(arrays, schema=schema)
    return result if keep.all() else result.filter(pa.array(keep))
