"""What the page says of detections: metrics, events, and the six kinds of error in words."""

from __future__ import annotations

from dataclasses import dataclass

from mld_core.views.words.texts import METRIC_TEXTS, MetricText

_SHARED = {text.name: text for text in METRIC_TEXTS}

DETECTION_METRICS: tuple[MetricText, ...] = (
    MetricText("nds", "NDS", "0 to 1", "up", "nuScenes detection score: half mAP, half box errors."),
    MetricText("auprc", "mAP", "0 to 1", "up", "Average precision, mean over classes and match thresholds."),
    MetricText(
        "ap40_3d_moderate", "KITTI AP40, 3D", "0 to 1", "up", "Overlap of 3D boxes, moderate objects."
    ),
    MetricText(
        "ap40_bev_moderate", "KITTI AP40, BEV", "0 to 1", "up", "Overlap on the ground, moderate objects."
    ),
    MetricText("ap40_image_moderate", "KITTI AP40, image", "0 to 1", "up", "Image boxes, moderate objects."),
    MetricText(
        "indoor_map_25", "mAP at overlap 0.25", "0 to 1", "up", "Overlap of 3D boxes above a quarter."
    ),
    MetricText("indoor_map_50", "mAP at overlap 0.50", "0 to 1", "up", "Overlap of 3D boxes above a half."),
    MetricText("map_50", "AP at IoU 0.50", "0 to 1", "up", "A box counts when half of the union overlaps."),
    MetricText("map_75", "AP at IoU 0.75", "0 to 1", "up", "Only well placed boxes count."),
    MetricText("map_small", "AP, small", "0 to 1", "up", "Objects below 32 x 32 pixels."),
    MetricText("map_medium", "AP, medium", "0 to 1", "up", "Objects of 32 x 32 to 96 x 96 pixels."),
    MetricText("map_large", "AP, large", "0 to 1", "up", "Objects above 96 x 96 pixels."),
    MetricText("ar_100", "AR", "0 to 1", "up", "Recall of the best 100 boxes of an image, mean over IoU."),
    MetricText(
        "precision", "Precision", "share", "up", "Of the boxes at the score threshold, the right ones."
    ),
    MetricText("recall", "Recall", "share", "up", "Of the true boxes, those found at the score threshold."),
    MetricText("f1", "F1", "0 to 1", "up", "Harmonic mean of precision and recall."),
    MetricText(
        "accuracy", "TP / (TP + FP + FN)", "share", "up", "Right boxes among right, false and missed."
    ),
    MetricText("auroc", "Score: AUROC", "0 to 1", "up", "How well the score tells right from false boxes."),
    MetricText(
        "frame_error_rate", "Images with an error", "share", "down", "A false or a missed box in the image."
    ),
    MetricText("mate", "Translation error", "m", "down", "Mean distance of centres of found boxes."),
    MetricText("mase", "Scale error", "0 to 1", "down", "1 - IoU after alignment, found boxes."),
    MetricText("maoe", "Orientation error", "rad", "down", "Mean yaw difference of found boxes."),
    MetricText("mave", "Velocity error", "m/s", "down", "Mean velocity difference of found boxes."),
    MetricText("maae", "Attribute error", "0 to 1", "down", "Share of found boxes with a wrong attribute."),
    MetricText(
        "error_proba_auroc",
        "Error probability: AUROC",
        "0 to 1",
        "up",
        "How well the error probability ranks false boxes above right ones; 0.5 is chance.",
    ),
    _SHARED["error_proba_auprc"],
    _SHARED["error_proba_brier"],
    _SHARED["error_proba_ece"],
    MetricText(
        "miss_proba_auroc",
        "Miss probability: AUROC",
        "0 to 1",
        "up",
        "How well the miss probability ranks missed objects above found ones.",
    ),
    MetricText(
        "frame_error_proba_auroc",
        "Image error probability: AUROC",
        "0 to 1",
        "up",
        "How well it ranks images with an error above images without.",
    ),
    _SHARED["augrc"],
    _SHARED["aurc"],
)


EVENTS = {
    "A": "well placed",
    "M": "roughly placed",
    "SP": "one piece of a split object",
    "SG": "one box over several objects",
    "D": "duplicate",
    "ON": "false, beside another box",
    "N": "false, on background",
    "U": "several of these",
}
"""The part of an error code after `DET:` in words."""

EVENT_ACTIONS = {
    "A": "Wrong class only: check the labels of the pair, then add data that tells the two apart.",
    "M": "Check how tightly the boxes are drawn; box loss, anchors or stride.",
    "SP": "Larger context or a larger receptive field; check that the object is labelled once.",
    "SG": "Soft non-maximum suppression, data of crowds.",
    "D": "Lower the non-maximum suppression threshold.",
    "ON": "Non-maximum suppression across classes; hard negatives.",
    "N": "Look for missing labels first, then add hard negatives.",
    "U": "Look at the boxes together.",
}
MISS_ACTION = "Data for this size, occlusion or region; check the score threshold of the class."


@dataclass(frozen=True)
class TideText:
    """One kind of error in words.

    Attributes:
        name: As in `dap_<name>`.
        title: As on the page.
        means: What such an error is.
        fix: What the gain is of, and how it is got.
    """

    name: str
    title: str
    means: str
    fix: str


TIDE_TEXTS: tuple[TideText, ...] = (
    TideText("cls", "Class", "The box fits a true box of another class.", "if every class were right"),
    TideText(
        "loc", "Location", "Right class, but it overlaps the true box too little.", "if every box sat right"
    ),
    TideText("both", "Class and location", "Wrong in both.", "if these boxes were not given"),
    TideText(
        "dupe", "Duplicate", "The object was already found by a better box.", "if none were given twice"
    ),
    TideText("bkg", "Background", "There is no true box.", "if nothing were seen in the background"),
    TideText("miss", "Missed", "No box comes near the object.", "if no object were missed"),
)
"""TIDE (Bolya et al. 2020), in its order."""
