"""Classification metrics as pure functions on numpy arrays.

Logarithms are natural; softmax and log-sum-exp are in float64 whatever the logits are stored as; a tie of the
largest logits goes to the smallest class. Metrics that have no value (no positives, no units) are None, never
0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def logsumexp(logits: NDArray[np.floating]) -> Floats:
    """Return ln(sum(exp(z))) of each row of (N, K) logits, as (N,) float64."""
    wide = logits.astype(np.float64, copy=False)
    top = wide.max(axis=1)
    return np.asarray(top + np.log(np.exp(wide - top[:, None]).sum(axis=1)), dtype=np.float64)


def log_softmax(logits: NDArray[np.floating]) -> Floats:
    """Return the (N, K) float64 natural logarithms of the softmax probabilities."""
    wide = logits.astype(np.float64, copy=False)
    return np.asarray(wide - logsumexp(wide)[:, None], dtype=np.float64)


def log_sigmoid(logits: NDArray[np.floating]) -> Floats:
    """Return the (N, K) float64 natural logarithms of each class's own probability, 1 / (1 + exp(-z))."""
    return np.asarray(-np.logaddexp(0.0, -logits.astype(np.float64, copy=False)), dtype=np.float64)


def log_probabilities(logits: NDArray[np.floating], *, sigmoid: bool) -> Floats:
    """Return the (N, K) float64 logarithms of what a model states of each class of its logits.

    Args:
        logits: (N, K), finite.
        sigmoid: each class was trained by itself (binary cross-entropy); else they share 1 (softmax).
    """
    return log_sigmoid(logits) if sigmoid else log_softmax(logits)


def sigmoid_entropy(logits: NDArray[np.floating]) -> Floats:
    """Return the (N,) entropies in nats of K independent yes-or-no answers, summed over the classes."""
    yes, no = log_sigmoid(logits), log_sigmoid(-logits)
    return np.asarray(-(np.exp(yes) * yes + np.exp(no) * no).sum(axis=1), dtype=np.float64)


def sigmoid_loss(logits: NDArray[np.floating], target: NDArray[np.floating]) -> Floats:
    """Return the (N,) binary cross-entropies in nats against (N, K) targets, summed over the classes.

    Example:
        >>> sigmoid_loss(np.array([[0.0, 0.0]]), np.array([[1.0, 0.0]])).round(4).tolist()
        [1.3863]
    """
    terms = target * log_sigmoid(logits) + (1 - target) * log_sigmoid(-logits)
    return np.asarray(-terms.sum(axis=1), dtype=np.float64)


def entropy(log_probabilities: Floats) -> Floats:
    """Return the (N,) Shannon entropies in nats of (N, K) log-probabilities; 0 ln 0 counts as 0."""
    p = np.exp(log_probabilities)
    terms = np.where(p > 0, p * np.where(p > 0, log_probabilities, 0.0), 0.0)
    return np.asarray(np.maximum(-terms.sum(axis=1), 0.0), dtype=np.float64)


def finite_rows(logits: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return (N,) True where no logit of the row is NaN or infinite."""
    return np.asarray(np.isfinite(logits).all(axis=1), dtype=np.bool_)


def counts_by_score(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Positives and units of each distinct value of (N,) scores, by rising score."""
    if len(scores) == 0:
        return np.empty(0), np.empty(0)
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.concatenate([[0], np.flatnonzero(ranked[1:] != ranked[:-1]) + 1])
    hits = np.add.reduceat(positive[order].astype(np.float64), starts)
    return hits, np.diff(np.append(starts, len(scores))).astype(np.float64)


def auroc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve, ties counted half (midranks).

    Args:
        scores: (N,) finite scores, larger = more likely positive.
        positive: (N,) truth.

    Returns:
        The area, or None where positives or negatives are missing.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
        0.875
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    return auroc_of_counts(*counts_by_score(scores, positive))


def average_precision(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Average precision, sum of (R_n - R_{n-1}) P_n over distinct scores: scikit-learn's definition.

    Args:
        scores: (N,) finite scores, larger = more likely positive.
        positive: (N,) truth.

    Returns:
        The average precision, or None where there is no positive.

    Example:
        >>> round(average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])), 4)
        0.8333
    """
    if not positive.any():
        return None
    return average_precision_of_counts(*counts_by_score(scores, positive))


def auroc_of_counts(positives: NDArray[Any], total: NDArray[Any]) -> float | None:
    """`auroc` of scores in bins of rising score: (B,) positives and (B,) units of each bin."""
    positives, total = positives.astype(np.float64), total.astype(np.float64)
    negatives = total - positives
    n_positive, n_negative = float(positives.sum()), float(negatives.sum())
    if n_positive == 0 or n_negative == 0:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (n_positive * n_negative))


def average_precision_of_counts(positives: NDArray[Any], total: NDArray[Any]) -> float | None:
    """`average_precision` of scores in bins of rising score: (B,) positives and (B,) units of each."""
    positives, total = positives.astype(np.float64), total.astype(np.float64)
    n_positive = float(positives.sum())
    if n_positive == 0:
        return None
    hits = np.cumsum(positives[::-1])
    seen = np.cumsum(total[::-1])
    precision = hits / np.maximum(seen, 1)
    return float((positives[::-1] * precision).sum() / n_positive)


def macro(values: Iterable[float | None]) -> float | None:
    """Mean of the values that exist; None where none does.

    Example:
        >>> macro([0.5, None, 1.0])
        0.75
    """
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def macro_auroc(per_class: Iterable[float | None]) -> float | None:
    """Macro one-vs-rest AUROC of the per-class values; of two classes, the value of class 1."""
    values = list(per_class)
    return values[1] if len(values) == 2 else macro(values)


def ratio(part: float, whole: float) -> float | None:
    """`part / whole`, or None where the whole is 0."""
    return part / whole if whole else None


def jeffreys_interval(errors: int, count: int, *, level: float = 0.95) -> tuple[float | None, float | None]:
    """Jeffreys interval of a proportion: quantiles of Beta(errors + 1/2, count - errors + 1/2).

    The lower end is 0 where there are no errors and the upper end 1 where all are (Brown, Cai and DasGupta,
    2001).

    Example:
        >>> low, high = jeffreys_interval(2, 20)
        >>> round(low, 3), round(high, 3)
        (0.021, 0.284)
    """
    from scipy.special import betaincinv

    if count == 0:
        return None, None
    tail = (1 - level) / 2
    a, b = errors + 0.5, count - errors + 0.5
    low = 0.0 if errors == 0 else float(betaincinv(a, b, tail))
    high = 1.0 if errors == count else float(betaincinv(a, b, 1 - tail))
    return low, high
