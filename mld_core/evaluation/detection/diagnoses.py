"""Which detection diagnoses (D01 to D23) apply to which units, and how suspicious each label is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mld_core.evaluation.classification.diagnoses import Diagnoses
from mld_core.evaluation.codes.catalogue import Diagnosis
from mld_core.evaluation.detection.analysis import BoxAnswers
from mld_core.evaluation.detection.catalogue import DETECTION_CATALOGUE
from mld_core.evaluation.detection.epochs import OtherEpochs
from mld_core.evaluation.detection.events import PassMatch
from mld_core.evaluation.detection.misses import crowded
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import BoxUnits, box_size
from mld_core.evaluation.metrics import tide
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints
from mld_core.evaluation.metrics.matching import ALIGNED_IOU, BACKGROUND_IOU

ROBUST_Z = 3.0
MAD_TO_SIGMA = 1.4826
SMALL_QUANTILE = 0.1
AGREEING_EPOCHS = 2
_EDGE = 1e-6


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
    """Apply the catalogue to every unit."""
    count, rows = len(e.units.kept), e.units.rows
    masks: dict[str, Bools] = {}
    for code, mask in _prediction_masks(e).items():
        masks[code] = np.append(mask, np.zeros(rows - count, np.bool_))
    for code, mask in _truth_masks(e).items():
        masks[code] = np.append(np.zeros(count, np.bool_), mask)
    suspicion = np.full(rows, np.nan)
    reasons: dict[str, str] = {}
    if e.answers is None:
        reasons |= dict.fromkeys(
            ("D20", "D21", "D22"), "not computable: the error probability was not estimated"
        )
    else:
        for code, (score, flagged) in _suspects(e, e.answers).items():
            masks[code] = np.append(flagged, np.zeros(rows - count, np.bool_))
            there = np.flatnonzero(~np.isnan(score))
            suspicion[there] = score[there]
    if e.miss_proba is None:
        reasons["D23"] = "not computable: no truth counts"
    else:
        score, flagged = _spurious(e, e.miss_proba)
        masks["D23"] = np.append(np.zeros(count, np.bool_), flagged)
        suspicion[count:] = score
    return BoxDiagnoses(rank_codes(masks, reasons, rows), suspicion, _details(e))


def rank_codes(
    masks: Mapping[str, Bools],
    reasons: Mapping[str, str],
    rows: int,
    catalogue: Sequence[Diagnosis] = DETECTION_CATALOGUE,
) -> Diagnoses:
    """Primary code and severity of every unit from the masks of a catalogue."""
    primary, severity = np.full(rows, -1, np.int8), np.zeros(rows, np.int8)
    for place in sorted(range(len(catalogue)), key=lambda place: (catalogue[place].severity, -place)):
        mask = masks.get(catalogue[place].code)
        if mask is not None:
            primary[mask] = place
            severity[mask] = catalogue[place].severity
    counts = {code: int(mask.sum()) for code, mask in masks.items()}
    return Diagnoses(masks, reasons, primary, severity, counts)


def _prediction_masks(e: BoxEvidence) -> dict[str, Bools]:
    kind = np.where(e.units.judged, e.units.events.type, tide.IGNORED)
    codes = {"D01": tide.CLS, "D02": tide.LOC, "D03": tide.BOTH, "D04": tide.DUPE, "D05": tide.BKG}
    return {code: np.asarray(kind == number) for code, number in codes.items()}


def _truth_masks(e: BoxEvidence) -> dict[str, Bools]:
    missed, truths = e.units.missed, e.records.truths
    alone = e.match.near[missed] < BACKGROUND_IOU
    below = e.match.found[missed]
    area = box_size(truths.box)[0]
    small = np.zeros(len(missed), np.bool_)
    for label in np.unique(truths.label[missed]):
        mine = truths.label[missed] == label
        limit = np.quantile(area[(truths.label == label) & truths.counts], SMALL_QUANTILE)
        small |= mine & (area[missed] < limit)
    dense = crowded(truths)[missed] >= 2
    return {
        "D06": np.asarray(alone),
        "D07": np.asarray(below),
        "D08": np.asarray((alone | below) & dense),
        "D09": np.asarray(small | e.records.border[missed]),
    }


def _suspects(e: BoxEvidence, answers: BoxAnswers) -> dict[str, tuple[Floats, Bools]]:
    """Code -> (N,) suspicion, NaN where the code is not in question, and who is flagged."""
    return {"D20": _missing(e, answers), "D21": _misplaced(e, answers), "D22": _mislabelled(e, answers)}


def _missing(e: BoxEvidence, answers: BoxAnswers) -> tuple[Floats, Bools]:
    """Background by the labels although the internals say object, least risky first.

    Two opinions, averaged as log-odds: the error probability and the posterior of background. As many are
    expected to be objects as the belief in the unlikely errors among them adds up to.
    """
    kind = np.where(e.units.judged, e.units.events.type, tide.IGNORED)
    asked = kind == tide.BKG
    proba = np.clip(answers.analysis.error_proba, _EDGE, 1 - _EDGE)
    background = np.clip(answers.analysis.label_quality.astype(np.float64), _EDGE, 1 - _EDGE)
    score = np.where(asked, expit(-(logit(proba) + logit(background)) / 2), np.nan)
    likely = np.asarray(asked & (proba <= e.t2))
    return score, _top(score, likely, round(float((1 - proba[likely]).sum())))


def _misplaced(e: BoxEvidence, answers: BoxAnswers) -> tuple[Floats, Bools]:
    """Overlap far below what such a box usually has, and the box itself looks well placed."""
    events = e.units.events
    kind = np.where(e.units.judged, events.type, tide.IGNORED)
    loose = e.units.judged & events.right & (events.quality < ALIGNED_IOU)
    loc = (kind == tide.LOC) & _not_found(e)
    asked = loc | loose
    placed = 1 - answers.probabilities.det_error
    score = np.where(asked, placed * (1 - events.quality), np.nan)
    distance = _robust_z(events.quality, events.said_of, e.units.judged & events.right)
    voted = loc & (e.epochs.agree >= AGREEING_EPOCHS)
    far = asked & (distance > ROBUST_Z)
    flagged = voted | (far & (placed > 0.5)) if e.epochs.count >= AGREEING_EPOCHS else far & (placed > 0.5)
    return score, np.asarray(flagged)


def _not_found(e: BoxEvidence) -> Bools:
    """(N,) the truth a box is judged by has no right prediction: one would confirm its label."""
    return ~np.append(e.units.events.found, True)[e.units.events.truth]


def _robust_z(quality: Floats, label: Ints, right: Bools) -> Floats:
    """How many robust deviations each overlap lies below the median of the right boxes of its class."""
    made = np.zeros(len(quality))
    for one in np.unique(label[label >= 0]):
        usual = quality[right & (label == one)]
        if len(usual) == 0:
            continue
        middle = np.median(usual)
        spread = max(MAD_TO_SIGMA * float(np.median(np.abs(usual - middle))), 1e-3)
        made[label == one] = (middle - quality[label == one]) / spread
    return made


def _mislabelled(e: BoxEvidence, answers: BoxAnswers) -> tuple[Floats, Bools]:
    """Fits a truth of another class; the label posterior gives that class little."""
    events = e.units.events
    kind = np.where(e.units.judged, events.type, tide.IGNORED)
    asked = (kind == tide.CLS) & _not_found(e)
    given = answers.analysis.label_quality.astype(np.float64)
    score = np.where(asked, 1 - given, np.nan)
    posterior = answers.analysis.posterior
    away = asked & (posterior.best != events.said_of)
    return score, _top(score, np.asarray(away), posterior.n_hat)


def _spurious(e: BoxEvidence, miss_proba: Floats) -> tuple[Floats, Bools]:
    """Not found although such truths usually are, and nothing supports them."""
    missed = e.units.missed
    support = np.maximum(e.match.near[missed], e.epochs.near[missed])
    proba = miss_proba[missed]
    score = (1 - proba) * (1 - support)
    return score, np.asarray((proba <= e.miss_t2) & (support < BACKGROUND_IOU))


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
