"""Faster R-CNN, and the boxes of Mask and Keypoint R-CNN, of torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.finals import Finals, gathered
from mld_core.adapters.registry import register
from mld_core.adapters.torchvision.common import Chains, TorchvisionAdapter


@register
class RCNNAdapter(TorchvisionAdapter):
    """Two stages: proposals, then one softmax over background (column 0) and classes for each.

    In train the box head sees proposals sampled around the true boxes: no detections can be read from it.
    """

    family = "torchvision R-CNN"
    classes: ClassVar[tuple[str, ...]] = ("GeneralizedRCNN",)
    first_label: ClassVar[int] = 1
    activation: ClassVar[str] = "softmax"

    @classmethod
    def detect(cls, model: Any) -> bool:
        """By the name of a base class and the parts."""
        return super().detect(model) and hasattr(getattr(model, "roi_heads", None), "box_predictor")

    def settings(self) -> Any:
        """The box head's."""
        return self.model.roi_heads

    def n_class(self) -> int:
        """Outputs of the class layer less the background."""
        predictor = self.model.roi_heads.box_predictor
        layer = getattr(predictor, "cls_score", None)
        if layer is None or not hasattr(layer, "out_features"):
            raise ValueError(
                f"roi_heads.box_predictor={type(predictor).__name__}: expected a layer cls_score with "
                "out_features to tell the number of classes; pass n_class"
            )
        return int(layer.out_features) - 1

    def watched(self) -> dict[str, Any]:
        """Proposals and sizes come from the box head's pooling, logits and deltas from the predictor."""
        heads = self.model.roi_heads
        return {"roi_pool": heads.box_roi_pool, "box_predictor": heads.box_predictor}

    def keep(self, alias: str | None, call: Call) -> Call:
        """The feature pyramid is let go; in train, where no detections can be read, everything."""
        if alias is not None and self.model.training:
            return Call((), {}, None)
        if alias == "roi_pool":
            values = [*call.args, *call.kwargs.values()]
            return Call((), {}, (list(values[1]), [tuple(map(int, s)) for s in values[2]]))
        return super().keep(alias, call)

    def _chains(self, call: ModelCall, *, single: bool) -> Chains | None:
        pooled, predicted = call.watched.get("roi_pool", ()), call.watched.get("box_predictor", ())
        if call.training or not pooled or not predicted:
            return None
        proposals, sizes = self.keep("roi_pool", pooled[-1]).output if pooled[-1].args else pooled[-1].output
        logits, deltas = predicted[-1].output
        features = predicted[-1].args[0] if predicted[-1].args else None
        if single:
            logits, deltas = logits.float(), deltas.float()
        counts = [len(p) for p in proposals]
        if sum(counts) != len(logits):
            return None
        return _Proposals(
            self.model, sizes, proposals, torch.split(logits, counts), torch.split(deltas, counts), features
        )


class _Proposals(Chains):
    """The chain: softmax, score, size, suppression per class, number."""

    smallest: ClassVar[float] = 1e-2

    def __init__(
        self,
        model: Any,
        network_sizes: Sequence[tuple[int, int]],
        proposals: Sequence[Tensor],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        features: Tensor | None,
    ) -> None:
        super().__init__(model, network_sizes)
        self._proposals, self._logits, self._deltas = proposals, logits, deltas
        self._features: Sequence[Tensor] | None = None
        if features is not None:
            self._features = torch.split(features.flatten(1), [len(p) for p in proposals])

    def logits(self, image: int) -> Tensor:
        return self._logits[image]

    def scores(self, image: int) -> Tensor:
        return torch.softmax(self._logits[image], -1)

    def features(self, image: int, rows: Tensor) -> Tensor | None:
        return None if self._features is None else gathered(self._features[image], rows)

    def decoded(self, image: int, rows: Tensor, labels: Tensor) -> Tensor:
        deltas = self._deltas[image]
        per_class = deltas.shape[1] > 4
        deltas = deltas.view(len(deltas), -1, 4)[rows, labels] if per_class else deltas[rows]
        coder = self.model.roi_heads.box_coder
        return self.clipped(coder.decode_single(deltas, self._proposals[image][rows]), image)

    def run(self, image: int, limits: Thresholds) -> Finals:
        table = self.scores(image)[:, 1:]
        flat = table.reshape(-1)
        above = torch.where(flat > (limits.score or 0.0))[0]
        rows = torch.div(above, table.shape[1], rounding_mode="floor")
        return self.suppressed(image, flat[above], rows, above % table.shape[1] + 1, limits)
