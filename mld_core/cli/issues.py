"""Issues on a terminal: one line a row, the advice once for each group."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from mld_core.cli.output import cell, rows_of

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = {
    "dataset": "dataset",
    "n_epoch": "epoch",
    "input_id": "input_id",
    "error_code": "error_code",
    "gt_name": "truth",
    "prediction_name": "predicted",
    "suggested_name": "suggested",
    "confidence": "conf",
    "error_proba": "p_error",
    "category": "category",
}
"""Column of the unit table and its heading."""

_WHERE_THERE_IS_ROOM = ("category", "prediction_name", "gt_name")
"""The error code holds the classes' numbers."""

_SHORTENED = ("input_id", "suggested_name", "error_code")
_SHORTEST = 8


def print_issues(frame: pd.DataFrame, class_names: list[str] | None) -> None:
    """Print what `get_issues` found, grouped by the diagnosis that says what to do; groups keep its order."""
    from mld_core.evaluation.diagnoses import BY_CODE

    named = dict(enumerate(class_names or []))
    found = rows_of(frame)
    for one in found:
        label = one.get("suggested_label")
        one["suggested_name"] = named.get(label, label) if label is not None else None
    rows = [{name: _text(one.get(name)) for name in _COLUMNS} for one in found]
    width = shutil.get_terminal_size().columns
    epochs = {one.get("n_epoch") for one in found}
    shown = [
        name for name in _COLUMNS if any(row[name] for row in rows) and (name != "n_epoch" or len(epochs) > 1)
    ]
    widths = _fitting(
        {name: max(len(_COLUMNS[name]), *(len(row[name]) for row in rows)) for name in shown}, width
    )
    typer.echo(_line(_COLUMNS, widths))
    codes = [cell(one.get("primary_code")) for one in found]
    for code in dict.fromkeys(codes):
        said = "Errors without a diagnosis"
        if code in BY_CODE:
            known = BY_CODE[code]
            said = f"{code} {known.title}, severity {known.severity}. {known.action}"
        typer.echo("\n" + textwrap.fill(said, width))
        for row, own in zip(rows, codes, strict=True):
            if own == code:
                typer.echo(_line(row, widths))


def _text(value: Any) -> str:
    return cell(value, digits=3 if isinstance(value, float) else None)


def _fitting(widths: dict[str, int], width: int) -> dict[str, int]:
    """The columns that fit on a line, and how wide each is."""

    def excess(names: Iterable[str]) -> int:
        sizes = [widths[name] + 2 for name in names]
        return sum(sizes) - 2 - width

    chosen = {name for name in widths if name not in _WHERE_THERE_IS_ROOM}
    for name in _SHORTENED:
        if name in chosen and excess(chosen) > 0:
            widths[name] = max(_SHORTEST, widths[name] - excess(chosen))
    for name in _WHERE_THERE_IS_ROOM:
        if name in widths and excess({*chosen, name}) <= 0:
            chosen.add(name)
    return {name: size for name, size in widths.items() if name in chosen}


def _line(row: dict[str, str], widths: dict[str, int]) -> str:
    """One row; a text that is too long keeps its end, where ids differ."""
    cells = [
        row[name].ljust(size) if len(row[name]) <= size else "…" + row[name][1 - size :]
        for name, size in widths.items()
    ]
    return "  ".join(cells).rstrip()
