"""A harder detector than `simulated_detector`, on harder scenes, with the same records and more label faults.

Box errors are Student-t with three degrees of freedom, part of them the object's own in every epoch; half of the
clutter looks like a class and stands in every epoch; annotators draw boxes with heavy-tailed noise, some more
loosely than others; classes come in pairs that are hard to tell apart; small objects are seldom found. Nothing
here is fitted to the diagnoses. Faults change the truths only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from simulated_detector import FAULTS as PLAIN
from simulated_detector import HEIGHT, WIDTH, Scene

FAULTS = (*PLAIN, "duplicate")
N_CLASS = 8
VECTOR = 24
FREEDOM = 3


def simulate(
    frames: int,
    *,
    seed: int = 0,
    faults: dict[str, float] | None = None,
    jitter: int = 0,
    skill: float = 1.0,
    objects: float = 6.0,
    clutter: float = 7.0,
) -> Scene:
    """Make one pass; arguments as `simulated_detector.simulate`."""
    rng = np.random.default_rng([seed, 5])
    centroids = _centroids()
    frame = np.repeat(np.arange(frames), rng.poisson(objects, frames))
    count = len(frame)
    label = rng.choice(N_CLASS, count, p=_shares())
    box, hard = _boxes(rng, count), rng.beta(1.5, 2.5, count)
    bias = rng.standard_t(FREEDOM, (count, 4))
    blur = rng.normal(size=(count, VECTOR))
    drawn = _drawn(rng, frames, frame, box)
    false_frame = np.repeat(np.arange(frames), rng.poisson(clutter, frames))
    ghost = _ghosts(rng, len(false_frame), centroids)
    truths = _plant(rng, frame, label, drawn, faults or {})

    rng = np.random.default_rng([seed, 77, jitter])
    size = np.sqrt((box[:, 2:] - box[:, :2]).prod(axis=1))
    features = centroids[label] * (1 - 0.45 * hard)[:, None] + blur * (0.35 + 0.25 * hard)[:, None]
    features += 0.25 * rng.normal(size=features.shape)
    seen = rng.random(count) > _sigmoid(-2.4 - skill / 2 + 2.5 * hard + 1.2 * (size < 45))
    error = 0.7 * bias + 0.7 * rng.standard_t(FREEDOM, (count, 4))
    wide = np.tile(box[:, 2:] - box[:, :2], 2)
    moved = box + error * (0.03 + 0.06 * hard)[:, None] * wide / skill
    logits = _head(rng, features, centroids) - 1.2 * hard[:, None] / skill
    twice = seen & (rng.random(count) < 0.15)
    again = box + rng.standard_t(FREEDOM, (count, 4)) * 0.08 * wide
    shown = rng.random(len(false_frame)) < 0.85
    false_box, false_features = ghost[0] + rng.normal(0, 3, ghost[0].shape), ghost[1]
    false_features = false_features + 0.25 * rng.normal(size=false_features.shape)
    parts = [
        (frame[seen], logits[seen], moved[seen], features[seen], np.flatnonzero(seen)),
        (frame[twice], logits[twice] - 1.2, again[twice], features[twice], np.flatnonzero(twice)),
        (
            false_frame[shown],
            (_head(rng, false_features, centroids) - 0.5)[shown],
            false_box[shown],
            false_features[shown],
            np.full(int(shown.sum()), -1),
        ),
    ]
    which, z, said, vectors, source = (np.concatenate([part[k] for part in parts]) for k in range(5))
    score = _sigmoid(z.max(axis=1))
    good = np.flatnonzero(score > 0.02)
    order = good[np.lexsort((-score[good], which[good]))]
    said[:, 2:] = np.maximum(said[:, 2:], said[:, :2] + 2)
    true_frame, true_label, true_box, true_object, removed, fault = truths
    return Scene(
        frames,
        N_CLASS,
        np.zeros(frames, bool),
        which[order],
        z[order].argmax(axis=1),
        score[order].astype(np.float32),
        said[order].astype(np.float32),
        z[order].astype(np.float32),
        vectors[order].astype(np.float32),
        source[order],
        true_frame,
        true_label,
        true_box.astype(np.float32),
        true_object,
        removed,
        fault,
    )


def _centroids() -> np.ndarray:
    """Class centroids; 0 and 1, 2 and 3, 4 and 5 are hard to tell apart."""
    rng = np.random.default_rng(54321)
    made = rng.normal(size=(N_CLASS, VECTOR))
    for first in (0, 2, 4):
        made[first + 1] = 0.85 * made[first] + 0.53 * made[first + 1]
    return 3 * made / np.linalg.norm(made, axis=1, keepdims=True)


def _shares() -> np.ndarray:
    weight = 1 / np.arange(2, N_CLASS + 2)
    return weight / weight.sum()


def _boxes(rng: Any, count: int) -> np.ndarray:
    size = np.exp(rng.normal(np.log(70), 0.7, count)).clip(14, 400)
    aspect = np.exp(rng.normal(0, 0.3, count))
    w, h = size * np.sqrt(aspect), size / np.sqrt(aspect)
    x, y = rng.uniform(0, np.maximum(WIDTH - w, 1)), rng.uniform(0, np.maximum(HEIGHT - h, 1))
    return np.stack([x, y, x + w, y + h], axis=1)


def _drawn(rng: Any, frames: int, frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The boxes as annotators draw them: one annotator a frame, some looser than others."""
    loose = np.exp(rng.normal(np.log(0.02), 0.6, frames))[frame]
    wide = np.tile(box[:, 2:] - box[:, :2], 2)
    made = box + rng.standard_t(FREEDOM, box.shape) * loose[:, None] * wide
    made[:, 2:] = np.maximum(made[:, 2:], made[:, :2] + 4)
    return made


def _ghosts(rng: Any, count: int, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and features of clutter, the same in all epochs; half of it looks like a class to the head.

    What looks alike comes of a few kinds (signs, statues, ...), each with a direction of its own besides.
    """
    kinds = np.random.default_rng(999).normal(size=(5, VECTOR))
    kinds *= 4 / np.linalg.norm(kinds, axis=1, keepdims=True)
    like = centroids[rng.choice(N_CLASS, count, p=_shares())] * rng.uniform(0.45, 0.95, count)[:, None]
    like = like + kinds[rng.integers(0, len(kinds), count)]
    alike = rng.random(count) < 0.5
    return _boxes(rng, count), np.where(alike[:, None], like, 0) + 0.6 * rng.normal(size=(count, VECTOR))


def _head(rng: Any, features: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    return 2.2 * (features @ unit.T) - 4.2 + 0.4 * rng.normal(size=(len(features), len(centroids)))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _plant(
    rng: Any, frame: np.ndarray, label: np.ndarray, box: np.ndarray, faults: dict[str, float]
) -> tuple[np.ndarray, ...]:
    """Frame, class, box, object and fault of the truths by frame, and the objects whose truth was removed."""
    assert not set(faults) - set(FAULTS), faults
    count = len(frame)
    order, fault, start = rng.permutation(count), np.zeros(count, int), 0
    for name in (*PLAIN[:3], "duplicate"):
        size = round(faults.get(name, 0) * count)
        fault[order[start : start + size]] = 1 + FAULTS.index(name)
        start += size
    label, box = label.copy(), box.copy()
    shifted = fault == 1 + FAULTS.index("shifted")
    angle, by = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.3, 0.6, count)
    step = np.stack([np.cos(angle), np.sin(angle)], axis=1) * by[:, None] * (box[:, 2:] - box[:, :2])
    box[shifted] += np.tile(step, 2)[shifted]
    swapped = fault == 1 + FAULTS.index("swapped")
    label[swapped] = (label[swapped] + rng.integers(1, N_CLASS, swapped.sum())) % N_CLASS
    kept = np.flatnonzero(fault != 1 + FAULTS.index("missing"))
    # Drawn twice: the second box is the planted one.
    twin = np.flatnonzero(fault == 1 + FAULTS.index("duplicate"))
    fault[twin] = 0
    wide = np.tile(box[twin, 2:] - box[twin, :2], 2)
    second = box[twin] + rng.normal(0, 0.04, (len(twin), 4)) * wide
    more = round(faults.get("spurious", 0) * count)
    parts = [
        (frame[kept], label[kept], box[kept], kept, fault[kept]),
        (frame[twin], label[twin], second, np.full(len(twin), -1), np.full(len(twin), 5)),
        (
            rng.choice(frame, more),
            rng.choice(N_CLASS, more, p=_shares()),
            _boxes(rng, more),
            np.full(more, -1),
            np.full(more, 1 + FAULTS.index("spurious")),
        ),
    ]
    which, said, where, source, what = (np.concatenate([part[k] for part in parts]) for k in range(5))
    # Within a frame in no order that tells the planted ones.
    rows = np.lexsort((rng.random(len(which)), which))
    removed = np.flatnonzero(~np.isin(np.arange(count), kept))
    return which[rows], said[rows], where[rows], source[rows], removed, what[rows]
