"""Rotated boxes (OBB): the rows they stand in, and the upright boxes around them."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

ROTATED_ROW: Final = 11
"""Columns of a row with a rotated box: xyxy around it, cx, cy, w, h, angle, score, class."""


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
