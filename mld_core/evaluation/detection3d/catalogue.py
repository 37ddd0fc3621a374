"""The catalogue of 3D diagnoses T01 to T22, beside D01 to D23 (T20 takes the place of D20)."""

from __future__ import annotations

from mld_core.evaluation.codes.diagnosis import Diagnosis

ROAD_CATALOGUE: tuple[Diagnosis, ...] = (
    Diagnosis(
        "T01",
        "Depth error",
        3,
        "Depth supervision; check the calibration.",
        "the offset along the sensor's ray is beyond the class's robust bound, and above the lateral one",
    ),
    Diagnosis(
        "T02",
        "Lateral error",
        3,
        "Check the calibration (extrinsics); finer bird's-eye grid.",
        "the offset across the ray is beyond the class's robust bound",
    ),
    Diagnosis(
        "T03",
        "Vertical error",
        2,
        "Check the ground plane and the pitch.",
        "the height of the centre is off by more than the class's robust bound",
    ),
    Diagnosis(
        "T04",
        "Size error",
        2,
        "Size prior; check the mix of classes. `detail` says `swapped` where width and length are exchanged.",
        "1 - aligned IoU is beyond the class's robust bound",
    ),
    Diagnosis(
        "T05",
        "Yaw error",
        2,
        "Orientation loss.",
        "turned by more than the class's robust bound, less than a quarter turn",
    ),
    Diagnosis(
        "T06",
        "Yaw flip",
        3,
        "Direction classifier; look at T22 first.",
        "turned by a quarter turn or more, in a class with a front",
    ),
    Diagnosis(
        "T07",
        "Velocity error",
        2,
        "More sweeps; check the synchronisation.",
        "the velocity is off by more than the class's robust bound",
    ),
    Diagnosis(
        "T10",
        "Few-point miss",
        2,
        "More sweeps or fusion; may be out of specification.",
        "not found, at most 5 sensor points",
    ),
    Diagnosis(
        "T11",
        "Range drop-off",
        3,
        "Data at this range; check the range limits of model and post-processing.",
        "in a 10 m range bin where its class fails more than elsewhere and than others do there",
    ),
    Diagnosis(
        "T12",
        "Sensor-sector dropout",
        5,
        "Check the sensor's health; exclude the frames.",
        "in two or more consecutive 10-degree sectors that fall silent in this frame",
    ),
    Diagnosis(
        "T13",
        "Ghost",
        3,
        "Negatives with reflections and multipath.",
        "overlaps no truth although sensor points are inside",
    ),
    Diagnosis(
        "T20",
        "Suspected missing 3D label",
        4,
        "Add the box.",
        "false and overlapping no truth, yet its error probability is low and other epochs have it too",
    ),
    Diagnosis(
        "T21",
        "Suspected shifted label",
        4,
        "Redraw.",
        "T01 to T03, and other epochs agree with the prediction (without them: far more than usual)",
    ),
    Diagnosis(
        "T22",
        "Suspected flipped label",
        4,
        "Turn the label round.",
        "T06, and the motion has the prediction's heading, or other epochs do in a class whose headings "
        "are mostly right",
    ),
)
