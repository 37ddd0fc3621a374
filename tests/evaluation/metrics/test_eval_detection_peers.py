"""Cases in the shape of those that peers test their own metrics with, on data of our own, against torchmetrics.

The shapes: one image without predictions, without truths, without either; a class that only one side has; crowds;
areas that are not the boxes'; boxes of all sizes; several boxes on one truth; more boxes than count. No overlap is
exactly a threshold: torchmetrics holds thresholds in single precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.coco import coco_metrics, match_coco

Box = tuple[float, float, float, float]
A: Box = (10, 10, 60, 90)
B: Box = (100, 40, 180, 80)
SMALL: Box = (5, 5, 20, 25)
LARGE: Box = (50, 50, 250, 300)


def moved(box: Box, x: float, y: float = 0.0) -> Box:
    """The box some pixels further."""
    return (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


# An image: predictions (box, class, score) and truths (box, class, more).
Image = tuple[list[tuple[Box, int, float]], list[tuple[Any, ...]]]
CASES: dict[str, list[Image]] = {
    "one box found": [([(moved(A, 4), 0, 0.6)], [(A, 0)])],
    "all found exactly": [([(A, 0, 0.9), (B, 1, 0.8)], [(A, 0), (B, 1)]), ([(B, 2, 0.7)], [(B, 2)])],
    "nothing found": [([(A, 0, 0.9)], [(B, 0)]), ([], [(A, 0), (B, 1)])],
    "no predictions at all": [([], [(A, 0)]), ([], [(B, 1)])],
    "no truths at all": [([(A, 0, 0.9)], []), ([(B, 1, 0.4)], [])],
    "an image without predictions": [([(moved(A, 3), 0, 0.7)], [(A, 0)]), ([], [(B, 0)])],
    "an image without truths": [([(moved(A, 3), 0, 0.7)], [(A, 0)]), ([(B, 0, 0.8)], [])],
    "an image with neither": [([(moved(A, 3), 0, 0.7)], [(A, 0)]), ([], [])],
    "another class said": [([(A, 1, 0.9), (B, 0, 0.8)], [(A, 0), (B, 0)])],
    "a class without truths": [([(A, 0, 0.9), (B, 3, 0.95)], [(A, 0)])],
    "a class without predictions": [([(A, 0, 0.9)], [(A, 0), (B, 4)])],
    "several boxes on one truth": [
        ([(moved(A, 6), 0, 0.9), (moved(A, 2), 0, 0.8), (A, 0, 0.3), (B, 0, 0.2)], [(A, 0), (B, 0)])
    ],
    "the better-scored box is worse placed": [([(moved(A, 20), 0, 0.9), (A, 0, 0.5)], [(A, 0)])],
    "between the thresholds": [([(moved(B, k * 3.9), 0, 0.9 - k / 10)], [(B, 0)]) for k in range(6)],
    "a crowd": [
        ([(A, 0, 0.9), (moved(A, 1), 0, 0.8), (B, 0, 0.7)], [(A, 0, {"crowd": True}), (B, 0)]),
        ([(B, 0, 0.95)], [(A, 0)]),
    ],
    "areas of segments": [
        ([(moved(A, 2), 0, 0.9), (SMALL, 0, 0.8)], [(A, 0, {"area": 900.0}), (SMALL, 0, {"area": 90.0})]),
        ([(moved(LARGE, 9), 0, 0.7)], [(LARGE, 0, {"area": 9000.0})]),
    ],
    "all sizes": [
        ([(moved(SMALL, 1), 0, 0.9), (B, 0, 0.8), (moved(LARGE, 5), 0, 0.7)], [(SMALL, 0), (B, 0), (LARGE, 0)]),
        ([(moved(SMALL, 9), 1, 0.9), (LARGE, 1, 0.3)], [(SMALL, 1), (LARGE, 1)]),
    ],
    "more boxes than count": [
        ([(moved(A, k / 2), 0, 0.99 - k / 200) for k in range(120)], [(moved(A, 55.3), 0), (B, 0)])
    ],
    "scores in hundredths": [
        ([(moved(A, 3 * k), k % 3, 0.5 + k / 100) for k in range(9)], [(moved(A, 3 * k), k % 3) for k in range(9)])
    ],
}  # fmt: skip


def ours(images: list[Image], n_class: int) -> dict[str, float | None]:
    """Our figures, under torchmetrics' names."""
    found = [(i, *one) for i, (said, _) in enumerate(images) for one in said]
    true = [(i, *one[:2], *(one[2:] or ({},))) for i, (_, real) in enumerate(images) for one in real]
    predictions = Predictions(
        np.array([one[0] for one in found], np.int64),
        np.array([one[2] for one in found], np.int64),
        np.array([one[3] for one in found], np.float32),
        np.array([one[1] for one in found], np.float32).reshape(-1, 4),
    )
    truths = Truths(
        np.array([one[0] for one in true], np.int64),
        np.array([one[2] for one in true], np.int64),
        np.array([one[1] for one in true], np.float32).reshape(-1, 4),
        np.zeros(len(true), np.bool_),
        np.array([one[3].get("crowd", False) for one in true], np.bool_),
    )
    area = np.array([one[3].get("area", np.nan) for one in true], np.float64)
    figures = coco_metrics(match_coco(predictions, truths, n_class, area)).summary()
    return {name.replace("ar_", "mar_"): value for name, value in figures.items()}


def theirs(images: list[Image]) -> dict[str, float]:
    """torchmetrics' figures."""
    torch = pytest.importorskip("torch")
    detection = pytest.importorskip("torchmetrics.detection")
    metric = detection.MeanAveragePrecision(box_format="xyxy")
    said, real = [], []
    for found, true in images:
        said.append(
            {
                "boxes": torch.tensor([one[0] for one in found]).reshape(-1, 4),
                "labels": torch.tensor([one[1] for one in found], dtype=torch.int64),
                "scores": torch.tensor([one[2] for one in found], dtype=torch.float32),
            }
        )
        more = [one[2] if len(one) > 2 else {} for one in true]
        sizes = [
            m.get("area", (b[0][2] - b[0][0]) * (b[0][3] - b[0][1])) for m, b in zip(more, true, strict=True)
        ]
        real.append(
            {
                "boxes": torch.tensor([one[0] for one in true]).reshape(-1, 4),
                "labels": torch.tensor([one[1] for one in true], dtype=torch.int64),
                "iscrowd": torch.tensor([int(m.get("crowd", False)) for m in more], dtype=torch.int64),
                "area": torch.tensor(sizes, dtype=torch.float32),
            }
        )
    metric.update(said, real)
    return {name: float(value) for name, value in metric.compute().items() if value.ndim == 0}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_torchmetrics(name: str) -> None:
    images = CASES[name]
    expected, found = theirs(images), ours(images, 5)
    names = [
        *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
        "mar_1",
        "mar_10",
        "mar_100",
    ]
    for one in (*names, "mar_small", "mar_medium", "mar_large"):
        value = found[one]
        assert (-1.0 if value is None else value) == pytest.approx(expected[one], abs=1e-6), one
