"""Ultralytics' RT-DETR: queries with a sigmoid per class, no suppression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mld_core.adapters.base import FrameGeometry, ModelCall, Thresholds
from mld_core.adapters.finals import Finals, gathered
from mld_core.adapters.queries import corners, query_finals
from mld_core.adapters.registry import register
from mld_core.adapters.ultralytics.yolo import UltralyticsBase, head_is


@dataclass
class _Queries:
    """The last decoder layer's output.

    Attributes:
        logits: (B, K, Q).
        parts: (B, Q, 4) centre and size in parts of the input.
        end2end: always.
    """

    logits: Tensor
    parts: Tensor
    end2end: bool = True

    def count(self) -> int:
        return int(self.logits.shape[0])

    def scores(self, image: int) -> Tensor:
        return self.logits[image].T.sigmoid()

    def boxes(self, image: int) -> Tensor:
        return self.parts[image]

    def to_original(self, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
        """Images are stretched to the network's input, so the parts are the same."""
        return corners(boxes, shape)

    to_input = to_original


@register
class RTDETRAdapter(UltralyticsBase):
    """The wrapper and the bare model; in train the queries of the denoising task are left out."""

    family = "Ultralytics RT-DETR"
    uses_nms: ClassVar[bool] = False

    @staticmethod
    def detect(model: Any) -> bool:
        """By the names of base classes."""
        return head_is(model, "RTDETRDecoder")

    def thresholds(self) -> Thresholds:
        """As the other families, without an overlap."""
        return super().thresholds().without_iou()

    def watched(self) -> dict[str, Any]:
        """The head, and the class layer that scores the final queries, whose input is the feature."""
        head = self.head()
        if head is None:
            return {}
        last = getattr(getattr(head, "decoder", None), "eval_idx", -1)
        return {"head": head, "classes": head.dec_score_head[last]}

    def _read(self, output: Any, head: Any) -> _Queries | None:
        del head
        if isinstance(output, (tuple, list)) and len(output) == 2 and isinstance(output[1], (tuple, list)):
            output = output[1]
        if not isinstance(output, (tuple, list)) or len(output) < 2:
            return None
        boxes, scores = output[:2]
        if not all(isinstance(t, Tensor) and t.ndim == 4 for t in (boxes, scores)):
            return None
        denoising = output[4] if len(output) > 4 else None
        count = scores.shape[2]
        if isinstance(denoising, Mapping):
            count = int(denoising["dn_num_split"][1])
        return _Queries(scores[-1][:, -count:].transpose(1, 2), boxes[-1][:, -count:])

    def _frame(
        self, call: ModelCall, raw: _Queries, image: int, size: FrameGeometry, limits: Thresholds
    ) -> Finals:
        logits = raw.logits[image].T
        everything = torch.arange(len(logits), device=logits.device)
        return query_finals(
            logits,
            raw.parts[image],
            (size.height, size.width),
            self._features(call, raw, image, everything),
            limits,
            softmax=False,
        )

    def _features(self, call: ModelCall, raw: _Queries, image: int, rows: Tensor) -> Tensor | None:
        seen = call.watched.get("classes", ())
        states = seen[-1].args[0] if seen and seen[-1].args else None
        if states is None or states.ndim != 3 or states.shape[0] != raw.count():
            return None
        return gathered(states[image][-raw.logits.shape[2] :], rows)
