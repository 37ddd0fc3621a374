"""The parts of a pass, each readable by itself: by a thread, or in place by a process on another machine.

What is shipped says where a part lies and which of its rows count, never the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from mld_core.records.format.attempts import RankFolder
from mld_core.records.format.manifest import PartInfo
from mld_core.records.read.reader import PassSelection, rebatch
from mld_core.records.read.rows import RankRows, read_part


@dataclass(frozen=True)
class PassPart:
    """One part of a pass; plain data.

    Attributes:
        number: Its place among the parts of the pass.
        source: Its rank's rows: where they lie and which do not count.
        part: Its files.
        schemas: Family -> schema, that of the whole pass.
    """

    number: int
    source: RankRows
    part: PartInfo
    schemas: dict[str, pa.Schema]

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        return self.part.disk_bytes

    def batches(self, family: str, columns: list[str] | None, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Stream the rows that count, in batches of `batch_rows` rows (the last may be shorter)."""
        schema = self.schemas[family]
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        if family not in self.part.files:
            return
        pieces = read_part(self.source, self.part, family, schema, batch_rows)
        yield from rebatch(pieces, schema, batch_rows)


def parts_of(selection: PassSelection, families: tuple[str, ...] = ("samples", "vectors")) -> list[PassPart]:
    """The parts of a pass, in the order of its rows, of which some families are read."""
    schemas = {family: selection.schema(family) for family in families}
    made: list[PassPart] = []
    for source in selection.sources:
        slim = _without_lists(source)
        for part in source.parts:
            if "samples" in part.files:
                made.append(PassPart(len(made), slim, part, schemas))
    return made


def _without_lists(source: RankRows) -> RankRows:
    """The same without the list of its parts: of a rank with thousands each would carry them all."""
    folder = RankFolder(source.folder.path, source.folder.rank, source.folder.opened, None)
    return replace(source, folder=folder, selected=folder, parts=[], torn=[])
