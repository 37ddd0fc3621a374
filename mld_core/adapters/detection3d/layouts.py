"""What a framework's 3D detectors have in common: where things are, what a call returns, how truth looks.

One subclass per framework; see `mmdet3d`, `openpcdet`, `det3d`, `mit_bevfusion` beside this file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from mld_core.adapters.base import Call, Truth, image_box_column
from mld_core.adapters.detection3d.frames import NativeFrame
from mld_core.adapters.detection3d.heads.base import flat_names
from mld_core.adapters.outputs import as_array
from mld_core.adapters.settings import follow, numbers, read
from mld_core.geometry.boxes import count_points_in_boxes
from mld_core.geometry.conventions import to_standard

Range = tuple[float, float, float, float, float, float]


class Layout(ABC):
    """How one framework lays out a 3D detector.

    Attributes:
        name: of the framework, as run.json shows it.
        head_paths: where a head may be, dotted, first that exists.
        range_paths: where six numbers of the point cloud's range may be.
    """

    name: ClassVar[str]
    head_paths: ClassVar[tuple[str, ...]] = ()
    range_paths: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: Any) -> None:
        self.model = model

    @staticmethod
    @abstractmethod
    def fits(model: Any) -> bool:
        """Whether the (unwrapped) model is of this framework: by its attributes."""

    def heads(self) -> Iterator[Any]:
        """The modules that may be the first stage's head."""
        for path in self.head_paths:
            module = follow(self.model, path)
            if isinstance(module, torch.nn.Module):
                yield module

    def roi_head(self) -> Any:
        """The second stage, None in one-stage detectors."""
        return None

    @abstractmethod
    def frames(self, output: Any) -> list[NativeFrame] | None:
        """The final detections in what a call returned; None where it is something else (losses)."""

    @abstractmethod
    def truths(self, truth: Any) -> Sequence[Truth | None] | None:
        """True boxes in what the framework's batch (or its arguments) holds; None if not understood."""

    def truth_in(self, call: Call) -> Any:
        """The part of a call's arguments that may hold true boxes, None if none does."""
        del call
        return None

    def complete(self, found: Sequence[Truth | None], batch: Any, dataset: Any) -> None:
        """Adds to true boxes what the data set knows of them and the batch does not hold."""
        del found, batch, dataset

    def metas(self, call: Call) -> Any:
        """What a call holds of each frame beside its data: a mapping each, None where there is none."""
        del call

    def class_names(self) -> list[str] | None:
        """Names in label order as the framework keeps them beside the head, None if it does not."""
        return None

    def pc_range(self) -> Range | None:
        """x_min, y_min, z_min, x_max, y_max, z_max in metres; None where the model does not tell."""
        for path in self.range_paths:
            found = numbers(follow(self.model, path))
            if found is not None and len(found) == 6:
                return (found[0], found[1], found[2], found[3], found[4], found[5])
        return None

    def native(self, batch: Mapping[str, Any], training: bool) -> Any:
        """What the model is called with for its framework's own batch, (args, kwargs); None: as it is."""
        del batch, training

    def arguments(self, points: Sequence[Tensor], batch: Mapping[str, Any]) -> Any:
        """What the model is called with for bare points: (args, kwargs).

        Args:
            points: per frame (N, C).
            batch: what else was given: `img`, `img_metas`, `input_ids`.

        Raises:
            ValueError: this framework's models take their own batches only; the message says which.
        """
        del points, batch
        raise ValueError(
            f"a {self.name} model takes no bare points: give its own batch, as the framework's loader "
            "collates it"
        )


def box_convention(boxes: Any) -> str:
    """The convention of an MMDetection3D box object in the LiDAR frame: `YAW_AXIS` came with 1.0.0rc0.

    Raises:
        ValueError: camera or depth boxes, which say nothing without their calibration.
    """
    kind = type(boxes).__name__
    if "Camera" in kind or "Depth" in kind:
        raise ValueError(
            f"{kind} are not in the LiDAR frame; convert them first (boxes.convert_to(Box3DMode.LIDAR, ...))"
        )
    return "mmdet3d>=1.0" if hasattr(boxes, "YAW_AXIS") else "mmdet3d<1.0"


_LIDAR: Final = 0  # `Box3DMode.LIDAR`
_AHEAD: Final = ((0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0))  # camera to LiDAR axes


def lidar_rows(boxes: Any, meta: Any) -> tuple[Tensor, str]:
    """Rows of an MMDetection3D box object in the LiDAR frame, and their convention.

    Camera boxes (FCOS3D, PGD, SMOKE) are brought there by the sample's own `lidar2cam`, where it has one;
    those without, and the boxes of depth sensors (VoteNet), into a LiDAR's axes (x ahead, y left, z up) at
    the sensor's place. The conversion of centres, sizes and yaw is the framework's; it leaves
    velocities alone.

    Raises:
        ValueError: boxes of another frame without a conversion.
    """
    kind, convert = type(boxes).__name__, getattr(boxes, "convert_to", None)
    camera = "Camera" in kind
    if not (camera or "Depth" in kind) or not callable(convert):
        return tensor(boxes), box_convention(boxes)
    given = as_array(read(meta, "lidar2cam")) if camera and read(meta, "lidar2cam") is not None else None
    matrix = None if given is None or given.shape != (4, 4) else np.linalg.inv(given.astype(np.float64))
    made = convert(_LIDAR, matrix)
    rows, was = tensor(made), tensor(boxes)
    if camera and rows.shape[1] == 9:
        turn = rows.new_tensor(_AHEAD if matrix is None else matrix[:3, :3])
        flat = torch.stack([was[:, 7], torch.zeros_like(was[:, 7]), was[:, 8]], 1)  # right and ahead
        rows = torch.cat([rows[:, :7], (flat @ turn.T)[:, :2]], 1)
    return rows, box_convention(made)


def tensor(value: Any) -> Tensor:
    """A tensor of a box object, an array, a list or a tensor."""
    value = getattr(value, "tensor", value)
    return value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def truth_of(boxes: Any, labels: Any, convention: str, input_id: str | None = None, **columns: Any) -> Truth:
    """A `Truth` from native rows; labels below 0 (to be ignored) are kept and flagged."""
    rows = as_array(tensor(boxes)).astype(np.float32)
    rows = rows.reshape(0, 7) if rows.size == 0 else rows
    rows = rows if rows.shape[1] in {7, 9} else rows[:, :7]
    standard, velocities = to_standard(rows, convention)
    names = as_array(tensor(labels)).astype(np.int64).reshape(-1)
    found = {key: as_array(value) for key, value in columns.items() if value is not None}
    if (names < 0).any():
        found["ignore"] = names < 0
    if velocities is not None and not np.isfinite(velocities).any():
        velocities = None
    return Truth(np.asarray(standard, np.float32), names, input_id, velocities, found)


_FACTS: Final = {"difficulty": "difficulty", "occluded": "occlusion", "truncated": "truncation"}
N_ATTRIBUTES: Final = 8
"""Of nuScenes; MMDetection3D numbers "none" behind them."""

_POINTS: Final = ("num_lidar_pts", "num_radar_pts")  # the devkit of nuScenes counts both


def facts_of(info: Mapping[str, Any], n: int) -> dict[str, Any]:
    """What a data set says of its `n` true boxes beside class and place: columns of the truths table."""
    known = {key: as_array(info[key]) for key in (*_FACTS, *_POINTS) if info.get(key) is not None}
    known = {key: values for key, values in known.items() if values.shape == (n,)}
    found = {ours: known[key] for key, ours in _FACTS.items() if key in known}
    attributes = None if info.get("attr_labels") is None else as_array(info["attr_labels"])
    if attributes is not None and attributes.shape == (n,):
        found["attribute"] = np.where(attributes < N_ATTRIBUTES, attributes, -1)
    found |= image_box_column(info.get("gt_bboxes"), n)
    counts = [known[key] for key in _POINTS if key in known]
    return {**found, "n_points": sum(counts)} if counts else found


def points_of(batch: Mapping[str, Any], frame: int, boxes: Any, convention: str) -> Any:
    """Points in each true box of a frame, counted in the batch's cloud; None without one.

    The cloud is (P, 1 + C): the number of the frame, x, y, z, ...
    """
    points: Any = batch.get("points")
    if getattr(points, "ndim", 0) != 2 or points.shape[1] < 4:
        return None
    cloud, rows = as_array(points), as_array(tensor(boxes)).astype(np.float32)
    standard, _ = to_standard(rows, convention)
    own = cloud[cloud[:, 0] == frame][:, 1:4].astype(np.float32)
    return count_points_in_boxes(own, np.asarray(standard, np.float32))


def names_of(*holders: Any) -> list[str] | None:
    """The first class names among `CLASSES`, `classes` and `class_names` of these holders."""
    for holder in holders:
        found = read(holder, "classes", "CLASSES", "class_names")
        names = flat_names(list(found) if isinstance(found, tuple) else found)
        if names:
            return names
    return None
