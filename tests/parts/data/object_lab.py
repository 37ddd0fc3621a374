"""Labels and predictions in the shape that cleanlab's object detection takes, made here and turned into scenes and back.

Labels: `{"bboxes": (L, 4), "labels": (L,)}` an image. Predictions: for each class (M, 5) boxes and scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from simulated_detector import Scene

SIZE = 300
CLASSES = 10
Labels = list[dict[str, np.ndarray]]
Boxes = list[list[np.ndarray]]


@dataclass
class Planted:
    """Images with some labels changed.

    Attributes:
        labels: As the annotators have left them.
        predictions: Of the detector.
        swapped: (image, place) of labels whose class was changed.
        shifted: Likewise of boxes that were moved.
        missing: (image, box, class) of labels that were removed.
    """

    labels: Labels
    predictions: Boxes
    swapped: set[tuple[int, int]]
    shifted: set[tuple[int, int]]
    missing: list[tuple[int, np.ndarray, int]]


def some_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Whole pixels, from tiny to the whole image."""
    far = rng.integers(2, SIZE - 1, (count, 2))
    near = far - 1 - (rng.random((count, 2)) * (far - 1)).astype(int)
    return np.hstack([near, far]).astype(float)


def images(rng: np.random.Generator, count: int, wrong: int, least: float = 0.96) -> tuple[Labels, Boxes]:
    """The detector says exactly what is labelled; in the last `wrong` images the two have nothing in common."""
    labels, predictions = [], []
    for number in range(count):
        box, label = some_boxes(rng, rng.integers(1, 10)), None
        label = rng.integers(0, CLASSES, len(box))
        labels.append({"bboxes": box, "labels": label})
        if number >= count - wrong:
            box = some_boxes(rng, rng.integers(1, 13))
            label = rng.integers(0, CLASSES, len(box))
        rows = np.column_stack([box, rng.uniform(least, 1, len(box))])
        predictions.append([rows[label == one] for one in range(CLASSES)])
    return labels, predictions


def planted(
    seed: int, count: int, each: int, *, noise: float = 0.03, least: float = 0.5, clutter: float = 0.0
) -> Planted:
    """Of each fault `each` labels, with boxes that are off by `noise` and, in a share of the images, a false alarm."""
    rng = np.random.default_rng(seed)
    labels, predictions = images(rng, count, 0, least)
    for one in predictions:
        for rows in one:
            rows[:, :4] += rng.normal(0, noise, (len(rows), 4)) * np.tile(rows[:, 2:4] - rows[:, :2], 2)
            rows[:, 2:4] = np.maximum(rows[:, 2:4], rows[:, :2] + 1)
    for number in np.flatnonzero(rng.random(count) < clutter):
        x, y, wide, high = *rng.integers(0, 200, 2), *rng.integers(20, 90, 2)
        false = [x, y, x + wide, y + high, rng.uniform(0.05, 0.7)]
        one = rng.integers(CLASSES)
        predictions[number][one] = np.vstack([predictions[number][one], false])
    large = [
        (number, place)
        for number, one in enumerate(labels)
        for place, box in enumerate(one["bboxes"])
        if (box[2:] - box[:2]).min() > 20
    ]
    chosen = [large[k] for k in rng.permutation(len(large))[: 3 * each]]
    swapped, shifted, gone = chosen[:each], chosen[each : 2 * each], chosen[2 * each :]
    for number, place in swapped:
        label = labels[number]["labels"]
        label[place] = (label[place] + rng.integers(1, CLASSES)) % CLASSES
    for number, place in shifted:
        box, angle = labels[number]["bboxes"][place], rng.uniform(0, 2 * np.pi)
        step = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.3, 0.6)
        box += np.tile(step * (box[2:] - box[:2]), 2)
    missing = [(n, labels[n]["bboxes"][k].copy(), int(labels[n]["labels"][k])) for n, k in gone]
    place_of = without(labels, gone)
    return Planted(
        labels, predictions, {place_of[one] for one in swapped}, {place_of[one] for one in shifted}, missing
    )


def without(labels: Labels, gone: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Remove labels in place; where the others stand now."""
    places = {}
    for number, one in enumerate(labels):
        kept = [k for k in range(len(one["labels"])) if (number, k) not in gone]
        places |= {(number, k): (number, place) for place, k in enumerate(kept)}
        labels[number] = {"bboxes": one["bboxes"][kept].reshape(-1, 4), "labels": one["labels"][kept]}
    return places


def as_scene(labels: Labels, predictions: Boxes) -> Scene:
    """What `simulated_detector.write` records."""
    rows = [
        (number, label, *row)
        for number, one in enumerate(predictions)
        for label, boxes in enumerate(one)
        for row in boxes
    ]
    table = np.array(rows)
    table = table[np.lexsort((-table[:, 6], table[:, 0]))]
    frame = np.repeat(np.arange(len(labels)), [len(one["labels"]) for one in labels])
    said, true = len(table), len(frame)
    return Scene(
        frames=len(labels),
        n_class=CLASSES,
        night=np.zeros(len(labels), bool),
        frame=table[:, 0].astype(int),
        label=table[:, 1].astype(int),
        score=table[:, 6].astype(np.float32),
        box=table[:, 2:6].astype(np.float32),
        logits=np.zeros((said, CLASSES), np.float32),
        features=np.zeros((said, 4), np.float32),
        object_of=np.full(said, -1),
        truth_frame=frame,
        truth_label=np.concatenate([one["labels"] for one in labels]),
        truth_box=np.concatenate([one["bboxes"] for one in labels]).astype(np.float32),
        truth_object=np.zeros(true, int),
        removed=np.empty(0, int),
        fault=np.zeros(true, int),
    )


def as_theirs(scene: Scene) -> tuple[Labels, list[Any], list[np.ndarray]]:
    """A scene as cleanlab takes it: labels, predictions, and of each image the rows its scores come in."""
    labels, predictions, rows_of = [], [], []
    for number in range(scene.frames):
        true = np.flatnonzero(scene.truth_frame == number)
        labels.append({"bboxes": scene.truth_box[true].astype(float), "labels": scene.truth_label[true]})
        rows = np.flatnonzero(scene.frame == number)
        of_class = [rows[scene.label[rows] == label] for label in range(scene.n_class)]
        boxes = [
            np.column_stack([scene.box[r], scene.score[r]]).astype(float).reshape(-1, 5) for r in of_class
        ]
        predictions.append(np.array([*boxes, None], dtype=object)[:-1])
        rows_of.append(np.concatenate(of_class))
    return labels, predictions, rows_of
