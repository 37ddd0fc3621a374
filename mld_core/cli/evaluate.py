"""`mld evaluate`: from records to a stored result."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mld_core.cli.common import (
    JsonOption,
    ModelArgument,
    StoreOption,
    VersionArgument,
    clear_errors,
    parse_epoch,
)
from mld_core.cli.output import emit_frame, emit_json, note, on_terminal, rows_of
from mld_core.cli.source import source
from mld_core.records.format.layout import Store

if TYPE_CHECKING:
    from mld_core.evaluation.results.result import Result


def evaluate(
    model: ModelArgument = None,
    version: VersionArgument = None,
    *,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the result. Default: MODEL_VERSION_METHOD_DATE.", show_default=False),
    ] = None,
    epoch: Annotated[str, typer.Option(help="latest, all, or the number of an epoch.")] = "latest",
    dataset: Annotated[
        list[str] | None, typer.Option(help="Only this split; may be repeated.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option(help="Evaluation method; default = that of the task.")] = "default",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads. Default: one for each core.", show_default=False)
    ] = None,
    group_key: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Units with the same value belong together (scene).", show_default=False
        ),
    ] = None,
    risk_tolerance: Annotated[
        float | None, typer.Option(help="Error probability you accept. Default: learned.", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print all columns of the metrics.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a recorded run, store the result and print its summary.

    Without names the newest run is evaluated; where MLD_API_ENDPOINT is set, at that service (--store DIR
    evaluates here). "latest" takes the last finished pass of each split. The result
    stays in the store: `mld show` prints it again, `Evaluator(...).get_result(name)` reads it in Python.
    net_entropy_loss and net_entropy are sums over the units, in nats.

    \b
    Examples:
      mld evaluate                           the newest run
      mld evaluate resnet18 v3
      mld evaluate resnet18 v3 --epoch all   every epoch, one row each
      mld evaluate --dataset val --json      for a script
    """  # noqa: D301  click reads the mark
    with clear_errors():
        place = source(store)
        run = place.run(model, version)
        wanted: dict[str, Any] = {
            "dataset_types": dataset or None,
            "threads": threads,
            "group_key": group_key,
            "risk_tolerance": risk_tolerance,
        }
        asked = place.evaluator(run).request_evaluation
        result = asked(name, parse_epoch(epoch), method_name=method, options=wanted)
        print_result(result, full=full, as_json=as_json)
        if store is None and result.store.root != Store().root:
            show = ["mld", "show", run.model_name, run.version_name, "--store", str(result.store.root)]
            note(f"evaluated at the service; a copy is here: {shlex.join(show)}")


def print_result(result: Result, *, full: bool, as_json: bool, receipt: str | None = None) -> None:
    """Print a result: the summary on a terminal, its tables in a pipe, all of it as JSON.

    Args:
        result: The result.
        full: All columns of the metrics, as a table.
        as_json: One document instead of tables.
        receipt: What the run said it records, where it said so.
    """
    summary = result.summary()
    tables = {
        "metrics": result.metrics_summary(full=full),
        "categories": result.issue_category_summary(full=full),
        "actions": summary.actions(),
    }
    if as_json:
        emit_json(
            {
                "result_name": result.result_name,
                "model_name": result.model_name,
                "version_name": result.version_name,
                "method_name": result.method_name,
                **({} if receipt is None else {"receipt": receipt}),
                **{name: rows_of(frame) for name, frame in tables.items()},
                "problems": result.problems,
            }
        )
        return
    if on_terminal() and not full:
        result.get_summary()
        if receipt is not None:
            typer.echo(f"\nRecorded: {receipt}")
        return
    for name, frame in tables.items() if summary.analysed else [("metrics", tables["metrics"])]:
        if name != "metrics":
            typer.echo()  # an empty line ends a table
        if on_terminal() and name != "actions":
            typer.echo(str(frame))  # its columns become rows where they do not fit
        else:
            emit_frame(frame, as_json=False)
    note(f"result: {result.result_name}")
    if receipt is not None:
        note(f"recorded: {receipt}")
    for one in result.problems:
        note(f"{one['severity']}: {one['message']}")
