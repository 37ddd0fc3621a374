"""KITTI's figures of a pass of 3D boxes, as far as its records hold what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection3d.places import (
    Beside,
    angles_of,
    beside_of,
    camera_boxes,
    dont_care_of,
    image_boxes_of,
    true_image_boxes,
)
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, Truths
from mld_core.evaluation.metrics.kitti import (
    NEIGHBOURS,
    KittiFrames,
    KittiState,
    difficulties,
    kitti_precisions,
)

NO_DIFFICULTY = -2
"""In place of a difficulty that is not known; counts as harder than hard."""

CLASSES = frozenset({"car", "van", "truck", "pedestrian", "person_sitting", "cyclist", "tram", "misc"})
NO_LEVEL = (
    "KITTI's AP40 is not computed: of true boxes with an image box neither the difficulty is recorded nor "
    "what it is made of, occlusion and truncation. MMDetection3D's batches hold them; your own truths take "
    "them as difficulty, occlusion, truncation."
)
NO_CAMERA = (
    "KITTI's image AP40 is not computed: not every judged frame has its calibration (lidar2cam and cam2img), "
    "so predictions have no image box."
)
NO_IMAGE_BOX = (
    "KITTI's image AP40 is not computed: no true box has an image box. MMDetection3D's and OpenPCDet's "
    "(gt_boxes2d) are recorded where the batch holds them; your own truths take them as image_boxes."
)


def kitti_state(records: BoxRecords) -> KittiState | None:
    """What KITTI's metrics of a pass, or of a part of it, are computed from.

    Where every judged frame has its calibration, predictions are projected as KITTI's tools do: what lies
    outside the image is left out, what is too low in it is ignored, and boxes are compared in the camera's
    frame. The image metric needs the truths' image boxes too; what is found in DontCare regions is no false
    alarm there, where the records name them.
    """
    if "difficulty" not in records.truth_columns.column_names:
        return None
    true_image = true_image_boxes(records)
    predictions = records.predictions.take(np.flatnonzero(records.labelled[records.predictions.frame]))
    image, inside = image_boxes_of(records, predictions)
    if image is None and not records.labelled.any():
        image = np.zeros((0, 4))  # a part without judged frames lacks no camera
    if true_image is None:
        true_image = np.full((len(records.truths), 4), np.nan)
    drawn = np.asarray(np.isfinite(true_image).all(axis=1))
    flat = image is not None and bool(drawn.all())
    beside = beside_of(records)
    truths, level, true_image = _with_neighbours(records, beside, levels(records, true_image), true_image)
    frames = KittiFrames(
        replace(predictions, box=camera_boxes(records, predictions)),
        replace(truths, box=camera_boxes(records, truths)),
        level,
        every_class(records.class_names),
        image,
        true_image if flat else None,
        angles_of(records, predictions) if flat else None,
        angles_of(records, truths) if flat else None,
        *dont_care_of(records),
    )
    return KittiState.of(
        frames,
        number=records.frames.num_rows,
        seen=inside,
        drawn=drawn,
        told=beside.told | ~records.labelled,
    )


def every_class(class_names: Sequence[str]) -> list[str]:
    """The run's classes, and behind them what KITTI ignores beside one of them.

    Example:
        >>> every_class(["Pedestrian", "Car", "Van"])
        ['Pedestrian', 'Car', 'Van', 'person_sitting']
    """
    names = {name.lower() for name in class_names}
    return [
        *class_names,
        *(other for own, other in NEIGHBOURS.items() if own in names and other not in names),
    ]


def _with_neighbours(
    records: BoxRecords, beside: Beside, level: Ints, image: Floats
) -> tuple[Truths, Ints, Floats]:
    """Truths, difficulties and image boxes with the neighbours among them, in the annotations' order."""
    truths, own = records.truths, len(records.class_names)
    number = {name: own + at for at, name in enumerate(every_class(records.class_names)[own:])}
    rows = [at for at, name in enumerate(beside.name) if name in number]
    if not rows:
        return truths, level, image
    frame = np.concatenate([truths.frame, beside.frame[rows]])
    within = np.arange(len(truths)) - np.searchsorted(truths.frame, truths.frame)
    order = np.lexsort((np.concatenate([within, beside.row[rows] - 0.5]), frame))
    ignored = np.ones(len(rows), np.bool_)
    label = np.array([number[beside.name[at]] for at in rows], truths.label.dtype)
    every = Truths(
        frame[order],
        np.concatenate([truths.label, label])[order],
        np.concatenate([truths.box, beside.box[rows].astype(truths.box.dtype)])[order],
        np.concatenate([truths.ignore, ignored])[order],
        np.concatenate([truths.crowd, ~ignored])[order],
    )
    none = np.full(len(rows), NO_DIFFICULTY)
    return (
        every,
        np.concatenate([level, none])[order],
        np.concatenate([image, beside.image_box[rows]])[order],
    )


def kitti_figures(
    states: Sequence[KittiState | None], class_names: Sequence[str]
) -> tuple[dict[str, float | None], tuple[str, ...]]:
    """KITTI's AP40 of some frames, and sentences on what is not computed; nothing where it is no KITTI's."""
    known = [one for one in states if one is not None]
    if not known:
        return {}, ()
    state = KittiState.merge(known)
    if not (state.level != NO_DIFFICULTY).any():
        named = {name.lower() for name in class_names} <= CLASSES
        return {}, (NO_LEVEL,) if named and state.drawn.any() else ()
    flat = state.pairs[0] is not None
    found = kitti_precisions(state, every_class(class_names)).summary()
    notes = [] if flat else [_why_no_image(state)]
    notes += _beside(class_names, state.told)
    return {name: value for name, value in found.items() if flat or "image" not in name}, tuple(notes)


def levels(records: BoxRecords, true_image: NDArray[np.floating]) -> Ints:
    """(G,) difficulty of the truths, as recorded, else by KITTI's rule; -1 beyond, else `NO_DIFFICULTY`."""
    given, hidden, cut = (_numbers(records, name) for name in ("difficulty", "occlusion", "truncation"))
    made = np.where(np.isnan(given), NO_DIFFICULTY, given).astype(np.int64)
    height = np.abs(true_image[:, 3] - true_image[:, 1])
    rule = np.isnan(given) & np.isfinite(height) & np.isfinite(hidden) & np.isfinite(cut)
    made[rule] = difficulties(height[rule], hidden[rule], cut[rule])
    return made


def _numbers(records: BoxRecords, name: str) -> Floats:
    """(G,) a column of the truths, NaN where it says nothing."""
    if name not in records.truth_columns.column_names:
        return np.full(len(records.truths), np.nan)
    column = records.truth_columns[name].cast("float64")
    return np.asarray(column.to_numpy(), np.float64)


def _why_no_image(state: KittiState) -> str:
    if state.height is None:
        return NO_CAMERA
    if not state.drawn.any():
        return NO_IMAGE_BOX
    lacking = int((~state.drawn).sum())
    return (
        f"KITTI's image AP40 is not computed: {lacking} of {len(state.drawn)} true boxes have no image box, "
        "and all of them need one."
    )


def _beside(class_names: Sequence[str], told: Bools) -> list[str]:
    """What KITTI ignores beside a class, where it is no class of the run and not every frame names it."""
    names = {name.lower() for name in class_names}
    missing = [(own, other) for own, other in NEIGHBOURS.items() if own in names and other not in names]
    return [
        f"KITTI's figures: {other} is no class of this run, and of {int((~told).sum()):,} of {len(told):,} "
        f"frames it is not recorded where there is one. A {own} found there is a false alarm; KITTI ignores "
        "it. It is recorded where the data set's infos name it, or as `neighbours` of the calibration."
        for own, other in missing
        if not told.all()
    ]
