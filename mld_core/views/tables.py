"""The tables of the page: metrics, categories, error codes, diagnoses, and what to do first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.evaluation.codes.diagnosis import shown
from mld_core.evaluation.codes.notation import parse_classification_code
from mld_core.evaluation.diagnoses import BY_CODE
from mld_core.evaluation.results.result import Result
from mld_core.views.units import PassUnits
from mld_core.views.words.texts import METRIC_TEXTS, PAIR_ACTION, MetricText

MAX_CODES = 200
MAX_REGIONS = 20
FIRST_STEPS = 5
CONFIDENT = 0.9


def class_label(number: int, names: Sequence[str] | None) -> str:
    """Name of a class, its number where there is none, "no prediction" for -1.

    Example:
        >>> class_label(1, ["cat", "dog"]), class_label(7, None), class_label(-1, None)
        ('dog', '7', 'no prediction')
    """
    if number < 0:
        return "no prediction"
    return names[number] if names is not None and number < len(names) else str(number)


def plain(value: Any) -> Any:
    """A cell as JSON holds it: None where missing, floats at 6 significant digits."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def metric_rows(
    result: Result, texts: Sequence[MetricText] = METRIC_TEXTS, more: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One row for each pass: names, counts, and the metrics of `texts` that are there, with bounds.

    Args:
        result: The result.
        texts: The metrics.
        more: Further columns.
    """
    wanted = ["dataset", "n_epoch", "counts", "count_labeled", "count_error", "partial", *more]
    for text in texts:
        wanted += [text.name, f"{text.name}_lo", f"{text.name}_hi"]
    frame = result.metrics_summary(full=True)
    names = [name for name in dict.fromkeys(wanted) if name in frame.columns]
    return [{name: plain(row[name]) for name in names} for row in frame[names].to_dict("records")]


def code_rows(units: PassUnits, names: Sequence[str] | None) -> tuple[list[dict[str, Any]], int]:
    """The error codes of a pass, commonest first, at most `MAX_CODES`; and how many there are in all."""
    wrong = np.flatnonzero(units.errors == 1)
    if not len(wrong):
        return [], 0
    rows = pa.array(wrong, pa.int64())
    table = pa.table(
        {
            "code": units.column("error_code").cast(pa.string()).take(rows),
            "confidence": units.column("confidence").cast(pa.float64()).take(rows),
            "error_proba": units.column("error_proba").cast(pa.float64()).take(rows),
        }
    )
    measures = [("code", "count"), ("confidence", "mean"), ("error_proba", "mean")]
    found = table.filter(pc.is_valid(table["code"])).group_by("code").aggregate(measures).to_pylist()
    found.sort(key=lambda row: (-row["code_count"], row["code"]))
    actions = code_actions(units, wrong)
    made = []
    for row in found[:MAX_CODES]:
        truth, said = parse_classification_code(row["code"])
        action, severity = actions.get(row["code"], (None, None))
        made.append(
            {
                "code": row["code"],
                "truth": class_label(truth, names),
                "said": class_label(-1 if said is None else said, names),
                "n": row["code_count"],
                "share": plain(row["code_count"] / len(wrong)),
                "confidence": plain(row["confidence_mean"]),
                "error_proba": plain(row["error_proba_mean"]),
                "severity": severity,
                "action": action or PAIR_ACTION,
            }
        )
    return made, len(found)


def code_actions(units: PassUnits, wrong: np.ndarray) -> dict[str, tuple[str, int]]:
    """For each error code the recommended action most of its units carry, and its severity."""
    if not units.has("recommended_action"):
        return {}
    columns = [units.column(name) for name in ("error_code", "recommended_action", "severity")]
    rows = pa.array(wrong, pa.int64())
    table = pa.table(
        dict(zip(("code", "action", "severity"), (one.take(rows) for one in columns), strict=True))
    )
    table = table.filter(pc.is_valid(table["action"])).group_by(["code", "action", "severity"])
    best: dict[str, tuple[int, int, str]] = {}
    for row in table.aggregate([([], "count_all")]).to_pylist():
        rank = (row["count_all"], row["severity"] or 0, row["action"])
        best[row["code"]] = max(best.get(row["code"], (0, 0, "")), rank)
    return {code: (action, severity) for code, (_, severity, action) in best.items()}


def diagnosis_rows(units: PassUnits) -> list[dict[str, Any]]:
    """The diagnoses of a pass, most severe first: how many units carry each, and how many as their first."""
    if not units.has("diagnosis"):
        return []
    counts = _counted(pc.list_flatten(units.column("diagnosis").combine_chunks()))
    primary = units.column("primary_code").cast(pa.string())
    first = _counted(primary)
    gravest = _gravest(primary, units.column("severity"))
    made = []
    for code, n in counts.items():
        entry = BY_CODE.get(code)
        if entry is None:
            continue
        level, action = shown(entry, gravest.get(code, entry.severity) >= entry.severity)
        made.append(
            {
                "code": code,
                "title": entry.title,
                "severity": level,
                "n": n,
                "primary": first.get(code, 0),
                "share": plain(n / max(units.rows, 1)),
                "predicate": entry.when,
                "action": action,
            }
        )
    return sorted(made, key=lambda row: (-row["severity"], -row["n"], row["code"]))


def _counted(values: pa.Array | pa.ChunkedArray) -> dict[str, int]:
    return {one["values"]: one["counts"] for one in pc.value_counts(values).to_pylist()}


def _gravest(codes: pa.ChunkedArray, severity: pa.ChunkedArray) -> dict[str, int]:
    """The largest severity of the units that carry each code as their first."""
    table = pa.table({"code": codes, "severity": severity.cast(pa.int64())})
    found = table.group_by("code").aggregate([("severity", "max")])
    pairs = zip(found["code"].to_pylist(), found["severity_max"].to_pylist(), strict=True)
    return {code: level for code, level in pairs if code is not None and level is not None}


def severe_steps(diagnoses: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What to do about the diagnoses of severity 3 and more."""
    return [
        {
            "title": row["title"],
            "n": row["n"],
            "text": row["action"],
            "group": row["code"],
            "severity": row["severity"],
        }
        for row in diagnoses
        if row["severity"] >= 3
    ]


def first_steps(
    units: PassUnits, codes: Sequence[dict[str, Any]], diagnoses: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The few things to do first: the most severe diagnoses, else the commonest confusions."""
    found = severe_steps(diagnoses)
    if not found:
        found = [
            {
                "title": f"{row['truth']} is taken for {row['said']}",
                "n": row["n"],
                "text": f"{row['share']:.0%} of all errors. {PAIR_ACTION}",
                "group": row["code"],
                "severity": None,
            }
            for row in codes[:3]
        ]
        sure = int(((units.errors == 1) & (units.floats("confidence") >= CONFIDENT)).sum())
        if sure:
            text = f"Wrong at a confidence of {CONFIDENT} or more: check their labels first."
            found.insert(
                0, {"title": "Confidently wrong", "n": sure, "text": text, "group": "sure", "severity": None}
            )
    return found[:FIRST_STEPS]


def region_rows(units: PassUnits, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """The regions of dense errors, those with most errors first, at most `MAX_REGIONS`."""
    return [
        {
            "region": int(row["region_id"]),
            "label": _named_label(str(row["label"]), names),
            "n": int(row["n"]),
            "errors": int(row["errors"]),
            "rate": plain(row["rate"]),
            "sig": bool(row["bh_sig"]),
            "classes": [class_label(int(one), names) for one in row["top_classes"]],
            "codes": [str(one) for one in row["top_codes"]],
            "membership": plain(row.get("membership")),
            "medoid": str(row["medoid_input_id"]),
        }
        for row in _rows_of(units, "regions")[:MAX_REGIONS]
    ]


def _named_label(label: str, names: Sequence[str] | None) -> str:
    """The name of a region with class names: `3->7 @ scene=fog` as `cat → dog @ scene=fog`."""
    pair, at, rest = label.partition(" @ ")
    truth, arrow, said = pair.partition("->")
    sides = [
        "background" if side == "bg" else class_label(int(side), names)
        for side in (truth, said)
        if side == "bg" or side.lstrip("-").isdigit()
    ]
    if arrow and len(sides) == 2:
        pair = " → ".join(sides)
    return pair + at + rest


def slice_rows(units: PassUnits) -> list[dict[str, Any]]:
    """The metadata slices in which more fails."""
    return [
        {
            "slice": str(row["slice"]),
            "n": int(row["n"]),
            "errors": int(row["errors"]),
            "rate": plain(row["rate"]),
            "sig": bool(row["bh_sig"]),
        }
        for row in _rows_of(units, "slices")
    ]


def _rows_of(units: PassUnits, name: str) -> list[dict[Any, Any]]:
    """The rows of a further table that belong to the pass; none where an older result lacks the table."""
    if not (units.result.folder / f"{name}.parquet").exists():
        return []
    frame = units.result.regions() if name == "regions" else units.result.slices()
    epoch = frame["n_epoch"].isna() if units.n_epoch is None else frame["n_epoch"] == units.n_epoch
    return frame[(frame["dataset"] == units.dataset) & epoch].to_dict("records")


def pseudo_counts(units: PassUnits) -> float | None:
    """The weight m of the overall error rate that the density of the pass chose; None where not computed."""
    frame = units.result.issue_category_summary(full=True)
    value = frame["m"].iloc[units.index]
    return None if pd.isna(value) else float(value)
