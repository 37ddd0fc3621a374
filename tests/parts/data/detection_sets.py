"""Random sets of predicted and true boxes for the tests and benchmarks of the detection metrics."""

from __future__ import annotations

import numpy as np

from mld_core.evaluation.metrics.boxes import Predictions, Truths


def random_boxes(rng, count, size=640):
    """(count, 4) xyxy boxes of all sizes; whole pixels, so that areas are exact in any arithmetic."""
    scale = np.exp(rng.uniform(np.log(8), np.log(300), count))
    wide = np.maximum(np.round(scale * rng.uniform(0.5, 2, count)), 2)
    high = np.maximum(np.round(scale * rng.uniform(0.5, 2, count)), 2)
    x, y = np.round(rng.uniform(0, size, count)), np.round(rng.uniform(0, size, count))
    return np.stack([x, y, x + wide, y + high], axis=1)


def make_set(
    frames,
    *,
    seed=0,
    n_class=8,
    truths=8,
    detections=30,
    crowd=0.05,
    ignore=0.0,
    ties=False,
    empty=0.1,
    jitter=0.12,
):
    """Predictions and truths of some frames: about half of the predictions lie around truths."""
    rng = np.random.default_rng(seed)
    per_frame = np.where(rng.random(frames) < empty, 0, rng.poisson(truths, frames))
    frame = np.repeat(np.arange(frames), per_frame)
    box = random_boxes(rng, len(frame))
    label = rng.integers(0, n_class, len(frame))
    is_crowd = rng.random(len(frame)) < crowd
    is_ignored = rng.random(len(frame)) < ignore
    true = Truths(frame, label, box, is_ignored, is_crowd)

    count = np.where(rng.random(frames) < empty, 0, rng.poisson(detections, frames))
    which = np.repeat(np.arange(frames), count)
    made, said = random_boxes(rng, len(which)), rng.integers(0, n_class, len(which))
    first = np.searchsorted(frame, np.arange(frames))
    there = per_frame[which] > 0
    near = there & (rng.random(len(which)) < 0.55)
    rows = first[which[near]] + (rng.random(near.sum()) * per_frame[which[near]]).astype(int)
    size = np.tile(box[rows, 2:] - box[rows, :2], 2)
    moved = np.round(box[rows] + rng.normal(0, jitter, (len(rows), 4)) * size)
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    made[near] = moved
    said[near] = np.where(rng.random(len(rows)) < 0.85, label[rows], said[near])
    score = rng.beta(1 + 2 * near, 2).astype(np.float32)
    if ties:
        score = np.round(score, 1).astype(np.float32)
    return Predictions(which, said, score, made), true


def as_coco(predictions, truths, frames, n_class):
    """The annotation dictionary and the (N, 7) result array pycocotools reads."""
    wide = truths.box[:, 2:] - truths.box[:, :2]
    annotations = [
        {
            "id": k + 1,
            "image_id": int(truths.frame[k]) + 1,
            "category_id": int(truths.label[k]) + 1,
            "bbox": [*truths.box[k, :2].tolist(), *wide[k].tolist()],
            "area": float(wide[k].prod()),
            "iscrowd": int(truths.crowd[k]),
            "ignore": int(truths.ignore[k]),
        }
        for k in range(len(truths))
    ]
    images = [{"id": k + 1, "width": 2000, "height": 2000} for k in range(frames)]
    categories = [{"id": k + 1, "name": f"c{k}"} for k in range(n_class)]
    results = np.column_stack(
        [
            predictions.frame + 1,
            predictions.box[:, :2],
            predictions.box[:, 2:] - predictions.box[:, :2],
            predictions.score,
            predictions.label + 1,
        ]
    )
    return {"images": images, "annotations": annotations, "categories": categories, "info": {}}, results
