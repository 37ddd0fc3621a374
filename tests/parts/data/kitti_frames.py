"""Random KITTI-like frames, and AP40 the slow way: shapely polygons, one threshold, frame and truth at a time."""

from __future__ import annotations

import numpy as np
from shapely.geometry import Polygon

from mld_core.evaluation.metrics.boxes import Predictions, Truths
from mld_core.evaluation.metrics.camera import image_boxes
from mld_core.evaluation.metrics.kitti import KittiFrames, difficulties

NAMES = ("Car", "Pedestrian", "Cyclist", "Van")
SIZES = np.array([[1.6, 3.9, 1.5], [0.6, 0.8, 1.75], [0.6, 1.75, 1.7], [1.9, 5.0, 2.2]])
HEIGHTS = (40, 25, 25)


def _image_boxes(rng, box):
    """Boxes whose height falls with the distance, as in an image."""
    high = 700 * box[:, 5] / np.maximum(box[:, 0], 2) * np.exp(rng.normal(0, 0.05, len(box)))
    wide = high * box[:, 4] / box[:, 5]
    u, v = 600 - 700 * box[:, 1] / np.maximum(box[:, 0], 2), np.full(len(box), 180.0)
    return np.column_stack([u - wide / 2, v - high / 2, u + wide / 2, v + high / 2])


def make_kitti(frames, *, seed=0, truths=8, detections=14, images=True, ties=False, dontcare=1.0):
    """Frames with difficulties, neighbouring classes, DontCare regions and predictions of all qualities."""
    rng = np.random.default_rng(seed)
    frame = np.repeat(np.arange(frames), rng.poisson(truths, frames))
    label = rng.choice(4, len(frame), p=[0.5, 0.2, 0.15, 0.15])
    size = SIZES[label] * np.exp(rng.normal(0, 0.08, (len(frame), 3)))
    box = np.column_stack(
        [
            rng.uniform(3, 60, len(frame)),
            rng.uniform(-20, 20, len(frame)),
            rng.normal(-1, 0.2, len(frame)),
            size,
        ]
    )
    box = np.column_stack([box, rng.uniform(-np.pi, np.pi, len(frame))])
    image = _image_boxes(rng, box)
    occlusion = rng.choice(4, len(frame), p=[0.6, 0.2, 0.1, 0.1])
    truncation = np.where(rng.random(len(frame)) < 0.8, 0.0, rng.random(len(frame)) * 0.6)
    level = difficulties(image[:, 3] - image[:, 1], occlusion, truncation)

    copies = np.repeat(np.arange(len(frame)), rng.choice(3, len(frame), p=[0.15, 0.65, 0.2]))
    quality = rng.random(len(copies))
    near = box[copies].copy()
    near[:, :2] += (
        rng.normal(0, 0.35, (len(copies), 2)) * (1.05 - quality[:, None]) * np.sqrt(near[:, 3:4] / 1.6)
    )
    near[:, 2] += rng.normal(0, 0.05, len(copies))
    near[:, 6] += rng.normal(0, 0.08, len(copies)) + np.pi * (rng.random(len(copies)) < 0.1)
    said = np.where(rng.random(len(copies)) < 0.92, label[copies] % 3, rng.integers(0, 3, len(copies)))
    which = np.repeat(np.arange(frames), rng.poisson(detections / 2, frames))
    false = np.column_stack(
        [rng.uniform(3, 60, len(which)), rng.uniform(-20, 20, len(which)), np.full(len(which), -1.0)]
    )
    guess = rng.integers(0, 3, len(which))
    false = np.column_stack([false, SIZES[guess], rng.uniform(-np.pi, np.pi, len(which))])
    where = np.concatenate([frame[copies], which])
    score = np.concatenate([0.2 + 0.7 * quality, 0.7 * rng.random(len(which))]).astype(np.float32)
    score = np.round(score, 1) if ties else score
    order = np.argsort(where, kind="stable")
    all_boxes = np.concatenate([near, false])[order]
    found = Predictions(where[order], np.concatenate([said, guess])[order], score[order], all_boxes)
    ignore = rng.random(len(frame)) < 0.03
    regions = np.repeat(np.arange(frames), rng.poisson(dontcare, frames))
    corner = np.column_stack([rng.uniform(0, 1100, len(regions)), rng.uniform(50, 150, len(regions))])
    region = np.column_stack([corner, corner + rng.uniform(50, 300, (len(regions), 2))])
    return KittiFrames(
        found,
        Truths(frame, label, box, ignore, np.zeros(len(frame), bool)),
        level,
        NAMES,
        _image_boxes(rng, all_boxes) if images else None,
        image if images else None,
        dontcare_frame=regions,
        dontcare=region,
    ), (occlusion, truncation)


BESIDE = {
    "Pedestrian": [[13.0, 0.6, -0.8, 0.6, 0.8, 1.75, 0.4]],
    "Van": [[27.0, -3.0, -0.6, 1.9, 5.0, 2.2, 0.1], [22.0, -1.5, -0.7, 1.9, 4.6, 2.1, 2.9]],
    "Person_sitting": [[11.0, -5.5, -1.0, 0.6, 0.8, 1.2, -1.2], [19.0, 0.9, -1.0, 0.6, 0.8, 1.3, 0.7]],
}
"""What `with_neighbours` puts into the real frame."""


def with_neighbours(things, to_camera, project):
    """A real frame's objects among a pedestrian, and vans and sitting persons, which KITTI ignores."""
    more = []
    for name, boxes in BESIDE.items():
        drawn = image_boxes(np.array(boxes), to_camera, project)
        facts = {"label": name, "difficulty": 0, "truncated": 0.0, "occluded": 0, "num_lidar_pts": 9}
        more += [
            {**facts, "box_3d": box, "bbox_2d": flat.tolist()} for box, flat in zip(boxes, drawn, strict=True)
        ]
    return [*more[:2], *things, *more[2:]]


def polygon(box):
    x, y, _, w, length, _, yaw = box
    cos, sin = np.cos(yaw), np.sin(yaw)
    corners = [(length / 2, w / 2), (-length / 2, w / 2), (-length / 2, -w / 2), (length / 2, -w / 2)]
    return Polygon([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in corners])


def overlap_of(metric, a, b, image_a, image_b):
    if metric == "image":
        wide = min(image_a[2], image_b[2]) - max(image_a[0], image_b[0])
        high = min(image_a[3], image_b[3]) - max(image_a[1], image_b[1])
        if wide <= 0 or high <= 0:
            return 0.0
        areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (image_a, image_b)]
        return wide * high / (sum(areas) - wide * high)
    p, q = polygon(a), polygon(b)
    shared = p.intersection(q).area
    if metric == "bev":
        return shared / (p.area + q.area - shared)
    high = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    volume = shared * max(high, 0)
    return volume / (a[3:6].prod() + b[3:6].prod() - volume)


def slow_ap(data, metric, label, level, overlaps):
    """(AP40, AOS40) of one class, metric and difficulty; `overlaps` caches (prediction, truth) -> overlap."""
    p, t = data.predictions, data.truths
    least = 0.7 if NAMES[label] == "Car" else 0.5
    frames = sorted(set(t.frame) | set(p.frame))
    state = {}
    for g in range(len(t)):
        if t.label[g] == label:
            state[g] = 0 if 0 <= data.difficulty[g] <= level and not t.ignore[g] else 1
        elif (NAMES[label], NAMES[t.label[g]]) == ("Car", "Van"):
            state[g] = 1
    found = {}
    for d in range(len(p)):
        small = False
        if data.image_box is not None:
            small = abs(data.image_box[d, 3] - data.image_box[d, 1]) < HEIGHTS[level]
        if small or p.label[d] == label:
            found[d] = 1 if small else 0
    of_frame = {
        f: ([g for g in state if t.frame[g] == f], [d for d in found if p.frame[d] == f]) for f in frames
    }

    def overlap(d, g):
        if (metric, d, g) not in overlaps:
            images = (None, None) if metric != "image" else (data.image_box[d], data.true_image_box[g])
            overlaps[metric, d, g] = overlap_of(metric, p.box[d], t.box[g], *images)
        return overlaps[metric, d, g]

    scores = []
    for gts, dets in of_frame.values():
        used = set()
        for g in gts:
            fits = [d for d in dets if d not in used and overlap(d, g) > least]
            if fits:
                best = max(fits, key=lambda d: (p.score[d], -d))
                used.add(best)
                if state[g] == 0 and found[best] == 0:
                    scores.append(p.score[best])
    total = sum(value == 0 for value in state.values())
    limits, recall = [], 0.0
    for i, score in enumerate(sorted(scores, reverse=True)):
        last = i == len(scores) - 1
        if not last and (i + 2) / total - recall < recall - (i + 1) / total:
            continue
        limits.append(score)
        recall += 1 / 40
    precision, similarity = np.zeros(41), np.zeros(41)
    for k, limit in enumerate(limits):
        tp, fp, alike = 0, 0, 0.0
        for f, (gts, dets) in of_frame.items():
            used = set()
            for g in gts:
                fits = [d for d in dets if d not in used and p.score[d] >= limit and overlap(d, g) > least]
                plain = [d for d in fits if found[d] == 0]
                if not fits:
                    continue
                best = max(plain, key=lambda d: (overlap(d, g), -d)) if plain else min(fits)
                used.add(best)
                if state[g] == 0 and found[best] == 0:
                    tp += 1
                    alike += (1 + np.cos(t.box[g, 6] - p.box[best, 6])) / 2
            for d in dets:
                if d in used or found[d] == 1 or p.score[d] < limit:
                    continue
                fp += not (metric == "image" and absorbed(data, d, f, least))
        if tp + fp:
            precision[k], similarity[k] = tp / (tp + fp), alike / (tp + fp)
    falling = [np.maximum.accumulate(one[::-1])[::-1][1:].mean() for one in (precision, similarity)]
    return tuple(falling)


def absorbed(data, d, frame, least):
    box = data.image_box[d]
    area = (box[2] - box[0]) * (box[3] - box[1])
    for region in data.dontcare[data.dontcare_frame == frame]:
        wide = min(box[2], region[2]) - max(box[0], region[0])
        high = min(box[3], region[3]) - max(box[1], region[1])
        if wide > 0 and high > 0 and wide * high / area > least:
            return True
    return False


def camera_iou(boxes, others, criterion=-1, device_id=0):
    """What `rotate_iou_gpu_eval` computes: [x, z, length, width, ry], clockwise; criterion 2 is the shared area."""

    from shapely.affinity import rotate, translate
    from shapely.geometry import box as rectangle

    def shape(row):
        flat = rectangle(-row[2] / 2, -row[3] / 2, row[2] / 2, row[3] / 2)
        return translate(rotate(flat, -row[4], (0, 0), use_radians=True), row[0], row[1])

    left, right = [shape(row) for row in boxes], [shape(row) for row in others]
    made = np.zeros((len(left), len(right)))
    reach, beyond = (np.hypot(rows[:, 2], rows[:, 3]) / 2 for rows in (boxes, others))
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            apart = np.hypot(boxes[i, 0] - others[j, 0], boxes[i, 1] - others[j, 1])
            if apart < reach[i] + beyond[j]:
                shared = a.intersection(b).area
                made[i, j] = shared if criterion == 2 else shared / (a.area + b.area - shared)
    return made
