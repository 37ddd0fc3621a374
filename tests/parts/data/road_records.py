"""Simulated roads and KITTI-like frames as records of a 3D detector; passes lie in several parts on request."""

from __future__ import annotations

import json

import boxes_store
import kitti_frames
import numpy as np
import road_simulation

CAMERA = [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]
PROJECT = [[700, 0, 600], [0, 700, 180], [0, 0, 1.0]]


def road_frames(road, epoch=-1, *, velocity=True):
    """The frames of one epoch of a `Road`, as `boxes_store.write` takes them; logits are about the score's log-odds."""
    found, frames = road.epochs[epoch], []
    last = epoch in {-1, len(road.epochs) - 1}
    rows = _by_frame(found.frame, road.frames), _by_frame(road.truths.frame, road.frames)
    for number, (a, b) in enumerate(zip(*rows, strict=True)):
        score = np.clip(found.score[a].astype(float), 1e-4, 1 - 1e-4)
        said = {"box": found.box[a], "label": found.label[a], "score": found.score[a]}
        own = np.log(score / (1 - score))
        others = np.random.default_rng(number).normal(-5, 1, (len(score), len(road_simulation.CLASSES)))
        said["logits"] = np.minimum(others, own[:, None] - 0.1)
        said["logits"][np.arange(len(score)), said["label"]] = own
        true = {"box": road.truths.box[b], "label": road.truths.label[b], "n_points": road.n_points[b]}
        if velocity:
            true["velocity"] = road.true_velocity[b]
            if last:
                said["velocity"] = road.velocity[a]
        frames.append({"input_id": f"frame{number:04d}", "detections": said, "truths": true})
    return frames


def _by_frame(frame, frames):
    """The rows of each frame."""
    order = np.argsort(frame, kind="stable")
    return np.split(order, np.searchsorted(frame[order], np.arange(1, frames)))


def kitti_records(count, *, seed=0, cameras=True):
    """KITTI-like frames with difficulties; with `cameras` each says how it lies in its image."""
    data, _ = kitti_frames.make_kitti(count, seed=seed, images=False)
    found, true = data.predictions, data.truths
    calibration = {"lidar2cam": CAMERA, "cam2img": PROJECT, "image_size": [370, 1242]}
    frames = []
    for number in range(count):
        a, b = found.frame == number, true.frame == number
        said = {"box": found.box[a], "label": found.label[a], "score": found.score[a]}
        truths = {"box": true.box[b], "label": true.label[b], "ignore": true.ignore[b]}
        truths["difficulty"] = data.difficulty[b]
        frames.append({"input_id": f"{number:06d}", "detections": said, "truths": truths})
        if cameras:
            frames[-1]["calibration"] = json.dumps(calibration)
    return frames


def write(store, run, dataset, frames, class_names, **how):
    """One sealed pass of them."""
    boxes_store.write(store, run, dataset, frames, "detection3d", class_names=list(class_names), **how)
