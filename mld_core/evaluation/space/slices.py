"""Metadata slices with more errors than the rest: SliceLine's score over conjunctions of column values.

Score = a (err_S / err - 1) - (1 - a) (n / |S| - 1) with a = 0.6 and at least 10 units (Sagadeeva and Boehm,
2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mld_core.evaluation.statistics.significance import benjamini_hochberg, binomial_upper

ALPHA = 0.6
MINIMUM_SUPPORT = 10
TOP = 10
MAX_VALUES = 50
BINS = 5
LEVELS = 2


@dataclass(frozen=True)
class MetadataSlice:
    """A conjunction of column values.

    Attributes:
        conditions: Column -> value (or interval) as text.
        size: Labelled units inside.
        errors: Wrong ones.
        score: SliceLine's score.
        p_value: One-sided binomial against the error rate of the split.
        significant: After Benjamini-Hochberg over all slices tested.
        rows: The labelled units inside.
    """

    conditions: dict[str, str]
    size: int
    errors: int
    score: float
    p_value: float
    significant: bool
    rows: NDArray[np.int64]


def find_slices(metadata: pd.DataFrame, errors: NDArray[np.int8]) -> list[MetadataSlice]:
    """The best-scoring slices of one or two conditions with more errors than the split, at most 10.

    Args:
        metadata: One row per unit. Numbers with many values are cut at quintiles; texts with more than 50
            values and columns with one value are left out.
        errors: (N,) 1 wrong, 0 right, -1 unlabelled.
    """
    known = np.flatnonzero(errors >= 0)
    wrong = (errors[known] == 1).astype(np.int64)
    if len(known) == 0 or wrong.sum() == 0:
        return []
    columns = {
        str(name): coded for name in metadata if (coded := _coded(metadata[name].iloc[known])) is not None
    }
    rate = wrong.mean()
    made = []
    for conditions, rows in _candidates(columns):
        size, bad = len(rows), int(wrong[rows].sum())
        score = ALPHA * (bad / size / rate - 1) - (1 - ALPHA) * (len(known) / size - 1)
        made.append((conditions, rows, size, bad, float(score)))
    if not made:
        return []
    sizes, bads = (np.array([entry[place] for entry in made], np.float64) for place in (2, 3))
    p_values = binomial_upper(bads, sizes, float(rate))
    passed = benjamini_hochberg(p_values)
    slices = [
        MetadataSlice(conditions, size, bad, score, float(p), bool(ok), known[rows])
        for (conditions, rows, size, bad, score), p, ok in zip(made, p_values, passed, strict=True)
        if bad > size * rate
    ]
    return sorted(slices, key=lambda one: (-one.score, sorted(one.conditions.items())))[:TOP]


def slices_of(
    slices: list[MetadataSlice], errors: NDArray[np.int8], kept: NDArray[np.bool_]
) -> list[MetadataSlice]:
    """Slices found on all units as some of them have it: sizes, errors, and which would be significant.

    Args:
        slices: As `find_slices` gave them.
        errors: (N,) 1 wrong, 0 right, -1 unlabelled.
        kept: (N,) the units that count.
    """
    known = kept & (errors >= 0)
    rate = float((errors[known] == 1).mean()) if known.any() else 0.0
    passed = max((one.p_value for one in slices if one.significant), default=0.0)
    made = []
    for one in slices:
        rows = one.rows[known[one.rows]]
        bad = int((errors[rows] == 1).sum())
        p = float(binomial_upper(np.array([float(bad)]), np.array([float(len(rows))]), rate)[0])
        made.append(replace(one, size=len(rows), errors=bad, p_value=p, significant=p <= passed))
    return made


def _coded(column: pd.Series) -> tuple[NDArray[np.int64], list[str]] | None:
    """Codes (-1 = missing) and the text of each, or None where the column says nothing."""
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > MAX_VALUES // 5:
        column = pd.qcut(column, BINS, duplicates="drop")
    codes, values = pd.factorize(column, sort=True)
    if not 2 <= len(values) <= MAX_VALUES:
        return None
    return codes.astype(np.int64), [str(value) for value in values]


def _candidates(
    columns: dict[str, tuple[NDArray[np.int64], list[str]]],
) -> Iterator[tuple[dict[str, str], NDArray[np.int64]]]:
    for level in range(1, LEVELS + 1):
        for names in combinations(sorted(columns), level):
            flat = np.zeros(len(columns[names[0]][0]), np.int64)
            missing = np.zeros(len(flat), np.bool_)
            for name in names:
                codes, values = columns[name]
                flat = flat * len(values) + np.maximum(codes, 0)
                missing |= codes < 0
            flat[missing] = -1
            order = np.argsort(flat, kind="stable")
            distinct, starts = np.unique(flat[order], return_index=True)
            for number, rows in zip(distinct, np.split(order, starts[1:]), strict=True):
                if number >= 0 and len(rows) >= MINIMUM_SUPPORT:
                    yield _conditions(int(number), names, columns), np.sort(rows)


def _conditions(
    number: int, names: tuple[str, ...], columns: dict[str, tuple[NDArray[np.int64], list[str]]]
) -> dict[str, str]:
    made = {}
    for name in reversed(names):
        values = columns[name][1]
        number, place = divmod(number, len(values))
        made[name] = values[place]
    return dict(sorted(made.items()))
