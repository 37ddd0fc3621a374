"""The diagnoses of boxes, D01 to D23: what each means, when it applies, and how suspicious each label is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mld_core.evaluation.codes.diagnosis import Diagnoses, Diagnosis, diagnose, diagnosis
from mld_core.evaluation.detection.analysis import BoxAnswers
from mld_core.evaluation.detection.epochs import OtherEpochs
from mld_core.evaluation.detection.events import PassMatch
from mld_core.evaluation.detection.misses import crowded
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import BoxUnits, box_size
from mld_core.evaluation.metrics import tide
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, by_class
from mld_core.evaluation.metrics.matching import ALIGNED_IOU, BACKGROUND_IOU

ROBUST_Z = 3.0
MAD_TO_SIGMA = 1.4826
SMALL_QUANTILE = 0.1
AGREEING_EPOCHS = 2
_EDGE = 1e-6


@dataclass(frozen=True)
class Suspects:
    """Labels that may be at fault.

    Attributes:
        score: How likely, 0 to 1; NaN where the fault is not in question.
        flagged: Those the code applies to.
    """

    score: Floats
    flagged: Bools


@dataclass(frozen=True)
class BoxEvidence:
    """Everything the predicates read.

    Attributes:
        records: The pass.
        units: Its units.
        match: The walk over all recorded predictions.
        answers: The analysis of the kept predictions; None where there was none.
        miss_proba: (G,) probability of each truth to be missed, or None.
        epochs: What other epochs say.
        t2: Threshold of risk of the kept predictions.
        miss_t2: Threshold of risk of the truths.
    """

    records: BoxRecords
    units: BoxUnits
    match: PassMatch
    answers: BoxAnswers | None
    miss_proba: Floats | None
    epochs: OtherEpochs
    t2: float
    miss_t2: float

    @property
    def rows(self) -> int:
        """N + M: kept predictions, then missed truths."""
        return self.units.rows

    @property
    def missing(self) -> dict[str, str]:
        """What is not there, and why a code that needs it cannot be computed."""
        absent = {
            "answers": "the error probability was not estimated" if self.answers is None else "",
            "truths": "no truth counts" if self.miss_proba is None else "",
        }
        return {name: why for name, why in absent.items() if why}

    def predicted(self, mask: Bools) -> Bools:
        """(N + M,) from a mask of the kept predictions."""
        return np.append(mask, np.zeros(self.rows - len(mask), np.bool_))

    def missed(self, mask: Bools) -> Bools:
        """(N + M,) from a mask of the missed truths."""
        return np.append(np.zeros(self.rows - len(mask), np.bool_), mask)

    @cached_property
    def kind(self) -> NDArray[np.int8]:
        """(N,) TIDE's type of each judged prediction."""
        return np.where(self.units.judged, self.units.events.type, tide.IGNORED)

    @cached_property
    def alone(self) -> Bools:
        """(M,) no prediction of any score is near."""
        return np.asarray(self.match.near[self.units.missed] < BACKGROUND_IOU)

    @cached_property
    def below(self) -> Bools:
        """(M,) found by a prediction below the score threshold."""
        return np.asarray(self.match.found[self.units.missed])

    @cached_property
    def missing_label(self) -> Suspects:
        """Of the kept predictions; needs the answers, as the next two."""
        return _missing(self, self.known)

    @cached_property
    def bad_box(self) -> Suspects:
        """Of the kept predictions."""
        return _misplaced(self, self.known)

    @cached_property
    def wrong_class(self) -> Suspects:
        """Of the kept predictions."""
        return _mislabelled(self, self.known)

    @cached_property
    def spurious(self) -> Suspects:
        """Of the missed truths; needs the miss probability."""
        return _spurious(self)

    @property
    def known(self) -> BoxAnswers:
        """The answers, where a need has made sure of them."""
        assert self.answers is not None
        return self.answers


@dataclass(frozen=True)
class BoxDiagnoses:
    """What applies to which unit; arrays are (N + M,): kept predictions, then missed truths.

    Attributes:
        found: Masks, primary code and severity, as the classification's.
        suspicion: How likely the label is at fault, 0 to 1; NaN where no label fault is in question.
        detail: Number in `DETAILS` of a badly localised box, -1 elsewhere.
    """

    found: Diagnoses
    suspicion: Floats
    detail: NDArray[np.int8]


DETAILS = ("shift", "scale", "aspect", "swapped")
"""`swapped` is of 3D: width and length exchanged."""


def diagnose_boxes(e: BoxEvidence) -> BoxDiagnoses:
    """Ask every diagnosis about every unit."""
    count = len(e.units.kept)
    suspicion = np.full(e.rows, np.nan)
    if e.answers is not None:
        for suspects in (e.missing_label, e.bad_box, e.wrong_class):
            there = np.flatnonzero(~np.isnan(suspects.score))
            suspicion[there] = suspects.score[there]
    if e.miss_proba is not None:
        suspicion[count:] = e.spurious.score
    return BoxDiagnoses(diagnose(DIAGNOSES, e), suspicion, _details(e))


def _missing(e: BoxEvidence, answers: BoxAnswers) -> Suspects:
    """Background by the labels although the internals say object, least risky first.

    Two opinions, averaged as log-odds: the error probability and the posterior of background. As many are
    expected to be objects as the belief in the unlikely errors among them adds up to.
    """
    asked = e.kind == tide.BKG
    proba = np.clip(answers.analysis.error_proba, _EDGE, 1 - _EDGE)
    background = np.clip(answers.analysis.label_quality.astype(np.float64), _EDGE, 1 - _EDGE)
    score = np.where(asked, expit(-(logit(proba) + logit(background)) / 2), np.nan)
    likely = np.asarray(asked & (proba <= e.t2))
    return Suspects(score, _top(score, likely, round(float((1 - proba[likely]).sum()))))


def _misplaced(e: BoxEvidence, answers: BoxAnswers) -> Suspects:
    """Overlap far below what such a box usually has, and the box itself looks well placed."""
    events = e.units.events
    loose = e.units.judged & events.right & (events.quality < ALIGNED_IOU)
    loc = (e.kind == tide.LOC) & _not_found(e)
    asked = loc | loose
    placed = 1 - answers.probabilities.det_error
    score = np.where(asked, placed * (1 - events.quality), np.nan)
    distance = _robust_z(events.quality, events.said_of, e.units.judged & events.right)
    voted = loc & (e.epochs.agree >= AGREEING_EPOCHS)
    far = asked & (distance > ROBUST_Z)
    flagged = voted | (far & (placed > 0.5)) if e.epochs.count >= AGREEING_EPOCHS else far & (placed > 0.5)
    return Suspects(score, np.asarray(flagged))


def _not_found(e: BoxEvidence) -> Bools:
    """(N,) the truth a box is judged by has no right prediction: one would confirm its label."""
    return ~np.append(e.units.events.found, True)[e.units.events.truth]


def _robust_z(quality: Floats, label: Ints, right: Bools) -> Floats:
    """How many robust deviations each overlap lies below the median of the right boxes of its class."""
    usual = np.where(right, quality, np.nan)
    middle = by_class(label, usual, np.median, np.nan)
    spread = MAD_TO_SIGMA * by_class(label, np.abs(usual - middle), np.median, np.nan)
    return np.where(label >= 0, np.nan_to_num((middle - quality) / np.maximum(spread, 1e-3)), 0.0)


def _mislabelled(e: BoxEvidence, answers: BoxAnswers) -> Suspects:
    """Fits a truth of another class; the label posterior gives that class little."""
    events = e.units.events
    asked = (e.kind == tide.CLS) & _not_found(e)
    given = answers.analysis.label_quality.astype(np.float64)
    score = np.where(asked, 1 - given, np.nan)
    posterior = answers.analysis.posterior
    away = asked & (posterior.best != events.said_of)
    return Suspects(score, _top(score, np.asarray(away), posterior.n_hat))


def _spurious(e: BoxEvidence) -> Suspects:
    """Not found although such truths usually are, and nothing supports them."""
    missed = e.units.missed
    support = np.maximum(e.match.near[missed], e.epochs.near[missed])
    assert e.miss_proba is not None
    proba = e.miss_proba[missed]
    score = (1 - proba) * (1 - support)
    return Suspects(score, np.asarray((proba <= e.miss_t2) & (support < BACKGROUND_IOU)))


def _top(score: Floats, asked: Bools, count: int) -> Bools:
    rows = np.flatnonzero(asked)
    made = np.zeros(len(score), np.bool_)
    made[rows[np.argsort(-score[rows], kind="stable")[:count]]] = True
    return made


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
    dense = crowded(e.records.truths)[e.units.missed] >= 2
    return e.missed((e.alone | e.below) & dense)


@diagnosis("D09", "Small or cut off", 2, "Higher resolution, tiling.")
def small_or_cut_off(e: BoxEvidence) -> Bools:
    """Not found, and smaller than 9 in 10 of its class or touching the image's border."""
    missed, truths = e.units.missed, e.records.truths
    area = box_size(truths.box)[0]
    counted = np.where(truths.counts, area, np.nan)
    limit = by_class(truths.label, counted, lambda known: np.quantile(known, SMALL_QUANTILE), -np.inf)
    small = (area < limit)[missed]
    return e.missed(small | e.records.border[missed])


@diagnosis("D20", "Suspected missing label", 4, "Look, and add the box if it is one.", "answers")
def suspected_missing_label(e: BoxEvidence) -> Bools:
    """Background by the labels, yet of low estimated risk, among the N_hat least risky."""
    return e.predicted(e.missing_label.flagged)


@diagnosis(
    "D21",
    "Suspected bad box label",
    3,
    "Redraw the truth's box.",
    "answers",
    when="badly localised while other epochs agree with the prediction, or far below the "
    "usual overlap of the class although the box itself looks well placed",
)
def suspected_bad_box_label(e: BoxEvidence) -> Bools:
    """Suspected bad box label."""
    return e.predicted(e.bad_box.flagged)


@diagnosis("D22", "Suspected wrong class label", 4, "Relabel (the suggested label is shown).", "answers")
def suspected_wrong_class_label(e: BoxEvidence) -> Bools:
    """Fits a truth of another class, and the label posterior points away from the truth's class."""
    return e.predicted(e.wrong_class.flagged)


@diagnosis("D23", "Suspected spurious label", 3, "Remove the truth or mark it as ignored.", "truths")
def suspected_spurious_label(e: BoxEvidence) -> Bools:
    """Not found although such objects usually are, and no prediction of any score or epoch supports it."""
    return e.missed(e.spurious.flagged)


DIAGNOSES: tuple[Diagnosis[BoxEvidence], ...] = tuple(
    one for one in [*globals().values()] if isinstance(one, Diagnosis)
)
"""D01 to D23, shared by 2D and 3D; "overlap" is closeness there (1 - centre distance / 4 m)."""
