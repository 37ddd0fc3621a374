"""What all 3D layouts and heads speak: the final detections of one frame, as the framework wrote them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mld_core.adapters.base import Thresholds
from mld_core.adapters.finals import Finals, limited, rows_by_value
from mld_core.geometry.conventions import to_standard
from mld_core.geometry.nms import nms_bev

# The logit that stands for "this class was not asked at that place": a probability of 2e-9.
ABSENT_LOGIT: Final = -20.0
_SAME_SCORE: Final = 2e-6
_NEAR: Final = 1e-2  # metres


@dataclass
class NativeFrame:
    """Final detections of one frame in the framework's own terms.

    Attributes:
        boxes: (N, 7 or 9) native rows.
        scores: (N,).
        labels: (N,) from 0.
        convention: key of `mld_core.geometry.conventions.CONVENTIONS`.
        attributes: (N,) numbers of predicted attributes, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    convention: str
    attributes: Tensor | None = None

    def __post_init__(self) -> None:
        self.boxes = _columns(self.boxes.detach())
        self.scores = self.scores.detach().reshape(-1)
        self.labels = self.labels.detach().reshape(-1).long()

    def __len__(self) -> int:
        return int(self.boxes.shape[0])


def _columns(boxes: Tensor) -> Tensor:
    if boxes.ndim != 2:
        return boxes.reshape(0, 7) if boxes.numel() == 0 else boxes
    return boxes if boxes.shape[1] in {7, 9} else boxes[:, :7]


@dataclass
class Origin:
    """Where the detections of one frame come from.

    Attributes:
        source: (N,) int64 anchor, cell, voxel or query; -1: not found.
        logits: (N, K) or None.
        features: (N, D) or None.
        quality: (N,) factor beside the class score, or None.
    """

    source: Tensor
    logits: Tensor | None = None
    features: Tensor | None = None
    quality: Tensor | None = None


def find_rows(
    table: Tensor,
    places: Callable[[Tensor], Tensor],
    centers: Tensor,
    scores: Tensor,
    labels: Tensor,
) -> Tensor:
    """The candidates that final detections were made of.

    Args:
        table: (A, C) the score of each candidate for each class.
        places: candidates (n,) to where they were decoded to, (n, P), in the frame of `centers`.
        centers: (N, P) of the detections.
        scores: (N,).
        labels: (N,) columns of `table`.

    Returns:
        (N,) int64. The candidate with the same score for the label, of several the nearest; where none has
        the score (a rectified one), the one at the same place to 1 cm; else -1.
    """
    if not len(labels) or not len(table):
        return torch.full((len(labels),), -1, dtype=torch.int64, device=labels.device)
    finite = scores[scores.isfinite()].float()
    least = finite.min() - _SAME_SCORE if len(finite) else torch.inf
    likely = torch.where(table.amax(1).float() >= least)[0]
    found = torch.full((len(labels),), -1, dtype=torch.int64, device=labels.device)
    if len(likely):

        def placed(rows: Tensor, _: Tensor) -> Tensor:
            return places(likely[rows])

        among = rows_by_value(table[likely], placed, centers, scores, labels)
        found = torch.where(among >= 0, likely[among.clamp(min=0)], among)
    for i in torch.where(found < 0)[0].tolist():
        everywhere = places(torch.arange(len(table), device=table.device))
        distance = (everywhere - centers[i]).abs().amax(1)
        nearest = distance.nan_to_num(torch.inf).argmin()
        if distance[nearest] <= _NEAR:
            found[i] = nearest
    return found


def same_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Index in `table` (A, D) of each of `rows` (N, D), equal in every number; -1 where none is."""
    found = torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
    for i, row in enumerate(rows):
        equal = torch.where((table == row.to(table.dtype)).all(1))[0]
        if len(equal):
            found[i] = equal[0]
    return found


def per_class(parts: Sequence[tuple[Tensor, Sequence[int]]], n_class: int) -> Tensor:
    """(N, K) from parts (N, C_t) with the classes their columns stand for; other columns `ABSENT_LOGIT`."""
    first = parts[0][0]
    full = torch.full((first.shape[0], n_class), ABSENT_LOGIT, dtype=torch.float32, device=first.device)
    for values, classes in parts:
        full[:, list(classes)] = values.float()
    return full


def final(
    frame: NativeFrame, origin: Origin | None, limits: Thresholds, stated: Thresholds, hit: bool
) -> Finals:
    """One frame in the standard convention, without what is beyond `limits`, in the model's order.

    Args:
        frame: as the framework wrote it.
        origin: where its detections come from, None if unknown.
        limits: what is asked for.
        stated: limits that the detections have passed already.
        hit: whether the model's own limit on their number may have cut some off.
    """
    boxes, velocities = to_standard(frame.boxes.float().cpu(), frame.convention)
    known = {} if origin is None else {k: v.cpu() for k, v in vars(origin).items() if v is not None}
    found = Finals(
        boxes, frame.scores.float().cpu(), frame.labels.cpu(), velocities=velocities, cut=hit, **known
    )
    if frame.attributes is not None:
        found.attributes = frame.attributes.reshape(-1).long().cpu()
    return limited(found, limits if stated.iou is not None else limits.without_iou(), stated, nms_bev)
