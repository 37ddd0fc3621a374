"""Which diagnoses apply to which units: the predicates of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis.stack_features import prediction_flips
from mld_core.evaluation.codes.catalogue import CATALOGUE, NEEDS, primary_first
from mld_core.evaluation.codes.categories import CRITICAL, Flags
from mld_core.evaluation.space.arrays import EpochArrays
from mld_core.evaluation.space.cells import Ambiguity
from mld_core.evaluation.space.slices import MetadataSlice
from mld_core.evaluation.statistics.folds import group_codes
from mld_core.evaluation.statistics.significance import (
    benjamini_hochberg,
    binomial_upper,
    two_proportions_upper,
    two_sided_z,
)

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class CellEvidence:
    """The split and the train split cut into the same cells.

    Attributes:
        cell: (N,) cell of each unit.
        count: How many cells.
        train_cell: (M,) cell of each train unit, or None.
        train_errors: (M,) 1 wrong, 0 right, -1 unknown, or None.
    """

    cell: NDArray[np.int32]
    count: int
    train_cell: NDArray[np.int32] | None = None
    train_errors: NDArray[np.int8] | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything the predicates read, (N,) each unless said.

    Attributes:
        labels: True classes, -1 where unlabelled.
        prediction: Predicted classes, -1 where the logits were not finite.
        runner_up: Second classes.
        errors: 1 wrong, 0 right, -1 unlabelled.
        msp: Largest softmax probability.
        error_proba: Error probability.
        baseline_risk: Isotonic risk of msp.
        flags: The six booleans.
        category: Category numbers, -1 where unlabelled.
        t1: Threshold of low risk.
        t2: Threshold of risk.
        suspected: C01 units.
        neighbours: Ambiguity in the pooled space.
        layers: Ambiguity in each layer, earliest first.
        cells: Cells of both splits.
        hashes: Input hashes, or None.
        train_hashes: (M,) the train split's, or None.
        novelty: Conformal p-values, or None without a train split.
        epochs: Other epochs, or None.
        slices: Metadata slices, or None without metadata.
        is_train: Whether this is the train split.
    """

    labels: NDArray[np.int64]
    prediction: NDArray[np.int64]
    runner_up: NDArray[np.int64]
    errors: NDArray[np.int8]
    msp: NDArray[np.float64]
    error_proba: NDArray[np.float64]
    baseline_risk: NDArray[np.float64]
    flags: Flags
    category: NDArray[np.int8]
    t1: float
    t2: float
    suspected: Mask
    neighbours: Ambiguity
    layers: tuple[Ambiguity, ...]
    cells: CellEvidence
    hashes: NDArray[Any] | None = None
    train_hashes: NDArray[Any] | None = None
    novelty: NDArray[np.floating] | None = None
    epochs: EpochArrays | None = None
    slices: list[MetadataSlice] | None = None
    is_train: bool = False

    @property
    def wrong(self) -> Mask:
        """Labelled and wrong."""
        return np.asarray(self.errors == 1)

    @property
    def missing(self) -> frozenset[str]:
        """Names of `catalogue.NEEDS` that are not there."""
        epochs = 0 if self.epochs is None else len(self.epochs.predictions)
        absent = {
            "hashes": self.hashes is None,
            "train_hashes": self.train_hashes is None,
            "train": self.novelty is None,
            "train_errors": self.cells.train_errors is None,
            "epochs": epochs < 2,
            "many_epochs": epochs < 3,
            "metadata": self.slices is None,
            "train_split": not self.is_train,
            "other_split": self.is_train,
            "comparison": True,
            "labels": not bool((self.labels >= 0).any()),
            "layers": len(self.layers) < 2,
        }
        return frozenset(name for name, gone in absent.items() if gone)


@dataclass(frozen=True)
class Diagnoses:
    """What applies to which unit.

    Attributes:
        masks: Code -> (N,) bool, for every code that could be computed.
        not_computable: Code -> why, for every other code.
        primary: (N,) number of the primary code in `catalogue.CATALOGUE`, -1 where none applies.
        severity: (N,) int8 severity of the primary code, 0 where none applies.
    """

    masks: Mapping[str, Mask]
    not_computable: Mapping[str, str]
    primary: NDArray[np.int8]
    severity: NDArray[np.int8]
    counts: Mapping[str, int] = field(default_factory=dict)

    def codes_of(self, row: int) -> list[str]:
        """Codes of one unit, primary first."""
        found = [code for code, mask in self.masks.items() if mask[row]]
        return primary_first(found)


def diagnose(evidence: Evidence) -> Diagnoses:
    """Apply the catalogue; a code that needs something not recorded says so, instead of being absent."""
    missing = evidence.missing
    masks: dict[str, Mask] = {}
    reasons: dict[str, str] = {}
    for entry in CATALOGUE:
        absent = [need for need in entry.needs if need in missing]
        if absent:
            reasons[entry.code] = "not computable: " + "; ".join(NEEDS[need] for need in absent)
        else:
            masks[entry.code] = _PREDICATES[entry.code](evidence)
    primary = np.full(len(evidence.labels), -1, np.int8)
    severity = np.zeros(len(evidence.labels), np.int8)
    ranked = sorted(range(len(CATALOGUE)), key=lambda place: (CATALOGUE[place].severity, -place))
    for place in ranked:
        mask = masks.get(CATALOGUE[place].code)
        if mask is not None:
            primary[mask] = place
            severity[mask] = CATALOGUE[place].severity
    counts = {code: int(mask.sum()) for code, mask in masks.items()}
    return Diagnoses(masks, reasons, primary, severity, counts)


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


def _systematic_confusion(e: Evidence) -> Mask:
    usable = e.wrong & (e.labels >= 0) & (e.prediction >= 0)
    found = significant_pairs(e.labels[usable], e.prediction[usable])
    made = np.zeros(len(e.labels), np.bool_)
    for t, y in sorted(found):
        made |= usable & (e.labels == t) & (e.prediction == y)
    return np.asarray(made & e.flags.dense)


def _head_fixable(e: Evidence) -> Mask:
    return np.asarray(e.wrong & (e.labels >= 0) & (e.neighbours.first == e.labels) & e.neighbours.rejected)


def _collapse(e: Evidence) -> Mask:
    earlier = np.any([layer.majority for layer in e.layers[:-1]], axis=0)
    return np.asarray(e.flags.dense & ~e.layers[-1].majority & earlier)


def _uninformative(e: Evidence) -> Mask:
    return np.asarray(e.flags.dense & ~np.any([layer.majority for layer in e.layers], axis=0))


def _leakage(e: Evidence) -> Mask:
    assert e.hashes is not None
    assert e.train_hashes is not None
    return np.asarray(np.isin(e.hashes, e.train_hashes))


def _novel(e: Evidence) -> Mask:
    assert e.novelty is not None
    return benjamini_hochberg(e.novelty)


def _per_cell(cells: NDArray[np.int32], values: NDArray[Any] | None, count: int) -> NDArray[np.float64]:
    return np.bincount(cells, weights=values, minlength=count).astype(np.float64)


def _under_represented(e: Evidence) -> Mask:
    train = e.cells.train_cell
    assert train is not None
    here, there = _per_cell(e.cells.cell, None, e.cells.count), _per_cell(train, None, e.cells.count)
    p_values = two_proportions_upper(
        here, np.full(len(here), here.sum()), there, np.full(len(here), there.sum())
    )
    return benjamini_hochberg(p_values)[e.cells.cell]


def _generalisation_gap(e: Evidence) -> Mask:
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


def _metadata_slice(e: Evidence) -> Mask:
    made = np.zeros(len(e.labels), np.bool_)
    for one in e.slices or []:
        if one.significant:
            made[one.rows] = True
    return made


def _earlier_right(e: Evidence) -> Mask:
    assert e.epochs is not None
    return np.asarray((e.epochs.predictions[:-1] == e.labels).any(axis=0) & (e.labels >= 0))


def _never_right(e: Evidence) -> Mask:
    assert e.epochs is not None
    return np.asarray((e.epochs.predictions != e.labels).all(axis=0) & (e.labels >= 0))


def _unstable(e: Evidence) -> Mask:
    assert e.epochs is not None
    flips = prediction_flips(e.epochs)
    return np.asarray((flips > np.median(flips)) & e.wrong)


def _miscalibrated(e: Evidence) -> Mask:
    known = e.errors >= 0
    cells, count = e.cells.cell[known], e.cells.count
    size = np.maximum(_per_cell(cells, None, count), 1)
    gap = _per_cell(cells, e.msp[known] - (e.errors[known] == 0), count) / size
    # The variance of a sum of Bernoullis whose probabilities are the stated confidences.
    spread = np.sqrt(_per_cell(cells, e.msp[known] * (1 - e.msp[known]), count)) / size
    return benjamini_hochberg(two_sided_z(gap, spread))[e.cells.cell] & known


_PREDICATES: dict[str, Callable[[Evidence], Mask]] = {
    "C01": lambda e: e.suspected,
    "C02": lambda e: e.flags.ambiguous,
    "C03": lambda e: conflicting_duplicates(e.hashes, e.labels) if e.hashes is not None else ~e.suspected,
    "C04": _leakage,
    "C10": _systematic_confusion,
    "C11": _head_fixable,
    "C12": _collapse,
    "C13": _uninformative,
    "C20": lambda e: np.asarray(e.category == CRITICAL),
    "C21": lambda e: e.wrong & e.flags.covered & ~e.flags.dense & ~e.suspected,
    "C22": lambda e: e.wrong & (e.labels == e.runner_up) & ~e.flags.dense,
    "C23": lambda e: (e.errors == 0) & (e.baseline_risk > e.t2) & (e.error_proba <= e.t1),
    "C30": _novel,
    "C31": _under_represented,
    "C32": _metadata_slice,
    "C33": _generalisation_gap,
    "C40": lambda e: _earlier_right(e) & e.wrong,
    "C41": _never_right,
    "C42": _unstable,
    "C50": _miscalibrated,
}
