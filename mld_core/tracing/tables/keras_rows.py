"""Record tables of one batch of a Keras detector: NumPy in, Arrow out, on the writer thread; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mld_core.adapters.base import Parsed, Truth
from mld_core.records.format.schema import (
    AdditionalField,
    additional_column,
    detections_schema,
    samples_schema,
    truths_schema,
    vectors_schema,
)
from mld_core.records.format.vectors import cast_vectors, from_numpy, nonfinite_rows
from mld_core.tracing.batch.hashing_numpy import content_hashes

Array = npt.NDArray[Any]
_TASK = "detection"


@dataclass
class KerasBatch:
    """One batch of frames on its way to the record tables; called once, on the writer thread.

    Attributes:
        unit: number of the first frame within the pass.
        parsed: final detections.
        truths: one per frame, None: unlabelled; or None: none is labelled.
        ids: one per frame, or None: the content's hash.
        images: (B, H, W, C) to be hashed, or None.
        mode: "train" or "eval".
        features: width of the features of this run, None: none is stored.
        n_class: foreground classes, None: unknown.
        vector_dtype: of the stored features.
        fields: the user's columns, their values in `user`.
    """

    unit: int
    parsed: Parsed
    truths: Sequence[Truth | None] | None
    ids: list[str] | None
    id_source: str
    images: Array | None
    mode: str
    batch_idx: int
    global_step: int | None
    n_logits: int | None
    features: int | None
    n_class: int | None
    vector_dtype: str
    fields: tuple[AdditionalField, ...]
    user: Mapping[str, Any]
    rank: int = 0

    def __call__(self) -> dict[str, pa.Table]:
        """The tables.

        Raises:
            ValueError: no id and no image to make one of.
        """
        n = len(self.parsed.output)
        hashes = None if self.images is None else content_hashes(self.images)
        ids = self.ids if self.ids is not None else hashes
        if ids is None or len(ids) != n:
            raise ValueError(f"{0 if ids is None else len(ids)} ids for {n} frames; give one id per frame")
        counts = [len(boxes) for boxes in self.parsed.output.boxes]
        vectors, bad, overflow = self._vectors(counts, ids)
        samples = self._samples(ids, hashes, counts)
        owner = np.repeat(np.arange(n), counts)
        samples["nonfinite"] = pa.array(np.bincount(owner, weights=bad, minlength=n) > 0)
        samples["overflow"] = pa.array(np.bincount(owner, weights=overflow, minlength=n) > 0)
        made = {
            "samples": _table(samples, samples_schema(_TASK, self.fields), n),
            "detections": self._detections(counts, ids),
            "truths": self._truth_table(ids),
        }
        return made if vectors is None else {**made, "vectors": vectors}

    def _own(self, frames: Array, ids: list[str]) -> dict[str, pa.Array]:
        return {
            "unit": pa.array((self.unit + frames).astype(np.int64)),
            "rank_": pa.array(np.full(len(frames), self.rank, np.int32)),
            "input_id": pa.array([ids[i] for i in frames], pa.string()),
        }

    def _samples(self, ids: list[str], hashes: list[str] | None, counts: list[int]) -> dict[str, pa.Array]:
        n, parsed, limits = len(counts), self.parsed, self.parsed.thresholds
        truths = self.truths or [None] * n
        geometry = parsed.geometry or []
        columns: dict[str, Any] = {
            **self._own(np.arange(n), ids),
            "id_source": pa.array([self.id_source] * n),
            "input_hash": None if hashes is None else pa.array(hashes, pa.string()),
            "batch_idx": pa.array(np.full(n, self.batch_idx, np.int32)),
            "row": pa.array(np.arange(n, dtype=np.int32)),
            "mode": pa.array([self.mode] * n),
            "global_step": pa.array([self.global_step] * n, pa.int64()),
            "n_detections": pa.array(counts, pa.int32()),
            "n_truths": pa.array([None if t is None else len(t.labels) for t in truths], pa.int32()),
            "labelled": pa.array([t is not None for t in truths], pa.bool_()),
            "score_thresh": pa.array([limits.score] * n, pa.float32()),
            "iou_thresh": pa.array([limits.iou] * n, pa.float32()),
            "max_detections": pa.array([limits.max_detections] * n, pa.int32()),
            "cap_hit": pa.array([bool(hit) for hit in parsed.cap_hit], pa.bool_()),
        }
        if len(geometry) == n:
            columns["image_height"] = pa.array([g.height for g in geometry], pa.int32())
            columns["image_width"] = pa.array([g.width for g in geometry], pa.int32())
            affine = [None if g.affine is None else list(g.affine) for g in geometry]
            columns["affine"] = pa.array(affine, pa.list_(pa.float64()))
        for spec in self.fields:
            columns[spec.name] = additional_column(spec, self.user.get(spec.name), n)
        return {name: value for name, value in columns.items() if value is not None}

    def _detections(self, counts: list[int], ids: list[str]) -> pa.Table:
        output, total = self.parsed.output, sum(counts)
        frames, index = _places(counts)
        columns = {
            **self._own(frames, ids),
            "det_idx": pa.array(index),
            "label": pa.array(_joined(output.labels, 0).astype(np.int64)),
            "score": pa.array(_joined(output.scores, 0).astype(np.float32)),
            "activation": pa.array([self.parsed.activation] * total),
            "box": _lists(_joined(output.boxes, 4)),
        }
        if self.parsed.quality is not None:
            columns["quality"] = pa.array(_joined(self.parsed.quality, 0).astype(np.float32))
        if output.source_index is not None:
            columns["source_index"] = pa.array(_joined(output.source_index, 0).astype(np.int64))
        return _table(columns, detections_schema(_TASK), total)

    def _truth_table(self, ids: list[str]) -> pa.Table:
        truths = list(self.truths or [])
        counts = [0 if t is None else len(t.labels) for t in truths]
        found = [t for t in truths if t is not None]
        frames, index = _places(counts)
        boxes = _joined([t.boxes for t in found], 4)
        with np.errstate(invalid="ignore"):
            usable = np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        labels = _joined([t.labels for t in found], 0).astype(np.int64)
        usable &= (labels >= 0) & (labels < (np.inf if self.n_class is None else self.n_class))
        columns = {
            **self._own(frames, ids),
            "gt_idx": pa.array(index),
            "label": pa.array(labels),
            "box": _lists(boxes),
            "ignore": pa.array(~usable),
        }
        return _table(columns, truths_schema(_TASK), sum(counts))

    def _vectors(self, counts: list[int], ids: list[str]) -> tuple[pa.Table | None, Array, Array]:
        total, output = sum(counts), self.parsed.output
        bad, overflow = np.zeros(total, np.bool_), np.zeros(total, np.bool_)
        frames, index = _places(counts)
        columns = {**self._own(frames, ids), "det_idx": pa.array(index)}
        widths: dict[str, tuple[int, str]] = {}
        if output.logits is not None and self.n_logits is not None:
            logits = np.ascontiguousarray(_joined(output.logits, self.n_logits), np.float32)
            bad = nonfinite_rows(logits)
            columns["logits"] = from_numpy(logits)
        if output.features is not None and self.features is not None:
            stored, overflow = cast_vectors(_joined(output.features, self.features), self.vector_dtype)
            columns["features"] = from_numpy(np.ascontiguousarray(stored))
            widths["features"] = (self.features, self.vector_dtype)
        if not total or ("logits" not in columns and not widths):
            return None, bad, overflow
        schema = vectors_schema(_TASK, self.n_logits if "logits" in columns else None, widths)
        return _table(columns, schema, total), bad, overflow


def _places(counts: list[int]) -> tuple[Array, Array]:
    """Frame of each box, and its number within the frame."""
    frames = np.repeat(np.arange(len(counts)), counts)
    index = np.concatenate([np.arange(c) for c in counts]) if counts else np.zeros(0)
    return frames, index.astype(np.int32)


def _joined(parts: Sequence[Any], width: int) -> Array:
    empty = np.zeros((0, width) if width else (0,), np.float32)
    return np.concatenate([empty, *parts]) if len(parts) else empty


def _lists(boxes: Array) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(boxes, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, 4)


def _table(columns: Mapping[str, pa.Array], schema: pa.Schema, rows: int) -> pa.Table:
    """Columns in the schema's order and types, what is missing as nulls."""
    made = [columns[f.name].cast(f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.Table.from_arrays(made, schema=schema)
