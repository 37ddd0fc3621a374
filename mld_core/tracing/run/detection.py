"""One started run of a detector on one rank: from hooked calls to `DetectionJob`s, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn

from mld_core.adapters.base import (
    FALL_BACK_2D,
    FALL_BACK_3D,
    Adapter,
    ModelCall,
    OwnFinals,
    Parsed,
    Thresholds,
)
from mld_core.adapters.outputs import Detection3DOutput, DetectionOutput
from mld_core.records.format.schema import HASH_KIND, media_schema
from mld_core.tracing.batch.batches import CONTENT_HASH, Batch, own_copy, tensors_in
from mld_core.tracing.batch.fingerprint import Fingerprint
from mld_core.tracing.batch.modalities import by_frame, frames_in, modalities
from mld_core.tracing.batch.roots import data_root
from mld_core.tracing.batch.truths import count_frames, find_images, find_truth
from mld_core.tracing.capture.activations import ready
from mld_core.tracing.capture.detectors import DetectorCapture, find_detector, point_range
from mld_core.tracing.capture.features import stored_width
from mld_core.tracing.capture.holding import Holder
from mld_core.tracing.run.sealing import OpenPass
from mld_core.tracing.run.session import Session
from mld_core.tracing.tables.convention import ConventionProbe
from mld_core.tracing.tables.detection_rows import FEATURES, DetectionContext, DetectionJob, Source
from mld_core.tracing.tables.layers import Ground
from mld_core.tracing.tables.media import DETECTION_LONG_SIDE, DETECTION_PICTURES, Pictures

_ROW_BYTES: Final = 512


class DetectionSession(Session):
    """Records final detections, true boxes, logits and features of a detector.

    Attributes:
        capture: the hooks on the detector, None until `attach` or `adopt`.
        task: "detection" or "detection3d".
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.capture: DetectorCapture | None = None
        self.task = self.options.task or "detection"
        self.pictures = Pictures(
            self.options.image_fn, self.guard, long_side=DETECTION_LONG_SIDE, most=DETECTION_PICTURES
        )
        self._root: nn.Module | None = None
        self._early: tuple[Any, Any] = (None, None)
        self._streams: dict[torch.device, Any] = {}

    # -- hooks -----------------------------------------------------------------------------------------------

    def attach(self, model: nn.Module, *, ignore_root: bool) -> None:  # noqa: ARG002 - the adapter's model is hooked
        """Finds the detector in `model` and sets the hooks on it.

        Raises:
            UnknownDetectorError: there is none of a known family. ConfigurationProblem: there are several, or
                a module path in `target_layers` does not exist.
        """
        if self._root is model and self.capture is not None:
            return
        adapter = find_detector(model, self.options.task)
        if self.capture is None or self.capture.model is not adapter.model:
            self.adopt(DetectorCapture(adapter, self.options.target_layers))
        self._root = model

    def adopt(self, capture: Any) -> None:
        """Takes over hooks that are set already."""
        self.detach()
        self.capture = capture
        adapter: Adapter | None = capture.adapter
        if adapter is None:
            return
        self.task = adapter.task
        point_range(adapter, self.options.pc_range)
        if self.options.iou_thresh is not None and not adapter.uses_nms:
            self.guard.tell_once(
                "iou_thresh",
                f"iou_thresh has no effect on {adapter.family} models"
                + ("; in 3D it acts for PointPillars only." if self.task == "detection3d" else ".")
                + " What the model itself does stays as it is.",
            )

    def detach(self) -> None:
        """Takes every hook off."""
        if self.capture is not None:
            self.capture.close()
        self.capture = self._root = None

    def arm(self, *, learning: bool = False) -> None:  # noqa: ARG002 - boxes are those of an evaluation
        """A batch begins: clears the stash, lets the hooks keep references."""
        if self.capture is not None and not self.unsupported:
            self.capture.begin()

    def preview(self, batch: Any) -> None:
        """Keeps the targets as they are before the step, which may write to them."""
        if self.options.label_fn is None:
            truth = find_truth(batch)
            self._early = (truth, Holder().keep(truth, own=True))

    def disarm(self) -> None:
        """The batch is over: lets go of every reference."""
        self._early = (None, None)
        if self.capture is not None:
            self.capture.end()

    @property
    def heard(self) -> bool:
        """Whether the detector was called since `arm`."""
        return self.capture is not None and self.capture.heard

    @property
    def listens(self) -> bool:
        """Whether a call of the detector would be heard."""
        return self.capture is not None

    @property
    def heard_input(self) -> Any:
        """The first argument of the detector's latest call."""
        held = None if self.capture is None else self.capture.take()
        return held.call.args[0] if held is not None and held.call.args else None

    # -- batches ---------------------------------------------------------------------------------------------

    def _find_labels(self, batch: Any) -> Any:
        return find_truth(batch)

    def _find_inputs(self, batch: Any) -> Any:
        return modalities(batch) if self.task == "detection3d" else find_images(batch)

    def count(self, batch: Any, labels: Any, inputs: Any) -> int | None:
        """Frames of a framework's batch."""
        n = frames_in(inputs) if self.task == "detection3d" else None
        return count_frames(batch, labels, inputs) if n is None else n

    def hashing(self, batch: Batch, n: int | None, mode: str) -> tuple[Fingerprint | None, Any]:
        """Frames of 3D lie in lists or in one tensor with their numbers: divided where they may be read."""
        if self.task != "detection3d":
            return super().hashing(batch, n, mode)
        if batch.inputs is None or not (self.options.input_hash or batch.id_source == CONTENT_HASH):
            return None, None
        fingerprint = Fingerprint(self._to_hash(batch, n), n, by_frame)
        return self._beside(fingerprint, batch.id_source, mode) if fingerprint.on_host else fingerprint, None

    def commit(self, open_pass: OpenPass, batch: Batch) -> DetectorCapture | None:
        """Hands the call of one batch to the writer thread; returns what was captured, if anything."""
        if self.capture is None or open_pass.muted or self.unsupported:
            return None
        source = self._source(self.capture, batch)
        if source is None:
            return None
        source.dataset, source.limit_range = open_pass.dataset, open_pass.limit_range
        if not self._stored_info and not self._describe(self.capture.adapter):
            return self.capture
        context = open_pass.context
        if not isinstance(context, DetectionContext):
            context = self._begin(open_pass, batch)
        if context.silent and context.mode == "train":
            return self.capture
        n = self.count(None, batch.labels, batch.inputs)
        job = self._job(context, batch, source, n)
        rows = n or 1
        nbytes = source.holder.nbytes + _ROW_BYTES * rows
        self.put(open_pass, job, rows=rows, nbytes=nbytes, hurry=job.hurry)
        return self.capture

    def _source(self, capture: DetectorCapture, batch: Batch) -> Source | None:
        error = capture.error()
        if error is not None:
            what = "keeping what the detector returned"
            self.guard.report(what, error, lost="some of its logits or features")
        made = isinstance(batch.outputs, (DetectionOutput, Detection3DOutput))
        held = capture.take()
        if held is None and not made:
            self._tell_not_called(capture)
            return None
        call = None if held is None else held.call
        if call is not None and isinstance(batch.outputs, OwnFinals):
            call = replace(call, final=batch.outputs, thresholds=batch.outputs.thresholds)
        limits = self.limits_of(call)
        fall_back = FALL_BACK_3D if self.task == "detection3d" else FALL_BACK_2D
        return Source(
            adapter=capture.adapter,
            call=call,
            parsed=ready(batch.outputs, limits.over(fall_back), self.n_class) if made else None,
            limits=limits,
            layers={} if held is None else held.layers,
            holder=Holder() if held is None else held.holder,
        )

    def _tell_not_called(self, capture: DetectorCapture) -> None:
        self.guard.count("batches in which the detector was not called")
        self.guard.tell_once(
            "not called",
            f"The detector ({type(capture.model).__name__}) was not called in a batch, so that batch is not "
            "recorded. If the step calls another one (an EMA copy, a wrapper), give model=<the one called>.",
        )

    def limits_of(self, call: ModelCall | None) -> Thresholds:
        """What counts for final detections: the user's word, the model's, for some families the fall-back."""
        options, adapter = self.options, None if self.capture is None else self.capture.adapter
        given = Thresholds(options.score_thresh, options.iou_thresh, options.max_detections)
        given = given.over((None if call is None else call.thresholds) or Thresholds())
        if adapter is None or adapter.falls_back:
            given = given.over(FALL_BACK_3D if self.task == "detection3d" else FALL_BACK_2D)
        return given if adapter is None or adapter.uses_nms else given.without_iou()

    def _job(self, context: DetectionContext, batch: Batch, source: Source, n: int | None) -> DetectionJob:
        holder = source.holder
        seen, kept = self._early
        same = seen is not None and batch.labels is seen
        truth, ids = kept if same else holder.keep(batch.labels, own=True), own_copy(batch.ids)
        held, on_device = self.hashing(batch, n, context.mode)
        if held is not None and held.held_bytes:
            holder.count(tensors_in(batch.inputs))
        device = next((d for d in holder.devices if d.type == "cuda"), None)
        if device is not None:
            self._mark(source, device)
        self.tell_id_source(batch.id_source)
        return DetectionJob(
            context=context,
            source=source,
            truth=truth,
            ids=ids,
            id_source=batch.id_source,
            hash_from=held,
            device_hash=on_device,
            sizes=image_sizes(batch.inputs),
            user=dict(batch.fields),
            batch_idx=batch.batch_idx,
            global_step=batch.global_step,
            repeats=batch.repeats,
            places=batch.places,
            images=batch.images,
        )

    def _mark(self, source: Source, device: torch.device) -> None:
        """Behind this event, on this stream, the writer thread may read."""
        with torch.cuda.device(device):
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            source.stream = self._streams[device]
            for stream in () if self.capture is None else self.capture.switch.streams:
                torch.cuda.current_stream(device).wait_stream(stream)
            source.event = torch.cuda.current_stream(device).record_event()

    # -- passes ----------------------------------------------------------------------------------------------

    def _begin(self, open_pass: OpenPass, batch: Batch) -> DetectionContext:
        """The first batch of a pass opens it."""
        provider = self.options.ground_truth_provider
        split = open_pass.key.dataset_type
        context = DetectionContext(
            rank=self.rank,
            mode=open_pass.mode,
            store_hash=self.options.input_hash,
            vector_dtype=self.options.vector_dtype,
            fields=self.options.sample_fields(),
            guard=self.guard,
            media=media_schema() if self.pictures.wanted(open_pass.key) else None,
            task=self.task,
            n_class=self.n_class,
            label_fields=self.options.label_fields(),
            settled=lambda parsed, widths: self._settle(context, parsed, widths),
            provider=None if provider is None else lambda ids: provider.get(ids, split),
        )
        meta = {"mode": open_pass.mode, "task": self.task, **self._kind_of(batch)}
        context.hash_kind = meta.get(HASH_KIND, "")
        context.meta.update(meta, counts=context.counts)
        if self.task == "detection3d":
            context.probe = ConventionProbe(self.options.class_names or self.info.get("class_names"))
            context.ground = self._ground()
        with self.guard.catch("finding the data set's folder", lost="ids stay paths of this machine"):
            context.root = data_root(open_pass.dataset)
        if open_pass.handle is None:
            self.open(open_pass, meta)
        open_pass.context = context
        return context

    def _ground(self) -> Ground | None:
        """What the model's bird's-eye maps show, as far as a range is known."""
        adapter = None if self.capture is None else self.capture.adapter
        limits = point_range(adapter, self.options.pc_range)
        if limits is None:
            return None
        turned = adapter is not None and adapter.bev_turned()
        return Ground((limits[0], limits[1]), (limits[3], limits[4]), turned)

    def _describe(self, adapter: Adapter | None) -> bool:
        """Task, classes and their names in run.json, from rank 0; False: the run has other classes."""
        found: dict[str, Any] = {"task": self.task, "vector_dtype": self.options.vector_dtype}
        if adapter is not None:
            found.update(family=adapter.family, **adapter.facts())
            limits = point_range(adapter, self.options.pc_range)
            if limits is not None:
                found["pc_range"] = list(limits)
            with self.guard.catch(
                "asking the model for its classes", lost="the check of labels against them"
            ):
                n_class = self.options.known_n_class or adapter.n_class()
                stored = self.info.get("n_class")
                if stored not in {None, n_class}:
                    self.unsupported = f"a model of {n_class} classes in a run of {stored}"
                    self.guard.tell_once(
                        "width",
                        f"The run {self.run.model_name}/{self.run.version_name} has {stored} classes, this "
                        f"model has {n_class}; nothing of it is recorded. Give another version_name, or "
                        "force_table_recreate=True.",
                    )
                self.n_class = n_class
                names = adapter.class_names()
                if names and not self.info.get("class_names"):
                    found["class_names"] = list(names)
        if self.n_class is not None:
            found["n_class"] = self.n_class
        self._stored_info = found
        if self.unsupported:
            return False
        self._write_info(found)
        return True

    def _settle(self, context: DetectionContext, parsed: Parsed, widths: dict[str, int]) -> set[str]:
        """The first detections show activation and widths; on the writer thread.

        Returns:
            The aliases that are recorded: those whose width is the run's.
        """
        facts: dict[str, Any] = {"activation": parsed.activation, "background": parsed.background}
        context.meta.update(facts)
        facts.update(parsed.facts)
        wanted = self._wanted(widths)
        features = {a: {"width": stored_width(widths[a]), "rule": _rule(a)} for a in wanted - {"logits"}}
        found = {**facts, "features": {**(self.info.get("features") or {}), **features}}
        if any(self.info.get(name) != value for name, value in found.items()):
            self._write_info(found)
        return wanted

    def _meta(self, open_pass: OpenPass) -> dict[str, Any] | Callable[[], dict[str, Any] | None]:
        """What is sealed with a pass; None, once all is read, where the model made no detections at all."""
        context = open_pass.context
        if not isinstance(context, DetectionContext):
            return {}

        def meta() -> dict[str, Any] | None:
            return None if context.silent and not context.units else context.meta

        return meta


def _rule(alias: str) -> str:
    if alias == FEATURES:
        return "the vector before the class logits of each detection"
    return "output of the layer at each detection: its query, or the cell under the box's centre"


def image_sizes(images: Any) -> Sequence[tuple[int, int]] | None:
    """(height, width) of each image of a batch (B, C, H, W) or a list of (C, H, W); None of anything else."""
    shape = getattr(images, "shape", None)
    if shape is not None:
        return [(int(shape[-2]), int(shape[-1]))] * int(shape[0]) if len(shape) == 4 else None
    if (
        isinstance(images, (list, tuple))
        and images
        and all(len(getattr(i, "shape", ())) == 3 for i in images)
    ):
        return [(int(i.shape[-2]), int(i.shape[-1])) for i in images]
    return None
