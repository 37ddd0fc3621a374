"""From one call of a detector to its record tables; all of it runs on the writer thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mld_core.adapters.base import Adapter, ModelCall, Parsed, Thresholds
from mld_core.adapters.outputs import as_array
from mld_core.tracing.batch.batches import CONTENT_HASH
from mld_core.tracing.batch.roots import portable
from mld_core.tracing.batch.truths import read_truths
from mld_core.tracing.capture.features import project
from mld_core.tracing.capture.holding import Holder
from mld_core.tracing.tables.box_tables import (
    LABELS_OUT_OF_RANGE,
    BoxPass,
    Checked,
    Frames,
    as_arrays,
    check_truth,
    stacked,
)
from mld_core.tracing.tables.convention import ConventionProbe
from mld_core.tracing.tables.device import beside_captures, wait_for
from mld_core.tracing.tables.layers import Ground, layer_features, of_range, shape_of
from mld_core.tracing.tables.media import DETECTION_LONG_SIDE, media_table
from mld_core.tracing.tables.rows import Job

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
class DetectionContext(BoxPass):
    """What all batches of a detector's pass share.

    Attributes:
        units: frames built so far; the writer thread's.
        widths: alias -> width of the vectors of this pass, settled by its first detections.
        silent: the model made no detections in this pass so far (a training that gives losses only).
        settled: told what the first detections showed: run-wide facts.
        provider: asked for the truth of frames that came without any: (ids) -> truth.
        root: the folder of the data set: ids that are paths in it are stored relative to it; None: unknown.
        ground: 3D: what the model's bird's-eye maps show, None where it is not known.
        probe: judges 3D boxes, None in 2D.
    """

    units: int = 0
    widths: dict[str, int] | None = None
    silent: bool = False
    settled: Callable[[Parsed, dict[str, int]], set[str]]
    provider: Callable[[list[str]], Any] | None = None
    probe: ConventionProbe | None = None
    ground: Ground | None = None
    root: str | None = None


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
        dataset: the loader's, None where it is not known.
        limit_range: what the framework's metric drops 3D boxes beyond, None where it drops none.
        event: on CUDA, recorded when the call was taken; the stream to wait for it on.
    """

    adapter: Adapter | None
    call: ModelCall | None
    parsed: Parsed | None
    limits: Thresholds
    layers: Mapping[str, Any]
    holder: Holder
    dataset: Any = None
    limit_range: Sequence[float] | None = None
    event: Any = None
    stream: Any = None

    @property
    def asked(self) -> ModelCall | None:
        """The call with the data set, which may say of true boxes what the batch does not."""
        return None if self.call is None else self._told(self.call)

    def _told(self, call: ModelCall) -> ModelCall:
        return replace(call, dataset=self.dataset, limit_range=self.limit_range)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Within it the tensors may be read; on CUDA on a stream of our own, behind the event."""
        with torch.no_grad():
            if self.stream is None:
                yield
                return
            with beside_captures(), torch.cuda.stream(self.stream):
                self.stream.wait_event(self.event)
                yield
                wait_for(self.stream.record_event())

    def parse(self, truth: Any) -> Parsed | None:
        """The final detections; `truth` came beside the call.

        Raises:
            ValueError: a tensor was written to since the event.
        """
        if self.parsed is not None:
            return self.parsed
        assert self.adapter is not None
        assert self.call is not None
        call = replace(self._told(self.call), truth=truth)
        parsed = None if self.holder.changed() else self.adapter.parse(call, self.limits)
        if self.holder.changed():
            raise ValueError("what the detector returned was changed in place before it was read")
        return parsed


@dataclass(kw_only=True)
class DetectionJob(Job):
    """One batch of frames on its way to the record tables: called once, on the writer thread."""

    unit: ClassVar[str] = "frame"

    context: DetectionContext
    source: Source
    truth: Any
    device_hash: Any
    sizes: Sequence[tuple[int, int]] | None

    def __call__(self) -> Frames | dict[str, pa.Table]:
        """Reads this batch; {} where the model made no detections (losses only).

        Raises:
            ValueError: the batch can not be recorded; the writer counts its rows as lost with this reason.
        """
        context = self.context
        with self.source.reading():
            parsed = self.source.parse(self.truth)
            if parsed is None:
                context.silent = context.units == 0
                context.count("batches without detections")
                context.guard.tell_once(
                    f"no detections:{context.mode}", _LOSSES_ONLY.format(mode=context.mode)
                )
                return {}
            context.meta.update(parsed.facts)
            for note in parsed.notes:
                context.guard.tell_once(f"found:{note[:20]}", note)
            n = len(parsed.output)
            hashes = self._hashes(context, n, self.device_hash)
            ids = hashes if self.id_source == CONTENT_HASH else self._given_ids(self.ids, n)
            truths = self._truths(parsed, ids, n)
            layers = self._layers(parsed)
            if isinstance(self.images, list):
                self.images = [None if image is None else as_array(image) for image in self.images]
            elif self.images is not None:
                self.images = as_array(self.images)
        self._judge(parsed, truths)
        counts = [0 if t is None else len(t.ignore) for t in truths]
        names, paths = self._portable(self._truth_ids(ids, truths, n))
        frames = Frames(
            context=context,
            units=np.arange(context.units, context.units + n),
            parsed=parsed,
            truths=truths,
            ids=names,
            paths=paths,
            origins=[self._origin(context, n, hashes)],
            sizes=[self._size(parsed, i) or (None, None) for i in range(n)],
            vectors=self._vectors(parsed, layers),
            widths=context.widths or {},
            label_values={f.name: self._label_values(f.name, counts) for f in context.label_fields},
        )
        if context.media is not None and self.images is not None:
            frames.media = media_table(frames.own(np.arange(n)), self.images, context, DETECTION_LONG_SIDE)
        context.silent = False
        context.units += n
        self.source.call = None
        return frames

    # -- what stands beside the detections -------------------------------------------------------------------

    def _truth_ids(self, ids: list[str] | None, truths: Sequence[Checked | None], n: int) -> list[str]:
        """The framework's own ids where there are no better ones."""
        if self.id_source == CONTENT_HASH:
            own = [None if t is None else t.truth.input_id for t in truths]
            if n and all(name is not None for name in own):
                self.id_source = "image_id"
                return [str(name) for name in own]
        return self._known(ids)

    def _portable(self, ids: list[str]) -> tuple[list[str], list[str | None] | None]:
        """The framework's paths as they are on every machine, and beside them those of this one."""
        theirs = self.id_source in {"metainfo", "image_id"}
        return portable(ids, self.context.root) if theirs else (ids, None)

    def _truths(self, parsed: Parsed, ids: list[str] | None, n: int) -> list[Checked | None]:
        """The checked truths; frames whose truth can not be read count as unlabelled."""
        context = self.context
        truth = self.truth
        with context.guard.catch("reading the true boxes", lost="the labels of that batch") as caught:
            if truth is None and context.provider is not None and ids is not None:
                truth = context.provider(ids)
            found = read_truths(self.source.adapter, self.source.asked, truth, n, context.box_width)
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
            rows = layer_features(output, parsed.output, sizes, self.context.ground)
            if rows is not None:
                found[alias] = rows
            else:
                self.context.count(f"feature {alias} missing", sum(map(len, parsed.output.boxes)))
                self.context.guard.tell_once(
                    f"layer:{alias}",
                    f"target_layers: the output of {alias!r} ({shape_of(output)}) can not be divided among "
                    "detections; it is not recorded. Known are maps (B, C, H, W), in 3D those of the "
                    f"bird's-eye view{of_range(self.context.ground)}, and queries (B, Q, D).",
                )
        return found

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
        self, parsed: Parsed, layers: Mapping[str, npt.NDArray[np.float32]]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """What the pass stores of this batch's detections."""
        context, total = self.context, sum(map(len, parsed.output.boxes))
        values: dict[str, npt.NDArray[np.float32]] = {}
        if not total:
            return values
        if parsed.output.logits is not None:
            values["logits"] = stacked(parsed.output.logits)
        if parsed.output.features is not None:
            values[FEATURES] = project(stacked(parsed.output.features))
        values.update({alias: project(rows) for alias, rows in layers.items()})
        values = {alias: rows for alias, rows in values.items() if rows.shape[1]}
        if context.widths is None and values:
            widths = {alias: rows.shape[1] for alias, rows in values.items()}
            wanted = context.settled(parsed, widths)
            context.widths = {alias: width for alias, width in widths.items() if alias in wanted}
        found = {}
        for alias, width in (context.widths or {}).items():
            rows = values.get(alias)
            if rows is None or rows.shape[1] != width:
                context.count(f"{alias} missing or of another width", total)
            else:
                found[alias] = rows
        return found
