"""torchvision's detectors: what Faster R-CNN, RetinaNet, FCOS and SSD have in common.

A final detection's class logits are found by running the model's own chain of filters again on what its
head put out, carrying indices. The chain is run as the model ran it (its thresholds, its data type, autocast)
and its result is compared with what the model returned; the values that are recorded are the model's.
"""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from mld_core.adapters.base import Adapter, Call, FrameGeometry, ModelCall, Parsed, Thresholds, Truth
from mld_core.adapters.finals import (
    Finals,
    clipped,
    detached,
    gathered,
    limited,
    parsed,
    rows_by_value,
    same_detections,
    sizes_of,
    truths_of,
)
from mld_core.adapters.registry import type_names
from mld_core.adapters.settings import Setting

_HALF: Final = (torch.float16, torch.bfloat16)
_PACKAGE: Final = "torchvision.models.detection."


# The model's attributes, in the order of `Thresholds`.
_LIMITS: Final = ("score_thresh", "nms_thresh", "detections_per_img")


class TorchvisionAdapter(Adapter):
    """Common part of the families.

    Attributes:
        classes: names of the family's classes in `torchvision.models.detection`.
        first_label: label of the first foreground class in targets and outputs.
    """

    classes: ClassVar[tuple[str, ...]]
    first_label: ClassVar[int]
    activation: ClassVar[str]
    falls_back: ClassVar[bool] = False

    def settings(self) -> Any:
        """The object that holds `score_thresh`, `nms_thresh` and `detections_per_img`."""
        return self.model

    @classmethod
    def detect(cls, model: Any) -> bool:
        """By the name of a base class."""
        return any(name in cls.classes and module.startswith(_PACKAGE) for module, name in type_names(model))

    def thresholds(self) -> Thresholds:
        """Read from the model."""
        return Thresholds.stated(*(getattr(self.settings(), name) for name in _LIMITS))

    def places(self) -> list[Setting]:
        """The three attributes of `settings()`."""
        return [Setting(self.settings(), name) for name in _LIMITS]

    def keep(self, alias: str | None, call: Call) -> Call:
        """Masks, normalised images, feature maps without use and the losses' graph are let go."""
        if alias == "transform":
            return Call((), {}, [tuple(map(int, s)) for s in call.output[0].image_sizes])
        if alias is not None:
            return Call(detached(call.args), detached(call.kwargs), detached(call.output))
        if isinstance(call.output, list):
            rows = [{k: d[k].detach() for k in ("boxes", "scores", "labels") if k in d} for d in call.output]
            return Call(call.args, call.kwargs, rows)
        return Call(call.args, call.kwargs, detached(call.output))

    @abstractmethod
    def _chains(self, call: ModelCall, *, single: bool) -> Chains | None:
        """The captured head outputs, ready to be filtered; None where they are missing.

        Args:
            call: the call.
            single: in float32 whatever the head's type (there are no kernels for all of them), as there is
                nothing to compare with.
        """

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """The model's detections with logits and features; in train those its head outputs would give."""
        sizes = sizes_of(call.args[0] if call.args else call.kwargs.get("images"))
        if sizes is None:
            return None
        stated = call.thresholds or self.thresholds()
        wanted = limits.over(stated)
        outputs = _detections(call.output, len(sizes))
        with torch.no_grad():
            chains = self._chains(call, single=outputs is None)
            if chains is None and outputs is None:
                return None
            frames = []
            for image, size in enumerate(sizes):
                own = None if outputs is None else outputs[image]
                frame = self._frame(chains, image, own, size, [stated, wanted])
                frames.append(limited(frame, wanted, stated))
        return parsed(
            frames,
            "none" if chains is None else self.activation,
            self.first_label - 1 if self.first_label and chains is not None else None,
            wanted.and_of(stated),
            sizes,
        )

    def _frame(
        self,
        chains: Chains | None,
        image: int,
        own: Mapping[str, Tensor] | None,
        size: FrameGeometry,
        limits: Sequence[Thresholds],
    ) -> Finals:
        if chains is None:
            assert own is not None
            return Finals(own["boxes"], own["scores"], own["labels"] - self.first_label)
        if own is None:
            frame = chains.run(image, limits[0])
            frame.boxes = chains.resized(frame.boxes, image, size)
        else:
            frame = Finals(own["boxes"], own["scores"], own["labels"])
            frame.source, frame.cut = _matching(chains, image, own, limits, size)
        assert frame.source is not None
        quality = chains.quality(image)
        return replace(
            frame,
            labels=frame.labels - self.first_label,
            logits=gathered(chains.logits(image), frame.source),
            features=chains.features(image, frame.source),
            quality=None if quality is None else quality[frame.source.clamp(min=0)].float(),
        )

    def truths(self, call: ModelCall, truth: Any) -> list[Truth] | None:
        """Targets as torchvision has them; without `truth` those the model was called with."""
        if truth is None:
            truth = call.args[1] if len(call.args) > 1 else call.kwargs.get("targets")
        return truths_of(truth, self.first_label)


class Chains(ABC):
    """The chain of filters over one call's head outputs; subclasses hold the tensors.

    Attributes:
        smallest: pixels; narrower boxes are dropped, 0: none are.
    """

    smallest: ClassVar[float] = 0.0

    def __init__(self, model: Any, network_sizes: Sequence[tuple[int, int]]) -> None:
        self.model = model
        self.network_sizes = network_sizes

    @abstractmethod
    def logits(self, image: int) -> Tensor:
        """(A, K) of all anchors or proposals of an image."""

    @abstractmethod
    def scores(self, image: int) -> Tensor:
        """(A, K) as the model scores them."""

    @abstractmethod
    def run(self, image: int, limits: Thresholds) -> Finals:
        """The chain with `limits`: boxes in the frame of the resized image, labels as the model has them."""

    @abstractmethod
    def decoded(self, image: int, rows: Tensor, labels: Tensor) -> Tensor:
        """(N, 4) boxes of candidates in the resized image, clipped."""

    @abstractmethod
    def features(self, image: int, rows: Tensor) -> Tensor | None:
        """(N, D) of final detections; `rows` of -1 give NaN."""

    def suppressed(
        self, image: int, scores: Tensor, rows: Tensor, labels: Tensor, limits: Thresholds
    ) -> Finals:
        """The end of every chain: boxes of the candidates, suppression per label, number."""
        assert limits.iou is not None
        boxes = self.decoded(image, rows, labels)
        if self.smallest:
            large = (boxes[:, 2:] - boxes[:, :2] >= self.smallest).all(1)
            boxes, scores, labels, rows = boxes[large], scores[large], labels[large], rows[large]
        kept = batched_nms()(boxes, scores, labels, limits.iou)
        final = kept[: limits.max_detections]
        frame = Finals(boxes[final], scores[final], labels[final], source=rows[final])
        frame.cut = len(kept) > len(final)
        return frame

    def quality(self, image: int) -> Tensor | None:
        """(A,) a factor beside the class score, if the family has one."""
        del image
        return None

    def resized(self, boxes: Tensor, image: int, size: FrameGeometry) -> Tensor:
        """From the resized image to the tracer's input tensor, rounded as torchvision rounds."""
        height, width = self.network_sizes[image]
        ratio_x, ratio_y = (
            torch.tensor(to, dtype=torch.float32) / torch.tensor(of, dtype=torch.float32)
            for to, of in ((size.width, width), (size.height, height))
        )
        columns = boxes.unbind(1)  # times numbers, not a row: boxes in half precision stay so
        return torch.stack([c * r for c, r in zip(columns, (ratio_x, ratio_y) * 2, strict=True)], 1)

    def clipped(self, boxes: Tensor, image: int) -> Tensor:
        """(N, 4) boxes cut at the borders of the resized image."""
        return clipped(boxes, *self.network_sizes[image])


def batched_nms() -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """The library's own function: it is loaded, as the model is made of it."""
    found: Callable[[Tensor, Tensor, Tensor, float], Tensor] = sys.modules[
        "torchvision.ops.boxes"
    ].batched_nms
    return found


def _detections(output: Any, count: int) -> list[Mapping[str, Tensor]] | None:
    """The list of detections in what the model returned (scripted models: after the losses)."""
    if isinstance(output, tuple) and len(output) == 2:
        output = output[1]
    if not isinstance(output, list) or len(output) != count:
        return None
    return output if all(isinstance(d, Mapping) and "boxes" in d for d in output) else None


def _contexts(logits: Tensor) -> list[AbstractContextManager[Any]]:
    """Autocast as the model may have run: unknown where the head's output is half precision."""
    plain: list[AbstractContextManager[Any]] = [contextlib.nullcontext()]
    if logits.dtype in _HALF:
        plain.append(torch.autocast(logits.device.type, dtype=logits.dtype))
    return plain


def _matching(
    chains: Chains, image: int, own: Mapping[str, Tensor], limits: Sequence[Thresholds], size: FrameGeometry
) -> tuple[Tensor, bool]:
    """Rows of the model's own detections: by the chain; where it gives others, by their values."""
    scores, labels = own["scores"], own["labels"]
    for i, limit in enumerate(limits):
        if limit in limits[:i]:
            continue
        for context in _contexts(chains.logits(image)):
            with (
                context,
                contextlib.suppress(RuntimeError),
            ):  # no kernel for this type: the model ran otherwise
                chain = chains.run(image, limit)
                boxes = chains.resized(chain.boxes, image, size)
                if same_detections((boxes, chain.scores, chain.labels), (own["boxes"], scores, labels)):
                    assert chain.source is not None
                    return chain.source, chain.cut
    cap = limits[0].max_detections

    def boxes_of(rows: Tensor, label: Tensor) -> Tensor:
        return chains.resized(chains.decoded(image, rows, label.expand(len(rows))), image, size)

    found = rows_by_value(chains.scores(image), boxes_of, own["boxes"], scores, labels)
    return found, cap is not None and len(scores) >= cap
