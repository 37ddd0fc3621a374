"""What others do with the same arrays. Every score is larger = more suspicious."""

from __future__ import annotations

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from networks import Recorded
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

Floats = NDArray[np.floating]


def softmax(logits: Floats) -> Floats:
    z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def msp(test: Recorded) -> Floats:
    return 1 - softmax(test.logits).max(axis=1)


def entropy(test: Recorded) -> Floats:
    p = softmax(test.logits)
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)


def trust_score(test: Recorded, train: Recorded, labels: NDArray[np.int64], k: int = 10) -> Floats:
    """Jiang et al. 2018 on the last hidden layer: distance to the predicted class over the nearest other class."""
    layer = list(test.features)[-1]
    classes = np.unique(labels)
    distance = np.stack(
        [
            NearestNeighbors(n_neighbors=k)
            .fit(train.features[layer][labels == c])
            .kneighbors(test.features[layer])[0][:, -1]
            for c in classes
        ],
        axis=1,
    )
    own = classes[None, :] == test.logits.argmax(axis=1)[:, None]
    return np.where(own, distance, np.inf).min(axis=1) / np.maximum(
        np.where(own, np.inf, distance).min(axis=1), 1e-12
    )


def cleanlab_scores(logits: Floats, labels: NDArray[np.int64]) -> dict[str, Floats]:
    p = softmax(logits)
    return {
        "cleanlab self-confidence": 1 - get_label_quality_scores(labels, p, method="self_confidence"),
        "cleanlab margin": 1 - get_label_quality_scores(labels, p, method="normalized_margin"),
    }


def cleanlab_issues(logits: Floats, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    return find_label_issues(labels, softmax(logits), n_jobs=1)


def aum(epochs: Floats, labels: NDArray[np.int64]) -> Floats:
    """Area under the margin (Pleiss et al. 2020), on the log-softmax of every epoch: differences equal the logits'."""
    z = np.log(np.maximum(epochs, 1e-12))
    own = z[:, np.arange(len(labels)), labels]
    rest = z.copy()
    rest[:, np.arange(len(labels)), labels] = -np.inf
    return -(own - rest.max(axis=2)).mean(axis=0)
