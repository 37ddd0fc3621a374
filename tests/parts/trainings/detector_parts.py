"""Detectors small enough for a test, real ones: torchvision's and Hugging Face's, and scenes to train them on."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import optional
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

HEIGHT, WIDTH, CLASSES = 48, 64, 3


def scene(index: int) -> Tensor:
    """Image `index`: noise of its own."""
    return torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(index))


def boxes(index: int) -> tuple[Tensor, Tensor]:
    """`index % 3` true boxes, xyxy pixels, and their classes from 0."""
    n = index % 3
    corner = torch.arange(n, dtype=torch.float32)[:, None] * 4 + 4
    return torch.cat([corner, corner, corner + 16, corner + 12], 1), (torch.arange(n) + index) % CLASSES


class Scenes(Dataset[Any]):
    """(image, target) as torchvision has them."""

    def __init__(self, size: int, *, first_label: int = 1) -> None:
        self.size, self.first_label = size, first_label

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        box, label = boxes(index)
        return scene(index), {"boxes": box, "labels": label + self.first_label, "image_id": index}


class PixelScenes(Scenes):
    """A dict as Hugging Face's image processors make it: boxes cxcywh, as parts of the image."""

    def __getitem__(self, index: int) -> Any:
        box, label = boxes(index)
        whole = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
        centre = torch.cat([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], 1) / whole
        labels = {"class_labels": label, "boxes": centre, "image_id": torch.tensor([index])}
        return {"pixel_values": scene(index), "labels": labels}


def pairs(batch: list[Any]) -> Any:
    """Torchvision's collate."""
    return tuple(zip(*batch, strict=True))


def pixels(batch: list[Any]) -> dict[str, Any]:
    """Hugging Face's collate."""
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in batch]),
        "labels": [sample["labels"] for sample in batch],
    }


class _Tiny(nn.Module):
    """A backbone of one level."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, stride=8, padding=1), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        return OrderedDict([("0", self.body(x))])


def torchvision_model(family: str) -> Any:
    """A `FasterRCNN` or `RetinaNet` with random weights."""
    detection = optional.torchvision("torchvision.models.detection")
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    size = {"min_size": HEIGHT, "max_size": WIDTH}
    anchors = AnchorGenerator(((16,),), ((0.5, 1.0, 2.0),))
    if family == "retinanet":
        model = detection.RetinaNet(_Tiny(), CLASSES, anchor_generator=anchors, **size, score_thresh=0.0)
        nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.5)
        return model
    pool = MultiScaleRoIAlign(["0"], output_size=4, sampling_ratio=1)
    return detection.FasterRCNN(
        _Tiny(),
        CLASSES + 1,
        rpn_anchor_generator=anchors,
        box_roi_pool=pool,
        box_score_thresh=0.0,
        box_detections_per_img=20,
        rpn_post_nms_top_n_train=50,
        rpn_post_nms_top_n_test=50,
        **size,
    )


def yolos() -> Any:
    """A query detector of Hugging Face's with random weights."""
    import transformers

    torch.manual_seed(0)
    return transformers.YolosForObjectDetection(
        transformers.YolosConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            image_size=[HEIGHT, WIDTH],
            num_detection_tokens=6,
            num_labels=CLASSES,
        )
    )


def scenes(size: int, first_label: int = 1, **options: Any) -> DataLoader[Any]:
    """A loader of pairs."""
    return DataLoader(Scenes(size, first_label=first_label), batch_size=2, collate_fn=pairs, **options)


def pixel_scenes(size: int, **options: Any) -> DataLoader[Any]:
    """A loader of dicts."""
    return DataLoader(PixelScenes(size), batch_size=2, collate_fn=pixels, **options)


def yolo_data(root: Path) -> Path:
    """Scenes as files, and the data set's yaml."""
    cv2 = pytest.importorskip("cv2")
    for split, size in (("train", 6), ("val", 5)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for index in range(size):
            picture = np.random.default_rng(index).integers(0, 255, (64, 64, 3), np.uint8)
            cv2.imwrite(str(root / "images" / split / f"{index}.png"), picture)
            lines = [f"{k % 2} 0.5 0.5 0.4 0.3" for k in range(index % 3)]
            (root / "labels" / split / f"{index}.txt").write_text("\n".join(lines))
    file = root / "data.yaml"
    file.write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: {{0: cat, 1: dog}}\n")
    return file
