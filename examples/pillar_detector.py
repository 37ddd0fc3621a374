"""A small LiDAR detector in plain PyTorch, pillars with a centre head, and the adapter that lets it be recorded.

`PillarDetector` knows nothing of the recorder. `PillarAdapter` is all it takes to have a detector of one's own
understood: which class it is, how many classes it has, and where boxes, scores and logits are in its output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lidar_scenes import CLASSES, RANGE
from torch import nn
from torch.nn import functional as F  # noqa: N812  the name its documentation uses

from mld_core.adapters.base import Adapter, ModelCall, Parsed, Thresholds
from mld_core.adapters.outputs import Detection3DOutput
from mld_core.adapters.registry import register

_CELL = 0.4  # metres, edge of a pillar
_GRID = round(2 * RANGE / _CELL)
_STRIDE = 2 * _CELL  # metres, edge of a cell of the head
_OUT = _GRID // 2


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU())


class PillarDetector(nn.Module):
    """Points to heat maps and box codes.

    `forward` takes a list of (n, 4) point tensors and returns a dict: `heat` (B, K, 64, 64) logits, `box`
    (B, 8, 64, 64) dx, dy, z, log w, log l, log h, sin, cos, `features` (B, 64, 64, 64).
    """

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.deep = nn.Sequential(
            _conv(32, 48, 2), _conv(48, 48), _conv(48, 48), _conv(48, 64, 2), _conv(64, 64), _conv(64, 64),
            nn.ConvTranspose2d(64, 48, 2, 2), nn.BatchNorm2d(48), nn.ReLU(),
        )  # fmt: skip
        self.shallow = _conv(32, 48, 2)
        self.shared = _conv(96, 64)
        self.heat = nn.Sequential(_conv(64, 32), nn.Conv2d(32, len(CLASSES), 1))
        self.box = nn.Sequential(_conv(64, 48), nn.Conv2d(48, 8, 1))
        nn.init.constant_(self.heat[-1].bias, -3.0)

    def forward(self, frames: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Heat maps, box codes and the features behind them."""
        grid = self._pillars(frames)
        shared = self.shared(torch.cat([self.deep(grid), self.shallow(grid)], 1))
        return {"heat": self.heat(shared), "box": self.box(shared), "features": shared}

    def _pillars(self, frames: list[torch.Tensor]) -> torch.Tensor:
        points = torch.cat(frames)
        frame = torch.repeat_interleave(torch.tensor([len(f) for f in frames]))
        cell = ((points[:, :2] + RANGE) / _CELL).long().clamp(0, _GRID - 1)
        place = (frame * _GRID + cell[:, 1]) * _GRID + cell[:, 0]
        cells = len(frames) * _GRID * _GRID
        count = torch.zeros(cells).index_add_(0, place, torch.ones(len(points)))
        mean = torch.zeros(cells, 3).index_add_(0, place, points[:, :3]) / count.clamp(min=1)[:, None]
        centre = (cell + 0.5) * _CELL - RANGE
        seen = [points[:, 2:], points[:, :2] - centre, points[:, :3] - mean[place]]
        coded = self.point(torch.cat([*seen, count[place, None].log1p() / 5], 1))
        grid = torch.zeros(cells, 32).scatter_reduce_(0, place[:, None].expand(-1, 32), coded, "amax")
        return grid.view(len(frames), _GRID, _GRID, 32).permute(0, 3, 1, 2).contiguous()


def targets(boxes: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the head should say of one frame: heat (K, 64, 64), box codes (8, 64, 64), their weight (64, 64)."""
    heat = torch.zeros(len(CLASSES), _OUT, _OUT)
    code, weight = torch.zeros(8, _OUT, _OUT), torch.zeros(_OUT, _OUT)
    rows, columns = torch.meshgrid(torch.arange(_OUT), torch.arange(_OUT), indexing="ij")
    for box, label in zip(torch.from_numpy(boxes), labels.tolist(), strict=True):
        u, v = (float(x) for x in (box[:2] + RANGE) / _STRIDE)
        column, row = int(u), int(v)
        sigma = max(float(box[3:5].mean()) / _STRIDE / 3, 0.6)
        bump = torch.exp(-((columns - column) ** 2 + (rows - row) ** 2) / (2 * sigma**2))
        heat[label] = torch.maximum(heat[label], bump)
        sizes, angle = box[3:6].log(), box[6:7]
        for dy, dx in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)):  # the centre, and its neighbours half
            y, x = row + dy, column + dx
            share = 1.0 if (dy, dx) == (0, 0) else 0.5
            if 0 <= y < _OUT and 0 <= x < _OUT and weight[y, x] < share:
                weight[y, x] = share
                offset = torch.tensor([u - x - 0.5, v - y - 0.5])
                code[:, y, x] = torch.cat([offset, box[2:3], sizes, angle.sin(), angle.cos()])
    return heat, code, weight


def loss(output: dict[str, torch.Tensor], wanted: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """Focal loss of the heat maps and L1 of the box codes (Zhou et al., "Objects as Points", 2019)."""
    heat, code, weight = (torch.stack(parts) for parts in zip(*wanted, strict=True))
    p = output["heat"].sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = (heat == 1).float()
    focal = peak * (1 - p) ** 2 * p.log() + (1 - peak) * (1 - heat) ** 4 * p**2 * (1 - p).log()
    distance = ((output["box"] - code).abs() * weight[:, None]).sum() / weight.sum().clamp(min=1)
    return 2 * distance - focal.sum() / peak.sum().clamp(min=1)


@register
class PillarAdapter(Adapter):
    """Reads the detector's maps: local maxima of the heat are its final detections."""

    family = "pillar demo"
    task = "detection3d"
    uses_nms = False

    @staticmethod
    def detect(model: Any) -> bool:
        """Whether the model is ours."""
        return isinstance(model, PillarDetector)

    def n_class(self) -> int:
        """Channels of the heat map."""
        return len(CLASSES)

    def class_names(self) -> list[str]:
        """Their names."""
        return list(CLASSES)

    def thresholds(self) -> Thresholds:
        """What the decoding below keeps."""
        return Thresholds(score=0.1, max_detections=60)

    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed:
        """Boxes, scores, labels, logits and features of every frame's maxima."""
        limits = limits.over(self.thresholds())
        heat, code, features = (call.output[key].detach() for key in ("heat", "box", "features"))
        score = heat.sigmoid()
        score = torch.where(F.max_pool2d(score, 3, 1, 1) == score, score, 0.0)
        frames: dict[str, list[Any]] = {k: [] for k in ("boxes", "scores", "labels", "logits", "features")}
        caps = []
        for b in range(len(heat)):
            value, place = score[b].flatten().topk(int(limits.max_detections or 60))
            kept = value >= (limits.score or 0.0)
            caps.append(bool(kept.all()))
            place = place[kept]
            label, y, x = place // _OUT**2, place // _OUT % _OUT, place % _OUT
            c = code[b][:, y, x]
            xy = [(x + 0.5 + c[0]) * _STRIDE - RANGE, (y + 0.5 + c[1]) * _STRIDE - RANGE]
            frames["boxes"].append(torch.stack([*xy, c[2], *c[3:6].exp(), torch.atan2(c[6], c[7])], 1))
            frames["scores"].append(value[kept])
            frames["labels"].append(label)
            frames["logits"].append(heat[b][:, y, x].T)
            frames["features"].append(features[b][:, y, x].T)
        return Parsed(Detection3DOutput(**frames), "sigmoid", None, caps, limits)
