"""The units two passes have in common whose judgement changed, as rows of both."""

from __future__ import annotations

from typing import Any

import numpy as np

from mld_core.views.cards import cards
from mld_core.views.selection import HeldUnits, Rows

KINDS = ("regressed", "fixed")
MOST_AT_ONCE = 200


def changed_rows(a: HeldUnits, b: HeldUnits, both: Rows) -> dict[str, Rows]:
    """The units that were regressed (right in `a`, wrong in `b`) or fixed, the surest first.

    Args:
        a: The pass before.
        b: The pass after.
        both: (M, 2) rows of the units that were paired, as `Comparison.rows` has them.

    Returns:
        (N, 2) row numbers before and after, for each of `KINDS`.
    """
    before, after = a.errors[both[:, 0]], b.errors[both[:, 1]]
    changed = (before >= 0) & (after >= 0) & (before != after)
    both, after = both[changed], after[changed]
    sure = np.fmax(a.floats("confidence")[both[:, 0]], b.floats("confidence")[both[:, 1]])
    order = np.lexsort((both[:, 1], -sure))
    both, after = both[order], after[order]
    return {kind: both[after == number] for kind, number in (("regressed", 1), ("fixed", 0))}


def pairs(
    a: HeldUnits, b: HeldUnits, rows: Rows, offset: int = 0, limit: int = MOST_AT_ONCE
) -> list[dict[str, Any]]:
    """Some pairs as a page shows them: the unit before and after."""
    shown = rows[offset : offset + limit]
    before, after = cards(a, shown[:, 0]), cards(b, shown[:, 1])
    return [{"a": one, "b": other} for one, other in zip(before, after, strict=True)]


def of_class(b: HeldUnits, rows: Rows, number: int | None) -> Rows:
    """The pairs whose truth is of a class; None: all."""
    return rows if number is None else rows[b.truth[rows[:, 1]] == number]
