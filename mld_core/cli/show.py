"""`mld show`: read a stored result."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mld_core.cli.common import (
    DatasetOption,
    JsonOption,
    ModelArgument,
    StoreOption,
    VersionArgument,
    clear_errors,
)
from mld_core.cli.compare import print_comparison
from mld_core.cli.evaluate import print_result
from mld_core.cli.output import cell, emit, emit_frame, note, on_terminal, rows_of
from mld_core.cli.source import source
from mld_core.records.format.layout import RunKey

if TYPE_CHECKING:
    import pandas as pd

    from mld_core.records.format.layout import Store

TERMINAL_ROWS = 20

ResultOption = Annotated[
    str | None, typer.Option(help="Name of the result. Default: the newest.", show_default=False)
]
IssuesFlag = Annotated[bool, typer.Option("--issues", help="List the units with an issue, worst first.")]
ClassesFlag = Annotated[bool, typer.Option("--classes", help="One line for each class.")]
ConfusionFlag = Annotated[bool, typer.Option("--confusion", help="Counts of each (truth, prediction).")]
RegionsFlag = Annotated[bool, typer.Option("--regions", help="Regions where errors are dense.")]
ColumnsFlag = Annotated[
    bool, typer.Option("--columns", help="List the columns of --view, --where and --order-by.")
]
ViewOption = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="Group by this column; up to three times.", show_default=False),
]
AdjustOption = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Standardise the groups by this column.", show_default=False),
]
WhereOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILTER",
        help="Only these units, for --view: confidence > 0.9 and gt in (3, 5) and weather = 'fog'.",
        show_default=False,
    ),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(help="A further metric for --view; may be repeated.", show_default=False),
]
CategoryOption = Annotated[str | None, typer.Option(help="Issues of this category.", show_default=False)]
CodeOption = Annotated[str | None, typer.Option(help="Issues with this code.", show_default=False)]
SeverityOption = Annotated[
    int | None, typer.Option(min=1, max=5, help="Issues at least this severe.", show_default=False)
]
OrderOption = Annotated[
    list[str] | None, typer.Option(help="Sort the issues; -COLUMN = descending.", show_default=False)
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="At most so many rows. Default: 20 on a terminal, else all.", show_default=False
    ),
]
AgainstOption = Annotated[
    str | None,
    typer.Option(metavar="VERSION", help="Compare: VERSION before, this one after.", show_default=False),
]
FullFlag = Annotated[bool, typer.Option("--full", help="All columns of the metrics.")]


def show(
    model: ModelArgument = None,
    version: VersionArgument = None,
    *,
    result: ResultOption = None,
    issues: IssuesFlag = False,
    classes: ClassesFlag = False,
    confusion: ConfusionFlag = False,
    regions: RegionsFlag = False,
    columns: ColumnsFlag = False,
    view: ViewOption = None,
    adjust: AdjustOption = None,
    where: WhereOption = None,
    metric: MetricOption = None,
    dataset: DatasetOption = None,
    category: CategoryOption = None,
    code: CodeOption = None,
    min_severity: SeverityOption = None,
    order_by: OrderOption = None,
    limit: LimitOption = None,
    against: AgainstOption = None,
    full: FullFlag = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a stored result: its summary, the issues, or a view of the units.

    Where MLD_API_ENDPOINT is set, a result of that service (--store DIR: of a store here).

    \b
    Examples:
      mld show                                          newest result of the newest run
      mld show resnet18 v3 --issues --dataset val --limit 50
      mld show --issues --code C01                      labels that are probably wrong
      mld show --view class --adjust weather            error rate of each class at equal weather
      mld show --view confidence:5 --where "dataset = 'val'" --metric accuracy
    """  # noqa: D301  click reads the mark
    listing = any((issues, category, code, min_severity, order_by))
    grouping = any((view, adjust, where, metric))
    if listing and grouping:
        raise typer.BadParameter(
            "issues are chosen by --dataset, --category, --code, --min-severity; not by a view"
        )
    if limit is None and on_terminal() and not as_json:
        limit = TERMINAL_ROWS
    with clear_errors():
        results = source(store)
        run = results.run(model, version)
        if not any((against, listing, grouping, classes, confusion, regions, columns)):
            summary, place = results.summary(run, result)
            print_result(summary, full=full, as_json=as_json, receipt=receipt_of(place, run))
            return
        found = results.result(run, result)
        if against is not None:
            before = results.result(RunKey(run.model_name, against))
            print_comparison(before.compare(found, dataset), changed=False, as_json=as_json)
        elif listing:
            more = None if limit is None else limit + 1  # one more tells whether something was cut off
            listed = found.get_issues(dataset, category, code, min_severity, order_by, more)
            if len(listed) and on_terminal() and not as_json:
                print_issues(listed[:limit], found.class_names)
                _say_cut(listed, limit)
            else:
                _cut(listed, limit, as_json=as_json)
        elif grouping:
            _cut(found.get_view(view, adjust, _also(where, dataset), metric), limit, as_json=as_json)
        elif columns:
            rows = [{"column": name, "type": kind} for name, kind in found.columns().items()]
            emit(rows, ("column", "type"), as_json=as_json)
        else:
            wanted = found.class_summary if classes else found.confusion if confusion else found.regions
            _cut(wanted(dataset), limit, as_json=as_json)


def receipt_of(store: Store, run: RunKey) -> str | None:
    """What the run said it records; None of a run that did not, or whose records are not here."""
    said = store.run_info(run).get("receipt")
    return str(said) if said else None


def _also(where: str | None, dataset: str | None) -> str | None:
    """The filter of a view, narrowed to one split."""
    if dataset is None:
        return where
    text = dataset.replace("\\", "\\\\").replace("'", "\\'")
    own = f"dataset = '{text}'"
    return own if where is None else f"({where}) and {own}"


def _cut(frame: pd.DataFrame, limit: int | None, *, as_json: bool) -> None:
    emit_frame(frame if limit is None else frame.head(limit), as_json=as_json)
    _say_cut(frame, limit)


def _say_cut(frame: pd.DataFrame, limit: int | None) -> None:
    if limit is not None and len(frame) > limit:
        note(f"only the first {limit} rows are shown (--limit)")


# -- issues: one line a row, the advice once for each group --------------------------------------------------

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
    "code_membership": "sure",
    "category": "category",
}
"""Column of the unit table and its heading."""

_WHERE_THERE_IS_ROOM = ("category", "code_membership", "prediction_name", "gt_name")
"""The error code holds the classes' numbers."""

_SHORTENED = ("input_id", "suggested_name", "error_code")
_SHORTEST = 8


def print_issues(frame: pd.DataFrame, class_names: list[str] | None) -> None:
    """Print what `get_issues` found, grouped by the diagnosis that says what to do; groups keep its order."""
    from mld_core.evaluation.codes.diagnosis import shown as shown_as
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
            own = [one.get("severity") for one, other in zip(found, codes, strict=True) if other == code]
            severity, action = shown_as(known, max(one or 0 for one in own) >= known.severity)
            said = f"{code} {known.title}, severity {severity}. {action}"
        typer.echo("\n" + textwrap.fill(said, width))
        for row, other in zip(rows, codes, strict=True):
            if other == code:
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
