"""The catalogue of diagnoses: what each code means, how bad it is and what to do about it."""

from __future__ import annotations

from mld_core.evaluation.codes.diagnosis import Diagnosis
from mld_core.evaluation.detection.catalogue import DETECTION_CATALOGUE
from mld_core.evaluation.detection3d.catalogue import ROAD_CATALOGUE

__all__ = ["BY_CODE", "CATALOGUE", "NEEDS", "Diagnosis", "primary_first"]


NEEDS = {
    "hashes": "no input hashes are recorded (input_hash=False)",
    "train": "the train split is not recorded with the same layers",
    "train_hashes": "the train split's input hashes are not recorded",
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

CATALOGUE: tuple[Diagnosis, ...] = (
    Diagnosis(
        "C01",
        "Suspected wrong label",
        4,
        "Relabel (the suggested label is shown), retrain, re-evaluate.",
        "wrong, the label posterior points elsewhere, among the worst label qualities, as many as labels are "
        "probably wrong",
        ("labels",),
    ),
    Diagnosis(
        "C02",
        "Ambiguous label",
        2,
        "Second annotator, soft label, or merge the classes; do not add capacity.",
        "two labels tie among the neighbours in every recorded layer",
        ("labels",),
    ),
    Diagnosis(
        "C03",
        "Conflicting duplicates",
        4,
        "Adjudicate and remove duplicates.",
        "same input, different label",
        ("hashes", "labels"),
    ),
    Diagnosis(
        "C04",
        "Split leakage",
        5,
        "Remove from the evaluation and recompute.",
        "the same input is in the train split",
        ("hashes", "other_split", "train_hashes"),
    ),
    Diagnosis(
        "C10",
        "Systematic confusion",
        4,
        "Targeted data or hard negatives for the pair; check the labelling guide.",
        "dense errors, wrong, and the (label, prediction) pair is more frequent than its margins explain",
        ("labels",),
    ),
    Diagnosis(
        "C11",
        "Head fixable",
        3,
        "Re-fit or calibrate the last layer; re-weight the classes.",
        "wrong, and the neighbours' labels clearly say the true class",
        ("labels",),
    ),
    Diagnosis(
        "C12",
        "Representation collapse",
        4,
        "Unfreeze or augment; add the input condition that is missing.",
        "dense errors, no two labels hold a majority in the last layer, but they do in an earlier one",
        ("labels", "layers"),
    ),
    Diagnosis(
        "C13",
        "Uninformative input",
        3,
        "Check sensor and preprocessing; offer a reject option.",
        "dense errors, no two labels hold a majority in any layer",
        ("labels",),
    ),
    Diagnosis(
        "C20",
        "Silent systematic failure",
        5,
        "Collect and label this region first; block the release.",
        "critical hotspot",
    ),
    Diagnosis(
        "C21",
        "Overconfident isolated error",
        3,
        "Calibrate; inspect; add to the regression set.",
        "wrong, passed by a confidence monitor, no dense errors around it, not C01",
    ),
    Diagnosis(
        "C22",
        "Boundary error",
        2,
        "More data near the boundary, margin loss.",
        "wrong, the label is the runner-up, no dense errors around it",
        ("labels",),
    ),
    Diagnosis(
        "C23",
        "Under-confident correct",
        1,
        "Calibrate (temperature).",
        "right and of low estimated risk, yet a confidence monitor would raise an alarm",
    ),
    Diagnosis(
        "C30",
        "Novel input",
        3,
        "Acquire similar data; out-of-distribution gate.",
        "farther from the train split than train units are from each other",
        ("train", "other_split"),
    ),
    Diagnosis(
        "C31",
        "Under-represented",
        3,
        "Rebalance, mine for similar data.",
        "the cell's share of the train split is significantly below its share here",
        ("train", "other_split"),
    ),
    Diagnosis(
        "C32",
        "Metadata slice failure",
        4,
        "Slice-specific data; fairness check.",
        "in one of the best-scoring metadata slices, significantly worse than the rest",
        ("metadata",),
    ),
    Diagnosis(
        "C33",
        "Generalisation gap",
        3,
        "Regularise, augment for the cell.",
        "the cell's error rate here is significantly above its rate in train",
        ("train", "other_split", "train_errors"),
    ),
    Diagnosis(
        "C40",
        "Forgotten",
        2,
        "Schedule, replay, an earlier checkpoint.",
        "right in an earlier epoch, wrong in the last",
        ("epochs", "labels"),
    ),
    Diagnosis(
        "C41",
        "Never learned",
        3,
        "Check C01 first, then capacity and curriculum.",
        "never right in any recorded epoch",
        ("train_split", "epochs", "labels"),
    ),
    Diagnosis(
        "C42",
        "Unstable",
        1,
        "Average the weights (EMA), lower the learning rate.",
        "wrong, and its prediction flips more often than the split's median",
        ("many_epochs",),
    ),
    Diagnosis(
        "C50",
        "Local miscalibration",
        2,
        "Regional calibration.",
        "the cell's mean confidence differs significantly from its accuracy",
    ),
    Diagnosis(
        "C90", "Regressed", 4, "Add to the regression set.", "right before, wrong now", ("comparison",)
    ),
    Diagnosis("C91", "Fixed", 1, "Keep in the regression set.", "wrong before, right now", ("comparison",)),
)

BY_CODE = {entry.code: entry for entry in (*CATALOGUE, *DETECTION_CATALOGUE, *ROAD_CATALOGUE)}
"""Entries of all tasks; `CATALOGUE` holds those of classification."""


def primary_first(codes: list[str]) -> list[str]:
    """Codes by falling severity, then number; the first is the primary code.

    Example:
        >>> primary_first(["C02", "C01", "C20"])
        ['C20', 'C01', 'C02']
    """
    return sorted(codes, key=lambda code: (-BY_CODE[code].severity, code))
