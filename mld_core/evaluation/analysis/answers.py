"""What an analysis is asked and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.analysis.error_probability import ErrorProbability
from mld_core.evaluation.analysis.evidence import Evidence
from mld_core.evaluation.analysis.halves import Halves, Replays
from mld_core.evaluation.analysis.labels.quality import LabelPosterior
from mld_core.evaluation.analysis.stack_features import StackInputs
from mld_core.evaluation.analysis.train_reference import TrainReference
from mld_core.evaluation.codes.categories import Flags, Thresholds
from mld_core.evaluation.codes.diagnosis import Diagnoses, Diagnosis
from mld_core.evaluation.engine.executor import Stage, Workers
from mld_core.evaluation.space import space
from mld_core.evaluation.space.arrays import LogitScores, SplitArrays
from mld_core.evaluation.space.cells import Density
from mld_core.evaluation.space.layers import LayerView
from mld_core.evaluation.space.neighbourhood import CELL_LIMIT, Surroundings
from mld_core.evaluation.space.neighbours import EXACT_LIMIT
from mld_core.evaluation.space.regions import Region
from mld_core.evaluation.space.slices import MetadataSlice
from mld_core.evaluation.statistics.bootstrap import REPLICATES
from mld_core.evaluation.statistics.folds import SALTS
from mld_core.evaluation.statistics.risk import RiskCurve


@dataclass(frozen=True)
class AnalysisOptions:
    """Choices of an analysis.

    Attributes:
        risk_tolerance: Replaces the threshold t2; None = from the reference split.
        replicates: Bootstrap replicates; 0 = no intervals.
        exact_limit: Base units up to which neighbours are exact.
        cell_limit: Base units above which cells stand for neighbours.
        threads: None = one for each usable core, at most 16.
        salts: One repeat of the cross-fit for each.
        keep_model: Keep what scores units of other splits (`project_units`); costs the columns' memory.
        permute_errors: Shuffle the errors by hash first: the null, under which nothing may be dense.
        refine: Called beside the fit of the error probability, with what that is fitted on and the shared
            work of the analysis: what makes of it the one that is used instead (boxes: the recalibrated
            product of two probabilities).
        diagnoses: The task's diagnoses that read this evidence.
    """

    risk_tolerance: float | None = None
    replicates: int = REPLICATES
    exact_limit: int = EXACT_LIMIT
    cell_limit: int = CELL_LIMIT
    threads: int | None = None
    salts: tuple[str, ...] = SALTS
    keep_model: bool = False
    permute_errors: bool = False
    refine: Callable[[StackInputs, Any], Callable[[ErrorProbability], ErrorProbability]] | None = None
    diagnoses: tuple[Diagnosis[Evidence], ...] = ()


@dataclass(frozen=True)
class Reference:
    """What other splits take over from the reference split."""

    thresholds: Thresholds
    risk: RiskCurve


@dataclass(frozen=True)
class Fitted:
    """What scores units of another split."""

    space: space.Space
    around: Surroundings
    inputs: StackInputs
    labels: NDArray[np.int64]
    group_keys: NDArray[Any]
    estimate: ErrorProbability
    density: Density
    halves: Halves
    kept: NDArray[np.bool_]
    with_train: bool
    with_epochs: bool = False


@dataclass
class Work:
    """What the stages of one analysis share.

    Attributes:
        arrays: The split.
        options: Choices.
        workers: Open pool.
        scores: Figures of the logits.
        errors: (N,) 1 wrong, 0 right, -1 unlabelled; permuted where the options say so.
        known: (M,) rows of the labelled units.
        groups: (N,) place of each unit's group in `hashes`.
        hashes: (G,) hashes of the group keys.
        folds: (N,) folds for each repeat.
    """

    arrays: SplitArrays
    options: AnalysisOptions
    workers: Workers
    scores: LogitScores
    errors: NDArray[np.int8]
    known: NDArray[np.int64]
    groups: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    folds: list[NDArray[np.int8]]

    def stage(self, name: str) -> Stage:
        """Open a line of progress."""
        return self.workers.stage(f"{name} ({self.arrays.name})")


@dataclass
class Estimated:
    """What the first stages of an analysis found, as the later ones read it."""

    work: Work
    space: space.Space
    points: NDArray[np.float32]
    around: Surroundings
    train: TrainReference | None
    train_points: NDArray[np.float32] | None
    inputs: StackInputs
    estimate: ErrorProbability


@dataclass(frozen=True)
class Judged:
    """The decisions about every unit.

    Attributes:
        own: What this split would hand to others.
        used: The thresholds it was judged by.
        density: Local error rates; `low` is what three in four halves of the data reach.
        risk_low: (N,) `p_lo`.
        view: The labels around the units.
        flags: The six booleans.
        category: (N,) category numbers, -1 where unlabelled.
        state: Thresholds and risk curves of the halves.
        replays: The decisions of the halves.
    """

    own: Reference
    used: Thresholds
    density: Density
    risk_low: NDArray[np.float64]
    view: LayerView
    flags: Flags
    category: NDArray[np.int8]
    state: Halves
    replays: Replays


@dataclass(frozen=True)
class Explanation:
    """Why units fail and where; named as the attributes of `SplitAnalysis`."""

    neighbours: NDArray[np.int64] | None
    region: NDArray[np.int32]
    regions: list[Region]
    diagnoses: Diagnoses
    slices: list[MetadataSlice] | None


@dataclass(frozen=True, kw_only=True)
class UnitAnswers:
    """What is said of every unit, labelled or not; arrays are (N,) in the order of the units.

    Attributes:
        prediction: int64, -1 where the logits were not finite.
        msp: float64 largest softmax probability.
        error_proba: float64.
        baseline_risk: float64 calibrated risk of msp.
        risk_low: float64 `p_lo`.
        density: k, m, local error rate and its lower bound `r_lo`.
        flags: The six booleans.
        category: int8 number in `categories.CATEGORIES`, -1 where unlabelled.
        neighbours: (N, 8) rows of the nearest labelled units, -1 where there are fewer; None for cells.
        close_classes: (N, 4) classes with at least 15 % of the neighbours, -1 where fewer.
        points: (N, <= 64) float32 PCA coordinates.
    """

    prediction: NDArray[np.int64]
    msp: NDArray[np.float64]
    error_proba: NDArray[np.float64]
    baseline_risk: NDArray[np.float64]
    risk_low: NDArray[np.float64]
    density: Density
    flags: Flags
    category: NDArray[np.int8]
    neighbours: NDArray[np.int64] | None
    close_classes: NDArray[np.int32]
    points: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SplitAnalysis(UnitAnswers):
    """Answers for one split.

    Attributes:
        errors: int8 1 wrong, 0 right, -1 unlabelled.
        membership: float32 share of the halves of the data that give the unit its category; NaN unlabelled.
        projected: int8 category as if no error were known.
        ambiguity: float32 share of neighbours without the most frequent label, last layer.
        label_quality: float32 q of the given label, NaN where unlabelled.
        suggested_label: int64 most plausible label.
        region: int32, -1 outside.
        regions: The table of regions.
        estimate: Source of the error probability, guard.
        posterior: Weights of the label posterior and N_hat.
        diagnoses: Codes, severities, and what could not be computed.
        reference: Thresholds and bins for other splits.
        used: The thresholds this split was categorised with.
        metrics: Metrics of the error probability with intervals.
        ratios: Category shares.
        facts: k, m, t1, t2, method of the neighbours, measured recall, ...
        fitted: What scores other units, if kept.
        slices: Metadata slices, or None without metadata.
    """

    errors: NDArray[np.int8]
    membership: NDArray[np.float32]
    projected: NDArray[np.int8]
    ambiguity: NDArray[np.float32]
    label_quality: NDArray[np.float32]
    suggested_label: NDArray[np.int64]
    region: NDArray[np.int32]
    regions: list[Region]
    estimate: ErrorProbability
    posterior: LabelPosterior
    diagnoses: Diagnoses
    reference: Reference
    used: Thresholds
    metrics: Mapping[str, float | None]
    ratios: Mapping[str, float | None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    fitted: Fitted | None = None
    slices: list[MetadataSlice] | None = None
