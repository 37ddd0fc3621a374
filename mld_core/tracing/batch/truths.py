"""True boxes: found in a batch on the training thread, read and checked on the writer thread.

What cannot be used is flagged, never raised: a box without area, with NaN, outside its image or of a class
that does not exist is stored with `ignore`; a frame whose truth has no readable form counts as unlabelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from torch import Tensor

from mld_core.adapters.base import Adapter, ModelCall, Truth, image_box_column
from mld_core.adapters.outputs import as_array
from mld_core.tracing.batch.labels import INPUT_KEYS, find_inputs

_TRUTH_KEYS: Final = (
    "labels", "targets", "target", "annotations", "ground_truth", "data_samples", "instances", "gt", "y",
)  # fmt: skip
_BOX_KEYS: Final = frozenset(
    {"boxes", "bboxes", "gt_bboxes", "gt_boxes", "boxes_3d", "gt_bboxes_3d", "gt_boxes_and_cls"}
)
_COLUMNS: Final = {
    "ignore": "ignore", "crowd": "crowd", "iscrowd": "crowd", "difficulty": "difficulty",
    "difficult": "difficulty", "occlusion": "occlusion", "truncation": "truncation", "n_points": "n_points",
    "num_points": "n_points", "area": "area",
}  # fmt: skip


def find_truth(batch: Any) -> Any:
    """The targets in a framework's batch, as they are: names and types only, no value is read.

    >>> find_truth(("images", [{"boxes": [], "labels": []}]))
    [{'boxes': [], 'labels': []}]
    """
    if isinstance(batch, Mapping):
        for key in _TRUTH_KEYS:
            if isinstance(batch.get(key), (list, tuple, Mapping)):
                return batch[key]
        return batch if any(str(key) in _BOX_KEYS for key in batch) else None
    if isinstance(batch, list) and batch and all(isinstance(part, Mapping) for part in batch):
        return batch
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None


def find_images(batch: Any) -> Any:
    """What a detector is given of a batch: images, points, or a mapping of several modalities."""
    if isinstance(batch, Mapping):
        named = {str(key): value for key, value in batch.items() if str(key).lower() in INPUT_KEYS}
        if named:
            return _plain(next(iter(named.values())) if len(named) == 1 else named)
        return find_inputs(batch)
    if isinstance(batch, list) and batch and all(isinstance(part, Mapping) for part in batch):
        return batch
    return _plain(batch[0] if isinstance(batch, (tuple, list)) and len(batch) > 1 else batch)


def _plain(images: Any) -> Any:
    """The tensors of a padded batch in a class of its own (NestedTensor, ImageList)."""
    tensors = getattr(images, "tensors", None)
    if not isinstance(tensors, Tensor):
        return images
    mask = getattr(images, "mask", None)
    return {"tensors": tensors, "mask": mask} if isinstance(mask, Tensor) else tensors


def count_frames(batch: Any, truth: Any, images: Any) -> int | None:
    """Images or frames of a batch, None where nothing tells."""
    samples = batch.get("data_samples") if isinstance(batch, Mapping) else None
    if isinstance(samples, (list, tuple)):
        return len(samples)
    stated = batch.get("batch_size") if isinstance(batch, Mapping) else None
    if isinstance(stated, int):
        return stated
    shape = getattr(images, "shape", None)
    if shape is not None and len(shape) >= 4:
        return int(shape[0])
    if isinstance(images, Mapping):
        counts = {count_frames(None, None, part) for part in images.values()} - {None}
        return counts.pop() if len(counts) == 1 else _length(truth)
    if isinstance(images, (list, tuple)):
        return len(images)
    found = _length(truth)
    return 1 if found is None and shape is not None and len(shape) in {2, 3} and batch is not None else found


def _length(truth: Any) -> int | None:
    if isinstance(truth, Mapping):
        for key in ("boxes", "boxes_3d"):
            if isinstance(truth.get(key), (list, tuple)):
                return len(truth[key])
        return truth["batch_size"] if isinstance(truth.get("batch_size"), int) else None
    return len(truth) if isinstance(truth, (list, tuple)) else None


def as_frames(truth: Any, n: int) -> Any:
    """A dict of lists as a list of dicts, one for each of `n` frames; anything else as it is.

    >>> as_frames({"boxes": ["b0", "b1"], "labels": ["l0", "l1"]}, 2)
    [{'boxes': 'b0', 'labels': 'l0'}, {'boxes': 'b1', 'labels': 'l1'}]
    """
    if not isinstance(truth, Mapping) or not {"boxes", "boxes_3d"} & set(truth):
        return truth
    boxes = truth.get("boxes", truth.get("boxes_3d"))
    if n == 1 and getattr(boxes, "ndim", None) == 2:
        return [dict(truth)]
    columns = {
        key: value
        for key, value in truth.items()
        if hasattr(value, "__len__") and getattr(value, "ndim", None) != 0 and len(value) == n
    }
    return [{key: value[i] for key, value in columns.items()} for i in range(n)]


def plain_truths(truth: Any, n: int, width: int) -> list[Truth | None] | None:
    """Truths in the public form: one dict (or None) per frame; None where it is another form.

    Args:
        truth: as the user gave it.
        n: frames.
        width: 4 in 2D, 7 in 3D.

    Raises:
        ValueError: boxes and labels of a frame do not fit together.
    """
    frames = as_frames(truth, n)
    suffix = "" if width == 4 else "_3d"
    if not isinstance(frames, (list, tuple)) or len(frames) != n:
        return None
    if any(
        f is not None and not (isinstance(f, Mapping) and {f"boxes{suffix}", f"labels{suffix}"} <= set(f))
        for f in frames
    ):
        return None
    return [None if frame is None else _plain_truth(frame, suffix, width) for frame in frames]


def _plain_truth(frame: Mapping[str, Any], suffix: str, width: int) -> Truth:
    boxes = as_array(frame[f"boxes{suffix}"])
    velocities = frame.get("velocities")
    if boxes.ndim == 2 and width == 7 and boxes.shape[1] == 9:
        velocities = boxes[:, 7:] if velocities is None else velocities
        boxes = boxes[:, :7]
    boxes = boxes.reshape(0, width) if boxes.size == 0 else boxes
    labels = as_array(frame[f"labels{suffix}"]).reshape(-1)
    if boxes.ndim != 2 or boxes.shape[1] != width or len(labels) != len(boxes):
        raise ValueError(
            f"boxes{suffix} of shape {boxes.shape} with labels{suffix} of shape {labels.shape}: expected "
            f"(N, {width}) and (N,)"
        )
    columns = {ours: as_array(frame[key]) for key, ours in _COLUMNS.items() if frame.get(key) is not None}
    if width == 7 and frame.get("attributes") is not None:
        columns["attribute"] = as_array(frame["attributes"])
    columns = {key: value for key, value in columns.items() if value.shape == (len(boxes),)}
    if width == 7:
        columns |= image_box_column(frame.get("image_boxes"), len(boxes))
    return Truth(
        boxes.astype(np.float32),
        labels.astype(np.int64),
        None,
        None if velocities is None else as_array(velocities).reshape(-1, 2).astype(np.float32),
        columns,
    )


def read_truths(adapter: Adapter | None, call: ModelCall | None, truth: Any, n: int, width: int) -> Any:
    """One Truth (or None: unlabelled) per frame, or None: none of them is labelled.

    The adapter reads first: it knows how its family numbers classes and scales boxes. It looks into the call
    where the batch holds no targets it understands.

    Raises:
        ValueError: truth was given and is of no known form.
    """
    frames = as_frames(truth, n)
    labelled = frames
    if isinstance(frames, (list, tuple)) and any(frame is None for frame in frames):
        labelled = [frame for frame in frames if frame is not None]
        if not labelled:
            return None
    found: Sequence[Truth | None] | None = None
    if adapter is not None and call is not None:
        found = adapter.truths(call, labelled) if labelled is not None else None
        if found is not None and labelled is not frames:
            rest = iter(found)
            found = [None if frame is None else next(rest) for frame in frames]
    if found is None and truth is not None:
        found = plain_truths(truth, n, width)
    if found is None and adapter is not None and call is not None:
        found = adapter.truths(call, None)
    if found is None and truth is not None:
        raise ValueError(
            f"truth of type {type(truth).__name__} is not understood; give label_fn(batch) -> one "
            + (
                '{"boxes": (N, 4) xyxy pixels, "labels": (N,)}'
                if width == 4
                else '{"boxes_3d": (N, 7), "labels_3d": (N,)}'
            )
            + " per frame"
        )
    if found is not None and len(found) != n:
        raise ValueError(f"true boxes of {len(found)} frames for {n} frames; give one entry per frame")
    return found
