"""The torch engine: differentiable, on any device. Imported only where a tensor came in.

The overlap of footprints is an autograd function of its own. Its gradient is the boundary integral of the
normal velocity (Reynolds' transport theorem): the derivative of the area by a motion of a rectangle is the
integral, over the parts of its edges inside the other one, of how fast they move outwards. It needs just the
spans the forward pass found, no derivative of the crossings, and is finite everywhere; where edges coincide,
and the area has a kink, it is a one-sided derivative or lies between the two.
"""

from typing import Any

import torch

from mld_core.geometry.kernels.arrays import AXIS_MODES, Mode
from mld_core.geometry.kernels.axis import as_corners, box_values
from mld_core.geometry.kernels.pairs import Table, as_table, height_overlap, pair_values, valid_rows
from mld_core.geometry.kernels.rotated import edge_spans, overlap_area, relative_pose

CHUNK = 1 << 22  # pairs of the matrix tested, or computed, at once


class _Footprint(torch.autograd.Function):
    """Overlap area (P,) of rectangles given as (x, y, half length, half width, yaw) each."""

    @staticmethod
    def forward(ctx: Any, *columns: torch.Tensor) -> torch.Tensor:
        a, b = columns[:5], columns[5:]
        cos_a, sin_a = torch.cos(a[4]), torch.sin(a[4])
        rect_a = a[0], a[1], a[2], a[3], cos_a, sin_a
        rect_b = b[0], b[1], b[2], b[3], torch.cos(b[4]), torch.sin(b[4])
        pose = relative_pose(torch, rect_a, rect_b)
        spans = edge_spans(torch, pose)
        ends = [end for group in spans for span in group for end in span]
        ctx.save_for_backward(cos_a, sin_a, pose.cos, pose.sin, pose.mirror, *ends)
        return torch.as_tensor(overlap_area(torch, pose, spans))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cos_a, sin_a, cos, sin, mirror, *ends = ctx.saved_tensors
        span = [(ends[k], ends[k + 1]) for k in range(0, 16, 2)]
        length = [hi - lo for lo, hi in span]
        moment = [(hi - lo) * (hi + lo) / 2 for lo, hi in span]  # integral of the position along the edge
        ax1, ax2, ay1, ay2, bu1, bu2, bv1, bv2 = range(8)
        push_u, push_v = length[bu1] - length[bu2], length[bv1] - length[bv2]
        x, y = cos * push_u - sin * push_v, (sin * push_u + cos * push_v) * mirror
        x, y = grad * (cos_a * x - sin_a * y), grad * (sin_a * x + cos_a * y)
        turn_a = grad * mirror * (moment[ax2] - moment[ax1] + moment[ay1] - moment[ay2])
        turn_b = grad * mirror * (moment[bu2] - moment[bu1] + moment[bv1] - moment[bv2])
        grow_a = grad * (length[ax1] + length[ax2]), grad * (length[ay1] + length[ay2])
        grow_b = grad * (length[bu1] + length[bu2]), grad * (length[bv1] + length[bv2])
        return -x, -y, *grow_a, turn_a, x, y, *grow_b, turn_b


def footprint(a: Table, b: Table) -> torch.Tensor:
    """Overlap area of footprints, with gradients."""
    columns = a.x, a.y, a.l, a.w, a.yaw, b.x, b.y, b.l, b.w, b.yaw
    return torch.as_tensor(_Footprint.apply(*columns))  # type: ignore[no-untyped-call]


def wide(boxes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Boxes in float64 where the device has it (not on MPS), rows that do not count zeroed."""
    clean = torch.where(valid[:, None], boxes, torch.zeros_like(boxes))
    return clean if boxes.device.type == "mps" else clean.double()


def candidates(
    a: Table, b: Table, rows_a: torch.Tensor, rows_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index pairs (i, j) whose bounding circles touch, row-major; the matrix is tested in chunks of rows."""
    with torch.no_grad():
        ra = torch.where(rows_a, torch.hypot(a.l, a.w), torch.nan) * (1 + 1e-6)
        rb = torch.where(rows_b, torch.hypot(b.l, b.w), torch.nan) * (1 + 1e-6)
        found = []
        step = max(1, CHUNK // max(len(rb), 1))
        for start in range(0, len(ra), step):
            s = slice(start, start + step)
            dx, dy = a.x[s, None] - b.x, a.y[s, None] - b.y
            reach = ra[s, None] + rb
            near = (dx * dx + dy * dy <= reach * reach).nonzero()
            near[:, 0] += start
            found.append(near)
        pairs = torch.cat(found) if found else torch.zeros((0, 2), dtype=torch.long, device=a.x.device)
    return pairs[:, 0], pairs[:, 1]


def pairwise(boxes_a: torch.Tensor, boxes_b: torch.Tensor, mode: Mode) -> torch.Tensor:
    """Matrix (N, M) of `mode`; pairs of rotated boxes that can overlap are computed in float64."""
    if mode in AXIS_MODES:
        return _box_pairwise(boxes_a, boxes_b, mode)
    n, m = len(boxes_a), len(boxes_b)
    valid_a, valid_b = valid_rows(torch, boxes_a), valid_rows(torch, boxes_b)
    a, b = as_table(torch, wide(boxes_a, valid_a)), as_table(torch, wide(boxes_b, valid_b))
    if mode == "giou_3d":
        parts = []
        step = max(1, (CHUNK >> 4) // max(m, 1))
        for start in range(0, n, step):
            i = torch.arange(start, min(start + step, n), device=boxes_a.device).repeat_interleave(m)
            j = torch.arange(m, device=boxes_a.device).repeat(len(i) // max(m, 1))
            value = pair_values(torch, mode, a.take(i), b.take(j), footprint)
            parts.append(torch.where(valid_a[i] & valid_b[j], value, -1.0))
        whole = torch.cat(parts) if parts else boxes_a.new_zeros(0)
        return whole.to(boxes_a.dtype).reshape(n, m)
    i, j = candidates(a, b, valid_a & (a.l * a.w > 0), valid_b & (b.l * b.w > 0))
    values, positions = [], []
    for start in range(0, max(len(i), 1), CHUNK >> 4):  # once at least: the result stays in the graph
        ci, cj = i[start : start + (CHUNK >> 4)], j[start : start + (CHUNK >> 4)]
        ta, tb = a.take(ci), b.take(cj)
        if mode == "3d":
            level = (height_overlap(torch, ta, tb) > 0).nonzero()[:, 0]
            ci, cj, ta, tb = ci[level], cj[level], ta.take(level), tb.take(level)
        values.append(pair_values(torch, mode, ta, tb, footprint).to(boxes_a.dtype))
        positions.append(ci * m + cj)
    out = boxes_a.new_zeros(n * m).index_put((torch.cat(positions),), torch.cat(values))
    return out.reshape(n, m)


def aligned(boxes_a: torch.Tensor, boxes_b: torch.Tensor, mode: Mode) -> torch.Tensor:
    """`mode` (N,) of row k of one with row k of the other."""
    if mode in AXIS_MODES:
        corners = as_corners(torch, boxes_a), as_corners(torch, boxes_b)
        return torch.as_tensor(box_values(torch, mode, *corners))
    valid = valid_rows(torch, boxes_a) & valid_rows(torch, boxes_b)
    a, b = as_table(torch, wide(boxes_a, valid)), as_table(torch, wide(boxes_b, valid))
    value = pair_values(torch, mode, a, b, footprint)
    return torch.where(valid, value, -1.0 if mode == "giou_3d" else 0.0).to(boxes_a.dtype)


def _box_pairwise(boxes_a: torch.Tensor, boxes_b: torch.Tensor, mode: Mode) -> torch.Tensor:
    """In chunks of rows."""
    a, b = as_corners(torch, boxes_a), as_corners(torch, boxes_b)
    step = max(1, CHUNK // max(len(boxes_b), 1))
    chunks = (a.rows((slice(start, start + step), None)) for start in range(0, len(boxes_a), step))
    other = b.rows((None, slice(None)))
    parts = [torch.as_tensor(box_values(torch, mode, chunk, other)) for chunk in chunks]
    return torch.cat(parts) if parts else boxes_a.new_zeros((0, len(boxes_b)))
