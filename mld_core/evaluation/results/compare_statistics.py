"""Two results on the same units: paired differences, exact McNemar, transitions.

All functions take units that were already joined (same input on both sides), in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from mld_core.evaluation.codes.categories import CATEGORIES
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.statistics.bootstrap import REPLICATES, Interval, bootstrap
from mld_core.evaluation.statistics.significance import benjamini_hochberg


@dataclass(frozen=True)
class Transitions:
    """What changed between two results.

    Attributes:
        regressed: (N,) right before, wrong now (C90).
        fixed: (N,) wrong before, right now (C91).
        p_value: Exact McNemar, two-sided.
    """

    regressed: NDArray[np.bool_]
    fixed: NDArray[np.bool_]
    p_value: float


def transitions(before: NDArray[np.integer], after: NDArray[np.integer]) -> Transitions:
    """Fixed and regressed units from (N,) errors of both sides, -1 = unknown.

    Example:
        >>> made = transitions(np.array([1, 1, 1, 0, -1]), np.array([0, 0, 0, 0, 1]))
        >>> int(made.fixed.sum()), int(made.regressed.sum()), made.p_value
        (3, 0, 0.25)
    """
    regressed = (before == 0) & (after == 1)
    fixed = (before == 1) & (after == 0)
    return Transitions(regressed, fixed, mcnemar_exact(int(fixed.sum()), int(regressed.sum())))


def mcnemar_exact(fixed: int, regressed: int) -> float:
    """Two-sided exact McNemar p-value: the discordant units under Binomial(n, 1/2), doubled, at most 1.

    Example:
        >>> mcnemar_exact(1, 9)
        0.021484375
        >>> mcnemar_exact(0, 0)
        1.0
    """
    low, total = min(fixed, regressed), fixed + regressed
    if total == 0 or 2 * low == total:
        return 1.0
    return min(1.0, 2 * float(betainc(total - low, low + 1, 0.5)))


def category_transitions(before: NDArray[np.integer], after: NDArray[np.integer]) -> NDArray[np.int64]:
    """(6, 6) units by category before (rows) and after (columns); unlabelled units (-1) are left out.

    Example:
        >>> category_transitions(np.array([0, 0, -1]), np.array([0, 2, 1]))[0].tolist()
        [1, 0, 1, 0, 0, 0]
    """
    size = len(CATEGORIES)
    known = (before >= 0) & (after >= 0)
    flat = before[known].astype(np.int64) * size + after[known]
    return np.bincount(flat, minlength=size * size).reshape(size, size)


def paired_intervals(
    before: Callable[[NDArray[np.float64]], Mapping[str, float | None]],
    after: Callable[[NDArray[np.float64]], Mapping[str, float | None]],
    hashes: NDArray[np.uint64],
    groups: NDArray[np.int64],
    workers: Workers,
    *,
    replicates: int = REPLICATES,
) -> dict[str, tuple[float | None, Interval]]:
    """Differences after - before of metrics with paired cluster-bootstrap intervals.

    Both sides draw the same groups.

    Args:
        before: Metrics of the first result from (N,) weights, such as `RankedErrors.metrics`.
        after: Metrics of the second.
        hashes: (G,) hashes of the group keys.
        groups: (N,) place of each unit's group.
        workers: Open pool.
        replicates: How many.

    Returns:
        Metric -> (difference, (low, high)).
    """

    def difference(weight: NDArray[np.float64]) -> dict[str, float | None]:
        a, b = before(weight), after(weight)
        return {name: _minus(b[name], a[name]) for name in a if name in b}

    exact = difference(np.ones(len(groups)))
    intervals = bootstrap(difference, hashes, groups, workers, replicates=replicates)
    return {name: (value, intervals.get(name, (None, None))) for name, value in exact.items()}


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


@dataclass(frozen=True)
class GroupChange:
    """Change of the error rate in one group (class, region, slice).

    Attributes:
        key: The group's number.
        n: Units known on both sides.
        delta: Error rate after - before.
        p_value: Exact McNemar inside the group.
        bh_sig: Significant after Benjamini-Hochberg over the groups.
    """

    key: int
    n: int
    delta: float
    p_value: float
    bh_sig: bool


def changes_by_group(
    keys: NDArray[np.integer], before: NDArray[np.integer], after: NDArray[np.integer]
) -> list[GroupChange]:
    """Change in every group of (N,) keys; keys below 0 and units unknown on a side are left out."""
    known = (keys >= 0) & (before >= 0) & (after >= 0)
    rows = np.flatnonzero(known)
    distinct, where = np.unique(keys[rows], return_inverse=True)
    count = len(distinct)
    size = np.bincount(where, minlength=count)
    was = np.bincount(where, weights=before[rows] == 1, minlength=count)
    now = np.bincount(where, weights=after[rows] == 1, minlength=count)
    fixed = np.bincount(where, weights=(before[rows] == 1) & (after[rows] == 0), minlength=count)
    regressed = np.bincount(where, weights=(before[rows] == 0) & (after[rows] == 1), minlength=count)
    p_values = np.array([mcnemar_exact(int(f), int(r)) for f, r in zip(fixed, regressed, strict=True)])
    flags = benjamini_hochberg(p_values)
    return [
        GroupChange(
            int(distinct[g]),
            int(size[g]),
            float((now[g] - was[g]) / size[g]),
            float(p_values[g]),
            bool(flags[g]),
        )
        for g in range(count)
    ]


def new_codes(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Codes that occur now and did not before.

    Example:
        >>> new_codes({"C01": 3, "C20": 0}, {"C01": 1, "C20": 4})
        ['C20']
    """
    return sorted(code for code, count in after.items() if count and not before.get(code))
