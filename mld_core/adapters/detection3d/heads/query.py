"""Heads without suppression (A10): BEVFormer, its GroupDETR form, StreamPETR, DETR3D, PETR."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.detection3d.frames import NativeFrame, Origin, find_rows
from mld_core.adapters.detection3d.heads.base import Head, has, last
from mld_core.adapters.finals import gathered
from mld_core.adapters.settings import Setting, number, read


class QueryHead(Head):
    """A10. The best (query, class) pairs of the last layer's sigmoids: one query may give several labels."""

    kind: ClassVar[str] = "query"

    signature: ClassVar[tuple[str, ...]] = ("cls_branches", "reg_branches", "bbox_coder")

    @classmethod
    def fits(cls, module: Any) -> bool:
        """Signature of A10: the coder and a range tell it from a 2D DETR."""
        ranged = has(module, "pc_range") or has(read(module, "bbox_coder"), "pc_range")
        return ranged and super().fits(module)

    def n_class(self) -> int | None:
        """`num_classes`, else `cls_out_channels` or the coder's."""
        found = read(self.module, "num_classes", "cls_out_channels") or read(
            self.module.bbox_coder, "num_classes"
        )
        return None if found is None else int(found)

    def places(self) -> tuple[None, None, Setting]:
        """`max_num` of the coder: BEVFormer's would relax a higher score threshold; scores are filtered."""
        return None, None, Setting(self.module.bbox_coder, "max_num")

    def limits(self) -> Thresholds:
        """As `places`, and `score_threshold` (BEVFormer's coder relaxes it until something passes)."""
        return replace(super().limits(), score=number(read(self.module.bbox_coder, "score_threshold")))

    def watched(self) -> dict[str, Any]:
        """The head, and what makes the last layer's class logits."""
        branches = self.module.cls_branches
        return {"head": self.module} | ({"features": branches[-1]} if len(branches) else {})

    def kept(self, call: Call) -> Any:
        """The last layer; calls that return the BEV map alone are none of ours."""
        output = call.output
        if not isinstance(output, dict) or output.get("all_cls_scores") is None:
            return None
        boxes = output.get("all_bbox_preds")
        return {"scores": output["all_cls_scores"][-1], "boxes": None if boxes is None else boxes[-1]}

    def activation(self) -> tuple[str, int | None]:
        """A column more than classes is the background of a softmax."""
        columns = read(self.module, "cls_out_channels")
        if isinstance(columns, int) and columns == (self.n_class() or 0) + 1:
            return "softmax", columns - 1
        return "sigmoid", None

    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """By score, label and centre."""
        heads = [kept.output for kept in call.watched.get("head", ()) if kept.output is not None]
        if not heads:
            return None
        logits = heads[-1]["scores"][index].detach().float()
        table = logits.sigmoid() if self.activation()[0] == "sigmoid" else logits.softmax(-1)[:, :-1]
        boxes = heads[-1]["boxes"]
        centers = frame.boxes.new_zeros((len(table), 2)) if boxes is None else boxes[index][:, :2].float()
        source = find_rows(
            table, lambda rows: centers[rows], frame.boxes[:, :2].float(), frame.scores, frame.labels
        )
        inner = last(call, "features")
        features = None
        if isinstance(inner, Tensor) and inner.ndim == 3 and inner.shape[1] == len(table):
            features = gathered(inner[index].detach(), source)
        return Origin(source, gathered(logits, source), features)
