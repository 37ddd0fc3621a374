"""A stand-in for the CenterNet repository, which needs CUDA extensions: its layout and conventions, no weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class FakeDLASeg(nn.Module):
    """Returns a list with one dict of maps, a quarter of the input's size; one branch per head, named after it."""

    def __init__(
        self, classes: int = 3, *, offsets: bool = True, size_per_class: bool = False, stacks: int = 1
    ) -> None:
        super().__init__()
        self.heads = {"hm": classes, "wh": 2 * classes if size_per_class else 2}
        if offsets:
            self.heads["reg"] = 2
        self.stacks = stacks
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.ReLU(inplace=True))
        for head, channels in self.heads.items():
            self.add_module(
                head,
                nn.Sequential(
                    nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, channels, 1)
                ),
            )

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        x = self.stem(images)
        return [{head: getattr(self, head)(x) for head in self.heads} for _ in range(self.stacks)]


class FakeModelWithLoss(nn.Module):
    """Training wrapper: its loss overwrites the heatmap's logits with probabilities."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Any]) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
        outputs = self.model(batch["input"])
        probabilities = outputs[-1]["hm"].sigmoid_()
        loss = ((probabilities - batch["hm"]) ** 2).mean()
        return outputs[-1], loss, {"loss": loss}


def fake_decode(maps: dict[str, torch.Tensor], most: int) -> torch.Tensor:
    """(B, most, 6) x1, y1, x2, y2, score, class in cells: best of each class first, then of all."""
    heat = maps["hm"].sigmoid()
    heat = heat * (nn.functional.max_pool2d(heat, 3, 1, 1) == heat)
    batch, classes, _height, width = heat.shape
    scores, cells = heat.flatten(2).topk(most)
    best, index = scores.flatten(1).topk(most)
    labels = index // most
    cells = cells.flatten(1).gather(1, index)

    def at(name: str) -> torch.Tensor:
        values = maps[name].flatten(2)
        return values.gather(2, cells[:, None].expand(-1, values.shape[1], -1))

    x, y = (cells % width).float(), (cells // width).float()
    offset = at("reg") if "reg" in maps else torch.full((batch, 2, most), 0.5)
    x, y = x + offset[:, 0], y + offset[:, 1]
    size = at("wh")
    if size.shape[1] == 2 * classes:
        size = size.view(batch, classes, 2, most)
        size = size.gather(1, labels[:, None, None].expand(-1, 1, 2, -1))[:, 0]
    w, h = size[:, 0], size[:, 1]
    return torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2, best, labels.float()), 2)
