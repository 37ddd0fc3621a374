"""The page of more than two results: each against the first, and what all get wrong, some, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.results.many import (
    Comparisons,
    compare_many,
    counted,
    rows_of_all,
    wrong_in,
)
from mld_core.evaluation.results.result import Result
from mld_core.views.cards import cards
from mld_core.views.comparing.page import shown_side, side, spill_of
from mld_core.views.comparing.pairs import changed_rows
from mld_core.views.evaluation import boxed, metric_texts_of
from mld_core.views.selection import HeldUnits, Rows
from mld_core.views.tables import plain

KINDS = ("some", "all", "none", "regressed", "fixed")


@dataclass(frozen=True)
class Together:
    """Several passes over one split, unit by unit; the passes themselves are not kept.

    Attributes:
        page: What the page shows of them but the units.
        rows: (N, passes) the row of each unit of the baseline in every pass, -1 where one does not hold it.
        wrong: (N,) in how many each of them is wrong; -1 where one does not hold it, or has no label of it.
    """

    page: dict[str, Any]
    rows: Rows
    wrong: NDArray[np.int8]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self.rows.nbytes + self.wrong.nbytes

    def chosen(
        self, passes: Sequence[HeldUnits], kind: str, place: int = 1, truth: int | None = None
    ) -> Rows:
        """(M, passes) rows of some units, the surest first; -1 where a pass does not hold one.

        Args:
            passes: The passes, the baseline first.
            kind: "all", "some", "none": in which they are wrong, of the units that all hold; "fixed" or
                "regressed" from the baseline to another.
            place: Which other.
            truth: Only those of this class.
        """
        base = passes[0]
        if kind in {"fixed", "regressed"}:
            both = self.rows[self.rows[:, place] >= 0][:, [0, place]]
            rows = self.rows[changed_rows(base, passes[place], both)[kind][:, 0]]
        else:
            full = len(passes)
            taken = {
                "all": self.wrong == full,
                "none": self.wrong == 0,
                "some": (self.wrong > 0) & (self.wrong < full),
            }[kind]
            rows = self.rows[taken]
            sure = np.fmax.reduce([one.floats("confidence")[rows[:, at]] for at, one in enumerate(passes)])
            rows = rows[np.lexsort((rows[:, 0], -sure))]
        return rows if truth is None else rows[base.truth[rows[:, 0]] == truth]


def side_by_side(passes: Sequence[HeldUnits], rows: Rows) -> list[list[dict[str, Any] | None]]:
    """Some units as the page shows them: a card for each pass, None where it does not hold it."""
    made: list[list[dict[str, Any] | None]] = [[None] * len(passes) for _ in rows]
    for place, one in enumerate(passes):
        there = np.flatnonzero(rows[:, place] >= 0)
        for at, card in zip(there.tolist(), cards(one, rows[there, place]), strict=True):
            made[at][place] = card
    return made


def together(passes: Sequence[HeldUnits]) -> Together:
    """Compare the first of some passes over one split with each other one, and all of them with one another.

    Raises:
        TaskError: The results are of different tasks.
        ValueError: Too many passes, or one alone.
    """
    found = compare_many([side(one) for one in passes], spill_of(passes[0]))
    rows = rows_of_all(passes[0].rows, [one.rows[passes[0].dataset] for one in found.against])
    wrong = wrong_in([one.errors for one in passes], rows)
    counts = counted(wrong, len(passes))
    lines = found.units.to_dict("records")
    page = {
        "split": passes[0].dataset,
        "sides": [shown_side(one) for one in passes],
        "counts": counts,
        "sentence": _sentence(lines, counts, boxes=boxed(passes[0].result)),
        **_metrics(found, passes[0].result, len(passes)),
        "against": [_against(one) for one in lines],
    }
    return Together(page, rows, wrong)


def _against(line: Mapping[Any, Any]) -> dict[str, Any]:
    names = ("n_paired", "n_fixed", "n_regressed", "holm_p", "better")
    return {name: plain(line[name]) for name in names}


def _metrics(found: Comparisons, result: Result, n: int) -> dict[str, Any]:
    """The metrics that all have: their heads, and of each result the values with what moved."""
    frame = found.metrics
    told = {
        name: own.sort_values("place").to_dict("records")
        for name, own in frame.groupby("metric", sort=False)
        if len(own) == n
    }
    texts = [text for text in metric_texts_of(result) if text.name in told]
    rows = [
        [
            {
                "value": plain(told[text.name][place]["value"]),
                "change": plain(told[text.name][place]["delta_paired"]),
                "low": plain(told[text.name][place]["delta_lo"]),
                "high": plain(told[text.name][place]["delta_hi"]),
            }
            for text in texts
        ]
        for place in range(n)
    ]
    for at, text in enumerate(texts):
        best = best_of([row[at]["value"] for row in rows], text.better)
        for place, row in enumerate(rows):
            row[at]["best"] = place in best
    names = ("name", "title", "unit", "better", "means")
    return {"heads": [{name: getattr(text, name) for name in names} for text in texts], "values": rows}


def best_of(values: Sequence[float | None], better: str) -> list[int]:
    """Places of the best value, several where it is the same; none where neither direction is better.

    Example:
        >>> best_of([0.5, 0.9, 0.9], "up"), best_of([0.5, None], "down"), best_of([1.0, 1.0], "up")
        ([1, 2], [0], [])
    """
    there = [one for one in values if one is not None]
    if not there or not better or (len(there) > 1 and len(set(there)) == 1):
        return []
    top = max(there) if better == "up" else min(there)
    return [place for place, one in enumerate(values) if one == top]


def _sentence(lines: Sequence[Mapping[Any, Any]], counts: Mapping[str, int], *, boxes: bool) -> str:
    what = "true boxes" if boxes else "samples"
    if not counts["n_common"]:
        return f"No {what} are the same in all results: they cannot be paired by id or content."
    better, worse = (sum(one["better"] == sign for one in lines) for sign in (1, -1))
    said = [f"{n} {word}" for n, word in ((better, "better"), (worse, "worse")) if n]
    moved = " and ".join(said) if said else "none better or worse"
    return (
        f"Of {counts['n_common']:,} {what} in all {len(lines) + 1} results, {counts['n_all']:,} are wrong "
        f"in all, {counts['n_some']:,} in some; against the first {moved} beyond chance."
    )
