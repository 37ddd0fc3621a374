"""torchvision's one-stage detectors: RetinaNet, FCOS, SSD and SSDlite.

Their heads put out the same in train as in eval: detections are read from both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.finals import Finals, detached, level_features
from mld_core.adapters.registry import register
from mld_core.adapters.torchvision.common import Chains, TorchvisionAdapter

_MARGIN: Final = 1e-2  # in logits: more than half precision rounds near a threshold it may matter at


@dataclass(frozen=True)
class _Dense:
    """One call's head outputs.

    Attributes:
        logits: (B, A, K).
        deltas: (B, A, 4).
        centerness: (B, A, 1) logits or None.
        anchors: per image (A, 4).
        maps: per level (B, D, H, W) that features are taken from.
        per_cell: anchors at each cell, per level.
    """

    logits: Tensor
    deltas: Tensor
    centerness: Tensor | None
    anchors: Sequence[Tensor]
    maps: Sequence[Tensor]
    per_cell: Sequence[int]

    def level_sizes(self) -> list[int]:
        return [m.shape[-2] * m.shape[-1] * n for m, n in zip(self.maps, self.per_cell, strict=True)]


class _DenseAdapter(TorchvisionAdapter):
    """What the one-stage families share."""

    chain: ClassVar[type[_DenseChains]]

    def n_class(self) -> int:
        """Columns of the class head less the background, where there is one."""
        head = getattr(self.model.head, "classification_head", None)
        columns = getattr(head, "num_classes", None) or getattr(head, "num_columns", None)
        if columns is None:
            raise ValueError(
                f"head={type(self.model.head).__name__}: expected classification_head with num_classes or "
                "num_columns to tell the number of classes; pass n_class"
            )
        return int(columns) - self.first_label

    def watched(self) -> dict[str, Any]:
        """The head, its class tower where it has one, the anchors and the transform's sizes."""
        model = self.model
        tower = getattr(getattr(model.head, "classification_head", None), "conv", None)
        out = {"head": model.head, "anchors": model.anchor_generator, "transform": model.transform}
        return out if tower is None else {**out, "tower": tower}

    def keep(self, alias: str | None, call: Call) -> Call:
        """Feature maps are let go where the class tower's are there."""
        if alias in {"tower", "anchors"} or (alias == "head" and "tower" in self.watched()):
            return Call((), {}, detached(call.output))
        return super().keep(alias, call)

    def _chains(self, call: ModelCall, *, single: bool) -> Chains | None:
        calls = {alias: seen[-1] for alias, seen in call.watched.items() if seen}
        if not {"head", "anchors", "transform"} <= calls.keys():
            return None
        head, transform = calls["head"], calls["transform"]
        sizes = transform.output if isinstance(transform.output, list) else None
        if sizes is None:
            sizes = self.keep("transform", transform).output
        outputs: Mapping[str, Tensor] = head.output
        maps = [c.output for c in call.watched.get("tower", ())] or list(head.args[0])
        logits = outputs["cls_logits"]
        centerness = outputs.get("bbox_ctrness")
        per_cell = self._per_cell(logits.shape[1], maps)
        dense = _Dense(
            logits=logits.float() if single else logits,
            deltas=outputs["bbox_regression"].float() if single else outputs["bbox_regression"],
            centerness=centerness.float() if single and centerness is not None else centerness,
            anchors=calls["anchors"].output,
            maps=maps,
            per_cell=per_cell,
        )
        if sum(dense.level_sizes()) != logits.shape[1]:
            return None
        return self.chain(self.model, sizes, dense)

    def _per_cell(self, anchors: int, maps: Sequence[Tensor]) -> list[int]:
        return [anchors // sum(m.shape[-2] * m.shape[-1] for m in maps)] * len(maps)


class _DenseChains(Chains):
    """The tensors of one call, and the chain that RetinaNet and FCOS share: level by level, then all."""

    def __init__(self, model: Any, network_sizes: Sequence[tuple[int, int]], dense: _Dense) -> None:
        super().__init__(model, network_sizes)
        self.dense = dense

    def logits(self, image: int) -> Tensor:
        return self.dense.logits[image]

    def scores(self, image: int) -> Tensor:
        return self._scored(self.logits(image), image, None)

    def features(self, image: int, rows: Tensor) -> Tensor | None:
        return level_features(self.dense.maps, image, rows, self.dense.per_cell)

    def decoded(self, image: int, rows: Tensor, labels: Tensor) -> Tensor:
        del labels
        coder = self.model.box_coder
        boxes = coder.decode_single(self.dense.deltas[image][rows], self.dense.anchors[image][rows])
        return self.clipped(boxes, image)

    def run(self, image: int, limits: Thresholds) -> Finals:
        start = 0
        parts = []
        for count in self.dense.level_sizes():
            parts.append(self._level(image, start, count, limits.score or 0.0))
            start += count
        scores, rows, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        return self.suppressed(image, scores, rows, labels, limits)

    def _level(self, image: int, start: int, count: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, anchors and labels of a level's best candidates."""
        level = self.logits(image)[start : start + count]
        flat = level.reshape(-1)
        near = torch.where(flat > self._smallest_logit(threshold))[0]  # spares the sigmoid of all the others
        rows = torch.div(near, level.shape[1], rounding_mode="floor") + start
        scores = self._scored(flat[near], image, rows)
        above = scores > threshold
        scores, near, rows = scores[above], near[above], rows[above]
        scores, best = scores.topk(min(len(scores), self.model.topk_candidates))
        return scores, rows[best], near[best] % level.shape[1]

    def _scored(self, logits: Tensor, image: int, rows: Tensor | None) -> Tensor:
        """Scores of the logits (A, K), or of single logits (N,) at the anchors `rows`."""
        del image, rows
        return torch.sigmoid(logits)

    def _smallest_logit(self, threshold: float) -> float:
        """No score above `threshold` has a smaller one, all roundings considered."""
        if not 0 < threshold < 1:
            return -math.inf if threshold <= 0 else math.inf
        return math.log(threshold / (1 - threshold)) - _MARGIN * max(1.0, -math.log(threshold))


class _CenternessChains(_DenseChains):
    """FCOS: the score is sqrt(sigmoid(class) * sigmoid(centerness))."""

    def _scored(self, logits: Tensor, image: int, rows: Tensor | None) -> Tensor:
        assert self.dense.centerness is not None
        centerness = self.dense.centerness[image]
        if rows is not None:
            centerness = centerness[rows, 0]
        return torch.sqrt(torch.sigmoid(logits) * torch.sigmoid(centerness))

    def _smallest_logit(self, threshold: float) -> float:
        return super()._smallest_logit(threshold * threshold)

    def quality(self, image: int) -> Tensor | None:
        assert self.dense.centerness is not None
        return torch.sigmoid(self.dense.centerness[image][:, 0])

    def decoded(self, image: int, rows: Tensor, labels: Tensor) -> Tensor:
        del labels
        coder = self.model.box_coder
        boxes = coder.decode(self.dense.deltas[image][rows], self.dense.anchors[image][rows])
        return self.clipped(boxes, image)


class _SoftmaxChains(_DenseChains):
    """SSD: softmax with the background in column 0, then class by class."""

    def scores(self, image: int) -> Tensor:
        return torch.softmax(self.logits(image), -1)

    def run(self, image: int, limits: Thresholds) -> Finals:
        table = self.scores(image)
        above = table > (limits.score or 0.0)
        parts = []
        for label in (torch.where(above[:, 1:].any(0))[0] + 1).tolist():
            rows = torch.where(above[:, label])[0]
            scores, best = table[rows, label].topk(min(len(rows), self.model.topk_candidates))
            parts.append((scores, rows[best], torch.full_like(best, label)))
        if not parts:
            none = torch.zeros(0, dtype=torch.int64, device=table.device)
            return Finals(table.new_zeros(0, 4), table.new_zeros(0), none, source=none)
        scores, rows, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        return self.suppressed(image, scores, rows, labels, limits)


@register
class RetinaNetAdapter(_DenseAdapter):
    """Sigmoid per class; the label is the column, there is no background."""

    family = "torchvision RetinaNet"
    classes: ClassVar[tuple[str, ...]] = ("RetinaNet",)
    first_label: ClassVar[int] = 0
    activation: ClassVar[str] = "sigmoid"
    chain: ClassVar[type[_DenseChains]] = _DenseChains


@register
class FCOSAdapter(_DenseAdapter):
    """Sigmoid per class times centerness; the label is the column, there is no background."""

    family = "torchvision FCOS"
    classes: ClassVar[tuple[str, ...]] = ("FCOS",)
    first_label: ClassVar[int] = 0
    activation: ClassVar[str] = "sigmoid"
    chain: ClassVar[type[_DenseChains]] = _CenternessChains


@register
class SSDAdapter(_DenseAdapter):
    """SSD and SSDlite: softmax with the background in column 0."""

    family = "torchvision SSD"
    classes: ClassVar[tuple[str, ...]] = ("SSD",)
    first_label: ClassVar[int] = 1
    activation: ClassVar[str] = "softmax"
    chain: ClassVar[type[_DenseChains]] = _SoftmaxChains

    def _per_cell(self, anchors: int, maps: Sequence[Tensor]) -> list[int]:
        del anchors, maps
        return [int(n) for n in self.model.anchor_generator.num_anchors_per_location()]
