"""The containers a detection adapter returns: one entry per image or frame in each list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def as_array(value: Any) -> Array:
    """A numpy array of a tensor (any device, any float type), an array or nested lists."""
    detach = getattr(value, "detach", None)
    if detach is not None:
        tensor = detach().cpu()
        return np.asarray(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())
    return np.asarray(value)


@dataclass
class _FrameLists:
    """Lists with one array per frame; checked and made numpy on creation."""

    boxes: Sequence[Any]
    scores: Sequence[Any]
    labels: Sequence[Any]
    logits: Sequence[Any] | None = None
    features: Sequence[Any] | None = None
    velocities: Sequence[Any] | None = None
    source_index: Sequence[Any] | None = None
    attributes: Sequence[Any] | None = None
    rotated: Sequence[Any] | None = None

    box_width: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if isinstance(self.boxes, (str, bytes)) or not hasattr(self.boxes, "__len__"):
            raise TypeError(f"boxes={type(self.boxes).__name__}: expected a list with one array per frame")
        frames = len(self.boxes)
        self.boxes = [self._matrix("boxes", i, b, self.box_width) for i, b in enumerate(self.boxes)]
        self.scores = self._list("scores", self.scores, frames, None)
        self.labels = self._list("labels", self.labels, frames, None, integers=True)
        self.logits = self._optional("logits", self.logits, frames, -1)
        self.features = self._optional("features", self.features, frames, -1)
        self.velocities = self._optional("velocities", self.velocities, frames, 2)
        if self.source_index is not None:
            self.source_index = self._list("source_index", self.source_index, frames, None, integers=True)
        if self.attributes is not None:
            self.attributes = self._list("attributes", self.attributes, frames, None, integers=True)
        self.rotated = self._optional("rotated", self.rotated, frames, 5)

    def __len__(self) -> int:
        return len(self.boxes)

    def _matrix(self, name: str, frame: int, value: Any, width: int) -> Array:
        array = as_array(value)
        if array.size == 0 and array.ndim < 2:
            array = array.reshape(0, max(width, 0))
        if array.ndim != 2 or (width >= 0 and array.shape[1] != width):
            expected = f"(N, {width})" if width >= 0 else "(N, K)"
            raise ValueError(f"{name}[{frame}] has shape {array.shape}; expected {expected}")
        return array.astype(np.float32)

    def _optional(
        self, name: str, values: Sequence[Any] | None, frames: int, width: int
    ) -> list[Array] | None:
        return None if values is None else self._list(name, values, frames, width)

    def _list(
        self, name: str, values: Sequence[Any], frames: int, width: int | None, *, integers: bool = False
    ) -> list[Array]:
        if len(values) != frames:
            raise ValueError(f"{name} has {len(values)} frames; expected {frames}, as many as boxes")
        out = []
        for i, value in enumerate(values):
            n = len(self.boxes[i])
            if width is not None:
                array = self._matrix(name, i, value, width)
                expected = f"({n}, {'K' if width < 0 else width})"
            else:
                array = as_array(value)
                array = array.astype(np.int64 if integers else np.float32)
                expected = f"({n},)"
                if array.ndim != 1:
                    raise ValueError(f"{name}[{i}] has shape {array.shape}; expected {expected}")
            if len(array) != n:
                raise ValueError(f"{name}[{i}] has shape {array.shape}; expected {expected}, one row per box")
            out.append(array)
        return out


@dataclass
class DetectionOutput(_FrameLists):
    """2D detections, one entry per image in each list.

    Attributes:
        boxes: (N, 4) x1, y1, x2, y2 in pixels.
        scores: (N,).
        labels: (N,) class indices from 0.
        logits: (N, K) or None.
        features: (N, D) or None.
        velocities: None in 2D.
        source_index: (N,) index of the query or anchor a box came from, or None.
        attributes: None in 2D.
        rotated: (N, 5) of rotated boxes cx, cy, w, h in pixels and the angle of w from x towards y, radians;
            `boxes` are the upright ones around them. None where boxes are upright.

    Raises:
        ValueError: a shape does not fit; the message holds the expected and the actual one.

    Examples:
        >>> DetectionOutput(boxes=[[[0, 0, 4, 4]]], scores=[[0.9]], labels=[[1]]).boxes[0].shape
        (1, 4)
        >>> DetectionOutput(boxes=[[[0, 0, 4]]], scores=[[0.9]], labels=[[1]])
        Traceback (most recent call last):
        ValueError: boxes[0] has shape (1, 3); expected (N, 4)
    """


@dataclass
class Detection3DOutput(_FrameLists):
    """3D detections, one entry per frame in each list.

    Attributes:
        boxes: (N, 7) cx, cy, cz, w, l, h, yaw: metres, radians, gravity centre, yaw counter-clockwise from
            +x.
        scores: (N,).
        labels: (N,) class indices from 0.
        logits: (N, K) or None.
        features: (N, D) or None.
        velocities: (N, 2) metres per second, or None.
        source_index: (N,) index of the query or anchor a box came from, or None.
        attributes: (N,) number of the predicted attribute (moving, parked, ...), -1: none; or None.
        rotated: None in 3D.

    Raises:
        ValueError: a shape does not fit; the message holds the expected and the actual one.

    Examples:
        >>> len(Detection3DOutput(boxes=[[]], scores=[[]], labels=[[]]))
        1
    """

    box_width: ClassVar[int] = 7


def unpacked(value: Any) -> Any:
    """What mmcv's DataContainers and the outer lists of test-time augmentation hold.

    >>> unpacked([[1, 2]])
    [1, 2]
    """
    while True:
        if hasattr(value, "data") and hasattr(value, "cpu_only"):
            value = value.data
        elif (
            isinstance(value, (list, tuple))
            and len(value) == 1
            and (isinstance(value[0], (list, tuple)) or hasattr(value[0], "cpu_only"))
        ):
            value = value[0]
        else:
            return value
