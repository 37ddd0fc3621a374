"""A synthetic classifier with known trouble: clusters, a dense failing slice, a few isolated errors."""

from __future__ import annotations

import numpy as np

from mld_core.evaluation.space.arrays import SplitArrays, TrainArrays


def make_split(
    n: int = 1_500,
    n_class: int = 4,
    seed: int = 0,
    *,
    slice_share: float = 0.1,
    noise: float = 0.05,
    train: bool = True,
) -> tuple[SplitArrays, np.ndarray]:
    """Arrays, and who belongs to the failing slice (always answered with the next class)."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(n_class, 12)) * 2
    labels = rng.integers(0, n_class, n)
    features = centres[labels] + rng.normal(size=(n, 12))
    hit = rng.random(n) < slice_share
    features[hit, :3] += 6
    answer = np.where(hit, (labels + 1) % n_class, labels)
    isolated = rng.random(n) < noise
    answer = np.where(isolated, (answer + rng.integers(1, n_class, n)) % n_class, answer)
    logits = rng.normal(size=(n, n_class))
    logits[np.arange(n), answer] += 3.5
    reference = None
    if train:
        train_labels = rng.integers(0, n_class, n)
        train_features = centres[train_labels] + rng.normal(size=(n, 12))
        reference = TrainArrays(split_layers(train_features), train_labels)
    arrays = SplitArrays(
        logits.astype(np.float32),
        labels.astype(np.int64),
        split_layers(features),
        groups=np.arange(n) // 2,
        train=reference,
    )
    return arrays, hit


def split_layers(features: np.ndarray) -> dict[str, np.ndarray]:
    return {"early": features.astype(np.float32), "late": np.maximum(features[:, ::2], 0).astype(np.float16)}
