"""Issues on a terminal: one line a row, the advice once for each group."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

from mld_core.cli.output import cell

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

    if class_names and "suggested_label" in frame:
        by_number = dict(enumerate(class_names))
        names = [by_number.get(label) for label in frame["suggested_label"].astype("object")]
        frame = frame.assign(suggested_name=names)
    elif "suggested_label" in frame:
        frame = frame.assign(suggested_name=frame["suggested_label"])
    width = shutil.get_terminal_size().columns
    rows = [{name: _text(row.get(name)) for name in _COLUMNS} for row in frame.to_dict("records")]
    shown = [name for name in _COLUMNS if any(row[name] for row in rows)]
    if len({row["n_epoch"] for row in rows}) < 2:
        shown.remove("n_epoch")
    widths = _fitting(
        {name: max(len(_COLUMNS[name]), *(len(row[name]) for row in rows)) for name in shown}, width
    )
    typer.echo(_line(_COLUMNS, widths))
    codes = [cell(code) for code in frame["primary_code"]] if "primary_code" in frame else [""] * len(rows)
    for code in dict.fromkeys(codes):
        said = "Errors without a diagnosis"
        if code in BY_CODE:
            one = BY_CODE[code]
            said = f"{code} {one.title}, severity {one.severity}. {one.action}"
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
