"""Mergeable score histograms: AUROC and average precision of any number of rows in bounded memory.

The score of a class is binned by its log-odds ln(p / (1 - p)), 65,536 equal bins over [-37, 37]: both tails
keep a relative resolution of 0.0011, where equal bins of p would put every confident model into the first and
the last. (37 is where 1 - p drops below the resolution of float64.) Ties inside a bin count half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.classification import Floats, auroc_of_counts, average_precision_of_counts

BINS = 65_536
REACH = 37.0


def log_odds_bin(log_probabilities: Floats) -> NDArray[np.int64]:
    """Return the bin, 0 to 65,535, of each log-probability; monotone in it.

    Example:
        >>> log_odds_bin(np.log(np.array([0.0001, 0.5, 0.9999]))).tolist()
        [24611, 32768, 40924]
    """
    with np.errstate(divide="ignore"):
        odds = log_probabilities - np.log1p(-np.exp(np.minimum(log_probabilities, 0.0)))
    scaled = (np.clip(odds, -REACH, REACH) + REACH) * (BINS / (2 * REACH))
    return np.minimum(scaled.astype(np.int64), BINS - 1)


@dataclass
class RankHistograms:
    """Histograms of the one-vs-rest scores of classes `first` to `first + n - 1`.

    Attributes:
        positives: (n, 65536) int64, units of the class itself.
        total: (n, 65536) int64, all units.
    """

    positives: NDArray[np.int64]
    total: NDArray[np.int64]

    @classmethod
    def empty(cls, classes: int) -> RankHistograms:
        """The histograms of no rows."""
        return cls(np.zeros((classes, BINS), np.int64), np.zeros((classes, BINS), np.int64))

    @classmethod
    def of(cls, log_probabilities: Floats, truth: NDArray[np.int64], first: int) -> RankHistograms:
        """Count one batch.

        Args:
            log_probabilities: (N, n) columns `first` to `first + n - 1` of the log-softmax.
            truth: (N,) true classes of the whole problem, none missing.
            first: The class of the first column.
        """
        rows, classes = log_probabilities.shape
        bins = log_odds_bin(log_probabilities) + np.arange(classes, dtype=np.int64) * BINS
        total = np.bincount(bins.reshape(-1), minlength=classes * BINS)
        mine = np.flatnonzero((truth >= first) & (truth < first + classes))
        own = bins[mine, truth[mine] - first] if rows else np.empty(0, np.int64)
        positives = np.bincount(own, minlength=classes * BINS)
        return cls(positives.reshape(classes, BINS), total.reshape(classes, BINS))

    def merge(self, other: RankHistograms) -> RankHistograms:
        """Add `other` into this one."""
        self.positives += other.positives
        self.total += other.total
        return self

    def auroc(self) -> list[float | None]:
        """One-vs-rest AUROC of each class, None where positives or negatives are missing."""
        return [auroc_of_counts(p, t) for p, t in zip(self.positives, self.total, strict=True)]

    def average_precision(self) -> list[float | None]:
        """One-vs-rest average precision of each class, None where there are no positives."""
        return [average_precision_of_counts(p, t) for p, t in zip(self.positives, self.total, strict=True)]
