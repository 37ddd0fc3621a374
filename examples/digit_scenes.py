"""Scenes for 2D detection, composed from scikit-learn's real handwritten digits: nothing is downloaded.

Each scene is a noisy 96 x 96 canvas with two to five digits of different sizes at places of their own; the
boxes are tight around the ink. Three faults are planted in the truth of the validation split, with a fixed
seed, so that a demo can be held to finding them:

* `missing`: boxes of the truth are removed (the digit is still in the image);
* `swapped`: boxes carry another class;
* `shifted`: boxes are moved by a third to a half of their size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

__all__ = ["SIZE", "Planted", "Scene", "make_scenes"]

SIZE = 96
_SIZES = (18, 34)  # edge of a digit's 8 x 8 image on the canvas, pixels


@dataclass(frozen=True)
class Scene:
    """One image and its truth.

    `image` is (1, 96, 96) float32 in [0, 1]; `boxes` (n, 4) float32 x1, y1, x2, y2 in pixels; `labels` (n,)
    int64 from 0.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@dataclass
class Planted:
    """Where the faults are: (scene, box) each.

    `missing` holds the removed boxes as (scene, x1, y1, x2, y2, label), since they are in no truth;
    `swapped` and `shifted` hold (scene, index of the box in the truth as it stands).
    """

    missing: list[tuple[int, float, float, float, float, int]] = field(default_factory=list)
    swapped: list[tuple[int, int]] = field(default_factory=list)
    shifted: list[tuple[int, int]] = field(default_factory=list)


def make_scenes(
    n_train: int = 600, n_val: int = 400, *, seed: int = 0, rate: float = 0.05
) -> tuple[list[Scene], list[Scene], Planted]:
    """Training scenes, validation scenes with faults at `rate` of the boxes each, and where the faults are.

    The two splits are composed from disjoint sets of handwritten images.
    """
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    cut = int(0.6 * len(order))
    train = [_compose(digits, order[:cut], rng) for _ in range(n_train)]
    val = [_compose(digits, order[cut:], rng) for _ in range(n_val)]
    planted = Planted()
    return train, [_spoil(i, scene, planted, rate, rng) for i, scene in enumerate(val)], planted


def _compose(digits: object, pool: np.ndarray, rng: np.random.Generator) -> Scene:
    canvas = np.zeros((SIZE, SIZE), np.float32)
    boxes: list[tuple[int, int, int, int]] = []
    labels = []
    for _ in range(int(rng.integers(2, 6))):
        edge = int(rng.integers(*_SIZES))
        source = int(rng.choice(pool))
        small = ndimage.rotate(
            digits.images[source] / 16.0, rng.uniform(-15, 15), order=1, reshape=False, mode="constant"
        )
        drawn = ndimage.zoom(small, edge / 8, order=1).astype(np.float32).clip(0, 1)
        ink = drawn > 0.25
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        height, width = drawn.shape
        for _ in range(20):  # a place of its own, if there is one
            y, x = (int(v) for v in rng.integers(0, [SIZE - height, SIZE - width]))
            box = (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
            if all(not _touch(box, other) for other in boxes):
                part = canvas[y : y + height, x : x + width]
                np.maximum(part, drawn, out=part)
                boxes.append(tuple(int(v) for v in box))
                labels.append(int(digits.target[source]))
                break
    background = ndimage.gaussian_filter(rng.normal(0, 1, canvas.shape), 4) * 0.6
    image = canvas + background + rng.normal(0, 0.05, canvas.shape)
    return Scene(
        image[None].clip(0, 1).astype(np.float32),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
    )


def _touch(a: tuple[int, ...], b: tuple[int, ...], gap: int = 2) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _spoil(index: int, scene: Scene, planted: Planted, rate: float, rng: np.random.Generator) -> Scene:
    boxes, labels = scene.boxes.copy(), scene.labels.copy()
    fate = rng.choice(4, len(boxes), p=[rate, rate, rate, 1 - 3 * rate])
    kept = np.flatnonzero(fate != 0)
    for i in np.flatnonzero(fate == 0):
        planted.missing.append((index, *(float(v) for v in boxes[i]), int(labels[i])))
    for place, i in enumerate(kept):
        if fate[i] == 1:
            labels[i] = (labels[i] + rng.integers(1, 10)) % 10
            planted.swapped.append((index, place))
        elif fate[i] == 2:
            size = boxes[i, 2:] - boxes[i, :2]
            move = rng.choice([-1, 1], 2) * rng.uniform(0.3, 0.5, 2) * size
            boxes[i] = (boxes[i].reshape(2, 2) + move).reshape(-1).clip(0, SIZE)
            planted.shifted.append((index, place))
    return Scene(scene.image, boxes[kept], labels[kept])
