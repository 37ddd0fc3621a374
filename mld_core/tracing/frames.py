"""Frames of a 3D detector: counts, and boxes as the model gave them.

What MMDetection3D's samples hold is read by attribute, without importing it: `pred_instances_3d` with its
`bboxes_3d`, `scores_3d` and `labels_3d`, and `eval_ann_info`. Boxes are stored raw: x, y, z, three sizes and
yaw in the box class's own convention, which the pass names (`boxes_as` in its meta). Logits and features are
not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from mld_core.records.schema import additional_column, detections_schema, samples_schema, truths_schema
from mld_core.tracing.batches import Batch, held_bytes, own_copy
from mld_core.tracing.capture import Capture
from mld_core.tracing.hashing import input_hash_of, to_hex
from mld_core.tracing.identity import as_id_list
from mld_core.tracing.rows import CONTENT_HASH, HeldInputs, PassContext, constant, table_of
from mld_core.tracing.session import OpenPass, Session
from mld_core.tracing.staging import Staged

_BASES = {("mmdet3d.models.detectors.base", "Base3DDetector")}
_BOX = 7


def is_detector_3d(model: nn.Module) -> bool:
    """Whether a model is a 3D detector of MMDetection3D 1.1 or later."""
    return any((cls.__module__, cls.__name__) in _BASES for cls in type(model).__mro__)


@dataclass(frozen=True)
class Boxes:
    """Boxes of one batch, frame after frame.

    Attributes:
        counts: boxes of each frame.
        box: (M, 7 or 9) tensor: x, y, z, three sizes, yaw, velocity if there is one.
        label: (M,) integer tensor.
        score: (M,) tensor of predictions, None for truths.
        convention: the class the boxes came in.
    """

    counts: list[int]
    box: Tensor
    label: Tensor
    score: Tensor | None
    convention: str


def read_predictions(outputs: Any) -> Boxes | None:
    """The predicted boxes in a list of data samples; None where it is something else (a dict of losses)."""
    if not isinstance(outputs, Sequence) or isinstance(outputs, (str, bytes)) or not outputs:
        return None
    frames = []
    for sample in outputs:
        instances = getattr(sample, "pred_instances_3d", None)
        if instances is None or getattr(instances, "bboxes_3d", None) is None:
            return None
        frames.append((instances.bboxes_3d, instances.labels_3d, instances.scores_3d))
    return _join(frames)


def read_truths(batch: Any) -> Boxes | None:
    """The true boxes of a validation batch (`eval_ann_info` of its data samples), None where one has none."""
    samples = batch.get("data_samples") if isinstance(batch, Mapping) else None
    frames = []
    for sample in samples or ():
        info = getattr(sample, "eval_ann_info", None)
        if not isinstance(info, Mapping) or "gt_bboxes_3d" not in info:
            return None
        frames.append((info["gt_bboxes_3d"], info["gt_labels_3d"], None))
    return _join(frames) if frames else None


def _join(frames: list[tuple[Any, Any, Any]]) -> Boxes:
    boxes = [_tensor(getattr(box, "tensor", box)) for box, _, _ in frames]
    scores = [_tensor(score) for _, _, score in frames if score is not None]
    return Boxes(
        [int(box.shape[0]) for box in boxes],
        torch.cat(boxes),
        torch.cat([_tensor(label).to(boxes[0].device) for _, label, _ in frames]),
        torch.cat(scores) if scores else None,
        type(frames[0][0]).__name__,
    )


def _tensor(value: Any) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


@dataclass
class FrameJob:
    """One batch of frames on its way to the record tables: called once, on the writer thread."""

    context: PassContext
    unit0: int
    predictions: Boxes
    truths: Boxes | None
    staged: Staged
    names: list[str]
    ids: Any
    id_source: str
    hash_from: HeldInputs | None
    user: Mapping[str, Any]
    batch_idx: int
    global_step: int | None

    def __call__(self) -> dict[str, pa.Table]:
        """Builds `samples`, `detections` and `truths` of this batch.

        Raises:
            ValueError: there is no id for a frame; the writer counts the rows as lost with this reason.
        """
        arrays = dict(zip(self.names, self.staged.arrays(), strict=True))
        counts, n = self.predictions.counts, len(self.predictions.counts)
        hashes = self._hashes(arrays, n)
        ids = self._ids(arrays, hashes, n)
        finite = np.isfinite(arrays["box"]).all(axis=1) & np.isfinite(arrays["score"])
        bad = np.bincount(np.repeat(np.arange(n), counts), weights=~finite, minlength=n) > 0
        detections = self._boxes("detections", arrays, counts, ids)
        tables = {
            "samples": self._samples(ids, hashes, bad, n),
            "detections": _box_table(detections, detections_schema("detection3d"), sum(counts)),
        }
        if self.truths is not None:
            truths = self._boxes("truths", arrays, self.truths.counts, ids)
            tables["truths"] = _box_table(truths, truths_schema("detection3d"), sum(self.truths.counts))
        return tables

    def _hashes(self, arrays: Mapping[str, npt.NDArray[Any]], n: int) -> list[str] | None:
        values = arrays.get("input_hash")
        if values is None and self.hash_from is not None:
            if self.hash_from.changed():
                self.context.count("inputs changed in place before they were hashed", n)
            else:
                values = input_hash_of(self.hash_from.inputs, n)
        self.hash_from = None  # lets go of the inputs
        return None if values is None else to_hex(values)

    def _ids(self, arrays: Mapping[str, npt.NDArray[Any]], hashes: list[str] | None, n: int) -> list[str]:
        ids = hashes if self.id_source == CONTENT_HASH else as_id_list(arrays.get("ids", self.ids))
        if ids is None or len(ids) != n:
            raise ValueError(f"{0 if ids is None else len(ids)} ids for {n} frames; give id_fn(batch)")
        return ids

    def _samples(
        self, ids: list[str], hashes: list[str] | None, bad: npt.NDArray[np.bool_], n: int
    ) -> pa.Table:
        context = self.context
        truths = None if self.truths is None else self.truths.counts
        columns: dict[str, pa.Array] = {
            "unit": pa.array(np.arange(self.unit0, self.unit0 + n, dtype=np.int64)),
            "rank_": pa.array(np.full(n, context.rank, np.int32)),
            "input_id": pa.array(ids, pa.string()),
            "id_source": constant(self.id_source, n),
            "batch_idx": pa.array(np.full(n, self.batch_idx, np.int32)),
            "row": pa.array(np.arange(n, dtype=np.int32)),
            "mode": constant(context.mode, n),
            "n_detections": pa.array(self.predictions.counts, pa.int32()),
            "n_truths": pa.array([None] * n if truths is None else truths, pa.int32()),
            "labelled": pa.array([truths is not None] * n),
            "nonfinite": pa.array(bad),
            "overflow": pa.array(np.zeros(n, np.bool_)),
        }
        if self.global_step is not None:
            columns["global_step"] = pa.array(np.full(n, self.global_step, np.int64))
        if hashes is not None and context.store_hash:
            columns["input_hash"] = pa.array(hashes, pa.string())
        for spec in context.fields:
            columns[spec.name] = additional_column(spec, self.user.get(spec.name), n)
        return table_of(columns, context.samples, n)

    def _boxes(
        self, family: str, arrays: Mapping[str, npt.NDArray[Any]], counts: list[int], ids: list[str]
    ) -> dict[str, pa.Array]:
        """The columns that `detections` and `truths` share, and each one's own."""
        prefix, index = ("", "det_idx") if family == "detections" else ("true_", "gt_idx")
        box, label = arrays[prefix + "box"].astype(np.float32), arrays[prefix + "label"].astype(np.int64)
        frame = np.repeat(np.arange(len(counts)), counts)
        first = np.repeat(np.cumsum([0, *counts])[:-1], counts)
        columns = {
            "unit": pa.array(self.unit0 + frame),
            "rank_": pa.array(np.full(len(frame), self.context.rank, np.int32)),
            "input_id": pa.array([ids[i] for i in frame], pa.string()),
            index: pa.array((np.arange(len(frame)) - first).astype(np.int32)),
            "label": pa.array(label),
            "box": _fixed_lists(box[:, :_BOX]),
        }
        if box.shape[1] >= _BOX + 2:
            columns["velocity"] = _fixed_lists(box[:, _BOX : _BOX + 2])
        if family == "detections":
            columns["score"] = pa.array(arrays["score"].astype(np.float32))
        else:
            columns["ignore"] = pa.array(label < 0)  # MMDetection3D's label of "don't care"
        return columns


def _box_table(columns: Mapping[str, pa.Array], schema: pa.Schema, n: int) -> pa.Table:
    """As `table_of`. Without velocities there is no such column: pyarrow < 26 cannot read null lists back."""
    if "velocity" not in columns:
        schema = schema.remove(schema.get_field_index("velocity"))
    return table_of(columns, schema, n)


def _fixed_lists(values: npt.NDArray[np.float32]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


class FrameSession(Session):
    """A session that records frames: the events bring what the model said, so no layer is hooked."""

    def attach(self, model: nn.Module, *, ignore_root: bool) -> None:
        """Nothing to hook."""

    def adopt(self, capture: Capture) -> None:
        """Hooks set earlier are not needed."""
        capture.close()

    def detach(self) -> None:
        """Nothing is hooked."""

    def arm(self) -> None:
        """Nothing is hooked."""

    def disarm(self) -> None:
        """Nothing is hooked."""

    @property
    def heard(self) -> bool:
        """Nothing is hooked."""
        return False

    def labels_of(self, batch: Any) -> Boxes | None:
        """The true boxes of a framework's batch."""
        return read_truths(batch)

    def commit(self, open_pass: OpenPass, batch: Batch) -> None:
        """Stages one batch of frames and hands it to the writer."""
        if open_pass.muted:
            return
        predictions = read_predictions(batch.outputs)
        if predictions is None:
            self._tell_no_frames(open_pass)
            return
        context = open_pass.context
        if not isinstance(context, PassContext):
            context = open_pass.context = self._begin_frames(open_pass, predictions.convention)
        n = len(predictions.counts)
        job = self._frame_job(open_pass, context, batch, predictions)
        nbytes = job.staged.nbytes + held_bytes(job.hash_from) + 128 * n
        assert open_pass.handle is not None
        if not self._writer.put(open_pass.handle, job, rows=n, nbytes=nbytes):
            job.staged.discard()
        open_pass.units += n
        open_pass.batches += 1

    def _tell_no_frames(self, open_pass: OpenPass) -> None:
        open_pass.muted = open_pass.units == 0
        split = open_pass.key.dataset_type
        self.guard.tell_once(
            f"frames:{open_pass.mode}",
            f"What the 3D detector returns in the {split} split has no `pred_instances_3d` (in training it "
            "returns losses only), so that split is not recorded; the training goes on untouched.",
        )

    def _begin_frames(self, open_pass: OpenPass, convention: str) -> PassContext:
        context = PassContext(
            rank=self.rank,
            mode=open_pass.mode,
            n_class=0,
            samples=samples_schema("detection3d", self.options.sample_fields()),
            vectors=pa.schema([]),
            rules=(),
            vector_dtype=self.options.vector_dtype,
            store_hash=self.options.input_hash,
            fields=self.options.sample_fields(),
            guard=self.guard,
        )
        meta = {"mode": open_pass.mode, "boxes_as": convention}
        context.meta.update(meta, counts=context.counts)
        open_pass.handle = self._open(open_pass, dict(meta))
        if self.rank == 0 and self.info.get("task") != "detection3d":
            with self.guard.catch("writing run.json", lost="the run's task"):
                self.info = self.store.update_run_info(self.run, task="detection3d") or self.info
        return context

    def _frame_job(
        self, open_pass: OpenPass, context: PassContext, batch: Batch, predictions: Boxes
    ) -> FrameJob:
        truths = batch.labels if isinstance(batch.labels, Boxes) else None
        score = predictions.score
        assert score is not None
        named = {"box": predictions.box, "label": predictions.label, "score": score}
        if truths is not None:
            named.update(true_box=truths.box, true_label=truths.label)
        ids = own_copy(batch.ids)
        if isinstance(ids, Tensor):
            named["ids"] = ids
        held, on_device = self._hashing(batch, len(predictions.counts))
        if on_device is not None:
            named["input_hash"] = on_device
        self._tell_id_source(batch.id_source)
        return FrameJob(
            context=context,
            unit0=open_pass.units,
            predictions=predictions,
            truths=truths,
            staged=self._stager.stage(list(named.values())),
            names=list(named),
            ids=None if isinstance(ids, Tensor) else ids,
            id_source=batch.id_source,
            hash_from=held,
            user=batch.fields,
            batch_idx=batch.batch_idx,
            global_step=batch.global_step,
        )
