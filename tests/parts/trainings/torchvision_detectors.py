"""torchvision's detectors with random weights, small enough for a test, whose class layers' logits vary."""

from __future__ import annotations

from functools import partial
from typing import Any

import optional
import torch

detection = optional.torchvision("torchvision.models.detection")

CLASSES = 5


class SmallPyramid(torch.nn.Module):
    """Five levels of 32 channels, strides 8 to 128: a backbone that costs nothing."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 32, 9, stride=8, padding=4)
        self.down = torch.nn.ModuleList(torch.nn.Conv2d(32, 32, 3, stride=2, padding=1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = [self.stem(x)]
        for layer in self.down:
            maps.append(layer(maps[-1].relu()))
        return dict(zip(("0", "1", "2", "3", "pool"), maps, strict=True))


def _dense(family: Any) -> Any:
    return family(SmallPyramid(), CLASSES, min_size=96, max_size=128)


def _mask_rcnn() -> Any:
    return detection.MaskRCNN(
        SmallPyramid(),
        CLASSES + 1,
        min_size=64,
        max_size=96,
        rpn_post_nms_top_n_test=40,
        box_detections_per_img=12,
    )


BUILD = {
    "faster": partial(
        detection.fasterrcnn_mobilenet_v3_large_320_fpn,
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
    ),
    "mask": _mask_rcnn,
    "retinanet": partial(_dense, detection.RetinaNet),
    "fcos": partial(_dense, detection.FCOS),
    "ssdlite": partial(
        detection.ssdlite320_mobilenet_v3_large, weights=None, weights_backbone=None, num_classes=CLASSES + 1
    ),
}
FIRST = {"faster": 1, "mask": 1, "retinanet": 0, "fcos": 0, "ssdlite": 1}
DENSE = ("retinanet", "fcos", "ssdlite")


def torchvision_detector(name: str) -> Any:
    """One of `BUILD`, in evaluation mode."""
    torch.manual_seed(0)
    model = BUILD[name]().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "cls_score" in key or "classification_head" in key:
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.3)
    return model
