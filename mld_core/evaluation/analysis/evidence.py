"""What an analysis found of every unit, as the diagnoses of a task read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.codes.categories import Flags
from mld_core.evaluation.codes.diagnosis import Mask
from mld_core.evaluation.space.arrays import EpochArrays
from mld_core.evaluation.space.cells import Ambiguity
from mld_core.evaluation.space.slices import MetadataSlice

NEEDS = {
    "inputs": "no input hashes are recorded (input_hash=False); the split is too large for pairs of units",
    "neighbours": "the split is too large for pairs of units",
    "train": "the train split is not recorded with the same layers",
    "train_inputs": "neither the input hashes of both splits nor the train split's same layers are recorded",
    "train_errors": "the train split's predictions are not recorded",
    "epochs": "fewer than two epochs of this split are recorded with stable ids",
    "many_epochs": "fewer than three epochs of this split are recorded with stable ids",
    "metadata": "no additional fields (metadata columns) are recorded",
    "train_split": "it concerns the train split only",
    "other_split": "it concerns splits other than train",
    "comparison": "it comes out of a comparison of two results only",
    "labels": "no unit carries a class label",
    "layers": "only one layer is recorded: earlier layers are needed to tell it from C13",
}
"""Why a code cannot be computed, by what is missing."""


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
        novel: Units unlike the train split, or None without one.
        near_train: Near-duplicates of train units, or None.
        copy_of: (N,) rows of units of another group that are nearly the same, -1 = none; None for cells.
        ordered: Units that stand near their neighbours in the order of the data; None for cells.
        epochs: Other epochs, or None.
        slices: Metadata slices, or None without metadata.
        is_train: Whether this is the train split.
        kept: Whose errors a half of the data counts; None = all.
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
    novel: Mask | None = None
    near_train: Mask | None = None
    copy_of: NDArray[np.int64] | None = None
    ordered: Mask | None = None
    epochs: EpochArrays | None = None
    slices: list[MetadataSlice] | None = None
    is_train: bool = False
    kept: Mask | None = None

    @property
    def wrong(self) -> Mask:
        """Labelled and wrong."""
        return np.asarray(self.errors == 1)

    @property
    def rows(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def missing(self) -> dict[str, str]:
        """What is not there, and why a code that needs it cannot be computed."""
        epochs = 0 if self.epochs is None else len(self.epochs.predictions)
        absent = {
            "inputs": self.hashes is None and self.copy_of is None,
            "neighbours": self.ordered is None,
            "train_inputs": self.near_train is None and (self.hashes is None or self.train_hashes is None),
            "train": self.novel is None,
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
        return {name: NEEDS[name] for name, gone in absent.items() if gone}
