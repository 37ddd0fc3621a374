"""What the families of DETR share: one box and one row of class logits per query, no suppression.

Where every class has its own sigmoid, the best of all (query, class) pairs are the final detections, so
that one query may appear with several labels; with a softmax each query has one label. A query whose scores
are not finite makes no detection and takes nobody's place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mld_core.adapters.base import FrameGeometry, Parsed, Thresholds, Truth
from mld_core.adapters.finals import Finals, parsed, truths_of


def query_finals(
    logits: Tensor,
    boxes: Tensor,
    size: tuple[float, float] | Tensor,
    features: Tensor | None,
    limits: Thresholds,
    *,
    softmax: bool,
) -> Finals:
    """The final detections of one image, by descending score.

    Args:
        logits: (Q, K), or (Q, K + 1) with "no object" last where `softmax`.
        boxes: (Q, 4) centre x, centre y, width, height in parts of `size`.
        size: height and width in pixels that the boxes are parts of.
        features: (Q, D) or None.
        limits: the score has to be above `limits.score`, as the families' own post-processing has it; of
            those the `limits.max_detections` best are kept.
        softmax: what turns the logits into scores.

    Examples:
        >>> logits, boxes = torch.tensor([[2.0, -9, 0]]), torch.tensor([[0.5, 0.5, 1, 1]])
        >>> finals = query_finals(logits, boxes, (4, 8), None, Thresholds(0.5, None, 9), softmax=True)
        >>> finals.boxes.tolist(), finals.labels.tolist()
        ([[0.0, 0.0, 8.0, 4.0]], [0])
    """
    logits = logits.float()
    scores, labels, queries = _candidates(logits, softmax=softmax)
    above = scores > (limits.score if limits.score is not None else -1.0)
    scores, labels, queries = scores[above], labels[above], queries[above]
    order = scores.argsort(descending=True, stable=True)
    best = order[: limits.max_detections]
    queries = queries[best]
    return Finals(
        boxes=corners(boxes, size)[queries],
        scores=scores[best],
        labels=labels[best],
        logits=logits[queries],
        features=None if features is None else features[queries].float(),
        source=queries,
        cut=len(best) < len(order),
    )


def query_parsed(
    logits: Tensor,
    boxes: Tensor,
    hidden: Tensor | None,
    sizes: Any,
    limits: Thresholds,
    geometry: list[FrameGeometry],
    *,
    softmax: bool,
) -> Parsed:
    """The answer of `Adapter.parse`: arguments as of `query_finals`, for each image of a batch."""
    frames = [
        query_finals(each, where, size, None if hidden is None else hidden[i], limits, softmax=softmax)
        for i, (each, where, size) in enumerate(zip(logits, boxes, sizes, strict=True))
    ]
    background = logits.shape[-1] - 1 if softmax else None
    return parsed(frames, "softmax" if softmax else "sigmoid", background, limits.without_iou(), geometry)


def real_queries(count: int, own: int, groups: Any, *, training: bool) -> slice:
    """Without query groups (last) and denoising queries (first), which there are in train only.

    Args:
        count: queries in the output.
        own: queries that a trained model answers with, 0: not known.
        groups: of queries, None or 0: one.
        training: whether the model trained.
    """
    if not training or not 0 < own < count:
        return slice(0, count)
    return slice(0, own) if count == own * int(groups or 1) else slice(count - own, count)


def _candidates(logits: Tensor, *, softmax: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Score, label and query of all that could be a detection; NaN as -1."""
    index = torch.arange(logits.shape[0], device=logits.device)
    if softmax:
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
        return scores.nan_to_num(nan=-1.0), labels, index
    classes = logits.shape[1]
    pairs = torch.arange(logits.numel(), device=logits.device)
    return logits.sigmoid().flatten().nan_to_num(nan=-1.0), pairs % classes, index.repeat_interleave(classes)


def corners(boxes: Tensor, size: tuple[float, float] | Tensor) -> Tensor:
    """(N, 4) xyxy pixels of centre and size in parts of `size` = height, width.

    Examples:
        >>> corners(torch.tensor([[0.5, 0.5, 0.5, 1.0]]), (4, 8)).tolist()
        [[2.0, 0.0, 6.0, 4.0]]
    """
    boxes = boxes.float()
    cx, cy, w, h = boxes.unbind(-1)
    height, width = torch.as_tensor(size, dtype=torch.float32, device=boxes.device).unbind()
    parts = torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], -1)
    return parts * torch.stack([width, height, width, height])


def normalised_truths(
    targets: Sequence[Mapping[str, Any]],
    labels: str,
    sizes: Sequence[tuple[float, float]],
    valid: Any = None,
) -> list[Truth] | None:
    """True boxes given as centre and size in parts of each image.

    Args:
        targets: per image `boxes` (N, 4) cxcywh in parts of the image, the classes from 0, and where known
            `image_id`, `iscrowd`, and with `orig_size` the `area` in pixels as large as those of `valid`.
        labels: name of the classes' entry.
        sizes: per image the height and width that the boxes are parts of.
        valid: per image those of the image in them, without padding; None: the same.
    """
    plain = []
    for target, size, inner in zip(targets, sizes, sizes if valid is None else valid, strict=True):
        boxes = torch.as_tensor(target["boxes"]).detach().reshape(-1, 4)
        rest = {key: target[key] for key in ("image_id", "iscrowd") if key in target}
        back = scaling(target.get("orig_size"), float(inner[1]), float(inner[0]))
        if back is not None and "area" in target:
            rest["area"] = torch.as_tensor(target["area"]).detach() * (back[0] * back[4])
        plain.append({**rest, "boxes": corners(boxes, size), "labels": target[labels]})
    return truths_of(plain)


def scaling(original: Any, width: float, height: float) -> tuple[float, ...] | None:
    """The affine map from an image of `width` x `height` to the original it was resized from.

    Args:
        original: height and width of the original, None: not known.
        width: of the resized image in pixels, without padding (which is at the right and at the bottom).
        height: of it.

    Examples:
        >>> scaling((100, 200), 400, 200)
        (0.5, 0.0, 0.0, 0.0, 0.5, 0.0)
    """
    if original is None or not width or not height:
        return None
    values = torch.as_tensor(original).reshape(-1).tolist()
    return (values[1] / width, 0.0, 0.0, 0.0, values[0] / height, 0.0) if len(values) == 2 else None
