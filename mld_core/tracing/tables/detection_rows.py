"""From one call of a detector to its record tables; all of it runs on the writer thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mld_core.adapters.base import Adapter, ModelCall, Parsed, Thresholds
from mld_core.adapters.outputs import as_array
from mld_core.records.format.schema import (
    AdditionalField,
    additional_column,
    detections_schema,
    samples_schema,
    truths_schema,
    vectors_schema,
)
from mld_core.records.format.vectors import cast_vectors, from_numpy, nonfinite_rows
from mld_core.tracing.batch.batches import CONTENT_HASH, HeldInputs
from mld_core.tracing.batch.hashing import input_hash_of, to_hex
from mld_core.tracing.batch.identity import as_id_list
from mld_core.tracing.batch.modalities import by_frame
from mld_core.tracing.batch.truths import LABELS_OUT_OF_RANGE, Checked, check_truth, read_truths
from mld_core.tracing.capture.features import project
from mld_core.tracing.capture.holding import Holder
from mld_core.tracing.capture.layers import layer_features
from mld_core.tracing.tables.box_tables import (
    Arrays,
    as_arrays,
    box_table,
    fixed_lists,
    joined,
    places,
    stacked,
)
from mld_core.tracing.tables.convention import ConventionProbe
from mld_core.tracing.tables.media import DETECTION_LONG_SIDE, media_arrays, media_columns
from mld_core.tracing.tables.rows import PassState, constant, table_of

_TRUTH_TYPES: Final = {
    "crowd": pa.bool_(),
    "difficulty": pa.int32(),
    "occlusion": pa.float32(),
    "truncation": pa.float32(),
    "n_points": pa.int32(),
}
FEATURES: Final = "features"
_LOSSES_ONLY: Final = (
    "In {mode} mode this detector returns no detections (losses only), so such batches are not recorded; the "
    "training goes on untouched. In a wrapper replay_train=True walks the training data once more after each "
    "epoch, in evaluation mode; by hand, call the tracer with the model in evaluation mode."
)
_LABEL_RANGE: Final = (
    "True boxes have labels of no class (the model has {n_class}); they are stored with `ignore` and "
    "counted. Labels are those of the model's own targets: torchvision's R-CNN and SSD count classes from 1, "
    "0 is their background; all others count from 0."
)


@dataclass(kw_only=True)
class DetectionContext(PassState):
    """What all batches of a detector's pass share.

    Attributes:
        task: "detection" or "detection3d".
        n_class: foreground classes where known.
        label_fields: the user's columns of `truths`.
        units: frames built so far; the writer thread's.
        widths: alias -> width of the vectors of this pass, settled by its first detections.
        silent: the model made no detections in this pass so far (a training that gives losses only).
        settled: told what the first detections showed: run-wide facts.
        provider: asked for the truth of frames that came without any: (ids) -> truth.
        probe: judges 3D boxes, None in 2D.
    """

    task: str
    n_class: int | None
    label_fields: tuple[AdditionalField, ...] = ()
    units: int = 0
    widths: dict[str, int] | None = None
    silent: bool = False
    settled: Callable[[Parsed, dict[str, int]], set[str]]
    provider: Callable[[list[str]], Any] | None = None
    probe: ConventionProbe | None = None

    @property
    def box_width(self) -> int:
        """Columns of a box."""
        return 7 if self.task == "detection3d" else 4


@dataclass
class Source:
    """What the job reads: a call with its adapter, or final detections that came ready.

    Attributes:
        adapter: of the detector, None without one.
        call: references, ours to read.
        parsed: final detections, if the tracer's own parser made them.
        limits: what the user asked for over what the model stated at the event.
        layers: alias of `target_layers` -> output of that layer.
        holder: watches the tensors of all that.
        event: on CUDA, recorded when the call was taken; the stream to wait for it on.
    """

    adapter: Adapter | None
    call: ModelCall | None
    parsed: Parsed | None
    limits: Thresholds
    layers: Mapping[str, Any]
    holder: Holder
    event: Any = None
    stream: Any = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Within it the tensors may be read; on CUDA on a stream of our own, behind the event."""
        with torch.no_grad():
            if self.stream is None:
                yield
                return
            with torch.cuda.stream(self.stream):
                self.stream.wait_event(self.event)
                yield
                self.stream.synchronize()

    def parse(self) -> Parsed | None:
        """The final detections.

        Raises:
            ValueError: a tensor was written to since the event.
        """
        if self.parsed is not None:
            return self.parsed
        assert self.adapter is not None
        assert self.call is not None
        parsed = None if self.holder.changed() else self.adapter.parse(self.call, self.limits)
        if self.holder.changed():
            raise ValueError("what the detector returned was changed in place before it was read")
        return parsed


@dataclass
class DetectionJob:
    """One batch of frames on its way to the record tables: called once, on the writer thread."""

    context: DetectionContext
    source: Source
    truth: Any
    ids: Any
    id_source: str
    hash_from: HeldInputs | None
    device_hash: Any
    sizes: Sequence[tuple[int, int]] | None
    user: Mapping[str, Any]
    batch_idx: int
    global_step: int | None
    images: Any = None

    def __call__(self) -> dict[str, pa.Table]:
        """Builds the tables of this batch; {} where the model made no detections (losses only).

        Raises:
            ValueError: the batch can not be recorded; the writer counts its rows as lost with this reason.
        """
        context = self.context
        with self.source.reading():
            parsed = self.source.parse()
            if parsed is None:
                context.silent = context.units == 0
                context.count("batches without detections")
                context.guard.tell_once(
                    f"no detections:{context.mode}", _LOSSES_ONLY.format(mode=context.mode)
                )
                return {}
            n = len(parsed.output)
            hashes = self._hashes(n)
            ids = self._ids(hashes, n)
            truths = self._truths(parsed, ids, n)
            layers = self._layers(parsed)
            if isinstance(self.images, list):
                self.images = [None if image is None else as_array(image) for image in self.images]
            elif self.images is not None:
                self.images = as_array(self.images)
        self._judge(parsed, truths)
        ids = self._truth_ids(ids, truths, n)
        tables = self._tables(parsed, truths, layers, ids, hashes, n)
        context.silent = False
        context.units += n
        self.source.call = None
        return tables

    # -- what stands beside the detections -------------------------------------------------------------------

    def _hashes(self, n: int) -> list[str] | None:
        values = self.device_hash
        if values is None and self.hash_from is not None:
            if self.hash_from.changed():
                self.context.count("inputs changed in place before they were hashed", n)
            else:
                inputs = self.hash_from.inputs
                values = input_hash_of(by_frame(inputs, n) if self.context.box_width == 7 else inputs, n)
        self.hash_from = None  # lets go of the inputs
        return None if values is None or len(values) != n else to_hex(values)

    def _ids(self, hashes: list[str] | None, n: int) -> list[str] | None:
        if self.id_source == CONTENT_HASH:
            return hashes
        ids = as_id_list(self.ids)
        if len(ids) != n:
            raise ValueError(f"{len(ids)} ids for {n} frames; give one id per frame")
        return ids

    def _truth_ids(self, ids: list[str] | None, truths: Sequence[Checked | None], n: int) -> list[str]:
        """The framework's own ids where there are no better ones."""
        if self.id_source == CONTENT_HASH:
            own = [None if t is None else t.truth.input_id for t in truths]
            if n and all(name is not None for name in own):
                self.id_source = "image_id"
                return [str(name) for name in own]
        if ids is None:
            raise ValueError(
                "no id could be made of the inputs' content (changed in place, or not divisible by frame); "
                "give id_fn"
            )
        return ids

    def _truths(self, parsed: Parsed, ids: list[str] | None, n: int) -> list[Checked | None]:
        """The checked truths; frames whose truth can not be read count as unlabelled."""
        context = self.context
        truth = self.truth
        with context.guard.catch("reading the true boxes", lost="the labels of that batch") as caught:
            if truth is None and context.provider is not None and ids is not None:
                truth = context.provider(ids)
            found = read_truths(self.source.adapter, self.source.call, truth, n, context.box_width)
            checked = [
                None if t is None else check_truth(as_arrays(t), context.n_class, self._size(parsed, i))
                for i, t in enumerate(found or [None] * n)
            ]
            self._tell_scale(checked)
        if caught.failed:
            context.count("frames whose truth could not be read", n)
            return [None] * n
        for frame in checked:
            for what, times in ({} if frame is None else frame.faults).items():
                context.count(what, times)
                if what == LABELS_OUT_OF_RANGE:
                    context.guard.tell_once("label range", _LABEL_RANGE.format(n_class=context.n_class))
        return checked

    def _judge(self, parsed: Parsed, truths: Sequence[Checked | None]) -> None:
        """3D: warns where boxes look like those of another convention."""
        probe, output = self.context.probe, parsed.output
        if probe is None:
            return
        seen = [probe.see("true", t.truth.boxes, t.truth.labels) for t in truths if t is not None]
        for boxes, labels, scores in zip(output.boxes, output.labels, output.scores, strict=True):
            seen.append(probe.see("predicted", boxes, labels, scores))
        for warning in seen:
            if warning is not None:
                self.context.count("passes with vehicles wider than long")
                self.context.guard.tell_once(f"convention:{warning[:12]}", warning)

    def _tell_scale(self, checked: Sequence[Checked | None]) -> None:
        boxes = [frame.truth.boxes for frame in checked if frame is not None and len(frame.truth.boxes)]
        if self.context.box_width == 4 and boxes and all(np.nanmax(b, initial=0) <= 1.0 for b in boxes):
            self.context.guard.tell_once(
                "box scale",
                "No true box reaches beyond 1 pixel: they look normalised. Give (N, 4) x1, y1, x2, y2 in "
                "pixels of the model's input.",
            )

    def _size(self, parsed: Parsed, frame: int) -> tuple[int, int] | None:
        if parsed.geometry is not None:
            return parsed.geometry[frame].height, parsed.geometry[frame].width
        return self.sizes[frame] if self.sizes is not None and frame < len(self.sizes) else None

    def _layers(self, parsed: Parsed) -> dict[str, npt.NDArray[np.float32]]:
        found = {}
        sizes = [self._size(parsed, i) for i in range(len(parsed.output))]
        for alias, output in self.source.layers.items():
            rows = layer_features(output, parsed.output, sizes)
            if rows is not None:
                found[alias] = rows
            else:
                self.context.count(f"feature {alias} missing", sum(map(len, parsed.output.boxes)))
                self.context.guard.tell_once(
                    f"layer:{alias}",
                    f"target_layers: the output of {alias!r} can not be divided among detections; it is not "
                    "recorded. Known are maps (B, C, H, W) and queries (B, Q, D).",
                )
        return found

    # -- tables ----------------------------------------------------------------------------------------------

    def _tables(
        self,
        parsed: Parsed,
        truths: Sequence[Checked | None],
        layers: Mapping[str, npt.NDArray[np.float32]],
        ids: list[str],
        hashes: list[str] | None,
        n: int,
    ) -> dict[str, pa.Table]:
        context, output = self.context, parsed.output
        counts = [len(boxes) for boxes in output.boxes]
        vectors, bad, overflow = self._vectors(parsed, layers, counts, ids)
        finite = np.isfinite(joined(output.boxes, (0, context.box_width))).all(axis=1)
        finite &= np.isfinite(joined(output.scores, (0,)))
        owner = np.repeat(np.arange(n), counts)
        nonfinite = np.bincount(owner, weights=bad | ~finite, minlength=n) > 0
        context.count("detections not finite", int((bad | ~finite).sum()))
        samples = self._samples(parsed, truths, ids, hashes, n)
        samples["nonfinite"] = pa.array(nonfinite)
        samples["overflow"] = pa.array(np.bincount(owner, weights=overflow, minlength=n) > 0)
        made = {
            "samples": table_of(samples, samples_schema(context.task, context.fields), n),
            "detections": self._detections(parsed, counts, ids),
            "truths": self._truth_table(truths, ids),
        }
        if vectors is not None:
            made["vectors"] = vectors
        if context.media is not None and self.images is not None:
            own = self._own(np.arange(n), ids)
            made["media"] = table_of(
                media_arrays(own, media_columns(self.images, n, context.guard, DETECTION_LONG_SIDE)),
                context.media,
                n,
            )
        return made

    def _own(self, frames: npt.NDArray[np.int64], ids: list[str]) -> Arrays:
        """The key columns of rows that belong to `frames`."""
        return {
            "unit": pa.array(self.context.units + frames),
            "rank_": pa.array(np.full(len(frames), self.context.rank, np.int32)),
            "input_id": pa.array([ids[i] for i in frames], pa.string()),
        }

    def _samples(
        self,
        parsed: Parsed,
        truths: Sequence[Checked | None],
        ids: list[str],
        hashes: list[str] | None,
        n: int,
    ) -> Arrays:
        context, limits = self.context, parsed.thresholds
        sizes = [self._size(parsed, i) or (None, None) for i in range(n)]
        affine = [None if parsed.geometry is None else parsed.geometry[i].affine for i in range(n)]
        cap_hit = [bool(hit) for hit in parsed.cap_hit] if len(parsed.cap_hit) == n else [None] * n
        columns: Arrays = {
            **self._own(np.arange(n), ids),
            "id_source": constant(self.id_source, n),
            "batch_idx": pa.array(np.full(n, self.batch_idx, np.int32)),
            "row": pa.array(np.arange(n, dtype=np.int32)),
            "mode": constant(context.mode, n),
            "n_detections": pa.array([len(boxes) for boxes in parsed.output.boxes], pa.int32()),
            "n_truths": pa.array([None if t is None else len(t.ignore) for t in truths], pa.int32()),
            "labelled": pa.array([t is not None for t in truths], pa.bool_()),
            "score_thresh": pa.array([limits.score] * n, pa.float32()),
            "iou_thresh": pa.array([limits.iou] * n, pa.float32()),
            "max_detections": pa.array([limits.max_detections] * n, pa.int32()),
            "cap_hit": pa.array(cap_hit, pa.bool_()),
            "image_height": pa.array([size[0] for size in sizes], pa.int32()),
            "image_width": pa.array([size[1] for size in sizes], pa.int32()),
            "affine": pa.array([None if a is None else list(a) for a in affine], pa.list_(pa.float64())),
        }
        if self.global_step is not None:
            columns["global_step"] = pa.array(np.full(n, self.global_step, np.int64))
        if hashes is not None and context.store_hash:
            columns["input_hash"] = pa.array(hashes, pa.string())
        for spec in context.fields:
            columns[spec.name] = additional_column(spec, self.user.get(spec.name), n)
        return columns

    def _detections(self, parsed: Parsed, counts: list[int], ids: list[str]) -> pa.Table:
        output, total = parsed.output, sum(counts)
        frames, index = places(counts)
        columns = {
            **self._own(frames, ids),
            "det_idx": pa.array(index),
            "label": pa.array(joined(output.labels, (0,)).astype(np.int64)),
            "score": pa.array(joined(output.scores, (0,)).astype(np.float32)),
            "activation": constant(parsed.activation, total),
            "box": fixed_lists(joined(output.boxes, (0, self.context.box_width))),
        }
        if parsed.quality is not None:
            columns["quality"] = pa.array(joined(parsed.quality, (0,)).astype(np.float32))
        if output.source_index is not None:
            columns["source_index"] = pa.array(joined(output.source_index, (0,)).astype(np.int64))
        if output.velocities is not None:
            columns["velocity"] = fixed_lists(joined(output.velocities, (0, 2)))
        return box_table(columns, detections_schema(self.context.task), total)

    def _truth_table(self, truths: Sequence[Checked | None], ids: list[str]) -> pa.Table:
        found = [t for t in truths if t is not None]
        counts = [0 if t is None else len(t.ignore) for t in truths]
        total = sum(counts)
        frames, index = places(counts)
        columns = {
            **self._own(frames, ids),
            "gt_idx": pa.array(index),
            "label": pa.array(joined([t.truth.labels for t in found], (0,)).astype(np.int64)),
            "box": fixed_lists(joined([t.truth.boxes for t in found], (0, self.context.box_width))),
            "ignore": pa.array(joined([t.ignore for t in found], (0,)).astype(np.bool_)),
        }
        for name, kind in _TRUTH_TYPES.items():
            if any(name in t.truth.columns for t in found):
                rows = [
                    value
                    for t in found
                    for value in (
                        t.truth.columns[name].tolist() if name in t.truth.columns else [None] * len(t.ignore)
                    )
                ]
                columns[name] = pa.array(rows).cast(kind, safe=False)
        if found and all(t.truth.velocities is not None for t in found):
            columns["velocity"] = fixed_lists(
                joined([t.truth.velocities for t in found if t.truth.velocities is not None], (0, 2))
            )
        for spec in self.context.label_fields:
            columns[spec.name] = additional_column(spec, self._label_values(spec.name, counts), total)
        return box_table(columns, truths_schema(self.context.task, self.context.label_fields), total)

    def _label_values(self, name: str, counts: list[int]) -> list[Any] | None:
        """Values of a user's label field for each true box: given by frame, or standing in the truth."""
        given = self.user.get(name)
        if given is None and isinstance(self.truth, Mapping):
            given = self.truth.get(name)
        if given is None and isinstance(self.truth, (list, tuple)):
            given = [f.get(name) if isinstance(f, Mapping) else None for f in self.truth]
        if given is None:
            return None
        if len(given) != len(counts):
            raise ValueError(
                f"field {name!r} has {len(given)} values for {len(counts)} frames; give one list per frame"
            )
        rows: list[Any] = []
        for value, count in zip(given, counts, strict=True):
            items = value.tolist() if hasattr(value, "tolist") else value
            items = list(items) if isinstance(items, (list, tuple)) else [items] * count
            if len(items) != count:
                raise ValueError(f"field {name!r} has {len(items)} values for {count} true boxes")
            rows += items
        return rows

    def _vectors(
        self,
        parsed: Parsed,
        layers: Mapping[str, npt.NDArray[np.float32]],
        counts: list[int],
        ids: list[str],
    ) -> tuple[pa.Table | None, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """`vectors` of this batch; the rows whose logits are not finite, and those beyond float16."""
        context, total = self.context, sum(counts)
        bad, overflow = np.zeros(total, np.bool_), np.zeros(total, np.bool_)
        if not total:
            return None, bad, overflow
        values: dict[str, npt.NDArray[np.float32]] = {}
        if parsed.output.logits is not None:
            values["logits"] = stacked(parsed.output.logits)
            bad = nonfinite_rows(values["logits"])
        if parsed.output.features is not None:
            values[FEATURES] = project(stacked(parsed.output.features))
        values.update({alias: project(rows) for alias, rows in layers.items()})
        values = {alias: rows for alias, rows in values.items() if rows.shape[1]}
        if context.widths is None and values:
            widths = {alias: rows.shape[1] for alias, rows in values.items()}
            wanted = context.settled(parsed, widths)
            context.widths = {alias: width for alias, width in widths.items() if alias in wanted}
        if not context.widths:
            return None, bad, overflow
        frames, index = places(counts)
        columns = {**self._own(frames, ids), "det_idx": pa.array(index)}
        for alias, width in context.widths.items():
            rows = values.get(alias)
            if rows is None or rows.shape[1] != width:
                context.count(f"{alias} missing or of another width", total)
                continue
            if alias == "logits":
                columns[alias] = from_numpy(np.ascontiguousarray(rows, np.float32))
                continue
            stored, clipped = cast_vectors(rows, context.vector_dtype)
            overflow |= clipped
            context.count(f"feature {alias} not finite", int(nonfinite_rows(stored).sum()))
            columns[alias] = from_numpy(stored)
        context.count("features beyond float16", int(overflow.sum()))
        features = {a: (w, context.vector_dtype) for a, w in context.widths.items() if a != "logits"}
        schema = vectors_schema(context.task, context.widths.get("logits"), features)
        return table_of(columns, schema, total), bad, overflow
