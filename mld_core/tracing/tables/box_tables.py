"""The box tables of neighbouring batches of frames, of whatever framework; needs no PyTorch."""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mld_core.adapters.base import FramePlace, Parsed, Truth
from mld_core.adapters.outputs import as_array
from mld_core.records.format.schema import (
    ATTRIBUTE,
    IMAGE_BOX,
    IMAGE_BOX_TYPE,
    ROTATED,
    ROTATED_TYPE,
    AdditionalField,
    additional_column,
    detections_schema,
    samples_schema,
    truths_schema,
    vectors_schema,
)
from mld_core.records.format.vectors import nonfinite_rows
from mld_core.tracing.tables.columns import (
    Columns,
    Origin,
    PassState,
    constant,
    own_columns,
    sample_columns,
    table_of,
    vector_columns,
)

LABELS_OUT_OF_RANGE: Final = "true labels out of range"
_TRUTH_TYPES: Final = {
    "crowd": pa.bool_(),
    "difficulty": pa.int32(),
    "occlusion": pa.float32(),
    "truncation": pa.float32(),
    "n_points": pa.int32(),
    "area": pa.float32(),
    ATTRIBUTE: pa.int32(),
    IMAGE_BOX: IMAGE_BOX_TYPE,
}
Vectors = Mapping[str, npt.NDArray[np.float32]]


@dataclass
class Checked:
    """A frame's truths with their faults.

    Attributes:
        truth: as read.
        ignore: (N,) bool: not to be matched, as the data set says or because the box is unusable.
        faults: what is wrong -> number of boxes.
    """

    truth: Truth
    ignore: npt.NDArray[np.bool_]
    faults: dict[str, int]


def check_truth(truth: Truth, n_class: int | None, size: tuple[int, int] | None) -> Checked:
    """Flags boxes that are no boxes.

    Args:
        truth: of one frame.
        n_class: foreground classes where known.
        size: (height, width) of the image in pixels, None in 3D or where unknown.

    Examples:
        >>> truth = Truth(np.array([[0, 0, 4, 4], [4, 4, 0, 0]], np.float32), np.array([0, 9]))
        >>> check_truth(truth, 3, (8, 8)).ignore.tolist()
        [False, True]
    """
    boxes, labels = truth.boxes, truth.labels
    ignore: npt.NDArray[np.bool_] = np.zeros(len(boxes), np.bool_)
    given = truth.columns.get("ignore")
    if given is not None and len(given) == len(boxes):
        ignore |= np.asarray(given).astype(np.bool_)
    finite = np.isfinite(boxes).all(axis=1)
    with np.errstate(invalid="ignore"):
        extent = boxes[:, 2:4] - boxes[:, :2] if boxes.shape[1] == 4 else boxes[:, 3:6]
        sized = np.asarray((extent > 0).all(axis=1))
    faults = {"true boxes with NaN": ~finite, "true boxes without extent": finite & ~sized}
    if size is not None and boxes.shape[1] == 4:
        height, width = size
        inside = (boxes[:, 2] > 0) & (boxes[:, 3] > 0) & (boxes[:, 0] < width) & (boxes[:, 1] < height)
        faults["true boxes outside the image"] = finite & sized & ~inside
    beyond = np.inf if n_class is None else n_class
    faults[LABELS_OUT_OF_RANGE] = np.logical_or((labels < 0) & ~ignore, labels >= beyond)
    for bad in faults.values():
        np.logical_or(ignore, bad, out=ignore)
    return Checked(truth, ignore, {what: int(bad.sum()) for what, bad in faults.items() if bad.any()})


@dataclass(kw_only=True)
class BoxPass(PassState):
    """What all batches of a detector's pass share.

    Attributes:
        task: "detection" or "detection3d".
        n_class: foreground classes where known.
        label_fields: the user's columns of `truths`.
    """

    task: str
    n_class: int | None
    label_fields: tuple[AdditionalField, ...] = ()

    @property
    def box_width(self) -> int:
        """Columns of a box."""
        return 7 if self.task == "detection3d" else 4


@dataclass(kw_only=True)
class Frames:
    """One batch of frames, read and checked; on the writer thread it becomes tables with those beside it.

    Attributes:
        context: of the pass.
        units: numbers of the frames within the pass.
        parsed: final detections.
        truths: one per frame, None: unlabelled.
        ids: one per frame.
        origins: where the frames came from, batch by batch.
        sizes: (height, width) of each image in pixels, (None, None) where unknown.
        vectors: alias -> one row per detection; `widths`: alias -> width, of those the pass stores.
        label_values: values of the user's columns of `truths` by name, one per true box.
        media: the frames' pictures, as their table.
        paths: where each frame lies on this machine, None where its id says it or nothing does.
    """

    context: BoxPass
    units: npt.NDArray[np.int64]
    parsed: Parsed
    truths: Sequence[Checked | None]
    ids: list[str]
    origins: Sequence[Origin]
    sizes: Sequence[tuple[int | None, int | None]]
    vectors: Vectors
    widths: Mapping[str, int]
    label_values: Mapping[str, list[Any] | None] = field(default_factory=dict)
    media: pa.Table | None = None
    paths: Sequence[str | None] | None = None

    @property
    def key(self) -> Hashable:
        """Batches of a pass that have the same columns and limits go into one table."""
        parsed, output = self.parsed, self.parsed.output
        given = (
            parsed.quality,
            parsed.geometry,
            parsed.places,
            output.velocities,
            output.source_index,
            output.attributes,
            output.rotated,
            self.media,
            self.paths,
        )
        known = [t.truth for t in self.truths if t is not None]
        moving = not known or all(truth.velocities is not None for truth in known)
        turned = not known or all(truth.rotated is not None for truth in known)
        columns = (tuple(self.vectors), moving, turned, tuple(value is None for value in given))
        return id(self.context), parsed.activation, parsed.thresholds, columns

    def tables(self, group: Sequence[Frames]) -> dict[str, pa.Table]:
        """`samples`, `detections`, `truths`, `vectors` where there are detections with any, and `media`."""
        return (_together(group) if len(group) > 1 else self).made()

    def made(self) -> dict[str, pa.Table]:
        """The tables of these frames alone."""
        context, output, n = self.context, self.parsed.output, len(self.parsed.output)
        counts = [len(boxes) for boxes in output.boxes]
        total = sum(counts)
        columns, overflow = vector_columns(context, self.vectors if total else {}, total)
        bad = ~np.isfinite(joined(output.boxes, (0, context.box_width))).all(axis=1)
        bad |= ~np.isfinite(joined(output.scores, (0,)))
        if total and "logits" in self.vectors:
            bad |= nonfinite_rows(self.vectors["logits"])
        context.count("detections not finite", int(bad.sum()))
        frames, index = places(counts)
        samples = self._samples(counts)
        samples["nonfinite"] = pa.array(np.bincount(frames, weights=bad, minlength=n) > 0)
        samples["overflow"] = pa.array(np.bincount(frames, weights=overflow, minlength=n) > 0)
        own = {**self.own(frames), "det_idx": pa.array(index)}
        made = {
            "samples": table_of(samples, samples_schema(context.task, context.fields), n),
            "detections": self._detections(own, total),
            "truths": self._truth_table(),
        }
        if total and self.widths:
            features = {a: (w, context.vector_dtype) for a, w in self.widths.items() if a != "logits"}
            schema = vectors_schema(context.task, self.widths.get("logits"), features)
            made["vectors"] = table_of({**own, **columns}, schema, total)
        if self.media is not None:
            made["media"] = self.media
        return made

    def own(self, frames: npt.NDArray[np.int64]) -> Columns:
        """The key columns of rows that belong to `frames`."""
        return own_columns(self.units[frames], self.context.rank, [self.ids[i] for i in frames])

    def _samples(self, counts: list[int]) -> Columns:
        parsed, limits, n = self.parsed, self.parsed.thresholds, len(counts)
        affine = [None if parsed.geometry is None else parsed.geometry[i].affine for i in range(n)]
        return {
            **sample_columns(self.context, self.own(np.arange(n)), self.origins),
            "n_detections": pa.array(counts, pa.int32()),
            "n_truths": pa.array([None if t is None else len(t.ignore) for t in self.truths], pa.int32()),
            "labelled": pa.array([t is not None for t in self.truths], pa.bool_()),
            "score_thresh": pa.array([limits.score] * n, pa.float32()),
            "iou_thresh": pa.array([limits.iou] * n, pa.float32()),
            "max_detections": pa.array([limits.max_detections] * n, pa.int32()),
            "cap_hit": pa.array(_cap_hit(parsed), pa.bool_()),
            "image_height": pa.array([size[0] for size in self.sizes], pa.int32()),
            "image_width": pa.array([size[1] for size in self.sizes], pa.int32()),
            "affine": pa.array([None if a is None else list(a) for a in affine], pa.list_(pa.float64())),
            **_places(parsed.places),
            **({} if self.paths is None else {"media_path": pa.array(self.paths, pa.string())}),
        }

    def _detections(self, own: Columns, total: int) -> pa.Table:
        output = self.parsed.output
        columns = {
            **own,
            "label": pa.array(joined(output.labels, (0,)).astype(np.int64)),
            "score": pa.array(joined(output.scores, (0,)).astype(np.float32)),
            "activation": constant(self.parsed.activation, total),
            "box": _fixed_lists(joined(output.boxes, (0, self.context.box_width))),
        }
        if self.parsed.quality is not None:
            columns["quality"] = pa.array(joined(self.parsed.quality, (0,)).astype(np.float32))
        if output.source_index is not None:
            columns["source_index"] = pa.array(joined(output.source_index, (0,)).astype(np.int64))
        if output.attributes is not None:
            columns[ATTRIBUTE] = pa.array(joined(output.attributes, (0,)).astype(np.int32))
        if output.rotated is not None:
            columns[ROTATED] = _fixed_lists(joined(output.rotated, (0, 5)))
        if output.velocities is not None:
            columns["velocity"] = _fixed_lists(joined(output.velocities, (0, 2)))
        return _box_table(columns, detections_schema(self.context.task), total)

    def _truth_table(self) -> pa.Table:
        found = [t for t in self.truths if t is not None]
        counts = [0 if t is None else len(t.ignore) for t in self.truths]
        total = sum(counts)
        frames, index = places(counts)
        columns = {
            **self.own(frames),
            "gt_idx": pa.array(index),
            "label": pa.array(joined([t.truth.labels for t in found], (0,)).astype(np.int64)),
            "box": _fixed_lists(joined([t.truth.boxes for t in found], (0, self.context.box_width))),
            "ignore": pa.array(joined([t.ignore for t in found], (0,)).astype(np.bool_)),
        }
        for name, kind in _TRUTH_TYPES.items():
            if any(name in t.truth.columns for t in found):
                given = [t.truth.columns.get(name) for t in found]
                rows = [
                    value
                    for t, part in zip(found, given, strict=True)
                    for value in ([None] * len(t.ignore) if part is None else part.tolist())
                ]
                columns[name] = pa.array(rows).cast(kind, safe=False)
        velocities = [t.truth.velocities for t in found if t.truth.velocities is not None]
        if found and len(velocities) == len(found):
            columns["velocity"] = _fixed_lists(joined(velocities, (0, 2)))
        rotated = [t.truth.rotated for t in found if t.truth.rotated is not None]
        if found and len(rotated) == len(found):
            columns[ROTATED] = _fixed_lists(joined(rotated, (0, 5)))
        for spec in self.context.label_fields:
            columns[spec.name] = additional_column(spec, self.label_values.get(spec.name), total)
        return _box_table(columns, truths_schema(self.context.task, self.context.label_fields), total)


def _places(places: Sequence[FramePlace | None] | None) -> Columns:
    """Pose and calibration of 3D frames."""
    if places is None:
        return {}
    poses = [None if one is None or one.ego_pose is None else list(one.ego_pose) for one in places]
    said = [None if one is None or not one.calibration else json.dumps(one.calibration) for one in places]
    return {"ego_pose": pa.array(poses, pa.list_(pa.float64())), "calibration": pa.array(said, pa.string())}


def _cap_hit(parsed: Parsed) -> list[bool | None]:
    """One for each frame, None where a family does not tell."""
    known = len(parsed.cap_hit) == len(parsed.output)
    hits: list[Any] = parsed.cap_hit if known else [None] * len(parsed.output)
    return [None if hit is None else bool(hit) for hit in hits]


def _together(group: Sequence[Frames]) -> Frames:
    """Neighbouring batches of one key as one."""
    first, parts = group[0], [frames.parsed for frames in group]
    output = copy.copy(first.parsed.output)
    for name in ("boxes", "scores", "labels", "velocities", "source_index", "attributes", "rotated"):
        if getattr(output, name) is not None:
            setattr(output, name, [one for part in parts for one in getattr(part.output, name)])
    cap_hit: Any = [hit for part in parts for hit in _cap_hit(part)]
    parsed = replace(
        first.parsed,
        output=output,
        cap_hit=cap_hit,
        quality=_in_a_row([part.quality for part in parts]),
        geometry=_in_a_row([part.geometry for part in parts]),
        places=_in_a_row([part.places for part in parts]),
    )
    media = [frames.media for frames in group if frames.media is not None]
    return replace(
        first,
        units=np.concatenate([frames.units for frames in group]),
        parsed=parsed,
        truths=[truth for frames in group for truth in frames.truths],
        ids=[one for frames in group for one in frames.ids],
        origins=[origin for frames in group for origin in frames.origins],
        sizes=[size for frames in group for size in frames.sizes],
        vectors={name: np.concatenate([frames.vectors[name] for frames in group]) for name in first.vectors},
        widths=next((frames.widths for frames in group if frames.widths), first.widths),
        label_values={name: _values(group, name) for name in first.label_values},
        media=pa.concat_tables(media) if media else None,
        paths=None if first.paths is None else [one for frames in group for one in frames.paths or ()],
    )


def _in_a_row(parts: Sequence[list[Any] | None]) -> list[Any] | None:
    return None if parts[0] is None else [one for part in parts for one in part or ()]


def _values(group: Sequence[Frames], name: str) -> list[Any] | None:
    """A user's column of all true boxes; None for those of a batch without it."""
    if all(frames.label_values.get(name) is None for frames in group):
        return None
    found: list[Any] = []
    for frames in group:
        values = frames.label_values.get(name)
        total = sum(0 if truth is None else len(truth.ignore) for truth in frames.truths)
        found += [None] * total if values is None else values
    return found


def as_arrays(truth: Truth) -> Truth:
    """A truth whose tensors are arrays."""
    truth.boxes = as_array(truth.boxes).astype(np.float32)
    truth.labels = as_array(truth.labels).astype(np.int64)
    truth.columns = {name: as_array(value) for name, value in truth.columns.items()}
    if truth.rotated is not None:
        truth.rotated = as_array(truth.rotated).astype(np.float32)
    if truth.velocities is not None:
        truth.velocities = as_array(truth.velocities).astype(np.float32)
    return truth


def joined(parts: Sequence[Any], empty: tuple[int, ...]) -> npt.NDArray[Any]:
    """The rows of all frames; an array of shape `empty` where there is no frame."""
    return np.concatenate([np.asarray(part) for part in parts]) if len(parts) else np.zeros(empty, np.float32)


def stacked(parts: Sequence[Any]) -> npt.NDArray[np.float32]:
    """(N, D) of the frames that have rows; frames without any may not know D."""
    rows = [np.asarray(part, np.float32) for part in parts if len(part)]
    return np.concatenate(rows) if len({r.shape[1] for r in rows}) == 1 else np.zeros((0, 0), np.float32)


def places(counts: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Frame of each row, and its number in the frame.

    >>> [part.tolist() for part in places([2, 0, 1])]
    [[0, 0, 2], [0, 1, 0]]
    """
    frames = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum([0, *counts])[:-1], counts)
    return frames, (np.arange(len(frames)) - first).astype(np.int32)


def _fixed_lists(values: npt.NDArray[Any]) -> pa.Array:
    """(N, W) as a column of float32 lists of W."""
    flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _box_table(columns: Columns, schema: pa.Schema, n: int) -> pa.Table:
    """As `table_of`. Without velocities there is no such column: pyarrow < 26 cannot read null lists back.

    Attributes and image boxes of 3D boxes and rotated boxes are columns where there are any, unless a user's
    own field has that name.
    """
    for name, kind in ((ATTRIBUTE, pa.int32()), (ROTATED, ROTATED_TYPE), (IMAGE_BOX, IMAGE_BOX_TYPE)):
        if name in columns and name not in schema.names:
            schema = schema.append(pa.field(name, kind))
    if "velocity" not in columns and "velocity" in schema.names:
        schema = schema.remove(schema.get_field_index("velocity"))
    return table_of(columns, schema, n)
