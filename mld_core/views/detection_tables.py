"""The tables of a detection's page that differ from a classification's: error codes, first steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.evaluation.detection.codes import NO_PREDICTION
from mld_core.views.tables import FIRST_STEPS, MAX_CODES, class_label, code_actions, plain, severe_steps
from mld_core.views.units import PassUnits
from mld_core.views.words.texts_detection import EVENT_ACTIONS, EVENTS, MISS_ACTION

_CODE = re.compile(r"DET:([A-Z]+)(\*?):CLS(bg|\d+)->(bg|\d+)")


def parse_box_code(code: str) -> tuple[str, bool, int, int]:
    """Event, whether it is uncertain, true class and said class of an error code; -1 is the background.

    Raises:
        ValueError: Not an error code of a box.

    Example:
        >>> parse_box_code("DET:N*:CLSbg->2")
        ('N', True, -1, 2)
    """
    found = _CODE.fullmatch(code)
    if found is None:
        raise ValueError(f"error code {code!r}: expected DET:<event>:CLS<class|bg>-><class|bg>")
    truth, said = (-1 if text == "bg" else int(text) for text in found.group(3, 4))
    return found[1], bool(found[2]), truth, said


def box_class(number: int, names: Sequence[str] | None) -> str:
    """Name of a class; "background" for -1."""
    return "background" if number < 0 else class_label(number, names)


def code_words(code: str, names: Sequence[str] | None) -> dict[str, str]:
    """`truth`, `said`, `event` in words, and what to `do` where no diagnosis says more.

    Example:
        >>> code_words("DET:N:CLSbg->1", ["cat", "dog"])["event"]
        'false, on background'
    """
    if code == NO_PREDICTION:
        return {"truth": "any class", "said": "nothing", "event": "missed object", "do": MISS_ACTION}
    event, unsure, truth, said = parse_box_code(code)
    return {
        "truth": box_class(truth, names),
        "said": box_class(said, names),
        "event": EVENTS[event] + (", uncertain" if unsure else ""),
        "do": EVENT_ACTIONS[event],
    }


def code_rows(units: PassUnits, names: Sequence[str] | None) -> tuple[list[dict[str, Any]], int]:
    """The error codes of a pass, commonest first, at most `MAX_CODES`; and how many there are in all."""
    wrong = np.flatnonzero(units.errors == 1)
    if not len(wrong):
        return [], 0
    rows = pa.array(wrong, pa.int64())
    columns: dict[str, Any] = {"code": units.column("error_code").cast(pa.string()).take(rows)}
    for name in ("confidence", "error_proba"):
        columns[name] = units.column(name).cast(pa.float64()).take(rows)
    measures = [("code", "count"), ("confidence", "mean"), ("error_proba", "mean")]
    table = pa.table(columns)
    found = table.filter(pc.is_valid(table["code"])).group_by("code").aggregate(measures).to_pylist()
    found.sort(key=lambda row: (-row["code_count"], row["code"]))
    actions = code_actions(units, wrong)
    made = []
    for row in found[:MAX_CODES]:
        words = code_words(row["code"], names)
        action, severity = actions.get(row["code"], (None, None))
        made.append(
            {
                "code": row["code"],
                "truth": words["truth"],
                "said": words["said"],
                "event": words["event"],
                "n": row["code_count"],
                "share": plain(row["code_count"] / len(wrong)),
                "confidence": plain(row["confidence_mean"]),
                "error_proba": plain(row["error_proba_mean"]),
                "severity": severity,
                "action": action or words["do"],
            }
        )
    return made, len(found)


def first_steps(codes: Sequence[dict[str, Any]], diagnoses: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The few things to do first: the most severe diagnoses, else the commonest error codes."""
    found = severe_steps(diagnoses)
    if not found:
        found = [
            {
                "title": f"{row['event'].capitalize()}: {row['truth']}, said to be {row['said']}",
                "n": row["n"],
                "text": f"{row['share']:.0%} of all errors. {row['action']}",
                "group": row["code"],
                "severity": None,
            }
            for row in codes[:3]
        ]
    return found[:FIRST_STEPS]
