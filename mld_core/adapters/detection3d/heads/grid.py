"""From the maps of a centre head to the cells that final detections were made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mld_core.adapters.detection3d.frames import NativeFrame, Origin, find_rows, per_class
from mld_core.adapters.finals import gathered


@dataclass(frozen=True)
class Scale:
    """From cells to metres: x = (column + offset) * step[0] + start[0], y with rows and [1].

    Attributes:
        start: metres at the corner of the first cell.
        step: metres per cell.
        turned: maps are (C, x, y), not (C, y, x).
    """

    start: tuple[float, float]
    step: tuple[float, float]
    turned: bool = False

    @staticmethod
    def of(start: Sequence[float], voxel: Sequence[float], stride: float, *, turned: bool = False) -> Scale:
        """From a range's first two numbers, the voxel's and the stride of the map."""
        return Scale((start[0], start[1]), (voxel[0] * stride, voxel[1] * stride), turned)

    def metres(self, cells: Tensor) -> Tensor:
        """(n, 2) x and y in cells, to metres."""
        return cells.float() * cells.new_tensor(self.step, dtype=torch.float32) + cells.new_tensor(
            self.start, dtype=torch.float32
        )


@dataclass
class Task:
    """One task of a centre head in one frame: cells (or voxels) with a vector each.

    Attributes:
        logits: (A, C).
        cells: (A, 2) x and y of each, with the predicted offset, in cells.
        classes: labels that the columns stand for.
    """

    logits: Tensor
    cells: Tensor
    classes: list[int]


def dense_task(
    heat: Tensor,
    offset: Tensor | None,
    classes: list[int],
    *,
    turned: bool = False,
) -> Task:
    """A task from its maps: heat (C, H, W), offset (2, H, W) or None (then the cell's middle)."""
    heat = heat.detach().float()
    _, height, width = heat.shape
    cells = torch.arange(height * width, device=heat.device)
    rows, columns = torch.div(cells, width, rounding_mode="floor"), cells % width
    if turned:
        rows, columns = columns, rows
    shift = heat.new_tensor(0.5) if offset is None else offset.detach().float().flatten(1).T
    place = torch.stack([columns, rows], 1).float() + shift
    logits = heat.flatten(1).T
    return Task(logits, place, classes)


def grid_origin(
    tasks: Sequence[Task], scale: Scale, frame: NativeFrame, n_class: int, features: Tensor | None
) -> Origin:
    """Cells of final detections, with the logits of all tasks in that cell.

    Args:
        tasks: of the frame.
        scale: from cells to metres.
        frame: the final detections; their first two columns are x and y.
        n_class: over all tasks.
        features: (A, D) per cell, None if there are none.
    """
    labels = frame.labels
    source = torch.full((len(frame),), -1, dtype=torch.int64, device=labels.device)
    for task in tasks:
        classes = torch.tensor(task.classes, device=labels.device)
        own = torch.where((labels[:, None] == classes).any(1))[0]
        if not len(own):
            continue
        table = task.logits.sigmoid()
        columns = (labels[own][:, None] == classes).long().argmax(1)

        def places(rows: Tensor, task: Task = task) -> Tensor:
            return scale.metres(task.cells[rows])

        source[own] = find_rows(table, places, frame.boxes[own, :2].float(), frame.scores[own], columns)
    parts = [(gathered(task.logits, source), task.classes) for task in tasks]
    return Origin(
        source,
        per_class(parts, n_class) if parts else None,
        None if features is None else gathered(features, source),
    )
