"""What every detector adapter answers: who it is for, where its thresholds are, what one forward call said.

An adapter reads attributes of the framework's objects and never imports the framework. It is asked in three
places: at start (`detect`, `n_class`, `class_names`, `thresholds`), around a hand-called traced call
(`applied`), and after a forward call (`parse`). Between the call and `parse` only references are held;
`parse` runs on the writer thread, without gradients, and changes nothing it reads.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np

from mld_core.adapters.outputs import Array, Detection3DOutput, DetectionOutput, as_array
from mld_core.adapters.settings import Setting, changed


@dataclass(frozen=True)
class Thresholds:
    """Limits on final detections.

    Attributes:
        score: smallest score that is kept.
        iou: overlap above which non-maximum suppression drops the lower-scored box.
        max_detections: most boxes kept per image or frame.

    None means: not stated.
    """

    score: float | None = None
    iou: float | None = None
    max_detections: int | None = None

    def over(self, other: Thresholds) -> Thresholds:
        """These limits, and where one is None the other's.

        >>> Thresholds(score=0.3).over(Thresholds(0.05, 0.5, 100))
        Thresholds(score=0.3, iou=0.5, max_detections=100)
        """
        return Thresholds(
            other.score if self.score is None else self.score,
            other.iou if self.iou is None else self.iou,
            other.max_detections if self.max_detections is None else self.max_detections,
        )

    def and_of(self, other: Thresholds) -> Thresholds:
        """What detections went through that passed both.

        >>> Thresholds(0.1, 0.5, 100).and_of(Thresholds(0.05, 0.4, None))
        Thresholds(score=0.1, iou=0.4, max_detections=100)
        """
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        score, iou, most = ([v for v in pair if v is not None] for pair in pairs)
        return Thresholds(max(score, default=None), min(iou, default=None), min(most, default=None))

    def without_iou(self) -> Thresholds:
        """The same for a model that suppresses nothing."""
        return Thresholds(self.score, None, self.max_detections)

    def filled(self) -> Thresholds:
        """With the fall-back of 2D where neither the user nor the model states one.

        >>> Thresholds(iou=0.7).filled()
        Thresholds(score=0.05, iou=0.7, max_detections=300)
        """
        return self.over(FALL_BACK_2D)

    @staticmethod
    def stated(score: Any = None, iou: Any = None, max_detections: Any = None) -> Thresholds:
        """From what a framework holds: any kind of number, or None; a number of detections below 1 is none.

        >>> Thresholds.stated(0, None, -1)
        Thresholds(score=0.0, iou=None, max_detections=None)
        """
        return Thresholds(
            None if score is None else float(score),
            None if iou is None else float(iou),
            None if max_detections is None or int(max_detections) < 1 else int(max_detections),
        )


# What counts where neither the user nor the model states a threshold.
FALL_BACK_2D: Final = Thresholds(0.05, 0.5, 300)
FALL_BACK_3D: Final = Thresholds(0.1, 0.2, 300)


@dataclass(frozen=True)
class Call:
    """One forward call of a watched module: references to what went in and what came out."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


@dataclass(frozen=True)
class FrameGeometry:
    """Where the boxes of one image live.

    Attributes:
        height, width: pixels of the image the boxes are relative to (the tracer's input tensor).
        affine: (6,) row-major 2x3 matrix from those pixels to the original image's, None: identity/unknown.
    """

    height: int
    width: int
    affine: tuple[float, ...] | None = None


@dataclass(frozen=True)
class FramePlace:
    """3D: where the frame of the boxes lies, as far as the framework's batch or data set says it.

    Attributes:
        ego_pose: (16,) row by row, the transform to the global frame, to be applied after `lidar2ego` where
            `calibration` has it; None: not known.
        calibration: plain lists by name: `lidar2ego`, `lidar2cam` (4x4), `cam2img` (3x3 to 4x4),
            `image_size` (height, width), `pressed` (true: in KITTI's figures boxes beside the image are
            pressed into its edge and count), `limit_range` (x, y, z, x, y, z: in KITTI's figures boxes whose
            bottom lies beyond are dropped), `dont_care` (image boxes of KITTI's regions without labels),
            `neighbours` (KITTI's vans and sitting persons that are no class of the run), `depth_frame` (true:
            the boxes came in a depth sensor's frame, of rooms); with several cameras `cameras`, a list of
            such dicts by camera.
    """

    ego_pose: tuple[float, ...] | None = None
    calibration: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnFinals:
    """Final detections that the framework's own post-processing made of a call, where a wrapper sees them.

    Attributes:
        rows: per image (N, 6 or more): xyxy, ..., score, class; 11 columns of rotated boxes, which stand in
            front of the score; of the framework's metric: one that a metric
            may write to is copied.
        thresholds: the limits they went through.
        geometry: per image, of the pixels the boxes are in.
        fitted: whether these are the images as given, which were fitted into the network's input.
        best_class: whether a place has one class only.
    """

    rows: Sequence[Any]
    thresholds: Thresholds
    geometry: Sequence[FrameGeometry]
    fitted: bool = False
    best_class: bool = False


@dataclass(frozen=True)
class ModelCall:
    """One forward call of the detector.

    Attributes:
        args, kwargs, output: of the detector itself.
        watched: alias of `Adapter.watched` -> its calls during this one, oldest first.
        training: `model.training` at the time of the call.
        thresholds: what `Adapter.thresholds` said at the time of the call (`applied` may have ended before
            `parse` runs); None: it is asked in `parse`.
        replayed: made in the walk over the training data after an epoch: the model was called for
            predictions, the true boxes are as the training pipeline gives them.
        final: what the framework itself made of the output, None: not known.
        truth: targets that came beside the call, as the batch has them; None: there were none.
        dataset: the loader's data set, which may say of a frame what its batch does not; None: not known.
        limit_range: the six limits that the framework's metric drops 3D boxes beyond; None: it drops none.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    watched: Mapping[str, Sequence[Call]] = field(default_factory=dict)
    training: bool = False
    thresholds: Thresholds | None = None
    replayed: bool = False
    final: OwnFinals | None = None
    truth: Any = None
    dataset: Any = None
    limit_range: Sequence[float] | None = None


@dataclass
class Parsed:
    """Final detections of one forward call.

    Attributes:
        output: boxes, scores, labels, logits, features; one entry per image or frame. 2D boxes are xyxy
            pixels of the tensor the tracer was given; 3D boxes are in the model's frame. Features may be
            wider than the store's limit: the tracer narrows them.
        activation: what turns the logits into scores: "softmax" (with a background or no-object column
            where `background` is set), "sigmoid", or "none" (no logits).
        background: column of the logits that means background or no object, None where there is none.
        cap_hit: per frame, whether the limit on their number cut detections off.
        thresholds: the limits these detections went through.
        quality: per frame (N,) a factor beside the class score (objectness, centerness, IoU), or None.
        geometry: per image, or None (3D).
        places: 3D: per frame, None where nothing is known of it; None: of none.
        facts: of the run, that its calls showed; they go to run.json.
        notes: what the user is to be told of that, once.
    """

    output: DetectionOutput | Detection3DOutput
    activation: str
    background: int | None
    cap_hit: list[bool]
    thresholds: Thresholds
    quality: list[Array] | None = None
    geometry: list[FrameGeometry] | None = None
    places: list[FramePlace | None] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass
class Truth:
    """The true boxes of one image or frame, in the frame of `Parsed.output`.

    Attributes:
        boxes: (N, 4) xyxy pixels, or (N, 7) cx, cy, cz, w, l, h, yaw.
        labels: (N,) int, from 0.
        input_id: the id the framework has for the frame, None if it has none.
        velocities: (N, 2) m/s or None.
        columns: further columns of the truths table, (N,) each: ignore, crowd, difficulty, occlusion,
            truncation, n_points; in 2D area (of the segment, in pixels of the original image); of 3D boxes
            image_box (N, 4), xyxy in pixels of the camera's image.
        rotated: (N, 5) of rotated 2D boxes, as `DetectionOutput.rotated`; None where they are upright.
    """

    boxes: Array
    labels: Array
    input_id: str | None = None
    velocities: Array | None = None
    columns: dict[str, Array] = field(default_factory=dict)
    rotated: Array | None = None


def image_box_column(given: Any, n: int) -> dict[str, Array]:
    """The column of `n` true boxes' image boxes; none where they are not given, or are none of (n, 4).

    >>> image_box_column([[0, 0, 4, 3]], 1), image_box_column(None, 1), image_box_column([[0, 0, 4]], 1)
    ({'image_box': array([[0., 0., 4., 3.]], dtype=float32)}, {}, {})
    """
    found = None if given is None else as_array(given)
    fits = found is not None and found.shape == (n, 4) and found.dtype.kind in "fiu"
    return {"image_box": found.astype(np.float32)} if found is not None and fits else {}


class Adapter(ABC):
    """Reads one family of detectors. Made for one model; holds a reference to it and no other state.

    Attributes:
        family: name of the family, as the run's info shows it.
        task: "detection" or "detection3d".
        uses_nms: False where `iou_thresh` has no effect (the tracer says so once).
        falls_back: whether `parse` gets the fall-back where neither the user nor the model states a limit.
            False: the models return final detections, which no fall-back may cut.
        needs_pc_range: 3D: whether a model that does not tell its range cannot be recorded without one.
    """

    family: ClassVar[str]
    task: ClassVar[str] = "detection"
    uses_nms: ClassVar[bool] = True
    falls_back: ClassVar[bool] = True
    needs_pc_range: ClassVar[bool] = False

    def __init__(self, model: Any) -> None:
        self.model = model

    @staticmethod
    @abstractmethod
    def detect(model: Any) -> bool:
        """Whether `model` (already unwrapped) is of this family."""

    @staticmethod
    def refuses(model: Any) -> str | None:
        """Why a model near this family is none of it, and what to do; None: nothing is to be said of it."""
        del model
        return None

    @abstractmethod
    def n_class(self) -> int:
        """Number of foreground classes.

        Raises:
            ValueError: the model does not tell; the message says what was looked at.
        """

    def class_names(self) -> list[str] | None:
        """Names of the foreground classes in label order, None if the model holds none."""
        return None

    def pc_range(self) -> tuple[float, ...] | None:
        """3D: x_min, y_min, z_min, x_max, y_max, z_max in metres; None where the model does not tell."""
        return None

    def bev_turned(self) -> bool:
        """3D: whether the model's bird's-eye maps are (B, C, x, y), not (B, C, y, x)."""
        return False

    def facts(self) -> dict[str, Any]:
        """What else run.json says of the model: names to plain values."""
        return {}

    def thresholds(self) -> Thresholds:
        """The limits the model itself states; None each where it states none."""
        return Thresholds()

    def places(self) -> Sequence[Setting | None]:
        """Where the model reads score, iou and number of detections, in this order; None: nowhere."""
        return ()

    @contextlib.contextmanager
    def applied(self, limits: Thresholds) -> Iterator[None]:
        """Within it the model works with `limits` (where it has such attributes); restored at the end."""
        asked = zip(self.places(), vars(limits).values(), strict=False)
        with changed([(place, value) for place, value in asked if place is not None and value is not None]):
            yield

    def watched(self) -> dict[str, Any]:
        """Alias -> sub-module whose calls `parse` needs beside the detector's own."""
        return {}

    def keep(self, alias: str | None, call: Call) -> Call:
        """The part of a call that `parse` needs; the rest is let go at once.

        Asked in the hook, where nothing can have changed the tensors yet: what the framework overwrites in
        place is cloned here. No synchronisation with the device.

        Args:
            alias: of the watched module, None: the detector itself.
            call: its call.
        """
        del alias
        return call

    @abstractmethod
    def parse(self, call: ModelCall, limits: Thresholds) -> Parsed | None:
        """The final detections of a call; None where it made none (losses only).

        Args:
            call: the call.
            limits: what the user asked for over what the model states; filters, never widens.
        """

    def truths(self, call: ModelCall, truth: Any) -> Sequence[Truth | None] | None:
        """True boxes from what the framework handed the model or the batch; None if not understood.

        A frame that is understood and has no labels is None in the list.

        Args:
            call: the call (its inputs tell sizes; its arguments may hold the targets).
            truth: targets as the framework's batch has them, or None: look into the call.
        """
        del call, truth
        return None
