"""Which part of a target layer's output belongs to which final detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mld_core.adapters.outputs import Detection3DOutput, DetectionOutput


@dataclass(frozen=True)
class Ground:
    """What the bird's-eye maps of a 3D model show.

    Attributes:
        low: x and y of the first cell's outer corner, metres, in the frame of the boxes.
        high: x and y of the last cell's.
        turned: maps are (B, C, x, y), not (B, C, y, x).
    """

    low: tuple[float, float]
    high: tuple[float, float]
    turned: bool = False

    def fits(self, height: int, width: int) -> bool:
        """Whether a map of this size has square cells of the range, to half a cell of its longer side."""
        along_x, along_y = (high - low for low, high in zip(self.low, self.high, strict=True))
        columns, rows = (height, width) if self.turned else (width, height)
        return abs(rows * along_x - columns * along_y) <= 0.5 * max(along_x, along_y)


def layer_features(
    output: Any,
    found: DetectionOutput | Detection3DOutput,
    sizes: Sequence[tuple[int, int] | None],
    ground: Ground | None = None,
) -> npt.NDArray[np.float32] | None:
    """The rows of a layer's output that belong to final detections.

    Args:
        output: what the layer gave: a map (B, C, H, W), read in the cell under each box's centre (in 3D in
            the bird's-eye view), or queries (B, Q, D), read at `source_index`. Of a tuple the first tensor.
        found: the detections, B frames.
        sizes: (height, width) of each image in pixels.
        ground: 3D: what bird's-eye maps show.

    Returns:
        (N, C) or (N, D) float32 over all frames; None where it can not be told whose is what.

    Examples:
        >>> one = DetectionOutput(boxes=[[[6, 0, 8, 2]]], scores=[[0.9]], labels=[[0]])
        >>> layer_features(torch.arange(4.0).reshape(1, 1, 2, 2), one, [(8, 8)]).tolist()
        [[1.0]]
    """
    if isinstance(output, (tuple, list)):
        output = next((part for part in output if isinstance(part, Tensor)), None)
    if not isinstance(output, Tensor) or output.shape[:1] != (len(found),) or not output.is_floating_point():
        return None
    if output.ndim == 3 and found.source_index is not None:
        rows = [_rows(output, i, index) for i, index in enumerate(found.source_index)]
    elif output.ndim != 4:
        return None
    elif isinstance(found, DetectionOutput):
        if any(size is None for size in sizes):
            return None
        rows = [
            _pixels(output, i, np.asarray(boxes), sizes[i] or (1, 1)) for i, boxes in enumerate(found.boxes)
        ]
    else:
        if ground is None or not ground.fits(output.shape[2], output.shape[3]):
            return None
        rows = [_ground(output, i, np.asarray(boxes), ground) for i, boxes in enumerate(found.boxes)]
    return torch.cat(rows).float().cpu().numpy()


def shape_of(output: Any) -> str:
    """What a layer gave, for a message: the shape, or the names of what a dict was given."""
    if isinstance(output, (tuple, list)) and output and all(isinstance(part, str) for part in output):
        return f"it writes {', '.join(output)}"
    if isinstance(output, (tuple, list)):
        output = next((part for part in output if isinstance(part, Tensor)), output)
    return str(tuple(output.shape)) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def of_range(ground: Ground | None) -> str:
    """The condition on bird's-eye maps, for a message."""
    if ground is None:
        return ""
    size = " x ".join(f"{high - low:g}" for low, high in zip(ground.low, ground.high, strict=True))
    order = "(x, y)" if ground.turned else "(y, x)"
    return f" in the proportions of the range ({size} m along x and y, maps {order})"


def _rows(output: Tensor, frame: int, index: Any) -> Tensor:
    picked = torch.as_tensor(np.asarray(index), device=output.device).clamp(0, output.shape[1] - 1)
    return output[frame, picked]


def _pixels(output: Tensor, frame: int, boxes: npt.NDArray[Any], size: tuple[int, int]) -> Tensor:
    x = (boxes[:, 0] + boxes[:, 2]) / 2 / size[1]
    y = (boxes[:, 1] + boxes[:, 3]) / 2 / size[0]
    return _cells(output[frame], x, y)


def _ground(output: Tensor, frame: int, boxes: npt.NDArray[Any], ground: Ground) -> Tensor:
    x, y = ((boxes[:, i] - ground.low[i]) / (ground.high[i] - ground.low[i]) for i in (0, 1))
    return _cells(output[frame], y, x) if ground.turned else _cells(output[frame], x, y)


def _cells(layer: Tensor, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> Tensor:
    """(N, C): the cells of a map (C, H, W) at places in parts of its width and height."""
    height, width = layer.shape[1:]
    with np.errstate(invalid="ignore"):
        x, y = np.nan_to_num(x * width), np.nan_to_num(y * height)
    columns = torch.as_tensor(np.clip(x, 0, width - 1).astype(np.int64), device=layer.device)
    rows = torch.as_tensor(np.clip(y, 0, height - 1).astype(np.int64), device=layer.device)
    return layer[:, rows, columns].T
