"""A detector in MMEngine's forms, with data samples as OpenMMLab's packages have them, and its adapter."""

from __future__ import annotations

from typing import Any

import torch
from detector_parts import CLASSES, HEIGHT, WIDTH, Scenes, boxes
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn

from mld_core.adapters.base import Adapter, Call, FrameGeometry, ModelCall, Parsed, Thresholds, Truth
from mld_core.adapters.outputs import DetectionOutput


class PackedScenes(Scenes):
    """`inputs` and a data sample with `gt_instances` and metainfo."""

    def __getitem__(self, index: int) -> Any:
        image, _ = super().__getitem__(index)
        sample = BaseDataElement(metainfo={"img_id": index, "ori_shape": (HEIGHT, WIDTH)})
        box, label = boxes(index)
        sample.gt_instances = InstanceData(bboxes=box, labels=label)
        return {"inputs": image, "data_samples": sample}


def pack_scenes(batch: list[Any]) -> dict[str, Any]:
    """A list of images, a list of samples."""
    return {name: [part[name] for part in batch] for name in ("inputs", "data_samples")}


class DetectorModel(BaseModel):
    """One box per cell of a coarse map; losses in training."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, CLASSES, 16, stride=16)
        self.drop = nn.Dropout(0.2)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        maps = self.head(torch.stack(list(inputs)))
        if mode == "loss":
            return {"loss": self.drop(maps).square().mean()}
        if mode == "tensor":
            return maps
        found = []
        for logits, sample in zip(maps.flatten(2).transpose(1, 2), data_samples, strict=True):
            scores, labels = logits.sigmoid().max(1)
            cell = torch.arange(len(scores))
            corner = torch.stack([cell % (WIDTH // 16), cell // (WIDTH // 16)], 1) * 16.0
            sample.pred_instances = InstanceData(
                bboxes=torch.cat([corner, corner + 16], 1), scores=scores, labels=labels, logits=logits
            )
            found.append(sample)
        return found


class DetectorAdapter(Adapter):
    """Reads `DetectorModel`."""

    family = "packed scenes"

    @staticmethod
    def detect(model: Any) -> bool:
        return isinstance(model, DetectorModel)

    def n_class(self) -> int:
        return CLASSES

    def keep(self, alias: str | None, call: Call) -> Call:
        return call

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        if not isinstance(call.output, list):
            return None
        found = [sample.pred_instances for sample in call.output]
        output = DetectionOutput(
            boxes=[f.bboxes for f in found],
            scores=[f.scores for f in found],
            labels=[f.labels for f in found],
            logits=[f.logits for f in found],
        )
        geometry = [FrameGeometry(HEIGHT, WIDTH)] * len(found)
        return Parsed(output, "sigmoid", None, [False] * len(found), limits, geometry=geometry)

    def truths(self, call: ModelCall, truth: Any) -> list[Truth] | None:
        if truth is None or not all(hasattr(sample, "gt_instances") for sample in truth):
            return None
        return [Truth(s.gt_instances.bboxes.numpy(), s.gt_instances.labels.numpy()) for s in truth]
