"""The diagnoses of boxes, D01 to D25: what each means and when it applies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.codes.diagnosis import Diagnoses, Diagnosis, diagnose, diagnosis
from mld_core.evaluation.metrics import tide
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, by_class

if TYPE_CHECKING:
    from mld_core.evaluation.detection.evidence import BoxEvidence

ROBUST_Z = 3.0
MAD_TO_SIGMA = 1.4826
SMALL_QUANTILE = 0.1
AGREEING_EPOCHS = 2
_EDGE = 1e-6


@dataclass(frozen=True)
class BoxDiagnoses:
    """What applies to which unit; arrays are (U,): kept predictions, missed truths, weak boxes.

    Attributes:
        found: Masks, primary code and severity, as the classification's.
        suspicion: How likely the label is at fault, 0 to 1; NaN where no label fault is in question.
        suggested: Class that the boxes on a missed truth say, -1 where none says another than its own.
        detail: Number in `DETAILS` of a badly localised box, -1 elsewhere.
    """

    found: Diagnoses
    suspicion: Floats
    suggested: Ints
    detail: NDArray[np.int8]


DETAILS = ("shift", "scale", "aspect", "swapped")
"""`swapped` is of 3D: width and length exchanged."""


def diagnose_boxes(e: BoxEvidence) -> BoxDiagnoses:
    """Ask every diagnosis about every unit."""
    count, suspicion = len(e.units.kept), np.full(e.rows, np.nan)
    asked = [] if e.miss_proba is None else [e.spurious]
    pairs = e.answers is not None and (e.usual is None or e.usual.confused is not None)
    if e.answers is not None:
        asked += [e.bad_box, e.wrong_class] if pairs else [e.bad_box]
    asked.append(e.missing_label)
    for suspects in asked:
        there = ~np.isnan(suspects.score)
        suspicion[there] = suspects.score[there]
    twice = e.on_rows(e.row_of, e.labels.twice, e.labels.duplicate)
    suspicion = np.fmax(suspicion, np.where(twice.flagged, twice.score, np.nan))
    suggested = np.full(e.rows, -1, np.int64)
    if pairs:
        missed = e.units.missed
        rows = slice(count, count + len(missed))
        said = ~np.isnan(e.wrong_class.score[rows])
        suggested[rows] = np.where(said, e.match.said.label[missed], -1)
    return BoxDiagnoses(diagnose(DIAGNOSES, e), suspicion, suggested, _details(e))


def _details(e: BoxEvidence) -> NDArray[np.int8]:
    """What is wrong with a badly localised box: its place, its size or its shape."""
    made = np.full(e.units.rows, -1, np.int8)
    loc = np.flatnonzero(e.units.judged & (e.units.events.type == tide.LOC))
    if len(loc) == 0:
        return made
    said = e.records.predictions.box[e.units.kept[loc]].astype(np.float64)
    true = e.records.truths.box[e.units.events.truth[loc]].astype(np.float64)
    (center, size), (true_center, true_size) = _center_size(said), _center_size(true)
    shift = (np.abs(center - true_center) / np.maximum(true_size, 1e-6)).max(axis=1)
    ratio = np.log(np.maximum(size, 1e-6) / np.maximum(true_size, 1e-6))
    scale, aspect = np.abs(ratio.sum(axis=1)) / 2, np.abs(ratio[:, 0] - ratio[:, 1]) / 2
    made[loc] = np.where(shift > np.maximum(scale, aspect), 0, np.where(scale >= aspect, 1, 2))
    return made


def _center_size(box: Floats) -> tuple[Floats, Floats]:
    if box.shape[1] == 4:
        return (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    return box[:, :2], box[:, 3:5]


@diagnosis(
    "D01",
    "Wrong class",
    3,
    "Targeted data or hard negatives for the pair of classes; re-fit the classification head.",
)
def wrong_class(e: BoxEvidence) -> Bools:
    """The box fits a truth of another class (TIDE Cls)."""
    return e.predicted(e.kind == tide.CLS)


@diagnosis(
    "D02", "Badly localised", 3, "Box-loss weight, anchors or stride; check how tightly the boxes are drawn."
)
def badly_localised(e: BoxEvidence) -> Bools:
    """Overlaps a truth of its class at 0.1 to 0.5 (TIDE Loc); `detail` says shift, scale or aspect."""
    return e.predicted(e.kind == tide.LOC)


@diagnosis("D03", "Class and box wrong", 3, "Treat as D05.")
def class_and_box_wrong(e: BoxEvidence) -> Bools:
    """Overlaps a truth, wrong in class and place (TIDE Both)."""
    return e.predicted(e.kind == tide.BOTH)


@diagnosis("D04", "Duplicate", 2, "Non-maximum suppression threshold, or the set loss.")
def duplicate(e: BoxEvidence) -> Bools:
    """The truth was already found by a better-scored box of the class (TIDE Dupe)."""
    return e.predicted(e.kind == tide.DUPE)


@diagnosis("D05", "Background", 3, "Hard negatives; look at D20 first.")
def background(e: BoxEvidence) -> Bools:
    """Overlaps no truth (TIDE Bkg)."""
    return e.predicted(e.kind == tide.BKG)


@diagnosis("D06", "Missed", 4, "Data for this size, occlusion or region.")
def missed(e: BoxEvidence) -> Bools:
    """Not found, and no prediction of any score overlaps it at 0.1."""
    return e.missed(e.alone)


@diagnosis("D07", "Missed by threshold", 3, "A threshold for the class, calibration.")
def missed_by_threshold(e: BoxEvidence) -> Bools:
    """Not found, but a prediction of its class below the score threshold matches it."""
    return e.missed(e.below)


@diagnosis("D08", "Missed in a crowd", 3, "Soft non-maximum suppression, crowded data.")
def missed_in_a_crowd(e: BoxEvidence) -> Bools:
    """D06 or D07, and two or more other truths overlap it at 0.3."""
    from mld_core.evaluation.detection.misses import crowded

    dense = crowded(e.records.truths)[e.units.missed] >= 2
    return e.missed((e.alone | e.below) & dense)


def small_limit(area: Floats) -> float:
    """The area that one in ten lies below."""
    return float(np.quantile(area, SMALL_QUANTILE))


@diagnosis("D09", "Small or cut off", 2, "Higher resolution, tiling.")
def small_or_cut_off(e: BoxEvidence) -> Bools:
    """Not found, and smaller than 9 in 10 of its class or touching the image's border."""
    from mld_core.evaluation.detection.units import box_size

    missed, truths = e.units.missed, e.records.truths
    area = box_size(truths.box)[0]
    if e.usual is None:
        counted = np.where(truths.counts, area, np.nan)
        limit = by_class(truths.label, counted, small_limit, -np.inf)
    else:
        limit = e.usual.small_of(truths.label)
    small = (area < limit)[missed]
    return e.missed(small | e.records.border[missed])


@diagnosis("D20", "Suspected missing label", 4, "Look, and add the box if it is one.", "objects")
def suspected_missing_label(e: BoxEvidence) -> Bools:
    """Far from every label, whatever its score, yet it looks like an object among all recorded boxes."""
    return e.missing_label.flagged


@diagnosis(
    "D21",
    "Suspected bad box label",
    3,
    "Redraw the truth's box.",
    "answers",
    when="overlap below a half although the prediction looks well placed, and the boxes of all epochs (where "
    "three are recorded) agree with each other",
)
def suspected_bad_box_label(e: BoxEvidence) -> Bools:
    """Suspected bad box label."""
    return e.bad_box.flagged


@diagnosis(
    "D22", "Suspected wrong class label", 4, "Relabel (the suggested label is shown).", "answers", "pairs"
)
def suspected_wrong_class_label(e: BoxEvidence) -> Bools:
    """Boxes on it say another class, whatever their score, and the two are seldom confused."""
    return e.wrong_class.flagged


@diagnosis(
    "D23", "Suspected spurious label", 3, "Remove the truth or mark it as ignored.", "truths", "epochs"
)
def suspected_spurious_label(e: BoxEvidence) -> Bools:
    """Not found although such objects usually are, and no prediction of any score or epoch supports it."""
    return e.spurious.flagged


@diagnosis("D24", "Label drawn twice", 3, "Remove one of the two.")
def label_drawn_twice(e: BoxEvidence) -> Bools:
    """Overlaps another truth of its class at 0.7, or at 0.5 where one lies inside the other."""
    return e.on_rows(e.row_of, e.labels.twice, e.labels.duplicate).flagged


@diagnosis("D25", "Improbable label", 2, "Look at the box: redraw it, remove it, or mark it as ignored.")
def improbable_label(e: BoxEvidence) -> Bools:
    """Mostly outside the image, thinner than 2 pixels, or of a size or aspect far from its class's."""
    return e.on_rows(e.row_of, e.labels.odd, e.labels.improbable).flagged


DIAGNOSES: tuple[Diagnosis[BoxEvidence], ...] = tuple(
    one for one in [*globals().values()] if isinstance(one, Diagnosis)
)
"""D01 to D25, shared by 2D and 3D; "overlap" is closeness there (1 - centre distance / 4 m)."""
