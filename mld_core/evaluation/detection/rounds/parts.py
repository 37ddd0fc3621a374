"""The parts of a detection pass: each is read as a pass of its own, with what the whole pass has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mld_core.evaluation.detection.records import (
    ONE_SIDE,
    BoxHead,
    BoxRecords,
    count_box_classes,
    head_of,
    largest_label,
    read_boxes,
)
from mld_core.evaluation.engine.rounds import gone_is_told
from mld_core.records.format.schema import check_family
from mld_core.records.read.parts import PassPart, parts_of
from mld_core.records.read.reader import PassSelection

_READ = ("n_class", "class_names", "activation", "background")
"""What boxes are read by of a run's info."""

FAMILIES = ("samples", "detections", "truths", "vectors")


class PartPass(PassSelection):
    """One part of a pass; reads as a pass of these rows would, and is plain data.

    Args:
        whole: The pass.
        part: The part.
    """

    def __init__(self, whole: PassSelection, part: PassPart) -> None:
        self.store, self.run, self.key = whole.store, whole.run, whole.key
        self.attempt, self.sealed, self.sealed_at = whole.attempt, whole.sealed, whole.sealed_at
        self.missing_ranks = whole.missing_ranks
        self._attempts = []
        self.part = part
        # What the pass has once is not looked up again for each part.
        self.__dict__.update(meta=whole.meta, task=whole.task, _rows=[part.source])

    def has(self, family: str) -> bool:
        """Whether the part holds this family."""
        return family in self.part.part.files

    def schema(self, family: str, columns: Sequence[str] | None = None) -> pa.Schema:
        """That of the whole pass; see `PassSelection.schema`."""
        check_family(family)
        whole = self.part.schemas[family]
        if columns is None:
            return whole
        return pa.schema([whole.field(name) for name in columns], metadata=whole.metadata)

    def _pieces(self, family: str, schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
        with gone_is_told(self.part):
            yield from self.part.batches(family, list(schema.names), batch_rows)


@dataclass(frozen=True)
class BoxWalk:
    """A part as a round walks over it, whole; plain data.

    Attributes:
        selection: The part.
        info: The run's info, as far as boxes are read by it.
        head: What the whole pass has; None before that is known.
        first_frame: Number of its first frame in the pass.
        first: Number of its first kept prediction.
    """

    selection: PartPass
    info: dict[str, Any]
    head: BoxHead | None = None
    first_frame: int = 0
    first: int = 0

    @property
    def number(self) -> int:
        """See `Walk`."""
        return self.selection.part.number

    @property
    def nbytes(self) -> int:
        """See `Walk`."""
        return self.selection.part.nbytes

    @property
    def num_rows(self) -> int:
        """Frames on disk."""
        return self.selection.part.part.rows_of("samples")

    def batches(self) -> Iterator[BoxWalk]:
        """Itself: frames and their boxes lie in several files, and the kernel reads them together."""
        yield self

    def records(self) -> BoxRecords:
        """The boxes of the part."""
        return read_boxes(self.selection, self.info, self.head)

    def check(self, records: BoxRecords) -> None:
        """Refuse a part that has boxes of frames that it has not.

        Raises:
            ValueError: It is one.
        """
        frames = records.frames.select(["rank_", "unit"])
        for family in ("detections", "truths"):
            owners = self.selection.table(family, ["rank_", "unit"])
            strangers = owners.join(frames, ["rank_", "unit"], join_type="left anti").num_rows
            if strangers:
                where = self.selection.part.source.folder.path / self.selection.part.part.name
                raise ValueError(
                    f"{where}: {strangers} rows of {family} belong to frames that this part has not, which "
                    "rounds over parts cannot match; evaluate it with engine='memory', and run `mld doctor`"
                )


def walks_of(selection: PassSelection, info: dict[str, Any]) -> list[BoxWalk]:
    """The parts of a pass."""
    known = {name: info[name] for name in _READ if name in info}
    return [BoxWalk(PartPass(selection, part), known) for part in parts_of(selection, FAMILIES)]


# -- the first round: what the whole pass has ------------------------------------------------------------


@dataclass
class Seen:
    """What parts show of the whole pass.

    Attributes:
        largest: The largest class that is said or true.
        turned: Whether all predictions, and whether all truths, have rotated boxes.
        boxes: Whether there are predictions, and whether there are truths.
    """

    largest: int = -1
    turned: tuple[bool, bool] = (True, True)
    boxes: tuple[bool, bool] = (False, False)

    def merge(self, other: Seen) -> Seen:
        """What both show."""
        return Seen(
            max(self.largest, other.largest),
            (self.turned[0] and other.turned[0], self.turned[1] and other.turned[1]),
            (self.boxes[0] or other.boxes[0], self.boxes[1] or other.boxes[1]),
        )

    def head(self, selection: PassSelection, info: dict[str, Any]) -> BoxHead:
        """What the whole pass has."""
        activation, background = head_of(selection, info)
        n_class = count_box_classes(selection, info, self.largest, background)
        return BoxHead(n_class, activation, background, rotated=all(self.turned))

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say about it."""
        return (ONE_SIDE,) if self.turned[0] != self.turned[1] and all(self.boxes) else ()


def look_kernel(walk: BoxWalk, _: None) -> tuple[None, Seen]:
    """First round: classes and kinds of boxes."""
    records = walk.records()
    walk.check(records)
    said, true = records.predictions, records.truths
    return None, Seen(largest_label(said, true), records.turned, (len(said) > 0, len(true) > 0))
