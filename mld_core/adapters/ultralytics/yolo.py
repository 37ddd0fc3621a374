"""Ultralytics' detectors (v5u, v8 to v12): the `YOLO` wrapper and the bare `DetectionModel`.

Of models for segmentation and pose the boxes are read, as of any other; masks and keypoints are left out.
Rotated boxes (OBB) stand beside the upright ones around them.

A bare model returns every anchor: thresholds and non-maximum suppression are run here, as the library's
predictor runs them (best class of each anchor, boxes of different classes moved apart). The wrapper returns
final detections: their anchors are found by their values. What the head puts out differs between releases;
its structure tells, never a version.
"""

from __future__ import annotations

import contextlib
import functools
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final, Protocol

import torch
from torch import Tensor

from mld_core.adapters.base import (
    Adapter,
    Call,
    FrameGeometry,
    ModelCall,
    OwnFinals,
    Parsed,
    Thresholds,
    Truth,
)
from mld_core.adapters.finals import (
    Finals,
    detached,
    gathered,
    level_features,
    limited,
    parsed,
    rows_by_value,
)
from mld_core.adapters.finals import sizes_of as image_sizes
from mld_core.adapters.registry import register, type_names
from mld_core.adapters.settings import read
from mld_core.adapters.ultralytics.head import Raw, best_of, raw_output, suppressed
from mld_core.adapters.ultralytics.rotated import ROTATED_ROW, rotated_rows
from mld_core.adapters.ultralytics.truths import batch_geometry, batch_truths

_PREDICT: Final = Thresholds(0.25, 0.7, 300)  # what the wrapper predicts with unless told otherwise
LIMITS: Final = ("conf", "iou", "max_det")  # the library's names, in the order of `Thresholds`
_NETS: Final = ("ultralytics.nn.tasks", "ultralytics.yolo.nn.tasks")
_WRAPPERS: Final = ("ultralytics.engine.model", "ultralytics.yolo.engine.model")
_LEFT_OUT: Final = {"Segment": "masks", "YOLOESegment": "masks", "Pose": "keypoints"}
_KEPT: Final = ("boxes", "scores", "angle", "one2one", "one2many")


class Heads(Protocol):
    """What a head's output tells of each anchor or query.

    Attributes:
        logits: (B, K, A).
        end2end: whether no suppression is needed.
    """

    logits: Tensor
    end2end: bool

    def count(self) -> int:
        """Images in the batch."""

    def scores(self, image: int) -> Tensor:
        """(A, K)."""

    def boxes(self, image: int) -> Tensor:
        """(A, 4) in the frame of the network's input."""

    def to_original(self, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
        """(N, 4) pixels of an original image of (H, W)."""

    def to_input(self, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
        """(N, 4) pixels of the network's input of (H, W)."""


class UltralyticsBase(Adapter):
    """What the families of the library share: where the net, its head and its settings are."""

    falls_back: ClassVar[bool] = False  # but for what is made here of a bare network's output

    def net(self) -> Any:
        """The network; None where the wrapper holds an exported file."""
        return network(self.model)

    def head(self) -> Any:
        """The last layer, None for an exported file."""
        net = self.net()
        return None if net is None else net.model[-1]

    @property
    def wrapped(self) -> bool:
        """Whether the model is the wrapper, which returns final detections."""
        return is_wrapper(self.model)

    def n_class(self) -> int:
        """The head's `nc`."""
        count = getattr(self.head(), "nc", None)
        if count is None:
            raise ValueError(
                f"{type(self.model).__name__} holds model={getattr(self.model, 'model', None)!r}: expected a "
                "PyTorch model whose last layer has nc to tell the number of classes; pass n_class"
            )
        return int(count)

    def class_names(self) -> list[str] | None:
        """`names` of the net; None where they are the placeholders "0", "1", ..."""
        names = getattr(self.net(), "names", None)
        values = [str(names[i]) for i in sorted(names)] if isinstance(names, Mapping) else list(names or [])
        return None if not values or values == [str(i) for i in range(len(values))] else values

    def thresholds(self) -> Thresholds:
        """Of the wrapper what `predict` would use, of a bare model what its `args` say."""
        if self.wrapped:
            own = getattr(self.model, "overrides", {})
            lasting = Thresholds(None, own.get("iou"), own.get("max_det")).over(_PREDICT)
            return _kwargs(getattr(vars(self.model).get("predict"), "keywords", {})).over(lasting)
        args = getattr(self.net(), "args", None)
        return Thresholds.stated(*(read(args, name) for name in LIMITS))

    @contextlib.contextmanager
    def applied(self, limits: Thresholds) -> Iterator[None]:
        """The wrapper predicts with `limits` (what a call states wins); a bare model has none to set."""
        wanted = zip(LIMITS, vars(limits).values(), strict=True)
        stated = {name: value for name, value in wanted if value is not None}
        if not self.wrapped or not stated:
            yield
            return
        attributes = vars(self.model)
        before = attributes.get("predict")
        attributes["predict"] = functools.partial(self.model.predict, **stated)
        try:
            yield
        finally:
            attributes.pop("predict")
            if before is not None:
                attributes["predict"] = before

    def keep(self, alias: str | None, call: Call) -> Call:
        """Of the head its output without feature maps; of results their rows; of a training step nothing."""
        if alias == "head":
            return Call((), {}, kept_output(call.output))
        if alias is not None:
            return Call(detached(call.args), {}, None)
        if call.args and isinstance(call.args[0], Mapping):
            return Call(call.args, call.kwargs, None)
        rows = result_rows(call.output)
        return Call(call.args, call.kwargs, kept_output(call.output) if rows is None else rows)

    def truths(self, call: ModelCall, truth: Any) -> list[Truth] | None:
        """From the library's batch, or lists of pixel boxes as torchvision has them."""
        return batch_truths(call, truth)

    def geometry(self, call: ModelCall) -> list[FrameGeometry] | None:
        """Of the images a bare model was called with."""
        images = call.args[0] if call.args else None
        if isinstance(images, Mapping):
            return batch_geometry(images)
        return image_sizes(images)

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """Final detections from results, from a bare model's output or from its training step."""
        with torch.no_grad():
            final = call.final or self._results(call)
            if final is not None:
                return self._from_final(call, limits, final)
            raw, sizes = self._raw(call), self.geometry(call)
            if raw is None or sizes is None or len(sizes) != raw.count():
                return None
            wanted = limits.over(call.thresholds or self.thresholds()).filled()
            wanted = wanted.without_iou() if raw.end2end else wanted
            frames = [self._frame(call, raw, image, size, wanted) for image, size in enumerate(sizes)]
        return parsed(frames, "sigmoid", None, wanted, sizes)

    @abstractmethod
    def _read(self, output: Any, head: Any) -> Heads | None:
        """The head's output, None if it is laid out otherwise."""

    @abstractmethod
    def _frame(
        self, call: ModelCall, raw: Any, image: int, size: FrameGeometry, limits: Thresholds
    ) -> Finals:
        """Final detections of one image of a bare model."""

    @abstractmethod
    def _features(self, call: ModelCall, raw: Any, image: int, rows: Tensor) -> Tensor | None:
        """(N, D) of anchors or queries."""

    def _eligible(self, raw: Heads, image: int) -> Tensor:
        """(A, K) scores that results may hold."""
        return raw.scores(image)

    def _raw(self, call: ModelCall) -> Heads | None:
        """The head's output, of its own call if it was seen."""
        seen = call.watched.get("head", ())
        head = self.head()
        output = seen[-1].output if seen else None if self.wrapped else call.output
        return None if head is None or output is None else self._read(output, head)

    def _results(self, call: ModelCall) -> OwnFinals | None:
        """The wrapper's detections, in pixels of the images it was given."""
        rows = result_rows(call.output)
        if rows is None:
            return None
        stated = _kwargs(call.kwargs).over(call.thresholds or self.thresholds())
        geometry = [FrameGeometry(*shape) for _, shape in rows]
        return OwnFinals([data for data, _ in rows], stated, geometry, fitted=True, best_class=True)

    def _from_final(self, call: ModelCall, limits: Thresholds, final: OwnFinals) -> Parsed:
        """Detections as the library made them, with the logits of their anchors or queries."""
        stated = final.thresholds
        wanted, most = limits.over(stated), stated.max_detections
        seen = self._each_image(call)[-len(final.rows) :]  # a warm-up comes first
        known = len(seen) == len(final.rows)
        frames = []
        for i, data in enumerate(final.rows):
            full = most is not None and len(data) >= most
            frame = Finals(data[:, :4], data[:, -2], data[:, -1].long(), cut=full)
            frame.rotated = data[:, 4:9] if data.shape[1] == ROTATED_ROW else None
            if known:
                self._looked_up(*seen[i], frame, final, final.geometry[i])
            frames.append(limited(frame, wanted, stated))
        activation = "sigmoid" if known else "none"
        return parsed(frames, activation, None, wanted.and_of(stated), list(final.geometry))

    def _each_image(self, call: ModelCall) -> list[tuple[ModelCall, Heads, int]]:
        """Call, head output and row of each image the head saw: the wrapper may make several batches."""
        count = len(call.watched.get("head", ()))
        out: list[tuple[ModelCall, Heads, int]] = []
        for i in range(count):
            watched = {alias: seen[i : i + 1] for alias, seen in call.watched.items() if len(seen) == count}
            one = replace(call, watched=watched)
            raw = self._raw(one)
            out += [] if raw is None else [(one, raw, image) for image in range(raw.count())]
        return out

    def _looked_up(
        self, call: ModelCall, raw: Heads, image: int, frame: Finals, final: OwnFinals, size: FrameGeometry
    ) -> None:
        scores = self._eligible(raw, image) if final.best_class else raw.scores(image)
        place = raw.to_original if final.fitted else raw.to_input

        def boxes_of(anchors: Tensor, label: Tensor) -> Tensor:
            del label
            return place(raw.boxes(image)[anchors], (size.height, size.width))

        found = rows_by_value(scores, boxes_of, frame.boxes, frame.scores, frame.labels)
        frame.source = found
        frame.logits = gathered(raw.logits[image].T, found)
        frame.features = self._features(call, raw, image, found)


@register
class YOLOAdapter(UltralyticsBase):
    """Anchor-free heads: sigmoid per class, no objectness; with or without non-maximum suppression.

    With an end-to-end head the score and number limits act, `iou` does not.
    """

    family = "Ultralytics YOLO"

    @staticmethod
    def detect(model: Any) -> bool:
        """By the names of base classes; of heads with masks or keypoints the boxes count."""
        return head_is(model, "Detect")

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """See `UltralyticsBase`; says what is left out.

        Rotated boxes of a bare network are read where its output names their angles.
        """
        if head_is(self.model, "OBB") and call.final is None and result_rows(call.output) is None:
            raw = self._raw(call)
            if not isinstance(raw, Raw) or raw.angle is None or raw.end2end:
                return None
        made = super().parse(call, limits)
        found = [part for name, part in _LEFT_OUT.items() if head_is(self.model, name)]
        if made is not None and found:
            made.notes = [f"Of this model's {found[0]} nothing is recorded; its boxes are."]
        return made

    def watched(self) -> dict[str, Any]:
        """The head, and the last layer of each level's class branch, whose inputs are the features."""
        head = self.head()
        if head is None:
            return {}
        out = {"head": head}
        for alias, name in (("many", "cv3"), ("one", "one2one_cv3")):
            branches = getattr(head, name, None)
            for i, branch in enumerate(branches if branches is not None else ()):
                out[f"{alias}{i}"] = branch[-1]
        return out

    def _read(self, output: Any, head: Any) -> Raw | None:
        return raw_output(output, head)

    def _eligible(self, raw: Heads, image: int) -> Tensor:
        """The predictor keeps the best class of an anchor only."""
        best, label = raw.scores(image).float().max(1)
        return torch.full_like(raw.scores(image), -1.0, dtype=torch.float32).scatter(
            1, label[:, None], best[:, None]
        )

    def _frame(
        self, call: ModelCall, raw: Raw, image: int, size: FrameGeometry, limits: Thresholds
    ) -> Finals:
        del size
        most, score = limits.max_detections, limits.score or 0.0
        if limits.iou is None:  # end to end
            found = best_of(raw, image, getattr(self.head(), "max_det", 300))
            frame = found.pick(found.scores > score)
            frame.cut = most is not None and len(frame.scores) > most
            frame = frame.pick(slice(0, most))
        else:
            frame = suppressed(raw, image, score, limits.iou, most)
        assert frame.source is not None
        frame.logits = raw.logits[image].T[frame.source].float()
        frame.features = self._features(call, raw, image, frame.source)
        return frame

    def _features(self, call: ModelCall, raw: Raw, image: int, rows: Tensor) -> Tensor | None:
        branch = "one" if raw.end2end else "many"
        seen = [call.watched.get(f"{branch}{i}", ()) for i in range(len(raw.sizes))]
        maps = [calls[-1].args[0] for calls in seen if calls and calls[-1].args]
        if len(maps) != len(raw.sizes) or maps[0].shape[0] != raw.count():
            return None
        return level_features(maps, image, rows, [1] * len(maps))


def is_wrapper(model: Any) -> bool:
    """Whether it is the library's `YOLO`, `RTDETR`, ... and not a network."""
    return any(name in {"Model", "YOLO"} and module in _WRAPPERS for module, name in type_names(model))


def network(model: Any) -> Any:
    """The network of a wrapper (the copy that predicts), or the model itself; None: an exported file."""
    if not is_wrapper(model):
        return model
    running = getattr(getattr(getattr(model, "predictor", None), "model", None), "model", None)
    own = running if _is_net(running) else getattr(model, "model", None)
    return own if _is_net(own) else None


def _is_net(model: Any) -> bool:
    return any(name == "BaseModel" and module in _NETS for module, name in type_names(model))


def head_is(model: Any, name: str) -> bool:
    """Whether the network's last layer is of the library's class `name`."""
    net = network(model) if is_wrapper(model) else model if _is_net(model) else None
    layers = getattr(net, "model", None)
    if layers is None or not len(layers):
        return False
    return any(cls == name and module.startswith("ultralytics.") for module, cls in type_names(layers[-1]))


def _kwargs(kwargs: Mapping[str, Any]) -> Thresholds:
    """What a call of the wrapper stated itself."""
    return Thresholds(*(kwargs.get(name) for name in LIMITS))


ResultRows = tuple[Tensor, tuple[int, int]]  # (n, 6 or 7) xyxy [track] score class in original pixels; (H, W)


def result_rows(output: Any) -> list[ResultRows] | None:
    """Boxes and image size of the library's result objects, None if `output` is something else."""
    if not isinstance(output, list) or not output:
        return None
    if all(isinstance(row, tuple) and len(row) == 2 and isinstance(row[1], tuple) for row in output):
        return output
    if not all(hasattr(r, "orig_shape") and hasattr(r, "boxes") for r in output):
        return None
    rows = []
    for result in output:
        turned = getattr(result, "obb", None)
        if turned is not None:
            data = torch.as_tensor(turned.data).detach()
            data = rotated_rows(data[:, :5], data[:, -2:])
        else:
            data = torch.zeros(0, 6) if result.boxes is None else torch.as_tensor(result.boxes.data).detach()
        height, width = result.orig_shape
        rows.append((data, (int(height), int(width))))
    return rows


def kept_output(output: Any) -> Any:
    """A head's output without graph and feature maps (their sizes stay).

    Releases that hand out lists of maps also overwrite the decoded boxes in place: those are copied.
    """
    if isinstance(output, Mapping):
        out = {key: kept_output(value) for key, value in output.items() if key in _KEPT}
        if "feats" in output:
            out["feats"] = [getattr(f, "shape", f)[-2:] for f in output["feats"]]
        return out
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], tuple):
        output = (output[0][0], output[1])  # without the masks' prototypes
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor):
        decoded, rest = output
        decoded = decoded.detach()
        return (decoded.clone() if isinstance(rest, list) else decoded, kept_output(rest))
    return detached(output)
