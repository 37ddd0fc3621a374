"""The boxes of one pass, read from its records: frames, predictions, truths, and the vectors of predictions.

Boxes are held as flat columns (about 60 bytes each); logits and features are only ever streamed. Rows follow
the samples that count: what de-duplication leaves out takes its boxes with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, Predictions, Truths
from mld_core.evaluation.statistics.blocks import Vectors
from mld_core.records.format.schema import AREA, ATTRIBUTE, ROTATED, ROTATED_TYPE, base_schema
from mld_core.records.format.vectors import is_vector, to_numpy
from mld_core.records.read.reader import PassSelection

IN_MEMORY = 2**28
"""Vectors of kept predictions up to so many bytes stay in memory, more go to a temporary file."""

KNOWN = ("difficulty", "occlusion", "truncation", "n_points")
"""What the records may know of a truth beside its box."""

ONE_SIDE = "only predictions or only truths have rotated boxes: the upright boxes around them are matched"

UNIT_BITS = 40
DET_BITS = 32
_ROWS = 65_536


@dataclass(frozen=True)
class BoxHead:
    """What the whole pass has, where a part of it is read; `rotated`: every box of it is a rotated one."""

    n_class: int
    activation: str
    background: int | None
    rotated: bool


@dataclass(frozen=True)
class BoxRecords:
    """One pass.

    Attributes:
        selection: The records.
        frames: One row for each frame: input_id, input_hash, id_source, labelled, image size, user's fields.
        labelled: (F,) frames whose truth is known.
        predictions: Every recorded prediction of every frame.
        det_idx: (N,) its number within the frame.
        truths: Truths of labelled frames.
        gt_idx: (G,) its number within the frame.
        truth_columns: Further columns of the truths: difficulty, n_points, the user's own, ...
        n_class: Number of classes.
        class_names: (K,) their names, `class_<k>` where the run has none.
        activation: "softmax", "sigmoid" or "none".
        background: Column of the stored logits that means background, or None.
        velocity: (N, 2) m/s or None.
        truth_velocity: (G, 2) m/s or None.
        attribute: (N,) number of the predicted attribute, -1: none; or None.
        truth_attribute: (G,) likewise.
        center: (N, 2) centres; 2D as shares of the image's width and height where its size is known.
        truth_center: (G, 2) likewise.
        border: (G,) truths that touch the border of their image.
        outside: (G,) share of the truth that lies outside the image, 0 where its size is not known.
        calibration: (F,) texts of the 3D frames' calibration, None where there is none.
        turned: Whether all predictions, and whether all truths, have rotated boxes.
    """

    selection: PassSelection
    frames: pa.Table
    labelled: Bools
    predictions: Predictions
    det_idx: Ints
    truths: Truths
    gt_idx: Ints
    truth_columns: pa.Table
    n_class: int
    class_names: tuple[str, ...]
    activation: str
    background: int | None
    velocity: NDArray[np.float32] | None = None
    truth_velocity: NDArray[np.float32] | None = None
    attribute: Ints | None = None
    truth_attribute: Ints | None = None
    notes: tuple[str, ...] = ()
    center: Floats = field(default_factory=lambda: np.empty((0, 2)))
    truth_center: Floats = field(default_factory=lambda: np.empty((0, 2)))
    border: Bools = field(default_factory=lambda: np.empty(0, np.bool_))
    outside: Floats = field(default_factory=lambda: np.empty(0))
    calibration: Sequence[str | None] = ()
    turned: tuple[bool, bool] = (False, False)

    @property
    def task(self) -> str:
        """Either "detection" or "detection3d"."""
        return self.selection.task

    @property
    def features(self) -> tuple[str, ...]:
        """Aliases of the stored features of predictions."""
        return tuple(
            item.name
            for item in self.selection.schema("vectors")
            if is_vector(item) and item.name != "logits"
        )

    @property
    def has_logits(self) -> bool:
        """Whether class logits are stored."""
        return "logits" in self.selection.schema("vectors").names


def read_boxes(selection: PassSelection, info: dict[str, Any], head: BoxHead | None = None) -> BoxRecords:
    """Read the boxes of a pass.

    Args:
        selection: The pass, of a detection task.
        info: The run's info (`n_class`).
        head: What the pass has of which `selection` is a part; None: `selection` is all of it.
    """
    schema = selection.schema("samples")
    names = [item.name for item in schema if not pa.types.is_nested(item.type)]
    frames = selection.table("samples", names)
    canvas = _Canvas.of(selection, frames)
    labelled = _flags(frames, "labelled", default=True)
    columns = ["unit", "rank_", "det_idx", "label", "score", "box"]
    more = [name for name in ("velocity", ATTRIBUTE, ROTATED) if name in selection.schema("detections").names]
    detections = selection.table("detections", [*columns, *more])
    predictions, det_rows = _predictions(detections, frames, _width(selection))
    truths = selection.table("truths")
    true, gt_rows = _truths(truths, frames, labelled, _width(selection))
    center, truth_center = canvas.center(predictions), canvas.center(true)
    border, outside = canvas.border(true), canvas.outside(true)
    turned = _rotated(detections, det_rows), _rotated(truths, gt_rows)
    if turned[0] is not None and turned[1] is not None and (head is None or head.rotated):
        predictions = replace(predictions, rotated=canvas.turned(turned[0], predictions.frame))
        true = replace(true, rotated=canvas.turned(turned[1], true.frame))
    one_side = (turned[0] is None) != (turned[1] is None) and len(predictions) > 0 and len(true) > 0
    predictions = replace(predictions, box=canvas.original(predictions))
    true = replace(true, box=canvas.original(true))
    stored = {*base_schema("truths", selection.task).names} - {*KNOWN, AREA}
    stored |= {ROTATED} if true.rotated is not None else set()
    own = [name for name in truths.column_names if name not in stored]
    if head is None:
        activation, background = head_of(selection, info)
        n_class = count_box_classes(selection, info, largest_label(predictions, true), background)
        head = BoxHead(n_class, activation, background, rotated=True)
    return BoxRecords(
        selection,
        frames,
        labelled,
        predictions,
        _ints(detections, "det_idx")[det_rows],
        true,
        _ints(truths, "gt_idx")[gt_rows],
        truths.select(own).take(pa.array(gt_rows)),
        head.n_class,
        names_of_classes(info, head.n_class),
        head.activation,
        head.background,
        _list_column(detections, "velocity", 2, det_rows) if "velocity" in more else None,
        _list_column(truths, "velocity", 2, gt_rows) if "velocity" in truths.column_names else None,
        _attributes(detections, det_rows),
        _attributes(truths, gt_rows),
        notes=(ONE_SIDE,) if one_side else (),
        center=center,
        truth_center=truth_center,
        border=border,
        outside=outside,
        calibration=frames["calibration"].to_pylist() if "calibration" in frames.column_names else (),
        turned=(turned[0] is not None, turned[1] is not None),
    )


def names_of_classes(info: dict[str, Any], n_class: int) -> tuple[str, ...]:
    """(K,) names of the classes, `class_<k>` where the run has none."""
    given = list(info.get("class_names") or ())
    return tuple(str(given[k]) if k < len(given) else f"class_{k}" for k in range(n_class))


def _rows_of(stored: Ints, wanted: Ints) -> Ints:
    """Where each wanted key stands among the stored ones, -1 where it does not."""
    if len(stored) == 0:
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(stored, kind="stable")
    place = order[np.minimum(np.searchsorted(stored, wanted, sorter=order), len(stored) - 1)]
    return np.where(stored[place] == wanted, place, -1)


def _by_frame(frames: pa.Table, table: pa.Table) -> tuple[Ints, Ints]:
    """Frame and row of the boxes whose sample is there, frames rising."""
    frame = _rows_of(_keys(frames), _keys(table))
    order = np.argsort(frame, kind="stable")
    rows = order[np.searchsorted(frame[order], 0) :]
    return frame[rows], rows


def _keys(table: pa.Table) -> Ints:
    return (_ints(table, "rank_") << UNIT_BITS) + _ints(table, "unit")


def _ints(table: pa.Table, name: str) -> Ints:
    column = table[name].cast(pa.int64()).fill_null(-1)
    return np.asarray(column.to_numpy(), np.int64)


def _flags(table: pa.Table, name: str, *, default: bool = False) -> Bools:
    if name not in table.column_names:
        return np.full(table.num_rows, default)
    return np.asarray(table[name].fill_null(default).to_numpy(), np.bool_)


def _width(selection: PassSelection) -> int:
    return 7 if selection.task == "detection3d" else 4


def _list_column(table: pa.Table, name: str, width: int, rows: Ints) -> NDArray[np.float32]:
    """(len(rows), width) values of a fixed-size list column; a null list becomes NaN."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    made = np.full((len(column), width), np.nan, np.float32)
    there = np.asarray(column.is_valid())
    made[there] = np.asarray(column.drop_null().flatten(), np.float32).reshape(-1, width)
    return made[rows]


def _rotated(table: pa.Table, rows: Ints) -> NDArray[np.float32] | None:
    """(len(rows), 5) rotated boxes; None where there are none, or not of every box."""
    if ROTATED not in table.column_names or table.schema.field(ROTATED).type != ROTATED_TYPE:
        return None
    found = _list_column(table, ROTATED, 5, rows)
    return found if np.isfinite(found).all() else None


def _attributes(table: pa.Table, rows: Ints) -> Ints | None:
    """(len(rows),) attributes by number; a user's own column of that name need not hold numbers."""
    there = ATTRIBUTE in table.column_names and pa.types.is_integer(table.schema.field(ATTRIBUTE).type)
    return _ints(table, ATTRIBUTE)[rows] if there else None


def _predictions(table: pa.Table, frames: pa.Table, width: int) -> tuple[Predictions, Ints]:
    frame, rows = _by_frame(frames, table)
    score, box = np.asarray(table["score"].to_numpy(), np.float32), _list_column(table, "box", width, rows)
    return Predictions(frame, _ints(table, "label")[rows], score[rows], box), rows


def _truths(table: pa.Table, frames: pa.Table, labelled: Bools, width: int) -> tuple[Truths, Ints]:
    frame, rows = _by_frame(frames, table)
    known = labelled[frame]
    frame, rows = frame[known], rows[known]
    label = _ints(table, "label")[rows]
    # A truth without a class ("don't care") can be found by no class and must not be missed either.
    ignore = _flags(table, "ignore")[rows] | (label < 0)
    crowd = _flags(table, "crowd")[rows]
    return Truths(frame, label, _list_column(table, "box", width, rows), ignore, crowd), rows


@dataclass(frozen=True)
class _Canvas:
    """The images boxes lie on: (F, 2) width and height, and what leads to the original image."""

    size: Floats
    scale: Floats
    shift: Floats
    flat: bool

    @classmethod
    def of(cls, selection: PassSelection, frames: pa.Table) -> _Canvas:
        """Sizes and affines; one that rotates or shears counts as the identity."""
        size = np.full((frames.num_rows, 2), np.nan)
        for place, name in enumerate(("image_width", "image_height")):
            if name in frames.column_names:
                size[:, place] = frames[name].cast(pa.float64()).to_numpy()
        size[~(size > 0)] = np.nan
        scale, shift = np.ones((len(size), 2)), np.zeros((len(size), 2))
        flat = selection.task != "detection3d"
        if flat and "affine" in selection.schema("samples").names:
            column = selection.table("samples", ["affine"])["affine"]
            rows = np.flatnonzero(pc.equal(pc.list_value_length(column), 6).fill_null(False).to_numpy())
            if len(rows):
                values = column.take(pa.array(rows)).combine_chunks().flatten().to_numpy().reshape(-1, 2, 3)
                straight = (values[:, 0, 1] == 0) & (values[:, 1, 0] == 0)
                rows, values = rows[straight], values[straight]
                scale[rows], shift[rows] = values[:, [0, 1], [0, 1]], values[:, :, 2]
        return cls(size, scale, shift, flat)

    def center(self, boxes: Predictions | Truths) -> Floats:
        """Centres as shares of the image, in pixels or metres where no size is known."""
        wide = boxes.box.astype(np.float64)
        if not self.flat:
            return wide[:, :2]
        size = np.nan_to_num(self.size[boxes.frame], nan=1.0)
        return np.asarray((wide[:, :2] + wide[:, 2:4]) / 2 / size)

    def border(self, boxes: Truths) -> Bools:
        """Boxes within a pixel of the border."""
        if not self.flat or len(boxes) == 0:
            return np.zeros(len(boxes), np.bool_)
        size = self.size[boxes.frame]
        return np.asarray((boxes.box[:, :2] <= 1).any(axis=1) | (boxes.box[:, 2:] >= size - 1).any(axis=1))

    def outside(self, boxes: Truths) -> Floats:
        """(G,) share of each box that lies outside its image."""
        if not self.flat or len(boxes) == 0:
            return np.zeros(len(boxes))
        box, size = boxes.box.astype(np.float64), self.size[boxes.frame]
        within = (np.minimum(box[:, 2:], size) - np.maximum(box[:, :2], 0)).clip(0).prod(axis=1)
        area = np.maximum((box[:, 2:] - box[:, :2]).prod(axis=1), 1e-12)
        return np.where(np.isnan(within), 0.0, 1 - within / area)

    def turned(self, rotated: NDArray[np.floating], frame: Ints) -> NDArray[np.float32]:
        """Rotated boxes in pixels of the original image: the side w and the area as they are there."""
        wide = rotated.astype(np.float64)
        scale, shift = self.scale[frame], self.shift[frame]
        along = np.stack([np.cos(wide[:, 4]), np.sin(wide[:, 4])], axis=1) * wide[:, 2:3] * scale
        w = np.hypot(along[:, 0], along[:, 1])
        h = wide[:, 2] * wide[:, 3] * np.abs(scale.prod(axis=1)) / np.maximum(w, 1e-12)
        angle = np.arctan2(along[:, 1], along[:, 0])
        return np.column_stack([wide[:, :2] * scale + shift, w, h, angle]).astype(np.float32)

    def original(self, boxes: Predictions | Truths) -> NDArray[np.floating]:
        """Boxes in pixels of the original image."""
        if not self.flat or ((self.scale == 1).all() and (self.shift == 0).all()):
            return boxes.box
        scale, shift = np.tile(self.scale[boxes.frame], 2), np.tile(self.shift[boxes.frame], 2)
        moved = boxes.box * scale + shift
        # A mirrored image swaps the ends.
        low, high = np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])
        return np.concatenate([low, high], axis=1).astype(np.float32)


def head_of(selection: PassSelection, info: dict[str, Any]) -> tuple[str, int | None]:
    """Activation and background column: of the pass, else of the run, else of the first prediction."""
    activation = selection.meta.get("activation") or info.get("activation")
    background = selection.meta.get("background", info.get("background"))
    if activation is None:
        for batch in selection.batches("detections", ["activation"], 1024):
            activation = next((one for one in batch.column(0).to_pylist() if one), None)
            break
    return str(activation or "none"), None if background is None else int(background)


def largest_label(predictions: Predictions, truths: Truths) -> int:
    """The largest class that is said or true, -1 without boxes."""
    return max(int(predictions.label.max(initial=-1)), int(truths.label.max(initial=-1)))


def count_box_classes(selection: PassSelection, info: dict[str, Any], largest: int, background: Any) -> int:
    """Number of classes: what the run says, or as many as labels and logits need."""
    known = [int(info.get("n_class") or 0), len(info.get("class_names") or ())]
    schema = selection.schema("vectors")
    if "logits" in schema.names:
        width = int(schema.field("logits").type.byte_width) // 4
        known.append(width - (background is not None))
    return max(*known, largest + 1, 1)


# --- vectors of kept predictions ----------------------------------------------------------------------------


def vector_rows(records: BoxRecords, rows: Ints) -> Ints:
    """Rows of `vectors` of some predictions, -1 where a prediction has none."""
    table = records.selection.table("vectors", ["unit", "rank_", "det_idx"])
    frame = _rows_of(_keys(records.frames), _keys(table))
    stored = (frame << DET_BITS) + _ints(table, "det_idx")
    return _rows_of(stored, (records.predictions.frame[rows] << DET_BITS) + records.det_idx[rows])


def read_vectors(records: BoxRecords, alias: str, rows: Ints, folder: Path) -> NDArray[Any]:
    """(len(rows), D) vectors of some rows of `vectors`, zeros for -1; in a temporary file where large."""
    schema = records.selection.schema("vectors")
    item = schema.field(alias)
    dtype = np.dtype(item.metadata[b"dtype"].decode())
    shape = (len(rows), int(item.type.byte_width) // dtype.itemsize)
    made: NDArray[Any]
    if shape[0] * shape[1] * dtype.itemsize <= IN_MEMORY:
        made = np.zeros(shape, dtype)
    else:
        with tempfile.TemporaryFile(dir=folder) as file:
            made = np.memmap(file, dtype, "w+", shape=shape)
    order = np.argsort(rows, kind="stable")
    wanted = rows[order]
    for start, block in _blocks(records, alias):
        first, last = np.searchsorted(wanted, (start, start + len(block)))
        made[order[first:last]] = block[wanted[first:last] - start]
    return made


def _blocks(records: BoxRecords, alias: str) -> Iterator[tuple[int, NDArray[Any]]]:
    start = 0
    for batch in records.selection.batches("vectors", [alias], _ROWS):
        block = np.asarray(to_numpy(batch.column(0), batch.schema.field(0)))
        yield start, block
        start += len(block)


def class_logits(records: BoxRecords, rows: Ints, vectors: Ints, folder: Path) -> NDArray[np.float32]:
    """(len(rows), K + 1) logits of kept predictions whose softmax is q: the classes, then background.

    A sigmoid head gets a background logit of 0, exact for at most one class at once; a softmax head without
    background and a head of which only the score is stored get the one that makes q(background) = 1 - score.
    """
    n_class = records.n_class
    score = np.clip(records.predictions.score[rows].astype(np.float64), 1e-6, 1 - 1e-6)
    missing = vectors < 0
    made = np.full((len(rows), n_class + 1), -20.0, np.float32)
    if records.has_logits and not missing.all():
        stored = read_vectors(records, "logits", vectors, folder)
        place = records.background if records.activation == "softmax" else None
        columns = [k for k in range(stored.shape[1]) if k != place]
        made[:, : len(columns)] = stored[:, columns]
        if place is not None:
            made[:, n_class] = stored[:, place]
        elif records.activation == "sigmoid":
            made[:, n_class] = 0.0
        else:
            top = made[:, :n_class].max(axis=1).astype(np.float64)
            total = np.exp(made[:, :n_class] - top[:, None]).sum(axis=1)
            made[:, n_class] = top + np.log(total) + np.log(1 - score) - np.log(score)
    else:
        missing = np.ones(len(rows), np.bool_)
    if missing.any():
        few = np.flatnonzero(missing)
        made[few] = -20.0
        made[few, np.clip(records.predictions.label[rows[few]], 0, n_class - 1)] = np.log(
            score / (1 - score)
        )[few]
        made[few, n_class] = 0.0
    return made


def feature_vectors(records: BoxRecords, vectors: Ints, folder: Path) -> dict[str, Vectors]:
    """Alias -> (N, D) features of kept predictions; empty where none are stored."""
    if (vectors < 0).all():
        return {}
    return {alias: read_vectors(records, alias, vectors, folder) for alias in records.features}
