"""What the 2D families share: final detections of one image as tensors, their limits, true boxes as lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from mld_core.adapters.base import FrameGeometry, Parsed, Thresholds, Truth
from mld_core.adapters.outputs import Detection3DOutput, DetectionOutput, as_array
from mld_core.geometry.nms import nms

MAX_FEATURES: Final = 512
_SAME_SCORE: Final = 1e-6  # kernels round the last bit as the position in memory has it
_AT_ONCE: Final = 32


@dataclass
class Finals:
    """Final detections of one image or frame, by descending score.

    Attributes:
        boxes: (N, 4) xyxy pixels of the tracer's input tensor, or (N, 7) in 3D.
        scores: (N,).
        labels: (N,) int64, from 0.
        logits: (N, K) or None.
        features: (N, D) or None.
        quality: (N,) objectness or centerness as a probability, or None.
        source: (N,) int64 anchor, proposal or query; -1: not found.
        velocities: (N, 2) in 3D, or None.
        attributes: (N,) numbers in 3D, or None.
        rotated: (N, 5) of rotated 2D boxes, or None.
        cut: whether a limit on the number of detections dropped some.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    logits: Tensor | None = None
    features: Tensor | None = None
    quality: Tensor | None = None
    source: Tensor | None = None
    velocities: Tensor | None = None
    attributes: Tensor | None = None
    rotated: Tensor | None = None
    cut: bool = False

    def pick(self, index: Tensor | slice) -> Finals:
        """The detections at `index` (positions, a mask or a slice)."""
        rows: dict[str, Any] = {n: v[index] for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **rows)


def limited(
    frame: Finals,
    limits: Thresholds,
    done: Thresholds,
    suppress: Callable[[Tensor, Tensor, Tensor, float], Tensor] = nms,
) -> Finals:
    """Drops what is beyond `limits`, in the order given.

    Args:
        frame: the detections.
        limits: what is asked for.
        done: the limits they have passed already.
        suppress: which of (boxes, scores, labels) stay at an overlap.
    """
    if limits.score is not None and (done.score is None or limits.score > done.score):
        frame = frame.pick(~(frame.scores < limits.score))  # a NaN stays, to be counted
    if limits.iou is not None and (done.iou is None or limits.iou < done.iou) and len(frame.scores) > 1:
        kept = suppress(frame.boxes.float(), frame.scores.float(), frame.labels, limits.iou)
        frame = frame.pick(kept.sort().values)
    most = limits.max_detections
    if most is not None and len(frame.scores) > most:
        best = frame.scores.argsort(descending=True, stable=True)[:most]
        frame = replace(frame.pick(best.sort().values), cut=True)
    return frame


def parsed(
    frames: Sequence[Finals],
    activation: str,
    background: int | None,
    thresholds: Thresholds,
    geometry: list[FrameGeometry] | None = None,
    kind: type[DetectionOutput | Detection3DOutput] = DetectionOutput,
) -> Parsed:
    """The answer of `Adapter.parse` from each image's or frame's detections."""

    def column(name: str) -> list[Any] | None:
        values = [getattr(frame, name) for frame in frames]
        return None if not values or any(v is None for v in values) else values

    quality = column("quality")
    every: dict[str, Any] = {
        n: [getattr(frame, n) for frame in frames] for n in ("boxes", "scores", "labels")
    }
    every.update(
        {name: column(name) for name in ("logits", "features", "velocities", "attributes", "rotated")}
    )
    return Parsed(
        output=kind(**every, source_index=column("source")),
        activation=activation,
        background=background,
        cap_hit=[frame.cut for frame in frames],
        thresholds=thresholds,
        quality=None if quality is None else [as_array(q) for q in quality],
        geometry=geometry,
    )


def sizes_of(images: Any) -> list[FrameGeometry] | None:
    """Height and width of each image: of a batch (B, C, H, W), one image (C, H, W) or a list of images."""
    shape = getattr(images, "shape", None)
    if shape is not None:
        if len(shape) == 4:
            return [FrameGeometry(int(shape[-2]), int(shape[-1]))] * int(shape[0])
        return [FrameGeometry(int(shape[-2]), int(shape[-1]))] if len(shape) == 3 else None
    if not isinstance(images, (list, tuple)) or not all(len(getattr(i, "shape", ())) == 3 for i in images):
        return None
    return [FrameGeometry(int(i.shape[-2]), int(i.shape[-1])) for i in images]


def detached(value: Any) -> Any:
    """The same tensors without their graph, in the same lists, tuples and dicts; other values as they are."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {key: detached(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [detached(v) for v in value]
    return value


def clipped(boxes: Tensor, height: float, width: float) -> Tensor:
    """(N, 4) xyxy boxes cut at the borders of an image."""
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack((x, y), dim=2).reshape(boxes.shape)


def gathered(table: Tensor, rows: Tensor) -> Tensor:
    """`table[rows]` (N, D) float32, NaN where a row is -1."""
    if not len(rows):
        return table.new_zeros((0, *table.shape[1:]), dtype=torch.float32)
    picked = table[rows.clamp(min=0).to(table.device)].float()
    picked[(rows < 0).to(table.device)] = math.nan
    return picked


def same_detections(a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor]) -> bool:
    """Whether two lists (boxes, scores, labels) are the same up to the rounding of the last bits."""
    if len(a[1]) != len(b[1]) or not torch.equal(a[2].long(), b[2].long()):
        return False
    scores = torch.allclose(a[1].float(), b[1].float(), rtol=0, atol=_SAME_SCORE)
    return scores and torch.allclose(a[0].float(), b[0].float(), rtol=1e-4, atol=0.01, equal_nan=True)


def rows_by_value(
    table: Tensor,
    boxes_of: Callable[[Tensor, Tensor], Tensor],
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
) -> Tensor:
    """The anchors of detections whose way through the filters is not known.

    Args:
        table: (A, K) scores of all anchors.
        boxes_of: anchors (n,) and one label to their boxes (n, 4), in the frame of `boxes`.
        boxes: (N, 4) of the detections.
        scores: (N,).
        labels: (N,) columns of `table`.

    Returns:
        (N,) int64: the anchor with the same score for the label, of several the one with the nearest box; -1
        where none has the score.
    """
    table, scores, labels = table.float(), scores.float(), labels.long()
    found = torch.full((len(labels),), -1, dtype=torch.int64, device=table.device)
    several = []
    for start in range(0, len(labels), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        same = table[:, labels[part]] == scores[part]
        counts = same.sum(0)
        found[part] = torch.where(counts == 1, same.int().argmax(0), -1)
        several += (torch.where(counts != 1)[0] + start).tolist()
    taken = set(zip(found.tolist(), labels.tolist(), strict=True))
    for i in several:
        label = int(labels[i])
        difference = (table[:, label] - scores[i]).abs()
        close = difference == difference.nan_to_num(torch.inf).min()
        rows = [
            r for r in torch.where(close & (difference <= _SAME_SCORE))[0].tolist() if (r, label) not in taken
        ]
        if not rows:
            continue
        candidates = torch.tensor(rows, device=table.device)
        distance = (boxes_of(candidates, labels[i]) - boxes[i]).abs().sum(1)
        row = rows[int(distance.nan_to_num(torch.inf).argmin())]
        found[i] = row
        taken.add((row, label))
    return found


def level_features(maps: Sequence[Tensor], image: int, anchors: Tensor, per_cell: Sequence[int]) -> Tensor:
    """The feature vectors at the cells that final anchors belong to.

    Args:
        maps: per level (B, D_l, H_l, W_l). Where the widths differ, wider levels are averaged over
            neighbouring channels and narrower ones filled with zeros, to the widest of at most 512.
        image: row of the batch.
        anchors: (N,) indices into the anchors of all levels, level by level, cell by cell (row-major).
        per_cell: anchors at each cell, per level.

    Returns:
        (N, D) float32; -1 as an anchor gives a row of NaN.
    """
    width = min(MAX_FEATURES, max(m.shape[1] for m in maps))
    out = torch.full((len(anchors), width), math.nan, device=anchors.device)
    start = 0
    for level, count in zip(maps, per_cell, strict=True):
        cells = level.shape[-2] * level.shape[-1]
        inside = torch.where((anchors >= start) & (anchors < start + cells * count))[0]
        if len(inside):
            cell = torch.div(anchors[inside] - start, count, rounding_mode="floor")
            rows = level[image].flatten(1)[:, cell.to(level.device)].T.float().to(out.device)
            out[inside] = _to_width(rows, width)
        start += cells * count
    return out


def _to_width(rows: Tensor, width: int) -> Tensor:
    if rows.shape[1] > width:
        return torch.nn.functional.adaptive_avg_pool1d(rows[:, None], width)[:, 0]
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]))


_COLUMNS: Final = {
    "iscrowd": ("crowd", np.bool_),
    "crowd": ("crowd", np.bool_),
    "ignore": ("ignore", np.bool_),
    "difficult": ("difficulty", np.int32),
    "area": ("area", np.float32),
}


def truths_of(truth: Any, offset: int = 0) -> list[Truth] | None:
    """True boxes in the layout of torchvision: per image boxes (N, 4) xyxy pixels and labels (N,).

    Args:
        truth: a list of {"boxes", "labels", "image_id"?, "iscrowd"?, "area"?}, or one such dict of lists.
        offset: label of the first foreground class.

    Returns:
        One entry per image with labels from 0, or None if it is laid out otherwise. A smaller label than
        `offset` is negative here: stored with `ignore` and counted, as any label of no class.
    """
    targets = list(_targets(truth))
    if not targets:
        return [] if isinstance(truth, (list, tuple)) and not truth else None
    return [_truth(target, offset) for target in targets]


def _targets(truth: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(truth, Mapping) and isinstance(truth.get("boxes"), (list, tuple)) and "labels" in truth:
        count = len(truth["boxes"])
        columns = {k: v for k, v in truth.items() if isinstance(v, (list, tuple)) and len(v) == count}
        truth = [{k: v[i] for k, v in columns.items()} for i in range(count)]
    if isinstance(truth, (list, tuple)) and all(
        isinstance(t, Mapping) and "boxes" in t and "labels" in t for t in truth
    ):
        yield from truth


def _truth(target: Mapping[str, Any], offset: int) -> Truth:
    labels = as_array(target["labels"]).astype(np.int64).reshape(-1) - offset
    boxes = as_array(target["boxes"]).astype(np.float32).reshape(-1, 4)
    columns: dict[str, Any] = {
        column: as_array(target[key]).reshape(-1).astype(dtype)
        for key, (column, dtype) in _COLUMNS.items()
        if key in target and as_array(target[key]).size == len(labels)
    }
    return Truth(boxes, labels, id_of(target.get("image_id")), columns=columns)


def id_of(value: Any) -> str | None:
    """The id in a number, a text or a tensor with one element.

    >>> id_of(7), id_of("a.jpg"), id_of(None)
    ('7', 'a.jpg', None)
    """
    if value is None or isinstance(value, str):
        return value
    array = as_array(value)
    return str(array.reshape(-1)[0]) if array.size == 1 else None
