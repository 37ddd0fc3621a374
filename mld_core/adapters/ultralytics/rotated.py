"""Rotated boxes (OBB): the rows they stand in, and the upright boxes around them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

ROTATED_ROW: Final = 11
"""Columns of a row with a rotated box: xyxy around it, cx, cy, w, h, angle, score, class."""

_LEAST: Final = 1e-7
_FAR: Final = 100.0
_AT_ONCE: Final = 1024  # columns of a table of all pairs


def rotated_rows(box: Tensor, rest: Tensor) -> Tensor:
    """(N, 11) from (N, 5) rotated boxes, w at the angle from x towards y, and (N, 2) scores and classes."""
    return torch.cat([around(box), box, rest.to(box.dtype)], 1)


def around(box: Tensor) -> Tensor:
    """(N, 4) xyxy of the upright boxes around (N, 5) rotated ones.

    >>> around(torch.tensor([[10.0, 10, 8, 2, torch.pi / 2]])).round().tolist()
    [[9.0, 6.0, 11.0, 14.0]]
    """
    cos, sin = box[:, 4].cos().abs(), box[:, 4].sin().abs()
    half = torch.stack([box[:, 2] * cos + box[:, 3] * sin, box[:, 2] * sin + box[:, 3] * cos], 1) / 2
    return torch.cat([box[:, :2] - half, box[:, :2] + half], 1)


def turned(sides: Tensor, angle: Tensor, centres: Tensor) -> Tensor:
    """(A, 5) cx, cy, w, h, angle.

    Args:
        sides: (A, 4) distances to the left, top, right and bottom of a cell's centre, along the turned axes.
        angle: (A,) radians.
        centres: (A, 2).

    >>> sides, angle = torch.tensor([[1.0, 1, 3, 1]]), torch.tensor([torch.pi / 2])
    >>> turned(sides, angle, torch.ones(1, 2)).round().tolist()
    [[1.0, 2.0, 4.0, 2.0, 2.0]]
    """
    off = (sides[:, 2:] - sides[:, :2]) / 2
    cos, sin = angle.cos(), angle.sin()
    moved = torch.stack([off[:, 0] * cos - off[:, 1] * sin, off[:, 0] * sin + off[:, 1] * cos], 1)
    return torch.cat([centres + moved, sides[:, :2] + sides[:, 2:], angle[:, None]], 1)


def likeness(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) overlap of two boxes as Gaussians: ProbIoU (Llerena et al. 2021)."""
    (xa, ya, *ca), (xb, yb, *cb) = ([v[:, None] for v in _gaussian(a)], [v[None] for v in _gaussian(b)])
    aa, bb, ab = (p + q for p, q in zip(ca, cb, strict=True))
    room = aa * bb - ab**2
    whole = room + _LEAST
    dx, dy = xb - xa, ya - yb
    apart = (aa * dy**2 + bb * dx**2) / whole / 4 + ab * dx * dy / whole / 2
    own = ((ca[0] * ca[1] - ca[2] ** 2).clamp(0) * (cb[0] * cb[1] - cb[2] ** 2).clamp(0)).sqrt()
    spread = (room / (4 * own + _LEAST) + _LEAST).log() / 2
    distance = (apart + spread).clamp(_LEAST, _FAR)
    return 1 - (1 - (-distance).exp() + _LEAST).sqrt()


def suppressed_turned(boxes: Tensor, scores: Tensor, most: float) -> Tensor:
    """Rows by falling score; like the library's: what is suppressed suppresses, too.

    Args:
        boxes: (N, 5), of different classes far apart.
        scores: (N,).
        most: Likeness to a better-scored box up to which a box stays.
    """
    order = scores.argsort(descending=True)
    boxes = boxes[order]
    kept = []
    for start in range(0, len(boxes), _AT_ONCE):
        block = likeness(boxes[: start + _AT_ONCE], boxes[start : start + _AT_ONCE])
        better = torch.arange(len(block))[:, None] < torch.arange(start, start + block.shape[1])
        kept.append(~((block > most) & better.to(block.device)).any(0))
    return order[torch.cat(kept)] if kept else order


def _gaussian(box: Tensor) -> list[Tensor]:
    """Centre and the covariance's three entries of (N, 5) boxes: of a uniform distribution over each."""
    x, y, w, h, angle = box.unbind(1)
    along, across = w**2 / 12, h**2 / 12
    cos, sin = angle.cos(), angle.sin()
    both = [along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin]
    return [x, y, *both]
