"""The unit table of a detection pass: kept predictions, missed truths, weak boxes that may be objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.analysis.issue_columns import named
from mld_core.evaluation.analysis.units import BASE_FIELDS, STAGE_FIELDS, unit_ids
from mld_core.evaluation.detection.codes import CODES, NO_PREDICTION, BoxEvents, box_codes
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.metrics import tide
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints
from mld_core.evaluation.metrics.coco import AREA_BOUNDS, AREAS
from mld_core.records.format.schema import IMAGE_BOX, IMAGE_BOX_TYPE, base_schema

TIDE_NAMES = ("right", *tide.TYPES)


def typed(kind: pa.DataType, *names: str) -> list[pa.Field]:
    """Columns of one type."""
    return [pa.field(name, kind) for name in names]


BOX_FIELDS: tuple[pa.Field, ...] = (
    *typed(pa.string(), "truth_id"),
    *typed(pa.int32(), "det_idx", "gt_idx"),
    *typed(pa.string(), "det_code", "tide_error"),
    *typed(pa.float32(), "iou", "area", "aspect"),
    *typed(pa.string(), "size_bucket"),
    *typed(pa.float32(), "center_x", "center_y"),
)
BOX_STAGE_FIELDS: tuple[pa.Field, ...] = (
    *typed(pa.float32(), "det_error_proba", "cls_error_proba", "code_certainty", "miss_proba"),
    *typed(pa.float32(), "frame_error_proba", "suspicion"),
    *typed(pa.string(), "detail"),
)
"""Filled in by the analysis; `suspicion` ranks the units a label fault may be behind, largest first."""


@dataclass(frozen=True)
class BoxUnits:
    """Which rows of the records the units are.

    Attributes:
        kept: (N,) rows of the predictions.
        missed: (M,) rows of the truths no kept prediction found, of whatever class.
        judged: (N,) predictions that are right or wrong: not ignored, and their frame's truth is known.
        events: What the kept predictions were judged as.
        weak: (W,) rows of predictions below the threshold that may be objects without a label.
    """

    kept: Ints
    missed: Ints
    judged: Bools
    events: BoxEvents
    weak: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def rows(self) -> int:
        """Number of units."""
        return len(self.kept) + len(self.missed) + len(self.weak)

    @property
    def prediction(self) -> Ints:
        """(U,) row of each unit's prediction, -1 for a missed truth."""
        return np.concatenate([self.kept, np.full(len(self.missed), -1), self.weak])

    @property
    def truth(self) -> Ints:
        """(U,) row of the truth each unit is judged by, -1 for none."""
        return np.concatenate([self.events.truth, self.missed, np.full(len(self.weak), -1)])

    def frame(self, records: BoxRecords) -> Ints:
        """(U,) frame of each unit."""
        said, true = records.predictions.frame, records.truths.frame
        return np.concatenate([said[self.kept], true[self.missed], said[self.weak]])

    def padded(self, kept: NDArray[Any], fill: Any = np.nan) -> NDArray[Any]:
        """(U,) from a column of the kept predictions."""
        return np.append(kept, np.full(self.rows - len(kept), fill))

    @property
    def wrong(self) -> Bools:
        """(N,) judged and not right."""
        return self.judged & ~self.events.right


@dataclass(frozen=True)
class BoxColumns:
    """What the unit table says about one kind of boxes.

    Attributes:
        names: Columns of a box; those of its truth are called `gt_<name>`.
        place: Records, (U,) frames, (U, W) boxes and (U,) their areas or volumes -> columns that say what is
            known of the place.
        fields: Their schema, and that of further columns of the analysis.
        near_is_iou: Whether the closeness of two boxes is their IoU.
    """

    names: tuple[str, ...]
    place: Callable[[BoxRecords, Ints, NDArray[np.floating], Floats], dict[str, pa.Array]]
    fields: tuple[pa.Field, ...]
    near_is_iou: bool

    @property
    def every(self) -> tuple[pa.Field, ...]:
        """The columns of a detection table beyond those of every unit table."""
        boxes = typed(pa.float32(), *self.names, *(f"gt_{name}" for name in self.names))
        return (*BOX_FIELDS, *boxes, *self.fields, *BOX_STAGE_FIELDS)

    def own_name(self, name: str) -> str:
        """The name of a user's column: its own, or `field_<name>` where we hold that name."""
        ours = {item.name.lower() for item in (*BASE_FIELDS, *STAGE_FIELDS, *self.every)}
        return f"field_{name}" if name.lower() in ours else name

    def schema(self, records: BoxRecords) -> pa.Schema:
        """Schema of the unit table: ours, then the user's columns of frames and of truths."""
        made = {item.name: item for item in (*BASE_FIELDS, *STAGE_FIELDS, *self.every)}
        for table in (user_columns(records), _of_truths(records)):
            for item in table.schema:
                kind = item.type.value_type if pa.types.is_dictionary(item.type) else item.type
                made.setdefault(self.own_name(item.name), pa.field(self.own_name(item.name), kind))
        return pa.schema(list(made.values()))


def user_columns(records: BoxRecords) -> pa.Table:
    """The user's own columns of the frames, dictionaries as what they hold."""
    own = set(base_schema("samples", records.task).names)
    names = [name for name in records.frames.column_names if name not in own]
    columns = {}
    for name in names:
        column = records.frames[name]
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        columns[name] = column
    return pa.table(columns) if columns else pa.table({"_": pa.nulls(records.frames.num_rows)}).select([])


def size_buckets(area: Floats) -> pa.Array:
    """COCO's small, medium or large of (N,) areas in square pixels.

    Example:
        >>> size_buckets(np.array([10.0, 2000.0, 1e5])).to_pylist()
        ['small', 'medium', 'large']
    """
    place = np.digitize(area, [AREA_BOUNDS[1][1], AREA_BOUNDS[2][1]])
    return pa.array(AREAS[1:], pa.string()).take(pa.array(place))


def image_place(
    _records: BoxRecords, _frame: Ints, _box: NDArray[np.floating], area: Floats
) -> dict[str, pa.Array]:
    """The size bucket of (U,) boxes in an image."""
    return {"size_bucket": size_buckets(area)}


IMAGE_COLUMNS = BoxColumns(("x1", "y1", "x2", "y2"), image_place, (), near_is_iou=True)


def unit_table(
    records: BoxRecords, units: BoxUnits, ours: BoxColumns, logits_figures: dict[str, Floats]
) -> pa.Table:
    """The table before the analysis.

    Args:
        records: The pass.
        units: Its units.
        ours: What is said about its boxes.
        logits_figures: (N,) `loss` and `entropy` of the kept predictions, nats, NaN where unknown.
    """
    schema = ours.schema(records)
    columns = _identity(records, units) | _outcome(records, units, ours) | _boxes(records, units, ours)
    for name, values in logits_figures.items():
        columns[name] = pa.array(units.padded(values), pa.float64(), from_pandas=True)
    frame = units.frame(records)
    for name, column in zip(*_named_columns(user_columns(records)), strict=True):
        columns[ours.own_name(name)] = column.take(pa.array(frame))
    truth = units.truth
    place = pa.array(truth, pa.int64(), mask=truth < 0)
    for name, column in zip(*_named_columns(_of_truths(records)), strict=True):
        columns.setdefault(ours.own_name(name), column.take(place))
    made = [
        _cast(columns[item.name], item.type) if item.name in columns else pa.nulls(units.rows, item.type)
        for item in schema
    ]
    return pa.Table.from_arrays(made, schema=schema)


def _of_truths(records: BoxRecords) -> pa.Table:
    """The columns of truths that are values of a unit: image boxes are for the metrics alone."""
    table = records.truth_columns
    ours = IMAGE_BOX in table.column_names and table.schema.field(IMAGE_BOX).type == IMAGE_BOX_TYPE
    return table.drop_columns([IMAGE_BOX]) if ours else table


def _named_columns(table: pa.Table) -> tuple[list[str], list[pa.ChunkedArray]]:
    return table.column_names, table.columns


def _cast(column: Any, kind: pa.DataType) -> Any:
    return column if column.type.equals(kind) else column.cast(kind)


def _identity(records: BoxRecords, units: BoxUnits) -> dict[str, Any]:
    rows = units.rows
    frame = pa.array(units.frame(records))
    key = records.selection.key
    kinds = (["pred"] * len(units.kept), ["gt"] * len(units.missed), ["weak"] * len(units.weak))
    columns: dict[str, Any] = {
        "unit_id": unit_ids(0, rows),
        "dataset": pa.repeat(pa.scalar(key.dataset_type, pa.string()), rows),
        "n_epoch": pa.repeat(pa.scalar(key.n_epoch, pa.int32()), rows),
        "unit_kind": pa.array([name for kind in kinds for name in kind], pa.string()),
        "nonfinite": pa.repeat(pa.scalar(False), rows),
    }
    for name in ("input_id", "input_hash", "id_source"):
        columns[name] = records.frames[name].cast(pa.string()).take(frame)
    det = np.append(records.det_idx, -1)[units.prediction]
    columns["det_idx"] = pa.array(det, pa.int32(), mask=det < 0)
    truth = units.truth
    number = np.append(records.gt_idx, -1)[truth]
    columns["gt_idx"] = pa.array(number, pa.int32(), mask=truth < 0)
    columns["truth_id"] = _truth_ids(records, units)
    return columns


def truth_names(records: BoxRecords, rows: Ints) -> list[str]:
    """`<input hash, else input id>#<gt_idx>` of some truths: the same truth in two results."""
    hashes = records.frames["input_hash"].cast(pa.string()).to_pylist()
    ids = records.frames["input_id"].cast(pa.string()).to_pylist()
    frames, numbers = records.truths.frame[rows].tolist(), records.gt_idx[rows].tolist()
    return [f"{hashes[f] or ids[f]}#{number}" for f, number in zip(frames, numbers, strict=True)]


def _truth_ids(records: BoxRecords, units: BoxUnits) -> pa.Array:
    """Of right predictions, and of truths not found in their class: one row stands for every truth.

    A truth that only a prediction of another class found is that prediction's row.
    """
    events = units.events
    truth = units.truth
    truth[: len(units.kept)][~events.matched] = -1
    there = np.flatnonzero(truth >= 0)
    names = np.full(len(truth), None, dtype=object)
    names[there] = truth_names(records, truth[there])
    return pa.array(names.tolist(), pa.string())


def _outcome(records: BoxRecords, units: BoxUnits, ours: BoxColumns) -> dict[str, Any]:
    events, missed, weak = units.events, len(units.missed), len(units.weak)
    unknown = np.full(weak, -1)
    said = np.append(records.predictions.label, -1)[units.prediction]
    truth = np.where(units.judged, events.said_of, -1)
    truth = np.concatenate([truth, records.truths.label[units.missed], unknown])
    wrong, known = (np.append(part, np.ones(missed, np.bool_)) for part in (units.wrong, units.judged))
    wrong, known = units.padded(wrong, fill=False), units.padded(known, fill=False)
    score = np.append(records.predictions.score, np.nan)[units.prediction]
    near = events.best[units.missed] if ours.near_is_iou else np.full(missed, np.nan)
    iou = units.padded(np.append(events.quality, near))
    codes, kinds = (np.where(units.judged, part, -1) for part in (events.code, events.type))
    codes = np.concatenate([codes, np.full(missed, len(CODES)), unknown])
    kinds = np.concatenate([kinds, np.full(missed, len(TIDE_NAMES) - 1), unknown])
    return {
        "gt": pa.array(truth, pa.int32(), mask=truth < 0),
        "prediction": pa.array(said, pa.int32(), mask=said < 0),
        "confidence": pa.array(score, pa.float32(), from_pandas=True),
        "is_error": pa.array(wrong, pa.bool_(), mask=~known),
        "iou": pa.array(iou, pa.float32(), from_pandas=True),
        "det_code": named((*CODES, NO_PREDICTION), codes),
        "tide_error": named(TIDE_NAMES, kinds),
        "error_code": error_codes(records, units, np.zeros(len(units.kept), np.bool_)),
    }


def error_codes(records: BoxRecords, units: BoxUnits, unsure: Bools) -> pa.Array:
    """(U,) error codes, `*` where `unsure`, a mask of the kept predictions; null for weak boxes."""
    labels = records.predictions.label[units.kept]
    made = box_codes(units.events.code, units.events.said_of, labels, unsure, units.judged)
    lost = pa.array([NO_PREDICTION] * len(units.missed), pa.string())
    return pa.concat_arrays([made.cast(pa.string()), lost, pa.nulls(len(units.weak), pa.string())])


def _boxes(records: BoxRecords, units: BoxUnits, ours: BoxColumns) -> dict[str, Any]:
    predictions, truths = records.predictions, records.truths
    width = predictions.box.shape[1]
    none = np.full((1, width), np.nan, np.float32)
    said = np.concatenate([predictions.box, none])[units.prediction]
    true = np.concatenate([truths.box, none])[units.truth]
    parts = (records.center[units.kept], records.truth_center[units.missed], records.center[units.weak])
    center = np.concatenate(parts)
    own = np.where((units.prediction >= 0)[:, None], said, true)
    area, aspect = box_size(own)
    columns: dict[str, Any] = {
        "area": area,
        "aspect": aspect,
        "center_x": center[:, 0],
        "center_y": center[:, 1],
    }
    columns |= {name: said[:, k] for k, name in enumerate(ours.names)}
    columns |= {f"gt_{name}": true[:, k] for k, name in enumerate(ours.names)}
    made: dict[str, Any] = {
        name: pa.array(np.asarray(values, np.float32), pa.float32(), from_pandas=True)
        for name, values in columns.items()
    }
    return made | ours.place(records, units.frame(records), own, area)


def corners(box: NDArray[np.floating]) -> Floats:
    """(N, 4) xyxy corners; of 3D boxes those of the upright square around the footprint."""
    wide = box.astype(np.float64)
    if box.shape[1] == 4:
        return wide
    reach = np.maximum(wide[:, 3], wide[:, 4])[:, None] / 2
    return np.concatenate([wide[:, :2] - reach, wide[:, :2] + reach], axis=1)


def box_size(box: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Area (3D: volume) and width over height (3D: over length) of boxes."""
    wide = box.astype(np.float64)
    if box.shape[1] == 4:
        w, h = wide[:, 2] - wide[:, 0], wide[:, 3] - wide[:, 1]
        return w * h, w / np.where(h > 0, h, 1.0)
    return wide[:, 3] * wide[:, 4] * wide[:, 5], wide[:, 3] / np.where(wide[:, 4] > 0, wide[:, 4], 1.0)
