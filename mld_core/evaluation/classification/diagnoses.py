"""The diagnoses of classification, C01 to C91: what each means, when it applies, what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import CRITICAL
from mld_core.evaluation.codes.diagnosis import Diagnosis, Mask, diagnosis
from mld_core.evaluation.statistics.folds import group_codes
from mld_core.evaluation.statistics.significance import (
    benjamini_hochberg,
    binomial_upper,
    two_proportions_upper,
    two_sided_z,
)

if TYPE_CHECKING:
    from mld_core.evaluation.analysis.evidence import Evidence


def conflicting_duplicates(hashes: NDArray[Any], labels: NDArray[np.int64]) -> Mask:
    """(N,) labelled units whose input also stands there with another label.

    Example:
        >>> conflicting_duplicates(np.array(["a", "a", "b", "b"]), np.array([0, 1, 2, 2])).tolist()
        [True, True, False, False]
    """
    known = np.flatnonzero(labels >= 0)
    distinct, where = group_codes(hashes[known])
    low = np.full(len(distinct), np.iinfo(np.int64).max)
    high = np.full(len(distinct), -1)
    np.minimum.at(low, where, labels[known])
    np.maximum.at(high, where, labels[known])
    made = np.zeros(len(labels), np.bool_)
    made[known] = (low != high)[where]
    return made


def significant_pairs(labels: NDArray[np.int64], prediction: NDArray[np.int64]) -> set[tuple[int, int]]:
    """(label, prediction) pairs among errors that are more frequent than their margins explain.

    Errors of one label are spread over the other classes in proportion to how often those are wrongly
    predicted at all (quasi-independence: the diagonal is empty by definition); one-sided binomial,
    Benjamini-Hochberg over pairs.

    Args:
        labels: (E,) labels of wrong units.
        prediction: (E,) their predictions.
    """
    if len(labels) == 0:
        return set()
    pairs, count = np.unique(np.stack([labels, prediction], axis=1), axis=0, return_counts=True)
    size = int(max(labels.max(), prediction.max())) + 1
    by_label = np.bincount(labels, minlength=size)
    by_prediction = np.bincount(prediction, minlength=size)
    rest = len(labels) - by_prediction[pairs[:, 0]]
    share = by_prediction[pairs[:, 1]] / np.maximum(rest, 1)
    p_values = binomial_upper(
        count.astype(float), by_label[pairs[:, 0]].astype(float), np.minimum(share, 1.0)
    )
    return {(int(t), int(y)) for (t, y), ok in zip(pairs, benjamini_hochberg(p_values), strict=True) if ok}


def _per_cell(cells: NDArray[np.int32], values: NDArray[Any] | None, count: int) -> NDArray[np.float64]:
    return np.bincount(cells, weights=values, minlength=count).astype(np.float64)


def _earlier_right(e: Evidence) -> Mask:
    assert e.epochs is not None
    return np.asarray((e.epochs.predictions[:-1] == e.labels).any(axis=0) & (e.labels >= 0))


@diagnosis(
    "C01",
    "Suspected wrong label",
    4,
    "Relabel (the suggested label is shown), retrain, re-evaluate.",
    "labels",
    when="wrong (in train: whatever the last epoch says), the label posterior points elsewhere, "
    "and the label is rather a wrong one than a draw from it (in train: one of the worst, as many as are "
    "estimated to be wrong)",
    varies=True,
)
def suspected_wrong_label(e: Evidence) -> Mask:
    """Suspected wrong label."""
    return e.suspected


@diagnosis(
    "C02",
    "Ambiguous label",
    2,
    "Second annotator, soft label, or merge the classes; do not add capacity.",
    "labels",
)
def ambiguous_label(e: Evidence) -> Mask:
    """Two labels tie among the neighbours in every recorded layer."""
    return e.flags.ambiguous


@diagnosis("C03", "Conflicting duplicates", 4, "Adjudicate and remove duplicates.", "inputs", "labels")
def duplicates_in_conflict(e: Evidence) -> Mask:
    """Same input, or one far nearer than units around it are to each other, and another label."""
    made = np.zeros(e.rows, np.bool_)
    if e.hashes is not None:
        made |= conflicting_duplicates(e.hashes, e.labels)
    if e.copy_of is not None:
        twin = np.where(e.copy_of >= 0, e.labels[e.copy_of], -1)
        made |= (twin >= 0) & (e.labels >= 0) & (twin != e.labels)
    return made


@diagnosis(
    "C04",
    "Split leakage",
    5,
    "Remove from the evaluation and recompute.",
    "other_split",
    "train_inputs",
)
def split_leakage(e: Evidence) -> Mask:
    """The same input is in the train split, or one far nearer than train units are to each other."""
    made = np.zeros(e.rows, np.bool_)
    if e.hashes is not None and e.train_hashes is not None:
        made |= np.isin(e.hashes, e.train_hashes)
    return made if e.near_train is None else made | e.near_train


@diagnosis(
    "C05",
    "Order of the data",
    2,
    "Split by time or group, shuffle before training, name the groups (group_key).",
    "neighbours",
    "labels",
)
def order_of_the_data(e: Evidence) -> Mask:
    """Units of a class that resemble each other stand together, more than shuffling would bring about."""
    assert e.ordered is not None
    return e.ordered


@diagnosis(
    "C10",
    "Systematic confusion",
    4,
    "Targeted data or hard negatives for the pair; check the labelling guide.",
    "labels",
    varies=True,
)
def systematic_confusion(e: Evidence) -> Mask:
    """Dense errors, wrong, and the (label, prediction) pair is more frequent than its margins explain."""
    usable = e.wrong & (e.labels >= 0) & (e.prediction >= 0)
    counted = usable if e.kept is None else usable & e.kept
    found = significant_pairs(e.labels[counted], e.prediction[counted])
    made = np.zeros(len(e.labels), np.bool_)
    for t, y in sorted(found):
        made |= usable & (e.labels == t) & (e.prediction == y)
    return np.asarray(made & e.flags.dense)


@diagnosis("C11", "Head fixable", 3, "Re-fit or calibrate the last layer; re-weight the classes.", "labels")
def head_fixable(e: Evidence) -> Mask:
    """Wrong, and the neighbours' labels clearly say the true class."""
    return np.asarray(e.wrong & (e.labels >= 0) & (e.neighbours.first == e.labels) & e.neighbours.rejected)


@diagnosis(
    "C12",
    "Representation collapse",
    4,
    "Unfreeze or augment; add the input condition that is missing.",
    "labels",
    "layers",
    varies=True,
)
def representation_collapse(e: Evidence) -> Mask:
    """Dense errors, no two labels hold a majority in the last layer, but they do in an earlier one."""
    earlier = np.any([layer.majority for layer in e.layers[:-1]], axis=0)
    return np.asarray(e.flags.dense & ~e.layers[-1].majority & earlier)


@diagnosis(
    "C13", "Uninformative input", 3, "Check sensor and preprocessing; offer a reject option.", "labels"
)
def uninformative_input(e: Evidence) -> Mask:
    """Dense errors, no two labels hold a majority in any layer."""
    return np.asarray(e.flags.dense & ~np.any([layer.majority for layer in e.layers], axis=0))


@diagnosis(
    "C20",
    "Silent systematic failure",
    5,
    "Collect and label this region first; block the release.",
    varies=True,
)
def silent_systematic_failure(e: Evidence) -> Mask:
    """Critical hotspot."""
    return np.asarray(e.category == CRITICAL)


@diagnosis("C21", "Overconfident isolated error", 3, "Calibrate; inspect; add to the regression set.")
def overconfident_isolated_error(e: Evidence) -> Mask:
    """Wrong, passed by a confidence monitor, no dense errors around it, not C01."""
    return np.asarray(e.wrong & e.flags.covered & ~e.flags.dense & ~e.suspected)


@diagnosis("C22", "Boundary error", 2, "More data near the boundary, margin loss.", "labels")
def boundary_error(e: Evidence) -> Mask:
    """Wrong, the label is the runner-up, no dense errors around it."""
    return np.asarray(e.wrong & (e.labels == e.runner_up) & ~e.flags.dense)


@diagnosis("C23", "Under-confident correct", 1, "Calibrate (temperature).")
def under_confident_correct(e: Evidence) -> Mask:
    """Right and of low estimated risk, yet a confidence monitor would raise an alarm."""
    return np.asarray((e.errors == 0) & (e.baseline_risk > e.t2) & (e.error_proba <= e.t1))


@diagnosis("C30", "Novel input", 3, "Acquire similar data; out-of-distribution gate.", "train", "other_split")
def novel_input(e: Evidence) -> Mask:
    """Unlike the train split by distance or direction, more than train units are unlike each other."""
    assert e.novel is not None
    return e.novel


@diagnosis("C31", "Under-represented", 3, "Rebalance, mine for similar data.", "train", "other_split")
def under_represented(e: Evidence) -> Mask:
    """The cell's share of the train split is significantly below its share here."""
    train = e.cells.train_cell
    assert train is not None
    here, there = _per_cell(e.cells.cell, None, e.cells.count), _per_cell(train, None, e.cells.count)
    p_values = two_proportions_upper(
        here, np.full(len(here), here.sum()), there, np.full(len(here), there.sum())
    )
    return benjamini_hochberg(p_values)[e.cells.cell]


@diagnosis(
    "C32", "Metadata slice failure", 4, "Slice-specific data; fairness check.", "metadata", varies=True
)
def metadata_slice_failure(e: Evidence) -> Mask:
    """In one of the best-scoring metadata slices, significantly worse than the rest."""
    made = np.zeros(len(e.labels), np.bool_)
    for one in e.slices or []:
        if one.significant:
            made[one.rows] = True
    return made


@diagnosis(
    "C33",
    "Generalisation gap",
    3,
    "Regularise, augment for the cell.",
    "train",
    "other_split",
    "train_errors",
)
def generalisation_gap(e: Evidence) -> Mask:
    """The cell's error rate here is significantly above its rate in train."""
    train, train_errors = e.cells.train_cell, e.cells.train_errors
    assert train is not None
    assert train_errors is not None
    known, train_known = e.errors >= 0, train_errors >= 0
    p_values = two_proportions_upper(
        _per_cell(e.cells.cell, e.wrong, e.cells.count),
        _per_cell(e.cells.cell, known, e.cells.count),
        _per_cell(train, train_errors == 1, e.cells.count),
        _per_cell(train, train_known, e.cells.count),
    )
    return benjamini_hochberg(p_values)[e.cells.cell]


@diagnosis("C40", "Forgotten", 2, "Schedule, replay, an earlier checkpoint.", "epochs", "labels")
def forgotten(e: Evidence) -> Mask:
    """Right in an earlier epoch, wrong in the last."""
    return _earlier_right(e) & e.wrong


@diagnosis(
    "C41",
    "Never learned",
    3,
    "Check C01 first, then capacity and curriculum.",
    "train_split",
    "epochs",
    "labels",
)
def never_learned(e: Evidence) -> Mask:
    """Never right in any recorded epoch."""
    assert e.epochs is not None
    return np.asarray((e.epochs.predictions != e.labels).all(axis=0) & (e.labels >= 0))


@diagnosis("C42", "Unstable", 1, "Average the weights (EMA), lower the learning rate.", "many_epochs")
def unstable(e: Evidence) -> Mask:
    """Wrong, and its prediction flips more often than the split's median."""
    from mld_core.evaluation.analysis.stack_features import prediction_flips

    assert e.epochs is not None
    flips = prediction_flips(e.epochs)
    return np.asarray((flips > np.median(flips)) & e.wrong)


@diagnosis("C50", "Local miscalibration", 2, "Regional calibration.")
def local_miscalibration(e: Evidence) -> Mask:
    """The cell's mean confidence differs significantly from its accuracy."""
    known = e.errors >= 0
    cells, count = e.cells.cell[known], e.cells.count
    size = np.maximum(_per_cell(cells, None, count), 1)
    gap = _per_cell(cells, e.msp[known] - (e.errors[known] == 0), count) / size
    # The variance of a sum of Bernoullis whose probabilities are the stated confidences.
    spread = np.sqrt(_per_cell(cells, e.msp[known] * (1 - e.msp[known]), count)) / size
    return benjamini_hochberg(two_sided_z(gap, spread))[e.cells.cell] & known


regressed: Diagnosis[Evidence] = Diagnosis(
    "C90", "Regressed", 4, "Add to the regression set.", "right before, wrong now", needs=("comparison",)
)


fixed: Diagnosis[Evidence] = Diagnosis(
    "C91", "Fixed", 1, "Keep in the regression set.", "wrong before, right now", needs=("comparison",)
)


DIAGNOSES: tuple[Diagnosis[Evidence], ...] = tuple(
    one for one in [*globals().values()] if isinstance(one, Diagnosis)
)
"""Those above, in their order."""
