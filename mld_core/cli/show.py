"""`mld show`: read a stored result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
from mld_core.cli.issues import print_issues
from mld_core.cli.output import emit, emit_frame, note, on_terminal
from mld_core.cli.source import source
from mld_core.records.format.layout import RunKey

if TYPE_CHECKING:
    import pandas as pd

    from mld_core.evaluation.results.result import Result

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
        elif classes or confusion or regions:
            wanted = found.class_summary if classes else found.confusion if confusion else found.regions
            _cut(wanted(dataset), limit, as_json=as_json)
        elif columns:
            rows = [{"column": name, "type": kind} for name, kind in found.columns().items()]
            emit(rows, ("column", "type"), as_json=as_json)
        else:
            print_result(found, full=full, as_json=as_json, receipt=receipt_of(found))


def receipt_of(result: Result) -> str | None:
    """What the run said it records; None of a run that did not, or whose records are not here."""
    said = result.store.run_info(RunKey(result.model_name, result.version_name)).get("receipt")
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
