"""Thumbnails for the report: `image_fn`'s images, shrunk at the event and encoded on the writer thread.

An image is worth keeping once, not once for each epoch: they are stored with the first pass of each split
that a launch records. Readers find the image of a sample of another epoch by its id.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from mld_core.adapters.outputs import as_array
from mld_core.records.format.layout import PassKey
from mld_core.records.format.schema import media_schema
from mld_core.records.store.png import encode_png
from mld_core.tracing.guard import Guard
from mld_core.tracing.tables.columns import Columns, PassState, table_of

LONG_SIDE: Final = 64
DETECTION_LONG_SIDE: Final = 256  # boxes are drawn into these
DETECTION_PICTURES: Final = 2000  # of one rank in one pass: a gallery shows few, and they are large
_CHANNELS: Final = frozenset({1, 3, 4})


class Pictures:
    """Asks `image_fn` for the images of the passes that store them.

    Args:
        image_fn: batch -> images: (N, C, H, W), (N, H, W, C) or (N, H, W), or a list of N single images
            (arrays, tensors, PIL images, None). uint8, or float in [0, 1]; other floats are stretched image
            by image.
        guard: tells what goes wrong; the rows are recorded all the same.
        long_side: pixels of the longer side at most.
        most: images of one pass at most.
    """

    def __init__(
        self,
        image_fn: Callable[[Any], Any] | None,
        guard: Guard,
        *,
        long_side: int = LONG_SIDE,
        most: int | None = None,
    ) -> None:
        self.image_fn = image_fn
        self.guard = guard
        self.long_side = long_side
        self.most = most
        self._taken: dict[PassKey, int] = {}
        self._first: dict[str, PassKey] = {}

    def wanted(self, key: PassKey) -> bool:
        """Whether a pass stores images: the first of its split."""
        return self.image_fn is not None and self._first.setdefault(key.dataset_type, key) == key

    def renamed(self, key: PassKey, final: PassKey) -> None:
        """A pass turned out to be another one: the split it was taken for has no images yet."""
        if self._first.get(key.dataset_type) == key:
            del self._first[key.dataset_type]
            self._first.setdefault(final.dataset_type, final)

    def of(self, batch: Any, key: PassKey) -> Any:
        """The shrunk images of a batch, ours to keep; None where the pass stores none."""
        if self.image_fn is None:
            return None
        taken = self._taken.get(key, 0)
        if not self.wanted(key) or (self.most is not None and taken >= self.most):
            return None
        with self.guard.catch("reading the images (image_fn)", lost="the thumbnails of that batch"):
            images = shrink(self.image_fn(batch), self.long_side)
            self._taken[key] = taken + len(images)
            return images
        return None


def shrink(images: Any, long_side: int = LONG_SIDE) -> Any:
    """Average a batch of images down to about twice `long_side` at most, so that little memory is held.

    Args:
        images: what `image_fn` returned.
        long_side: pixels of the longer side.

    Returns:
        A new tensor on the same device, or a list of small arrays.
    """
    if isinstance(images, np.ndarray) and images.ndim >= 3 and images.dtype != object:
        images = torch.from_numpy(np.ascontiguousarray(images))
    if isinstance(images, Tensor):
        with torch.no_grad():
            return _shrink_tensor(images.detach(), long_side)
    return [None if image is None else _shrink_one(image, long_side) for image in images]


def _shrink_tensor(images: Tensor, long_side: int) -> Tensor:
    if images.ndim not in {3, 4}:
        raise ValueError(
            f"image_fn returned a tensor of shape {tuple(images.shape)}: expected (N, C, H, W), "
            "(N, H, W, C) or (N, H, W)"
        )
    last = images.ndim == 4 and images.shape[1] not in _CHANNELS and images.shape[3] in _CHANNELS
    planes = images.movedim(3, 1) if last else images[:, None] if images.ndim == 3 else images
    step = math.ceil(max(planes.shape[-2:]) / long_side)
    if step <= 1:
        return planes.clone(memory_format=torch.contiguous_format)
    whole = functional.avg_pool2d(planes.float(), step, ceil_mode=True)
    return whole.to(torch.uint8) if planes.dtype == torch.uint8 else whole


def _shrink_one(image: Any, long_side: int) -> Any:
    if isinstance(image, Tensor):
        return shrink(image[None], long_side)[0]  # where it is: the writer thread brings it to the host
    array = np.asarray(image)
    step = math.ceil(max(_height_width(array)) / long_side)
    rows_last = array.ndim == 2 or array.shape[-1] in _CHANNELS
    return np.array(array[::step, ::step] if rows_last else array[:, ::step, ::step])


def _height_width(array: npt.NDArray[Any]) -> tuple[int, int]:
    if array.ndim not in {2, 3}:
        raise ValueError(
            f"image_fn returned an image of shape {array.shape}: expected (H, W), (C, H, W) or (H, W, C)"
        )
    shape = array.shape
    if array.ndim == 2:
        return int(shape[0]), int(shape[1])
    return (int(shape[0]), int(shape[1])) if shape[-1] in _CHANNELS else (int(shape[1]), int(shape[2]))


def thumbnails(images: Any, rows: int, long_side: int = LONG_SIDE) -> list[bytes | None]:
    r"""PNGs of a batch, at most `long_side` pixels on the longer side; on the writer thread.

    Args:
        images: what `shrink` returned, as numpy arrays.
        rows: samples of the batch.
        long_side: pixels of the longer side.

    Raises:
        ValueError: another number of images than rows, or a shape that is no image.

    >>> [png[:4] for png in thumbnails(np.zeros((1, 1, 8, 8), np.float32), 1)]
    [b'\x89PNG']
    """
    if len(images) != rows:
        raise ValueError(f"image_fn returned {len(images)} images for {rows} samples: return one for each")
    return [None if image is None else encode_png(_pixels(as_array(image), long_side)) for image in images]


def _pixels(image: npt.NDArray[Any], long_side: int) -> npt.NDArray[np.uint8]:
    """(H, W, C) uint8 of one image with 1, 3 or 4 channels; others show their first channel."""
    height, width = _height_width(image)
    if image.ndim == 3 and image.shape[-1] not in _CHANNELS:
        image = np.moveaxis(image, 0, -1)
    image = image[:, :, None] if image.ndim == 2 else image
    if image.shape[2] not in _CHANNELS:
        image = image[:, :, :1]
    step = math.ceil(max(height, width) / long_side)
    image = image[::step, ::step]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    values = np.nan_to_num(image.astype(np.float32))
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:  # normalised: stretch what there is
        values = (values - low) / max(high - low, 1e-12)
    return np.asarray(np.round(values * 255), np.uint8)


def media_table(own: Columns, images: Any, context: PassState, long_side: int = LONG_SIDE) -> pa.Table:
    """The family `media` of a batch; nulls where no thumbnail can be made: an image never costs a row."""
    n = len(own["unit"])
    pngs: list[bytes | None] = [None] * n
    if images is not None:
        with context.guard.catch("making thumbnails", lost="the thumbnails of that batch"):
            pngs = thumbnails(images, n, long_side)
    return table_of({**own, "png": pa.array(pngs, pa.binary())}, context.media or media_schema(), n)
