"""What scores units that took no part in the fit of the error estimator: unlabelled ones, other splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mld_core.evaluation.analysis.stack_features import (
    ENCODING_WEIGHT,
    ONE_HOT_CLASSES,
    StackInputs,
    fold_columns,
    neighbour_rates,
)
from mld_core.evaluation.statistics.blocks import spans
from mld_core.evaluation.statistics.confidence import Confidence
from mld_core.evaluation.statistics.logistic import Logistic

PREDICT_ROWS = 65_536
TREE_ROWS = 2_048
"""Rows that stay in a core's cache while one tree after the other walks over them."""

CSE = "cse"
MSP_ISOTONIC = "msp_isotonic"
CONSTANT = "constant"


@dataclass(frozen=True)
class ErrorModel:
    """What scores units that took no part in the fit: fitted on every labelled unit.

    Attributes:
        trees: The boosted trees, None where the published score is the baseline or a constant.
        linear: The logistic regression on the same columns.
        platt: Calibration of the mean of both log-odds.
        confidence: Baseline risk from the largest softmax probability, None where it is constant.
        constant: (E + 1) / (n + 2).
        source: What `error_proba` is: "cse", "msp_isotonic" or "constant".
        shift: Added to the mean of both log-odds, which were fitted to a sample drawn by the outcome.
    """

    trees: Any
    linear: Logistic | None
    platt: Logistic | None
    confidence: Confidence | None
    constant: float
    source: str
    shift: float = 0.0

    def baseline(self, msp: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) risk a monitor of the softmax confidence would see."""
        return np.full(len(msp), self.constant) if self.confidence is None else self.confidence.risk(msp)

    def error_proba(self, columns: NDArray[np.float32], msp: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) error probability of units with all columns of the estimator."""
        if self.source == CONSTANT:
            return np.full(len(msp), self.constant)
        if self.source == MSP_ISOTONIC:
            return self.baseline(msp)
        assert self.linear is not None
        assert self.platt is not None
        mean = (tree_logit(self.trees, columns) + self.linear.logit(columns)) / 2 + self.shift
        return np.asarray(expit(self.platt.logit(mean[:, None])))


def tree_logit(trees: Any, columns: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) log-odds of the trees."""
    made = np.empty(len(columns))
    for span in spans(len(columns), TREE_ROWS):
        made[span] = trees.decision_function(columns[span])
    return made


def unit_columns(
    inputs: StackInputs, rows: NDArray[np.int64], folds: NDArray[np.int8] | None, held_out: int
) -> NDArray[np.float32]:
    """(n, columns) all columns of the estimator for these rows, with the rates of the other folds."""
    return np.column_stack([inputs.fixed[rows], fold_columns(inputs, rows, folds, held_out)])


def score_rest(
    model: ErrorModel, inputs: StackInputs, rows: NDArray[np.int64], msp: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n,) error probability of those `rows` of the fitted split that have no label."""
    if model.source != CSE:
        return model.error_proba(inputs.fixed[:0], msp[rows])
    parts = [
        model.error_proba(unit_columns(inputs, rows[span], None, -1), msp[rows[span]])
        for span in spans(len(rows), PREDICT_ROWS)
    ]
    return np.concatenate(parts)


def score_units(
    model: ErrorModel, reference: StackInputs, new: StackInputs, msp: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Error probability of units of another split by a model fitted on `reference`.

    Args:
        model: Fitted on the reference split.
        reference: What it was fitted on.
        new: Columns of the new units; `new.around` holds their surroundings among the reference units.
        msp: (N,) largest softmax probability of the new units.
    """
    if model.source != CSE:
        return model.error_proba(new.fixed[:0], msp)
    made = [
        model.error_proba(_new_columns(new, reference, span), msp[span])
        for span in spans(len(msp), PREDICT_ROWS)
    ]
    return np.concatenate(made) if made else np.empty(0)


def _new_columns(new: StackInputs, reference: StackInputs, span: slice) -> NDArray[np.float32]:
    rows = np.arange(span.start, span.stop)
    values = reference.errors[reference.base_rows].astype(np.float32)
    parts = [new.fixed[rows], neighbour_rates(new.around, values, rows)[0]]
    if new.n_class > ONE_HOT_CLASSES:
        rate = _class_rates(reference)
        parts += [rate[0][new.prediction[rows], None], rate[1][new.runner_up[rows], None]]
    return np.concatenate(parts, axis=1)


def _class_rates(reference: StackInputs) -> list[NDArray[np.float32]]:
    """Error rate of each predicted and each second class among the reference units, prior weight 20."""
    known = reference.base_rows
    errors = reference.errors[known].astype(np.float64)
    made = []
    for classes in (reference.prediction[known], reference.runner_up[known]):
        place = classes % (reference.n_class + 1)
        size = np.bincount(place, minlength=reference.n_class + 1)
        wrong = np.bincount(place, weights=errors, minlength=reference.n_class + 1)
        made.append(((wrong + ENCODING_WEIGHT * errors.mean()) / (size + ENCODING_WEIGHT)).astype(np.float32))
    return made
