"""What the commands print: a table on a terminal, tab-separated text in a pipe, JSON on request.

Results go to stdout; notes, progress and errors to stderr. In a pipe there is no markup, no wrapping and no
truncation: the first line names the columns, missing values are empty.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

Rows = Sequence[Mapping[str, Any]]

_NOT_ON_A_TERMINAL = frozenset(
    {"unit_id", "input_hash", "id_source", "unit_kind", "is_error", "nonfinite", "entropy", "flags"}
    | {"sample_ids", "neighbour_ids", "diagnosis", "local_error_rate", "local_error_lo", "baseline_risk"}
    | {"predicted_risk_lo", "ambiguity", "region_id", "pca_1", "pca_2", "severity", "projected_category"}
    | {"membership", "code_membership"}
)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00")


def on_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()


def note(message: str) -> None:
    """Say something beside the result, on stderr."""
    typer.echo(message, err=True)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as plain values.

    Example:
        >>> import pandas as pd
        >>> rows_of(pd.DataFrame({"a": [1.5, None]}))
        [{'a': 1.5}, {'a': None}]
    """
    return [{str(name): plain(value) for name, value in row.items()} for row in frame.to_dict("records")]


def plain(value: Any) -> Any:
    """A value JSON knows: missing values are None, arrays are lists, paths and infinity are texts."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if hasattr(value, "tolist"):  # of NumPy: an array or one number
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    pandas = sys.modules.get("pandas")  # its NA can only be there where it was loaded
    if value is None or (pandas and value is pandas.NA) or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def emit_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False, default=str))


def emit(rows: Rows, columns: Sequence[str], *, as_json: bool, title: str | None = None) -> None:
    """Print rows in the form the reader wants.

    Args:
        rows: The rows; what a row lacks is missing.
        columns: The columns, in their order.
        as_json: A list of objects instead of a table.
        title: A heading, on a terminal only.
    """
    if as_json:
        emit_json([{name: row.get(name) for name in columns} for row in rows])
    elif on_terminal():
        _print_table(rows, columns, title)
    else:
        _print_separated(rows, columns)


def emit_frame(frame: pd.DataFrame, *, as_json: bool, title: str | None = None) -> None:
    """Print a frame; on a terminal without the columns a person does without, so that it fits."""
    shown = frame
    if not as_json and on_terminal():
        named = {name for name in ("gt", "prediction", "class") if f"{name}_name" in frame.columns}
        hidden = _NOT_ON_A_TERMINAL | named
        shown = frame[[name for name in frame.columns if name not in hidden and frame[name].notna().any()]]
    emit(rows_of(shown), [str(name) for name in shown.columns], as_json=as_json, title=title)


def cell(value: Any, *, digits: int | None = None) -> str:
    """One value as text: empty if missing, lists joined by commas, no tabs or line ends.

    Args:
        value: The value.
        digits: Digits after the point; None = six digits in all.

    Example:
        >>> cell(["C01", "C10"]), cell(None), cell(0.123456, digits=4), cell(12875.4567)
        ('C01,C10', '', '0.1235', '12875.5')
    """
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and digits is not None:
        return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.1f}"
    if isinstance(value, float):
        return f"{float(f'{value:.6g}'):.15g}"
    if isinstance(value, list):
        value = ",".join(cell(one) for one in value)
    elif isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False)
    return " ".join(str(value).split("\t")).replace("\r", " ").replace("\n", " ")


def _shown(value: Any) -> str:
    """One value for a person: four digits, times to the minute."""
    text = cell(value, digits=4)
    return f"{text[:10]} {text[11:16]}Z" if _TIME.fullmatch(text) else text


def _print_separated(rows: Rows, columns: Sequence[str]) -> None:
    lines: Iterable[Sequence[str]] = (columns, *([cell(row.get(name)) for name in columns] for row in rows))
    for line in lines:
        typer.echo("\t".join(line))


def _print_table(rows: Rows, columns: Sequence[str], title: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in columns:
        known = [row[name] for row in rows if row.get(name) is not None]
        numbers = bool(known) and all(isinstance(value, int | float) for value in known)
        table.add_column(name, justify="right" if numbers else "left", overflow="fold", header_style="bold")
    for row in rows:
        table.add_row(*(Text(_shown(row.get(name))) for name in columns))
    Console().print(table)
