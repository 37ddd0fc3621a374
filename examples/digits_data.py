"""Real handwritten digits (scikit-learn's bundled set) with faults planted on purpose, for the demos.

The 1,797 images are split by *base image* into a training and a validation pool, enlarged to 16 x 16 and
augmented (rotation, shift, zoom, noise). Three faults are planted, each with a fixed seed, so that a demo can
be held to finding them:

* `wrong_label`: 5% of the validation labels are replaced by another class;
* `corrupted`: 5% of the validation images come from a broken scanner, as negatives with bright scan lines;
* `confused`: in training, 9 of 10 clockwise-tilted 4s are labelled 9, so the model learns to confuse the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

__all__ = ["Digits", "make_digits"]


@dataclass
class Digits:
    """One split.

    `images` is (n, 1, 16, 16) float32 in [0, 1], `labels` (n,) int64, `base` (n,) the source image's index,
    `planted` maps a fault's name to the indices of the samples it was planted in.
    """

    images: np.ndarray
    labels: np.ndarray
    base: np.ndarray
    planted: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


def make_digits(
    n_train: int = 8000, n_val: int = 4000, *, seed: int = 0, faults: bool = True
) -> tuple[Digits, Digits]:
    """Training and validation split, drawn from disjoint base images."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    order = rng.permutation(len(digits.target))
    cut = int(0.6 * len(order))
    train, train_angle = _augment(digits, order[:cut], n_train, rng)
    val, _ = _augment(digits, order[cut:], n_val, rng)
    if faults:
        _confuse(train, train_angle, rng)
        _corrupt(val, rng, share=0.05)
        _mislabel(val, rng, share=0.05)
    return train, val


def _augment(digits: object, pool: np.ndarray, n: int, rng: np.random.Generator) -> tuple[Digits, np.ndarray]:
    base = pool[rng.permutation(np.arange(n) % len(pool))]
    angle = rng.uniform(-25, 25, n)
    zoom = rng.uniform(0.85, 1.1, n)
    shift = rng.uniform(-1.2, 1.2, (n, 2))
    images = np.empty((n, 1, 16, 16), np.float32)
    centre = np.array([7.5, 7.5])
    for i in range(n):
        large = ndimage.zoom(digits.images[base[i]] / 16.0, 2, order=1)
        turn = np.deg2rad(angle[i])
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / zoom[i]
        images[i, 0] = ndimage.affine_transform(large, matrix, centre - matrix @ (centre + shift[i]), order=1)
    images += rng.normal(0, 0.06, images.shape).astype(np.float32)
    return Digits(images.clip(0, 1), digits.target[base].astype(np.int64), base), angle


def _confuse(split: Digits, angle: np.ndarray, rng: np.random.Generator) -> None:
    tilted = np.flatnonzero((split.labels == 4) & (angle > 0))
    chosen = np.sort(rng.choice(tilted, int(0.9 * len(tilted)), replace=False))
    split.labels[chosen] = 9
    split.planted["confused"] = chosen


def _corrupt(split: Digits, rng: np.random.Generator, *, share: float) -> None:
    chosen = np.sort(rng.choice(len(split), int(share * len(split)), replace=False))
    images = 1 - split.images[chosen]
    images[:, :, ::3] = 0.9
    split.images[chosen] = images
    split.planted["corrupted"] = chosen


def _mislabel(split: Digits, rng: np.random.Generator, *, share: float) -> None:
    clean = np.setdiff1d(np.arange(len(split)), split.planted["corrupted"])
    chosen = np.sort(rng.choice(clean, int(share * len(split)), replace=False))
    split.labels[chosen] = (split.labels[chosen] + rng.integers(1, 10, len(chosen))) % 10
    split.planted["wrong_label"] = chosen
