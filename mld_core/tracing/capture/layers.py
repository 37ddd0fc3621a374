"""From a layer's output to one vector per final detection, where the shapes say which part is whose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mld_core.adapters.outputs import Detection3DOutput, DetectionOutput


def layer_features(
    output: Any, found: DetectionOutput | Detection3DOutput, sizes: Sequence[tuple[int, int] | None]
) -> npt.NDArray[np.float32] | None:
    """The rows of a layer's output that belong to final detections.

    Args:
        output: what the layer gave: a map (B, C, H, W), read in the cell under each 2D box's centre, or
            queries (B, Q, D), read at `source_index`. Of a tuple the first tensor.
        found: the detections, B frames.
        sizes: (height, width) of each image in pixels.

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
    elif output.ndim == 4 and isinstance(found, DetectionOutput) and all(size is not None for size in sizes):
        rows = [
            _cells(output, i, np.asarray(boxes), sizes[i] or (1, 1)) for i, boxes in enumerate(found.boxes)
        ]
    else:
        return None
    return torch.cat(rows).float().cpu().numpy()


def _rows(output: Tensor, frame: int, index: Any) -> Tensor:
    picked = torch.as_tensor(np.asarray(index), device=output.device).clamp(0, output.shape[1] - 1)
    return output[frame, picked]


def _cells(output: Tensor, frame: int, boxes: npt.NDArray[Any], size: tuple[int, int]) -> Tensor:
    height, width = output.shape[2:]
    with np.errstate(invalid="ignore"):
        x = np.nan_to_num((boxes[:, 0] + boxes[:, 2]) / 2 / size[1] * width)
        y = np.nan_to_num((boxes[:, 1] + boxes[:, 3]) / 2 / size[0] * height)
    columns = torch.as_tensor(np.clip(x, 0, width - 1).astype(np.int64), device=output.device)
    rows = torch.as_tensor(np.clip(y, 0, height - 1).astype(np.int64), device=output.device)
    return output[frame][:, rows, columns].T
