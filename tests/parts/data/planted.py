"""Synthetic splits with faults planted in them, and stores that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

CLASSES = 6
WIDTH = 12


@dataclass
class Planted:
    """A split whose faults are known; `data` is what the store factory writes."""

    data: Any
    wrong_label: np.ndarray
    broken: np.ndarray


def planted(
    records,
    rows: int,
    *,
    seed: int = 0,
    start: int = 0,
    noise: float = 0.0,
    broken: float = 0.0,
    skill: float = 1.0,
    jitter: int = 0,
) -> Planted:
    """Gaussian classes, a linear head with a blind spot, and faults.

    Args:
        noise: Share of the labels that are replaced.
        broken: Share of units that lie in one far corner, where the head always says class 0.
        skill: Below 1 the head mixes more noise into its logits.
        jitter: Seed of further noise of the logits: another epoch of the same units.
    """
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(CLASSES, WIDTH)) * 1.6
    truth = rng.integers(0, CLASSES, rows)
    features = centres[truth] + rng.normal(size=(rows, WIDTH))
    hit = np.sort(rng.choice(rows, int(broken * rows), replace=False))
    features[hit] = 4.0 + 0.6 * rng.normal(size=(len(hit), WIDTH))
    logits = features @ centres.T - 0.5 * (centres**2).sum(1) + rng.normal(size=(rows, CLASSES)) * 2.5 / skill
    logits += np.random.default_rng(jitter).normal(size=logits.shape) * 1.5
    logits[hit] = rng.normal(size=(len(hit), CLASSES)) * 0.3
    logits[hit, 0] += 6.0
    labels = truth.copy()
    rest = np.setdiff1d(np.arange(rows), hit)
    flipped = np.sort(rng.choice(rest, int(noise * rows), replace=False))
    labels[flipped] = (labels[flipped] + rng.integers(1, CLASSES, len(flipped))) % CLASSES
    data = records.Data(
        logits.astype(np.float32),
        labels,
        [f"id{number:06d}" for number in range(start, start + rows)],
        [f"{number:032x}" for number in range(start, start + rows)],
        {"weather": ["fog" if number in set(hit.tolist()) else "clear" for number in range(rows)]},
        features=features.astype(np.float32),
    )
    return Planted(data, flipped, hit)
