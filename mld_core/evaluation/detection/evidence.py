"""What the diagnoses of boxes read, and which labels they suspect.

A fault of a truth shows on the unit that stands for it: the kept prediction that found it or is judged by it,
else the missed truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from mld_core.evaluation.detection.analysis import BoxAnswers
from mld_core.evaluation.detection.epochs import OtherEpochs, Said
from mld_core.evaluation.detection.events import PassMatch
from mld_core.evaluation.detection.labels import (
    NOT_IN_ROUNDS,
    LabelFaults,
    Spread,
    Usual,
    at_least,
    class_sizes,
    confusion_scores,
    confusions,
    label_faults,
    mislabelled,
    rate_of,
)
from mld_core.evaluation.detection.objects import Unlabelled
from mld_core.evaluation.detection.records import BoxRecords
from mld_core.evaluation.detection.units import BoxUnits
from mld_core.evaluation.metrics import tide
from mld_core.evaluation.metrics.boxes import Bools, Floats, Ints, Truths
from mld_core.evaluation.metrics.matching import ALIGNED_IOU, BACKGROUND_IOU, EVENT_IOU

ROBUST_Z = 3.0
AGREEING_EPOCHS = 2
BELIEVED = 0.5
"""Probability from which on a box without a truth is said to be an object."""

FAINT = 0.01
"""Score of a class that no box says."""

_EDGE = 1e-6


@dataclass(frozen=True)
class Suspects:
    """Labels that may be at fault.

    Attributes:
        score: (N + M,) how likely, 0 to 1; NaN where the fault is not in question.
        flagged: (N + M,) units the code applies to.
    """

    score: Floats
    flagged: Bools


@dataclass(frozen=True)
class Judgements:
    """What the analysis found out about (N,) kept predictions, as far as the diagnoses read it.

    Attributes:
        error_proba: Probability that the box is wrong.
        det_error: That it is not aligned with a truth.
        label_quality: q of the given label.
        n_hat: Estimated number of wrong labels.
    """

    error_proba: Floats
    det_error: Floats
    label_quality: NDArray[np.floating]
    n_hat: int

    @classmethod
    def of(cls, answers: BoxAnswers) -> Judgements:
        """Of an analysis in memory."""
        analysis = answers.analysis
        return cls(
            analysis.error_proba,
            answers.probabilities.det_error,
            analysis.label_quality,
            analysis.posterior.n_hat,
        )


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
        unlabelled: Which boxes without a truth look like objects; None where too few tell.
        usual: What is usual for the classes of the pass, where this is a part of it; None: it is all of it.
        first_frame: Number of its first frame in the pass.
    """

    records: BoxRecords
    units: BoxUnits
    match: PassMatch
    answers: Judgements | None
    miss_proba: Floats | None
    epochs: OtherEpochs
    t2: float
    miss_t2: float
    unlabelled: Unlabelled | None = None
    usual: Usual | None = None
    first_frame: int = 0

    @property
    def rows(self) -> int:
        """N + M + W: kept predictions, missed truths, weak boxes; (N + M,) below means all of these."""
        return self.units.rows

    @property
    def missing(self) -> dict[str, str]:
        """What is not there, and why a code that needs it cannot be computed."""
        absent = {
            "answers": "the error probability was not estimated" if self.answers is None else "",
            "objects": "fewer than 30 recorded boxes stand on truths, or far from all"
            if self.unlabelled is None
            else "",
            "truths": "no truth counts" if self.miss_proba is None else "",
            "pairs": "" if self.answers is None or self.usual is not None else self._too_few_pairs(),
            "epochs": ""
            if self.epochs.count >= AGREEING_EPOCHS
            else "fewer than three epochs are recorded: a truth missed by chance looks the same",
        }
        if self.usual is not None:
            absent |= dict.fromkeys(self.usual.absent, NOT_IN_ROUNDS)
        return {name: why for name, why in absent.items() if why}

    def _too_few_pairs(self) -> str:
        """Why confusions do not tell which labels are wrong: nearly all pairs of classes never occur."""
        _, over, usual, _ = self.other_class
        count = int(over.sum())
        if count == 0 or usual > 0:
            return ""
        return (
            f"boxes say another class on {count} truths, in so few pairs of classes that it is unknown how "
            "often a pair is confused: look at them by their suspicion"
        )

    @cached_property
    def other_class(self) -> tuple[Floats, Bools, float, Floats]:
        """What `_confused` says."""
        return _confused(self, self.known)

    def predicted(self, mask: Bools) -> Bools:
        """(N + M,) from a mask of the kept predictions."""
        return np.append(mask, np.zeros(self.rows - len(mask), np.bool_))

    def missed(self, mask: Bools) -> Bools:
        """(N + M,) from a mask of the missed truths."""
        return np.insert(np.zeros(self.rows - len(mask), np.bool_), len(self.units.kept), mask)

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

    @property
    def known(self) -> Judgements:
        """The answers, where a need has made sure of them."""
        assert self.answers is not None
        return self.answers

    @cached_property
    def row_of(self) -> Ints:
        """(G,) the unit that stands for each truth, -1 where none does."""
        events, count = self.units.events, len(self.units.kept)
        made = np.full(len(self.records.truths), -1, np.int64)
        made[self.units.missed] = count + np.arange(len(self.units.missed))
        met = np.flatnonzero(events.matched)
        made[events.truth[met]] = met
        return made

    def judged_by(self, kind: int) -> Ints:
        """(G,) the best-scored prediction of a TIDE type that is judged by each truth, else `row_of`."""
        rows = np.flatnonzero((self.kind == kind) & (self.units.events.truth >= 0))
        rows = rows[np.argsort(self.records.predictions.score[self.units.kept[rows]], kind="stable")]
        made = self.row_of.copy()
        made[self.units.events.truth[rows]] = rows
        return made

    def on_rows(self, row: Ints, score: Floats, flagged: Bools) -> Suspects:
        """Suspects from (G,) rows, scores and flags of the truths."""
        there = np.flatnonzero((row >= 0) & ~np.isnan(score))
        made = Suspects(np.full(self.rows, np.nan), np.zeros(self.rows, np.bool_))
        made.score[row[there]], made.flagged[row[there]] = score[there], flagged[there]
        return made

    @cached_property
    def missing_odds(self) -> Floats:
        """(U,) odds that a box far from every truth is an object, NaN elsewhere; needs the objects."""
        assert self.unlabelled is not None
        there, row = _looked_at(self, self.unlabelled)
        made = np.full(self.rows, np.nan)
        made[there] = self.unlabelled.odds[row]
        return made

    @cached_property
    def missing_label(self) -> Suspects:
        """D20; where too few boxes tell what an object looks like, an order by score and nothing flagged."""
        if self.unlabelled is None:
            far = np.where(self.kind == tide.BKG, self.records.predictions.score[self.units.kept], np.nan)
            return Suspects(self.units.padded(far.astype(np.float64)), np.zeros(self.rows, np.bool_))
        return _missing(self, self.unlabelled)

    @cached_property
    def bad_box(self) -> Suspects:
        """D21; needs the answers, as the next."""
        flat = self.records.truths.box.shape[1] == 4
        return _misplaced(self, self.known) if flat else _far_off(self, self.known)

    @cached_property
    def wrong_class(self) -> Suspects:
        """D22."""
        return _mislabelled(self, self.known)

    @cached_property
    def spurious(self) -> Suspects:
        """D23; needs the miss probability."""
        return _spurious(self)

    @cached_property
    def labels(self) -> LabelFaults:
        """What the labels show by themselves."""
        return label_faults(self.records, None if self.usual is None else self.usual.sizes)


def _missing(e: BoxEvidence, found: Unlabelled) -> Suspects:
    """Background by the labels although the box looks like an object, whatever its score."""
    there, row = _looked_at(e, found)
    flagged = np.zeros(e.rows, np.bool_)
    flagged[there] = found.belief[row] >= BELIEVED
    # Only the order counts: odds of one and more would be certain.
    return Suspects(e.missing_odds / (1 + e.missing_odds), flagged)


def _looked_at(e: BoxEvidence, found: Unlabelled) -> tuple[Ints, Ints]:
    """Units whose box was asked about, and its place among those."""
    row = np.searchsorted(found.rows, e.units.prediction)
    there = np.flatnonzero(np.append(found.rows, -2)[row] == e.units.prediction)
    return there, row[there]


def _misplaced(e: BoxEvidence, answers: Judgements) -> Suspects:
    """The boxes of all epochs, whatever their score, agree with each other and not with the truth.

    Of each epoch the closest box of the class counts, of these the median. The box that is judged by the
    truth must look well placed.
    """
    truths = e.records.truths
    boxes = np.stack([one.box for one in (e.match.said, *e.epochs.said)])
    seen = (~np.isnan(boxes[..., 0])).sum(axis=0)
    boxes[:, seen == 0] = 0.0  # asked about below no more
    middle = np.nanmedian(boxes, axis=0)
    spread = np.nanmax(np.abs(boxes - middle), axis=(0, 2))
    agreed = np.nanmin([_iou(one, middle) for one in boxes], axis=0)
    size = np.maximum(truths.box[:, 2:] - truths.box[:, :2], 1.0).astype(np.float64)
    spread = spread / np.sqrt(size.prod(axis=1))
    overlap = _iou(middle, truths.box.astype(np.float64))
    usual = truths.counts & (seen > 0)
    told = None if e.usual is None else e.usual.overlaps
    far = _robust_z(np.where(usual, overlap, np.nan), truths.label, usual, told) > ROBUST_Z
    score = np.where(usual, (1 - overlap) / (1 + spread), np.nan)
    row = e.judged_by(tide.LOC)
    placed = e.units.padded(1 - answers.det_error, 0.0)
    flagged = far & (overlap < EVENT_IOU) & (placed[row] > 0.5)
    if e.epochs.count >= AGREEING_EPOCHS:
        flagged &= (agreed >= ALIGNED_IOU) & (seen == len(boxes))
    return e.on_rows(row, score, np.asarray(flagged))


def overlaps_of(truths: Truths, said: Said) -> Floats:
    """(G,) overlap of each truth that counts with the box of its class on it, NaN without (and of 3D)."""
    if truths.box.shape[1] != 4:
        return np.full(len(truths), np.nan)
    near = truths.counts & ~np.isnan(said.box[:, 0])
    return np.where(near, _iou(said.box, truths.box.astype(np.float64)), np.nan)


def _iou(a: Floats, b: Floats) -> Floats:
    """(G,) IoU of boxes row by row, NaN where one is unknown."""
    shared = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0).prod(axis=1)
    whole = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    return np.asarray(shared / np.maximum(whole, 1e-12))


def _far_off(e: BoxEvidence, answers: Judgements) -> Suspects:
    """3D: overlap far below what such a box usually has, and the box itself looks well placed."""
    events = e.units.events
    loose = e.units.judged & events.right & (events.quality < ALIGNED_IOU)
    loc = (e.kind == tide.LOC) & _not_found(e)
    asked = loc | loose
    placed = 1 - answers.det_error
    score = np.where(asked, placed * (1 - events.quality), np.nan)
    told = None if e.usual is None else e.usual.overlaps
    distance = _robust_z(events.quality, events.said_of, e.units.judged & events.right, told)
    flagged = asked & (distance > ROBUST_Z) & (placed > 0.5)
    if e.epochs.count >= AGREEING_EPOCHS:
        flagged |= loc & (e.epochs.agree >= AGREEING_EPOCHS)
    return Suspects(e.units.padded(score), e.predicted(flagged))


def _not_found(e: BoxEvidence) -> Bools:
    """(N,) the truth a box is judged by has no right prediction: one would confirm its label."""
    return ~np.append(e.units.events.found, True)[e.units.events.truth]


def _robust_z(quality: Floats, label: Ints, right: Bools, told: Spread | None) -> Floats:
    """How many robust deviations each overlap lies below the median of the right boxes of its class."""
    told = told or Spread.of(label, np.where(right, quality, np.nan))
    middle, spread = told.middle_of(label), told.spread_of(label)
    return np.where(label >= 0, np.nan_to_num((middle - quality) / np.maximum(spread, 1e-3)), 0.0)


def _confused(e: BoxEvidence, answers: Judgements) -> tuple[Floats, Bools, float, Floats]:
    """Of the truths whose boxes may say another class: how much more they do, and how often that happens.

    Returns:
        (G,) log-odds, NaN out of the question; (G,) those above 0; the rate of the usual pair of classes;
        (G,) that of the truth's pair.
    """
    truths, count = e.records.truths, len(e.units.kept)
    told = margins(e.match.said, e.epochs.said)
    asked = truths.counts & ~e.units.events.found & (e.match.said.other > 0)
    row = e.judged_by(tide.CLS)
    given = np.clip(answers.label_quality.astype(np.float64), _EDGE, 1 - _EDGE)
    cls = np.flatnonzero(asked & (row < count) & (e.kind[np.minimum(row, count - 1)] == tide.CLS))
    told[cls] -= logit(given[row[cls]])
    over = asked & (told > 0)
    known = None if e.usual is None else e.usual.confused
    if known is None:
        sizes = class_sizes(truths.label, e.records.n_class)
        rates, usual = confusions(truths.label, e.match.said.label, over, sizes)
    else:
        rates, usual = known.rate, known.usual
    rate = rate_of(rates, truths.label, e.match.said.label)
    return np.where(asked, told, np.nan), over, usual, rate


def _mislabelled(e: BoxEvidence, answers: Judgements) -> Suspects:
    """Boxes on the truth, whatever their score, say another class, and the two are seldom confused.

    How much more the epochs believe in the other class than in the truth's, how little the label posterior
    gives the truth's class, and how rare the confusion of the two is, as log-odds. As many are expected to be
    mislabelled as boxes would say another class were every pair confused no more than the usual one.
    """
    told, over, usual, rate = e.other_class
    row = e.judged_by(tide.CLS)
    score = confusion_scores(told, rate)
    known = None if e.usual is None else e.usual.confused
    if known is None:
        flagged = _top(score, over, min(mislabelled(rate[over], usual), answers.n_hat))
    else:
        flagged = over & (score >= known.least)
    # Only the order counts: the sum of four log-odds is brought to 0 to 1.
    return e.on_rows(row, expit(score / 4 - 2), flagged)


def margins(here: Said, elsewhere: Sequence[Said] = ()) -> Floats:
    """(G,) log-odds by which the boxes of all epochs say another class rather than the truth's."""
    return np.asarray(np.mean([_margin(one) for one in (here, *elsewhere)], axis=0))


def _margin(said: Said) -> Floats:
    """(G,) log-odds by which the boxes say another class rather than the truth's."""
    other, own = (np.clip(one, FAINT, 1 - _EDGE) for one in (said.other, said.own))
    return np.asarray(logit(other) - logit(own))


def _spurious(e: BoxEvidence) -> Suspects:
    """Not found although such truths usually are, and nothing supports them in any epoch.

    In one epoch a truth that was missed by chance looks the same: nothing is flagged then.
    """
    missed = e.units.missed
    support = np.maximum(e.match.near[missed], e.epochs.near[missed])
    assert e.miss_proba is not None
    proba = e.miss_proba[missed]
    score = (1 - proba) * (1 - support)
    told = e.epochs.count >= AGREEING_EPOCHS
    asked = np.asarray((proba <= e.miss_t2) & (support < BACKGROUND_IOU) & told)
    flagged = _top(score, asked, at_least(float((1 - proba[asked]).sum())))
    made = np.full(e.rows, np.nan)
    made[len(e.units.kept) :][: len(missed)] = score
    return Suspects(made, e.missed(flagged))


def _top(score: Floats, asked: Bools, count: int) -> Bools:
    rows = np.flatnonzero(asked)
    made = np.zeros(len(score), np.bool_)
    made[rows[np.argsort(-score[rows], kind="stable")[:count]]] = True
    return made
