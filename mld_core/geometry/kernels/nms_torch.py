"""Greedy NMS on tensors, exact and on the device: suppression matrices of row chunks, settled by fixed point.

Boxes in score order are cut into chunks. Each chunk is first suppressed by the kept rows of the chunks before
it, then settled within by iterating keep = no kept row suppresses me, which reaches the greedy result after
as many rounds as the longest chain. The host waits once per few rounds of a chunk, never per box; memory is
two chunks squared.
"""

from collections.abc import Callable

import torch

from mld_core.geometry.kernels.arrays import Mode, NmsMode
from mld_core.geometry.kernels.axis import as_corners, box_values
from mld_core.geometry.kernels.engine_torch import candidates, footprint, wide
from mld_core.geometry.kernels.pairs import as_table, pair_values, valid_rows

CHUNK = 2048
ROUNDS = 4  # fixed-point rounds between two looks from the host

# (start, stop) of two chunks -> bool matrix: row i of the first suppresses row j of the second
Matrix = Callable[[slice, slice], torch.Tensor]


def keep(
    boxes: torch.Tensor, codes: torch.Tensor | None, limits: torch.Tensor, most: int, mode: NmsMode
) -> torch.Tensor:
    """Rows kept of boxes in score order, ascending, at most `most`; thresholds and class codes by row."""
    if mode == "iou":
        over = _boxes(boxes, limits.to(boxes.dtype))
    elif mode == "circle":
        over = _circles(boxes.double(), limits**2)
    else:
        over = _rotated(boxes, limits, mode)

    def matrix(i: slice, j: slice) -> torch.Tensor:
        return over(i, j) if codes is None else over(i, j) & (codes[i, None] == codes[j])

    return greedy(len(boxes), matrix, most, boxes.device)


def greedy(count: int, matrix: Matrix, most: int, device: torch.device) -> torch.Tensor:
    """Rows kept, ascending (int64); `count` rows in score order, at most `most` of them."""
    keep = torch.zeros(count, dtype=torch.bool, device=device)
    with torch.no_grad():
        for start in range(0, count, CHUNK):
            rows = slice(start, min(start + CHUNK, count))
            alive = torch.ones(rows.stop - start, dtype=torch.bool, device=device)
            for before in range(0, start, CHUNK):
                earlier = slice(before, before + CHUNK)
                alive &= ~(matrix(earlier, rows) & keep[earlier, None]).any(0)
            keep[rows] = _settle(matrix(rows, rows).triu(1), alive)
    return keep.nonzero()[:most, 0]


def _settle(over: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    keep = alive
    while True:
        before = keep
        for _ in range(ROUNDS):
            before, keep = keep, alive & ~(over & keep[:, None]).any(0)
        if torch.equal(before, keep):
            return keep


def _boxes(boxes: torch.Tensor, limits: torch.Tensor) -> Matrix:
    """Axis-aligned boxes: IoU above the row's threshold."""
    corners = as_corners(torch, boxes)

    def over(i: slice, j: slice) -> torch.Tensor:
        value = box_values(torch, "iou", corners.rows((i, None)), corners.rows((None, j)))
        return torch.as_tensor(value > limits[i, None])

    return over


def _rotated(boxes: torch.Tensor, limits: torch.Tensor, mode: Mode) -> Matrix:
    """Rotated footprints or upright volumes: IoU above the row's threshold."""
    valid = valid_rows(torch, boxes)
    table = as_table(torch, wide(boxes, valid))

    def over(i: slice, j: slice) -> torch.Tensor:
        a, b = table.take(i), table.take(j)
        p, q = candidates(a, b, valid[i], valid[j])
        value = pair_values(torch, mode, a.take(p), b.take(q), footprint)
        found = torch.zeros((len(a.x), len(b.x)), dtype=torch.bool, device=boxes.device)
        found[p, q] = value > limits[i][p]
        return found

    return over


def _circles(centers: torch.Tensor, limits: torch.Tensor) -> Matrix:
    """Centres at most the row's (squared) distance apart."""

    def near(i: slice, j: slice) -> torch.Tensor:
        dx, dy = (centers[i, None, k] - centers[None, j, k] for k in (0, 1))
        return dx * dx + dy * dy <= limits[i, None]

    return near
