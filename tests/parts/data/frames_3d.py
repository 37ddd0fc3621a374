"""Random frames of predicted and true 3D boxes for the tests and benchmarks of the 3D metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mld_core.evaluation.metrics.boxes import Predictions, Truths

NUSCENES = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
)
SIZES = np.array(  # w, l, h in metres, roughly the means of nuScenes
    [
        [1.95, 4.6, 1.7],
        [2.5, 6.9, 2.8],
        [2.9, 11.0, 3.5],
        [2.9, 12.3, 3.9],
        [2.8, 6.4, 3.2],
        [0.67, 0.73, 1.77],
        [0.77, 2.1, 1.47],
        [0.6, 1.7, 1.28],
        [0.41, 0.41, 1.07],
        [2.5, 0.5, 0.98],
    ]
)
SHARE = np.array([0.43, 0.08, 0.02, 0.02, 0.02, 0.2, 0.02, 0.02, 0.09, 0.1])


@dataclass(frozen=True)
class Frames:
    """Boxes of some frames."""

    predictions: Predictions
    velocities: np.ndarray
    truths: Truths
    true_velocities: np.ndarray
    n_points: np.ndarray


def _boxes(rng, label, reach):
    count = len(label)
    far, turn = reach * np.sqrt(rng.random(count)), rng.uniform(-np.pi, np.pi, count)
    size = SIZES[label] * np.exp(rng.normal(0, 0.15, (count, 3)))
    yaw = rng.uniform(-np.pi, np.pi, count)
    return np.column_stack([far * np.cos(turn), far * np.sin(turn), rng.normal(-1, 0.5, count), size, yaw])


def make_frames(
    frames, *, seed=0, truths=30, detections=100, reach=55.0, ties=False, absent=(), unknown=0.05, empty=0.05
):
    """About half of the predictions lie around truths, with errors that grow as the score falls."""
    rng = np.random.default_rng(seed)
    share = SHARE.copy()
    share[list(absent)] = 0
    share /= share.sum()
    per_frame = np.where(rng.random(frames) < empty, 0, rng.poisson(truths, frames))
    frame = np.repeat(np.arange(frames), per_frame)
    label = rng.choice(len(SIZES), len(frame), p=share)
    box = _boxes(rng, label, reach)
    speed = np.where(rng.random(len(frame)) < 0.5, 0.0, rng.gamma(2.0, 3.0, len(frame)))
    moving = speed[:, None] * np.column_stack([np.cos(box[:, 6]), np.sin(box[:, 6])])
    moving[rng.random(len(frame)) < unknown] = np.nan
    none = np.zeros(len(frame), bool)
    n_points = rng.poisson(4000 / (5 + np.hypot(box[:, 0], box[:, 1]) ** 2)).astype(np.int32)

    count = np.where(rng.random(frames) < empty, 0, rng.poisson(detections, frames))
    which = np.repeat(np.arange(frames), count)
    said = rng.choice(len(SIZES), len(which), p=SHARE)
    made = _boxes(rng, said, reach)
    velocity = rng.normal(0, 1, (len(which), 2))
    first = np.searchsorted(frame, np.arange(frames))
    near = (per_frame[which] > 0) & (rng.random(len(which)) < 0.5)
    rows = first[which[near]] + (rng.random(near.sum()) * per_frame[which[near]]).astype(int)
    quality = rng.random(len(rows))
    moved = box[rows].copy()
    moved[:, :2] += rng.normal(0, 1, (len(rows), 2)) * (0.15 + 1.5 * (1 - quality[:, None]) ** 2)
    moved[:, 3:6] *= np.exp(rng.normal(0, 0.1, (len(rows), 3)))
    moved[:, 6] += rng.normal(0, 0.15, len(rows)) + np.pi * (rng.random(len(rows)) < 0.06)
    made[near] = moved
    said[near] = np.where(rng.random(len(rows)) < 0.9, label[rows], said[near])
    velocity[near] = np.nan_to_num(moving[rows]) + rng.normal(0, 0.4, (len(rows), 2))
    score = 0.6 * rng.random(len(which)) ** 2
    score[near] = 0.1 + 0.85 * np.clip(quality + rng.normal(0, 0.15, len(rows)), 0, 1)
    score = (np.round(score, 1) if ties else score).astype(np.float32)
    return Frames(
        Predictions(which, said, score, made),
        velocity,
        Truths(frame, label, box, none, none),
        moving,
        n_points,
    )
