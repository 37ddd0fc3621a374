"""All that the page of an evaluation holds but its matrices, of a pass or of a selection of its units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mld_core.evaluation.analysis.units import unit_name
from mld_core.evaluation.errors import FilterError
from mld_core.evaluation.results.expression import compile_filter
from mld_core.evaluation.results.result import Result
from mld_core.evaluation.results.store import ResultStore
from mld_core.views import charts, detection_tables, tables
from mld_core.views.box_charts import tide_rows
from mld_core.views.cards import Told, cards
from mld_core.views.selection import HeldUnits, Selection
from mld_core.views.units import PassUnits
from mld_core.views.words.sentences import WRONG_LABELS, column_text, filter_sentence, headline, literal
from mld_core.views.words.texts import CATEGORY_TEXTS, METRIC_TEXTS, MetricText
from mld_core.views.words.texts_detection import DETECTION_METRICS

FIRST = 12
NOT_COMPUTED = (
    "Issue categories are not computed in this result: the pass has no features, no labels, or too few units."
)


def boxed(result: Result) -> bool:
    """Whether the units of a result are boxes."""
    return result.task != "classification"


def evaluation(units: HeldUnits, condition: str = "", told: Told | None = None) -> dict[str, Any]:
    """The page of a pass; see docs/app.md.

    Args:
        units: The pass.
        condition: A filter of the view grammar: counts, categories, findings, codes and calibration are of
            its units; metrics, regions and slices stay those of the pass.
        told: What people said.

    Raises:
        FilterError: The filter is not understood.
    """
    made: dict[str, Any] = dict(units.memo.get_or(("evaluation", condition), lambda: _page(units, condition)))
    first = made["first"]
    rows = units.chosen(first["filter"], first["sort"])
    badge = first["sort"].lstrip("-") if first["sort"] else ""
    return {**made, "first": {**first, "total": len(rows), "rows": cards(units, rows[:FIRST], told, badge)}}


def _page(units: HeldUnits, condition: str) -> dict[str, Any]:
    result, names = units.result, units.result.class_names
    chosen = Selection.of(units, condition)
    findings = [_finding(row) for row in tables.diagnosis_rows(chosen)]
    codes, total = _codes(chosen, names)
    counts = _counts(units, chosen)
    steps = first_steps(chosen, codes, findings)
    suspects, suspect_filter = _suspects(chosen, findings)
    boxes = boxed(result)
    categories = category_bar(chosen)
    return {
        "task": result.task,
        "class_names": names,
        "n_class": int(result.info["passes"][units.index]["n_class"]),
        "splits": splits(result),
        "counts": counts,
        "headline": headline(
            counts["errors"],
            counts["labelled"],
            suspects,
            steps[0] if steps else None,
            boxes=boxes,
            selected=bool(condition.strip()),
        ),
        "headline_parts": {
            "errors": counts["errors"],
            "units": counts["labelled"],
            "wrong_labels": suspects,
            "wrong_labels_filter": suspect_filter,
        },
        "filter_sentence": filter_sentence(condition, names),
        "first": first_shown(condition, steps, suspects, suspect_filter, boxes=boxes),
        "metrics": metric_cards(units),
        "steps": steps,
        "categories": categories,
        "categories_missing": None if categories else NOT_COMPUTED,
        "findings": findings,
        "codes": {"total": total, "rows": codes},
        "calibration": _calibrated(chosen),
        "regions": [
            {**row, "filter": f"region_id = {row['region']}"} for row in tables.region_rows(units, names)
        ],
        "slices": [
            {**row, "filter": slice_filter(row["slice"], units.schema)} for row in tables.slice_rows(units)
        ],
        "tide": tide_rows(units) if result.task == "detection" else [],
        "problems": [{"severity": one["severity"], "message": one["message"]} for one in result.problems],
        "settings": {
            "method": result.method_name,
            "completed_at": result.info["completed_at"],
            "sentence": settings_sentence(result),
        },
    }


def splits(result: Result) -> list[dict[str, Any]]:
    """The splits of a result with their epochs, units and errors of the last one."""
    frame = result.metrics_summary(full=True)
    made: dict[str, dict[str, Any]] = {}
    for row in frame.to_dict("records"):
        one = made.setdefault(str(row["dataset"]), {"split": str(row["dataset"]), "epochs": []})
        one["epochs"].append(tables.plain(row["n_epoch"]))
        one["units"] = tables.plain(row["counts"])
        one["errors"] = tables.plain(row["count_error"])
    return list(made.values())


def _counts(units: HeldUnits, chosen: PassUnits) -> dict[str, int]:
    errors = chosen.errors
    return {
        "units": units.rows,
        "selected": chosen.rows,
        "labelled": int((errors >= 0).sum()),
        "errors": int((errors == 1).sum()),
        "samples": units.samples,
    }


def _finding(row: Mapping[str, Any]) -> dict[str, Any]:
    code = row["code"]
    return {
        "code": code,
        "title": row["title"],
        "why": row["predicate"],
        "action": row["action"],
        "severity": row["severity"],
        "n": row["n"],
        "primary": row["primary"],
        "share": row["share"],
        "filter": finding_filter(code),
        "sort": finding_sort(code),
    }


def finding_filter(code: str) -> str:
    """The filter of the units of a diagnosis."""
    return f"diagnosis has {literal(code)}"


def finding_sort(code: str) -> str:
    """The order in which the units of a diagnosis are looked at: suspected labels by their suspicion."""
    if code == "C01":
        return "label_quality"
    return "-suspicion" if code in WRONG_LABELS else ""


def _codes(chosen: PassUnits, names: Sequence[str] | None) -> tuple[list[dict[str, Any]], int]:
    boxes = boxed(chosen.result)
    rows, total = (detection_tables if boxes else tables).code_rows(chosen, names)
    for row in rows:
        row["filter"] = f"error_code = {literal(row['code'])} and is_error = true"
        row["text"] = (
            f"{row['event']}: {row['truth']}, said to be {row['said']}"
            if boxes
            else f"{row['truth']} taken for {row['said']}"
        )
    return rows, total


def first_steps(
    chosen: PassUnits, codes: Sequence[dict[str, Any]], findings: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What to do first, each with the filter that opens its units."""
    asked = [{**one, "predicate": one["why"]} for one in findings]
    if boxed(chosen.result):
        found = detection_tables.first_steps(codes, asked)
    else:
        found = tables.first_steps(chosen, codes, asked)
    made = []
    for step in found:
        group = step["group"]
        known = next((one for one in findings if one["code"] == group), None)
        where = f"is_error = true and confidence >= {tables.CONFIDENT}"
        if known is not None:
            where = known["filter"]
        elif group != "sure":
            where = f"error_code = {literal(group)} and is_error = true"
        made.append(
            {
                "title": step["title"],
                "text": step["text"],
                "n": step["n"],
                "severity": step["severity"],
                "code": group if known is not None else None,
                "filter": where,
                "sort": finding_sort(group),
                "button": f"Open these {step['n']:,}" if step["n"] != 1 else "Open it",
            }
        )
    return made


def _suspects(chosen: PassUnits, findings: Sequence[Mapping[str, Any]]) -> tuple[int, str | None]:
    """How many units' labels look wrong, and the filter of them."""
    there = [one["code"] for one in findings if one["code"] in WRONG_LABELS]
    if not there:
        return 0, None
    lists = chosen.column("diagnosis").combine_chunks()
    hit = pc.is_in(pc.list_flatten(lists), pa.array(there, pa.string()))
    parents = pc.list_parent_indices(lists).filter(hit)
    return len(pc.unique(parents)), " or ".join(finding_filter(code) for code in there)


def first_shown(
    condition: str,
    steps: Sequence[Mapping[str, Any]],
    suspects: int,
    suspect_filter: str | None,
    *,
    boxes: bool,
) -> dict[str, Any]:
    """Which units are in sight when the page opens: suspected labels, else the first thing to do."""
    if suspects and suspect_filter is not None:
        title, where, sort = "The worst suspected labels", suspect_filter, "label_quality"
        if boxes:
            sort = "-suspicion"
    elif steps:
        title, where, sort = steps[0]["title"], steps[0]["filter"], steps[0]["sort"]
    else:
        title, where, sort = "The worst", "is_error = true", ""
    if condition.strip():
        where = f"({condition}) and ({where})"
    return {"title": title, "filter": where, "sort": sort}


def metric_texts_of(result: Result) -> tuple[MetricText, ...]:
    """The metrics that a result of its task may have, in words."""
    return DETECTION_METRICS if boxed(result) else METRIC_TEXTS


def metric_cards(units: PassUnits) -> list[dict[str, Any]]:
    """The metrics of a pass with their bounds, the value of the epoch before and of every epoch."""
    texts = metric_texts_of(units.result)
    rows = tables.metric_rows(units.result, texts)
    own = rows[units.index]
    line = [row for row in rows if row["dataset"] == units.dataset]
    before = line[line.index(own) - 1] if line.index(own) else {}
    made = []
    for text in texts:
        value = own.get(text.name)
        if value is None or (text.name == "count_nonfinite" and not value):
            continue
        made.append(
            {
                **vars(text),
                "value": value,
                "lo": own.get(f"{text.name}_lo"),
                "hi": own.get(f"{text.name}_hi"),
                "before": before.get(text.name),
                "series": [[row["n_epoch"], row.get(text.name)] for row in line],
            }
        )
    return made


def category_bar(chosen: PassUnits) -> list[dict[str, Any]]:
    """The six categories: units, errors, share; empty where they are not computed."""
    column = chosen.column("category").cast(pa.string())
    if "projected_category" in chosen.names:
        column = pc.coalesce(column, chosen.column("projected_category").cast(pa.string()))
    wrong = pc.equal(pa.array(chosen.errors), 1)
    table = pa.table({"category": column, "wrong": pc.cast(wrong, pa.int64())})
    table = table.filter(pc.is_valid(table["category"]))
    grouped = table.group_by("category").aggregate([("wrong", "sum"), ("wrong", "count")]).to_pylist()
    found = {row["category"]: row for row in grouped}
    total = sum(row["wrong_count"] for row in grouped)
    if not total:
        return []
    made = []
    for text in CATEGORY_TEXTS:
        row = found.get(text.name, {"wrong_count": 0, "wrong_sum": 0})
        made.append(
            {
                **vars(text),
                "n": row["wrong_count"],
                "errors": row["wrong_sum"],
                "share": tables.plain(row["wrong_count"] / total),
                "filter": category_filter(text.name, chosen),
            }
        )
    return made


def category_filter(name: str, units: PassUnits) -> str:
    """The filter of the units of a category; of unlabelled ones the projected category stands."""
    own = f"category = {literal(name)}"
    if "projected_category" not in units.names or not units.has("projected_category"):
        return own
    return f"{own} or (category is null and projected_category = {literal(name)})"


def _calibrated(chosen: PassUnits) -> dict[str, Any]:
    found = charts.calibration(chosen)
    meanings = {
        "confidence": "stated by the model, and how often the model was right",
        "error_proba": "the estimated error probability, and how often the model was wrong",
    }
    for name, one in found.items():
        if one is not None:
            gap = f"{100 * one['ece']:.1f} points"
            one["sentence"] = f"{meanings[name][:1].upper()}{meanings[name][1:]}: apart by {gap} on average."
    return found


def slice_filter(text: str, schema: pa.Schema) -> str | None:
    """The filter of a metadata slice, `a = x and b = y`; None where it does not name values of columns.

    Example:
        >>> slice_filter("weather = fog and lit = true", pa.schema([("weather", "string"), ("lit", "bool")]))
        "weather = 'fog' and lit = true"
    """
    made = []
    for part in text.split(" and "):
        column, equal, value = part.partition(" = ")
        name = next((one for one in (column, unit_name(column)) if one in schema.names), None)
        if not equal or name is None:
            return None
        kind = schema.field(name).type
        if pa.types.is_string(kind):
            value = literal(value)
        elif pa.types.is_boolean(kind):
            value = value.lower()
        made.append(f"{column_text(name)} = {value}")
    condition = " and ".join(made)
    try:
        compile_filter(condition, schema)
    except FilterError:
        return None
    return condition


def settings_sentence(result: Result) -> str:
    """How the result was made, in one sentence."""
    options = result.info.get("options") or {}
    facts = [f"{name.replace('_', ' ')} {value}" for name, value in options.items() if _is_plain(value)]
    return f"Method {result.method_name}" + (f"; {', '.join(facts)}" if facts else "") + "."


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def results_of(store: ResultStore) -> list[dict[str, Any]]:
    """The results of a run, newest first, as a page lists them."""
    return [
        {
            "result": str(one["result_name"]),
            "completed_at": one["completed_at"],
            "method": one.get("method_name"),
            "epochs": _epochs(one["passes"]),
        }
        for one in reversed(store.all())
    ]


def _epochs(passes: Sequence[Mapping[str, Any]]) -> dict[str, list[int | None]]:
    made: dict[str, list[int | None]] = {}
    for one in passes:
        epoch = one["n_epoch"]
        made.setdefault(str(one["dataset"]), []).append(None if pd.isna(epoch) else int(epoch))
    return made
