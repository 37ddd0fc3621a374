"""The catalogue of detection diagnoses D01 to D23; see `catalogue`."""

from __future__ import annotations

from mld_core.evaluation.codes.diagnosis import Diagnosis

DETECTION_CATALOGUE: tuple[Diagnosis, ...] = (
    Diagnosis(
        "D01",
        "Wrong class",
        3,
        "Targeted data or hard negatives for the pair of classes; re-fit the classification head.",
        "the box fits a truth of another class (TIDE Cls)",
    ),
    Diagnosis(
        "D02",
        "Badly localised",
        3,
        "Box-loss weight, anchors or stride; check how tightly the boxes are drawn.",
        "overlaps a truth of its class at 0.1 to 0.5 (TIDE Loc); `detail` says shift, scale or aspect",
    ),
    Diagnosis(
        "D03",
        "Class and box wrong",
        3,
        "Treat as D05.",
        "overlaps a truth, wrong in class and place (TIDE Both)",
    ),
    Diagnosis(
        "D04",
        "Duplicate",
        2,
        "Non-maximum suppression threshold, or the set loss.",
        "the truth was already found by a better-scored box of the class (TIDE Dupe)",
    ),
    Diagnosis("D05", "Background", 3, "Hard negatives; look at D20 first.", "overlaps no truth (TIDE Bkg)"),
    Diagnosis(
        "D06",
        "Missed",
        4,
        "Data for this size, occlusion or region.",
        "not found, and no prediction of any score overlaps it at 0.1",
    ),
    Diagnosis(
        "D07",
        "Missed by threshold",
        3,
        "A threshold for the class, calibration.",
        "not found, but a prediction of its class below the score threshold matches it",
    ),
    Diagnosis(
        "D08",
        "Missed in a crowd",
        3,
        "Soft non-maximum suppression, crowded data.",
        "D06 or D07, and two or more other truths overlap it at 0.3",
    ),
    Diagnosis(
        "D09",
        "Small or cut off",
        2,
        "Higher resolution, tiling.",
        "not found, and smaller than 9 in 10 of its class or touching the image's border",
    ),
    Diagnosis(
        "D20",
        "Suspected missing label",
        4,
        "Look, and add the box if it is one.",
        "background by the labels, yet of low estimated risk, among the N_hat least risky",
    ),
    Diagnosis(
        "D21",
        "Suspected bad box label",
        3,
        "Redraw the truth's box.",
        "badly localised while other epochs agree with the prediction, or far below the usual overlap of the "
        "class although the box itself looks well placed",
    ),
    Diagnosis(
        "D22",
        "Suspected wrong class label",
        4,
        "Relabel (the suggested label is shown).",
        "fits a truth of another class, and the label posterior points away from the truth's class",
        ("labels",),
    ),
    Diagnosis(
        "D23",
        "Suspected spurious label",
        3,
        "Remove the truth or mark it as ignored.",
        "not found although such objects usually are, and no prediction of any score or epoch supports it",
    ),
)
"""Shared by 2D and 3D; "overlap" is closeness there (1 - centre distance / 4 m)."""
