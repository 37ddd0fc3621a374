"""Pieces the 3D stand-ins share: box classes, configs, maps made of points. Built from the frameworks' facts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

HEIGHT, WIDTH, DEPTH = 8, 10, 6
STRIDE, VOXEL = 2.0, 0.5
RANGE = [-5.0, -4.0, -3.0, 5.0, 4.0, 1.0]


class FakeConfig(dict):
    """A dict with attribute access, as ConfigDict and EasyDict."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class FakeOldBoxes:
    """LiDARInstance3DBoxes before 1.0.0rc0: no YAW_AXIS."""

    def __init__(self, tensor: Tensor, box_dim: int = 7) -> None:
        self.tensor = tensor
        self.box_dim = box_dim


class FakeNewBoxes(FakeOldBoxes):
    """LiDARInstance3DBoxes from 1.0.0rc0 on."""

    YAW_AXIS = 2


def clouds(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(30 + 5 * i, 4, generator=generator) * 8 - 4 for i in range(count)]


def seen(points: list[Tensor]) -> Tensor:
    """(B, DEPTH, HEIGHT, WIDTH): noise that depends on the points of each frame."""
    maps = []
    for cloud in points:
        generator = torch.Generator().manual_seed(int(cloud.abs().sum() * 1000) % 2**31)
        maps.append(torch.randn(DEPTH, HEIGHT, WIDTH, generator=generator))
    return torch.stack(maps)


class FakeBranches(nn.Module):
    """One task: a 1x1 convolution for each of its outputs, in a dict."""

    def __init__(self, width: int, outputs: dict[str, int]) -> None:
        super().__init__()
        self.names = list(outputs)
        for name, channels in outputs.items():
            self.add_module(name, nn.Conv2d(width, channels, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self, name)(x) for name in self.names}


def apart(xy: Tensor, radius: float = 0.6) -> list[int]:
    """Greedy suppression by centre distance, as circle NMS."""
    kept: list[int] = []
    for i in range(len(xy)):
        if all((xy[i] - xy[j]).norm() > radius for j in kept):
            kept.append(i)
    return kept


def metres(cells: Tensor, offset: Tensor, *, turned: bool = False) -> Tensor:
    """(N, 2) x, y of cells (row-major; `turned`: maps are (C, x, y)) with offsets (N, 2) in cells."""
    xy = torch.stack([cells % WIDTH, cells // WIDTH], 1)
    xy = (xy.flip(1) if turned else xy).float() + offset
    return xy * (STRIDE * VOXEL) + torch.tensor(RANGE[:2])


def cells_of(maps: dict[str, Tensor], frame: int, name: str) -> Tensor:
    """(H * W, C) of one frame."""
    return maps[name][frame].flatten(1).T


class FakeAnswer:
    """What a stand-in knows about its own detections: what an adapter has to find out."""

    def __init__(self, source: list[int], logits: list[Tensor], quality: list[float] | None = None) -> None:
        self.source = source
        self.logits = torch.stack(logits) if logits else torch.zeros(0)
        self.quality = quality
