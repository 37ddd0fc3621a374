"""Pictures of samples, recorded or asked for; probabilities of logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.evaluation.metrics.classification import log_probabilities
from mld_core.records.format.layout import RunKey
from mld_core.records.read.reader import select
from mld_core.records.store.png import encode_png
from mld_core.views.units import PassUnits

LONG_SIDE = 64

ImageFn = Callable[[str, str], Any]
"""(dataset, input_id) -> the image of a sample, or None."""


def stated(logits: NDArray[np.float64], *, sigmoid: bool) -> NDArray[np.float64]:
    """(K,) probabilities of (K,) finite logits: softmax, or each class's own sigmoid.

    Example:
        >>> stated(np.array([1.0, 1.0]), sigmoid=False).round(3).tolist()
        [0.5, 0.5]
    """
    return np.asarray(np.exp(log_probabilities(logits[None], sigmoid=sigmoid))[0])


def stored_images(units: PassUnits, ids: set[str]) -> dict[str, bytes]:
    """Thumbnails of some input ids of the split, from the newest pass of the run that has them."""
    result, store = units.result, units.result.store
    run = RunKey(result.model_name, result.version_name)
    if not store.run_dir(run).is_dir():
        return {}
    found: dict[str, bytes] = {}
    wanted = pa.array(sorted(ids), pa.string())
    for one in select(store, run, dataset_type=units.dataset, n_epoch=None, passes="all"):
        if not one.has("media"):
            continue
        for batch in one.batches("media", ["input_id", "png"], 4_096):
            table = pa.Table.from_batches([batch])
            hit = table.filter(pc.is_in(table["input_id"], wanted)).to_pydict()
            found.update({key: png for key, png in zip(hit["input_id"], hit["png"], strict=True) if png})
    return found


def asked_images(units: PassUnits, ids: Iterable[str], image_fn: ImageFn) -> dict[str, bytes]:
    """Thumbnails from the caller's `image_fn`."""
    images = {one: image_fn(units.dataset, one) for one in ids}
    return {one: encode_png(small(np.asarray(image))) for one, image in images.items() if image is not None}


def small(image: NDArray[Any], long_side: int = LONG_SIDE) -> NDArray[np.uint8]:
    """At most `long_side` pixels on the longer side, by averaging whole blocks; uint8.

    Args:
        image: (H, W), (H, W, C) or (C, H, W), C = 1, 3 or 4; uint8, or float in [0, 1] (others: stretched).
        long_side: pixels.

    Example:
        >>> small(np.ones((128, 64))).shape
        (64, 32, 1)
    """
    if image.ndim == 3 and image.shape[-1] not in {1, 3, 4}:
        image = np.moveaxis(image, 0, -1)
    values = (image[:, :, None] if image.ndim == 2 else image).astype(np.float32)
    if image.dtype != np.uint8:
        values = np.nan_to_num(values)
        low, high = float(values.min()), float(values.max())
        values = 255 * ((values - low) / max(high - low, 1e-12) if low < 0 or high > 1 else values)
    step = -(-max(values.shape[:2]) // long_side)
    height, width = (max(1, size // step) for size in values.shape[:2])
    blocks = values[: height * step, : width * step]
    if step > 1 and min(values.shape[:2]) >= step:
        blocks = blocks.reshape(height, step, width, step, -1).mean(axis=(1, 3))
    else:
        blocks = values[::step, ::step]
    return np.asarray(np.round(blocks), np.uint8)
