"""The images boxes are drawn on: recorded thumbnails or the caller's, each with its place on the canvas.

Recorded boxes are pixels of the tensor the recorder was given, and the unit table holds them in pixels of the
original image (`samples.affine` leads there). A canvas is one of these two frames: that of the tensor, in
which thumbnails were taken, or that of the caller's image where it is the original.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mld_core.records.store.png import encode_png
from mld_core.views.samples import ImageFn, small, stored_images
from mld_core.views.units import PassUnits

try:
    from PIL import Image
except ImportError:  # photographs are larger as PNG; that is all
    Image = None  # type: ignore[assignment]

LONG_SIDE = 480
THUMBNAIL_SIDE = 256
"""Pixels of the longer side of recorded thumbnails of detections."""

MOST_PNG = 40_000
JPEG_QUALITY = 82
SAME_SHAPE = 0.02
"""Largest relative difference of aspect ratios at which an image still counts as the recorded one, scaled."""


@dataclass(frozen=True)
class Canvas:
    """The frame the boxes of an image are drawn in.

    Attributes:
        width: Pixels, 0 where unknown.
        height: Likewise.
        scale: What leads to the original image: original = box * scale + shift.
        shift: Likewise, pixels of the original.
        original: Boxes are drawn as they are in the unit table.
    """

    width: float = 0.0
    height: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    original: bool = False

    @property
    def straight(self) -> bool:
        """Whether both frames are the same."""
        return self.scale == (1.0, 1.0) and self.shift == (0.0, 0.0)

    def placed(self, box: Sequence[float | None]) -> list[float] | None:
        """A box of the unit table on the canvas, at a tenth of a pixel; None where it has no numbers.

        Example:
            >>> Canvas(100, 80, scale=(2.0, 2.0), shift=(10.0, 0.0)).placed([10, 0, 110, 40])
            [0.0, 0.0, 50.0, 20.0]
        """
        if any(value is None or not np.isfinite(value) for value in box):
            return None
        values = np.asarray(box, np.float64)
        if not (self.original or self.straight):
            values = (values - np.tile(self.shift, 2)) / np.tile(self.scale, 2)
            values = np.concatenate([np.minimum(values[:2], values[2:]), np.maximum(values[:2], values[2:])])
        return [float(one) for one in np.round(values, 1)]

    def recorded(self, drawn: Sequence[float], before: Sequence[float] | None = None) -> list[float]:
        """A box that was drawn on the canvas, as the unit table would have it.

        Args:
            drawn: (4,) pixels of the canvas.
            before: The box of the unit table that was drawn there: what of it was left as it is stays exact.

        Example:
            >>> Canvas(100, 80, scale=(2.0, 2.0), shift=(10.0, 0.0)).recorded([0, 0, 50, 25])
            [10.0, 0.0, 110.0, 50.0]
            >>> Canvas().recorded([1.2, 0, 5, 5], before=[1.234, 0, 3, 5])
            [1.234, 0.0, 5.0, 5.0]
        """
        values = np.asarray(drawn, np.float64)
        if not (self.original or self.straight):
            values = values * np.tile(self.scale, 2) + np.tile(self.shift, 2)
        shown = None if before is None else self.placed(before)
        made = [round(float(one), 3) for one in values]
        if before is not None and shown is not None:
            kept = zip(made, drawn, before, shown, strict=True)
            made = [float(old) if abs(now - was) < 0.051 else new for new, now, old, was in kept]
        return made


@dataclass(frozen=True)
class Picture:
    """An image on its canvas.

    Attributes:
        data: PNG or JPEG.
        canvas: The frame.
        width: Canvas pixels it covers from the left; may go beyond the canvas by part of a pixel of its own.
        height: Likewise from the top.
    """

    data: bytes
    canvas: Canvas
    width: float
    height: float


def canvases(units: PassUnits, ids: Iterable[str]) -> dict[str, Canvas]:
    """Sizes and affines of some images, as recorded; empty where the records are gone."""
    records = units.records
    if records is None:
        return {}
    names = [item.name for item in records.schema("samples")]
    wanted = [one for one in ("input_id", "image_width", "image_height", "affine") if one in names]
    table = records.table("samples", wanted)
    table = table.filter(pc.is_in(table["input_id"].cast(pa.string()), pa.array(sorted(ids), pa.string())))
    made = {}
    for row in table.to_pylist():
        canvas = Canvas(float(row.get("image_width") or 0), float(row.get("image_height") or 0))
        affine = row.get("affine")
        # One that rotates or shears was left out by the evaluation too.
        if affine is not None and len(affine) == 6 and affine[1] == 0 == affine[3]:
            canvas = replace(canvas, scale=(affine[0], affine[4]), shift=(affine[2], affine[5]))
        made[str(row["input_id"])] = canvas
    return made


def pictures(
    units: PassUnits, order: Sequence[str], image_fn: ImageFn | None, budget: int
) -> tuple[dict[str, Picture], dict[str, Canvas], list[str]]:
    """Images of some input ids, the most important first, until the budget is spent.

    Args:
        units: A pass of 2D boxes.
        order: Input ids.
        image_fn: The caller's images; they are sharper, thumbnails stand in where it has none.
        budget: Bytes of base64.

    Returns:
        The images, the recorded canvas of every id, and sentences about what was left out.
    """
    known = canvases(units, order)
    thumbnails = stored_images(units, set(order))
    made: dict[str, Picture] = {}
    dropped, odd = 0, 0
    for one in order:
        canvas = known.get(one, Canvas())
        # Once the budget is spent no image is asked for: reading them may be slow.
        image = image_fn(units.dataset, one) if image_fn is not None and not dropped else None
        found = None if image is None else _asked(np.asarray(image), canvas)
        odd += image is not None and found is None
        if found is None and one in thumbnails:
            found = _stored(thumbnails[one], canvas)
        if found is None:
            continue
        size = 4 * -(-len(found.data) // 3)
        if size > budget:
            dropped += 1
            continue
        budget -= size
        made[one] = found
    notes = []
    if dropped:
        notes.append(f"{units.dataset}: {dropped} images were left out to keep the file small.")
    if odd:
        notes.append(
            f"{units.dataset}: {odd} images of image_fn have another shape than the recorded ones, so boxes "
            "would not lie on them; they are not shown."
        )
    return made, known, notes


def _asked(image: NDArray[Any], canvas: Canvas) -> Picture | None:
    """The caller's image: the recorded one, perhaps scaled, or the original of a recorded transform."""
    if image.ndim == 3 and image.shape[-1] not in {1, 3, 4}:
        image = np.moveaxis(image, 0, -1)
    if image.ndim not in {2, 3} or 0 in image.shape:
        return None
    height, width = image.shape[:2]
    step = -(-max(height, width) // LONG_SIDE)
    pixels = small(image, LONG_SIDE)
    if canvas.width == 0 or (not canvas.straight and (width, height) != (canvas.width, canvas.height)):
        canvas = replace(canvas, width=float(width), height=float(height), original=True)
    across, down = canvas.width / width, canvas.height / height
    if abs(across / down - 1) > SAME_SHAPE:
        return None
    return Picture(_encoded(pixels), canvas, pixels.shape[1] * step * across, pixels.shape[0] * step * down)


def _stored(png: bytes, canvas: Canvas) -> Picture | None:
    """A recorded thumbnail: every `step`-th pixel of the tensor, or the mean of as many."""
    width, height = struct.unpack(">II", png[16:24])
    if canvas.width == 0:
        if max(width, height) >= THUMBNAIL_SIDE:
            return None  # how far it was shrunk is not known
        canvas = replace(canvas, width=float(width), height=float(height))
    step = -(-int(max(canvas.width, canvas.height)) // THUMBNAIL_SIDE)
    if (-(-int(canvas.width) // step), -(-int(canvas.height) // step)) == (width, height):
        return Picture(png, canvas, float(width * step), float(height * step))
    return Picture(png, canvas, canvas.width, canvas.height)


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    """PNG, or JPEG where that would be large and the means are there."""
    png = encode_png(pixels)
    if len(png) <= MOST_PNG or Image is None or pixels.shape[2] == 4:
        return png
    held = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
        held, "JPEG", quality=JPEG_QUALITY
    )
    return min(png, held.getvalue(), key=len)
