"""Final detections that a tracer's own parser made: what its logits are, judged by its scores."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mld_core.adapters.base import Parsed, Thresholds
from mld_core.adapters.outputs import Detection3DOutput, DetectionOutput

_TOLERANCE: Final = 1e-3
Arrays = npt.NDArray[Any]


def softmax(logits: Arrays) -> Arrays:
    """Row-wise softmax of (N, K), by the shifted form."""
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def sigmoid(logits: Arrays) -> Arrays:
    """Elementwise logistic function."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0))))


def activation_of(output: DetectionOutput | Detection3DOutput, n_class: int | None) -> tuple[str, int | None]:
    """(activation, background column) that turn the logits into the scores, as far as the scores tell.

    Args:
        output: with logits (N, K).
        n_class: foreground classes; K of one more means a background column.

    Examples:
        >>> box, logits = [[0, 0, 1, 1]], [[0.0, -3.0]]
        >>> one = DetectionOutput(boxes=[box], scores=[[0.5]], labels=[[0]], logits=[logits])
        >>> activation_of(one, 2)
        ('sigmoid', None)
    """
    if output.logits is None:
        return "none", None
    rows = [(x, s, y) for x, s, y in zip(output.logits, output.scores, output.labels, strict=True) if len(x)]
    background = None
    if rows and n_class is not None and rows[0][0].shape[1] == n_class + 1:
        background = n_class
    if not rows:
        return "softmax", background
    logits, scores, labels = (np.concatenate([row[i] for row in rows]).astype(np.float64) for i in range(3))
    index = labels.astype(np.int64)
    inside = (index >= 0) & (index < logits.shape[1])
    error = {
        name: np.abs(values[np.arange(len(index))[inside], index[inside]] - scores[inside])
        for name, values in (("softmax", softmax(logits)), ("sigmoid", sigmoid(logits)))
    }
    best = min(error, key=lambda name: float(np.median(error[name])) if error[name].size else 0.0)
    return best, background if best == "softmax" else None


def ready(output: DetectionOutput | Detection3DOutput, limits: Thresholds, n_class: int | None) -> Parsed:
    """What `Adapter.parse` would have given for final detections that came ready: filtered by `limits`."""
    activation, background = activation_of(output, n_class)
    keep, cap_hit = [], []
    for scores in output.scores:
        order = np.arange(len(scores))
        if limits.score is not None:
            order = order[~(scores < limits.score)]  # a NaN stays, to be counted
        cut = limits.max_detections is not None and len(order) > limits.max_detections
        if cut:
            best = np.argsort(-scores[order], kind="stable")[: limits.max_detections]
            order = order[np.sort(best)]
        keep.append(order)
        cap_hit.append(cut)

    def picked(values: Any) -> Any:
        return None if values is None else [v[k] for v, k in zip(values, keep, strict=True)]

    final = type(output)(**{item.name: picked(getattr(output, item.name)) for item in fields(output)})
    return Parsed(final, activation, background, cap_hit, limits)
