"""Second stages (A11): OpenPCDet's `roi_head` (Voxel R-CNN and others), det3d's two-stage CenterPoint.

The second stage judges boxes, not classes: the class logits of a detection are those of the first stage's
anchor or cell that proposed it; the final score, a quality, stands beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mld_core.adapters.base import Call, ModelCall, Thresholds
from mld_core.adapters.detection3d.frames import NativeFrame, Origin, same_rows
from mld_core.adapters.detection3d.heads.base import NOTHING, Head, each_class, has, last
from mld_core.adapters.finals import gathered
from mld_core.adapters.settings import Setting, number, read

_KEPT = ("rois", "roi_scores", "roi_labels", "batch_box_preds", "batch_cls_preds")


class RoiHead(Head):
    """A11 on top of the first stage's head.

    Attributes:
        first: reads the first stage.
    """

    kind: ClassVar[str] = "roi"

    def __init__(self, model: Any, module: Any, first: Head) -> None:
        super().__init__(model, module)
        self.first = first

    def n_class(self) -> int | None:
        """Of the first stage."""
        return self.first.n_class()

    def class_names(self) -> list[str] | None:
        """Of the first stage."""
        return self.first.class_names()

    @property
    def _pcdet(self) -> bool:
        return has(self.model, "module_topology", "model_cfg")

    @property
    def _config(self) -> Any:
        return read(read(self.model, "model_cfg"), "POST_PROCESSING") if self._pcdet else None

    def places(self) -> tuple[Setting | None, Setting | None, Setting | None]:
        """OpenPCDet: score and number in `model_cfg.POST_PROCESSING`; its overlap makes proposals too."""
        if self._config is None:
            return self.first.places()
        most = Setting(read(self._config, "NMS_CONFIG"), "NMS_POST_MAXSIZE")
        return Setting(self._config, "SCORE_THRESH"), None, most

    def shared(self) -> tuple[list[list[int]], int | None]:
        """Each class, where they are suppressed one by one; det3d: as of the first stage."""
        return self.first.shared() if self._config is None else each_class(self._config, self.n_class())

    def limits(self) -> Thresholds:
        """As `places`, and the overlap; det3d: those of the first stage."""
        if self._config is None:
            return self.first.limits()
        return replace(super().limits(), iou=number(read(read(self._config, "NMS_CONFIG"), "NMS_THRESH")))

    def settings(self, limits: Thresholds) -> list[tuple[Setting, Any]]:
        """Of the stage that reads them; proposals stay as they are."""
        return self.first.settings(limits) if self._config is None else super().settings(limits)

    def watched(self) -> dict[str, Any]:
        """Both stages."""
        return {**self.first.watched(), "roi": self.module}

    def keep(self, alias: str, call: Call) -> Call:
        """What the second stage left in the batch."""
        if alias != "roi":
            return self.first.keep(alias, call)
        parts = [call.output, *call.args]
        batch = next((part for part in parts if isinstance(part, Mapping) and "rois" in part), None)
        return NOTHING if batch is None else Call((), {}, {name: batch.get(name) for name in _KEPT})

    def origin(self, call: ModelCall, index: int, frame: NativeFrame) -> Origin | None:
        """Detection to proposal, proposal to anchor or cell."""
        kept = last(call, "roi")
        if not kept or kept["rois"] is None:
            return None
        proposals = NativeFrame(
            kept["rois"][index], kept["roi_scores"][index], kept["roi_labels"][index] - 1, frame.convention
        )
        if self._pcdet:
            refined = kept["batch_box_preds"]
            chosen = same_rows(refined[index][:, : frame.boxes.shape[1]], frame.boxes)
        else:  # det3d drops the empty proposals and keeps the order
            filled = torch.where(kept["roi_labels"][index].reshape(-1) != 0)[0]
            chosen = filled if len(filled) == len(frame) else frame.labels.new_full((len(frame),), -1)
        first = self.first.origin(call, index, _filled(proposals, chosen))
        if first is None:
            return None
        lost = chosen < 0
        if first.logits is not None:
            first.logits[lost.to(first.logits.device)] = torch.nan
        return Origin(torch.where(lost, -1, first.source), first.logits, first.features, frame.scores.float())


def _filled(proposals: NativeFrame, chosen: Tensor) -> NativeFrame:
    """The proposals of the detections; one that was not found stands nowhere."""
    boxes = gathered(proposals.boxes, chosen)
    picked = chosen.clamp(min=0)
    return NativeFrame(
        boxes, proposals.scores[picked].float(), proposals.labels[picked].clamp(min=0), proposals.convention
    )
