"""What Ultralytics' anchor-free heads put out, in any release's layout: logits, boxes, anchors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from mld_core.adapters.finals import Finals, clipped, rows_by_value
from mld_core.adapters.ultralytics.rotated import around, suppressed_turned, turned
from mld_core.geometry.boxes import convert_boxes
from mld_core.geometry.nms import nms

_APART: Final = 7680.0  # pixels the boxes of a class are moved by for each class before it
_MOST: Final = 30_000  # candidates that take part in the suppression


@dataclass
class Raw:
    """One call of a head.

    Attributes:
        logits: (B, K, A) of the classes.
        distances: (B, 4 R, A): distributions over R bins of the distances to the four sides, in cells.
        sizes: per level (H, W); A is the sum of H W.
        strides: pixels of a cell, per level.
        decoded: (B, 4 + K, A) what the head returned in eval: boxes in pixels and scores; None in train.
        final: (B, N, 6) final rows xyxy, score, class of an end-to-end head in eval.
        end2end: whether the head needs no suppression.
        corners: whether `decoded` holds corners instead of centre and size.
        angle: (B, A) radians by which boxes are turned, None of upright ones.
    """

    logits: Tensor
    distances: Tensor
    sizes: list[tuple[int, int]]
    strides: list[float]
    decoded: Tensor | None = None
    final: Tensor | None = None
    end2end: bool = False
    corners: bool = False
    angle: Tensor | None = None
    _boxes: dict[int, Tensor] = field(default_factory=dict)

    def count(self) -> int:
        """Images in the batch."""
        return int(self.logits.shape[0])

    def scores(self, image: int) -> Tensor:
        """(A, K) probabilities."""
        if self.decoded is not None:
            return self.decoded[image, 4 : 4 + self.logits.shape[1]].T
        return self.logits[image].sigmoid().T

    def boxes(self, image: int) -> Tensor:
        """(A, 4) xyxy pixels of the network's input."""
        if image not in self._boxes:
            if self.angle is not None:
                boxes = around(self.rotated(image))
            elif self.decoded is None:
                boxes = self._from_distances(image)
            elif self.corners:
                boxes = self.decoded[image, :4].T
            else:
                boxes = convert_boxes(self.decoded[image, :4].T, "cxcywh", "xyxy")
            self._boxes[image] = boxes
        return self._boxes[image]

    def rotated(self, image: int) -> Tensor:
        """(A, 5) cx, cy, w, h, angle in pixels of the network's input."""
        assert self.angle is not None
        angle = self.angle[image]
        if self.decoded is not None:
            return torch.cat([self.decoded[image, :4].T, angle[:, None]], 1)
        centres, strides = self._cells(self.distances.device)
        found = turned(self._sides(image).T, angle.float(), centres)
        return torch.cat([found[:, :4] * strides, found[:, 4:]], 1)

    def _from_distances(self, image: int) -> Tensor:
        """Expected distance of each side, from the centre of the cell, times the stride (Li et al. 2020)."""
        sides = self._sides(image)
        centres, strides = self._cells(sides.device)
        return torch.cat((centres - sides[:2].T, centres + sides[2:].T), 1) * strides

    def _sides(self, image: int) -> Tensor:
        """(4, A) cells."""
        raw = self.distances[image].float()
        bins = raw.shape[0] // 4
        sides = raw
        if bins > 1:
            weights = raw.view(4, bins, -1).softmax(1)
            sides = (weights * torch.arange(bins, device=raw.device)[None, :, None]).sum(1)
        return sides

    def _cells(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Centres (A, 2) in cells and strides (A, 1)."""
        centres, strides = [], []
        for (height, width), stride in zip(self.sizes, self.strides, strict=True):
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            centres.append(torch.stack((x, y), -1).reshape(-1, 2) + 0.5)
            strides.append(torch.full((height * width, 1), stride))
        return torch.cat(centres).to(device), torch.cat(strides).to(device)

    def to_input(self, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
        """As they are."""
        del shape
        return boxes

    def to_original(self, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
        """From the network's input to an image of (H, W) that was fitted into it with borders, cut there."""
        height, width = (side * self.strides[0] for side in self.sizes[0])
        gain = min(height / shape[0], width / shape[1])
        left = round((width - round(shape[1] * gain)) / 2 - 0.1)
        top = round((height - round(shape[0] * gain)) / 2 - 0.1)
        return clipped((boxes - boxes.new_tensor([left, top, left, top])) / gain, *shape)


def raw_output(output: Any, head: Any) -> Raw | None:
    """A head's output of any release, None if it is laid out otherwise."""
    decoded, raw = None, output
    if isinstance(output, (tuple, list)) and len(output) == 2 and not isinstance(output[1], Tensor):
        first = output[0][0] if isinstance(output[0], (tuple, list)) else output[0]
        if isinstance(first, Tensor) and first.ndim == 3:
            decoded, raw = first, output[1]
    if isinstance(raw, (tuple, list)) and raw and isinstance(raw[0], (tuple, list)):
        raw = raw[0]  # behind it masks or keypoints of releases that hand out lists of maps
    one = isinstance(raw, Mapping) and "one2one" in raw
    end2end = bool(getattr(head, "end2end", one))
    if one:
        assert isinstance(raw, Mapping)
        raw = raw["one2one" if end2end else "one2many"]
    strides = [float(s) for s in head.stride]
    if isinstance(raw, Mapping) and {"boxes", "scores", "feats"} <= raw.keys():
        sizes = [(int(s[-2]), int(s[-1])) for s in (getattr(f, "shape", f) for f in raw["feats"])]
        logits, distances = raw["scores"], raw["boxes"]
    elif isinstance(raw, (list, tuple)) and raw and all(getattr(m, "ndim", 0) == 4 for m in raw):
        sizes = [(int(m.shape[-2]), int(m.shape[-1])) for m in raw]
        joined = torch.cat([m.flatten(2) for m in raw], 2)
        distances, logits = torch.split(joined, [joined.shape[1] - head.nc, head.nc], 1)
    else:
        return None
    out = Raw(logits, distances, sizes, strides, end2end=end2end, corners=bool(getattr(head, "xyxy", False)))
    if isinstance(raw, Mapping) and isinstance(raw.get("angle"), Tensor):
        out.angle = raw["angle"].flatten(1)
    if decoded is not None and decoded.shape[-1] == logits.shape[-1]:
        out.decoded, out.end2end = decoded, False
    elif decoded is not None:
        out.final, out.end2end = decoded, True
    return out


def suppressed(raw: Raw, image: int, score: float, iou: float, most: int | None) -> Finals:
    """The best class of each anchor, above `score`, after suppression per class."""
    scores, labels = raw.scores(image).max(1)
    above = torch.where(scores > score)[0]
    if len(above) > _MOST:
        above = above[scores[above].argsort(descending=True)[:_MOST]]
    scores, labels = scores[above], labels[above]
    rotated = None if raw.angle is None else raw.rotated(image)[above].float()
    boxes = raw.boxes(image)[above]
    if torch.float32 in {boxes.dtype, scores.dtype} or scores.device.type == "cpu":
        boxes, scores = boxes.float(), scores.float()  # one type for the kernel, on a CPU no half precision
    if rotated is None:
        kept = _nms(boxes, scores, labels, iou)
    else:
        apart = torch.cat([rotated[:, :2] + labels[:, None] * _APART, rotated[:, 2:]], 1)
        kept = suppressed_turned(apart, scores, iou)
    final = kept[:most]
    made = Finals(boxes[final], scores[final], labels[final], source=above[final], cut=len(kept) > len(final))
    made.rotated = None if rotated is None else rotated[final]
    return made


def _nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """As the library's predictor: classes moved apart; torchvision's kernel where it is loaded."""
    moved = boxes + labels[:, None] * _APART
    if "torchvision" in sys.modules:
        kept: Tensor = torch.ops.torchvision.nms(moved, scores, iou)
    else:
        kept = nms(moved, scores, None, iou)
    return kept


def best_of(raw: Raw, image: int, most: int) -> Finals:
    """The best (anchor, class) pairs of an end-to-end head, at most one row per pair and `most` rows."""
    table = raw.logits[image].sigmoid().T
    count = min(most, len(table))
    anchors = table.max(1).values.topk(count).indices
    flat, index = table[anchors].flatten().topk(count)
    rows = anchors[torch.div(index, table.shape[1], rounding_mode="floor")]
    labels = index % table.shape[1]
    own = None if raw.final is None else raw.final[image]
    if own is None:
        return Finals(raw.boxes(image)[rows], flat, labels, source=rows)
    if not (len(own) == count and torch.equal(own[:, 4], flat) and torch.equal(own[:, 5].long(), labels)):
        rows = rows_by_value(
            table, lambda found, _: raw.boxes(image)[found], own[:, :4], own[:, 4], own[:, 5]
        )
    return Finals(own[:, :4], own[:, 4], own[:, 5].long(), source=rows)
