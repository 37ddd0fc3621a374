"""What people said of a result's samples: what stands, how right the suspicions are, what changed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mld_core.evaluation.metrics.classification import jeffreys_interval
from mld_core.records.store.verdict import BOX_KINDS, KINDS, TRUE_BOX_KINDS, UNSEEN, Subject
from mld_core.views.cards import Told, named_class, spoken, subject_columns, subject_of
from mld_core.views.evaluation import finding_filter, finding_sort
from mld_core.views.selection import HeldUnits
from mld_core.views.tables import plain

ENOUGH = 20
"""Verdicts on suspects after which their precision is worth telling."""


def counts(told: Told, dataset: str | None = None) -> dict[str, int]:
    """How many subjects stand as each kind, and how many in conflict."""
    made = dict.fromkeys((*KINDS, *BOX_KINDS, *TRUE_BOX_KINDS), 0) | {"conflicts": 0}
    for one in told.standing.values():
        if dataset in {None, one.subject.dataset_type}:
            made["conflicts" if one.verdict is None else one.verdict.kind] += 1
    return made


def summary(told: Told, dataset: str) -> dict[str, Any]:
    """What was reviewed of a split, in numbers and a sentence."""
    found = counts(told, dataset)
    reviewed = sum(found.values())
    if not reviewed:
        return {"reviewed": 0, **found, "sentence": "Nothing of this split is reviewed yet."}
    kinds = {"relabel": "wrong labels", "ok": "right", "ambiguous": "ambiguous", "hard": "hard"}
    kinds |= {"missing": "missing labels", "nothing": "boxes without an object", "moved": "boxes moved"}
    parts = [f"{found[kind]} {text}" for kind, text in kinds.items() if found[kind]]
    if found["conflicts"]:
        parts.append(f"{found['conflicts']} in conflict")
    return {"reviewed": reviewed, **found, "sentence": f"Of the {reviewed} reviewed: {', '.join(parts)}."}


def suspects(units: HeldUnits, code: str, condition: str = "") -> NDArray[np.int32]:
    """Rows of the units of a diagnosis, the worst first."""
    where = finding_filter(code)
    if condition.strip():
        where = f"({condition}) and ({where})"
    return units.chosen(where, finding_sort(code))


def subjects_of(units: HeldUnits, rows: NDArray[np.int32]) -> list[Subject]:
    """What verdicts on these units are about."""
    return [subject_of(units, one) for one in units.take(rows, subject_columns(units))]


def progress(units: HeldUnits, told: Told, code: str = "C01", condition: str = "") -> dict[str, Any]:
    """How right the suspicion of a diagnosis was so far, and whether the rest may be accepted at once.

    The share of "relabel" among the suspects that were looked at, with its 95 % Jeffreys interval;
    "ambiguous" counts against it. What was accepted with others was not looked at: it is reviewed only.
    """
    rows = suspects(units, code, condition)
    reviewed = [found for one in subjects_of(units, rows) if (found := told.standing.get(one)) is not None]
    settled = [one.verdict for one in reviewed if one.verdict is not None and one.verdict.note != UNSEEN]
    agreed = sum(one.kind == "relabel" for one in settled)
    low, high = jeffreys_interval(agreed, len(settled)) if settled else (None, None)
    enough = len(settled) >= ENOUGH
    left = len(rows) - len(reviewed)
    return {
        "code": code,
        "suspected": len(rows),
        "reviewed": len(reviewed),
        "agreed": agreed,
        "precision": plain(agreed / len(settled)) if settled else None,
        "lo": plain(low),
        "hi": plain(high),
        "enough": enough,
        "remaining": left,
        "sentence": _said(len(rows), len(settled), agreed, left, low, high),
    }


def _said(n: int, settled: int, agreed: int, left: int, low: float | None, high: float | None) -> str:
    if not n:
        return "No label is suspected here."
    if settled < ENOUGH:
        more = min(ENOUGH - settled, left)
        if not left:
            return f"All {n} are reviewed: {agreed} were wrong."
        return f"{settled} of {n} reviewed. Look at {more} more, then the rest can be accepted at once."
    assert low is not None
    assert high is not None
    share = f"{100 * agreed / settled:.0f} %, {100 * low:.0f} to {100 * high:.0f} %"
    said = f"{agreed} of the {settled} you looked at were wrong labels ({share})"
    return f"{said}; accept the other {left:,}?" if left else f"{said}; all are reviewed."


def verdict_rows(told: Told, names: list[str] | None, show: str, dataset: str | None) -> list[dict[str, Any]]:
    """What stands of every reviewed subject, conflicts first, then the latest first.

    Args:
        told: What people said.
        names: Names of the classes.
        show: "all", "conflicts" or "mine".
        dataset: Only this split.
    """
    found = [one for one in told.standing.values() if dataset in {None, one.subject.dataset_type}]
    if show == "conflicts":
        found = [one for one in found if one.conflict]
    if show == "mine":
        found = [one for one in found if any(heard.author == told.author for heard in one.heard)]
    found.sort(key=lambda one: max(heard.at for heard in one.heard), reverse=True)
    found.sort(key=lambda one: not one.conflict)
    return [
        {
            "split": one.subject.dataset_type,
            "id": one.subject.input_id,
            "truth": one.subject.truth,
            "box": None if one.subject.box is None else list(one.subject.box),
            "stands": "conflict" if one.verdict is None else one.verdict.kind,
            "label": None if one.verdict is None else named_class(one.verdict.label, names),
            "given": named_class(one.heard[-1].given, names),
            "heard": [spoken(heard, told, names) for heard in one.heard],
        }
        for one in found
    ]


VERDICTS: tuple[tuple[str, str, tuple[str, ...], str, str], ...] = (
    ("relabel", "1", ("label",), "Label wrong", "The label is wrong; another class is right."),
    ("ok", "2", ("label",), "Label right", "The label is right, whatever the model says."),
    ("ambiguous", "3", ("label", "object"), "Ambiguous", "Two people would not agree."),
    ("hard", "4", ("label",), "Hard", "Right, and hard to see."),
    ("missing", "1", ("object",), "Label missing", "An object stands in the box, and has no label."),
    ("nothing", "2", ("object",), "No object", "Nothing stands in the box."),
    ("moved", "", (), "Box corrected", "The true box lies elsewhere."),
)
"""Kind, key, what it is about (a label, or a predicted box without a true one), title, meaning."""
