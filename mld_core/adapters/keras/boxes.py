"""What the Keras and TensorFlow families share: box formats, limits, features of anchors; NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from mld_core.adapters.base import FrameGeometry, Truth
from mld_core.adapters.outputs import Array

_SAME_SCORE: Final = 1e-6
_WIDEST: Final = 512


def to_numpy(value: Any) -> Array:
    """An array of a TensorFlow tensor (ragged ones are filled with -1), a Keras tensor or an array."""
    ragged = getattr(value, "to_tensor", None)
    if ragged is not None:
        value = ragged(default_value=-1)
    return np.asarray(value)


def xyxy_of(boxes: Array, box_format: str, height: int, width: int) -> Array:
    """Boxes in one of Keras' formats as xyxy pixels.

    Args:
        boxes: (..., 4).
        box_format: xyxy, yxyx, xywh (top left), center_xywh, center_yxhw, and rel_... in parts of the image.
        height: pixels of the image.
        width: of it.

    Raises:
        ValueError: another format.

    Examples:
        >>> xyxy_of(np.array([[0.5, 0.5, 0.5, 1.0]]), "rel_center_xywh", 4, 8).tolist()
        [[2.0, 0.0, 6.0, 4.0]]
    """
    name = box_format.lower().removeprefix("rel_")
    values = np.asarray(boxes, np.float32)
    if name in {"yxyx", "center_yxhw", "yxhw"}:
        values = values[..., [1, 0, 3, 2]]
    if box_format.lower().startswith("rel_"):
        values = values * np.array([width, height, width, height], np.float32)
    first, second = values[..., :2], values[..., 2:]
    if name in {"xyxy", "yxyx"}:
        return values
    if name in {"xywh", "yxhw"}:
        return np.concatenate([first, first + second], -1)
    if name in {"center_xywh", "center_yxhw"}:
        return np.concatenate([first - second / 2, first + second / 2], -1)
    raise ValueError(
        f"bounding_box_format={box_format!r}: expected xyxy, yxyx, xywh, center_xywh, center_yxhw or rel_ one"
    )


def anchors_of(scores: Array, boxes: Array, final_scores: Array, final_boxes: Array) -> Array:
    """The anchors of final detections: those with the same score, of several the one with the nearest box.

    Args:
        scores: (A,) of all anchors.
        boxes: (A, 4) of all anchors.
        final_scores: (N,).
        final_boxes: (N, 4), in the same frame.

    Returns:
        (N,) int64, -1 where no anchor has the score.

    Examples:
        >>> boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6]], np.float32)
        >>> anchors_of(np.array([0.5, 0.5]), boxes, np.array([0.5, 0.4]), boxes[[1, 0]]).tolist()
        [1, -1]
    """
    found = np.full(len(final_scores), -1, np.int64)
    for i, (score, box) in enumerate(zip(final_scores, final_boxes, strict=True)):
        same = np.flatnonzero(np.abs(scores - score) <= _SAME_SCORE)
        if len(same):
            found[i] = same[np.abs(boxes[same] - box).sum(1).argmin()]
    return found


def cell_features(maps: Sequence[Array], image: int, anchors: Array, total: int) -> Array | None:
    """The vectors of feature maps at the cells of anchors, level by level, cell by cell, row-major.

    Args:
        maps: per level (B, H, W, D).
        image: row of the batch.
        anchors: (N,).
        total: anchors of an image; each cell has the same number of them.

    Returns:
        (N, D) with at most 512 columns (neighbours averaged), None where the maps do not fit.
    """
    cells = [m.shape[1] * m.shape[2] for m in maps]
    if not maps or total % sum(cells) or len({m.shape[3] for m in maps}) != 1:
        return None
    flat = np.concatenate([m[image].reshape(-1, m.shape[3]) for m in maps])
    rows = flat[np.maximum(anchors, 0) // (total // sum(cells))].astype(np.float32)
    rows[anchors < 0] = np.nan
    if rows.shape[1] > _WIDEST:
        edges = np.linspace(0, rows.shape[1], _WIDEST + 1).astype(np.int64)[:-1]
        rows = np.add.reduceat(rows, edges, axis=1) / np.diff(np.append(edges, rows.shape[1]))
    return np.asarray(rows, np.float32)


def frames_of(images: Any) -> list[FrameGeometry]:
    """Height and width of a batch of images (B, H, W, C)."""
    shape = [int(s) for s in images.shape]
    return [FrameGeometry(shape[1], shape[2])] * shape[0]


def padded_truths(
    truth: Mapping[str, Any], box_format: str, frames: Sequence[FrameGeometry]
) -> list[Truth] | None:
    """True boxes in Keras' layout: `boxes` (B, N, 4) and `classes` or `labels` (B, N), -1 is padding."""
    classes = truth.get("classes", truth.get("labels"))
    if classes is None or "boxes" not in truth:
        return None
    boxes, labels = to_numpy(truth["boxes"]), to_numpy(classes)
    if boxes.ndim != 3 or labels.shape[:2] != boxes.shape[:2] or len(boxes) != len(frames):
        return None
    out = []
    for own, names, frame in zip(boxes, labels.reshape(boxes.shape[:2]), frames, strict=True):
        real = names >= 0
        pixels = xyxy_of(own[real], box_format, frame.height, frame.width)
        out.append(Truth(pixels.astype(np.float32), names[real].astype(np.int64)))
    return out
