"""`mld evaluate`: from records to a stored result; `mld watch`: as it happens; `mld jobs`: at a service."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mld_core.cli.common import (
    JsonOption,
    ModelArgument,
    StoreOption,
    VersionArgument,
    choose_run,
    clear_errors,
    open_store,
    parse_epoch,
)
from mld_core.cli.output import cell, emit, emit_json, note, on_terminal, plain
from mld_core.cli.source import StoreSource, client_of, source, the_service
from mld_core.evaluation.errors import NotFoundError
from mld_core.records.format.layout import Store

if TYPE_CHECKING:
    from mld_core.evaluation.live.figures import Epochs
    from mld_core.evaluation.results.summary import Summary
    from mld_core.records.format.layout import RunKey


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
    engine: Annotated[
        str | None,
        typer.Option(
            help="memory; rounds (parts and a sample at a time; not 3D); ray (the same on a Ray cluster). "
            "Default: MLD_ENGINE, else memory.",
            show_default=False,
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Address of the Ray cluster. Default: one of this machine.", show_default=False),
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
      mld evaluate --engine ray --ray-address auto   on a cluster that mounts the store
    """  # noqa: D301  click reads the mark
    with clear_errors():
        place = source(store)
        run = place.run(model, version)
        wanted: dict[str, Any] = {
            "dataset_types": dataset or None,
            "threads": threads,
            "group_key": group_key,
            "risk_tolerance": risk_tolerance,
            "engine": engine,
            "ray_address": ray_address,
        }
        asked = place.evaluator(run).request_evaluation
        result = asked(name, parse_epoch(epoch), method_name=method, options=wanted)
        print_result(result.summary(), full=full, as_json=as_json)
        if store is None and result.store.root != Store().root:
            show = ["mld", "show", run.model_name, run.version_name, "--store", str(result.store.root)]
            note(f"evaluated at the service; a copy is here: {shlex.join(show)}")


def feature_map(
    model: ModelArgument = None,
    version: VersionArgument = None,
    *,
    method: Annotated[str, typer.Option(help="umap; the axes of PCA come with every result.")] = "umap",
    result: Annotated[
        str | None, typer.Option(help="Of this result. Default: the newest.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Of this split. Default: val, else the first.", show_default=False)
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(help="Of this epoch. Default: the last.", show_default=False)
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the coordinates of a map by UMAP, for the page of the map, filters and views (umap_1, umap_2).

    They lie beside the result, a row for each unit. The package umap-learn makes them: pip install
    "ml-debugger[umap]". Of more than 100,000 units so many are fitted, and the others placed among them.

    \b
    Examples:
      mld map                                the newest result's validation split
      mld map resnet18 v3 --dataset train
    """  # noqa: D301  click reads the mark
    with clear_errors():
        if method != "umap":
            raise ValueError(f"method {method!r}: expected umap (the axes of PCA come with every result)")
        place = StoreSource(open_store(store))
        found = place.result(place.run(model, version), result)
        from mld_core.evaluation.engine.executor import Reporter
        from mld_core.views.columns.umap import make_umap
        from mld_core.views.units import passes_of

        name = dataset or ("val" if "val" in found.datasets else found.datasets[0])
        own = [one for one in passes_of(found) if one.dataset == name and epoch in {None, one.n_epoch}]
        if not own:
            raise NotFoundError(f"{found.result_name} has no pass of {name!r} at epoch {epoch}")
        made = make_umap(own[-1], Reporter().stage)
        row = {"dataset": name, "n_epoch": own[-1].n_epoch, **made}
        emit([row], list(row), as_json=as_json)


def print_result(found: Summary, *, full: bool, as_json: bool, receipt: str | None = None) -> None:
    """Print a result: the summary on a terminal, its tables in a pipe, all of it as JSON.

    Args:
        found: The result's summary.
        full: All columns of the metrics, as a table.
        as_json: One document instead of tables.
        receipt: What the run said it records, where it said so.
    """
    info, actions = found.info, found.actions()
    tables = {"metrics": found.metrics, "categories": found.categories, "actions": actions.dicts()}
    columns = {
        "metrics": list(found.metrics[0]) if full and found.metrics else found.columns("metrics"),
        "categories": list(found.categories[0]) if full and found.categories else found.columns("categories"),
        "actions": actions.columns,
    }
    if as_json:
        emit_json(
            {
                **{name: info[name] for name in ("result_name", "model_name", "version_name", "method_name")},
                **({} if receipt is None else {"receipt": receipt}),
                **{
                    name: [{key: row[key] for key in columns[name]} for row in rows]
                    for name, rows in tables.items()
                },
                "problems": info["problems"],
            }
        )
        return
    if on_terminal() and not full:
        from mld_core.evaluation.results.notebook import show_summary

        show_summary(found)
        if receipt is not None:
            typer.echo(f"\nRecorded: {receipt}")
        return
    for name, rows in tables.items() if found.analysed else [("metrics", tables["metrics"])]:
        if name != "metrics":
            typer.echo()  # an empty line ends a table
        if on_terminal() and name != "actions":
            _print_whole(rows, columns[name])
        else:
            emit(rows, columns[name], as_json=False)
    note(f"result: {info['result_name']}")
    if receipt is not None:
        note(f"recorded: {receipt}")
    for one in info["problems"]:
        note(f"{one['severity']}: {one['message']}")


def _print_whole(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A table with all its columns: they become rows where they do not fit."""
    from mld_core.evaluation.results.frames import Figures

    typer.echo(str(Figures(list(rows), columns=list(columns), dtype=object)))


# -- as it happens -------------------------------------------------------------------------------------------

_LOOK_SECONDS = 1.0


def watch(
    model: ModelArgument = None,
    version: VersionArgument = None,
    *,
    once: Annotated[bool, typer.Option("--once", help="Show what is known now, and end.")] = False,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each pass.")] = False,
) -> None:
    """Watch a training: curves, category shares and findings, as its passes are evaluated beside it.

    Without names the newest run is watched. On a terminal the view is renewed until Ctrl-C; in a pipe there
    is one line for each pass that is evaluated to its end, those of before first, and with --once also for
    those of which more may follow. Shares and counts of findings are estimates from a sample; `mld evaluate`
    looks at all units.

    \b
    Examples:
      mld watch                      the newest run
      mld watch resnet18 v3 --once   what is known now
      mld watch | cut -f1,2,6        split, epoch, accuracy of each pass, as it is sealed
    """  # noqa: D301  click reads the mark
    with clear_errors(), contextlib.suppress(KeyboardInterrupt):
        from mld_core.evaluation.live.figures import Epochs

        opened = open_store(store)
        run = choose_run(opened, model, version)
        table = Epochs(opened, run)
        if on_terminal() and not as_json:
            _watch_screen(run, table, once=once)
        else:
            _watch_lines(table, once=once, as_json=as_json)


def _watch_screen(run: RunKey, table: Epochs, *, once: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from mld_core.evaluation.live.watching import screen

    console, rows = Console(), table.rows()
    if not once:
        # A screen of its own: a view higher than the terminal would leave a copy of itself at every change.
        with (
            contextlib.suppress(KeyboardInterrupt),
            Live(console=console, auto_refresh=False, screen=True) as view,
        ):
            shown: object = None
            while True:
                if shown != (console.size, rows):
                    shown = console.size, rows
                    view.update(screen(run, rows), refresh=True)
                time.sleep(_LOOK_SECONDS)
                rows = table.rows()
    console.print(screen(run, rows))


def _watch_lines(table: Epochs, *, once: bool, as_json: bool) -> None:
    from mld_core.evaluation.live.watching import COLUMNS, finished, flat

    if not as_json:
        typer.echo("\t".join(COLUMNS))
    told: set[tuple[object, ...]] = set()
    while True:
        for row in table.rows() if once else finished(table.rows()):
            place = tuple(row[name] for name in ("dataset", "n_epoch", "pass_no", "attempt"))
            if place in told:
                continue
            told.add(place)
            line = flat(row)
            typer.echo(
                json.dumps(plain(row), ensure_ascii=False)
                if as_json
                else "\t".join(cell(line[name]) for name in COLUMNS)
            )
        sys.stdout.flush()
        if once:
            return
        time.sleep(_LOOK_SECONDS)


# -- those of a service --------------------------------------------------------------------------------------

_JOB_COLUMNS = (
    "job_id",
    "model",
    "version",
    "state",
    "progress",
    "stage",
    "created_at",
    "finished_at",
    "reason",
)

jobs = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@jobs.callback()
def jobs_group() -> None:
    """List and cancel the evaluations of your organization at the service.

    \b
    Examples:
      mld jobs list
      mld jobs list --state queued
      mld jobs cancel job_0123456789abcdef01234567
    """  # noqa: D301  click reads the mark


@jobs.command("list", short_help="Evaluations, newest first.")
def jobs_list(
    *,
    state: Annotated[
        str | None,
        typer.Option(help="queued, running, done, failed or cancelled. Default: all.", show_default=False),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """List evaluations, newest first.

    \b
    Examples:
      mld jobs list --state running --json
    """  # noqa: D301  click reads the mark
    with clear_errors():
        client = client_of(the_service())
        query = {"limit": most, **({"state": state} if state else {})}
        items = client.json("GET", "/v1/jobs", params=query)["items"]
        names = {one: client.json("GET", f"/v1/runs/{one}") for one in {item["run_id"] for item in items}}
    rows = []
    for item in items:
        run = names[item["run_id"]]
        rows.append({**item, "model": run["model_name"], "version": run["version_name"]})
    emit(rows, _JOB_COLUMNS, as_json=as_json)


@jobs.command("cancel", short_help="End evaluations, queued or running.")
def jobs_cancel(job_id: Annotated[list[str], typer.Argument(help="As `mld jobs list` shows them.")]) -> None:
    """Cancel evaluations; one that is finished stays as it is.

    \b
    Examples:
      mld jobs cancel job_0123456789abcdef01234567
    """  # noqa: D301  click reads the mark
    with clear_errors():
        client = client_of(the_service())
        for one in job_id:
            found = client.json("DELETE", f"/v1/jobs/{one}")
            note(f"{one} is {found['state'] if found['state'] != 'running' else 'being cancelled'}")
