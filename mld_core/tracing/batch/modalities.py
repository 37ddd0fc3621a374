"""What a 3D detector is given: points, images, what else was sensed; found in a batch, divided by frame.

`modalities` is for the training thread: names, types and shapes only. `by_frame` is for the writer thread: it
looks at the frame number that OpenPCDet writes before every point.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from mld_core.adapters.outputs import unpacked
from mld_core.tracing.batch.labels import find_inputs

_SENSED: Final = (
    "points", "img", "imgs", "img_inputs", "camera_imgs", "radar", "voxels", "coordinates", "voxel_coords",
)  # fmt: skip
_OF_POINTS: Final = ("voxels", "coordinates", "voxel_coords")  # made of the points
_STACKED: Final = "frames in one tensor"


def modalities(batch: Any) -> Any:
    """Every modality of a batch, by reference.

    Args:
        batch: a cloud (N, C), a list of them, or a mapping of a framework's or the user's own.

    Returns:
        A list of clouds, or a mapping of modality to its values.

    >>> modalities({"inputs": {"points": ["cloud"], "img": ["image"]}, "data_samples": []})
    {'points': ['cloud'], 'img': ['image']}
    """
    batch = unpacked(batch)
    if isinstance(batch, Mapping):
        inner = batch.get("inputs")
        named = inner if isinstance(inner, Mapping) else batch
        found = {key: unpacked(named[key]) for key in _SENSED if named.get(key) is not None}
        if "points" in found:
            found = {key: value for key, value in found.items() if key not in _OF_POINTS}
        if isinstance(named.get("batch_size"), int) and "points" in found:
            found[_STACKED] = named["batch_size"]
        return found or find_inputs(batch)
    if isinstance(batch, Tensor) and batch.ndim == 2:
        return [batch]
    return find_inputs(batch) if isinstance(batch, tuple) else batch


def by_frame(inputs: Any, n: int) -> Any:
    """What `modalities` gave, with one entry per frame wherever it can be divided.

    Args:
        inputs: as `modalities` gave them.
        n: frames.
    """
    if not isinstance(inputs, Mapping):
        return inputs
    parts = dict(inputs)
    stacked = parts.pop(_STACKED, None)
    points = parts.get("points")
    if isinstance(points, Tensor) and points.ndim == 2:
        if stacked is None:
            parts["points"] = [points]
        else:
            parts["points"] = [points[points[:, 0] == frame, 1:] for frame in range(n)]
    return parts


def frames_in(inputs: Any) -> int | None:
    """Frames of what `modalities` gave, None where it does not tell."""
    if isinstance(inputs, Mapping):
        if _STACKED in inputs:
            return int(inputs[_STACKED])
        points = inputs.get("points")
        if isinstance(points, (list, tuple)):
            return len(points)
        return 1 if isinstance(points, Tensor) and points.ndim == 2 else None
    return len(inputs) if isinstance(inputs, list) else None
