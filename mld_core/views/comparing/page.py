"""All that the page of two results holds but the samples themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.results.compare import Side, compare_sides
from mld_core.evaluation.results.result import Result
from mld_core.views.box_charts import tide_rows
from mld_core.views.comparing.pairs import changed_rows
from mld_core.views.evaluation import boxed, metric_texts_of
from mld_core.views.selection import HeldUnits, Rows
from mld_core.views.tables import class_label, plain
from mld_core.views.units import PassUnits, passes_of
from mld_core.views.words.texts import CATEGORY_TEXTS

PAIRS = 20
"""Kinds of error whose number changed most that are listed."""


def shared_splits(a: Result, b: Result) -> list[str]:
    """The splits both results hold, in the order of the first."""
    return [name for name in a.datasets if name in b.datasets]


def last_pass(result: Result, split: str) -> PassUnits:
    """The last epoch of a split, which is what is compared."""
    return [one for one in passes_of(result) if one.dataset == split][-1]


def side(units: PassUnits) -> Side:
    """A pass, whichever epoch of its result it is, for a comparison."""
    return units.result.side(units.dataset, place=units.index)


def spill_of(units: PassUnits) -> Path:
    """Where a large join spills."""
    return units.result.folder.parent / ".spill"


def comparison(a: HeldUnits, b: HeldUnits) -> tuple[dict[str, Any], dict[str, Rows]]:
    """What changed from one pass to another, and the rows of the units that did.

    Args:
        a: Before: a pass over a split.
        b: After: one over the same split.

    Raises:
        TaskError: The results are of different tasks.
    """
    found = compare_sides(side(a), side(b), spill_of(a))
    counts = {str(key): plain(value) for key, value in found.units.iloc[0].items()}
    rows = changed_rows(a, b, found.rows[b.dataset])
    classes = b.result.class_names or a.result.class_names
    page = {
        "task": b.result.task,
        "split": b.dataset,
        "splits": shared_splits(a.result, b.result),
        "sides": [shown_side(one) for one in (a, b)],
        "counts": counts,
        "p": counts["mcnemar_p"],
        "sentence": _sentence(counts, boxes=boxed(b.result)),
        "tables": [
            one
            for one in (
                _metrics(found.metrics, b.result),
                _classes(found.classes, rows, b, classes),
                _errors(a, b, classes),
                _findings(found.codes),
                _costs(a, b),
                _transitions(found.transitions),
            )
            if one["rows"]
        ],
    }
    return page, rows


_MOVED = {"before": "value", "after": "value", "change": "change"}


def _table(
    name: str, title: str, note: str, first: str, kinds: Mapping[str, str], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """A table as the page draws it; kinds of columns are "value", "count" and "change"."""
    heads = [{"title": first, "kind": "name"}, *({"title": one, "kind": kind} for one, kind in kinds.items())]
    return {"id": name, "title": title, "note": note, "heads": heads, "rows": rows}


def _row(
    name: str,
    values: Sequence[Any],
    hint: str = "",
    *,
    unit: str = "",
    better: str = "down",
    truth: int | None = None,
    sure: bool = False,
) -> dict[str, Any]:
    made = {"name": name, "hint": hint, "truth": truth, "unit": unit, "better": better, "sure": sure}
    return made | {"values": [plain(one) for one in values]}


def _metrics(frame: pd.DataFrame, result: Result) -> dict[str, Any]:
    """The metrics of both, and the change on the units both hold with its interval."""
    moved = {str(row["metric"]): row for row in frame.to_dict("records")}
    columns = ("a", "b", "delta", "delta_paired", "delta_lo", "delta_hi")
    rows = [
        _row(
            text.title,
            [moved[text.name][one] for one in columns],
            text.means,
            unit=text.unit,
            better=text.better,
        )
        for text in metric_texts_of(result)
        if text.name in moved
    ]
    kinds = {**_MOVED, "paired": "change", "from": "change", "to": "change"}
    note = "paired: the change on what both hold, with its 95 % interval"
    return _table("moved", "How the metrics moved", note, "Metric", kinds, rows)


def shown_side(units: HeldUnits) -> dict[str, Any]:
    """A pass as the page names it."""
    result = units.result
    return {
        "model": result.model_name,
        "version": result.version_name,
        "result": result.result_name,
        "epoch": units.n_epoch,
        "completed_at": str(result.info["completed_at"]),
    }


def _sentence(counts: dict[str, Any], *, boxes: bool) -> str:
    what = "true boxes" if boxes else "samples"
    if not counts["n_paired"]:
        return f"No {what} of both results are the same: they cannot be paired by id or content."
    fixed, regressed, p = counts["n_fixed"], counts["n_regressed"], counts["mcnemar_p"]
    said = f"Of {counts['n_paired']:,} {what} in both, {fixed:,} were fixed and {regressed:,} regressed"
    if fixed == regressed:
        return f"{said}."
    if p is None or p >= 0.05:
        return f"{said}: a difference that chance explains."
    return f"{said}: {'better' if fixed > regressed else 'worse'}, and not by chance."


def _classes(
    frame: pd.DataFrame, rows: dict[str, Rows], b: HeldUnits, names: list[str] | None
) -> dict[str, Any]:
    """Each class: what was fixed or regressed of it, and the change of its error rate with its test."""
    own = {kind: Counter(b.truth[found[:, 1]].tolist()) for kind, found in rows.items()}
    told = [row for row in frame.to_dict("records") if int(row["class"]) >= 0]
    told.sort(key=lambda row: (-abs(plain(row["delta"]) or 0), -row["n"]))
    made = []
    for row in told:
        number = int(row["class"])
        values = (row["n"], own["fixed"][number], own["regressed"][number], row["delta"])
        name = class_label(number, names)
        made.append(_row(name, values, unit="share", truth=number, sure=bool(row["bh_sig"])))
    kinds = {"both": "count", "fixed": "count", "regressed": "count", "change": "change"}
    return _table(
        "moved-classes", "Classes", "change of the error rate; bold: not by chance", "Class", kinds, made
    )


def _errors(a: HeldUnits, b: HeldUnits, names: list[str] | None) -> dict[str, Any]:
    """How often each truth was taken for each prediction, the largest change first."""
    before, after = (_confused(one) for one in (a, b))
    order = sorted({*before, *after}, key=lambda pair: (-abs(after[pair] - before[pair]), pair))
    rows = [
        _row(
            " → ".join("nothing" if one < 0 else class_label(one, names) for one in pair),
            (before[pair], after[pair], after[pair] - before[pair]),
        )
        for pair in order[:PAIRS]
    ]
    note = (
        f"the {len(rows)} of {len(order)} that changed most, of all units"
        if len(order) > PAIRS
        else "all units"
    )
    return _table("moved-errors", "Errors", note, "Truth → predicted", _MOVED, rows)


def _confused(units: PassUnits) -> Counter[tuple[int, int]]:
    wrong = np.asarray(units.errors == 1)
    return Counter(zip(units.truth[wrong].tolist(), units.prediction[wrong].tolist(), strict=True))


def _findings(frame: pd.DataFrame) -> dict[str, Any]:
    """Units that carry each finding on both sides, the most severe first."""
    told = [
        (BY_CODE[str(row["code"])], int(row["counts_a"]), int(row["counts_b"]))
        for row in frame.to_dict("records")
        if str(row["code"]) in BY_CODE and row["counts_a"] + row["counts_b"] > 0
    ]
    told.sort(key=lambda one: (-one[0].severity, one[0].code))
    rows = [_row(f"{one.title} ({one.code})", (n, m, m - n), one.action) for one, n, m in told]
    return _table("moved-findings", "Findings", "the gravest first", "Finding", _MOVED, rows)


def _costs(a: HeldUnits, b: HeldUnits) -> dict[str, Any]:
    """What each kind of error costs in AP on both sides; empty where a side does not know it."""
    rows = []
    if boxed(b.result):
        before = {row["name"]: row["dap"] for row in tide_rows(a)}
        for row in tide_rows(b):
            n, m = before.get(row["name"]), row["dap"]
            if n is not None and m is not None:
                rows.append(_row(row["title"], (n, m, m - n), row["means"]))
    return _table("moved-costs", "What errors cost", "average precision lost", "Error", _MOVED, rows)


def _transitions(frame: pd.DataFrame) -> dict[str, Any]:
    """Counts of categories before by categories after, in the order of the page."""
    titles = {text.name: text.title for text in CATEGORY_TEXTS}
    counted = {(row["category_a"], row["category_b"]): int(row["counts"]) for row in frame.to_dict("records")}
    rows = [_row(titles[one], [counted.get((one, other), 0) for other in titles]) for one in titles]
    kinds = dict.fromkeys(titles.values(), "count")
    note = "before by after, both under the thresholds of before"
    return _table("transitions", "Categories", note, "before ↓ after →", kinds, rows if counted else [])
