"""The error estimator of the rounds for boxes: the plain one, and that of its parts, as one probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis.error_model import CSE
from mld_core.evaluation.classification.rounds.block import Block
from mld_core.evaluation.classification.rounds.cells import Around
from mld_core.evaluation.classification.rounds.estimator import Estimator, held_out_columns
from mld_core.evaluation.classification.rounds.fits import Sample
from mld_core.evaluation.detection.codes import U
from mld_core.evaluation.detection.error_probability import (
    BoxProbabilities,
    PartModels,
    fit_opinions,
    fit_parts,
    opined,
    opinions,
)
from mld_core.evaluation.detection.rounds.block import BoxBlock
from mld_core.evaluation.engine.executor import Workers


@dataclass(frozen=True)
class BoxEstimator(Estimator):
    """What gives any kept prediction its error probabilities.

    Attributes:
        parts: Models of the error codes and of a wrong class.
        opinions: For each fold what makes one probability of all; None where the plain one is no worse.
    """

    parts: PartModels
    opinions: tuple[Any, ...] | None

    def assess(
        self, block: Block, fixed: NDArray[np.float32], cell: NDArray[np.int32], around: Around
    ) -> tuple[NDArray[np.float64], BoxProbabilities]:
        """(n,) error probabilities, and those of the parts."""
        folds = block.folds[0]

        def columns(rows: NDArray[np.int64], fold: int) -> NDArray[np.float32]:
            return np.column_stack([fixed[rows], held_out_columns(block, rows, cell, around, 0, fold)])

        proba = super().score(block, fixed, cell, around)[0]
        parts = self.parts.score(columns, folds)
        if self.opinions is not None:
            proba = opined(self.opinions, opinions(proba, parts), folds)
        return proba, parts

    def score(
        self, block: Block, fixed: NDArray[np.float32], cell: NDArray[np.int32], around: Around
    ) -> tuple[NDArray[np.float64], ...]:
        """See `Estimator.score`; there is one look, the published one."""
        proba = self.assess(block, fixed, cell, around)[0]
        return proba, proba


def refine(
    estimator: Estimator,
    proba: NDArray[np.float64],
    columns: Callable[[NDArray[np.int64], int], NDArray[np.float32]],
    sample: Sample,
    workers: Workers,
) -> tuple[Estimator, NDArray[np.float64]]:
    """Fit the parts to the sample; see `BoxRefiner`, which does so in memory."""
    block, draw = sample.block, sample.draw
    assert isinstance(block, BoxBlock)
    folds = block.folds[0]
    weight = None if draw.wrong == draw.right else sample.raw
    codes = np.where(block.code == U, -1, block.code)
    models, parts = fit_parts(columns, folds, codes, block.wrong_class, workers, weight)
    opinion = None
    if estimator.source == CSE:
        both = opinions(proba, parts)
        opinion = fit_opinions(both, block.errors, np.arange(len(proba)), folds, workers, weight)
        proba = proba if opinion is None else opined(opinion, both, folds)
    return BoxEstimator(**vars(estimator), parts=models, opinions=opinion), proba
