"""Boosted trees for weighted rows: columns are rounded to quantiles before scikit-learn sees them.

With sample weights scikit-learn finds the bins of a column by a weighted percentile per edge, which takes
several times as long as growing the trees (1.9, 200,000 rows). A column of at most 255 values needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 255
"""scikit-learn's own number of bins."""

SAMPLE = 50_000
"""Rows from which a column's quantiles are read."""


@dataclass(frozen=True)
class RoundedTrees:
    """A boosted classifier together with the values its columns are rounded to.

    Attributes:
        trees: Fitted on rounded columns.
        values: For each column its ascending values, None where it is taken as it is.
    """

    trees: Any
    values: list[NDArray[np.float32] | None]

    def decision_function(self, columns: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N,) log-odds of rows of raw columns."""
        return np.asarray(self.trees.decision_function(_rounded(columns, self.values)), np.float64)


def fit_trees(
    trees: Any, columns: NDArray[np.float32], outcome: NDArray[np.int8], weight: NDArray[np.float64]
) -> Any:
    """Fit a `HistGradientBoostingClassifier`; equal weights leave everything to scikit-learn.

    Args:
        trees: Not fitted.
        columns: (N, D) finite values.
        outcome: (N,) 0 or 1.
        weight: (N,) above 0.

    Returns:
        Something with `decision_function(columns)`.
    """
    if (weight == weight[0]).all():
        return trees.fit(columns, outcome)
    values = [_values(column) for column in columns.T]
    return RoundedTrees(trees.fit(_rounded(columns, values), outcome, sample_weight=weight), values)


def _values(column: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The quantiles a column is rounded to, None where it has few values anyway."""
    stride = -(-len(column) // SAMPLE)
    some = np.unique(column[::stride])
    if len(some) <= BINS and len(np.unique(column)) <= BINS:
        return None
    shares = np.linspace(0, 1, BINS)
    return np.unique(np.quantile(column[::stride], shares, method="inverted_cdf")).astype(np.float32)


def _rounded(columns: NDArray[np.float32], values: list[NDArray[np.float32] | None]) -> NDArray[np.float32]:
    """Columns with every value raised to the next of its column's values, or lowered to the largest."""
    made = columns.copy(order="F")
    for place, own in enumerate(values):
        if own is not None:
            made[:, place] = own[np.searchsorted(own[:-1], columns[:, place])]
    return made
