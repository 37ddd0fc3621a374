"""True boxes in Ultralytics' batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mld_core.adapters.base import FrameGeometry, ModelCall, Truth
from mld_core.adapters.finals import sizes_of, truths_of
from mld_core.adapters.outputs import as_array
from mld_core.adapters.ultralytics.rotated import around
from mld_core.geometry.boxes import convert_boxes


def batch_truths(call: ModelCall, truth: Any) -> list[Truth] | None:
    """From the library's batch dict (given, or what the model was called with), or torchvision's layout.

    The batch holds all images' boxes in one table: `batch_idx` (n,), `cls` (n, 1) from 0, `bboxes` (n, 4)
    centre and size in parts of `img`, of rotated ones (n, 5) with the angle. In train `im_file` names the
    first of the images that were mixed, so it is an id in validation only.
    """
    batch: Any = truth if truth is not None else call.args[0] if call.args else None
    if not _is_batch(batch):
        return truths_of(truth)
    sizes = sizes_of(batch["img"]) if "img" in batch else sizes_of(call.args[0] if call.args else None)
    if sizes is None:
        return None
    files: Sequence[Any] = batch.get("im_file", ()) if "ratio_pad" in batch else ()
    images = as_array(batch["batch_idx"]).astype(np.int64).reshape(-1)
    labels = as_array(batch["cls"]).astype(np.int64).reshape(-1)
    boxes = as_array(batch["bboxes"]).astype(np.float32)
    turned = boxes.ndim == 2 and boxes.shape[1] == 5
    boxes = boxes if turned else boxes.reshape(-1, 4)
    out = []
    for i, size in enumerate(sizes):
        own = images == i
        name = str(files[i]) if i < len(files) else None
        if turned:
            rows = torch.as_tensor(boxes[own])
            rows[:, :4] *= rows.new_tensor([size.width, size.height, size.width, size.height])
            out.append(Truth(around(rows).numpy(), labels[own], name, rotated=rows.numpy()))
            continue
        pixels = convert_boxes(boxes[own], "cxcywhn", "xyxy", image_size=(size.height, size.width))
        out.append(Truth(pixels, labels[own], name))
    return out


def batch_geometry(batch: Mapping[str, Any]) -> list[FrameGeometry] | None:
    """Sizes of a batch's images; in validation with the way back to the original image."""
    sizes = sizes_of(batch.get("img"))
    pads = batch.get("ratio_pad")
    if sizes is None or not isinstance(pads, (list, tuple)) or len(pads) != len(sizes):
        return sizes
    return [
        FrameGeometry(size.height, size.width, _to_original(pad))
        for size, pad in zip(sizes, pads, strict=True)
    ]


def _to_original(ratio_pad: Any) -> tuple[float, ...] | None:
    """The way back through ((gain y, gain x), (left, top)): pixels = original * gain + border."""
    values = np.asarray(ratio_pad, dtype=np.float64)
    if values.shape != (2, 2) or not (values[0] > 0).all():
        return None
    (gain_y, gain_x), (left, top) = values.tolist()
    return (1 / gain_x, 0.0, -left / gain_x, 0.0, 1 / gain_y, -top / gain_y)


def _is_batch(value: Any) -> bool:
    return isinstance(value, Mapping) and {"batch_idx", "cls", "bboxes"} <= value.keys()
