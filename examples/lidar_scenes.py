"""LiDAR-like scenes for 3D detection, made by casting rays: nothing is downloaded.

A sensor 1.8 m above a slightly rough ground turns once, 32 rays up and down and 900 around; each ray returns
its first hit, so density falls with range and objects hide each other. Cars (a body and a hood, so that front
and rear differ), vans and pedestrians stand on the ground; some cars move along their heading.

Two faults are planted in the truth of the validation split, with a fixed seed, so that a demo, a test or a
benchmark can be held to finding them:

* `flipped`: the heading of a car's box is turned by pi; its velocity stays;
* `missing`: boxes of the truth are removed (the points are still in the scene).

Frame: x, y on the ground, z up, the sensor above the origin; metres, radians, metres per second; boxes are
cx, cy, cz, w, l, h, yaw with the gravity centre, l along the heading, yaw counter-clockwise from +x.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

__all__ = ["CLASSES", "RANGE", "Frame", "Planted", "from_above", "make_frame", "make_frames"]

CLASSES = ("car", "van", "pedestrian")
RANGE = 25.6  # metres from the origin to each side
_SENSOR = 1.8
_SIZES = ((1.8, 4.3, 1.5), (2.1, 5.6, 2.3), (0.6, 0.6, 1.75))  # w, l, h of each class
_SHARE = (0.6, 0.2, 0.2)
_HOOD = 0.35  # share of a car's length that is hood, at its front
_MIN_POINTS = 5  # objects with fewer points are not labelled, as in the public data sets


@dataclass(frozen=True)
class Frame:
    """One turn of the sensor and its truth.

    `points` is (n, 4) float32 x, y, z, intensity; `boxes` (m, 7) float32; `labels` (m,) int64; `velocities`
    (m, 2) float32; `n_points` (m,) int64.
    """

    points: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    velocities: np.ndarray
    n_points: np.ndarray


@dataclass
class Planted:
    """Where the faults are.

    `flipped` holds (frame, index of the box in the truth, whether the car moves); `missing` holds the removed
    boxes as (frame, box (7,), label).
    """

    flipped: list[tuple[int, int, bool]] = field(default_factory=list)
    missing: list[tuple[int, np.ndarray, int]] = field(default_factory=list)


def make_frames(
    n_train: int = 300, n_val: int = 250, *, seed: int = 0, rate: float = 0.05
) -> tuple[list[Frame], list[Frame], Planted]:
    """Training frames, validation frames with faults at `rate` of the boxes, and where the faults are."""
    rng = np.random.default_rng(seed)
    train = [make_frame(rng) for _ in range(n_train)]
    planted = Planted()
    val = [_spoil(i, make_frame(rng), planted, rate, rng) for i in range(n_val)]
    return train, val, planted


def make_frame(rng: np.random.Generator, n_objects: int | None = None) -> Frame:
    """One scene of 8 to 15 objects (or `n_objects`) and what the sensor sees of it."""
    count = int(rng.integers(8, 16)) if n_objects is None else n_objects
    boxes, labels = _place(count, rng)
    directions = _directions(rng)
    distance, hit = _cast(directions, boxes, labels)
    seen = distance < 1.5 * RANGE
    distance, hit, directions = distance[seen], hit[seen], directions[seen]
    distance = distance + rng.normal(0, 0.02, len(distance))
    xyz = directions * distance[:, None] + [0, 0, _SENSOR]
    xyz[:, 2] += np.where(hit < 0, rng.normal(0, 0.02, len(hit)), 0)
    intensity = np.where(hit < 0, 0.2, 0.5) + rng.normal(0, 0.05, len(hit))
    inside = (np.abs(xyz[:, :2]) < RANGE).all(axis=1)
    points = np.column_stack([xyz, intensity])[inside].astype(np.float32)
    n_points = np.bincount(hit[inside & (hit >= 0)], minlength=count)
    moving = (labels == 0) & (rng.random(count) < 0.7)
    speed = np.where(moving, rng.uniform(3, 12, count), 0.0)
    velocities = speed[:, None] * np.column_stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])])
    labelled = n_points >= _MIN_POINTS
    return Frame(
        points,
        boxes[labelled].astype(np.float32),
        labels[labelled],
        velocities[labelled].astype(np.float32),
        n_points[labelled],
    )


def from_above(points: np.ndarray, side: int = 256) -> np.ndarray:
    """A picture (side, side) uint8 of a frame's points (n, 4), x to the right, y up: the higher, the brighter."""
    column = ((points[:, 0] + RANGE) / (2 * RANGE) * side).astype(np.int64).clip(0, side - 1)
    row = ((RANGE - points[:, 1]) / (2 * RANGE) * side).astype(np.int64).clip(0, side - 1)
    picture = np.zeros((side, side), np.uint8)
    np.maximum.at(picture, (row, column), (60 + 80 * points[:, 2].clip(0, 2.4)).astype(np.uint8))
    return picture


def _place(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.choice(len(CLASSES), count, p=_SHARE)
    boxes: list[np.ndarray] = []
    for label in labels:
        w, length, h = np.array(_SIZES[label]) * rng.uniform(0.9, 1.1, 3)
        for _ in range(100):  # a place with nobody near, where there is one
            centre = rng.uniform(-RANGE + 2, RANGE - 2, 2)
            free = np.hypot(*centre) > 4 and all(
                np.hypot(*(centre - other[:2])) > (length + other[4]) / 2 + 0.5 for other in boxes
            )
            if free:
                break
        boxes.append(np.array([*centre, h / 2, w, length, h, rng.uniform(-np.pi, np.pi)]))
    return np.array(boxes).reshape(-1, 7), labels.astype(np.int64)


def _directions(rng: np.random.Generator) -> np.ndarray:
    up = np.deg2rad(np.linspace(-20, 3, 32))
    around = np.deg2rad(np.arange(0, 360, 0.4) + rng.uniform(0, 0.4))
    up, around = (grid.ravel() for grid in np.meshgrid(up, around))
    return np.column_stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])


def _cast(directions: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each ray's first hit, and the object it hit (-1: the ground)."""
    with np.errstate(divide="ignore"):
        distance = np.where(directions[:, 2] < 0, -_SENSOR / directions[:, 2], np.inf)
    hit = np.full(len(directions), -1)
    azimuth = np.arctan2(directions[:, 1], directions[:, 0])
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        off = (azimuth - np.arctan2(box[1], box[0]) + np.pi) % (2 * np.pi) - np.pi
        width = np.arcsin(min(1.0, np.hypot(box[3], box[4]) / 2 / np.hypot(box[0], box[1])))
        rays = np.flatnonzero(np.abs(off) <= width)
        for part in _parts(box, int(label)):
            entry = _entry(directions[rays], part)
            nearer = entry < distance[rays]
            distance[rays[nearer]], hit[rays[nearer]] = entry[nearer], i
    return distance, hit


def _parts(box: np.ndarray, label: int) -> list[np.ndarray]:
    """A car is a hood of half its height in front of a cabin; others are one box."""
    if label != 0:
        return [box]
    x, y, _, w, length, h, yaw = box
    parts = []
    for share, offset, height in ((_HOOD, 0.5 - _HOOD / 2, 0.55 * h), (1 - _HOOD, -_HOOD / 2, h)):
        centre = np.array([x, y]) + offset * length * np.array([np.cos(yaw), np.sin(yaw)])
        parts.append(np.array([*centre, height / 2, w, share * length, height, yaw]))
    return parts


def _entry(directions: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Distance at which each ray enters the box (slab method in the box's frame), infinite where it misses."""
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    origin = turn @ (np.array([0, 0, _SENSOR]) - box[:3])
    local = directions @ turn.T
    half = np.array([box[4], box[3], box[5]]) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (-half - origin) / local, (half - origin) / local
    near, far = np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)
    return np.where((near <= far) & (near > 0), near, np.inf)


def _spoil(index: int, frame: Frame, planted: Planted, rate: float, rng: np.random.Generator) -> Frame:
    boxes = frame.boxes.copy()
    fate = rng.random(len(boxes))
    gone = fate < rate
    flip = ~gone & (frame.labels == 0) & (fate < 2 * rate)
    for i in np.flatnonzero(gone):
        planted.missing.append((index, boxes[i].copy(), int(frame.labels[i])))
    boxes[flip, 6] = (boxes[flip, 6] + 2 * np.pi) % (2 * np.pi) - np.pi
    kept = np.flatnonzero(~gone)
    for place, i in enumerate(kept):
        if flip[i]:
            planted.flipped.append((index, place, bool(np.hypot(*frame.velocities[i]) > 1)))
    return Frame(frame.points, boxes[kept], frame.labels[kept], frame.velocities[kept], frame.n_points[kept])
